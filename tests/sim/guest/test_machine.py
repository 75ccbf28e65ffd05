"""QEMU's command line and its end, with a program in QEMU's place."""

import pytest

from sim.guest import machine as machine_module
from sim.guest.agent import GuestError
from sim.guest.machine import Machine


class Image:
    """A QEMU that is `program`, a shell script."""

    def __init__(self, folder, program):
        self.kernel, self.root = folder / "vmlinuz", folder / "root.cpio"
        self.qemu = ["/bin/sh", "-c", program, "qemu"]

    def compile_python(self, sources, cache):
        return cache


def boot(tmp_path, program="exit 1", nics=("/run/nic.sock",), **options):
    with Machine(Image(tmp_path, program), nics, console=tmp_path / "console.log", **options):
        pass


@pytest.mark.parametrize("memory", [511, 1 << 17, -1])
def test_memory(tmp_path, memory):
    with pytest.raises(ValueError, match=f"memory must be from 512 to 65536 MiB, not {memory}"):
        boot(tmp_path, memory=memory)


def test_what_qemu_says_when_it_does_not_start(tmp_path):
    with pytest.raises(GuestError, match=r"agent cannot be reached at .*; QEMU said: cannot set up guest memory"):
        boot(tmp_path, "echo cannot set up guest memory >&2; exit 1")


def test_folders_that_cannot_be_given(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_module, "ROOT", tmp_path / "a, b")
    with pytest.raises(GuestError, match="there must be no space, comma or quote in its name"):
        boot(tmp_path)


def test_command_line(tmp_path):
    with pytest.raises(GuestError, match="QEMU said") as caught:
        boot(tmp_path, 'printf "%s\\n" "$@" | grep -e vfio-user -e iommu -e hugepages >&2; exit 1', ("/run/a.sock", "/run/b.sock"))
    said = str(caught.value)
    assert '"addr": "0x3", "socket": {"type": "unix", "path": "/run/a.sock"}' in said
    assert '"addr": "0x4"' in said and "/run/b.sock" in said
    assert "intel-iommu,intremap=on,caching-mode=on" in said and "intel_iommu=on hugepages=204" in said
    with pytest.raises(GuestError) as caught:
        boot(tmp_path, 'printf "%s\\n" "$@" | grep -e iommu -e hugepages >&2; exit 1', iommu=False, huge_pages=False)
    assert "QEMU said" not in str(caught.value)
