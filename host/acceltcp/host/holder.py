"""What everybody who has a connection for his user says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nic import Nic
    from .tcp import TcpConnection

__all__ = ["TcpHolder"]


class TcpHolder:
    """Base of `Connection` and `TcpTransport`."""

    _nic: Nic
    _tcp: TcpConnection

    @property
    def tcp(self) -> TcpConnection:
        """The TCP state, for statistics and tests."""
        return self._tcp

    @property
    def nic(self) -> Nic:
        """The NIC that has the connection."""
        return self._nic

    @property
    def teardown(self) -> bool:
        """Whether the NIC may close this connection; at first as its listener or `connect` said. Setting it raises
        `OSError` (EOPNOTSUPP) when the NIC cannot."""
        return self._tcp.teardown

    @teardown.setter
    def teardown(self, on: bool) -> None:
        self._tcp.teardown = on
