"""Handing a function to vfio-pci and back, and what stands in the way."""

import errno
import os
import subprocess

import pytest

from acceltcp.host.errors import DeviceError
from acceltcp.host.vfio import binding
from acceltcp.host.vfio.sysfs import PciFunction, parse_bdf

from .machine import NIC, FakeMachine


@pytest.fixture
def machine(tmp_path, monkeypatch):
    made = FakeMachine(tmp_path, monkeypatch)
    (made.drivers / "vfio-pci").mkdir()
    return made


def bind(machine, bdf=NIC, **options):
    return binding.bind(bdf, root=machine.root, dev=machine.dev, **options)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("65:00.0", NIC), (NIC, NIC), ("0001:AF:1f.7", "0001:af:1f.7"), ("10000:01:00.0", "10000:01:00.0"), ("00000000:65:00.0", NIC)],
)
def test_places(text, meant):
    assert parse_bdf(text) == meant


@pytest.mark.parametrize("text", ["", "65:00", "65:0.0", "65:20.0", "65:00.8", "65:00.0 ", "../65:00.0", "vfio:65:00.0", "g5:00.0", "165:00.0"])
def test_what_is_no_place(text):
    with pytest.raises(DeviceError, match="is given as BUS:DEVICE"):
        parse_bdf(text)


def test_bound_and_given_to_a_user(machine, monkeypatch):
    owned = []
    monkeypatch.setattr(os, "chown", lambda path, user, group: owned.append((path, user, group)))
    machine.add(driver="ixgbe", cdev="vfio3")
    files = bind(machine, "65:00.0", owner="root")
    assert files == [machine.dev / "7", machine.dev / "devices" / "vfio3"]
    assert owned == [(file, 0, -1) for file in files]
    assert PciFunction(NIC, machine.root).driver == "vfio-pci"
    assert [text for _, text in machine.writes] == ["vfio-pci", NIC, NIC]
    assert machine.writes[1][0].endswith("driver/unbind")


def test_done_already_is_no_error(machine):
    machine.add(driver="vfio-pci")
    assert bind(machine) == [machine.dev / "7"]
    assert machine.writes == []


def test_given_back(machine):
    path = machine.add(driver="vfio-pci")
    (path / "native").touch()
    assert binding.unbind(NIC, root=machine.root) == "ixgbe"
    assert path.joinpath("driver_override").read_text() == "\n"
    assert binding.unbind(NIC, root=machine.root) == "ixgbe"


def test_nobody_to_give_it_back_to(machine):
    machine.add(driver="vfio-pci")
    assert binding.unbind(NIC, root=machine.root) is None


@pytest.mark.parametrize(
    ("added", "asked", "options", "message"),
    [
        ({}, "66:00.0", {}, "There is no PCI device 0000:66:00.0; AccelTCP NICs here: 0000:65:00.0"),
        ({"identity": (0x8086, 0x10FB)}, "66:00.0", {}, r"none of this machine is an AccelTCP NIC \(1234:acc7\)"),
        ({"identity": (0x8086, 0x10FB)}, NIC, {}, "is PCI device 8086:10fb, no AccelTCP NIC .*--force binds it all the same"),
        ({"group": None}, NIC, {}, "0000:65:00.0 is behind no IOMMU: switch it on"),
        ({}, NIC, {"owner": "nobody-of-that-name"}, "There is no user 'nobody-of-that-name'"),
        ({}, NIC, {"owner": str((1 << 32) - 1)}, "A user's number is below 4294967295, not 4294967295"),
        ({}, NIC, {"owner": "9" * 30}, "A user's number is below 4294967295, not 9999"),
    ],
)
def test_refused(machine, added, asked, options, message):
    machine.add(**added)
    with pytest.raises(DeviceError, match=message):
        bind(machine, asked, **options)
    assert machine.writes == []


def test_another_device_by_force(machine):
    machine.add(identity=(0x8086, 0x10FB), driver="ixgbe")
    assert bind(machine, force=True) == [machine.dev / "7"]


def test_neighbours_in_the_group(machine):
    machine.add(driver="ixgbe")
    machine.add("0000:65:00.1", driver="nvme")
    machine.add("0000:64:00.0", driver="pcieport")
    machine.add("0000:65:00.2")
    machine.add("0000:66:00.0", group=8, driver="nvme")
    with pytest.raises(DeviceError, match=r"IOMMU group 7 of 0000:65:00.0 has other devices in use: 0000:65:00.1 \(nvme\)\. Give"):
        bind(machine)
    assert machine.writes == []


def test_not_taken(machine):
    """The driver looks at a device and declines, as vfio-pci does with a bridge."""
    path = machine.add()
    machine.refuses = ("vfio-pci",)
    with pytest.raises(DeviceError, match="vfio-pci did not take 0000:65:00"):
        bind(machine)
    assert path.joinpath("driver_override").read_text() == "\n"


def test_whoever_had_it_gets_it_back(machine):
    path = machine.add(driver="ixgbe")
    (path / "native").touch()
    machine.refuses = ("vfio-pci",)
    with pytest.raises(DeviceError, match="vfio-pci did not take 0000:65:00"):
        bind(machine)
    assert PciFunction(NIC, machine.root).driver == "ixgbe"


@pytest.mark.parametrize("file", ["unbind", "drivers_probe"])
def test_a_write_that_fails_half_way(machine, file):
    """vfio-pci must not get it later, when nobody expects that any more."""
    path = machine.add(driver="ixgbe")
    machine.fails[file] = "No such device"
    with pytest.raises(DeviceError, match=f"{file} cannot be written: No such device"):
        bind(machine)
    assert path.joinpath("driver_override").read_text() == "\n"


def test_owner_refused(machine, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    machine.add(driver="vfio-pci")
    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(DeviceError, match="/7 cannot be given to 1000: Operation not permitted"):
        bind(machine, owner="1000")


def test_a_group_without_an_iommu(machine):
    """The kernel makes one up when it is told to live without; nothing can be mapped in it."""
    machine.add(group=0, driver="vfio-pci")
    (machine.root / "kernel" / "iommu_groups" / "0" / "name").write_text("vfio-noiommu\n")
    with pytest.raises(DeviceError, match="is behind no IOMMU"):
        bind(machine)


def test_members_of_a_group_on_other_buses(machine):
    machine.add()
    (machine.root / "kernel" / "iommu_groups" / "7" / "devices" / "AMDI0010:00").symlink_to(machine.root)
    assert bind(machine) == [machine.dev / "7"]


def test_loading_the_module_takes_too_long(machine, monkeypatch):
    def run(*_, timeout, **__):
        raise subprocess.TimeoutExpired("modprobe", timeout)

    path = machine.add()
    (machine.drivers / "vfio-pci").rmdir()
    monkeypatch.setattr(binding.shutil, "which", lambda *_, **__: "/sbin/modprobe")
    monkeypatch.setattr(binding.subprocess, "run", run)
    with pytest.raises(DeviceError, match="cannot be loaded: modprobe has not ended within 60 s"):
        bind(machine)
    assert path.joinpath("driver_override").read_text() == "\n"


def test_module_that_cannot_be_loaded(machine, monkeypatch):
    machine.add()
    (machine.drivers / "vfio-pci").rmdir()
    monkeypatch.setattr(binding.shutil, "which", lambda *_, **__: "/sbin/modprobe")
    failed = subprocess.CompletedProcess([], 1, "", "modprobe: FATAL: Module vfio-pci not found.\n")
    monkeypatch.setattr(binding.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DeviceError, match="cannot be loaded: modprobe: FATAL: Module vfio-pci not found"):
        bind(machine)
    monkeypatch.setattr(binding.shutil, "which", lambda *_, **__: None)
    with pytest.raises(DeviceError, match="there is no modprobe"):
        bind(machine)


@pytest.mark.parametrize("loaded", [True, False])
def test_without_rights(machine, monkeypatch, loaded):
    """That is what is said, also when there is a module to load, which takes rights as well."""
    machine.add()
    if not loaded:
        (machine.drivers / "vfio-pci").rmdir()
    monkeypatch.setattr(binding, "_write", machine._write)
    monkeypatch.setattr(binding.Path, "write_text", _denied)
    with pytest.raises(DeviceError, match="driver_override can be written by root only: use sudo"):
        bind(machine)


def _denied(self, text):
    raise PermissionError(13, "Permission denied")
