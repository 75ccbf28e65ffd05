"""`acceltcp bench host`: what TCP costs the host's CPU, with and without the NIC's offloads.

**Rig.** Three processes in a network namespace of their own: the Verilated core behind vfio-user and a TAP interface; plain kernel
clients (`bench.host_load`); and the host process (`bench.host_server`), whose CPU time alone (user and system,
`time.process_time`) is taken between two marks at which no connection is open. The CPU time of an idle host of the same length is
subtracted, start and first connections are not counted. Interrupts are moderated to one in 40 ms, so that the host meets batches as
it would behind a fast NIC; the batch sizes that came of it are among the figures. They are smaller with offloads on than off, as fewer
packets come from the same slow NIC, which counts against the offloads. Every configuration runs in a fresh process, in
rounds, in random order within a round; figures are medians over rounds, ratios medians of the rounds' ratios (what a
busy machine adds in one round, it mostly adds to both), `spread` half the range over the median: a difference between two configurations that is
smaller than their spreads is not resolved.

**Short transaction.** Connect, 64 bytes of request, a response of 128 bytes (or 16 KiB), closed by the server. The application
uses `TcpConnection` itself and closes right after it has written. With setup in the NIC the listener defers connections to their first data.

**Host.** Everything that the process does: driver, event loop, TCP, application. `host.us_application` is the
application alone, measured in the same processes with a connection that does nothing. TCP's CPU time is the process's less
the application's, and `host.tcp_cpu_saved` is 1 - TCP's with all offloads / TCP's without: the driver counts as TCP.

**Relay.** `acceltcp.host.relay` between a client's connection and one to a kernel server that answers 64 KiB; both connections' setup
and close count.

**Memory.** Growth of the resident set over thousands of connections that stay open: idle (the handshake and nothing else), or active
(a request has been answered on it).

**Copies.** Calls of memcpy and memmove of 512 bytes and more anywhere in the host process, counted by a library in front of the C
library, over the bytes that the application got (64 KiB uploads) or sent (16 KiB responses); what a small transaction copies is taken off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hw.plots import drawing, save
from sim.stage import StageError, reexec

from .goals import Goal
from .host_configs import ALL, CONFIGS, OFF
from .host_rig import Plan

__all__ = ["GOALS", "TITLE", "measure", "plot", "run_rig"]

TITLE = "The host's CPU time per transaction; the NIC is the Verilated core in another process"

_TIMEOUT_S = 1800
"""The first run compiles the RTL."""


def _goals() -> dict[str, Goal]:
    """In the order in which they are printed."""
    goals = {}
    for suffix, response in (("", "128 bytes"), ("_16KB", "16 KiB")):
        for config in CONFIGS:
            goals[f"host.us_per_short_transaction{suffix}_{config.name}"] = Goal(f"CPU of request, {response} and close, µs: {config.what}")
    goals["host.us_application"] = Goal("of it the application's own, µs")
    for suffix, response in (("", "128 bytes"), ("_16KB", "16 KiB")):
        only_small = not suffix
        goals[f"host.short_ratio{suffix}"] = Goal(f"all offloads off / all on, responses of {response}", least=2.3 if only_small else None)
        goals[f"host.short_ratio{suffix}_plain"] = Goal(f"the same with an ordinary stack in the host as the baseline, {response}")
        goals[f"host.short_ratio{suffix}_lowest"] = Goal("the same, lowest round")
        goals[f"host.tcp_cpu_saved{suffix}"] = Goal(f"share of TCP's CPU time that all offloads save, {response}", least=0.75 if only_small else None)
    goals["host.us_per_relayed_64KB"] = Goal("CPU of a 64 KiB response through two connections in software, µs")
    goals["host.setups_per_cpu_second_all"] = Goal("connections set up per second of host CPU, by the NIC")
    goals["host.setups_per_cpu_second_off"] = Goal("the same by the host")
    goals["host.bytes_per_idle_connection"] = Goal("memory of a connection that nothing came on")
    goals["host.bytes_per_active_connection"] = Goal("memory of a connection on which a request was answered")
    goals["host.bytes_copied_per_byte_received_all"] = Goal("copies of each byte from the ring to the application")
    goals["host.bytes_copied_per_byte_received_no_zero_copy"] = Goal("the same with zero-copy off")
    goals["host.bytes_copied_per_byte_sent_all"] = Goal("copies of each byte from the application to the frame")
    goals["host.bytes_copied_per_byte_sent_no_direct"] = Goal("the same, responses not built in the transmit buffer")
    for config in (OFF, ALL):
        for suffix, response in (("", "128 bytes"), ("_16KB", "16 KiB")):
            what = f"per transaction, {response}, {config.what}"
            goals[f"host.packets_received{suffix}_{config.name}"] = Goal(f"packets that the host gets {what}")
            goals[f"host.packets_sent{suffix}_{config.name}"] = Goal(f"packets that it sends {what}")
            goals[f"host.packets_per_batch{suffix}_{config.name}"] = Goal(f"packets per batch, {response}, {config.what}")
            goals[f"host.retransmissions{suffix}_{config.name}"] = Goal(f"retransmissions {what}")
    for suffix, response in (("", "128 bytes"), ("_16KB", "16 KiB")):
        for config in CONFIGS:
            goals[f"host.spread{suffix}_{config.name}"] = Goal(f"half the range of the rounds over the median, {response}, {config.what}")
    return goals


GOALS = _goals()
"""Key -> what it is and what it should be, in the order in which they are printed."""


def run_rig(module: str, plan: str, step: Callable[[str], None]) -> dict[str, Any]:
    """Run the rig that `module` is in a namespace of its own, with `plan` as JSON; its last line. What it says meanwhile goes to `step`.

    Raises `RuntimeError` when it fails.
    """
    last: dict[str, Any] = {}

    def listen(stream: int) -> None:
        with os.fdopen(stream) as lines:
            for line in lines:
                answer = json.loads(line)
                if "step" in answer:
                    step(answer["step"])
                else:
                    last.update(answer)

    ours, theirs = os.pipe()
    listener = threading.Thread(target=listen, args=(ours,), daemon=True)
    listener.start()
    try:
        done = reexec(["-m", module, "--plan", plan], stdout=theirs, stderr=subprocess.PIPE, timeout=_TIMEOUT_S)
    except StageError as error:
        raise RuntimeError(str(error)) from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the rig did not end within {_TIMEOUT_S} s") from None
    finally:
        os.close(theirs)
        listener.join(10)
    if done.returncode or "results" not in last:
        raise RuntimeError(f"the rig failed: {done.stderr.strip()}")
    if done.stderr:
        print(done.stderr, end="", file=sys.stderr)
    return last


def measure(step: Callable[[str], None] = lambda text: None, *, plan: Plan | None = None) -> dict[str, float]:
    """All figures, by key; without those of configurations that `plan` leaves out. `step` is told what comes next."""
    results = run_rig("bench.host_rig", json.dumps(asdict(plan or Plan())), step)["results"]
    return {key: float(results[key]) for key in GOALS if key in results}


def plot(results: dict[str, float], file: Path) -> list[Path]:
    """Draw CPU time per transaction by configuration, the application's share apart, as PNG and as SVG beside it.

    results: figures as of `measure`. file: its suffix does not count. Returns the files written.
    """
    pyplot = drawing()
    figure, both = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    application = results["host.us_application"]
    for axes, suffix, response in zip(both, ("", "_16KB"), ("128 bytes", "16 KiB"), strict=True):
        values = [results[f"host.us_per_short_transaction{suffix}_{config.name}"] for config in CONFIGS]
        spreads = [results[f"host.spread{suffix}_{config.name}"] for config in CONFIGS]
        places = range(len(CONFIGS))
        axes.barh(places, [application] * len(CONFIGS), color="#9a9a9a", label="application")
        axes.barh(
            places, [value - application for value in values], left=application, color="#2f6f9f", label="TCP, driver, event loop",
            xerr=[value * spread for value, spread in zip(values, spreads, strict=True)], ecolor="#444444",
        )  # fmt: skip
        axes.set_yticks(places, [config.what.replace(", but not: ", ", without\n") for config in CONFIGS], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("µs of host CPU (lines: half the range)")
        axes.set_title(f"response of {response}: off / on = {results[f'host.short_ratio{suffix}']:.2f}", fontsize=10)
    both[1].set_yticklabels([])
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return save(figure, file)
