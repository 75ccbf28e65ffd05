"""The part of the demonstration with a load balancer: curl, `acceltcp lb` on the NIC, two web servers in a namespace of their own.

    curl -- br0 -- acc0 -- the NIC: acceltcp lb
             |
             +-- veth -- another network namespace: python -m http.server, twice
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .stage import HOST4, MAC, NIC4, PORT, TAP, StageError, end, served, stats

__all__ = ["FILE_BYTES", "Download", "backends", "balancer", "download"]

FILE_BYTES = 10_000_000
_BRIDGE, _NEAR, _FAR = "br0", "back0", "back1"
_BACKENDS = (("10.0.0.3", 8001), ("10.0.0.3", 8002))
_START_S = 20
_CURL_S = 120


def _run(*command: str) -> None:
    out = subprocess.run(command, capture_output=True, text=True, timeout=_START_S)
    if out.returncode:
        raise StageError(f"`{' '.join(command)}` ended with status {out.returncode}: {out.stderr.strip()}")


def _namespace_of(process: subprocess.Popen[bytes]) -> Path:
    """The network namespace that a process is about to enter, when it has."""
    ours, theirs = Path("/proc/self/ns/net"), Path(f"/proc/{process.pid}/ns/net")
    deadline = time.monotonic() + _START_S
    while theirs.readlink() == ours.readlink():
        if process.poll() is not None or time.monotonic() > deadline:
            raise StageError("a network namespace for the back ends could not be made with `unshare --net`")
        time.sleep(0.02)
    return theirs


def _payload(number: int) -> bytes:
    """The file of a server: no two are the same, so that who has answered is seen."""
    return hashlib.shake_256(f"back end {number}".encode()).digest(FILE_BYTES)


@contextlib.contextmanager
def backends(folder: Path) -> Iterator[set[str]]:
    """Two web servers in a network namespace of their own, behind a bridge with the kernel's side of the NIC's wire; the
    hashes of the files that they serve. The interface of the NIC is to be put into the bridge when it is there (`balancer`)."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        holder = subprocess.Popen(["unshare", "--net", "--kill-child", "sleep", "infinity"])
        processes.append(holder)
        inside = ["nsenter", f"--net={_namespace_of(holder)}"]
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{HOST4}/24", "dev", _BRIDGE)
        _run("ip", "link", "add", _NEAR, "type", "veth", "peer", "name", _FAR)
        _run("ip", "link", "set", _FAR, "netns", str(holder.pid))
        _run("ip", "link", "set", _NEAR, "master", _BRIDGE, "up")
        _run("ip", "link", "set", _BRIDGE, "up")
        _run(*inside, "ip", "address", "add", f"{_BACKENDS[0][0]}/24", "dev", _FAR)
        _run(*inside, "ip", "link", "set", _FAR, "up")
        digests = set()
        for number, (address, port) in enumerate(_BACKENDS):
            files = folder / f"backend{number}"
            files.mkdir()
            data = _payload(number)
            (files / "file").write_bytes(data)
            digests.add(hashlib.sha256(data).hexdigest())
            log = (folder / f"backend{number}.log").open("w")
            command = ["-m", "http.server", "--protocol", "HTTP/1.1", "--bind", address, "--directory", str(files), str(port)]
            processes.append(subprocess.Popen([*inside, sys.executable, *command], stdout=log, stderr=log))
        yield digests
    finally:
        end(*processes)
        for name in (_BRIDGE, _NEAR):
            subprocess.run(["ip", "link", "delete", name], capture_output=True)


@contextlib.contextmanager
def balancer(folder: Path, device: str, *, splice: bool, waiting: Callable[[float, str], None]) -> Iterator[Path]:
    """`acceltcp lb` on a simulated NIC in front of the `backends`; its control socket's path."""
    control, log = folder / "lb.sock", folder / "lb.log"
    config = folder / "lb.toml"
    entries = "".join(f'[[backends]]\nhost = "{address}"\nport = {port}\n' for address, port in _BACKENDS)
    config.write_text(f"splice = {str(splice).lower()}\n[listen]\nport = {PORT}\n{entries}")
    command = [
        sys.executable, "-m", "acceltcp", "lb", "--config", str(config), "--device", f"sim:?tap={TAP}&{device}", "--mac", MAC,
        "--address", f"{NIC4}/24", "--tap-address", "none", "--control", str(control),
    ]  # fmt: skip
    with served(command, "the load balancer", control, log, waiting):
        _run("ip", "link", "set", TAP, "master", _BRIDGE, "up")
        yield control


@dataclass(frozen=True)
class Download:
    """What one download cost. digest: SHA-256 of what curl got. host_packets: that the host received. forwarded: packets that
    the NIC sent on by itself."""

    digest: str
    seconds: float
    host_packets: int
    forwarded: int


def download(control: Path, folder: Path) -> Download:
    """Fetch the file once, with curl through the load balancer."""
    target = folder / "got"
    before = stats(control)["counters"]
    started = time.monotonic()
    out = subprocess.run(
        ["curl", "-sS", "-f", "-m", str(_CURL_S), "-o", str(target), f"http://{NIC4}:{PORT}/file"], capture_output=True, text=True
    )
    if out.returncode:
        raise StageError(f"curl through the load balancer ended with status {out.returncode}: {out.stderr.strip()}")
    seconds = time.monotonic() - started
    after = stats(control)["counters"]
    grown = {name: after[name] - before.get(name, 0) for name in ("rx_host_packets", "splice_packets")}
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    return Download(digest, seconds, grown["rx_host_packets"], grown["splice_packets"])
