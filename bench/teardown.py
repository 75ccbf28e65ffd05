"""`acceltcp bench teardown`: connection table and connection teardown.

Cycles are counted on the Verilated core (width 64, host memory that answers after 250 cycles, about
a PCIe round trip at 250 MHz) or, for the table's own figures, on the Verilated table alone. The
timers are measured with every flow of the U50's configuration armed, at 25,000 cycles a tick: 250 MHz.
Host packets are counted with real kernel clients in a network namespace.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from acceltcp.abi.registers import TIMER_TICKS
from acceltcp.abi.wire import TCPFlag
from hw.build import board_config
from hw.config import SLOT_BITS, NicConfig
from sim.device import Shell, Stop, open_nic
from sim.stage import StageError, reexec

from . import table
from .flow_rig import FlowRig
from .goals import Goal

__all__ = ["GOALS", "TITLE", "measure"]

TITLE = "Connection table and teardown; cycles on the Verilated core, width 64"

CLOCK_MHZ = 250
CYCLES_PER_TICK = CLOCK_MHZ * 100
PCIE_LATENCY = 250
SPREAD_STEPS = 16
"""Deadlines of the timer measurement lie in that many timer steps (of 0.4 ms)."""
FIRST_DEADLINE = 24
LATE_STEPS = 32
"""Timer steps after the last deadline by which every flow must have been served."""

GOALS = {
    "table.lookups_per_cycle": Goal("look-ups per cycle, while entries come and move", least=1.0),
    "table.load_factor_first_refusal": Goal("share of slots in use at the first refusal, the lower of both kinds of keys", least=0.90),
    "table.load_factor_first_refusal_random": Goal("the same, random keys", least=0.90),
    "table.load_factor_first_refusal_attack": Goal("the same, neighbouring addresses and ports", least=0.90),
    "table.insert_cycles_p50": Goal("cycles of an insertion, median, filling up to every flow"),
    "table.insert_cycles_p99": Goal("the same, 99th percentile"),
    "teardown.concurrent_flows_u50": Goal("flows that the U50's configuration holds", least=262_144),
    "teardown.uram_u50": Goal("Ultra RAM blocks of table and flow state, of the part's 640 (Yosys)", most=640),
    "teardown.bram36_u50": Goal("block RAMs of both (Yosys)"),
    "teardown.bits_per_flow": Goal("bits of memory per flow: its share of the table, and its state"),
    "teardown.close_per_cycle": Goal("CLOSE commands taken per cycle"),
    "teardown.acks_per_cycle": Goal("segments of 60 bytes for random flows per cycle"),
    "teardown.acks_per_cycle_one_flow": Goal("the same, all for one flow"),
    "teardown.final_fin_per_cycle": Goal("FINs answered, each the end of a flow, per cycle"),
    "teardown.timer_error_ms_p99": Goal("from deadline to retransmission on the wire, all flows armed, 99th percentile", most=10),
    "teardown.timer_error_ms_max": Goal("the same, longest"),
    "host.packets_per_short_connection": Goal("packets that the host handles per request, response and close"),
    "host.packets_per_short_connection_software": Goal("the same without teardown in the NIC"),
}
"""Key -> what it is and what it should be, in the order in which they are printed."""


def _spent(shell: Shell, frames: list[bytes]) -> int:
    """Cycles until the core is done with these frames."""
    start = shell.cycle
    shell.rx_many(0, frames)
    shell.run(1_000_000)
    return shell.cycle - start


def _segments(config: NicConfig, opt: str, count: int) -> dict[str, float]:
    """Rates of everything that segments of flows do."""
    with FlowRig(open_nic(config, opt=opt, read_latency=PCIE_LATENCY, write_latency=PCIE_LATENCY, quiet=True), count) as rig:
        shell = rig.shell
        shell.set_tx_keep(False)
        start = shell.cycle
        rig.close_flows(range(count // 4), rto=16_000)
        first = shell.cycle
        rig.close_flows(range(count // 4, count), rto=16_000)
        closes = (count - 2 * (count // 4)) / (shell.cycle - first - (first - start))
        before = rig.counters()

        # Two runs of different length: what is before and behind the packets cancels out.
        order = [k * 7919 % count for k in range(count)]
        parts = (order[: count // 4], order[count // 4 :])
        net = count - 2 * (count // 4)
        spent = [_spent(shell, rig.segments(part, TCPFlag.ACK)) for part in parts]
        acks = net / (spent[1] - spent[0])
        spent = [_spent(shell, rig.segments([1] * len(part), TCPFlag.ACK)) for part in parts]
        one = net / (spent[1] - spent[0])
        sent = shell.counters().tx_frames[0]
        spent = [_spent(shell, rig.segments(part, TCPFlag.ACK | TCPFlag.FIN)) for part in parts]
        fins = net / (spent[1] - spent[0])
        after = rig.counters()
        grown = {name: after[name] - before[name] for name in after}
        wanted = {"flow_packets": 3 * count, "flow_closed": count, "flow_acks": count, "flow_drop_busy": 0, "flow_reply_busy": 0}
        found = {name: grown[name] for name in wanted}
        if found != wanted or shell.counters().tx_frames[0] - sent != count:
            raise RuntimeError(f"segments went in for {wanted}, the NIC counted {found}")
        shell.check()
    return {
        "teardown.close_per_cycle": closes,
        "teardown.acks_per_cycle": acks,
        "teardown.acks_per_cycle_one_flow": one,
        "teardown.final_fin_per_cycle": fins,
    }


def _timers(config: NicConfig, opt: str, step: Callable[[str], None]) -> dict[str, float]:
    """All flows armed; from each one's deadline to its retransmission on the wire."""
    count = config.flows
    with FlowRig(open_nic(config, opt=opt, read_latency=PCIE_LATENCY, write_latency=PCIE_LATENCY, quiet=True), count) as rig:
        shell = rig.shell
        for first in range(0, count, 16384):
            step(f"timers: arming flow {first:,} of {count:,}")
            rig.close_flows(range(first, min(first + 16384, count)), rto=FIRST_DEADLINE, spread=SPREAD_STEPS)
        if shell.tx():
            raise RuntimeError("frames that the host had sent before were sent again")
        began = {}
        last = FIRST_DEADLINE + SPREAD_STEPS + LATE_STEPS
        errors: list[int] = []
        seen: set[int] = set()
        for tick in range(1, last * TIMER_TICKS + 1):
            shell.tick(1)
            began[tick] = shell.cycle
            # Up to the first deadline nothing is due; time need not take its time.
            shell.run(CYCLES_PER_TICK if tick >= (FIRST_DEADLINE - 4) * TIMER_TICKS else 500, Stop.NOTHING)
            step(f"timers: {len(seen):,} of {count:,} served")
            for frame in shell.tx():
                index = int.from_bytes(frame.data[38:42], "big") // 16
                if index not in seen:
                    seen.add(index)
                    errors.append(frame.first_cycle - began[(FIRST_DEADLINE + index % SPREAD_STEPS) * TIMER_TICKS])
            if len(seen) == count:
                break
        if len(seen) != count:
            raise RuntimeError(f"only {len(seen):,} of {count:,} timers were served {LATE_STEPS * TIMER_TICKS / 10:g} ms after the last deadline")
        if min(errors) < 0:
            raise RuntimeError(f"a timer was served {-min(errors)} cycles before its deadline")
        shell.check()
    errors.sort()
    ms = [error / (CLOCK_MHZ * 1000) for error in (errors[len(errors) * 99 // 100], errors[-1])]
    return {"teardown.timer_error_ms_p99": ms[0], "teardown.timer_error_ms_max": ms[1]}


def _memory(config: NicConfig) -> dict[str, float]:
    """What the flows cost in the U50's part: mapped by Yosys, and counted in bits."""
    from hw.build import memory_usage
    from hw.tcp.flow import flow_layout

    with tempfile.TemporaryDirectory(prefix="acceltcp-") as folder:
        usage = memory_usage(config, Path(folder))
    slot = min(SLOT_BITS, 1 + 2 + config.table.index_bits + config.table.digest_bits)
    return {
        "teardown.concurrent_flows_u50": config.flows,
        "teardown.uram_u50": usage.uram,
        "teardown.bram36_u50": usage.bram,
        "teardown.bits_per_flow": config.table.slots * slot / config.flows + flow_layout(config).size,
    }


def _host(count: int) -> dict[str, float]:
    """Packets per connection, with real clients."""
    try:
        done = reexec(["-m", "sim.short", "--count", str(count)], stdout=subprocess.PIPE, timeout=900)
    except StageError as error:
        raise RuntimeError(str(error)) from None
    if done.returncode:
        raise RuntimeError("the measurement with real clients failed (see above)")
    work = json.loads(done.stdout)
    return {
        f"host.packets_per_short_connection{suffix}": (work[name]["received"] + work[name]["sent"]) / work[name]["connections"]
        for name, suffix in (("offload", ""), ("software", "_software"))
    }


def measure(
    step: Callable[[str], None] = lambda text: None, *, config: NicConfig | None = None, opt: str = "bench", count: int = 4000, connections: int = 100
) -> dict[str, float]:
    """All figures, by key. `step` is told what comes next; `opt` is how the models are compiled.

    config: the core instead of the U50's. count: flows of the rates. connections: short ones, each way.
    """
    full = config or board_config("alveo_u50")
    step("connection table alone")
    results = table.measure(full.table, step=step)
    step("memory of the U50's configuration (Yosys)")
    results |= _memory(full)
    step("building the core (kept for the next time)")
    count = min(count, full.flows)
    results |= _segments(replace(full, flows=max(4096, min(full.flows, 4096))) if config is None else full, opt, count)
    results |= _timers(full, opt, step)
    step("short connections of real clients")
    results |= _host(connections)
    return {key: results[key] for key in GOALS}
