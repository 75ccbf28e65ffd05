"""An HTTP/1.1 server for files: GET and HEAD, persistent connections, nothing else.

Follows RFC 9112 as far as a client can notice; refuses what it does not understand.
"""

from __future__ import annotations

import asyncio
import errno
import html
import mimetypes
import os
import urllib.parse
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path

import acceltcp
from acceltcp.host import Connection

__all__ = ["HttpServer"]

_IDLE_S = 30.0
_HEAD_LIMIT = 16384
_CHUNK = 1 << 17
_REASONS = {
    200: "OK", 301: "Moved Permanently", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    413: "Content Too Large", 431: "Request Header Fields Too Large", 505: "HTTP Version Not Supported",
}  # fmt: skip


class HttpServer:
    """Serves the files under `directory`; without one, a page that says who answers.

    Use `handle` as the handler of `Nic.listen`.
    """

    def __init__(self, directory: Path | str | None = None) -> None:
        self._root = Path(directory).resolve(strict=True) if directory is not None else None
        if self._root is not None and not self._root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
        self.requests = 0

    @property
    def handle(self) -> Callable[[Connection], Awaitable[None]]:
        """The connection handler."""
        return self._serve

    async def _serve(self, connection: Connection) -> None:
        while True:
            try:
                head = await asyncio.wait_for(connection.readuntil(b"\r\n\r\n", limit=_HEAD_LIMIT), _IDLE_S)
            except asyncio.LimitOverrunError:
                await self._fail(connection, 431)
                return
            except (asyncio.IncompleteReadError, TimeoutError):
                return
            self.requests += 1
            if not await self._request(connection, head):
                return

    async def _request(self, connection: Connection, head: bytes) -> bool:
        """Answer one request; whether another may follow."""
        lines = head.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/"):
            return await self._fail(connection, 400)
        method, target, version = parts
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            return await self._fail(connection, 505)
        fields: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if line and (not colon or not name or name != name.strip()):
                return await self._fail(connection, 400)
            if name.lower() in fields and name.lower() in ("host", "content-length"):
                return await self._fail(connection, 400)
            fields[name.lower()] = value.strip()
        if version == "HTTP/1.1" and "host" not in fields:
            return await self._fail(connection, 400)
        if fields.get("content-length", "0") != "0" or "transfer-encoding" in fields:
            return await self._fail(connection, 413)
        if method not in ("GET", "HEAD"):
            return await self._fail(connection, 405, "Allow: GET, HEAD\r\n")
        tokens = {token.strip().lower() for token in fields.get("connection", "").split(",")}
        keep = "close" not in tokens if version == "HTTP/1.1" else "keep-alive" in tokens
        if not target.startswith("/"):  # the form with a whole URI in it
            try:
                target = urllib.parse.urlsplit(target).path or "/"
            except ValueError:
                return await self._fail(connection, 400)
        await self._answer(connection, target, method == "HEAD", keep)
        return keep

    async def _answer(self, connection: Connection, target: str, head_only: bool, keep: bool) -> None:
        path = urllib.parse.unquote(target.partition("#")[0].partition("?")[0])
        if self._root is None:
            await self._send(connection, 200, _about().encode(), "text/html; charset=utf-8", head_only, keep)
            return
        file = self._find(path)
        if file is None:
            await self._send(connection, 404, b"Not found\n", "text/plain; charset=utf-8", head_only, keep)
        elif file.is_dir():
            if not path.endswith("/"):
                # One slash in front: two would name another host.
                where = "/" + urllib.parse.quote(path.strip("/")) + "/"
                connection.write(_head(301, 0, keep, "text/plain", f"Location: {where}\r\n"))
                await connection.drain()
                return
            try:
                page = _listing(path, file).encode("utf-8", "replace")
            except OSError:
                await self._send(connection, 404, b"Not found\n", "text/plain; charset=utf-8", head_only, keep)
                return
            await self._send(connection, 200, page, "text/html; charset=utf-8", head_only, keep)
        else:
            await self._send_file(connection, file, head_only, keep)

    def _find(self, path: str) -> Path | None:
        """The file or folder behind a path, never outside the root."""
        assert self._root is not None
        if "\0" in path:
            return None
        try:
            file = (self._root / path.lstrip("/")).resolve(strict=True)
        except (OSError, RuntimeError):
            return None
        if not file.is_relative_to(self._root):
            return None
        if file.is_dir():
            index = os.path.realpath(file / "index.html")
            inside = os.path.isfile(index) and Path(index).is_relative_to(self._root)
            return Path(index) if path.endswith("/") and inside else file
        return file if file.is_file() and not path.endswith("/") else None

    async def _send_file(self, connection: Connection, file: Path, head_only: bool, keep: bool) -> None:
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        try:
            source = file.open("rb")
        except OSError:
            await self._send(connection, 404, b"Not found\n", "text/plain; charset=utf-8", head_only, keep)
            return
        with source:
            left = file.stat().st_size
            connection.write(_head(200, left, keep, kind))
            while left and not head_only:
                data = source.read(min(_CHUNK, left))
                if not data:
                    raise ConnectionAbortedError(f"{file} shrank while it was sent")
                left -= len(data)
                connection.write(data)
                await connection.drain()
        await connection.drain()

    async def _send(
        self, connection: Connection, status: int, body: bytes, kind: str, head_only: bool, keep: bool
    ) -> None:
        connection.write(_head(status, len(body), keep, kind) + (b"" if head_only else body))
        await connection.drain()

    async def _fail(self, connection: Connection, status: int, extra: str = "") -> bool:
        body = f"{_REASONS[status]}\n".encode()
        connection.write(_head(status, len(body), False, "text/plain; charset=utf-8", extra) + body)
        await connection.drain()
        return False


def _head(status: int, length: int, keep: bool, kind: str, extra: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        f"Date: {formatdate(usegmt=True)}\r\n"
        f"Server: AccelTCP/{acceltcp.__version__}\r\n"
        f"Content-Type: {kind}\r\n"
        f"Content-Length: {length}\r\n"
        f"Connection: {'keep-alive' if keep else 'close'}\r\n"
        f"{extra}\r\n"
    ).encode("latin-1")


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<h1>{title}</h1>\n{body}\n</html>\n"
    )


def _about() -> str:
    return _page(
        "AccelTCP",
        "<p>This page came through an AccelTCP NIC: the gateware answered your SYN, the host stack in Python "
        "sent what you read.</p>",
    )


def _listing(path: str, folder: Path) -> str:
    items = ['<li><a href="../">../</a></li>'] if path != "/" else []
    for entry in sorted(folder.iterdir(), key=lambda entry: (not entry.is_dir(), entry.name)):
        name = entry.name + ("/" if entry.is_dir() else "")
        items.append(f'<li><a href="./{urllib.parse.quote(os.fsencode(name))}">{html.escape(name)}</a></li>')
    return _page(f"Index of {html.escape(path)}", "<ul>\n" + "\n".join(items) + "\n</ul>")
