"""What the guest boots from, made of Debian's packages: kernel, root file system, and the QEMU that runs them.

mmdebstrap fetches and unpacks packages of Debian 13 (trixie), whose signatures apt checks; QEMU comes from trixie-backports, as
`vfio-user-pci` needs 10.1. Nothing of it is installed on this machine, and nothing of it runs as root there: QEMU is started through the
dynamic loader that came along. The root file system is an archive that the kernel unpacks into memory.

The result is kept in the cache under the hash of its recipe, with a checksum of every file; a damaged one is made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from acceltcp.abi import pci

from ..cache import BuildError, build_once, cache_directory, content_hash
from . import NIC_BDF

__all__ = ["PYCACHE", "GuestImage", "PackagesError", "guest_image"]

MIRROR = "http://deb.debian.org/debian"
SUITE = "trixie"
BACKPORTS = f"{SUITE}-backports"

QEMU_PACKAGES = ("qemu-system-x86",)
GUEST_PACKAGES = (
    "base-files", "bash", "busybox-static", "iproute2", "kmod", "linux-image-amd64", "pciutils", "python3", "python3-h11", "python3-rich",
    "qemu-guest-agent", "util-linux",
)  # fmt: skip
MODULES = ("9p", "9pnet_virtio", "i2c-i801", "vfio-pci", "vfio_iommu_type1")
"""With what they depend on, all the kernel modules in the guest. `i2c-i801` drives a function of the chipset: a neighbour in an IOMMU group."""

LEFT_OUT = (
    "boot", "usr/lib/modules", "usr/lib/systemd", "usr/lib/udev/hwdb.d", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/perl",
    "usr/lib/x86_64-linux-gnu/systemd", "usr/share/doc", "usr/share/i18n", "usr/share/locale", "usr/share/man", "usr/share/perl",
    "usr/share/zoneinfo", "var/cache", "var/lib/apt",
)  # fmt: skip
"""Not taken over from the packages to the root file system: what the guest has no use for, and which would cost it memory."""

PYCACHE = Path("/pycache")
"""The guest's PYTHONPYCACHEPREFIX: as it may not write next to the sources, compiled modules are below this."""

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_MANIFEST = "manifest.json"
_INIT = Path(__file__).with_name("init")
_FETCH_S = 900
_STEP_S = 120
_STOP_S = 10

_COMMANDS = {
    "acceltcp": 'python3 -m acceltcp "$@"',
    "poweroff": "busybox poweroff -f",
    "reboot": "busybox poweroff -f",
}
"""Scripts in the guest. Nobody is there to shut down in order."""

_USERS = "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000:somebody:/tmp:/bin/bash\n"
_NIC = NIC_BDF.removeprefix("0000:")
_MOTD = f"""
This is a Linux guest. The simulated NIC is one of its PCI cards, behind an IOMMU:

    lspci -d {pci.VENDOR_ID:04x}:                                  # where it is
    acceltcp bind {_NIC}                           # give it to vfio-pci
    acceltcp info --device vfio:{_NIC}
    acceltcp http --device vfio:{_NIC}             # then, on the host: curl http://10.0.0.2/

'poweroff' or Ctrl-D ends the guest; Ctrl-A X ends it at once.

"""


class PackagesError(BuildError):
    """The packages cannot be had here: no mmdebstrap, or no way to Debian's mirror."""


@dataclass(frozen=True)
class GuestImage:
    """A built image, in `folder`."""

    folder: Path

    @property
    def kernel(self) -> Path:
        """The kernel, as the boot loader gets it."""
        return self.folder / "vmlinuz"

    @property
    def root(self) -> Path:
        """The root file system, a cpio archive."""
        return self.folder / "root.cpio"

    @property
    def qemu(self) -> list[str]:
        """Prefix of a command that runs QEMU."""
        tree = self.folder / "qemu"
        firmware = [str(tree / "usr" / "share" / name) for name in ("qemu", "seabios")]
        return [*_loaded(tree, "bin/qemu-system-x86_64"), *(word for path in firmware for word in ("-L", path))]

    @property
    def packages(self) -> dict[str, str]:
        """Name -> version of every Debian package in it."""
        manifest: dict[str, dict[str, str]] = json.loads((self.folder / _MANIFEST).read_text())
        return manifest["packages"]

    def compile_python(self, sources: Path, cache: Path) -> Path:
        """Compile the Python files below `sources` for the guest, which runs another Python than this one. Returns the folder
        below `cache` which belongs at `PYCACHE` and then the path of `sources` in it. What is up to date is left alone."""
        _compile(self.folder / "qemu", [sources], cache)
        return cache / sources.relative_to("/")


def guest_image(tell: Callable[[str], None] = lambda _: None) -> GuestImage:
    """The image, which is built if it is not there yet or has been damaged: about a minute, and 320 MB in the cache. tell: gets a
    line when something takes long. Raises `BuildError` with a sentence, `PackagesError` when the packages cannot be had."""
    recipe = content_hash((Path(__file__), _INIT, _MOTD))
    target = cache_directory() / "guest" / recipe
    try:
        if target.exists() and not _whole(target):
            _discard(target, tell)
        return GuestImage(build_once(target, lambda folder: _build(folder / target.name, tell)))
    except OSError as error:
        raise BuildError(f"the guest's image cannot be made in {target.parent}: {error.strerror or error}") from None


def _discard(target: Path, tell: Callable[[str], None]) -> None:
    """Remove a damaged image, but not the one that another process has made in its place meanwhile."""
    with (target.parent / f".{target.name}.discard.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists() and not _whole(target):
            tell("the guest's image is damaged: making it anew")
            shutil.rmtree(target)


def _whole(target: Path) -> bool:
    try:
        files = json.loads((target / _MANIFEST).read_text())["files"]
        return all(_checksum(target / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(target: Path, tell: Callable[[str], None]) -> None:
    target.mkdir()
    tree = target.parent / "tree"
    tell("fetching QEMU from Debian")
    versions = _unpack(target / "qemu", (*QEMU_PACKAGES, "python3"), BACKPORTS)
    tell("fetching the guest's packages from Debian")
    versions |= _unpack(tree, GUEST_PACKAGES)
    tell("making the guest's root file system")
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    shutil.copy(kernel, target / "vmlinuz")
    root = target.parent / "root"
    _make_root(tree, root)
    _archive(root, tree, target / "root.cpio")
    for folder in (tree, root):
        shutil.rmtree(folder)
    files = sorted(path for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    manifest = {"packages": versions, "files": {str(path.relative_to(target)): _checksum(path) for path in files}}
    (target / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _unpack(tree: Path, packages: tuple[str, ...], preferred: str = SUITE) -> dict[str, str]:
    """Fetch packages and what they depend on, and unpack them; name -> version."""
    if shutil.which("mmdebstrap") is None:
        raise PackagesError("mmdebstrap is needed to make the guest's image: apt-get install mmdebstrap")
    keys = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not keys.exists():
        raise PackagesError(f"{keys} is needed to check Debian's signatures: apt-get install debian-archive-keyring")
    archive = tree.with_suffix(".tar")
    sources = [f"deb [signed-by={keys}] {MIRROR} {suite} main" for suite in dict.fromkeys((SUITE, preferred))]
    command = [
        "mmdebstrap", "--variant=extract", "--architectures=amd64", f"--aptopt=APT::Default-Release \"{preferred}\"",
        "--aptopt=Acquire::Retries \"3\"", f"--include={','.join(packages)}", "--format=tar",
        # What was fetched, on standard output.
        '--extract-hook=ls "$1/var/cache/apt/archives"', SUITE, str(archive), *sources,
    ]  # fmt: skip
    try:
        fetched = _run(command, {}, "mmdebstrap", _FETCH_S)
    except BuildError as error:
        raise PackagesError(f"Debian's packages cannot be had from {MIRROR}: {error}") from None
    tree.mkdir()
    # Without device files, which only root may make, and without owners.
    _run(["tar", "-x", "--no-same-owner", "--exclude=./dev/*", "-f", str(archive), "-C", str(tree)], {}, "tar")
    archive.unlink()
    names = [line.removesuffix(".deb").split("_") for line in fetched.splitlines() if line.endswith(".deb")]
    return {name: unquote(version) for name, version, _ in names}


def _make_root(tree: Path, root: Path) -> None:
    shutil.copytree(tree, root, symlinks=True, ignore=_left_out(tree))
    _copy_modules(tree, root)
    for name in ("proc", "sys", "dev", "root", "run", "tmp"):
        (root / name).mkdir(exist_ok=True)
    scripts = {f"usr/local/bin/{name}": f"#!/bin/sh\nexec {command}\n" for name, command in _COMMANDS.items()}
    for name, content in {"init": _INIT.read_text(), **scripts}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    for name, content in (("motd", _MOTD), ("passwd", _USERS), ("group", "root:x:0:\nuser:x:1000:\n")):
        (root / "etc" / name).write_text(content)
    # Everything that busybox does and no package brought.
    busybox = root / "usr" / "bin" / "busybox"
    for name in _run([str(busybox), "--list"], {}, "busybox").split():
        if not any((root / "usr" / folder / name).exists() for folder in ("bin", "sbin")):
            (root / "usr" / "bin" / name).symlink_to("busybox")
    # Debian compiles modules when it installs them. Here that is done now, as an emulated machine takes long for it.
    cache = root.with_name("pycache")
    libraries = [path for path in (root / "usr" / "lib").glob("python3*") if path.is_dir()]
    _compile(tree, libraries, cache, "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/")
    shutil.move(cache / root.relative_to("/"), root / PYCACHE.relative_to("/"))
    shutil.rmtree(cache)


def _compile(tree: Path, sources: Iterable[Path], cache: Path, *options: str) -> None:
    """Compile Python files with the interpreter of `tree`; `cache` is its PYTHONPYCACHEPREFIX."""
    environment = {"PYTHONHOME": str(tree / "usr"), "PYTHONPYCACHEPREFIX": str(cache)}
    _run([*_loaded(tree, "bin/python3"), "-m", "compileall", "-q", *options, *map(str, sources)], environment, "compileall")


def _left_out(tree: Path) -> Callable[[str, list[str]], set[str]]:
    paths = {tree / name for name in LEFT_OUT}

    def ignore(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if Path(folder) / name in paths}

    return ignore


def _copy_modules(tree: Path, root: Path) -> None:
    (modules,) = (tree / "usr" / "lib" / "modules").iterdir()
    # `lib` is a link to usr/lib in a Debian that has been set up; this one has only been unpacked.
    if not (tree / "lib").exists():
        (tree / "lib").symlink_to("usr/lib")
    _run([*_loaded(tree, "bin/kmod", "depmod"), "-b", str(tree), modules.name], {}, "depmod")
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    paths = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in needs}
    for name in MODULES:
        found = paths.get(name.replace("-", "_"))
        if found is None:
            raise BuildError(f"Debian's kernel {modules.name} has no module {name}")
        for each in (found, *needs[found]):
            there = root / "usr" / "lib" / "modules" / modules.name / each
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(modules / each, there)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(modules / name, root / "usr" / "lib" / "modules" / modules.name / name)
    _run([*_loaded(tree, "bin/kmod", "depmod"), "-b", str(root), modules.name], {}, "depmod")


def _archive(root: Path, tree: Path, target: Path) -> None:
    """A cpio archive as the kernel takes it."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    busybox = str(tree / "usr" / "bin" / "busybox")
    with target.open("wb") as file:
        done = subprocess.run(
            [busybox, "cpio", "-o", "-H", "newc", "-R", "0:0"], cwd=root, input="\n".join(names).encode(), stdout=file, stderr=subprocess.PIPE,
            check=False, timeout=_STEP_S,
        )  # fmt: skip
    if done.returncode:
        raise BuildError(f"cpio failed: {done.stderr.decode(errors='replace').strip()[-500:]}")


def _loaded(tree: Path, program: str, name: str = "") -> list[str]:
    """Command that runs a program of `tree` with the libraries of `tree`, whatever this machine's are; as `name`, if given."""
    libraries = tree / _LIBRARIES
    called = ["--argv0", name] if name else []
    return [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), *called, str(tree / "usr" / program)]


def _run(command: list[str], environment: dict[str, str], name: str, timeout: float = _STEP_S) -> str:
    """Its output. Raises `BuildError` with the last that it said."""
    try:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"{name} cannot be run: {error.strerror}") from None
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{name} did not end within {timeout:g} s, making the guest's image") from None
    finally:
        _stop(process)
    if process.returncode:
        said = (err or out).strip()
        raise BuildError(f"{name} failed, making the guest's image: {said[-1000:] or f'status {process.returncode}'}")
    return out


def _stop(process: subprocess.Popen[str]) -> None:
    """If it still runs, as after Ctrl-C: asked first, since mmdebstrap has folders elsewhere to clear away."""
    if process.poll() is None:
        process.terminate()
        try:
            process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
