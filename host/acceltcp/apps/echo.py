"""The echo service of RFC 862."""

from __future__ import annotations

from acceltcp.host import Connection

__all__ = ["echo"]


async def echo(connection: Connection) -> None:
    """Send back what comes, until the client ends its data."""
    while data := await connection.read(1 << 16):
        connection.write(data)
        await connection.drain()
