"""The processes of `acceltcp bench host` in a network namespace: the simulated NIC, the load, and one host process after another.

`python -m bench.host_rig --plan JSON` (started by `sim.stage.reexec`) runs a `Plan` and prints JSON lines: `{"step": TEXT}` as it
goes on, `{"results": {...}}` at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.cache import build_once, cache_directory, content_hash
from sim.stage import HOST4, MAC, NIC4, TAP

from .host_configs import ALL, CONFIGS, OFF, PLAIN, Config
from .host_server import BACKEND, HOLD, KEEP, LARGE, PORTS, RELAY, SMALL, UPLOADS

__all__ = ["Child", "Plan", "Rig", "copy_counter", "main"]

_START_S = 900
"""The first start compiles the RTL."""
_ANSWER_S = 120
_SETTLE_S = 10.0
_INTERVAL_TICKS = 400
"""Between two interrupts: 40 ms. A real NIC's host is so busy that a batch has come when it looks again; this NIC is slower than the
host, so without moderation every packet would be a batch of its own."""
_CONCURRENCY = {SMALL: 128, LARGE: 24}
"""With more, the simulated NIC's queue makes kernel clients repeat themselves."""
_HELD_S = 0.5
_COPIES = Path(__file__).with_name("cpp") / "copies.c"
_RELAYED = 1 << 16


@dataclass(frozen=True)
class Plan:
    """How much is measured. opt: how the model is compiled. seed: of the order of configurations.

    seconds: rounds begin until then, but at least two (or `rounds` of them, if that is fewer). configs: names of the
    configurations whose transactions are measured, "off" and "all" among them; none: every one.
    """

    opt: str = "bench"
    rounds: int = 7
    small: int = 1000
    large: int = 200
    connections: int = 10_000
    """Held at a time, for what each takes of memory."""
    setups: int = 2000
    """Connections of the software's setup rate."""
    uploads: int = 100
    relays: int = 60
    relay_rounds: int = 3
    idle: float = 0.5
    """Seconds that the idle host is watched."""
    seconds: float = 200.0
    seed: int = 1
    configs: tuple[str, ...] = ()

    @property
    def chosen(self) -> list[Config]:
        """The configurations."""
        return [config for config in CONFIGS if not self.configs or config.name in self.configs]


class Child:
    """A process that answers JSON lines with JSON lines."""

    def __init__(self, module: str, *arguments: str, log: Path, environment: dict[str, str] | None = None) -> None:
        self._name, self._log = module, log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=os.environ | (environment or {}),
            )  # fmt: skip

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command, wait for its answer. Raises `RuntimeError` with what the process said."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        output = self._process.stdout
        assert output is not None
        ready = select.select([output], [], [], _ANSWER_S)[0]
        line = output.readline() if ready else b""
        if not line:
            said = self._log.read_text().strip()
            raise RuntimeError(f"{self._name} {'ended' if ready else f'gave no answer for {_ANSWER_S} s'}: {said[-2000:]}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def complaints(self) -> str:
        """What it said on standard error."""
        return self._log.read_text().strip()

    def end(self) -> None:
        """Let it end by itself, or kill it."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Rig:
    """A simulated NIC on TAP and the load, for one host process after another.

    opt: how the model is compiled. folder: for sockets and logs.
    """

    load_module, host_module = "bench.host_load", "bench.host_server"

    def __init__(self, opt: str, folder: Path) -> None:
        self._opt, self._folder = opt, folder
        self._socket = folder / "nic.sock"
        self._hosts = 0
        self._device = self._start_device()
        try:
            for words in (f"link set {TAP} txqueuelen 20000 up", f"addr replace {HOST4}/24 dev {TAP}"):
                subprocess.run(["ip", *words.split()], check=True, timeout=20)
            self.load = Child(self.load_module, log=folder / "load.log")
        except BaseException:
            self.close()
            raise

    def _start_device(self) -> subprocess.Popen[bytes]:
        log = self._folder / "device.log"
        with log.open("w") as output:
            device = subprocess.Popen(
                [sys.executable, "-m", "acceltcp", "sim", "--socket", str(self._socket), "--tap", TAP, "--opt", self._opt],
                stdout=output, stderr=output,
            )  # fmt: skip
        started = time.monotonic()
        while not self._socket.exists():
            if device.poll() is not None or time.monotonic() - started > _START_S:
                device.kill()
                raise RuntimeError(f"the simulated NIC did not come up: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        return device

    @contextlib.contextmanager
    def host(self, config: Config, environment: dict[str, str] | None = None) -> Iterator[Child]:
        """A host process. What it logs is an error."""
        self._hosts += 1
        child = Child(
            self.host_module, "--device", f"vfio-user:{self._socket}", "--mac", MAC, "--address", f"{NIC4}/24",
            "--interval", str(_INTERVAL_TICKS), "--config", config.json(),
            log=self._folder / f"host-{self._hosts}-{config.name}.log", environment=environment,
        )  # fmt: skip
        try:
            child.answer()
            yield child
        except RuntimeError as error:
            said = child.complaints()
            raise RuntimeError(f"{config.what}: {error}" + (f"; the host process said: {said[-2000:]}" if said else "")) from None
        finally:
            child.end()
        if child.complaints():
            raise RuntimeError(f"the host process ({config.what}) complained: {child.complaints()[-2000:]}")

    def close(self) -> None:
        """End device and load."""
        if hasattr(self, "load"):
            self.load.end()
        self._device.terminate()
        try:
            self._device.wait(10)
        except subprocess.TimeoutExpired:
            self._device.kill()
            self._device.wait()


@dataclass
class _Cost:
    """What the host process did for `count` transactions, per transaction."""

    cpu: float
    received: float
    sent: float
    commands: float
    batch: float
    """Packets per batch."""
    retransmissions: float
    copied: float


@dataclass
class _Idle:
    """What the host process spends without work: CPU seconds per second, and to answer `mark`."""

    rate: float
    mark: float


def _spend(rig: Rig, host: Child, idle: _Idle, count: int, **command: Any) -> _Cost:
    """Run a command of the load and take what it cost the host, idle time not counted."""
    host.ask(do="settle", seconds=_SETTLE_S)
    before = host.ask(do="mark")
    rig.load.ask(count=count, **command)
    if command["do"] == "hold":  # these never end: all packets have been dealt with shortly
        time.sleep(_HELD_S)
        after = host.ask(do="mark")
    else:
        after = host.ask(do="settle", seconds=_SETTLE_S)
        if after["tcp"]["open"]:
            raise RuntimeError(f"{after['tcp']['open']} connections are still open {_SETTLE_S:g} s after {command}")

    def grown(name: str, group: str = "queue") -> float:
        return float(after[group][name] - before[group][name])

    return _Cost(
        cpu=(after["cpu"] - before["cpu"] - idle.mark - idle.rate * (after["wall"] - before["wall"])) / count,
        received=grown("rx") / count,
        sent=grown("tx") / count,
        commands=grown("commands") / count,
        batch=grown("rx") / max(grown("batches"), 1),
        retransmissions=grown("retransmissions", "tcp") / count,
        copied=(after["copied"] - before["copied"]) / count,
    )


def _warm(rig: Rig, plan: Plan, host: Child) -> _Idle:
    """First connections, with whatever is made only once, and then what an idle host costs."""
    for size, port in PORTS.items():
        count = min(_CONCURRENCY[size], plan.small)
        rig.load.ask(do="short", port=port, count=count, concurrency=count, response=size)
    host.ask(do="settle", seconds=_SETTLE_S)
    marks = [host.ask(do="mark")["cpu"] for _ in range(4)]
    mark = float(marks[-1] - marks[0]) / (len(marks) - 1)
    before = host.ask(do="mark")
    time.sleep(plan.idle)
    after = host.ask(do="mark")
    return _Idle(max(float(after["cpu"] - before["cpu"]) - mark, 0.0) / float(after["wall"] - before["wall"]), mark)


def _short(rig: Rig, host: Child, idle: _Idle, size: int, count: int) -> _Cost:
    return _spend(rig, host, idle, count, do="short", port=PORTS[size], concurrency=_CONCURRENCY[size], response=size)


def _tell(text: str) -> None:
    print(json.dumps({"step": text}), flush=True)


def _rounds(rig: Rig, plan: Plan) -> tuple[dict[str, dict[int, list[_Cost]]], list[float]]:
    """Costs by configuration and size, one of each per round, and the application's own CPU time."""
    costs: dict[str, dict[int, list[_Cost]]] = {config.name: {SMALL: [], LARGE: []} for config in plan.chosen}
    application: list[float] = []
    order = random.Random(plan.seed)
    started = time.monotonic()
    for number in range(plan.rounds):
        if number >= 2 and time.monotonic() - started > plan.seconds:
            break
        for config in order.sample(plan.chosen, len(plan.chosen)):
            _tell(f"round {number + 1} of {plan.rounds}: {config.what}")
            with rig.host(config) as host:
                idle = _warm(rig, plan, host)
                for size, count in ((SMALL, plan.small), (LARGE, plan.large)):
                    costs[config.name][size].append(_short(rig, host, idle, size, count))
                application.append(host.ask(do="application", count=plan.small)["cpu"])
    return costs, application


def _short_figures(plan: Plan, costs: dict[str, dict[int, list[_Cost]]], application: float) -> dict[str, float]:
    results: dict[str, float] = {}
    for size, suffix in ((SMALL, ""), (LARGE, "_16KB")):
        for config in plan.chosen:
            values = [cost.cpu * 1e6 for cost in costs[config.name][size]]
            results[f"host.us_per_short_transaction{suffix}_{config.name}"] = statistics.median(values)
            results[f"host.spread{suffix}_{config.name}"] = (max(values) - min(values)) / 2 / statistics.median(values)
        pairs = [(off.cpu, on.cpu) for off, on in zip(costs[OFF.name][size], costs[ALL.name][size], strict=True)]
        ratios = [off / on for off, on in pairs]
        results[f"host.short_ratio{suffix}"] = statistics.median(ratios)
        if PLAIN in plan.chosen:
            plain = [one.cpu / on.cpu for one, on in zip(costs[PLAIN.name][size], costs[ALL.name][size], strict=True)]
            results[f"host.short_ratio{suffix}_plain"] = statistics.median(plain)
        results[f"host.short_ratio{suffix}_lowest"] = min(ratios)
        results[f"host.tcp_cpu_saved{suffix}"] = statistics.median(1 - (on - application) / (off - application) for off, on in pairs)
    results["host.us_application"] = application * 1e6
    for config in (OFF, ALL):
        for size, suffix in ((SMALL, ""), (LARGE, "_16KB")):
            every = costs[config.name][size]
            for name, value in (
                ("packets_received", [cost.received for cost in every]),
                ("packets_sent", [cost.sent for cost in every]),
                ("packets_per_batch", [cost.batch for cost in every]),
                ("retransmissions", [cost.retransmissions for cost in every]),
            ):
                results[f"host.{name}{suffix}_{config.name}"] = statistics.median(value)
    return results


def _memory(rig: Rig, plan: Plan) -> dict[str, float]:
    """Memory of connections, and what setting up costs."""
    results: dict[str, float] = {}
    for name, port, response in (("idle", HOLD, 0), ("active", KEEP, SMALL)):
        _tell(f"{plan.connections:,} {name} connections")
        with rig.host(ALL) as host:
            idle = _warm(rig, plan, host)
            before = host.ask(do="mark")
            cost = _spend(rig, host, idle, plan.connections, do="hold", port=port, concurrency=_CONCURRENCY[SMALL], response=response)
            after = host.ask(do="mark")
            grown = after["tcp"]["open"] - before["tcp"]["open"]
            if grown != plan.connections:
                raise RuntimeError(f"{plan.connections} clients are connected, the host knows {grown} of them")
            results[f"host.bytes_per_{name}_connection"] = (after["rss"] - before["rss"]) / plan.connections
            if not response:
                results["host.setups_per_cpu_second_all"] = 1 / cost.cpu
        rig.load.ask(do="release")
    _tell("connection setup in software")
    with rig.host(OFF) as host:
        idle = _warm(rig, plan, host)
        cost = _spend(rig, host, idle, plan.setups, do="hold", port=HOLD, concurrency=_CONCURRENCY[SMALL], response=0)
        results["host.setups_per_cpu_second_off"] = 1 / cost.cpu
    rig.load.ask(do="release")
    return results


def copy_counter() -> Path:
    """The library that counts copies, compiled. Raises `RuntimeError` where it cannot be."""
    flags = ["-O2", "-fPIC", "-shared", "-fno-builtin", "-fno-tree-loop-distribute-patterns"]
    name = f"copies-{content_hash([_COPIES, *flags])}.so"

    def build(directory: Path) -> None:
        done = subprocess.run(
            ["gcc", *flags, "-o", str(directory / name), str(_COPIES), "-ldl"], capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"gcc could not compile {_COPIES.name}: {done.stderr}")

    return build_once(cache_directory() / "bench" / name, build)


def _copies(rig: Rig, plan: Plan) -> dict[str, float]:
    """Bytes copied per byte: a small transaction's are taken off."""
    results: dict[str, float] = {}
    preload = {"LD_PRELOAD": str(copy_counter())}
    for config in (config for config in CONFIGS if config.name in (ALL.name, "no_zero_copy", "no_direct")):
        _tell(f"bytes copied: {config.what}")
        with rig.host(config, preload) as host:
            idle = _warm(rig, plan, host)
            small = _short(rig, host, idle, SMALL, plan.uploads).copied
            if config.name != "no_direct":
                up = _spend(rig, host, idle, plan.uploads, do="uploads", port=UPLOADS, concurrency=8, response=SMALL)
                results[f"host.bytes_copied_per_byte_received_{config.name}"] = (up.copied - small) / _RELAYED
            if config.name != "no_zero_copy":
                down = _short(rig, host, idle, LARGE, plan.uploads)
                results[f"host.bytes_copied_per_byte_sent_{config.name}"] = (down.copied - small) / LARGE
    return results


def _relayed(rig: Rig, plan: Plan) -> dict[str, float]:
    """CPU of a response of 64 KB through two connections."""
    rig.load.ask(do="backend", port=BACKEND, response=_RELAYED)
    values = []
    for number in range(plan.relay_rounds):
        _tell(f"relay, round {number + 1} of {plan.relay_rounds}")
        with rig.host(ALL) as host:
            idle = _warm(rig, plan, host)
            rig.load.ask(do="short", port=RELAY, count=4, concurrency=4, response=_RELAYED)
            values.append(_spend(rig, host, idle, plan.relays, do="short", port=RELAY, concurrency=16, response=_RELAYED).cpu)
    return {"host.us_per_relayed_64KB": statistics.median(values) * 1e6}


def main() -> int:
    """Run the plan; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.host_rig")
    parser.add_argument("--plan", default="{}", help="JSON of a Plan")
    plan = Plan(**json.loads(parser.parse_args().plan))
    try:
        with tempfile.TemporaryDirectory(prefix="acceltcp-") as name:
            folder = Path(name)
            _tell("starting the simulated NIC (the first time compiles the RTL)")
            rig = Rig(plan.opt, folder)
            try:
                costs, application = _rounds(rig, plan)
                results = _short_figures(plan, costs, statistics.median(application))
                results |= _relayed(rig, plan)
                results |= _memory(rig, plan)
                results |= _copies(rig, plan)
            finally:
                rig.close()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"bench.host_rig: {error}", file=sys.stderr)
        return 1
    rounds = {config: {str(size): [dataclasses.asdict(cost) for cost in every] for size, every in sizes.items()} for config, sizes in costs.items()}
    print(json.dumps({"results": results, "rounds": rounds}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
