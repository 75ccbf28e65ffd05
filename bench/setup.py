"""`acceltcp bench setup`: what connection setup and the rings cost, in clock cycles.

Everything is counted on the Verilated core at width 64 under saturation, in a window that
opens after the pipelines have filled. AXI memory answers after 250 cycles, about a PCIe
round trip at 250 MHz; keys with `_lat4` are the same at 4 cycles.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

from acceltcp.abi.wire import ETHERNET, IPV4, TCP, EtherType, IPProtocol, TCPFlag
from hw.config import NicConfig
from sim.device import LogKind, Shell, open_nic
from sim.flood import checksum, syn_frames

from .goals import Goal
from .rig import ADDRESS, CLIENT_MAC, MAC, PORT_NUMBER, Rig

__all__ = ["GOALS", "TITLE", "client", "measure", "rate", "segment"]

TITLE = "Connection setup and rings, cycles on the Verilated core, width 64"

WIDTH = 64
SEED = 1
PCIE_LATENCY, SHORT_LATENCY = 250, 4
BEATS_1514 = -(-1514 // WIDTH)

GOALS = {
    "setup.syn_per_cycle": Goal("SYNs of 74 bytes answered per cycle", least=0.5),
    "setup.ack_per_cycle": Goal("cookie ACKs of 60 bytes verified per cycle"),
    "setup.syn_to_synack_cycles": Goal("cycles from SYN in to SYN-ACK out, first beat to first beat", most=96),
    "setup.flood_host_dma_bytes": Goal("bytes over the host bus during a flood", most=0),
    "rx.packets_per_cycle_60B": Goal("60-byte packets to host memory per cycle", least=0.4),
    "rx.beats_per_cycle_1514B": Goal("payload beats of 1514-byte packets to host memory per cycle", least=0.95),
    "tx.packets_per_cycle_60B": Goal("60-byte packets from host memory per cycle", least=0.4),
    "tx.beats_per_cycle_1514B": Goal("payload beats of 1514-byte packets from host memory per cycle", least=0.95),
    "rx.packets_per_cycle_60B_lat4": Goal("the same, memory latency 4"),
    "rx.beats_per_cycle_1514B_lat4": Goal("the same, memory latency 4"),
    "tx.packets_per_cycle_60B_lat4": Goal("the same, memory latency 4"),
    "tx.beats_per_cycle_1514B_lat4": Goal("the same, memory latency 4"),
    "sim.cycles_per_second": Goal("simulated cycles per second of CPU time while busy", least=100_000),
}
"""Key -> what it is and what it should be, in the order in which they are printed."""

_SYN_TARGET = {"dst_mac": MAC, "src_mac": CLIENT_MAC, "address": ADDRESS, "port": PORT_NUMBER}


def segment(flags: int, length: int, *, src: int, src_port: int, dst_port: int, seq: int = 1, ack: int = 0) -> bytes:
    """A TCP segment without options, padded with payload to `length` bytes of frame (60: none)."""
    payload = bytes(length - ETHERNET.size - IPV4.size - TCP.size) if length > 60 else b""
    dst = int.from_bytes(bytes(map(int, ADDRESS.split("."))), "big")
    tcp_bytes = TCP.size + len(payload)
    ip = {"version": 4, "ihl": 5, "total_length": IPV4.size + tcp_bytes, "ttl": 64, "protocol": IPProtocol.TCP, "src": src, "dst": dst}
    tcp = {"src_port": src_port, "dst_port": dst_port, "seq": seq, "ack": ack, "data_offset": 5, "flags": flags, "window": 65535}
    pseudo = struct.pack("!IIHH", src, dst, IPProtocol.TCP, tcp_bytes)
    frame = (
        ETHERNET.pack(dst=MAC, src=CLIENT_MAC, ethertype=EtherType.IPV4)
        + IPV4.pack(**ip, checksum=checksum(IPV4.pack(**ip)))
        + TCP.pack(**tcp, checksum=checksum(pseudo + TCP.pack(**tcp) + payload))
        + payload
    )
    return frame.ljust(60, b"\0")


def client(index: int) -> tuple[int, int]:
    """Source address and port of the bench's client number `index`."""
    return 0xC6120001 + index % 60000, 1024 + index % 60000


def rate(rig: Rig, total: Callable[[], float], *, warm_up: int, window: int) -> float:
    """Growth of `total` per cycle in a window of `window` cycles after `warm_up`."""
    rig.cycles(warm_up)
    before = total()
    rig.cycles(window)
    return (total() - before) / window


def _setup(shell_at: Callable[..., Shell]) -> dict[str, float]:
    with Rig(shell_at(PCIE_LATENCY)) as rig:
        shell = rig.shell
        shell.set_log(1024)
        shell.rx_many(0, list(syn_frames(1, seed=SEED, **_SYN_TARGET)))  # type: ignore[arg-type]
        shell.run(10_000)
        when = {entry.kind: entry.cycle for entry in reversed(list(shell.log()))}
        latency = when[LogKind.TX_FIRST] - when[LogKind.RX_FIRST]
        shell.set_log(0)

        count = 8_000
        bus = shell.counters()
        before = bus.axi_read_beats + bus.axi_write_beats
        shell.set_tx_keep(False)
        shell.rx_many(0, list(syn_frames(count, seed=SEED + 1, **_SYN_TARGET)))  # type: ignore[arg-type]
        syns = rate(rig, lambda: shell.counters().tx_frames[0], warm_up=500, window=2 * count - 2000)
        shell.run(100_000)
        bus = shell.counters()
        dma = (bus.axi_read_beats + bus.axi_write_beats - before) * WIDTH
        answered = bus.tx_frames[0]
        if answered != count + 1:
            raise RuntimeError(f"{count + 1} SYNs went in, {answered} SYN-ACKs came out")
        shell.check()

    return {
        "setup.syn_per_cycle": syns,
        "setup.syn_to_synack_cycles": latency,
        "setup.flood_host_dma_bytes": dma,
        "setup.ack_per_cycle": _acks(shell_at),
    }


def _acks(shell_at: Callable[..., Shell]) -> float:
    """Cookie ACKs verified per cycle; a DEFER_ACCEPT listener, so that the host bus is no limit."""
    count = 4_000
    with Rig(shell_at(PCIE_LATENCY), defer_accept=True) as rig:
        shell = rig.shell
        clients = [client(index) for index in range(count)]
        shell.rx_many(
            0,
            [segment(TCPFlag.SYN, 60, src=src, src_port=port, dst_port=PORT_NUMBER) for src, port in clients],
        )
        shell.set_rx_pace(0, gap=1)  # a one-beat SYN has a one-beat answer; leave the wire room
        shell.run(100_000)
        cookies = {}
        for frame in shell.tx():
            ip = frame.data[ETHERNET.size :]
            tcp = TCP.unpack(ip, IPV4.size)
            cookies[tcp["dst_port"], IPV4.unpack(ip)["dst"]] = tcp["seq"]
        if len(cookies) != count:
            raise RuntimeError(f"{count} SYNs went in, {len(cookies)} SYN-ACKs came out")
        shell.set_rx_pace(0, gap=0)
        spent = []
        for part in (clients[: count // 4], clients[count // 4 :]):
            acks = [
                segment(TCPFlag.ACK, 60, src=src, src_port=port, dst_port=PORT_NUMBER, seq=2, ack=cookies[port, src] + 1 & 0xFFFF_FFFF)
                for src, port in part
            ]
            start = shell.cycle
            shell.rx_many(0, acks)
            shell.run(100_000)
            spent.append(shell.cycle - start)
        good = rig.counters()["setup_deferred"]
        if good != count:
            raise RuntimeError(f"{count} cookie ACKs went in, {good} were verified")
        shell.check()
        return (count - 2 * (count // 4)) / (spent[1] - spent[0])


def _rings(shell_at: Callable[..., Shell], latency: int) -> dict[str, float]:
    """RX and TX at one memory latency."""
    results = {}
    suffix = "" if latency == PCIE_LATENCY else f"_lat{latency}"
    for length, unit, beats in ((60, "packets", 1), (1514, "beats", BEATS_1514)):
        window = 6_000 if beats == 1 else 12_000
        src, port = client(0)
        frame = segment(TCPFlag.ACK, length, src=src, src_port=port, dst_port=9)
        with Rig(shell_at(latency)) as rig:
            rig.post_buffers()
            rig.cycles(3 * latency + 500)
            rig.shell.rx_many(0, [frame] * (2 * window // beats))
            per_cycle = rate(rig, rig.completions, warm_up=2_000, window=window)
            results[f"rx.{unit}_per_cycle_{length}B{suffix}"] = per_cycle * beats
            rig.shell.check()
        with Rig(shell_at(latency)) as rig:
            shell = rig.shell
            shell.set_tx_keep(False)
            rig.post_frames(frame, min(2 * window // beats, (1 << 14) - 2))
            per_cycle = rate(rig, lambda shell=shell: shell.counters().tx_frames[0], warm_up=2_000, window=window)  # type: ignore[misc]
            results[f"tx.{unit}_per_cycle_{length}B{suffix}"] = per_cycle * beats
            shell.check()
    return results


def _speed(shell_at: Callable[..., Shell]) -> dict[str, float]:
    """Simulated cycles per second of CPU time, with both directions busy."""
    with Rig(shell_at(PCIE_LATENCY)) as rig:
        rig.shell.set_tx_keep(False)
        rig.post_buffers()
        src, port = client(0)
        frame = segment(TCPFlag.ACK, 1514, src=src, src_port=port, dst_port=9)
        cycles = 100_000
        rig.shell.rx_many(0, [frame] * (cycles // BEATS_1514))
        rig.post_frames(frame, cycles // BEATS_1514)
        rig.cycles(2_000)
        start = time.process_time()
        rig.cycles(cycles)
        return {"sim.cycles_per_second": cycles / (time.process_time() - start)}


def measure(
    step: Callable[[str], None] = lambda text: None, *, queues: int = 16, opt: str = "bench"
) -> dict[str, float]:
    """All figures, by key. `step` is told what comes next; `opt` is how the model is compiled."""
    config = NicConfig(width=WIDTH, queues=queues)

    def shell_at(latency: int) -> Shell:
        return open_nic(config, opt=opt, read_latency=latency, write_latency=latency, quiet=True)

    step("building the core (kept for the next time)")
    shell_at(PCIE_LATENCY).close()
    step("connection setup")
    results = _setup(shell_at)
    for latency in (PCIE_LATENCY, SHORT_LATENCY):
        step(f"rings, memory latency {latency} cycles")
        results |= _rings(shell_at, latency)
    step("simulation speed")
    results |= _speed(shell_at)
    return {key: results[key] for key in GOALS}
