"""Back ends: the connections to each, and the choice among them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Hashable
from typing import Any

from .balance import make_balancer
from .config import BackendConfig, Config
from .http import Refused
from .streams import Net, Peer, Stream

__all__ = ["Backend", "Backends", "Link"]

log = logging.getLogger("acceltcp.lb")


class Link(Peer):
    """A connection to a back end."""

    def __init__(self, backend: Backend, stream: Stream, flavour: Hashable, idle: float) -> None:
        super().__init__(stream, f"back end {backend.name}", idle)
        self.backend, self.flavour = backend, flavour
        self.used = False
        """Whether it has served a request before this one."""
        self.watching: asyncio.Task[None] | None = None


class Backend:
    """One of them."""

    def __init__(self, config: BackendConfig, whole: Config, net: Net) -> None:
        self.host, self.port, self.name, self.weight = config.host, config.port, config.name, config.weight
        self._config, self._net = whole, net
        self.active = 0
        self.pool: list[Link] = []
        self.requests = self.errors = 0
        self.down_until = 0.0
        self.closed = False

    @property
    def down(self) -> bool:
        """Whether it has just taken no connection."""
        return time.monotonic() < self.down_until

    @property
    def connections(self) -> int:
        """All, those to be among them."""
        return self.active + len(self.pool)

    def failed(self, text: str) -> None:
        """Count an error, and say it."""
        self.errors += 1
        log.warning("back end %s: %s", self.name, text)

    # -- pool ------------------------------------------------------------------------------

    def take(self, flavour: Hashable) -> Link | None:
        """A connection that waits, the one that was used last."""
        for link in reversed(self.pool):
            if link.flavour == flavour:
                self._leave(link)
                if link.stream.unread() or not link.stream.usable():
                    self._spoilt(link)
                    return self.take(flavour)
                self.active += 1
                return link
        return None

    async def open(self, client: Stream, flavour: Hashable) -> Link:
        """A new connection for a client. Raises `OSError`."""
        if self.pool and self.connections >= self._config.limits.backend_connections:
            # One of another kind gives way.
            oldest = self.pool[0]
            self._leave(oldest)
            oldest.stream.close()
        self.active += 1
        try:
            stream = await self._net.connect(self.host, self.port, client, self._config.timeouts.connect)
        except BaseException:
            self.active -= 1
            raise
        return Link(self, stream, flavour, self._config.timeouts.idle)

    def release(self, link: Link, reuse: bool | None) -> None:
        """The request is over. reuse: whether the connection may serve another; None: it was not over in order."""
        self.active -= 1
        stream = link.stream
        if reuse is None:
            stream.abort()
        elif not reuse:
            stream.close()
        elif stream.unread() or not stream.usable():
            self._spoilt(link)
        elif self.closed or len(self.pool) >= self._config.limits.pooled_connections:
            stream.close()
        else:
            link.used = True
            self.pool.append(link)
            link.watching = asyncio.ensure_future(self._watch(link))

    def _leave(self, link: Link) -> None:
        self.pool.remove(link)
        assert link.watching is not None
        link.watching.cancel()
        link.watching = None

    def _spoilt(self, link: Link) -> None:
        """Nobody has asked, and yet it says something, or its end."""
        if link.stream.unread():
            self.failed("it sent more than it had announced; the connection is closed")
            link.stream.abort()
        else:
            link.stream.close()

    async def _watch(self, link: Link) -> None:
        """It waits in the pool, until it has waited too long or says something."""
        try:
            async with asyncio.timeout(self._config.timeouts.keep_alive):
                await link.stream.wait_data()
        except OSError:
            pass
        if link in self.pool:
            link.watching = None
            self.pool.remove(link)
            self._spoilt(link)

    async def close(self) -> None:
        """Close what waits, for good."""
        self.closed = True
        tasks = []
        for link in list(self.pool):
            assert link.watching is not None
            tasks.append(link.watching)
            self._leave(link)
            link.stream.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stats(self) -> dict[str, Any]:
        """Figures."""
        return {
            "requests": self.requests, "errors": self.errors, "active": self.active, "pooled": len(self.pool), "down": self.down,
        }  # fmt: skip


class Backends:
    """All of them."""

    def __init__(self, config: Config, net: Net) -> None:
        self._config, self._net = config, net
        self.members = [Backend(each, config, net) for each in config.backends]
        self._balancer = make_balancer(config.balance, self.members)

    async def link(self, client: Stream, target: bytes, *, fresh: bool) -> Link:
        """A connection for a request. fresh: a new one. Raises `Refused` when no back end takes it."""
        flavour = self._net.flavour(client)
        order = [self.members[number] for number in self._balancer.order(target)]
        # Those that are down are tried all the same when nobody else answers.
        order.sort(key=lambda backend: backend.down)
        full = 0
        for backend in order:
            link = None if fresh else backend.take(flavour)
            if link is None:
                if backend.active >= self._config.limits.backend_connections:
                    full += 1
                    continue
                try:
                    link = await backend.open(client, flavour)
                except OSError as error:
                    backend.down_until = time.monotonic() + self._config.timeouts.down
                    backend.failed(f"no connection: {error.strerror or error}")
                    continue
                backend.down_until = 0.0
            backend.requests += 1
            return link
        if full == len(order):
            raise Refused(503, "backends_full", f"all back ends have {self._config.limits.backend_connections} connections each")
        rest = f", {full} have all the connections that they may have" if full else ""
        raise Refused(503, "no_backend", f"none of {len(order)} back ends takes a connection{rest}")

    async def close(self) -> None:
        """Close all connections that wait."""
        for backend in self.members:
            await backend.close()
