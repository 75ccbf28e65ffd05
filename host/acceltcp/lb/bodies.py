"""How bodies get from one side to the other: through the host, or by the NIC, which the host only asks and counts.

Whatever fails is a `PeerError` of the side that failed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .http import ChunkReader, fields_text
from .streams import PIECE, Joined, Peer, PeerError

if TYPE_CHECKING:
    from .backends import Link
    from .proxy import Proxy

__all__ = ["Bodies", "Silence"]


class Silence(Exception):  # noqa: N818
    """Nothing came on either connection of a tunnel for too long; whose fault that is nobody can tell."""


class Bodies:
    """Those of a client's connection."""

    def __init__(self, proxy: Proxy, client: Peer) -> None:
        self.proxy, self.config, self.client = proxy, proxy.config, client

    # -- through the host ------------------------------------------------------------------

    async def copy(self, source: Peer, sink: Peer, length: int) -> None:
        """So many bytes."""
        left = length
        while left:
            data = await source.read(min(left, PIECE))
            if not data:
                raise source.ended(f"{left} bytes before the end of a body of {length}")
            left -= len(data)
            await sink.write(data)
        await sink.drain()

    async def chunks(self, source: Peer, sink: Peer, *, framed: bool) -> None:
        """A chunked body, in chunks of our own or in none. Raises `Malformed`, `HeadTooLarge`."""
        reader = ChunkReader(source, self.config.limits.header_bytes)
        total = 0
        while True:
            late = asyncio.timeout(self.config.timeouts.idle)
            try:
                async with late:
                    data = await reader.read()
            except TimeoutError:
                raise PeerError(source, f"sent nothing for {self.config.timeouts.idle:g} s in mid-body", late=True) from None
            if not data:
                break
            total += len(data)
            await sink.write(b"%x\r\n%b\r\n" % (len(data), data) if framed else data)
        if framed:
            sink.put(b"0\r\n%b\r\n" % fields_text(reader.trailers))
        await sink.drain()
        if sink is self.client:
            self._relayed(total)

    # -- of answers, by the NIC if it may --------------------------------------------------

    async def of_length(self, head: bytes, length: int, link: Link, uploading: bool) -> None:
        """A head, and a body of so many bytes."""
        if length < self.config.splice_min or not self._may_splice(uploading):
            self.client.put(head)
            await self.copy(link, self.client, length)
            self._relayed(length)
            return
        await self.client.write(head)
        self._joined(await self._join(link, length), length)

    async def until_close(self, head: bytes, link: Link, uploading: bool) -> None:
        """A head, and a body that the end of the connection ends."""
        if self.config.splice_until_close and self._may_splice(uploading):
            await self.client.write(head)
            try:
                joined = await self._join(link, None)
            except Silence as silence:
                raise PeerError(link, f"failed while spliced: {silence}") from None
            self._joined(joined, joined.server_octets)
            return
        self.client.put(head)
        total = 0
        while data := await link.read(PIECE):
            await self.client.write(data)
            total += len(data)
        await self.client.drain()
        self._relayed(total)

    async def tunnel(self, link: Link) -> None:
        """Everything, both ways, until both have ended. Raises `Silence`."""
        joined = await self._both_ways(link)
        self._joined(joined, joined.client_octets + joined.server_octets)

    async def hand_over(self, link: Link) -> None:
        """As a tunnel, of a whole connection."""
        handed = self.proxy.handed
        handed["connections"] += 1
        handed["live"] += 1
        try:
            joined = await self._both_ways(link)
        finally:
            handed["live"] -= 1
        handed[self._kind(joined)] += 1
        handed["bytes"] += joined.client_octets + joined.server_octets

    async def _both_ways(self, link: Link) -> Joined:
        return await self._join(link, None) if self._may_splice(False) else await self._in_host(link)

    async def _in_host(self, link: Link) -> Joined:
        """It is idle when neither sends: a peer may listen for as long as it likes."""
        idle, loop = self.config.timeouts.idle, asyncio.get_running_loop()
        late = asyncio.timeout(idle)

        async def way(source: Peer, sink: Peer) -> int:
            total = 0
            while data := await source.some(PIECE):
                late.reschedule(None)  # who takes nothing is not silent, and `write` says who it is
                await sink.write(data)
                late.reschedule(loop.time() + idle)
                total += len(data)
            sink.stream.write_eof()
            return total

        ways = [asyncio.ensure_future(way(*pair)) for pair in ((self.client, link), (link, self.client))]
        try:
            async with late:
                octets = await asyncio.gather(*ways)
        except TimeoutError:
            raise Silence(f"nothing came for {idle:g} s") from None
        finally:
            for each in ways:
                each.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        return Joined(octets[0], octets[1], False, None)

    def _may_splice(self, uploading: bool) -> bool:
        if not self.config.splice or not self.proxy.net.splices:
            return False
        if uploading:
            self.proxy.not_spliced["uploading"] += 1
        return not uploading

    async def _join(self, link: Link, limit: int | None) -> Joined:
        """Raises `Silence` when that has no limit."""
        idle, rate = self.config.timeouts.idle, self.config.limits.min_rate
        late = asyncio.timeout(idle + limit / rate if limit is not None and rate else None)
        try:
            async with late:
                return await self.proxy.net.join(self.client.stream, link.stream, limit, idle)
        except OSError as error:
            if late.expired():
                raise PeerError(self.client, f"was sent less than {rate} bytes per second of a spliced body", late=True) from None
            # Both are reset by now; whose fault it was only the text tells.
            text = error.strerror or str(error)
            if "the client" in text:
                raise PeerError(self.client, f"failed while spliced: {text}") from None
            if limit is None and isinstance(error, TimeoutError) and "the server" not in text:
                raise Silence(text) from None
            raise PeerError(link, f"failed while spliced: {text}") from None

    def _kind(self, joined: Joined) -> str:
        if joined.refused is not None:
            self.proxy.not_spliced[joined.refused] += 1
        return "spliced" if joined.hardware else "relayed"

    def _joined(self, joined: Joined, octets: int) -> None:
        kind = self._kind(joined)
        self.proxy.bodies[kind] += 1
        self.proxy.octets[kind] += octets

    def _relayed(self, octets: int) -> None:
        if octets:
            self.proxy.bodies["relayed"] += 1
            self.proxy.octets["relayed"] += octets
