"""Heads and chunked bodies of HTTP/1.1 (RFC 9110, RFC 9112), read strictly.

Fields and start lines are parsed by h11, which refuses what is no token, no field value and no number. What it lets pass for
the sake of old programs is refused before: lines that end with LF alone, a bare CR, obsolete folding. Whatever two programs may
understand in two ways is an error here, since the back end would be the other program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11

from .streams import PIECE, Peer, PeerError

if TYPE_CHECKING:
    from h11._headers import Headers

__all__ = [
    "ChunkReader", "Malformed", "Refused", "Request", "Response", "first_head", "own_response", "read_request", "read_response",
    "request_head", "response_head",
]  # fmt: skip

Field = tuple[bytes, bytes]
"""Name as it was written, and value."""

_HOP = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade", b"content-length", b"trailer")
)
"""Fields that are for one connection only, and those of the framing, which are written anew."""
_NEVER_NAMED = frozenset((b"host", b"content-length"))
"""A Connection field that names one of these would have it removed on the way."""
_FORBIDDEN_TRAILERS = _HOP | {b"host", b"authorization", b"cookie", b"set-cookie", b"via", b"x-forwarded-for", b"expect"}
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_CHUNK_LINE = 512
_VERSIONS = (b"1.0", b"1.1")
_AUTHORITY = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[-A-Za-z0-9._~%]+)(?::[0-9]{0,5})?")


class Malformed(Exception):  # noqa: N818 - it says what the message is
    """A message that must not be understood. status: what a client gets for it."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Refused(Exception):  # noqa: N818
    """A request is answered by us. reason: short, for the statistics."""

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(text)
        self.status, self.reason = status, reason


@dataclass
class Request:
    """What a client wants. length: of its body, None if it is chunked."""

    method: bytes
    target: bytes
    version: bytes
    fields: list[Field]
    length: int | None
    sized: bool
    """Whether the length was given."""
    keep_alive: bool
    upgrade: bytes | None

    @property
    def has_body(self) -> bool:
        return self.length != 0

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again when nobody knows what became of it (RFC 9110 section 9.2.2)."""
        return not self.has_body and self.method in (b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE")

    def __str__(self) -> str:
        return f"{self.method.decode()[:40]} {self.target[:200].decode()}"


@dataclass
class Response:
    """What a back end answers. framing: of its body, "none", "length", "chunked", "close" or "tunnel"."""

    status: int
    reason: bytes
    fields: list[Field]
    framing: str
    length: int
    announced: bytes | None
    """Content-Length as it was given."""
    keep_alive: bool
    upgrade: bytes | None


# -- read ----------------------------------------------------------------------------------------------


async def _lines(peer: Peer, limit: int, *, skip: bool = False) -> bytes:
    """Lines up to an empty one, with it. skip: one empty line may precede them."""
    head = bytearray()
    while True:
        try:
            line = await peer.line(limit - len(head))
        except PeerError as error:
            error.began = error.began or bool(head)
            raise
        if not line.endswith(b"\r\n"):
            raise Malformed("a line ends with LF alone")
        if b"\r" in line[:-2] or b"\0" in line:
            raise Malformed("a line has a bare CR or NUL in it")
        if line == b"\r\n":
            if head or not skip:
                return bytes(head + line)
            skip = False
            continue
        if line[0] in b" \t":
            raise Malformed("obsolete line folding")
        head += line


def _event(parser: h11.Connection, head: bytes) -> object:
    try:
        parser.receive_data(head)
        return parser.next_event()
    except h11.RemoteProtocolError as error:
        raise Malformed(str(error)[:200], 501 if error.error_status_hint == 501 else 400) from None


def _values(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in fields if key == name]


def _tokens(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> set[bytes]:
    return {token.strip().lower() for value in _values(fields, name) for token in value.split(b",")} - {b""}


def _framing(fields: list[Field], version: bytes) -> tuple[bool, int | None]:
    """Whether the body is chunked, and its length if one is given; of fields with names in lower case."""
    chunked = bool(_values(fields, b"transfer-encoding"))
    length = _values(fields, b"content-length")
    if chunked and length:
        raise Malformed("both Content-Length and Transfer-Encoding")
    if chunked and version == b"1.0":
        raise Malformed("Transfer-Encoding in HTTP/1.0")
    return chunked, int(length[0]) if length else None


def _end_to_end(headers: Headers, named: set[bytes]) -> list[Field]:
    """Fields that are handed on."""
    gone = _HOP | named
    return [field for field, (name, _) in zip(headers.raw_items(), headers, strict=True) if name not in gone]


async def read_request(client: Peer, limit: int) -> Request:
    """The next one. Raises `Malformed`, `HeadTooLarge`, `PeerError`."""
    head = await _lines(client, limit, skip=True)
    event = _event(h11.Connection(h11.SERVER, max_incomplete_event_size=limit), head)
    assert isinstance(event, h11.Request)
    method, target, version = event.method, event.target, event.http_version
    if version not in _VERSIONS:
        raise Malformed(f"HTTP/{version.decode()} is not spoken here", 505)
    fields: list[Field] = list(event.headers)
    chunked, length = _framing(fields, version)
    options = _tokens(fields, b"connection")
    if named := options & _NEVER_NAMED:
        raise Malformed(f"Connection names {named.pop().decode()}")
    kept = _end_to_end(event.headers, options)
    host = _values(fields, b"host")
    target, kept = _origin(method, target, host[0] if host else None, kept)
    if method == b"CONNECT" and (chunked or length):
        raise Malformed("CONNECT with a body")
    upgrade = None
    offered = _values(fields, b"upgrade")
    if b"upgrade" in options and offered and version == b"1.1" and not chunked and not length:
        # HTTP/2 in clear would be requests that nobody reads.
        protocols = [part.strip() for value in offered for part in value.split(b",")]
        upgrade = b", ".join(part for part in protocols if part and part.lower() != b"h2c") or None
        kept = [field for field in kept if field[0].lower() != b"http2-settings"]
    keep = b"close" not in options if version == b"1.1" else b"keep-alive" in options
    return Request(
        method, target, version, kept, None if chunked else length or 0, length is not None, keep and method != b"CONNECT", upgrade
    )


def _origin(method: bytes, target: bytes, host: bytes | None, fields: list[Field]) -> tuple[bytes, list[Field]]:
    """The target as an origin server wants it, and the fields with the Host that goes with it (RFC 9112 section 3.2)."""
    if host is not None and host and not _AUTHORITY.fullmatch(host):
        raise Malformed("Host is no host")
    if method == b"CONNECT":
        if not _AUTHORITY.fullmatch(target) or b":" not in target:
            raise Malformed("CONNECT wants a host and a port")
    elif target.startswith(b"/"):
        pass
    elif target == b"*":
        if method != b"OPTIONS":
            raise Malformed("the target '*' is for OPTIONS only")
    else:
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise Malformed("the target is no path and no URI of http")
        match = re.match(rb"[^/?#]*", rest)
        assert match is not None
        authority = match.group()
        if not _AUTHORITY.fullmatch(authority):
            raise Malformed("the target's authority is no host")
        target = rest[match.end() :]
        target = target if target.startswith(b"/") else b"/" + target
        fields = [(b"Host", authority), *(field for field in fields if field[0].lower() != b"host")]
    return target, fields


_ASKED = h11.Request(
    method="GET", target="/", headers=[("Host", "back.end"), ("Connection", "upgrade"), ("Upgrade", "any")]
)
"""What h11 is told that the back end was asked, so that it takes every answer; what may come is decided here."""


async def read_response(server: Peer, limit: int, request: Request) -> Response:
    """The next one, which may be an interim one (1xx)."""
    head = await _lines(server, limit)
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=limit)
    parser.send(_ASKED)
    event = _event(parser, head)
    assert isinstance(event, (h11.InformationalResponse, h11.Response))
    version, status = event.http_version, event.status_code
    if version not in _VERSIONS:
        raise Malformed(f"an answer in HTTP/{version.decode()}")
    if not 100 <= status <= 599:
        raise Malformed(f"status {status}")
    fields: list[Field] = list(event.headers)
    chunked, length = _framing(fields, version)
    options = _tokens(fields, b"connection")
    offered = _values(fields, b"upgrade")
    upgrade = b", ".join(offered) or None
    if status == 101:
        if request.upgrade is None or upgrade is None:
            raise Malformed("101 for a request that asked for no upgrade" if request.upgrade is None else "101 without Upgrade")
        framing = "tunnel"
    elif request.method == b"CONNECT" and 200 <= status < 300:
        framing = "tunnel"
    elif status < 200 or status in (204, 304) or request.method == b"HEAD":
        framing = "none"
    elif chunked:
        framing = "chunked"
    else:
        framing = "close" if length is None else "length"
    keep = b"close" not in options if version == b"1.1" else b"keep-alive" in options
    return Response(
        status, event.reason, _end_to_end(event.headers, options), framing, length or 0,
        None if length is None else str(length).encode(), keep and framing not in ("close", "tunnel"), upgrade,
    )  # fmt: skip


class ChunkReader:
    """The data of a chunked body, and its trailer fields at the end."""

    def __init__(self, peer: Peer, limit: int) -> None:
        self._peer, self._limit = peer, limit
        self._left = 0
        self._ended = False
        self.trailers: list[Field] = []

    async def read(self) -> bytes:
        """Some; b'' at the end of the body."""
        if self._ended:
            return b""
        if not self._left:
            line = await self._peer.line(_CHUNK_LINE)
            match = _CHUNK_SIZE.fullmatch(line)
            if match is None:
                raise Malformed(f"no size of a chunk: {line[:40]!r}")
            self._left = int(match[1], 16)
            if not self._left:
                await self._end()
                return b""
        data = await self._peer.read(min(self._left, PIECE))
        if not data:
            raise self._peer.ended("in mid-body")
        self._left -= len(data)
        if not self._left and await self._peer.line(2) != b"\r\n":
            raise Malformed("a chunk is longer than it says")
        return data

    async def _end(self) -> None:
        lines = await _lines(self._peer, self._limit)
        fields: list[Field] = []
        for line in lines.split(b"\r\n")[:-2]:
            name, colon, value = line.partition(b":")
            if not colon:
                raise Malformed("a trailer field without a colon")
            fields.append((name, value.strip(b" \t")))
        try:
            end = h11.EndOfMessage(headers=fields)
        except h11.LocalProtocolError as error:
            raise Malformed(str(error)[:200]) from None
        headers = end.headers
        self.trailers = [
            field for field, (name, _) in zip(headers.raw_items(), headers, strict=True) if name not in _FORBIDDEN_TRAILERS
        ]
        self._ended = True


# -- write ---------------------------------------------------------------------------------------------


def fields_text(fields: Iterable[Field]) -> bytes:
    """Fields, each with its line's end."""
    return b"".join(b"%b: %b\r\n" % field for field in fields)


def request_head(request: Request, client: str, backend: str, keep_alive: bool) -> bytes:
    """The head for a back end. client: its address."""
    fields = _request_fields(request, client)
    if not any(name.lower() == b"host" for name, _ in fields):  # HTTP/1.0
        fields.insert(0, (b"Host", backend.encode()))
    if request.upgrade is not None:
        fields += [(b"Connection", b"upgrade"), (b"Upgrade", request.upgrade)]
    elif not keep_alive and request.method != b"CONNECT":
        fields.append((b"Connection", b"close"))
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (request.method, request.target, fields_text(fields))


def first_head(request: Request, client: str) -> bytes:
    """The head for a back end that has the client to itself from now on: version, and whether the connection stays, are as the
    client said."""
    fields = _request_fields(request, client)
    options = []
    if request.method != b"CONNECT" and request.keep_alive != (request.version == b"1.1"):
        options.append(b"keep-alive" if request.keep_alive else b"close")
    if request.upgrade is not None:
        options.append(b"upgrade")
        fields.append((b"Upgrade", request.upgrade))
    if options:
        fields.append((b"Connection", b", ".join(options)))
    return b"%b %b HTTP/%b\r\n%b\r\n" % (request.method, request.target, request.version, fields_text(fields))


def _request_fields(request: Request, client: str) -> list[Field]:
    """What is sent on, with where it comes from and how its body ends."""
    fields = [field for field in request.fields if field[0].lower() != b"x-forwarded-for"]
    seen = [value for name, value in request.fields if name.lower() == b"x-forwarded-for"]
    if request.length is None:
        fields.append((b"Transfer-Encoding", b"chunked"))
    elif request.sized:
        fields.append((b"Content-Length", b"%d" % request.length))
    fields.append((b"X-Forwarded-For", b", ".join([*seen, client.encode()])))
    fields.append((b"Via", request.version + b" acceltcp"))
    return fields


def response_head(response: Response, request: Request, keep_alive: bool, dechunked: bool = False) -> bytes:
    """The head for the client. dechunked: the body is sent as it is, up to the end of the connection."""
    fields = [*response.fields, (b"Via", b"1.1 acceltcp")]
    if response.framing == "length" or (response.framing == "none" and response.status not in (101, 204) and response.status >= 200):
        if response.announced is not None:
            fields.append((b"Content-Length", response.announced))
    elif response.framing == "chunked" and not dechunked:
        fields.append((b"Transfer-Encoding", b"chunked"))
    if response.status == 101 or (response.status == 426 and response.upgrade is not None):
        assert response.upgrade is not None
        fields.append((b"Upgrade", response.upgrade))
        fields.append((b"Connection", b"upgrade" if response.status == 101 or keep_alive else b"upgrade, close"))
    elif response.status >= 200 and response.framing != "tunnel":
        if not keep_alive:
            fields.append((b"Connection", b"close"))
        elif request.version == b"1.0":
            fields.append((b"Connection", b"keep-alive"))
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (response.status, response.reason, fields_text(fields))


def own_response(status: int, text: str, head_only: bool = False) -> bytes:
    """An answer of ours, after which the connection ends."""
    body = f"{text}\n".encode("ascii", "replace")
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nDate: {formatdate(usegmt=True)}\r\n"
        f"Content-Type: text/plain; charset=us-ascii\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    return head if head_only else head + body
