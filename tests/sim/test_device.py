"""The C++ shell, against the stand-in for the core."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from sim.device import LogKind, Reason, Shell, ShellError, Stop
from tests.sim.stub import stub_library

MAGIC = int.from_bytes(b"ATCP", "little")
SCRATCH, ADDRESS, PATTERN, COMMAND, FIRST, WORST = 0x1C, 0x40, 0x48, 0x4C, 0x50, 0x54
IRQ, TICKS, STUCK = 0x5C, 0x60, 0x64


@pytest.fixture
def shell() -> Iterator[Shell]:
    with Shell(stub_library()) as shell:
        yield shell
        shell.check()


class Memory:
    """Page-aligned memory of this process."""

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size)
        self.pointer = ctypes.addressof(ctypes.c_char.from_buffer(self.map))


def bus(
    shell: Shell, address: int, command: int, beats: int = 1, strobe: int = 0xFFFF, pattern: int = 0
) -> int:
    """One burst by the stand-in; the worst response."""
    shell.write(ADDRESS, address & 0xFFFF_FFFF)
    shell.write(ADDRESS + 4, address >> 32)
    shell.write(PATTERN, pattern)
    shell.write(COMMAND, strobe << 16 | (beats - 1) << 8 | command)
    assert shell.run(10_000) & Reason.IDLE
    return shell.read(WORST)


def frames_of(seed: int, count: int, width: int) -> list[bytes]:
    rng = random.Random(seed)
    lengths = [1, width - 1, width, width + 1, 4 * width, 60] + [rng.randrange(1, 300) for _ in range(count)]
    return [rng.randbytes(max(1, length)) for length in lengths]


@pytest.mark.parametrize(("width", "ports"), [(64, 1), (32, 1), (8, 2)])
@pytest.mark.parametrize("pause", [0.0, 0.4])
def test_frames_go_through(width: int, ports: int, pause: float) -> None:
    with Shell(stub_library(width, ports)) as shell:
        assert (shell.width, shell.ports) == (width, ports)
        shell.set_seed(3)
        sent = [frames_of(port, 20, width) for port in range(ports)]
        for port in range(ports):
            shell.set_rx_pace(port, pause=pause)
            shell.set_tx_stall(port, pause)
            shell.rx_many(port, sent[port])
        assert shell.run(100_000) & Reason.IDLE
        got = shell.tx()
        for port in range(ports):
            assert [frame.data for frame in got if frame.port == port] == sent[port]
            assert shell.rx_pending(port) == 0
        counters = shell.counters()
        assert counters.tx_frames == counters.rx_frames == tuple(len(frames) for frames in sent)
        assert counters.tx_bytes == tuple(sum(map(len, frames)) for frames in sent)
        assert all(frame.last_cycle >= frame.first_cycle for frame in got)
        shell.check()


def test_back_to_back_takes_one_cycle_per_beat(shell: Shell) -> None:
    shell.set_log(1000)
    shell.rx_many(0, [bytes(64)] * 10 + [bytes(65)] * 5)
    shell.run()
    first = [entry.cycle for entry in shell.log() if entry.kind == LogKind.RX_FIRST]
    assert [b - a for a, b in pairwise(first)] == [1] * 10 + [2] * 4


def test_gap_between_frames(shell: Shell) -> None:
    shell.set_log(1000)
    shell.set_rx_pace(0, gap=3)
    shell.rx_many(0, [bytes(60)] * 4)
    shell.run()
    first = [entry.cycle for entry in shell.log() if entry.kind == LogKind.RX_FIRST]
    assert [b - a for a, b in pairwise(first)] == [4] * 3


def test_mac_error_reaches_the_core(shell: Shell) -> None:
    shell.rx(0, bytes(100), error=True)
    shell.rx(0, bytes(100))
    shell.run()
    assert [frame.error for frame in shell.tx()] == [True, False]


def test_stalled_mac_keeps_frames_back(shell: Shell) -> None:
    shell.set_tx_stall(0, 1.0)
    shell.rx(0, bytes(100))
    assert shell.run(1000) == Reason.LIMIT
    assert shell.tx() == []
    shell.set_tx_stall(0, 0.0)
    assert shell.run(1000) & Reason.IDLE
    assert len(shell.tx()) == 1


def test_frames_can_be_counted_without_being_kept(shell: Shell) -> None:
    shell.set_tx_keep(False)
    shell.rx(0, bytes(1000))
    shell.run()
    assert shell.tx() == []
    assert shell.counters().tx_bytes == (1000,)


def test_run_stops_for_what_is_asked(shell: Shell) -> None:
    shell.rx_many(0, [bytes(64)] * 3)
    assert Reason.TX in shell.run(1000, Stop.TX)
    assert 1 <= len(shell.tx()) < 3
    shell.write(IRQ, 5)
    assert Reason.IRQ in shell.run(1000, Stop.IRQ)
    assert shell.irqs() == [5]
    before = shell.cycle
    assert shell.run(77, Stop.NOTHING) & Reason.LIMIT
    assert shell.cycle == before + 77


def test_busy_keeps_it_running(shell: Shell) -> None:
    shell.write(STUCK, 1)
    assert shell.run(500) == Reason.LIMIT
    assert shell.busy
    shell.write(STUCK, 0)
    assert shell.run(500) & Reason.IDLE


def test_registers(shell: Shell) -> None:
    assert shell.read(0) == MAGIC
    shell.write(SCRATCH, 0x11223344)
    assert shell.read(SCRATCH) == 0x11223344
    shell.write(SCRATCH, 0xAABBCCDD, strobe=0b0101)
    assert shell.read(SCRATCH) == 0x11BB33DD
    for value in range(20):
        shell.write(SCRATCH, value)
    assert shell.read(SCRATCH) == 19
    with pytest.raises(ShellError, match="0x10000"):
        shell.read(0x10000)
    with pytest.raises(ShellError, match="0x2"):
        shell.write(2, 0)


def test_ticks(shell: Shell) -> None:
    shell.tick(1000)
    assert shell.ticks_pending == 1000
    assert shell.run() & Reason.IDLE
    assert shell.read(TICKS) == 1000
    assert shell.counters().ticks == 1000
    shell.tick(50)
    shell.write(STUCK, 1)
    before = shell.cycle
    assert shell.run(1000, Stop.TICKED) & Reason.TICKED
    assert shell.cycle == before + 50


def test_interrupt_vectors_in_order(shell: Shell) -> None:
    for vector in (3, 0, 63):
        shell.write(IRQ, vector)
    shell.run()
    assert shell.irqs() == [3, 0, 63]


def test_reset_forgets_what_is_queued(shell: Shell) -> None:
    shell.write(SCRATCH, 5)
    shell.run()
    shell.rx(0, bytes(100))
    shell.write(SCRATCH, 6)
    shell.tick(5)
    shell.reset()
    assert shell.run() & Reason.IDLE
    assert shell.read(SCRATCH) == 0
    assert shell.read(TICKS) == 0
    assert shell.tx() == []


def test_memory_read_and_write(shell: Shell) -> None:
    memory = Memory(8192)
    shell.map_pointer(0x1_2345_0000, 8192, memory.pointer)
    assert bus(shell, 0x1_2345_0040, 2, beats=3, pattern=0x100) == 0
    for i in range(3):
        assert memory.map[64 + 64 * i : 128 + 64 * i] == (0x100 + i).to_bytes(4, "little") * 16
    assert memory.map[:64] == bytes(64)
    assert memory.map[256:320] == bytes(64)
    memory.map[4096:4100] = b"abcd"
    assert bus(shell, 0x1_2345_1000, 1) == 0
    assert shell.read(FIRST).to_bytes(4, "little") == b"abcd"
    counters = shell.counters()
    assert (counters.axi_write_beats, counters.axi_write_bytes, counters.axi_read_beats) == (3, 192, 1)


@pytest.mark.parametrize("strobe", [0x00FF, 0xFF00, 0x0001, 0x5A5A, 0x7FFE])
def test_write_strobes(shell: Shell, strobe: int) -> None:
    memory = Memory(4096)
    memory.map[:] = b"\xee" * 4096
    shell.map_pointer(0, 4096, memory.pointer)
    assert bus(shell, 0x40, 2, strobe=strobe, pattern=0x44332211) == 0
    want = bytes((0x11, 0x22, 0x33, 0x44)[i % 4] if strobe >> i % 16 & 1 else 0xEE for i in range(64))
    assert memory.map[64:128] == want


@pytest.mark.parametrize("latency", [1, 4, 250])
def test_read_latency(shell: Shell, latency: int) -> None:
    memory = Memory(4096)
    shell.map_pointer(0, 4096, memory.pointer)
    shell.set_latency(latency, latency)
    before = shell.cycle
    assert bus(shell, 0, 1) == 0
    assert latency <= shell.cycle - before < latency + 80


def test_bus_errors(shell: Shell) -> None:
    memory = Memory(4096)
    slverr, decerr = 2, 3
    shell.map_pointer(0x1000, 4096, memory.pointer, 1)
    assert bus(shell, 0x1000, 1) == 0
    assert bus(shell, 0x1000, 2) == slverr
    assert bus(shell, 0x0, 1) == decerr
    assert bus(shell, 0x2000, 2) == decerr
    assert bus(shell, 0xFFFF_FFFF_FFFF_FFC0, 1) == decerr
    shell.set_bus_master(False)
    assert bus(shell, 0x1000, 1) == decerr
    shell.set_bus_master(True)
    assert bus(shell, 0x1000, 1) == 0
    shell.unmap(0x1000, 4096)
    assert bus(shell, 0x1000, 1) == decerr
    assert memory.map[:] == bytes(4096)
    counters = shell.counters()
    assert counters.axi_read_errors == 4
    assert counters.axi_write_errors == 2


def test_mapping_rules(shell: Shell) -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 3 * 4096)
    shell.map_file(0x4000, 8192, fd, 4096, 3)
    for iova, size in ((0x4000, 8192), (0x3000, 8192), (0x5000, 4096), (0x5000, 8192), (0x0, 0x10000)):
        with pytest.raises(ShellError) as caught:
            shell.map_file(iova, size, fd, 0, 3)
        assert caught.value.errno == errno.EEXIST
    for iova, size, offset in (
        (0x8000, 0, 0),
        (0x8020, 4096, 0),
        (0x8000, 100, 0),
        (0x8000, 4 * 4096, 0),
        (0x8000, 4096, 3 * 4096),
        (0x8000, 4096, (1 << 64) - 4096),
        ((1 << 64) - 4096, 8192, 0),
    ):
        with pytest.raises(ShellError) as caught:
            shell.map_file(iova, size, fd, offset, 3)
        assert caught.value.errno == errno.EINVAL, (iova, size, offset)
    shell.map_file((1 << 64) - 4096, 4096, fd, 0, 3)
    shell.map_file(0x10_0000, 4096, -1, 0, 3)
    assert (shell.mappings, shell.mapped_bytes) == (3, 8192 + 4096)
    assert bus(shell, 0x10_0000, 1) == 3
    assert bus(shell, 0x4000, 2, pattern=0x61616161) == 0
    assert os.pread(fd, 64, 4096) == b"a" * 64
    os.close(fd)
    for iova, size in (
        (0x4000, 4096), (0x5000, 4096), (0x3000, 8192), (0x4000, 0), (0x5000, 0x10_0000), (0x7000, (1 << 64) - 0x1000)
    ):  # fmt: skip
        with pytest.raises(ShellError) as caught:
            shell.unmap(iova, size)
        assert caught.value.errno == errno.EINVAL, (iova, size)
    assert shell.unmap(0x9000, 8192) == 0
    assert shell.mappings == 3
    assert shell.unmap(0x1000, (1 << 64) - 0x2000) == 8192 + 4096
    assert shell.unmap((1 << 64) - 4096, 4096) == 4096
    assert shell.mappings == 0
    shell.map_file(0x4000, 8192, -1, 0, 3)
    shell.unmap_all()
    assert (shell.mappings, shell.mapped_bytes) == (0, 0)


def test_truncated_file_is_a_bus_error(shell: Shell) -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, 8192)
    shell.map_file(0, 8192, fd, 0, 3)
    assert bus(shell, 0x1000, 2, pattern=1) == 0
    os.ftruncate(fd, 4096)
    assert bus(shell, 0x1000, 2) == 3
    assert bus(shell, 0x1000, 1) == 3
    assert bus(shell, 0x0, 2) == 0
    assert shell.counters().faults == 2
    os.close(fd)


def test_axi_with_pauses(shell: Shell) -> None:
    memory = Memory(4096)
    shell.map_pointer(0, 4096, memory.pointer)
    shell.set_axi_stall(0.5)
    for i in range(20):
        assert bus(shell, 64 * i, 2, beats=4, pattern=i << 8) == 0
        assert bus(shell, 64 * i, 1, beats=4) == 0
        assert shell.read(FIRST) == i << 8


def test_burst_across_4_kib_is_noticed() -> None:
    memory = Memory(8192)
    with Shell(stub_library()) as shell:
        shell.map_pointer(0, 8192, memory.pointer)
        bus(shell, 0xFC0, 1, beats=2)
        with pytest.raises(AssertionError, match="4 KiB"):
            shell.check()


def test_entry_becomes_visible_with_its_last_word(shell: Shell) -> None:
    """Another process never sees a new last word with old words before it."""
    path = f"/proc/{os.getpid()}/fd/"
    fd = os.memfd_create("ring")
    os.ftruncate(fd, 4096)
    shell.map_file(0, 4096, fd, 0, 3)
    watcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import mmap, os, struct, sys\n"
            f"m = mmap.mmap(os.open({path + str(fd)!r}, os.O_RDWR), 4096)\n"
            "words = memoryview(m).cast('Q')\n"
            "print('ready', flush=True)\n"
            "seen = changes = 0\n"
            "while seen != 0xffffffffffffffff:\n"
            "    last = words[3]\n"
            "    first = words[0]\n"
            "    if last != seen:\n"
            "        assert first >= last, (first, last)\n"
            "        seen = last; changes += 1\n"
            "print(changes)\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdout
    watcher.stdout.readline()
    for value in range(1, 500):
        bus(shell, 0, 2, pattern=value)
    bus(shell, 0, 2, pattern=0xFFFF_FFFF)
    out, _ = watcher.communicate(timeout=20)
    assert watcher.returncode == 0
    assert int(out) >= 1
    os.close(fd)


def test_waveforms(tmp_path: Path) -> None:
    with Shell(stub_library(8, 1, trace=True)) as shell:
        shell.trace_open(tmp_path / "run.vcd")
        shell.rx(0, bytes(100))
        shell.run()
        shell.trace_close()
    assert "m_axis_tx0_tvalid" in (tmp_path / "run.vcd").read_text()


def test_no_waveforms_without_tracing(shell: Shell, tmp_path: Path) -> None:
    with pytest.raises(ShellError, match="without tracing"):
        shell.trace_open(tmp_path / "run.vcd")
