"""Wires, impairments and pcap files."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap, wrpcap

from sim.pcap import PcapError, PcapWriter, read_pcap
from sim.wires import Captured, Impaired, Impairment, NullWire, PairWire, ReplayWire, TapWire, Wire, pad_frame

FRAMES = [bytes([i % 256, i // 256]) * 40 for i in range(1000)]
STEP = 0.001


def through(impairment: Impairment, seed: int = 1, frames: list[bytes] = FRAMES) -> list[bytes]:
    """What comes out when a frame goes in every millisecond."""
    near, far = PairWire.pair()
    wire = Impaired(near, to_nic=impairment, seed=seed)
    got, now = [], 0.0
    for frame in frames:
        far.send(frame, now)
        got += wire.receive(now)
        now += STEP
    while (when := wire.deadline()) is not None:
        now = max(now, when)
        got += wire.receive(now)
    return got


def test_pair_both_ways() -> None:
    one, two = PairWire.pair()
    assert one.deadline() is None
    two.send(b"x" * 70, 0)
    one.send(b"y", 0)
    assert one.deadline() == 0.0
    assert one.receive(0) == [b"x" * 70]
    assert two.receive(0) == [b"y" + bytes(59)]
    assert one.receive(0) == []


def test_padding() -> None:
    assert pad_frame(b"a") == b"a" + bytes(59)
    assert pad_frame(bytes(60)) == bytes(60)


def test_a_clean_wire_changes_nothing() -> None:
    assert through(Impairment()) == FRAMES


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "impairment",
    [
        Impairment(loss=0.1),
        Impairment(duplicate=0.1),
        Impairment(reorder=0.1),
        Impairment(corrupt=0.1),
        Impairment(delay=0.05, jitter=0.02),
        Impairment(loss=0.1, duplicate=0.1, reorder=0.1, corrupt=0.1, delay=0.01, jitter=0.01),
    ],
    ids=["loss", "duplicate", "reorder", "corrupt", "delay", "all"],
)
def test_the_same_seed_does_the_same(impairment: Impairment, seed: int) -> None:
    first = through(impairment, seed)
    assert through(impairment, seed) == first
    if impairment.delay == 0 or impairment.loss:
        assert through(impairment, seed + 10) != first


def test_loss() -> None:
    got = through(Impairment(loss=0.1))
    assert 50 < len(FRAMES) - len(got) < 150
    assert [frame for frame in FRAMES if frame in set(got)] == got
    assert through(Impairment(loss=1.0)) == []


def test_duplicates() -> None:
    got = Counter(through(Impairment(duplicate=0.1)))
    assert set(got) == set(FRAMES)
    assert 50 < sum(1 for count in got.values() if count == 2) < 150
    assert max(got.values()) == 2


def test_reordering_loses_nothing() -> None:
    got = through(Impairment(reorder=0.1))
    assert sorted(got) == sorted(FRAMES)
    assert got != FRAMES
    places = {frame: place for place, frame in enumerate(got)}
    late = [i for i, frame in enumerate(FRAMES) if places[frame] > i + 2]
    assert 50 < len(late) < 150


def test_corruption_flips_one_bit() -> None:
    got = through(Impairment(corrupt=0.5))
    flips = [
        sum((a ^ b).bit_count() for a, b in zip(sent, came, strict=True))
        for sent, came in zip(FRAMES, got, strict=True)
    ]
    assert set(flips) == {0, 1}
    assert 400 < sum(flips) < 600


def test_delay_and_order() -> None:
    near, far = PairWire.pair()
    wire = Impaired(near, to_nic=Impairment(delay=0.5))
    far.send(FRAMES[0], 0)
    assert wire.receive(1.0) == []
    assert wire.deadline() == 1.5
    assert wire.receive(1.4999) == []
    assert wire.receive(1.5) == [FRAMES[0]]
    assert through(Impairment(delay=0.05, jitter=0.02)) == FRAMES


def test_directions_are_separate() -> None:
    near, far = PairWire.pair()
    wire = Impaired(near, from_nic=Impairment(loss=1.0))
    far.send(FRAMES[0], 0)
    wire.send(FRAMES[1], 0)
    assert wire.receive(0) == [FRAMES[0]]
    assert far.receive(0) == []
    delayed = Impaired(near, from_nic=Impairment(delay=1.0))
    delayed.send(FRAMES[2], 0)
    assert far.receive(0) == []
    assert delayed.deadline() == 1.0
    delayed.work(1.0)
    assert far.receive(0) == [FRAMES[2]]


@pytest.mark.parametrize(
    ("name", "value"), [("loss", -0.1), ("loss", 1.1), ("corrupt", 2), ("delay", -1), ("jitter", 1e9)]
)
def test_impairments_that_cannot_be(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Impairment(**{name: value})


# pcap


@pytest.mark.parametrize("nanoseconds", [True, False])
def test_scapy_reads_what_we_write(tmp_path: Path, nanoseconds: bool) -> None:
    path = tmp_path / "out.pcap"
    writer = PcapWriter(path, nanoseconds=nanoseconds)
    times = [1_700_000_000_123_456_789, 1_700_000_001_000_000_001]
    for time_ns, frame in zip(times, FRAMES[:2], strict=True):
        writer.write(time_ns, frame)
    writer.close()
    packets = rdpcap(str(path))
    assert [bytes(packet) for packet in packets] == FRAMES[:2]
    unit = 1 if nanoseconds else 1000
    for packet, time_ns in zip(packets, times, strict=True):
        assert abs(float(packet.time) * 1e9 - time_ns // unit * unit) < 1000
    read = read_pcap(path)
    assert [(packet.time_ns, packet.data) for packet in read] == [
        (time_ns // unit * unit, frame) for time_ns, frame in zip(times, FRAMES[:2], strict=True)
    ]


@pytest.mark.parametrize("order", ["<", ">"])
def test_we_read_what_scapy_writes(tmp_path: Path, order: str) -> None:
    path = tmp_path / "in.pcap"
    packets = [Ether(frame) for frame in FRAMES[:5]]
    wrpcap(str(path), packets, endianness=order)
    assert [packet.data for packet in read_pcap(path)] == FRAMES[:5]


def test_files_that_are_no_pcap(tmp_path: Path) -> None:
    path = tmp_path / "bad.pcap"
    writer = PcapWriter(path)
    writer.write(0, FRAMES[0])
    writer.close()
    good = path.read_bytes()
    for data, what in (
        (b"", "too few"),
        (b"x" * 24, "no pcap file"),
        (good[:-1], "inside a packet"),
        (good[:30], "inside a packet header"),
        (good[:20] + struct.pack("<I", 101) + good[24:], "link type 101"),
    ):
        path.write_bytes(data)
        with pytest.raises(PcapError, match=what):
            read_pcap(path)


def test_capture_has_both_directions(tmp_path: Path) -> None:
    path = tmp_path / "out.pcap"
    near, far = PairWire.pair()
    writer = PcapWriter(path)
    clock = iter(range(10, 20))
    wire = Captured(near, writer, lambda: next(clock))
    far.send(FRAMES[0], 0)
    assert wire.receive(0) == [FRAMES[0]]
    wire.send(FRAMES[1], 0)
    assert far.receive(0) == [FRAMES[1]]
    assert [tuple(packet) for packet in read_pcap(path)] == [(10, FRAMES[0]), (11, FRAMES[1])]
    writer.close()


def test_replay_keeps_the_gaps(tmp_path: Path) -> None:
    path = tmp_path / "in.pcap"
    writer = PcapWriter(path)
    for i in range(4):
        writer.write(5_000_000_000 + i * 100_000_000, FRAMES[i])
    writer.close()
    wire = ReplayWire(path, speed=2.0)
    assert wire.deadline() == 0.0
    assert wire.receive(10.0) == [FRAMES[0]]
    assert wire.deadline() == pytest.approx(10.05)
    assert wire.receive(10.04) == []
    assert wire.receive(10.11) == FRAMES[1:3]
    assert not wire.finished
    assert wire.receive(11) == [FRAMES[3]]
    assert wire.finished
    assert wire.deadline() is None
    at_once = ReplayWire(path, speed=0)
    assert at_once.receive(0) == FRAMES[:4]
    with pytest.raises(ValueError, match="speed"):
        ReplayWire(path, speed=-1)


def test_null_wire() -> None:
    wire: Wire = NullWire()
    wire.send(FRAMES[0], 0)
    assert wire.receive(0) == []
    assert wire.filenos() == []
    wire.close()


# TAP


@pytest.mark.parametrize("name", ["", "a/b", "sixteen-byte-name"])
def test_names_that_no_tap_has(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 15"):
        TapWire(name)


def test_no_tap_device(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot open"):
        TapWire("acc0", device=str(tmp_path / "tun"))


TAP_SCRIPT = """
import os, select, socket, subprocess, sys
from sim.wires import TapWire
wire = TapWire("acc0")
assert wire.name == "acc0"
wire.send(bytes(60), 0)  # the device is down
assert wire.refused == 1
subprocess.run(["ip", "link", "set", "acc0", "addrgenmode", "none"], check=False)
subprocess.run(["ip", "link", "set", "acc0", "up", "arp", "off"], check=True)
peer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
peer.bind(("acc0", 0x88B5))
peer.settimeout(5)
header = b"\\xff" * 6 + b"\\2\\0\\0\\0\\0\\1" + b"\\x88\\xb5"
peer.send(header + b"hello")
got = []
while not any(frame[12:14] == b"\\x88\\xb5" for frame in got):
    assert select.select(wire.filenos(), [], [], 5)[0]
    got += wire.receive(0)
frame = [frame for frame in got if frame[12:14] == b"\\x88\\xb5"][0]
assert frame == header + b"hello" + bytes(60 - 19), frame
wire.send(b"\\2\\0\\0\\0\\0\\1" + b"\\2\\0\\0\\0\\0\\2" + b"\\x88\\xb5" + b"back" * 12, 0)
while True:
    data, where = peer.recvfrom(2000)
    if where[2] != socket.PACKET_OUTGOING:
        break
assert data[14:] == b"back" * 12, data
wire.close()
print("fine")
"""


def test_tap_in_a_namespace() -> None:
    probe = subprocess.run(["unshare", "-Urn", "test", "-c", "/dev/net/tun"], capture_output=True)
    if probe.returncode:
        pytest.skip("no user namespaces or no /dev/net/tun")
    done = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-c", TAP_SCRIPT], capture_output=True, text=True, timeout=30
    )
    assert done.stdout == "fine\n", done.stderr
