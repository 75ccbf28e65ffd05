"""Active opens: a TCP connection to the first of some addresses that answers."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .checks import IPAddress
from .tcp import TcpConnection
from .tcp.settings import ConnectionOptions

if TYPE_CHECKING:
    from .nic import Nic
    from .tcp.flows import Flow

__all__ = ["connect_tcp"]


class _Attempt:
    """What hears of a connection until it is established."""

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tcp: TcpConnection

    def connected(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def readable(self) -> None:
        """Who takes the connection will find what came."""

    def writable(self) -> None:
        """Nothing was written."""

    def handed_over(self, flow: Flow) -> None:
        """Nobody has closed it."""

    def closed(self, error: OSError | None) -> None:
        if not self.future.done():
            self.future.set_exception(error or ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)))

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.tcp.abort()
        self._nic.schedule_flush()


async def connect_tcp(
    nic: Nic,
    addresses: Sequence[IPAddress],
    port: int,
    *,
    local: IPAddress | None = None,
    local_port: int = 0,
    options: ConnectionOptions | None = None,
    teardown: bool = True,
    timeout: float | None = None,
    splice_with: TcpConnection | None = None,
) -> TcpConnection:
    """An established connection to the first address that answers; `timeout`: seconds for each. Its `events` are still
    ours: who gets it sets them at once. Raises the `OSError` of the attempt, of several the first.
    """
    errors: list[OSError] = []
    for address in addresses:
        if local is not None and local.version != address.version:
            continue
        try:
            return await _attempt(nic, address, port, local, local_port, options, teardown, timeout, splice_with)
        except OSError as error:
            errors.append(error)
    if not errors:
        raise OSError(errno.EADDRNOTAVAIL, f"no address to connect to has the family of the local address {local}")
    raise errors[0]


async def _attempt(
    nic: Nic, address: IPAddress, port: int, local: IPAddress | None, local_port: int, options: ConnectionOptions | None,
    teardown: bool, timeout: float | None, splice_with: TcpConnection | None,
) -> TcpConnection:  # fmt: skip
    attempt = _Attempt(nic)
    where = f"{address} port {port}"
    source = local.packed if local is not None else None

    def begin(chosen: int) -> TcpConnection:
        return nic.endpoint.connect(
            address.packed, port, local=source, local_port=chosen,
            options=options.copy() if options is not None else None, offload=teardown, events=attempt,
            splice_with=splice_with,
        )  # fmt: skip

    try:
        if nic.sharing is None:
            tcp = attempt.tcp = begin(local_port)
        else:
            route = nic.network.route(address.packed, source)
            tcp = attempt.tcp = nic.sharing.connect(begin, route.local, address.packed, port, local_port)
    except OSError as error:
        raise _located(error, where) from None
    nic.connection_opened(attempt)
    nic.schedule_flush()
    try:
        await asyncio.wait_for(attempt.future, timeout)
        return tcp
    except TimeoutError as error:  # ours, or the connection's own
        if not tcp.closed:
            tcp.events = None
            attempt.abort()
        if error.errno is None:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer from {where} within {timeout:g} s") from None
        raise _located(error, where) from None
    except OSError as error:
        raise _located(error, where) from None
    except BaseException:
        tcp.events = None
        attempt.abort()
        raise
    finally:
        nic.connection_closed(attempt)


def _located(error: OSError, where: str) -> OSError:
    """The same error, saying where the connection should have gone."""
    number = error.errno or errno.EIO
    return OSError(number, f"cannot connect to {where}: {error.strerror or os.strerror(number)}")
