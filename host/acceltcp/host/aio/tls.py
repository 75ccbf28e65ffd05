"""TLS over transports of the NIC, with asyncio's own implementation."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import ssl
from dataclasses import dataclass

__all__ = ["Tls"]


@dataclass(frozen=True)
class Tls:
    """How a transport does TLS. Times in seconds, None: asyncio's. Raises `TypeError` for what is no context."""

    context: ssl.SSLContext
    server_side: bool
    server_hostname: str | None = None
    handshake_timeout: float | None = None
    shutdown_timeout: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.context, ssl.SSLContext):
            raise TypeError(f"ssl must be an ssl.SSLContext or None, not {self.context!r}")

    @classmethod
    def wanted(
        cls,
        context: ssl.SSLContext | bool | None,
        *,
        server_side: bool,
        host: str = "",
        server_hostname: str | None = None,
        handshake_timeout: float | None = None,
        shutdown_timeout: float | None = None,
    ) -> Tls | None:
        """What the arguments of asyncio's functions ask for; None: no TLS. Raises `ValueError` as those do."""
        if not context:
            for name, value in (
                ("server_hostname", server_hostname),
                ("ssl_handshake_timeout", handshake_timeout),
                ("ssl_shutdown_timeout", shutdown_timeout),
            ):
                if value is not None:
                    raise ValueError(f"{name} is only meaningful with ssl")
            return None
        if isinstance(context, bool):
            if server_side:
                raise TypeError("ssl must be an ssl.SSLContext or None, not True")
            context = ssl.create_default_context()
        if not server_side and server_hostname is None:
            if not host:
                raise ValueError("You must set server_hostname when using ssl without a host")
            server_hostname = host
        return cls(context, server_side, server_hostname, handshake_timeout, shutdown_timeout)

    def wrap(
        self, loop: asyncio.AbstractEventLoop, protocol: asyncio.BaseProtocol, waiter: asyncio.Future[None]
    ) -> asyncio.sslproto.SSLProtocol:
        """The protocol between a transport and `protocol`. waiter: done after the handshake."""
        return asyncio.sslproto.SSLProtocol(
            loop,
            protocol,
            self.context,
            waiter,
            self.server_side,
            self.server_hostname,
            ssl_handshake_timeout=self.handshake_timeout,  # type: ignore[arg-type]
            ssl_shutdown_timeout=self.shutdown_timeout,
        )
