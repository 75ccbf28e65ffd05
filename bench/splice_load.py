"""Clients and the back end of `acceltcp bench splice`: plain sockets of the kernel, in a process of their own.

`python -m bench.splice_load` reads one JSON object per line from standard input, the arguments of a command below and its name as
"do", and answers each with one. What goes wrong ends the process with status 1 and a sentence on standard error.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Callable
from functools import cache

from sim.stage import HOST4, NIC4

from .host_load import PATIENCE_S, response_of
from .obeying import obey

__all__ = ["REQUEST", "Load", "fetch", "main", "request", "serve"]

REQUEST = struct.Struct("!Q?55x")
"""Bytes of the response; whether the server ends its data behind it."""
_PIECE = 1 << 17
_response = cache(response_of)


def request(size: int, *, last: bool = False) -> bytes:
    """Ask for `size` bytes."""
    return REQUEST.pack(size, last)


def fetch(sock: socket.socket, size: int, *, last: bool = False) -> None:
    """One request and its response. Raises `RuntimeError` when that is not what the server sends."""
    sock.sendall(request(size, last=last))
    wanted = memoryview(_response(size))
    at = 0
    while at < size:
        part = sock.recv(min(_PIECE, size - at))
        if not part:
            raise RuntimeError(f"the connection ended after {at} of {size} bytes")
        if part != wanted[at : at + len(part)]:
            raise RuntimeError(f"wrong data among the {len(part)} bytes from byte {at} of {size}")
        at += len(part)
    if last and sock.recv(1):
        raise RuntimeError(f"more than the {size} bytes asked for")


def serve(listener: socket.socket) -> None:
    """Answer requests on all connections of a listening socket, in threads, until it is closed."""

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while asked := connection.recv(REQUEST.size, socket.MSG_WAITALL):
                    size, last = REQUEST.unpack(asked)
                    connection.sendall(_response(size))
                    if last:
                        connection.shutdown(socket.SHUT_WR)
            except (OSError, struct.error):
                return  # the client's side says what went wrong

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


class Load:
    """The commands."""

    def __init__(self, address: str = NIC4) -> None:
        self._address = address
        self._open: list[socket.socket] = []

    def backend(self, port: int) -> None:
        """Serve on that port, until the process ends."""
        serve(socket.create_server((HOST4, port), backlog=1024))

    def open(self, port: int, count: int) -> None:
        """Connections for `keep`."""
        self._open += [self._connect(port) for _ in range(count)]

    def close(self) -> None:
        """Close them."""
        for each in self._open:
            each.close()
        self._open.clear()

    def keep(self, count: int, size: int) -> None:
        """`count` requests on each open connection, one after the other, all connections at once."""

        def run(sock: socket.socket) -> None:
            for _ in range(count):
                fetch(sock, size)

        self._all([lambda sock=sock: run(sock) for sock in self._open])  # type: ignore[misc]

    def visit(self, port: int, count: int, each: int, size: int, concurrency: int) -> None:
        """`count` connections with `each` requests, of which the last one ends it; `concurrency` connections at once."""
        shares = [count // concurrency + (number < count % concurrency) for number in range(concurrency)]

        def run(share: int) -> None:
            for _ in range(share):
                with self._connect(port) as sock:
                    for left in reversed(range(each)):
                        fetch(sock, size, last=not left)

        self._all([lambda share=share: run(share) for share in shares if share])  # type: ignore[misc]

    def _connect(self, port: int) -> socket.socket:
        sock = socket.create_connection((self._address, port), PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    @staticmethod
    def _all(jobs: list[Callable[[], None]]) -> None:
        """Run them in threads; raises the first error."""
        errors: list[BaseException] = []

        def run(job: Callable[[], None]) -> None:
            try:
                job()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


def main() -> int:
    """Commands in, answers out; the exit status."""
    load = Load()
    return obey("bench.splice_load", load.backend, load.open, load.close, load.keep, load.visit)


if __name__ == "__main__":
    sys.exit(main())
