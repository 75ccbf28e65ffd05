"""The load balancer as a handler of `Nic.listen`, what `acceltcp lb` runs."""

from __future__ import annotations

from typing import Any

from acceltcp.host import Connection

from .config import Config
from .proxy import Proxy
from .streams import NicNet, NicStream

__all__ = ["LoadBalancer"]


class LoadBalancer:
    """A `Proxy` on the NIC that brings the first connection: in each worker its own."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.proxy: Proxy | None = None

    async def handle(self, connection: Connection) -> None:
        """The connection handler."""
        if self.proxy is None:
            self.proxy = Proxy(self.config, NicNet(connection.nic, self.config.splice))
        await self.proxy.handle(NicStream(connection))

    def stats(self) -> dict[str, Any]:
        """Figures; before the first connection there are none."""
        return self.proxy.stats() if self.proxy is not None else {}

    async def close(self) -> None:
        """Let running requests end; see `Proxy.close`."""
        if self.proxy is not None:
            await self.proxy.close()
