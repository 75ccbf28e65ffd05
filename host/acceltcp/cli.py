"""The command `acceltcp`.

`info`, `stats`, `flows`, `echo`, `http` and `lb` use the driver, `bind` and `unbind` give it a card and take it away;
`sim`, `vm`, `bench`, `demo` and `report` hand over to packages that come with extras. Errors are sentences on standard error and
status 1; Ctrl-C ends a server in order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import ipaddress
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from acceltcp import __version__
from acceltcp.abi import pci
from acceltcp.abi.registers import COUNTERS, Feature
from acceltcp.apps import tap as tap_setup
from acceltcp.apps.echo import echo
from acceltcp.apps.http import HttpServer
from acceltcp.host import Connection, Device, DeviceError, Nic, format_mac
from acceltcp.host.control import ControlServer, ask, check_unused, control_path
from acceltcp.host.flow_table import flow_table
from acceltcp.host.transport import split_spec
from acceltcp.host.vfio import bind, parse_bdf, unbind
from acceltcp.host.workers import Stop, Workers

__all__ = ["main"]

DEFAULT_DEVICE = "sim:?tap=acc0"
DEFAULT_ADDRESSES = ("10.0.0.2/24", "fd00::2/64")

_EXTERNAL = {
    "sim": ("sim.cli", "sim", "Serve the simulated NIC as a vfio-user PCI device."),
    "vm": ("sim.guest.cli", "sim", "Start a Linux guest with the simulated NIC as its card."),
    "bench": ("bench.cli", "dev", "Run a benchmark."),
    "demo": ("sim.demo", "sim", "Show a NIC answering a SYN flood."),
    "report": ("hw.reports", "hw", "Area and timing of the boards built so far, and how two builds differ."),
}
"""Command -> module with `main(arguments)`, extra that it needs, help."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words and words[0] in _EXTERNAL:
            return _external(words[0], words[1:])
        options = _parser().parse_args(words)
        logging.basicConfig(
            level=logging.DEBUG if options.verbose > 1 else logging.INFO if options.verbose else logging.WARNING,
            format="%(name)s: %(message)s",
        )
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone, which is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DeviceError, OSError, ValueError) as error:
        print(f"acceltcp: {_sentence(error)}", file=sys.stderr)
        return 1


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{': ' + str(error.filename) if error.filename else ''}"
    return str(error)


def _external(name: str, words: list[str]) -> int:
    module_name, extra, _ = _EXTERNAL[name]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        print(
            f"acceltcp: '{name}' needs what is not installed here (no module {error.name}): "
            f"pip install 'acceltcp[{extra}]'",
            file=sys.stderr,
        )
        return 1
    result = module.main(words)
    return int(result) if result is not None else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="acceltcp", description="Drive an AccelTCP NIC.")
    parser.add_argument("--version", action="version", version=f"acceltcp {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument(
            "--device", default=DEFAULT_DEVICE, metavar="SPEC",
            help="vfio:BUS:DEVICE.FUNCTION (a card), ethernet:IFACE, vfio-user:PATH, or sim:?tap=NAME&width=64&loss=0.01... (default: %(default)s)",
        )  # fmt: skip
        made.add_argument(
            "--control", type=Path, metavar="PATH",
            help="UNIX socket where the program that uses the device answers 'info', 'stats' and 'flows' (default: derived from the device)",
        )  # fmt: skip
        made.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice: much more")
        return made

    def server(name: str, run: Callable[[argparse.Namespace], int], port: int | None, text: str) -> argparse.ArgumentParser:
        made = command(name, run, text)
        made.add_argument(
            "--address", action="append", metavar="ADDRESS/PREFIX",
            help=f"address of the NIC, repeatable (default: {' '.join(DEFAULT_ADDRESSES)})",
        )  # fmt: skip
        if port is not None:
            made.add_argument("--port", type=int, default=port, help="TCP port (default: %(default)s)")
        made.add_argument("--mac", help="MAC address of the NIC (default: derived from the device)")
        made.add_argument(
            "--route", action="append", metavar="ROUTE",
            help="route for connections that the server opens, repeatable: 'default via 10.0.0.1', 'fd01::/64 via fe80::9'",
        )  # fmt: skip
        made.add_argument(
            "--neighbour", action="append", metavar="ADDRESS=MAC",
            help="MAC address of a neighbour, which is not asked for it then; repeatable",
        )  # fmt: skip
        made.add_argument("--mtu", type=int, default=1500, help="default: %(default)s")
        made.add_argument("--defer-accept", action="store_true", help="take connections when their first data come")
        made.add_argument("--ecn", action="store_true", help="grant ECN")
        made.add_argument("--no-setup", action="store_true", help="answer SYNs in the host, not in the NIC")
        made.add_argument("--no-teardown", action="store_true", help="close connections in the host, not in the NIC")
        made.add_argument("--workers", type=int, default=1, metavar="N", help="serve with so many processes, each with a queue of its own (default: %(default)s: this one alone)")
        made.add_argument("--restart", action="store_true", help="with --workers: put another process in the place of one that has died")
        made.add_argument("--poll", action="store_true", help="look for packets without pause, not by interrupts")
        made.add_argument(
            "--tap-address", action="append", metavar="ADDRESS/PREFIX",
            help="with sim:?tap=NAME, address for the kernel's side, set with 'ip' (default: one next to the NIC's; 'none': leave it alone)",
        )  # fmt: skip
        return made

    info = command("info", _info, "Show what a NIC is and can do.")
    info.add_argument("--json", action="store_true", help="machine-readable")
    stats = command("stats", _stats, "Show a NIC's counters, also of one that a running 'echo', 'http' or 'lb' uses.")
    stats.add_argument("--json", action="store_true", help="machine-readable")
    stats.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    stats.add_argument("--all", action="store_true", help="counters that are zero, too")
    flows = command("flows", _flows, "List the connections that a NIC holds: those it closes, and those it keeps for a while after (TIME_WAIT, LINGER).")
    flows.add_argument("--json", action="store_true", help="machine-readable")
    server("echo", _echo, 7, "Serve the echo protocol.")
    http = server("http", _http, 80, "Serve files, or a page that says who answers.")
    http.add_argument("--directory", type=Path, help="folder to serve")
    balancer = server("lb", _lb, None, "Balance HTTP requests over back ends; the NIC forwards long bodies.")
    balancer.add_argument("--config", type=Path, required=True, metavar="FILE", help="TOML file, see docs/lb.md")
    balancer.add_argument("--json", action="store_true", help="print statistics as the last line, machine-readable; with --workers, a line of each")
    for name, run, text in (
        ("bind", _bind, "Give a card to the driver vfio-pci, so that a program may use it."),
        ("unbind", _unbind, "Take a card from vfio-pci, and give it back to the kernel's own driver, if there is one."),
    ):
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run, verbose=0)
        made.add_argument("bdf", metavar="BDF", help=f"its place, like 0000:65:00.0 (lspci -D -d {pci.IDENTITY})")
        if run is _bind:
            made.add_argument("--owner", metavar="USER", help="who may use it without being root")
            made.add_argument("--force", action="store_true", help="also if it is no AccelTCP NIC")
    for name, (_, _, text) in _EXTERNAL.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


# -- info and stats ----------------------------------------------------------------------


def _unwired(spec: str) -> str:
    """The device without its TAP: who only looks at a simulator of his own needs no wire."""
    scheme, path, options = split_spec(spec)
    if scheme == "sim" and options.pop("tap", None) is not None:
        return f"sim:{path}" + (f"?{urlencode(options)}" if options else "")
    return spec


def _identity(device: Device, spec: str) -> dict[str, Any]:
    identity = device.identity
    return {
        "device": spec,
        "abi": identity.abi,
        "map_hash": f"{identity.map_hash:08x}",
        "features": [feature.name for feature in Feature if feature in identity.features],
        "width_bytes": identity.width,
        "ports": identity.ports,
        "queues": identity.queues,
        "listeners": identity.listeners,
        "flows": identity.flows,
        "max_frame": identity.max_frame,
        "tick_us": identity.tick_us,
        "mac": [format_mac(device.mac(port)) for port in range(identity.ports)],
    }


def _ask(options: argparse.Namespace, request: str) -> dict[str, Any] | None:
    """A reading from the program that uses the device; None when there is none and the device itself can tell."""
    answer = ask(options.control or control_path(options.device), request, timeout=_ANSWER_S)
    if answer is None and options.control is not None:
        raise DeviceError(f"Nobody answers at {options.control}.")
    if answer is None and request != "info" and options.device.partition("?")[0] == "sim:":
        # It would be a new simulation, in which nothing has happened.
        raise DeviceError(f"Nobody serves {options.device}: 'acceltcp echo', 'http' and 'lb' answer here while they run.")
    return answer


def _info(options: argparse.Namespace) -> int:
    answer = _ask(options, "info")
    if answer is None:
        with Device.open(_unwired(options.device), reset=False) as device:
            answer = _identity(device, options.device)
    if options.json:
        print(json.dumps(answer, indent=2))
        return 0
    rows = [(name.replace("_", " "), _text(value)) for name, value in answer.items()]
    _print_tables({"NIC": rows})
    return 0


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _stats(options: argparse.Namespace) -> int:
    own: Device | None = None
    try:
        while True:
            answer = _ask(options, "stats") if own is None else None
            if answer is None:
                if own is None:
                    own = Device.open(_unwired(options.device), reset=False)
                answer = {"counters": own.counters()}
            _show_stats(answer, options)
            if not options.watch:
                return 0
            time.sleep(1)
    finally:
        if own is not None:
            own.close()


def _show_stats(answer: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(answer, indent=None if options.watch else 2), flush=True)
        return
    docs = {counter.name: counter.doc for counter in COUNTERS}
    tables: dict[str, list[tuple[str, ...]]] = {}
    for group, values in answer.items():
        rows = [
            (name, _text(value), *([docs[name]] if group == "counters" and name in docs else []))
            for name, value in values.items()
            if value or options.all
        ]
        tables[group] = list(rows) or [("all counters", "0")]
    if options.watch and sys.stdout.isatty():
        print("\x1b[H\x1b[2J", end="")
    _print_tables(tables)


def _print_tables(tables: dict[str, list[Any]]) -> None:
    """With `rich` if it is there and somebody looks, else plain columns."""
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.table import Table

            console = Console()
            for title, rows in tables.items():
                table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
                table.add_column(style="cyan", no_wrap=True)
                table.add_column(justify="right" if title != "NIC" else "left")
                table.add_column(style="dim")
                for row in rows:
                    table.add_row(*row)
                console.print(table)
            return
    for title, rows in tables.items():
        width = max(len(row[0]) for row in rows)
        print(f"{title}:")
        for row in rows:
            print(f"  {row[0]:<{width}}  {row[1]}")


_ANSWER_S = 60.0
"""A thousand flows are read in about ten seconds from a simulated NIC."""

_FLOW_COLUMNS = ("index", "state", "peer", "local", "unacked", "retries", "deadline_ms", "frames")


def _flows(options: argparse.Namespace) -> int:
    answer = _ask(options, "flows")
    if answer is None:
        with Device.open(_unwired(options.device), reset=False) as device:
            answer = asyncio.run(flow_table(device, {}))
    if options.json:
        print(json.dumps(answer, indent=2))
        return 0
    flows = answer["flows"]
    if not flows:
        print(f"The NIC holds no connection; it has room for {answer['capacity']:,}.")
        return 0
    rows = [
        [f"{flow['retries']} of {flow['retry_limit']}" if name == "retries" else str(flow[name]) for name in _FLOW_COLUMNS]
        for flow in flows
    ]
    _print_columns([name.replace("_", " ") for name in _FLOW_COLUMNS], rows)
    more = answer["held"] - len(flows)
    print(f"{answer['held']:,} of {answer['capacity']:,} held" + (f", {more:,} of them not shown." if more > 0 else "."))
    return 0


def _print_columns(headings: list[str], rows: list[list[str]]) -> None:
    """With `rich` if it is there and somebody looks, else plain columns."""
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.table import Table

            table = Table(box=None, pad_edge=False)
            for heading in headings:
                table.add_column(heading, justify="left" if heading in ("state", "peer", "local") else "right")
            for row in rows:
                table.add_row(*row)
            Console().print(table)
            return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


# -- cards -------------------------------------------------------------------------------


def _bind(options: argparse.Namespace) -> int:
    files = bind(options.bdf, owner=options.owner, force=options.force)
    bdf = parse_bdf(options.bdf)
    whose = f", of {options.owner}" if options.owner else ""
    print(f"{bdf} has the driver vfio-pci now ({', '.join(map(str, files))}{whose}). Try: acceltcp info --device vfio:{bdf}")
    return 0


def _unbind(options: argparse.Namespace) -> int:
    driver = unbind(options.bdf)
    print(f"{parse_bdf(options.bdf)} has {f'the driver {driver}' if driver else 'no driver'} now.")
    return 0


# -- servers -----------------------------------------------------------------------------


def _echo(options: argparse.Namespace) -> int:
    return _run_server(options, echo, "echo")


def _http(options: argparse.Namespace) -> int:
    return _run_server(options, HttpServer(options.directory).handle, "http")


def _lb(options: argparse.Namespace) -> int:
    from acceltcp.lb import LoadBalancer, load

    config = load(options.config)
    options.port, options.host = config.listen.port, config.listen.address
    balancer = LoadBalancer(config)
    status = _run_server(options, balancer.handle, "lb", balancer)
    if options.json and options.workers == 1:
        print(json.dumps(balancer.stats()))
    return status


class _Draining(Protocol):
    """A server that has something to end."""

    async def close(self) -> None:
        """Returns when its running requests are over."""

    def stats(self) -> dict[str, Any]:
        """Its own figures."""


def _run_server(
    options: argparse.Namespace, handler: Callable[[Connection], Any], name: str, draining: _Draining | None = None
) -> int:
    # Before the device is opened: to start a simulator may take minutes.
    if not 1 <= options.port <= 65535:
        raise ValueError(f"port must be from 1 to 65535, not {options.port}")
    if options.workers < 1:
        raise ValueError(f"workers must be at least 1, not {options.workers}")
    if options.restart and options.workers == 1:
        raise ValueError("--restart needs --workers")
    if options.defer_accept and options.no_setup:
        raise ValueError("--defer-accept needs the NIC to answer SYNs: it does not go with --no-setup")
    for text in options.tap_address or []:
        if text != "none":
            tap_setup.check_address(text)
    check_unused(options.control or control_path(options.device))
    serve = _serve if options.workers == 1 else _serve_by_workers
    return asyncio.run(serve(options, handler, name, draining))


def _nic_options(options: argparse.Namespace) -> dict[str, Any]:
    return dict(
        mac=options.mac, mtu=options.mtu, poll=options.poll, setup=not options.no_setup, teardown=not options.no_teardown,
        **_network_options(options)
    )


async def _serve(
    options: argparse.Namespace, handler: Callable[[Connection], Any], name: str, draining: _Draining | None
) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    addresses = options.address or list(DEFAULT_ADDRESSES)
    nic = Nic(options.device, addresses, **_nic_options(options))
    readings: dict[str, Callable[[], Any]] = {
        "stats": nic.stats if draining is None else lambda: {**nic.stats(), name: draining.stats()},
        "info": lambda: _identity(nic.device, options.device),
        "flows": nic.flow_table,
    }
    if options.device.startswith("sim:"):
        print("Starting the simulated NIC (the first start compiles it) ...", flush=True)
    opening = asyncio.ensure_future(nic.start())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await opening
        return 130
    opening.result()
    async with nic, contextlib.AsyncExitStack() as stack:
        server = await nic.listen(options.port, handler, **_listen_options(options))
        _set_up_tap(options, addresses)
        path = options.control or control_path(options.device)
        await stack.enter_async_context(ControlServer(path, readings))
        _say_serving(options, name, server.addresses, nic.mac)
        serving = asyncio.ensure_future(server.serve_forever())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        serving.cancel()
        if draining is not None:
            await server.close()
            await draining.close()
    print("Closed.")
    return 0


def _listen_options(options: argparse.Namespace) -> dict[str, Any]:
    return {"host": getattr(options, "host", None), "defer_accept": options.defer_accept, "ecn": options.ecn}


def _network_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `Nic` takes for routes and neighbours, as far as they were given."""
    given: dict[str, Any] = {}
    if options.route:
        given["routes"] = options.route
    if options.neighbour:
        given["neighbours"] = neighbours = {}
        for text in options.neighbour:
            address, equals, mac = text.partition("=")
            if not equals:
                raise ValueError(f"a neighbour is given as ADDRESS=MAC, like 10.0.0.1=02:00:00:00:00:01, not {text!r}")
            neighbours[address] = mac
    return given


def _say_serving(options: argparse.Namespace, name: str, addresses: Iterable[Any], mac: str) -> None:
    for address in addresses:
        where = f"[{address}]" if isinstance(address, ipaddress.IPv6Address) else str(address)
        print(f"Serving {name} at {where}:{options.port} (MAC {mac}).")
    how = ""
    if options.control is not None:
        how = f" --control {shlex.quote(str(options.control))}"
    elif options.device != DEFAULT_DEVICE:
        how = f" --device {shlex.quote(options.device)}"
    print(f"Ctrl-C ends it; this shows counters: acceltcp stats{how}", flush=True)


async def _serve_by_workers(
    options: argparse.Namespace, handler: Callable[[Connection], Any], name: str, draining: _Draining | None
) -> int:
    stop = Stop()
    addresses = options.address or list(DEFAULT_ADDRESSES)

    async def serve(nic: Nic) -> None:
        server = await nic.listen(options.port, handler, **_listen_options(options))
        try:
            await server.serve_forever()
        finally:
            if draining is not None:
                await server.close()
                await draining.close()
                if options.json:
                    print(json.dumps({"process": os.getpid(), **draining.stats()}), flush=True)

    workers = Workers(
        serve, options.device, addresses, workers=options.workers, restart=options.restart, **_nic_options(options)
    )
    if options.device.startswith("sim:"):
        print("Starting the simulated NIC (the first start compiles it) ...", flush=True)
    try:
        async with workers, contextlib.AsyncExitStack() as stack:
            _set_up_tap(options, addresses)
            nic = workers.nic
            readings: dict[str, Callable[[], Any]] = {
                "stats": workers.stats,
                "info": lambda: _identity(nic.device, options.device),
                "flows": nic.flow_table,
            }
            path = options.control or control_path(options.device)
            await stack.enter_async_context(ControlServer(path, readings))
            print(f"{options.workers} workers: processes {', '.join(map(str, workers.pids))}.")
            _say_serving(options, name, nic.addresses.listenable, nic.mac)
            await workers.wait()
    except asyncio.CancelledError:
        if not stop.asked:
            raise
    print("Closed.")
    return int(workers.failed)


def _set_up_tap(options: argparse.Namespace, addresses: list[str]) -> None:
    done = tap_setup.set_up(options.device, addresses, options.tap_address)
    if done is None:
        return
    tap, peers, reason = done
    if not reason:
        has = f"has {' and '.join(peers)}." if peers else f"is up without an address: {' '.join(addresses)} leaves no room for one."
        print(f"The kernel's side of {tap} {has}")
        return
    print(f"The kernel's side of {tap} could not be set up ({reason}). Type, as root:")
    for command in tap_setup.tap_commands(tap, peers):
        print("  " + shlex.join(command))


if __name__ == "__main__":
    sys.exit(main())
