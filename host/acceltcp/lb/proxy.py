"""The load balancer: takes requests of clients to back ends, and has the NIC forward what is long.

A `Proxy` has a `_Session` for each client's connection, which serves one request after the other. Heads, chunked bodies and
short bodies go through the host. A body whose length is known is given to the NIC, which forwards exactly that many bytes; then both
connections are ours again. If back ends are chosen per connection, the first request decides, and the NIC has the connections from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import Any

from .backends import Backends, Link
from .bodies import Bodies, Silence
from .config import Config
from .http import (
    Malformed,
    Refused,
    Request,
    Response,
    first_head,
    own_response,
    read_request,
    read_response,
    request_head,
    response_head,
)
from .streams import PIECE, HeadTooLarge, Net, Peer, PeerError, Stream

__all__ = ["Proxy"]

log = logging.getLogger("acceltcp.lb")

_LINGER_S, _LINGER_BYTES = 2.0, 1 << 20
"""A client that is refused may still be sending; a reset because of that could take the answer from it."""


class _Stale(Exception):  # noqa: N818
    """A connection that had waited in the pool was over when the request came."""


class Proxy:
    """Serves clients' connections. Use `handle` as their handler."""

    def __init__(self, config: Config, net: Net) -> None:
        self.config, self.net = config, net
        self.backends = Backends(config, net)
        self.sessions: set[_Session] = set()
        self.stopping = False
        self.connections = self.requests = 0
        self.refused: Counter[str] = Counter()
        self.aborted: Counter[str] = Counter()
        self.not_spliced: Counter[str] = Counter()
        self.bodies: Counter[str] = Counter()
        self.octets: Counter[str] = Counter()
        self.handed: Counter[str] = Counter()

    async def handle(self, stream: Stream) -> None:
        """One client; returns when its connection is to be closed."""
        session = _Session(self, stream)
        self.sessions.add(session)
        self.connections += 1
        try:
            await session.run()
        finally:
            self.sessions.discard(session)

    def stats(self) -> dict[str, Any]:
        """Figures, for people and for JSON."""
        return {
            "clients": {"connections": self.connections, "live": len(self.sessions), "requests": self.requests},
            "bodies": {
                kind: {"bodies": self.bodies[kind], "bytes": self.octets[kind]} for kind in ("spliced", "relayed")
            },
            "handed_over": {key: self.handed[key] for key in ("connections", "live", "spliced", "relayed", "bytes")},
            "not_spliced": dict(self.not_spliced),
            "refused": dict(self.refused),
            "aborted": dict(self.aborted),
            "backends": {backend.name: backend.stats() for backend in self.backends.members},
        }  # fmt: skip

    async def close(self) -> None:
        """Serve no more requests; those that run, and connections handed over, may end, within the time of the configuration."""
        self.stopping = True
        tasks = {session.task for session in self.sessions}
        for session in list(self.sessions):
            session.stop()
        if tasks:
            _, running = await asyncio.wait(tasks, timeout=self.config.timeouts.stop)
            for task in running:
                task.cancel()
            if running:
                log.warning("%d connections were not over after %g s: cut off", len(running), self.config.timeouts.stop)
                await asyncio.wait(running)
        await self.backends.close()


class _Session:
    """A client's connection."""

    def __init__(self, proxy: Proxy, stream: Stream) -> None:
        self.proxy, self.config, self.stream = proxy, proxy.config, stream
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        address, port = stream.peer
        self.address = address
        self.client = Peer(stream, f"client {address} port {port}", self.config.timeouts.idle)
        self.bodies = Bodies(proxy, self.client)
        self.gone = asyncio.ensure_future(stream.wait_closed())
        self._waiting = False
        """For a request of which nothing has come."""
        self._begun = False
        """A final answer is on its way."""

    def stop(self) -> None:
        """Who waits for a request waits no longer."""
        if self._waiting:
            self.task.cancel()

    async def run(self) -> None:
        """Until the connection is to be closed."""
        try:
            while True:
                request: Request | None = None
                self._begun = False
                try:
                    request = await self._next()
                    if request is None:
                        return
                    self.proxy.requests += 1
                    if not await self._serve(request):
                        return
                except Refused as refused:
                    await self._refuse(request, refused)
                    return
                except PeerError as error:
                    self._cut(request, str(error), "client" if error.peer is self.client else "backend")
                    return
                except Silence as silence:
                    self._cut(request, str(silence), "idle")
                    return
        finally:
            self.gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.gone

    # -- request ---------------------------------------------------------------------------

    async def _next(self) -> Request | None:
        """The next request; None: there is none."""
        timeouts = self.config.timeouts
        if self.proxy.stopping:
            return None
        self._waiting = True
        try:
            async with asyncio.timeout(timeouts.keep_alive):
                if not await self.stream.wait_data():
                    return None
        except OSError:
            return None
        except asyncio.CancelledError:
            if not self.proxy.stopping:
                raise
            self.task.uncancel()
            return None
        finally:
            self._waiting = False
        late = asyncio.timeout(timeouts.header)
        try:
            async with late:
                return await read_request(self.client, self.config.limits.header_bytes)
        except TimeoutError:
            raise Refused(408, "slow_head", f"the head was not complete after {timeouts.header:g} s") from None
        except HeadTooLarge:
            most = self.config.limits.header_bytes
            raise Refused(431, "large_head", f"the head has more than {most} bytes") from None
        except Malformed as error:
            raise Refused(error.status, "malformed", str(error)) from None
        except PeerError as error:
            if error.ended and error.began:
                raise Refused(400, "malformed", "the head is incomplete") from None
            raise

    async def _serve(self, request: Request) -> bool:
        """Whether another request may follow."""
        hand_over = self.config.balance_per == "connection"
        fresh = hand_over or not request.repeatable
        while True:
            link = await self.proxy.backends.link(self.stream, request.target, fresh=fresh)
            reuse: bool | None = None
            try:
                keep, reuse = await (self._hand_over if hand_over else self._exchange)(request, link)
                return keep
            except _Stale:
                fresh = True
                link.backend.requests -= 1
            except PeerError as error:
                if error.peer is link:
                    link.backend.errors += 1
                raise
            except Refused as refused:
                if refused.status in (502, 504):
                    link.backend.errors += 1
                raise
            finally:
                link.backend.release(link, reuse)

    async def _hand_over(self, request: Request, link: Link) -> tuple[bool, bool | None]:
        """The back end has the client to itself from now on; what of this request and of others has come goes along. As `_exchange`."""
        try:
            await link.write(first_head(request, self.address))
        except PeerError as error:
            raise Refused(502, "backend_failed", f"{error}") from None
        await self.bodies.hand_over(link)
        return False, False

    async def _exchange(self, request: Request, link: Link) -> tuple[bool, bool | None]:
        """Whether the client's connection, and the back end's, may be used again (None: it has to be reset)."""
        head = request_head(request, self.address, link.backend.name, self.config.backend_keep_alive)
        upload: asyncio.Task[None] | None = None
        try:
            try:
                await link.write(head)
                if request.has_body:
                    upload = asyncio.ensure_future(self._upload(request, link))
                response = await self._response(request, link, upload)
            except PeerError as error:
                if error.peer is not link:
                    raise
                if link.used and request.repeatable and not error.began and not error.late:
                    raise _Stale from None
                raise Refused(502, "backend_failed", f"{error}") from None
            return await self._answer(request, response, link, upload)
        finally:
            if upload is not None:
                upload.cancel()
                await asyncio.gather(upload, return_exceptions=True)

    async def _upload(self, request: Request, link: Link) -> None:
        """Hand on the request's body."""
        if request.length is None:
            await self.bodies.chunks(self.client, link, framed=True)
        else:
            await self.bodies.copy(self.client, link, request.length)

    async def _response(self, request: Request, link: Link, upload: asyncio.Task[None] | None) -> Response:
        """The head of the final one; interim ones are handed on."""
        reading = asyncio.ensure_future(self._final(request, link))
        try:
            if upload is not None:
                await asyncio.wait({reading, upload, self.gone}, return_when=asyncio.FIRST_COMPLETED)
                if upload.done() and not reading.done():
                    self._uploaded(upload, link)
            if not self.gone.done():
                await asyncio.wait((reading, self.gone), timeout=self.config.timeouts.response, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            if self.gone.done():
                raise PeerError(self.client, "went away before its answer")
            wait = self.config.timeouts.response
            raise Refused(504, "backend_silent", f"{link.name} began no answer within {wait:g} s")
        except Malformed as error:
            raise Refused(502, "backend_malformed", f"{link.name} answered what is no HTTP: {error}") from None
        except HeadTooLarge:
            most = self.config.limits.header_bytes
            raise Refused(502, "backend_malformed", f"{link.name} answered with a head of more than {most} bytes") from None
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    def _uploaded(self, upload: asyncio.Task[None], link: Link) -> None:
        """It has ended before there was an answer. What went wrong with the client is told it; a back end that takes no
        more may have said why."""
        try:
            upload.result()
        except Malformed as error:
            raise Refused(400, "malformed", str(error)) from None
        except HeadTooLarge:
            raise Refused(400, "malformed", "a line of the chunked body, or its trailer, is too long") from None
        except PeerError as error:
            if error.peer is link:
                return
            if error.late:
                raise Refused(408, "slow_body", "the body did not come") from None
            if error.ended:
                raise Refused(400, "malformed", "the body is incomplete") from None
            raise

    async def _final(self, request: Request, link: Link) -> Response:
        interim = False
        while True:
            try:
                response = await read_response(link, self.config.limits.header_bytes, request)
            except PeerError as error:
                error.began = error.began or interim
                raise
            interim = True
            if response.status >= 200 or response.status == 101:
                return response
            if request.version == b"1.1":
                await self.client.write(response_head(response, request, True))

    # -- answer ----------------------------------------------------------------------------

    async def _answer(
        self, request: Request, response: Response, link: Link, upload: asyncio.Task[None] | None
    ) -> tuple[bool, bool | None]:
        """As `_exchange`."""
        uploading = upload is not None and (not upload.done() or upload.exception() is not None)
        framing = response.framing
        dechunked = framing == "chunked" and request.version == b"1.0"
        keep = request.keep_alive and framing not in ("close", "tunnel") and not (uploading or dechunked or self.proxy.stopping)
        self._begun = True
        head = response_head(response, request, keep, dechunked)
        try:
            if framing == "none":
                await self.client.write(head)
            elif framing == "length":
                await self.bodies.of_length(head, response.length, link, uploading)
            elif framing == "chunked":
                self.client.put(head)
                await self.bodies.chunks(link, self.client, framed=not dechunked)
            elif framing == "close":
                await self.bodies.until_close(head, link, uploading)
            else:
                await self.client.write(head)
                await self.bodies.tunnel(link)
        except Malformed as error:
            raise PeerError(link, f"sent a malformed body: {error}") from None
        except HeadTooLarge:
            raise PeerError(link, "sent too long a line in a chunked body, or too long a trailer") from None
        if upload is not None and not upload.done():
            upload.cancel()
        reuse = response.keep_alive and self.config.backend_keep_alive and not uploading and framing not in ("close", "tunnel")
        if framing not in ("close", "tunnel") and not reuse and link.stream.unread():
            link.backend.failed("it sent more than it had announced; the connection is closed")
        if uploading:
            assert upload is not None
            await asyncio.gather(upload, return_exceptions=True)
            await self._linger()
            return False, None
        return keep, reuse

    # -- what went wrong -------------------------------------------------------------------

    async def _refuse(self, request: Request | None, refused: Refused) -> None:
        """Answer it ourselves, and end the connection."""
        self.proxy.refused[refused.reason] += 1
        log.warning("%s, %s: %d: %s", self.client.name, request or "no request", refused.status, refused)
        try:
            await self.client.write(own_response(refused.status, str(refused), request is not None and request.method == b"HEAD"))
            await self._linger()
        except PeerError as error:
            log.info("%s", error)
            self.stream.abort()

    async def _linger(self) -> None:
        """End our data, and take what is still on its way."""
        self.stream.write_eof()
        left = _LINGER_BYTES
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_LINGER_S):
                while left > 0 and (data := await self.stream.read(PIECE)):
                    left -= len(data)

    def _cut(self, request: Request | None, text: str, whose: str) -> None:
        """In mid-answer there is nothing to say but a reset."""
        self.proxy.aborted[whose] += 1
        level = logging.WARNING if whose == "backend" else logging.INFO
        log.log(level, "%s, %s: cut off: %s", self.client.name, request or "no request", text)
        self.stream.abort()
