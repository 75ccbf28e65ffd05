"""The command `acceltcp sim`: serve a simulated NIC on a UNIX socket."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acceltcp.host.transport import SIMULATED_QUEUES

from .cache import ROOT, BuildError
from .device import Shell, ShellError, open_nic
from .pcap import PcapError, PcapWriter
from .server import PciDevice, Server
from .simulator import Clock, Nic, Simulator
from .wires import Captured, Impaired, Impairment, NullWire, PairWire, ReplayWire, TapWire, Wire

if TYPE_CHECKING:
    from hw.config import NicConfig

__all__ = ["build_parser", "main"]

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class UsageError(Exception):
    """Options that do not go together; a sentence."""


def seconds(text: str) -> float:
    """A time: a number with us, ms or s; bare numbers are seconds."""
    for unit, factor in UNITS.items():
        if text.endswith(unit) and text[: -len(unit)].replace(".", "", 1).isdigit():
            return float(text[: -len(unit)]) * factor
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a time is like 20ms, 300us or 0.02, not {text!r}") from None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="acceltcp sim", description="Serve a simulated NIC as a PCI device over vfio-user.", allow_abbrev=False
    )
    parser.add_argument("--socket", required=True, metavar="PATH", help="UNIX socket to serve on")
    parser.add_argument("--peer-socket", metavar="PATH", help="serve a second NIC there, cabled to the first")

    core = parser.add_argument_group("core")
    core.add_argument("--width", type=int, default=64, help="bytes per beat: 8, 32 or 64 (default 64)")
    core.add_argument("--ports", type=int, default=1, help="MAC ports: 1 or 2 (default 1)")
    core.add_argument(
        "--queues", type=int, default=SIMULATED_QUEUES, help="host queues, a power of two (default %(default)s)"
    )
    core.add_argument("--tick-us", type=int, default=100, help="microseconds per tick (default 100)")
    core.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other parameter of NicConfig"
    )
    core.add_argument(
        "--opt",
        choices=("test", "bench"),
        default="test",
        help="model that builds fast or runs fast (default test)",
    )
    core.add_argument(
        "--read-latency", type=int, default=16, help="cycles to the first read beat (default 16)"
    )
    core.add_argument("--write-latency", type=int, default=4, help="cycles to a write response (default 4)")
    core.add_argument("--trace", metavar="FILE", help="write waveforms (VCD) of the first NIC")

    wire = parser.add_argument_group("wire")
    wire.add_argument(
        "--tap",
        action="append",
        default=[],
        metavar="NAME",
        help="plug a port into a TAP device; again for port 1",
    )
    wire.add_argument("--replay", metavar="FILE", help="play a pcap file to port 0")
    wire.add_argument(
        "--replay-speed", type=float, default=1.0, help="1: as recorded; 0: all at once (default 1)"
    )
    wire.add_argument("--loop", action="store_true", help="cable port 0 to port 1")
    wire.add_argument(
        "--pcap", metavar="FILE", help="write all traffic; port 1's to FILE with -1 before its suffix"
    )

    spoil = parser.add_argument_group("impairments")
    spoil.add_argument(
        "--loss", type=float, default=0.0, metavar="P", help="probability that a frame is lost"
    )
    spoil.add_argument("--duplicate", "--dup", type=float, default=0.0, metavar="P", help="... comes twice")
    spoil.add_argument("--reorder", type=float, default=0.0, metavar="P", help="... is overtaken")
    spoil.add_argument("--corrupt", type=float, default=0.0, metavar="P", help="... has a flipped bit")
    spoil.add_argument("--delay", type=seconds, default=0.0, metavar="TIME", help="time that frames take")
    spoil.add_argument("--jitter", type=seconds, default=0.0, metavar="TIME", help="at most so much more")
    spoil.add_argument(
        "--reorder-delay",
        type=seconds,
        default=0.01,
        metavar="TIME",
        help="how late a frame is that is overtaken",
    )
    spoil.add_argument("--direction", choices=("both", "in", "out"), default="both", help="in: to the NIC")
    spoil.add_argument("--seed", type=int, help="of all chances (default: random, printed)")

    parser.add_argument(
        "--time-scale", type=float, default=1.0, help="protocol seconds per second (default 1)"
    )
    parser.add_argument("--verbose", "-v", action="count", default=0, help="tell more; twice: everything")
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. For one that does not exist the nearest is named, or all are."""
    parser = build_parser()
    options, unknown = parser.parse_known_args(argv)
    for word in unknown:
        if not word.startswith("--"):
            continue
        name = word.partition("=")[0]
        known = sorted(flag for action in parser._actions for flag in action.option_strings if flag.startswith("--"))
        near = difflib.get_close_matches(name, known, 1)
        parser.error(
            f"there is no option {name}; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")
        )
    if unknown:
        parser.error(f"options begin with --, unlike {unknown[0]!r}")
    return options


def _config(options: argparse.Namespace) -> NicConfig:
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    try:
        from hw.config import AXI_BYTES, NicConfig
    except ImportError as error:
        raise UsageError(f"the simulator needs the gateware's sources and Amaranth: {error}") from error
    values: dict[str, Any] = {
        name: getattr(options, name) for name in ("width", "ports", "queues", "tick_us")
    }
    for item in options.set:
        name, equals, text = item.partition("=")
        if not equals or name not in NicConfig.names():
            raise UsageError(
                f"--set takes NAME=VALUE with a name of {', '.join(NicConfig.names())}, not {item!r}"
            )
        if text.lower() in ("true", "false"):
            values[name] = text.lower() == "true"
        elif text.isdigit():
            values[name] = int(text)
        else:
            raise UsageError(f"--set {name} takes a number, true or false, not {text!r}")
    config = NicConfig(**values)
    if config.axi_bytes != AXI_BYTES:
        raise UsageError(f"axi_bytes must be {AXI_BYTES} in simulation, not {config.axi_bytes}")
    return config


def _plain_wires(options: argparse.Namespace) -> list[Wire]:
    """What the ports of the first NIC are plugged into, without impairments."""
    wires: list[Wire] = []
    ports: int = options.ports
    if options.loop:
        if ports != 2 or options.tap or options.replay:
            raise UsageError("--loop needs --ports 2 and neither --tap nor --replay")
        return list(PairWire.pair())
    if len(options.tap) > ports:
        raise UsageError(f"{len(options.tap)} TAP devices need as many ports, not {ports}")
    if options.replay:
        if options.tap or options.peer_socket:
            raise UsageError("--replay plugs port 0 already: it goes with neither --tap nor --peer-socket")
        wires.append(ReplayWire(options.replay, speed=options.replay_speed))
    for name in options.tap:
        tap = TapWire(name)
        print(f"port {len(wires)} is plugged into {tap.name}", file=sys.stderr, flush=True)
        wires.append(tap)
    return wires + [NullWire() for _ in range(ports - len(wires))]


def _dress(
    wires: list[Wire], options: argparse.Namespace, seed: int, stack: contextlib.ExitStack
) -> list[Wire]:
    """The wires with impairments, and captured as the NIC sees them."""
    names = ("loss", "duplicate", "reorder", "corrupt", "delay", "jitter", "reorder_delay")
    what = Impairment(**{name: getattr(options, name) for name in names})
    if what != Impairment(reorder_delay=what.reorder_delay):
        clean = Impairment()
        print(f"seed {seed}", file=sys.stderr, flush=True)
        wires = [
            Impaired(
                wire,
                to_nic=what if options.direction != "out" else clean,
                from_nic=what if options.direction != "in" else clean,
                seed=(seed, port),
            )
            for port, wire in enumerate(wires)
        ]
    if options.pcap:
        path = Path(options.pcap)
        dressed: list[Wire] = []
        for port, wire in enumerate(wires):
            writer = PcapWriter(path if port == 0 else path.with_stem(f"{path.stem}-{port}"))
            stack.callback(writer.close)
            dressed.append(Captured(wire, writer))
        wires = dressed
    return wires


def _simulator(options: argparse.Namespace, stack: contextlib.ExitStack) -> Simulator:
    config = _config(options)
    clock = Clock(options.time_scale)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    wires = _plain_wires(options)
    peers: list[Wire] = []
    if options.peer_socket:
        if options.tap or options.loop:
            raise UsageError("--peer-socket cables port 0: it goes with neither --tap nor --loop")
        near, far = PairWire.pair()
        peers = [far] + [NullWire() for _ in range(config.ports - 1)]
        wires[0] = near
    wires = _dress(wires, options, seed, stack)
    nics: list[Nic] = []
    for path, plugged in [(options.socket, wires)] + ([(options.peer_socket, peers)] if peers else []):
        traced = bool(options.trace) and not nics
        shell: Shell = open_nic(
            config,
            opt=options.opt,
            trace=traced,
            read_latency=options.read_latency,
            write_latency=options.write_latency,
        )
        shell.set_seed(seed)
        if traced:
            shell.trace_open(options.trace)
        nic = Nic(shell, Server(path, PciDevice(shell, config.queues)), plugged, tick=config.tick_us * 1e-6)
        stack.callback(nic.close)
        nics.append(nic)
    return Simulator(nics, clock)


@contextlib.contextmanager
def _signals(simulator: Simulator) -> Iterator[None]:
    """SIGTERM and SIGINT end the simulation cleanly."""
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in old:
        signal.signal(number, lambda *_: simulator.stop())
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = _parse(argv)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(options.verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr)
    with contextlib.ExitStack() as stack:
        try:
            simulator = _simulator(options, stack)
        except (UsageError, BuildError, PcapError, ShellError, ValueError, OSError) as error:
            text = error.args[1] if isinstance(error, OSError) and len(error.args) > 1 else str(error)
            if isinstance(error, OSError) and error.filename:
                text = f"{text}: {error.filename}"
            print(f"acceltcp sim: {text}", file=sys.stderr)
            return 1
        with _signals(simulator):
            for nic in simulator.nics:
                print(f"listening on {nic.server.path}", flush=True)
            simulator.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
