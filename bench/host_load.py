"""The load of `acceltcp bench host`: many plain clients of the kernel's TCP, in a process of their own.

`python -m bench.host_load` reads one JSON object per line from standard input, the arguments of a command below and its name as
"do", and answers each with one. What goes wrong ends the process with status 1 and a sentence on standard error.
"""

from __future__ import annotations

import resource
import select
import socket
import sys
import threading

from sim.stage import HOST4, NIC4

from .obeying import obey

__all__ = ["REQUEST", "UPLOAD", "main", "response_of", "transactions"]

REQUEST = b"GET /short HTTP/1.1\r\nHost: nic\r\nConnection: close\r\n".ljust(60, b" ") + b"\r\n\r\n"
"""64 bytes, as a client would ask for a page."""
UPLOAD = 1 << 16
"""Bytes that a client of `uploads` sends."""
PATIENCE_S = 30.0
"""Without progress for so long, something is wrong."""


def response_of(size: int) -> bytes:
    """What the server answers: a header and a body that a gap or a repetition would change; `size` bytes in all."""
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    body = b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))
    return (head + body)[:size]


class _Client:
    """One connection: what it still has to send, what it has got."""

    __slots__ = ("got", "left", "socket")

    def __init__(self, data: bytes) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.got: list[bytes] = []
        self.left = memoryview(data)


def transactions(
    port: int, count: int, concurrency: int, request: bytes, response: bytes, address: str = NIC4, *, keep: bool = False
) -> list[socket.socket]:
    """Run `count` transactions, at most `concurrency` at a time: connect, send, read to the end of data, close.

    keep: count connections as done, and give them back open, when they have the response (without one: when they are
    connected and the request is sent).
    Raises `RuntimeError` when a response is not what the server should send, or nothing moves any more.
    """
    poll = select.epoll()
    clients: dict[int, _Client] = {}
    kept: list[socket.socket] = []
    begun = done = 0

    def begin() -> None:
        nonlocal begun
        client = _Client(request)
        client.socket.connect_ex((address, port))
        clients[client.socket.fileno()] = client
        poll.register(client.socket.fileno(), select.EPOLLOUT)
        begun += 1

    def finish(fd: int, client: _Client) -> None:
        nonlocal done
        if b"".join(client.got) != response:
            size = sum(map(len, client.got))
            raise RuntimeError(f"a client of port {port} got {size} bytes that are not the {len(response)} expected")
        poll.unregister(fd)
        if keep:
            kept.append(client.socket)
        else:
            client.socket.close()
        del clients[fd]
        done += 1

    def move(fd: int, client: _Client, events: int) -> None:
        if events & select.EPOLLOUT:
            error = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "cannot connect")
            while client.left:
                client.left = client.left[client.socket.send(client.left) :]
            if keep and not response:
                finish(fd, client)
            else:
                poll.modify(fd, select.EPOLLIN)
            return
        part = client.socket.recv(1 << 17)
        if part:
            client.got.append(part)
        if not part or (keep and sum(map(len, client.got)) >= len(response)):
            finish(fd, client)

    try:
        while done < count:
            while begun < count and len(clients) < concurrency:
                begin()
            ready = poll.poll(PATIENCE_S)
            if not ready:
                raise RuntimeError(f"{len(clients)} clients of port {port} wait since {PATIENCE_S:g} s, after {done} of {count}")
            for fd, events in ready:
                try:
                    move(fd, clients[fd], events)
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise RuntimeError(f"a client of port {port}: {error}, after {done} of {count}") from None
        return kept
    finally:
        for client in clients.values():
            client.socket.close()
        poll.close()


class _Backend:
    """A server that answers every request with the same bytes; the other side of a relay."""

    def __init__(self, port: int, response: bytes) -> None:
        self._response = response
        self._listener = socket.create_server((HOST4, port), backlog=1024)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(PATIENCE_S)
            try:
                if connection.recv(len(REQUEST), socket.MSG_WAITALL) == REQUEST:
                    connection.sendall(self._response)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)
            except OSError:
                return  # the client's side says what went wrong


class _Load:
    """The commands. Sizes in bytes; the answer's `seconds` is how long it took."""

    def __init__(self) -> None:
        self._kept: list[socket.socket] = []
        self._backends: list[_Backend] = []

    def short(self, port: int, count: int, concurrency: int, response: int) -> None:
        """Request, response, close."""
        transactions(port, count, concurrency, REQUEST, response_of(response))

    def uploads(self, port: int, count: int, concurrency: int, response: int) -> None:
        """`UPLOAD` bytes, response, close."""
        transactions(port, count, concurrency, response_of(UPLOAD), response_of(response))

    def hold(self, port: int, count: int, concurrency: int, response: int) -> None:
        """Connect and keep the connections; with a response, ask for it first."""
        data = REQUEST if response else b""
        self._kept += transactions(port, count, concurrency, data, response_of(response), keep=True)

    def release(self) -> None:
        """Close what `hold` has kept."""
        for each in self._kept:
            each.close()
        self._kept.clear()

    def backend(self, port: int, response: int) -> None:
        """Serve `response` bytes to everybody who sends a request to that port, until the process ends."""
        self._backends.append(_Backend(port, response_of(response)))


def main() -> int:
    """Commands in, answers out; the exit status."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    load = _Load()
    return obey("bench.host_load", load.short, load.uploads, load.hold, load.release, load.backend)


if __name__ == "__main__":
    sys.exit(main())
