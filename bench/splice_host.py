"""The processes of `acceltcp bench splice` in a network namespace: the simulated NIC, clients with the back end, and the proxy.

`python -m bench.splice_host --plan JSON` (started by `sim.stage.reexec`) runs a `Plan` and prints JSON lines: `{"step": TEXT}` as it
goes on, `{"results": {...}}` at the end.

One proxy process serves everything. In a round each kind of work is done spliced and relayed, one right after the other and which
first by chance, so that what a busy machine adds it mostly adds to both; ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .host_configs import Config
from .host_rig import Child, Rig
from .splice_server import BACKEND, MODES

__all__ = ["KINDS", "LARGE", "PLOTTED", "RESPONSE", "SIZES", "WAYS", "Plan", "label", "main", "name_of", "suffix"]

WAYS = ("spliced", "relayed")
KINDS = ("connection", "response", "head", "once")
"""As in `MODES`. The first one is what the figures are mainly about."""
RESPONSE, LARGE = 64 << 10, 10_000_000
PLOTTED = ("connection", "response")
"""Those that are measured over sizes."""
SIZES = (1 << 10, 4 << 10, 16 << 10, RESPONSE, 256 << 10, 1 << 20, LARGE)
"""Of responses, for the plot; what the figures are about are among them."""
_PROXY = Config("proxy", "the proxy", True, True)
_SETTLE_S = 20.0
_QUIET_S = 0.2
"""After connections were opened: the proxy has connected to the back end by then."""


def label(size: int) -> str:
    """A size as it stands in figures' names."""
    return f"{size // 1_000_000}MB" if size % 1_000_000 == 0 else f"{size >> 20}MB" if size >= 1 << 20 else f"{size >> 10}KB"


@dataclass(frozen=True)
class Plan:
    """How much is measured. opt: how the model is compiled. seed: of the order.

    rounds: at most, begun within `seconds`, but two at least (or `rounds`). octets: about so many per measurement, in one response at
    least and `most` at most, on up to `connections` connections at once. "connection": on `visitors` connections at once, `visit`
    responses on each, or less of larger ones than `RESPONSE`, to about the same number of bytes. sizes: of responses of
    "connection" and "response"; the other kinds get `RESPONSE` alone.
    """

    opt: str = "bench"
    rounds: int = 5
    seconds: float = 420.0
    connections: int = 16
    octets: int = 4 << 20
    most: int = 320
    visitors: int = 2
    visit: int = 100
    sizes: tuple[int, ...] = SIZES
    seed: int = 1

    def json(self) -> str:
        """For `python -m bench.splice_host`."""
        return json.dumps(asdict(self))

    def shape(self, kind: str, size: int) -> tuple[int, int]:
        """Connections, and responses on each, of `size` bytes."""
        if kind == "connection":
            return self.visitors, max(self.visit * min(RESPONSE, size) // size, 1)
        total = min(max(self.octets // size, 1), self.most)
        connections = min(self.connections, total)
        return (total, 1) if kind == "once" else (connections, max(total // connections, 1))

    @property
    def work(self) -> list[tuple[str, int]]:
        """Kinds, and sizes of each."""
        return [(kind, size) for kind in KINDS for size in (self.sizes if kind in PLOTTED else (RESPONSE,))]


@dataclass
class _Cost:
    """Of one response: µs of CPU time, packets that the proxy got and sent."""

    cpu: float
    packets: float


class _Bench:
    """Measures one kind of work after the other with one proxy."""

    def __init__(self, rig: Rig, host: Child) -> None:
        self._load, self._host = rig.load, host
        self._mark_cpu = 0.0

    def warm(self) -> None:
        """Everything once, and then what a mark costs."""
        self._load.ask(do="backend", port=BACKEND)
        for kind in KINDS:
            for way in WAYS:
                self.cost(kind, way, RESPONSE, (2, 1 if kind == "once" else 2), 2)
        marks = [self._host.ask(do="mark")["cpu"] for _ in range(4)]
        self._mark_cpu = float(marks[-1] - marks[0]) / (len(marks) - 1)

    def cost(self, kind: str, way: str, size: int, shape: tuple[int, int], concurrency: int) -> _Cost:
        """Of one response. Connections that the proxy joins for each response are opened before and closed behind; where it joins them
        for good, opening, joining and closing count."""
        mode = MODES[f"{way}_{kind}"]
        connections, each = shape
        responses = connections * each
        count = connections if mode.whole else responses
        before = self._host.ask(do="settle", seconds=_SETTLE_S)
        if mode.whole:
            self._load.ask(do="visit", port=mode.port, count=connections, each=each, size=size, concurrency=concurrency)
            self._host.ask(do="joined", count=sum(before["joined"].values()) + count, seconds=_SETTLE_S)
            after = self._host.ask(do="settle", seconds=_SETTLE_S)
        else:
            self._load.ask(do="open", port=mode.port, count=connections)
            time.sleep(_QUIET_S)
            before = self._host.ask(do="mark")
            self._load.ask(do="keep", count=each, size=size)
            after = self._host.ask(do="joined", count=sum(before["joined"].values()) + count, seconds=_SETTLE_S)
            self._load.ask(do="close")
        joined = {name: number - before["joined"].get(name, 0) for name, number in after["joined"].items()}
        spliced = joined.get("spliced", 0)
        # A small response may have come with its head.
        wrong = (spliced != count and not mode.head) if mode.spliced else spliced
        if wrong or sum(joined.values()) != count:
            raise RuntimeError(f"{responses} responses of {size} bytes on {connections} connections ({mode}) were joined as {joined}")
        cpu = after["cpu"] - before["cpu"] - self._mark_cpu
        packets = sum(after["queue"][name] - before["queue"][name] for name in ("rx", "tx"))
        return _Cost(cpu * 1e6 / responses, packets / responses)


def _tell(text: str) -> None:
    print(json.dumps({"step": text}), flush=True)


def _rounds(plan: Plan, bench: _Bench) -> dict[tuple[str, int], list[dict[str, _Cost]]]:
    """Costs by kind and size; of each round, by way."""
    work = plan.work
    costs: dict[tuple[str, int], list[dict[str, _Cost]]] = {each: [] for each in work}
    order, started = random.Random(plan.seed), time.monotonic()
    for number in range(plan.rounds):
        if number >= 2 and time.monotonic() - started > plan.seconds:
            break
        for kind, size in order.sample(work, len(work)):
            _tell(f"round {number + 1} of {plan.rounds}: {label(size)} ({kind})")
            ways = order.sample(WAYS, 2)
            shape = plan.shape(kind, size)
            costs[kind, size].append({way: bench.cost(kind, way, size, shape, min(shape[0], plan.connections)) for way in ways})
    return costs


def suffix(kind: str, size: int) -> str:
    """Behind the names of a kind's ratios: nothing for what `acceltcp bench splice` is mainly about."""
    return ("" if size == RESPONSE else f"_{label(size)}") + ("" if kind == KINDS[0] else f"_{kind}")


def name_of(kind: str, size: int) -> str:
    """What the other figures are called."""
    return label(size) + ("" if kind == KINDS[0] else f"_{kind}")


def _figures(costs: dict[tuple[str, int], list[dict[str, _Cost]]]) -> dict[str, float]:
    results: dict[str, float] = {}
    for (kind, size), rounds in costs.items():
        name = name_of(kind, size)
        for way in WAYS:
            cpu = [each[way].cpu for each in rounds]
            results[f"host.us_per_{way}_{name}"] = statistics.median(cpu)
            results[f"host.spread_{way}_{name}"] = (max(cpu) - min(cpu)) / 2 / statistics.median(cpu)
            results[f"host.packets_per_{name}_{way}"] = statistics.median(each[way].packets for each in rounds)
        ratios = [each["relayed"].cpu / each["spliced"].cpu for each in rounds]
        behind = suffix(kind, size)
        results[f"host.splice_ratio{behind}"] = statistics.median(ratios)
        results[f"host.splice_ratio_lowest{behind}"] = min(ratios)
        results[f"host.splice_ratio_highest{behind}"] = max(ratios)
        results["host.splice_rounds"] = len(rounds)
    return results


def main() -> int:
    """Run the plan; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.splice_host")
    parser.add_argument("--plan", default="{}", help="JSON of a Plan")
    plan = Plan(**json.loads(parser.parse_args().plan))

    class SpliceRig(Rig):
        load_module, host_module = "bench.splice_load", "bench.splice_server"

    try:
        with tempfile.TemporaryDirectory(prefix="acceltcp-") as name:
            _tell("starting the simulated NIC (the first time compiles the RTL)")
            rig = SpliceRig(plan.opt, Path(name))
            try:
                with rig.host(_PROXY) as host:
                    bench = _Bench(rig, host)
                    bench.warm()
                    results = _figures(_rounds(plan, bench))
            finally:
                rig.close()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"bench.splice_host: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"results": results}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
