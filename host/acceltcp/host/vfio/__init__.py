"""PCI devices through the kernel's VFIO: transport, and handing a device to the driver vfio-pci."""

from .binding import bind, unbind
from .sysfs import PciFunction, parse_bdf
from .transport import VfioTransport

__all__ = ["PciFunction", "VfioTransport", "bind", "parse_bdf", "unbind"]
