"""The host's TCP: what needs the application (RFC 9293), above a link that carries frames.

`TcpEndpoint` finds connections for segments; `TcpConnection` is one of them; `TcpSettings` says how they behave.
"""

from __future__ import annotations

from .connection import ConnectionEvents, State, TcpConnection
from .endpoint import Link, Listener, TcpEndpoint
from .settings import TcpSettings

__all__ = ["ConnectionEvents", "Link", "Listener", "State", "TcpConnection", "TcpEndpoint", "TcpSettings"]
