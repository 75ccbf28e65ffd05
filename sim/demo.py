"""`acceltcp demo`: the whole way from the kernel's TCP to a Python server, through the RTL.

In a network namespace of its own (as root, or with a user namespace) it starts the simulated
NIC on a TAP interface and `acceltcp http` on it, fetches a page with curl and with a plain
socket, then again under a flood of spoofed SYNs, and shows what the NIC counted. Then it has many
kernel clients fetch a page and close, once with connection teardown in the NIC and once without, and
shows how many packets the host handled for each. Last it downloads files through `acceltcp lb` from two web servers in
another namespace, spliced in the NIC and relayed in software. The exit status is 0 only if every step did what it says.
"""

from __future__ import annotations

import argparse
import contextlib
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
from rich.status import Status
from rich.table import Table

from .flood import flood
from .short import Work, closed_by_nic, short_connections
from .splice_demo import FILE_BYTES, Download, backends, balancer, download
from .stage import MAC, NIC4, NIC6, PORT, TAP, StageError, inside, reexec, stats, web_server

__all__ = ["main"]

_FLOOD_SECONDS = 3.0
_FETCH_PAUSE = 0.1
_PAGE = """<!doctype html>
<title>AccelTCP</title>
<h1>Served through an FPGA NIC's RTL</h1>
<p>The handshake of this connection was answered by gateware; the page comes from Python.</p>
"""


def _counters(control: Path) -> dict[str, int]:
    counters: dict[str, int] = stats(control)["counters"]
    return counters


@contextlib.contextmanager
def _server(console: Console, folder: Path, device: str, *options: str) -> Iterator[Path]:
    """The web server, with something to look at while it starts."""
    with console.status("starting the NIC (the first time, its RTL is compiled: a minute or two)") as status:

        def waiting(seconds: float, last: str) -> None:
            status.update(f"starting the NIC {seconds:3.0f} s  [dim]{last}[/]")

        with web_server(folder, _PAGE, *options, device=device, waiting=waiting) as control:
            status.stop()
            yield control


def _curl(url: str, timeout: int = 20) -> str:
    out = subprocess.run(["curl", "-sS", "-m", str(timeout), url], capture_output=True, text=True)
    if out.returncode:
        raise StageError(f"curl {url} ended with status {out.returncode}: {out.stderr.strip()}")
    return out.stdout


def _plain_socket() -> str:
    with socket.create_connection((NIC4, PORT), timeout=20) as sock:
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
        raise StageError(f"{what} got another page than the server's: {page[:200]!r}")
    return time.monotonic() - started


def _step(console: Console, number: int, text: str) -> None:
    console.print(f"\n[bold cyan]{number}[/] [bold]{text}[/]")


def _under_flood(console: Console, control: Path, count: int) -> tuple[dict[str, int], int]:
    """Flood and fetch at once; what the counters grew by, and how many pages were fetched."""
    before = _counters(control)
    took: list[float] = []
    failed: list[BaseException] = []

    def attack() -> None:
        try:
            took.append(
                flood(
                    TAP, count, per_second=count / _FLOOD_SECONDS, seed=1,
                    dst_mac=int(MAC.replace(":", ""), 16), src_mac=0x02_00_00_00_00_99,
                    address=NIC4, port=PORT,
                )
            )  # fmt: skip
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=attack, daemon=True)
    thread.start()
    fetches: list[float] = []
    with console.status("") as status:
        while thread.is_alive() or len(fetches) < 3:
            fetches.append(_fetch("curl during the flood", lambda: _curl(f"http://{NIC4}/")))
            status.update(f"flooding; {len(fetches)} pages fetched meanwhile")
            time.sleep(_FETCH_PAUSE)
    thread.join()
    if failed:
        raise StageError(f"the flood could not be sent: {failed[0]}")
    deadline = time.monotonic() + 60
    while True:
        after = _counters(control)
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


def _teardown(console: Console, folder: Path, arguments: argparse.Namespace) -> None:
    """Many short connections, their ends first in the NIC's hands and then in the host's."""
    count = arguments.closes
    _step(console, 4, f"{count:,} clients fetch the page and close: who does the closing?")
    work: dict[str, Work] = {}
    for name, text, options in (
        ("nic", "the NIC closes", ()),
        ("host", "the host closes (--no-teardown)", ("--no-teardown",)),
    ):
        with (
            _server(console, folder, f"width={arguments.width}", *options) as control,
            console.status("") as status,
        ):


            def tell(done: int, status: Status = status, text: str = text) -> None:
                status.update(f"{text}: {done:,} of {count:,} connections")

            work[name] = short_connections(control, count, _PAGE, tell)
        console.print(f"   [green]✔[/] {text}: {count:,} times the right page and an orderly close")
    closed_by_nic(work["nic"])
    if work["host"].flows:
        raise StageError(f"the NIC took over {work['host'].flows} connections although it should not")
    table = Table(title=f"What the host handled for one connection (mean of {count:,})", title_justify="left")
    table.add_column("", style="bold")
    for heading in ("the NIC closes", "the host closes", "saved"):
        table.add_column(heading, justify="right")
    for label, value in (
        ("packets received", lambda one: one.received),
        ("packets sent by the host's TCP", lambda one: one.sent),
        ("packets in all", lambda one: one.packets),
        ("commands to the NIC", lambda one: one.commands),
    ):
        nic, host = (one.per_connection(value(one)) for one in (work["nic"], work["host"]))
        table.add_row(label, f"{nic:.2f}", f"{host:.2f}", f"{1 - nic / host:.0%}" if host else "")
    console.print()
    console.print(table)


def _splice(console: Console, folder: Path, arguments: argparse.Namespace) -> None:
    """Downloads through the load balancer, spliced in the NIC and relayed in software."""
    _step(console, 5, f"curl downloads {FILE_BYTES // 1_000_000} MB through a load balancer on the NIC, from two servers in another namespace")
    found: dict[str, list[Download]] = {}
    with backends(folder) as digests:
        for name, splice in (("spliced in the NIC", True), ("relayed in software (splice = false)", False)):
            with console.status("starting the load balancer") as status:

                def waiting(seconds: float, last: str, status: Status = status) -> None:
                    status.update(f"starting the load balancer {seconds:3.0f} s  [dim]{last}[/]")

                with balancer(folder, f"width={arguments.width}", splice=splice, waiting=waiting) as control:
                    found[name] = []
                    for number in range(len(digests)):
                        status.update(f"{name}: download {number + 1} of {len(digests)}")
                        found[name].append(download(control, folder))
            if {one.digest for one in found[name]} != digests:
                raise StageError(f"{name}: curl got something else than the files of both servers")
            console.print(
                f"   [green]✔[/] {name}: both servers' files, SHA-256 compared, in {sum(d.seconds for d in found[name]):.1f} s"
            )
    table = Table(title=f"For one download of {FILE_BYTES // 1_000_000} MB (mean of {len(digests)})", title_justify="left")
    table.add_column("", style="bold")
    table.add_column("packets to the host", justify="right")
    table.add_column("packets that the NIC forwarded by itself", justify="right")
    for name, downloads in found.items():
        means = [sum(getattr(d, field) for d in downloads) / len(downloads) for field in ("host_packets", "forwarded")]
        table.add_row(name, *(f"{mean:,.0f}" for mean in means))
    console.print()
    console.print(table)
    spliced, relayed = found.values()
    if not all(one.forwarded for one in spliced) or any(one.forwarded for one in relayed):
        raise StageError("the NIC forwarded packets where it should not, or none where it should")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="acceltcp demo", description="The main job, start to end, with no FPGA.")
    parser.add_argument("--syns", type=int, default=10_000, help="size of the flood (default: %(default)s)")
    parser.add_argument("--closes", type=int, default=50, help="connections to close, each way (default: %(default)s)")
    parser.add_argument("--width", type=int, default=64, choices=(8, 32, 64), help="bytes per beat of the NIC (default: %(default)s)")
    parser.add_argument("--capture", type=Path, default=Path("build/demo/capture.pcap"), help="where the capture goes")
    raw = sys.argv[2:] if argv is None else argv
    arguments = parser.parse_args(raw)
    console = Console(highlight=False)
    try:
        if not inside():
            return reexec(["-m", "acceltcp", "demo", *raw]).returncode
        return _run(console, arguments)
    except StageError as error:
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
        with _server(console, Path(name), f"width={arguments.width}&pcap={capture}") as control:
            console.print(f"   [green]✔[/] {NIC4} and {NIC6}, port {PORT}, behind interface {TAP} of a private namespace")
            _step(console, 2, "Fetch a page with real clients")
            for what, fetch in (
                ("curl, IPv4", lambda: _curl(f"http://{NIC4}/")),
                ("curl, IPv6", lambda: _curl(f"http://[{NIC6}]/")),
                ("plain socket", _plain_socket),
            ):
                console.print(f"   [green]✔[/] {what}: the right page in {_fetch(what, fetch) * 1000:.0f} ms")
            console.print(Panel.fit(_PAGE.strip(), title="the page", border_style="dim"))
            _step(console, 3, f"The same under a flood of {arguments.syns:,} spoofed SYNs")
            delta, fetches = _under_flood(console, control, arguments.syns)
            _table(console, delta, arguments.syns, fetches, capture)
            lost = arguments.syns + fetches - delta["setup_syn_ack"]
            if lost > 0:
                raise StageError(f"{lost:,} of {arguments.syns + fetches:,} SYNs were not answered")
        _teardown(console, Path(name), arguments)
        _splice(console, Path(name), arguments)
    console.print(f"\n[bold green]All steps did what they say[/], in {time.monotonic() - started:.0f} s.")
    return 0
