"""`acceltcp demo`: the whole way from the kernel's TCP to a Python server, through the RTL.

In a network namespace of its own (as root, or with a user namespace) it starts the simulated
NIC on a TAP interface and `acceltcp http` on it, fetches a page with curl and with a plain
socket, then again under a flood of spoofed SYNs, and shows what the NIC counted. The exit
status is 0 only if every step did what it says.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from .flood import flood

__all__ = ["main"]

_INSIDE = "ACCELTCP_DEMO_NAMESPACE"
_TAP = "acc0"
_HOST, _HOST6 = "10.0.0.1", "fd00::1"
_NIC, _NIC6 = "10.0.0.2", "fd00::2"
_MAC = "02:00:00:00:00:02"
_PORT = 80
_FLOOD_SECONDS = 3.0
_FETCH_PAUSE = 0.1
_PAGE = """<!doctype html>
<title>AccelTCP</title>
<h1>Served through an FPGA NIC's RTL</h1>
<p>The handshake of this connection was answered by gateware; the page comes from Python.</p>
"""


class DemoError(Exception):
    """A step did not do what it should; the text says which and how."""


def _reexec_in_namespace(arguments: list[str]) -> int:
    """Run this program again where it may make a TAP interface."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        raise DemoError("`unshare` and `ip` are needed: apt-get install util-linux iproute2")
    prefix = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    command = [*prefix, "--kill-child", sys.executable, "-m", "acceltcp", "demo", *arguments]
    return subprocess.run(command, env=os.environ | {_INSIDE: "1"}).returncode


@contextlib.contextmanager
def _server(console: Console, folder: Path, capture: Path, width: int) -> Iterator[Path]:
    """`acceltcp http` on a simulated NIC; yields the path of its control socket."""
    pages = folder / "pages"
    pages.mkdir()
    (pages / "index.html").write_text(_PAGE)
    control = folder / "control.sock"
    log = folder / "server.log"
    command = [
        sys.executable, "-m", "acceltcp", "http",
        "--device", f"sim:?tap={_TAP}&width={width}&pcap={capture}",
        "--mac", _MAC,
        "--address", f"{_NIC}/24", "--address", f"{_NIC6}/64",
        "--tap-address", f"{_HOST}/24", "--tap-address", f"{_HOST6}/64",
        "--directory", str(pages), "--port", str(_PORT), "--control", str(control),
    ]  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        with console.status("starting the NIC (the first time, its RTL is compiled: a minute or two)") as status:
            started = time.monotonic()
            while not control.exists():
                if process.poll() is not None:
                    raise DemoError(f"the server ended with status {process.returncode}:\n{log.read_text()}")
                if time.monotonic() - started > 900:
                    raise DemoError(f"the server did not come up in 15 minutes:\n{log.read_text()}")
                last = log.read_text().strip().splitlines()[-1:]
                status.update(f"starting the NIC {time.monotonic() - started:3.0f} s  [dim]{last[0] if last else ''}[/]")
                time.sleep(0.2)
        yield control
        if process.poll() is not None:
            raise DemoError(f"the server ended early with status {process.returncode}:\n{log.read_text()}")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _stats(control: Path) -> dict[str, int]:
    out = subprocess.run(
        [sys.executable, "-m", "acceltcp", "stats", "--control", str(control), "--json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if out.returncode:
        raise DemoError(f"`acceltcp stats` failed: {out.stderr}")
    counters = json.loads(out.stdout)["counters"]
    assert isinstance(counters, dict)
    return counters


def _curl(url: str, timeout: int = 20) -> str:
    out = subprocess.run(["curl", "-sS", "-m", str(timeout), url], capture_output=True, text=True)
    if out.returncode:
        raise DemoError(f"curl {url} ended with status {out.returncode}: {out.stderr.strip()}")
    return out.stdout


def _plain_socket() -> str:
    with socket.create_connection((_NIC, _PORT), timeout=20) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: nic\r\nConnection: close\r\n\r\n")
        reply = b""
        while part := sock.recv(65536):
            reply += part
    return reply.partition(b"\r\n\r\n")[2].decode()


def _fetch(what: str, fetch: Callable[[], str]) -> float:
    """Seconds that it took to get the right page."""
    started = time.monotonic()
    page = fetch()
    if page != _PAGE:
        raise DemoError(f"{what} got another page than the server's: {page[:200]!r}")
    return time.monotonic() - started


def _step(console: Console, number: int, text: str) -> None:
    console.print(f"\n[bold cyan]{number}[/] [bold]{text}[/]")


def _under_flood(console: Console, control: Path, count: int) -> tuple[dict[str, int], int]:
    """Flood and fetch at once; what the counters grew by, and how many pages were fetched."""
    before = _stats(control)
    took: list[float] = []
    failed: list[BaseException] = []

    def attack() -> None:
        try:
            took.append(
                flood(
                    _TAP, count, per_second=count / _FLOOD_SECONDS, seed=1,
                    dst_mac=int(_MAC.replace(":", ""), 16), src_mac=0x02_00_00_00_00_99,
                    address=_NIC, port=_PORT,
                )
            )  # fmt: skip
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=attack, daemon=True)
    thread.start()
    fetches: list[float] = []
    with console.status("") as status:
        while thread.is_alive() or len(fetches) < 3:
            fetches.append(_fetch("curl during the flood", lambda: _curl(f"http://{_NIC}/")))
            status.update(f"flooding; {len(fetches)} pages fetched meanwhile")
            time.sleep(_FETCH_PAUSE)
    thread.join()
    if failed:
        raise DemoError(f"the flood could not be sent: {failed[0]}")
    deadline = time.monotonic() + 60
    while True:
        after = _stats(control)
        delta = {name: after[name] - before[name] for name in after}
        if delta["setup_syn"] >= count + len(fetches) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    console.print(f"   [green]✔[/] {count:,} SYNs sent in {took[0]:.1f} s, each from another spoofed address")
    console.print(
        f"   [green]✔[/] curl, meanwhile: {len(fetches)} times the right page, "
        f"median {statistics.median(fetches) * 1000:.0f} ms, longest {max(fetches) * 1000:.0f} ms"
    )
    return delta, len(fetches)


def _table(console: Console, delta: dict[str, int], count: int, fetches: int, capture: Path) -> None:
    table = Table(title="What the NIC counted during the flood", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for text, value, note in (
        ("SYNs received", delta["setup_syn"], f"{count:,} spoofed, {fetches:,} real"),
        ("SYNs answered by the NIC", delta["setup_syn_ack"], "by gateware, keeping no state"),
        ("cookies accepted", delta["setup_cookie_good"], "segments before the server's first byte"),
        ("cookies refused", delta["setup_cookie_bad"], "later segments, which the host knows by its own table"),
        ("packets to the host", delta["rx_host_packets"], f"all of the {fetches:,} real connections, ARP, IPv6 housekeeping"),
        ("bytes to the host", delta["rx_host_bytes"], f"{delta['rx_host_bytes'] // max(1, fetches):,} per real connection"),
    ):
        table.add_row(text, f"{value:,}", note)
    console.print()
    console.print(table)
    console.print(f"Everything on the wire was captured: [bold]{capture}[/]", soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="acceltcp demo", description="The main job, start to end, with no FPGA.")
    parser.add_argument("--syns", type=int, default=10_000, help="size of the flood (default: %(default)s)")
    parser.add_argument("--width", type=int, default=64, choices=(8, 32, 64), help="bytes per beat of the NIC (default: %(default)s)")
    parser.add_argument("--capture", type=Path, default=Path("build/demo/capture.pcap"), help="where the capture goes")
    raw = sys.argv[2:] if argv is None else argv
    arguments = parser.parse_args(raw)
    console = Console(highlight=False)
    try:
        if not os.environ.get(_INSIDE):
            return _reexec_in_namespace(list(raw))
        return _run(console, arguments)
    except DemoError as error:
        console.print(f"[bold red]✘[/] {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(console: Console, arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    capture = arguments.capture.resolve()
    capture.parent.mkdir(parents=True, exist_ok=True)
    console.print(
        Panel.fit(
            "curl  ->  Linux kernel TCP  ->  TAP  ->  [bold]the NIC's RTL, under Verilator[/]  ->  vfio-user  ->  Python server\n"
            "The NIC answers the handshake by itself (SYN cookies); the host hears of a connection when it is real.",
            title="AccelTCP",
        )
    )
    with tempfile.TemporaryDirectory(prefix="acceltcp-demo-") as name:
        _step(console, 1, "Start the NIC and a web server on it")
        with _server(console, Path(name), capture, arguments.width) as control:
            console.print(f"   [green]✔[/] {_NIC} and {_NIC6}, port {_PORT}, behind interface {_TAP} of a private namespace")
            _step(console, 2, "Fetch a page with real clients")
            for what, fetch in (
                ("curl, IPv4", lambda: _curl(f"http://{_NIC}/")),
                ("curl, IPv6", lambda: _curl(f"http://[{_NIC6}]/")),
                ("plain socket", _plain_socket),
            ):
                console.print(f"   [green]✔[/] {what}: the right page in {_fetch(what, fetch) * 1000:.0f} ms")
            console.print(Panel.fit(_PAGE.strip(), title="the page", border_style="dim"))
            _step(console, 3, f"The same under a flood of {arguments.syns:,} spoofed SYNs")
            delta, fetches = _under_flood(console, control, arguments.syns)
            _table(console, delta, arguments.syns, fetches, capture)
            lost = arguments.syns + fetches - delta["setup_syn_ack"]
            if lost > 0:
                raise DemoError(f"{lost:,} of {arguments.syns + fetches:,} SYNs were not answered")
    console.print(f"\n[bold green]All steps did what they say[/], in {time.monotonic() - started:.0f} s.")
    return 0
