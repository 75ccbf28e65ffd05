"""The way to a device: registers, memory it can reach, interrupts.

`Transport` is the seam; the rest of the driver knows nothing about PCI, sockets or processes.
`open_transport` turns a device specification into one:

* `vfio-user:PATH` - a device in another process, behind a UNIX socket;
* `sim:?tap=acc0&width=64...` - the same, in a process that is started for the occasion;
* `vfio:BDF` - a card, by the kernel's VFIO;
* `ethernet:IFACE[,MAC]` - a board without PCI Express behind an Ethernet cable.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from urllib.parse import parse_qsl

from .dma import DmaRegion
from .errors import DeviceError

__all__ = ["SCHEMES", "SIMULATED_QUEUES", "Transport", "open_transport", "split_spec"]


SIMULATED_QUEUES = 4
"""Queues of a simulated NIC unless its specification has `queues=`."""


class Transport(ABC):
    """A device's registers (BAR 0), DMA mappings and interrupt vectors.

    Every method may raise `DeviceError`; `DeviceLostError` once the device has gone away.
    """

    description: str = "device"
    """For messages: what the user asked for."""

    @abstractmethod
    def read32(self, offset: int) -> int:
        """A register. Earlier writes have reached the device."""

    def read_block(self, offset: int, count: int) -> list[int]:
        """`count` registers in a row. Where each access is a message, they are one."""
        return [self.read32(offset + 4 * number) for number in range(count)]

    @abstractmethod
    def write32(self, offset: int, value: int) -> None:
        """Write a register; posted: the call may return before the device has seen it."""

    @abstractmethod
    def map_memory(self, size: int) -> DmaRegion:
        """New zeroed memory that the device may read and write, whole pages."""

    @abstractmethod
    def enable_interrupts(self, count: int) -> list[int]:
        """Eventfds (non-blocking) for vectors 0 to `count` - 1; they belong to the transport."""

    @abstractmethod
    def reset(self) -> None:
        """Reset the function as the bus does it; mappings stay."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the device and of all memory. May be called twice."""

    def fileno(self) -> int | None:
        """A descriptor that becomes readable when the device goes away, if there is one."""
        return None

    def check(self) -> None:  # noqa: B027 - a device that cannot go away has nothing to say
        """Raise `DeviceLostError` if the device has gone away."""

    def share(self, memory: int) -> Transport:
        """The same device for another process that is forked after this: registers, `memory` bytes to map (whole
        pages; they stay mapped until this transport is closed, and they outlive the process), and the
        interrupts that have been enabled.

        The other process closes what it got; so does this one, once it has forked.
        """
        raise DeviceError(f"{self.description} cannot be shared between processes.")


def split_spec(spec: str) -> tuple[str, str, dict[str, str]]:
    """`scheme:rest?key=value&...` as its three parts. Raises `DeviceError`."""
    scheme, colon, rest = spec.partition(":")
    if not colon:
        raise DeviceError(f"A device is given as SCHEME:..., like 'sim:?tap=acc0', not {spec!r}.")
    path, _, query = rest.partition("?")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise DeviceError(f"The options of device {spec!r} must read key=value&key=value: {error}.") from None
    return scheme, path, options


Opener = Callable[[str, Callable[[], bool]], Transport]


def _open_vfio_user(spec: str, stop: Callable[[], bool]) -> Transport:
    from .vfio_user import VfioUserTransport

    _, path, options = split_spec(spec)
    if options:
        raise DeviceError(f"Device {spec!r} takes no options, only a socket's path.")
    return VfioUserTransport(path)


def _open_sim(spec: str, stop: Callable[[], bool]) -> Transport:
    from .simulated import SimulatedTransport

    _, path, options = split_spec(spec)
    if path:
        raise DeviceError(f"Device {spec!r} should read 'sim:?key=value&...', without {path!r}.")
    return SimulatedTransport(options, description=spec, stop=stop)


def _open_vfio(spec: str, stop: Callable[[], bool]) -> Transport:
    from .vfio import VfioTransport

    _, bdf, options = split_spec(spec)
    if options:
        raise DeviceError(f"Device {spec!r} takes no options, only where the card is, like vfio:0000:65:00.0.")
    return VfioTransport(bdf)


def _open_ethernet(spec: str, stop: Callable[[], bool]) -> Transport:
    from .device import parse_mac
    from .ethernet import open_ethernet

    # A MAC address has colons, but no question mark; there are no options.
    interface, comma, mac = spec.partition(":")[2].partition(",")
    if not interface:
        raise DeviceError(f"An Ethernet device is given as ethernet:IFACE or ethernet:IFACE,MAC, not {spec!r}.")
    try:
        board = parse_mac(mac) if comma else None
    except ValueError as error:
        raise DeviceError(f"In device {spec!r} {error}.") from None
    return open_ethernet(interface, board, spec)


SCHEMES: dict[str, Opener] = {
    "vfio": _open_vfio, "vfio-user": _open_vfio_user, "sim": _open_sim, "ethernet": _open_ethernet,
}  # fmt: skip
"""Scheme -> how to open it. Another kind of transport is one more entry."""


def open_transport(spec: str, *, stop: Callable[[], bool] = lambda: False) -> Transport:
    """Connect to the device that `spec` names. Raises `DeviceError` with a sentence.

    stop: asked now and then where opening takes long; True makes it give up.
    """
    scheme = split_spec(spec)[0]
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise DeviceError(f"There is no kind of device {scheme + ':'!r}; known are {known}")
    return SCHEMES[scheme](spec, stop)
