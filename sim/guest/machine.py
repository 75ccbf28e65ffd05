"""The guest as a process: QEMU with an Intel IOMMU, and the simulated NIC as `vfio-user-pci`.

No KVM is needed, nor any right: QEMU is an ordinary process that ends with the one that started it. Guest memory is
a memfd, which the NIC's process gets page by page as the guest's driver maps it. The guest has no network but the NIC.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from ..cache import ROOT, BuildError, cache_directory
from . import NIC_SLOT
from .agent import Agent, GuestError
from .image import GuestImage

__all__ = ["Machine", "check_memory"]

_BOOT_S = 240.0
_MEMORY = (512, 1 << 16)
_HUGE_PAGE_SHARE = 0.4
"""Of the guest's memory, set aside as pages of 2 MiB for the driver: each is one mapping, where small pages are 512."""


def check_memory(size: int) -> None:
    """Whether a guest can have `size` MiB. Raises `ValueError`."""
    if not _MEMORY[0] <= size <= _MEMORY[1]:
        raise ValueError(f"memory must be from {_MEMORY[0]} to {_MEMORY[1]} MiB, not {size!r}")


class Machine:
    """A guest, from its boot (entering) to its end (leaving).

    image: what it runs. nics: UNIX sockets of simulated NICs, which come at slot 3 and after. memory: MiB, from 512.
    iommu: with one; without, vfio-pci refuses the NIC. huge_pages: set some aside.
    console: file for what the guest's kernel says; None: the terminal, with a shell in it, as `acceltcp vm` has it.
    Raises `GuestError` when it does not come up.
    """

    def __init__(
        self, image: GuestImage, nics: Sequence[str], *, memory: int = 1024, iommu: bool = True, huge_pages: bool = True,
        console: Path | None = None,
    ) -> None:  # fmt: skip
        check_memory(memory)
        self._image = image
        self._nics = list(nics)
        self._memory = memory
        self._iommu = iommu
        self._huge_pages = huge_pages
        self._console = console
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.agent: Agent
        """Runs commands in it."""
        self.shared: Path
        """A folder that the guest has as /shared, read and write."""

    def __enter__(self) -> Machine:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="acceltcp-vm-")))
            self.shared = folder / "shared"
            self.shared.mkdir()
            cache = cache_directory() / "guest" / "pycache"
            cache.mkdir(parents=True, exist_ok=True)
            compiled = self._image.compile_python(ROOT / "host", cache)
            agent = folder / "agent.sock"
            output = subprocess.DEVNULL if self._console is None else stack.enter_context(self._console.open("wb"))
            said = stack.enter_context((folder / "qemu.log").open("w+b"))
            self._process = subprocess.Popen(
                [*_ending_with_us(), *self._image.qemu, *self._arguments(agent, compiled)],
                stdin=None if self._console is None else subprocess.DEVNULL,
                stdout=None if self._console is None else output,
                stderr=said,
            )
            stack.callback(self._end)
            try:
                self.agent = Agent(agent, _BOOT_S, lambda: self.running)
            except GuestError as error:
                said.seek(0)
                words = said.read().decode(errors="replace").strip()[-1000:]
                raise GuestError(f"{error}{f'; QEMU said: {words}' if words else ''}") from None
            stack.callback(self.agent.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def running(self) -> bool:
        """QEMU has not ended."""
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Until the guest ends; QEMU's exit status."""
        assert self._process is not None
        return self._process.wait()

    def _end(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _arguments(self, agent: Path, compiled: Path) -> list[str]:
        words = ["console=ttyS0", "quiet", "panic=-1", f"acceltcp.source={ROOT}"]
        if self._iommu:
            words.append("intel_iommu=on")
        if self._huge_pages:
            words.append(f"hugepages={int(self._memory * _HUGE_PAGE_SHARE) // 2}")
        if self._console is None:
            words.append("acceltcp.shell")
        for word in (str(ROOT), str(compiled), str(self.shared)):
            if set(word) & set(' ,"'):
                raise GuestError(f"a guest cannot be given the folder {word!r}: there must be no space, comma or quote in its name")
        return [
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-accel", "tcg", "-cpu", "max", "-smp", "1",
            "-machine", "q35,kernel-irqchip=split,memory-backend=ram", "-m", f"{self._memory}M",
            "-object", f"memory-backend-memfd,id=ram,size={self._memory}M,share=on",
            *(("-device", "intel-iommu,intremap=on,caching-mode=on") if self._iommu else ()),
            "-kernel", str(self._image.kernel), "-initrd", str(self._image.root), "-append", " ".join(words),
            "-serial", "mon:stdio" if self._console is None else "stdio",
            "-device", "virtio-serial-pci,addr=0x1", "-chardev", f"socket,id=agent,path={agent},server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
            *_nics(self._nics),
            *_folder("source", ROOT, 0x10, read_only=True),
            *_folder("pycache", compiled, 0x11, read_only=True),
            *_folder("shared", self.shared, 0x12, read_only=False),
        ]  # fmt: skip


def _nics(sockets: Sequence[str]) -> list[str]:
    """A card for each socket."""
    arguments = []
    for number, path in enumerate(sockets):
        device = {
            "driver": "vfio-user-pci", "addr": f"{NIC_SLOT + number:#x}", "socket": {"type": "unix", "path": path},
        }  # fmt: skip
        arguments += ["-device", json.dumps(device)]
    return arguments


def _folder(tag: str, path: Path, slot: int, *, read_only: bool) -> list[str]:
    return [
        "-fsdev", f"local,id={tag},path={path},security_model=none" + (",readonly=on" if read_only else ""),
        "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag},addr={slot:#x}",
    ]  # fmt: skip


def _ending_with_us() -> list[str]:
    if shutil.which("setpriv") is None:
        raise BuildError("setpriv is needed: apt-get install util-linux")
    return ["setpriv", "--pdeathsig", "KILL"]
