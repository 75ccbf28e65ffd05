"""Gives a PCI function to vfio-pci, and back to the driver it had: sysfs's driver_override."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from acceltcp.abi import pci

from ..errors import DeviceError
from .sysfs import VFIO_DRIVER, PciFunction

__all__ = ["bind", "unbind"]

_DEV = Path("/dev/vfio")

_NO_USER = (1 << 32) - 1
"""To chown: leave the owner alone."""

_LOAD_S = 60


def bind(bdf: str, *, owner: str | None = None, force: bool = False, root: Path = Path("/sys"), dev: Path = _DEV) -> list[Path]:
    """Give the function to vfio-pci. Returns the files that whoever uses it opens, which belong to the user `owner` then.

    force: also if it is no AccelTCP NIC. Done already is no error. root, dev: where sysfs and the files are.
    Raises `DeviceError`: not root, no such function or user, no IOMMU, others of its group in the way, no module.
    """
    function = PciFunction(bdf, root)
    user = _user(owner) if owner is not None else None
    if not force and function.identity != (pci.VENDOR_ID, pci.DEVICE_ID):
        vendor, device = function.identity
        raise DeviceError(
            f"{function.bdf} is PCI device {vendor:04x}:{device:04x}, no AccelTCP NIC "
            f"({pci.IDENTITY}); --force binds it all the same."
        )
    group = function.group
    if others := function.in_the_way:
        raise DeviceError(
            f"IOMMU group {group} of {function.bdf} has other devices in use: {', '.join(map(str, others))}. Give them to {VFIO_DRIVER} "
            "too ('acceltcp bind --force'), or put the card into another slot."
        )
    if function.driver != VFIO_DRIVER:
        _write(function.path / "driver_override", VFIO_DRIVER)
        try:
            _take(function)
        except DeviceError:
            _give_back(function)
            raise
    files = [dev / str(group)]
    if function.cdev is not None:
        files.append(dev / "devices" / function.cdev)
    files = [file for file in files if file.exists()]
    if user is not None:
        for file in files:
            try:
                os.chown(file, user, -1)
            except OSError as error:
                raise DeviceError(f"{file} cannot be given to {owner}: {error.strerror}.") from None
    return files


def _take(function: PciFunction) -> None:
    """What follows once the override has been set. Raises `DeviceError`."""
    if not (function.bus / "drivers" / VFIO_DRIVER).is_dir():
        _load()
    if function.driver is not None:
        _write(function.path / "driver" / "unbind", function.bdf)
    _write(function.bus / "drivers_probe", function.bdf)
    if function.driver != VFIO_DRIVER:
        raise DeviceError(f"{VFIO_DRIVER} did not take {function.bdf}: the kernel's log (dmesg) may say why.")


def _give_back(function: PciFunction) -> None:
    """After a failure: as it was before, as far as the kernel lets us."""
    with contextlib.suppress(DeviceError):
        _write(function.path / "driver_override", "\n")
        if function.driver is None:
            _write(function.bus / "drivers_probe", function.bdf)


def unbind(bdf: str, *, root: Path = Path("/sys")) -> str | None:
    """Give the function back; returns the driver that has it then, None if there is none for it. Raises `DeviceError`."""
    function = PciFunction(bdf, root)
    if function.driver == VFIO_DRIVER:
        _write(function.path / "driver" / "unbind", function.bdf)
    _write(function.path / "driver_override", "\n")
    if function.driver is None:
        _write(function.bus / "drivers_probe", function.bdf)
    return function.driver


def _user(name: str) -> int:
    try:
        number = int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise DeviceError(f"There is no user {name!r}.") from None
    if number >= _NO_USER:
        raise DeviceError(f"A user's number is below {_NO_USER}, not {number}.")
    return number


def _load() -> None:
    """The module of the driver. Raises `DeviceError`."""
    modprobe = shutil.which("modprobe", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    reason = "there is no modprobe"
    if modprobe is not None:
        try:
            done = subprocess.run(
                [modprobe, VFIO_DRIVER], capture_output=True, text=True, errors="replace", check=False, timeout=_LOAD_S
            )
        except subprocess.TimeoutExpired:
            reason = f"modprobe has not ended within {_LOAD_S} s"
        else:
            if done.returncode == 0:
                return
            reason = " ".join(done.stderr.split()) or f"modprobe ended with status {done.returncode}"
    raise DeviceError(f"The kernel's driver {VFIO_DRIVER} cannot be loaded: {reason}.")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except PermissionError:
        raise DeviceError(f"{path} can be written by root only: use sudo.") from None
    except OSError as error:
        raise DeviceError(f"{path} cannot be written: {error.strerror}.") from None
