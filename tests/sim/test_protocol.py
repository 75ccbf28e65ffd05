"""The stream parser and the commands behind it, against anything. Whole sessions: test_fuzz.py."""

from __future__ import annotations

import os
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from acceltcp.abi import vfio_user as vfio
from acceltcp.abi.vfio_user import Command, HeaderFlag
from sim.protocol import FDS_MAX, MESSAGE_BYTES_MAX, Message, MessageParser, ProtocolError
from sim.server import PciDevice
from tests.sim.rig import QUEUES, VERSION, FakeDevice

u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
small = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 16, 20, 24, 32, 63, 64, 4095, 4096, 8192, 0x10000])
number32 = small | u32
number64 = small | u64 | st.sampled_from([(1 << 64) - 1, (1 << 64) - 4096, 1 << 63])
pages = st.integers(0, 64).map(lambda page: page * 4096)

payloads = st.one_of(
    st.binary(max_size=80),
    st.builds(lambda *a: vfio.Version(*a).pack(), small.filter(lambda n: n < 1 << 16), u16),
    st.builds(lambda *a: vfio.DmaMap(*a).pack(), number32, number32, number64, number64, number64),
    st.builds(lambda f, o, a, s: vfio.DmaMap(32, f, o, a, s).pack(), st.integers(0, 4), pages, pages, pages),
    st.builds(lambda a, s: vfio.DmaUnmap(24, 0, a, s).pack(), pages, pages),
    st.builds(lambda *a: vfio.DmaUnmap(*a).pack(), number32, number32, number64, number64),
    st.builds(lambda *a: vfio.RegionInfo(*a).pack(), number32, number32, number32, number32, number64, number64),
    st.builds(lambda *a: vfio.DeviceInfo(*a).pack(), number32, number32, number32, number32),
    st.builds(
        lambda f, i, s, c, d: vfio.IrqSet(20 + len(d), f, i, s, c).pack() + d,
        st.integers(0, 63), st.integers(0, 5), number32, number32, st.binary(max_size=8),
    ),
    st.builds(
        lambda o, r, c, d: vfio.RegionAccess(o, r, c).pack() + d,
        number64, st.integers(0, 9), number32, st.binary(max_size=16),
    ),
    st.builds(
        lambda o, r, d: vfio.RegionAccess(o, r, len(d)).pack() + d,
        st.integers(0, 0x1000), st.integers(0, 9), st.binary(max_size=64),
    ),
    st.builds(
        lambda o, r, c: vfio.RegionAccess(o, r, c).pack(), st.integers(0, 0x1000), st.integers(0, 9), st.integers(0, 64)
    ),
    st.lists(
        st.builds(
            lambda *a: vfio.RegionWriteMultiEntry(*a).pack(),
            st.integers(0, 0x1000), st.integers(0, 9), st.integers(0, 9), st.binary(min_size=8, max_size=8),
        ),
        max_size=4,
    ).map(lambda entries: vfio.RegionWriteMulti(len(entries)).pack() + b"".join(entries)),
    st.builds(lambda *a: vfio.FeatureRequest(*a).pack(), number32, number32),
)  # fmt: skip
commands = st.sampled_from(list(Command)) | u16
messages = st.builds(
    lambda command, payload, no_reply: vfio.command_message(7, command, payload, no_reply=no_reply),
    commands, payloads, st.booleans(),
)  # fmt: skip


def test_wanted_says_how_much_to_read() -> None:
    parser = MessageParser()
    message = vfio.command_message(1, Command.DEVICE_GET_INFO, bytes(16))
    assert parser.wanted == 16
    assert parser.feed(message[:10]) == []
    assert parser.wanted == 6
    assert parser.feed(message[10:16]) == []
    assert parser.wanted == 16
    (whole,) = parser.feed(message[16:])
    assert whole.payload == bytes(16)
    assert whole.header.command == Command.DEVICE_GET_INFO
    assert parser.wanted == 16


def test_bad_headers() -> None:
    for header in (
        vfio.Header(1, 1, 15, 0),
        vfio.Header(1, 1, 0, 0),
        vfio.Header(1, 1, MESSAGE_BYTES_MAX + 1, 0),
        vfio.Header(1, 1, 16, HeaderFlag.REPLY),
        vfio.Header(1, 1, 16, HeaderFlag.ERROR),
        vfio.Header(1, 1, 16, 0x100),
    ):
        with suppress(ProtocolError):
            MessageParser().feed(header.pack())
            raise AssertionError(header)


def test_descriptors_stay_with_their_message() -> None:
    closed: list[int] = []
    parser = MessageParser(closed.append)
    message = vfio.command_message(1, Command.DMA_MAP, bytes(32))
    assert parser.feed(message[:16], [100]) == []
    (first,) = parser.feed(message[16:])
    (second,) = parser.feed(message)
    assert (first.fds, second.fds) == ([100], [])
    parser.feed(message[:20], [101, 102])
    parser.discard()
    assert sorted(closed) == [101, 102]
    try:
        parser.feed(b"", range(FDS_MAX + 1))
    except ProtocolError:
        parser.discard()
    else:
        raise AssertionError("took too many descriptors")
    assert len(closed) == 2 + FDS_MAX + 1


@settings(max_examples=300, deadline=None)
@given(st.lists(messages | st.binary(max_size=40), max_size=4), st.lists(st.integers(1, 50), min_size=1), u32)
def test_parser_survives_anything(parts: list[bytes], cuts: list[int], flip: int) -> None:
    stream = bytearray(b"".join(parts))
    if stream and flip & 1:
        stream[flip // 2 % len(stream)] ^= 1 << flip % 8
    closed: list[int] = []
    given_out: list[int] = []
    parser = MessageParser(closed.append)
    at = fd = 0
    try:
        for turn in range(10_000):
            if at >= len(stream):
                break
            step = cuts[turn % len(cuts)]
            fds = [fd := fd + 1] if turn % 3 == 0 else []
            for message in parser.feed(bytes(stream[at : at + step]), fds):
                assert message.header.size == 16 + len(message.payload)
                given_out += message.fds
            at += step
            assert parser.wanted > 0
    except ProtocolError as error:
        assert str(error)
    parser.discard()
    assert sorted(closed + given_out) == list(range(1, fd + 1))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(commands, payloads, st.integers(0, 2), st.booleans()), min_size=1, max_size=12))
def test_device_survives_any_commands(sequence: list[tuple[int, bytes, int, bool]]) -> None:
    """Every command ends in one well-formed reply, or in the end of the connection."""
    before = len(os.listdir("/proc/self/fd"))
    device = FakeDevice()
    pci = PciDevice(device, QUEUES)
    pci.execute(Message(vfio.Header(1, Command.VERSION, 0, 0), VERSION))
    for number, (command, payload, fds, no_reply) in enumerate(sequence):
        header = vfio.Header(number, command, 16 + len(payload), HeaderFlag.NO_REPLY if no_reply else 0)
        message = Message(header, payload, [os.eventfd(0) for _ in range(fds)])
        try:
            reply = pci.execute(message)
        except ProtocolError:
            assert message.fds == []
            break
        assert message.fds == []
        if no_reply:
            assert reply == b""
            continue
        answer = vfio.Header.unpack(reply)
        assert (answer.msg_id, answer.command, answer.size) == (number, command, len(reply))
        if answer.flags & HeaderFlag.ERROR:
            assert answer.size == 16
            assert answer.error > 0
    pci.disconnect()
    assert device.mappings == 0
    assert len(os.listdir("/proc/self/fd")) == before
