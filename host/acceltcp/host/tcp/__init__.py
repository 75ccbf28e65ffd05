"""The host's TCP: what needs the application (RFC 9293), above a link that carries frames.

`TcpEndpoint` finds connections for segments; `TcpConnection` is one of them; `TcpSettings` says how they behave.
"""

from __future__ import annotations

from .block import ConnectionEvents, State
from .connection import TcpConnection
from .endpoint import Link, TcpEndpoint
from .handshake import Listener
from .settings import ConnectionOptions, TcpSettings

__all__ = [
    "ConnectionEvents", "ConnectionOptions", "Link", "Listener", "State", "TcpConnection", "TcpEndpoint", "TcpSettings",
]  # fmt: skip
