"""The driver: open a NIC, listen, talk TCP.

    async with acceltcp.host.open("sim:?tap=acc0", addresses=["10.0.0.2/24"]) as nic:
        server = await nic.listen(7, handler)
        await server.serve_forever()

Underneath: `Device` (registers, counters), `Queue` (rings), `TcpEndpoint` (the host's part of
TCP), each usable alone.
"""

from __future__ import annotations

from .aio.event_loop import EventLoop, run
from .aio.relay import relay
from .aio.server import TransportServer
from .aio.sockets import NicSocket
from .aio.splice import SpliceResult, splice
from .aio.streams import open_connection, start_server
from .aio.transport import TcpTransport, ViewProtocol
from .connection import Connection
from .device import Device, Identity, format_mac, parse_mac
from .errors import AbiMismatchError, CommandRefusedError, DeviceError, DeviceLostError, DeviceTimeoutError
from .nic import Nic, current_nic, open
from .queue import Queue
from .server import Server
from .tcp import TcpSettings
from .tcp.settings import ConnectionOptions
from .transport import Transport, open_transport

__all__ = [
    "AbiMismatchError",
    "CommandRefusedError",
    "Connection",
    "ConnectionOptions",
    "Device",
    "DeviceError",
    "DeviceLostError",
    "DeviceTimeoutError",
    "EventLoop",
    "Identity",
    "Nic",
    "NicSocket",
    "Queue",
    "Server",
    "SpliceResult",
    "TcpSettings",
    "TcpTransport",
    "Transport",
    "TransportServer",
    "ViewProtocol",
    "current_nic",
    "format_mac",
    "open",
    "open_connection",
    "open_transport",
    "parse_mac",
    "relay",
    "run",
    "splice",
    "start_server",
]
