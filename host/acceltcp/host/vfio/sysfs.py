"""A PCI function as sysfs shows it: identity, driver, IOMMU group."""

from __future__ import annotations

import re
from pathlib import Path

from acceltcp.abi import pci

from ..errors import DeviceError

__all__ = ["VFIO_DRIVER", "PciFunction", "parse_bdf"]

VFIO_DRIVER = "vfio-pci"

_HARMLESS = (VFIO_DRIVER, "pci-stub", "pcieport")
"""Drivers that a group may have beside ours: they do no DMA for anybody."""

_BDF = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-1][0-9a-f])\.([0-7])", re.IGNORECASE)


def parse_bdf(text: str) -> str:
    """'65:00.0' or '0000:65:00.0' as the kernel writes it, with the domain. Raises `DeviceError`."""
    match = _BDF.fullmatch(text)
    if match is None:
        raise DeviceError(f"A PCI device is given as BUS:DEVICE.FUNCTION like 0000:65:00.0, as lspci -D shows it, not {text!r}.")
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function}".lower()


class PciFunction:
    """The function at `bdf` (any form that `parse_bdf` takes).

    root: where sysfs is. Raises `DeviceError` when there is no such function.
    """

    def __init__(self, bdf: str, root: Path = Path("/sys")) -> None:
        self.bdf = parse_bdf(bdf)
        self.bus = root / "bus" / "pci"
        self.path = self.bus / "devices" / self.bdf
        if not self.path.is_dir():
            raise DeviceError(f"There is no PCI device {self.bdf}{self._others()}.")

    def _others(self) -> str:
        """What it may have been meant to be."""
        nics = []
        for path in sorted((self.bus / "devices").glob("*")):
            try:
                ours = (_hex(path / "vendor"), _hex(path / "device")) == (pci.VENDOR_ID, pci.DEVICE_ID)
            except DeviceError:
                continue
            if ours:
                nics.append(path.name)
        if not nics:
            return f"; none of this machine is an AccelTCP NIC ({pci.IDENTITY})"
        return f"; AccelTCP NICs here: {', '.join(nics)}"

    def __str__(self) -> str:
        driver = self.driver
        return f"{self.bdf} ({driver})" if driver else self.bdf

    @property
    def identity(self) -> tuple[int, int]:
        """Vendor and device."""
        return _hex(self.path / "vendor"), _hex(self.path / "device")

    @property
    def driver(self) -> str | None:
        """Name of the driver that has it."""
        link = self.path / "driver"
        return link.resolve().name if link.is_symlink() else None

    @property
    def group(self) -> int:
        """Number of its IOMMU group. Raises `DeviceError` when there is no IOMMU in use."""
        link = self.path / "iommu_group"
        if not link.is_symlink() or self._unprotected(link):
            raise DeviceError(
                f"{self.bdf} is behind no IOMMU: switch it on in the firmware (VT-d, AMD-Vi) and for the kernel "
                "(intel_iommu=on); without one no device may be given to a program."
            )
        return int(link.resolve().name)

    @staticmethod
    def _unprotected(link: Path) -> bool:
        """A group that vfio-pci made up (its enable_unsafe_noiommu_mode): memory cannot be mapped in it."""
        try:
            return (link / "name").read_text().strip() == "vfio-noiommu"
        except OSError:
            return False

    @property
    def in_the_way(self) -> list[PciFunction]:
        """Other functions of the group whose drivers keep it from being used."""
        root = self.bus.parent.parent
        members = sorted(path.name for path in (self.path / "iommu_group" / "devices").glob("*"))
        others = [PciFunction(name, root) for name in members if name != self.bdf and _BDF.fullmatch(name)]
        return [other for other in others if other.driver not in (None, *_HARMLESS)]

    @property
    def cdev(self) -> str | None:
        """Name of its character device below /dev/vfio/devices, where the kernel has these."""
        names = sorted(path.name for path in (self.path / "vfio-dev").glob("vfio*"))
        return names[0] if names else None


def _hex(path: Path) -> int:
    try:
        return int(path.read_text(), 16)
    except (OSError, ValueError) as error:
        raise DeviceError(f"{path} cannot be read: {error}.") from None
