"""A machine's PCI functions as files: sysfs in a temporary folder, with a kernel that answers what is written there."""

from pathlib import Path

from acceltcp.abi import pci
from acceltcp.host.errors import DeviceError
from acceltcp.host.vfio import binding

NIC = "0000:65:00.0"


class FakeMachine:
    """root is sysfs, dev is /dev/vfio. `add` makes functions. writes: what was written, in order."""

    def __init__(self, folder, monkeypatch):
        self.root, self.dev = folder / "sys", folder / "dev" / "vfio"
        self.devices = self.root / "bus" / "pci" / "devices"
        self.drivers = self.root / "bus" / "pci" / "drivers"
        for path in (self.devices, self.drivers, self.dev / "devices"):
            path.mkdir(parents=True)
        self.writes = []
        self.refuses = ()
        self.fails = {}
        """Name of a file -> why it cannot be written."""
        self.loaded = True
        self._write = binding._write
        monkeypatch.setattr(binding, "_write", self.write)

    def add(self, bdf=NIC, group=7, driver=None, identity=(pci.VENDOR_ID, pci.DEVICE_ID), cdev=None):
        path = self.root / "devices" / bdf
        path.mkdir(parents=True)
        (self.devices / bdf).symlink_to(path)
        for name, value in zip(("vendor", "device"), identity, strict=True):
            (path / name).write_text(f"{value:#06x}\n")
        (path / "driver_override").write_text("(null)\n")
        if group is not None:
            folder = self.root / "kernel" / "iommu_groups" / str(group)
            (folder / "devices").mkdir(parents=True, exist_ok=True)
            (folder / "devices" / bdf).symlink_to(path)
            (path / "iommu_group").symlink_to(folder)
            (self.dev / str(group)).touch()
        if cdev:
            (path / "vfio-dev" / cdev).mkdir(parents=True)
            (self.dev / "devices" / cdev).touch()
        if driver:
            self.attach(bdf, driver)
        return path

    def attach(self, bdf, driver):
        folder = self.drivers / driver
        folder.mkdir(exist_ok=True)
        (self.devices / bdf / "driver").symlink_to(folder)

    def write(self, path, text):
        """As the kernel takes it."""
        path = Path(path)
        self.writes.append((str(path.relative_to(self.root)), text))
        if reason := self.fails.get(path.name):
            raise DeviceError(f"{path} cannot be written: {reason}.")
        if path.name == "unbind":
            (self.devices / text / "driver").unlink()
        elif path.name == "drivers_probe":
            wanted = (self.devices / text / "driver_override").read_text().strip()
            if wanted in self.refuses:
                return
            driver = wanted or ("ixgbe" if (self.devices / text / "native").exists() else "")
            if driver:
                self.attach(text, driver)
        else:
            self._write(path, text)
