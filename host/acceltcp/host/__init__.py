"""The driver: open a NIC, listen, talk TCP.

    async with acceltcp.host.open("sim:?tap=acc0", addresses=["10.0.0.2/24"]) as nic:
        server = await nic.listen(7, handler)
        await server.serve_forever()

Underneath: `Device` (registers, counters), `Queue` (rings), `TcpEndpoint` (the host's part of
TCP), each usable alone.
"""

from __future__ import annotations

from .connection import Connection
from .device import Device, Identity, format_mac, parse_mac
from .errors import AbiMismatchError, CommandRefusedError, DeviceError, DeviceLostError, DeviceTimeoutError
from .nic import Nic, open
from .queue import Queue
from .server import Server
from .tcp import TcpSettings
from .transport import Transport, open_transport

__all__ = [
    "AbiMismatchError",
    "CommandRefusedError",
    "Connection",
    "Device",
    "DeviceError",
    "DeviceLostError",
    "DeviceTimeoutError",
    "Identity",
    "Nic",
    "Queue",
    "Server",
    "TcpSettings",
    "Transport",
    "format_mac",
    "open",
    "open_transport",
    "parse_mac",
]
