"""`GmiiReceiver` and `GmiiTransmitter`, with zlib's CRC-32 as the oracle."""

import random
import zlib

import pytest
from amaranth.lib import data

from hw.shell.gmii import GmiiReceiver, GmiiTransmitter
from hw.stream.beat import BeatLayout
from hw.verilog import convert

from ..core.build import run_module
from ..simulate import beats, converts, feed, packets, run
from .gmii_loop import GmiiLoop

PREAMBLE = bytes([0x55] * 7 + [0xD5])
LARGEST = 200


def with_fcs(frame):
    return frame + zlib.crc32(frame).to_bytes(4, "little")


def some(size, seed=0):
    return random.Random(seed * 1000 + size).randbytes(size)


async def drive(ctx, dut, line, *, errors=(), gap=12):
    """Put bytes on the receiver's line, RX_ER at these places, and `gap` idle cycles after."""
    for place, octet in enumerate(line):
        ctx.set(dut.rxd, octet)
        ctx.set(dut.rx_dv, 1)
        ctx.set(dut.rx_er, place in errors)
        await ctx.tick()
    ctx.set(dut.rx_dv, 0)
    ctx.set(dut.rx_er, 0)
    await ctx.tick().repeat(gap)


def receive(lines, errors=()):
    """(frame, bad) of each frame that the receiver makes of these lines."""
    dut, taken, over = GmiiReceiver(LARGEST), [], []

    async def send(ctx):
        await ctx.tick()
        for line in lines:
            await drive(ctx, dut, line, errors=errors)
        over.append(True)

    async def watch(ctx):
        while not over:
            _, _, valid, value = await ctx.tick().sample(dut.o.valid, dut.o.payload.as_value())
            if valid:
                taken.append(value)

    run(dut, send, watch)
    out, current = [], []
    for value in taken:
        current.append(value)
        beat = data.Const(BeatLayout(8), value)
        if beat.last:
            out.append((packets(current, 8)[0], bool(beat.err)))
            current = []
    assert not current
    return out


def test_receives_frames_of_all_ends():
    frames = [some(size) for size in [*range(60, 77), LARGEST]]
    assert receive([PREAMBLE + with_fcs(frame) for frame in frames]) == [(frame, False) for frame in frames]


@pytest.mark.parametrize("preamble", [0, 1, 6, 20])
def test_receives_after_any_preamble(preamble):
    frame = some(64)
    assert receive([b"\x55" * preamble + b"\xd5" + with_fcs(frame)]) == [(frame, False)]


def test_each_flipped_bit_is_found_and_the_next_frame_is_good():
    good = with_fcs(some(60))
    lines = [PREAMBLE + bytes([*good[:at], good[at] ^ 1 << at % 8, *good[at + 1 :]]) for at in range(64)]
    got = receive([*lines, PREAMBLE + good])
    assert [bad for _, bad in got] == [True] * 64 + [False]


def test_marks_rx_er():
    assert receive([PREAMBLE + with_fcs(some(60))], errors=[30]) == [(some(60), True)]


@pytest.mark.parametrize("size", [1, 4, 59])
def test_marks_runts(size):
    assert receive([PREAMBLE + with_fcs(some(size))]) == [(some(size), True)]


@pytest.mark.parametrize("size", [0, 1, 4])
def test_a_frame_of_nothing_is_a_bad_beat(size):
    ((frame, bad),) = receive([PREAMBLE + bytes(size)])
    assert bad and len(frame) == 1


@pytest.mark.parametrize("more", [1, 2, 300])
def test_cuts_and_marks_what_is_too_long(more):
    frame = some(LARGEST + more)
    assert receive([PREAMBLE + with_fcs(frame)]) == [(frame[:LARGEST], True)]


def test_noise_without_a_delimiter_is_no_frame():
    assert receive([b"\x55\x12" + with_fcs(some(60)), PREAMBLE + with_fcs(some(61))]) == [(some(61), False)]


def test_begins_only_between_frames():
    dut = GmiiReceiver(LARGEST)
    seen = []

    async def send(ctx):
        # The reset ends within a frame whose bytes look like a frame.
        await drive(ctx, dut, PREAMBLE + with_fcs(some(60)))
        seen.append(False)

    async def watch(ctx):
        while not seen:
            assert not ctx.get(dut.o.valid), "a beat of a frame whose beginning nobody saw"
            await ctx.tick()

    run(dut, send, watch)


def transmit(values, cycles, pause=None):
    """(txd, tx_en, tx_er) of each cycle; the stream stops for three cycles before value number `pause`."""
    dut, line = GmiiTransmitter(), []

    async def send(ctx):
        await feed(ctx, dut.i, values[:pause])
        if pause is not None:
            await ctx.tick().repeat(3)
            await feed(ctx, dut.i, values[pause:])

    async def watch(ctx):
        for _ in range(cycles):
            line.append(tuple((await ctx.tick().sample(dut.txd, dut.tx_en, dut.tx_er))[-3:]))

    run(dut, send, watch)
    return line


def runs(line):
    """[(enabled, bytes)] of the line."""
    out = []
    for octet, enable, _ in line:
        if not out or out[-1][0] != enable:
            out.append((enable, bytearray()))
        out[-1][1].append(octet)
    return out


def test_sends_without_gaps_and_with_twelve_bytes_between_frames():
    frames = [some(size) for size in range(60, 77)]
    line = transmit([beat for frame in frames for beat in beats(frame, 8)], 17 * 104)
    parts = runs(line)
    assert [bytes(octets) for enable, octets in parts if enable] == [PREAMBLE + with_fcs(frame) for frame in frames]
    assert {len(octets) for enable, octets in parts[1:-1] if not enable} == {12}
    assert not any(error for _, _, error in line)


def test_a_bad_packet_goes_out_as_an_error():
    line = transmit(beats(some(60), 8, err=True), 100)
    assert [place for place, (_, enable, _) in enumerate(line) if enable][-4:] == [
        place for place, (_, _, error) in enumerate(line) if error
    ]


def test_a_stream_that_runs_dry_goes_out_as_an_error():
    line = transmit(beats(some(60), 8), 110, pause=3)
    assert sum(error for _, _, error in line) == 3
    assert [octet for octet, enable, error in line if enable and not error] == [*PREAMBLE, *with_fcs(some(60))]


def test_what_is_sent_is_received():
    frames = [some(size, 7) for size in (60, 64, LARGEST)]
    line = transmit([beat for frame in frames for beat in beats(frame, 8)], 500)
    assert receive([bytes(octets) for enable, octets in runs(line) if enable]) == [(frame, False) for frame in frames]


@pytest.mark.parametrize("component", [lambda: GmiiReceiver(1518), GmiiTransmitter])
def test_converts(component):
    converts(component())


def test_a_cable(tmp_path):
    """The MAC and its crossings, between the two ends of cocotbext-eth's GMII."""
    ran, failed, said = run_module(convert(GmiiLoop(), "gmii_loop"), "gmii_loop", "tests.hw.shell.cocotb_gmii", tmp_path)
    assert (ran, failed) == (3, 0), said
