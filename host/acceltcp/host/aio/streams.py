"""asyncio streams on the NIC: `start_server` and `open_connection`, with real `StreamReader`s and `StreamWriter`s."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ..checks import check_integer, check_is
from ..nic import Nic, current_nic
from .server import TransportServer

__all__ = ["open_connection", "start_server"]

_LIMIT = 1 << 16
_LIMIT_MAX = 1 << 40

StreamHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


async def start_server(
    client_connected_cb: StreamHandler,
    host: str | None = None,
    port: int = 0,
    *,
    nic: Nic | None = None,
    limit: int = _LIMIT,
    **options: Any,
) -> TransportServer:
    """`asyncio.start_server` on the NIC. nic: which (default: the one that is open in this event loop).

    Further options are those of `Nic.create_server`: `ssl`, `backlog`, the offload switches `setup`, `teardown`, `lazy`.
    """
    check_integer("limit", limit, 1, _LIMIT_MAX)
    loop = asyncio.get_running_loop()

    def factory() -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        return asyncio.StreamReaderProtocol(reader, client_connected_cb, loop=loop)

    return await _chosen(nic).create_server(factory, host, port, **options)


async def open_connection(
    host: str, port: int, *, nic: Nic | None = None, limit: int = _LIMIT, **options: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """`asyncio.open_connection` over the NIC. nic: which (default: the one that is open in this event loop).

    Further options are those of `Nic.create_connection`: `ssl`, `local_addr`, `timeout`, `teardown`.
    """
    check_integer("limit", limit, 1, _LIMIT_MAX)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await _chosen(nic).create_connection(lambda: protocol, host, port, **options)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _chosen(nic: Nic | None) -> Nic:
    if nic is None:
        return current_nic()
    check_is("nic", nic, Nic)
    return nic
