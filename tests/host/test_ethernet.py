"""The transport of boards behind an Ethernet cable, against a model of the board on the other end of a socket pair."""

from __future__ import annotations

import os
import random
import select
import socket
import threading
import time
from collections import deque

import pytest

from acceltcp.abi.host_link import BEAT_BYTES, BEATS_MAX, STROBE_BYTES, VERSION, LinkKind, LinkStatus
from acceltcp.host import ethernet
from acceltcp.host.errors import AbiMismatchError, DeviceError, DeviceLostError
from acceltcp.host.ethernet import EthernetTransport
from acceltcp.host.ethernet_link import BROADCAST, LinkRequests, pack_frame, parse_frame, write_beats
from acceltcp.host.transport import open_transport

HOST, BOARD = 0x02_00_00_00_00_01, 0x02_00_00_00_00_B0
ALL = (1 << BEAT_BYTES) - 1


class ModelBoard:
    """What the gateware does with frames: registers that keep what is written, requests that a test makes.

    loss, duplicate: probabilities of every frame in both directions. version: that it speaks.
    """

    def __init__(self, *, loss: float = 0.0, duplicate: float = 0.0, version: int = VERSION) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._loss, self._duplicate, self._version = loss, duplicate, version
        self._random = random.Random(1)
        self.registers: dict[int, int] = {}
        self.writes: list[tuple[int, int]] = []
        self.session = self._sequence = self._asked = 0
        self._reply = b""
        self._answers: deque[tuple[int, bytes]] = deque()
        self.silent = False
        self.resets = 0
        self._stop = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop = True
        self._thread.join(5)
        assert not self._thread.is_alive()
        self.ours.close()
        self.theirs.close()

    def send(self, frame: bytes) -> None:
        """To the host, through the bad cable."""
        if self._random.random() >= self._loss:
            self.ours.send(frame)
            if self._random.random() < self._duplicate:
                self.ours.send(frame)

    def ask(self, kind: LinkKind, payload: bytes = b"", **fields: int) -> tuple[int, bytes]:
        """A request, repeated until its reply comes: status and payload."""
        self._asked = (self._asked + 1) & 0xFFFF
        frame = pack_frame(HOST, BOARD, payload, kind=kind, session=self.session, sequence=self._asked, **fields)
        deadline = time.monotonic() + 10
        while not self._answers:
            assert time.monotonic() < deadline, "no reply"
            self.send(frame)
            for _ in range(20):
                if not self._answers:
                    time.sleep(0.001)
        return self._answers.popleft()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self.ours, select.POLLIN)
        while not self._stop:
            if poll.poll(10):
                self._take(self.ours.recv(1 << 16))

    def _take(self, raw: bytes) -> None:
        frame = parse_frame(raw)
        assert frame is not None
        fields = frame.fields
        if self.silent or self._random.random() < self._loss:
            return
        kind, sequence = fields["kind"], fields["sequence"]
        if fields["reply"]:
            if fields["session"] == self.session and sequence == self._asked and not self._answers:
                self._answers.append((fields["status"], bytes(frame.payload)))
            return
        assert frame.dst == BOARD or (kind == LinkKind.HELLO and frame.dst == BROADCAST)
        if kind == LinkKind.HELLO and fields["session"] != self.session:
            self.session, self._sequence, self._asked = fields["session"], 0, 0
            self.resets += 1
        if fields["session"] != self.session:
            return
        if kind in (LinkKind.READ, LinkKind.WRITE):
            if sequence == (self._sequence + 1) & 0xFFFF:
                self._sequence = sequence
                if kind == LinkKind.WRITE:
                    self.registers[fields["address"]] = fields["value"]
                    self.writes.append((fields["address"], fields["value"]))
                value = self.registers.get(fields["address"], 0)
                self._reply = self._told(fields, value)
            if sequence == self._sequence:
                self.send(self._reply)
            return
        self.send(self._told(fields, 0))

    def _told(self, fields: dict[str, int], value: int) -> bytes:
        told = {name: fields[name] for name in ("kind", "session", "sequence")}
        return pack_frame(HOST, BOARD, version=self._version, reply=1, value=value, **told)


@pytest.fixture
def make():
    """Makes a board and the driver's transport to it."""
    made = []

    def pair(*, silence: float = 3.0, board: int | None = None, **options):
        model = ModelBoard(**options)
        made.append(model)
        transport = EthernetTransport(model.theirs, HOST, board, silence=silence, description="ethernet:test")
        made.insert(0, transport)
        return model, transport

    yield pair
    for one in made:
        one.close()


def beats(data: bytes, strobes: list[int]) -> bytes:
    """Payload of a DMA_WRITE."""
    return b"".join(
        strobe.to_bytes(STROBE_BYTES, "little") + data[BEAT_BYTES * at : BEAT_BYTES * (at + 1)] for at, strobe in enumerate(strobes)
    )


@pytest.mark.parametrize(("loss", "duplicate"), [(0.0, 0.0), (0.1, 0.2)], ids=["clean", "lossy"])
def test_registers_are_accessed_once_each_and_in_order(make, loss, duplicate):
    model, transport = make(loss=loss, duplicate=duplicate)
    for number in range(100):
        transport.write32(4 * (number % 8), number)
        if number % 3 == 0:
            assert transport.read32(4 * (number % 8)) == number
    assert transport.read_block(0, 2) == [96, 97]
    assert model.writes == [(4 * (number % 8), number) for number in range(100)]


@pytest.mark.parametrize(("loss", "duplicate"), [(0.0, 0.0), (0.1, 0.2)], ids=["clean", "lossy"])
def test_the_board_reads_and_writes_mapped_memory(make, loss, duplicate):
    model, transport = make(loss=loss, duplicate=duplicate)
    region = transport.map_memory(5000)
    assert region.size == 8192
    rng = random.Random(2)
    expected = bytearray(region.size)
    for _ in range(30):
        count = rng.randint(1, BEATS_MAX)
        at = BEAT_BYTES * rng.randrange(region.size // BEAT_BYTES - count)
        data = rng.randbytes(BEAT_BYTES * count)
        strobes = [rng.choice([ALL, 0, rng.getrandbits(BEAT_BYTES), ALL << 10 & ALL, ALL >> 9]) for _ in range(count)]
        status, _ = model.ask(LinkKind.DMA_WRITE, beats(data, strobes), count=count, address=region.address + at)
        assert status == LinkStatus.OK
        for byte in range(BEAT_BYTES * count):
            if strobes[byte // BEAT_BYTES] >> byte % BEAT_BYTES & 1:
                expected[at + byte] = data[byte]
        assert bytes(region.view) == bytes(expected)
        status, back = model.ask(LinkKind.DMA_READ, count=count, address=region.address + at)
        assert status == LinkStatus.OK
        assert back == bytes(expected[at : at + BEAT_BYTES * count])


def test_memory_that_is_not_mapped_is_refused(make):
    model, transport = make()
    region = transport.map_memory(4096)
    end = region.address + region.size
    payload = beats(bytes(2 * BEAT_BYTES), [ALL, ALL])
    for address in (0, region.address - BEAT_BYTES, end - BEAT_BYTES, end, 1 << 63, (1 << 64) - BEAT_BYTES):
        assert model.ask(LinkKind.DMA_READ, count=2, address=address)[0] == LinkStatus.REFUSED
        assert model.ask(LinkKind.DMA_WRITE, payload, count=2, address=address)[0] == LinkStatus.REFUSED
    assert not any(region.view)


def test_interrupts_become_events(make):
    model, transport = make(duplicate=0.5)
    events = transport.enable_interrupts(3)
    for vector in (2, 0, 2, 9):  # nobody has enabled 9
        assert model.ask(LinkKind.INTERRUPT, value=vector)[0] == LinkStatus.OK
    assert (os.eventfd_read(events[0]), os.eventfd_read(events[2])) == (1, 2)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(events[1])
    for count in (0, 65):
        with pytest.raises(DeviceError, match="at most 64 interrupt vectors"):
            transport.enable_interrupts(count)


def test_a_reset_begins_a_new_session(make):
    model, transport = make()
    first = model.session
    region = transport.map_memory(4096)
    model.ask(LinkKind.DMA_READ, count=1, address=region.address)
    transport.write32(0, 1)
    transport.reset()
    assert (model.resets, model.session != first) == (2, True)
    transport.write32(4, 2)
    assert transport.read32(4) == 2
    assert model.ask(LinkKind.DMA_READ, count=1, address=region.address)[0] == LinkStatus.OK


def test_frames_of_others_are_ignored(make):
    model, transport = make()
    region = transport.map_memory(4096)
    payload = beats(bytes([255]) * BEAT_BYTES, [ALL])
    told = {"kind": LinkKind.DMA_WRITE, "sequence": 1, "count": 1, "address": region.address}
    for dst, src, session in ((HOST, BOARD + 1, model.session), (HOST + 1, BOARD, model.session), (HOST, BOARD, model.session ^ 1)):
        model.send(pack_frame(dst, src, payload, session=session, **told))
    model.send(b"short")
    model.send(bytes(100))
    assert model.ask(LinkKind.DMA_READ, count=1, address=region.address) == (LinkStatus.OK, bytes(BEAT_BYTES))
    assert not any(region.view)


def test_a_silent_board_is_lost(make, monkeypatch):
    monkeypatch.setattr(ethernet, "PING_S", 0.05)
    model, transport = make(silence=0.5)
    time.sleep(1.0)  # pings are answered: nothing is lost
    transport.check()
    model.silent = True
    poll = select.poll()
    poll.register(transport.fileno(), select.POLLIN)
    assert poll.poll(3000)
    with pytest.raises(DeviceLostError, match=r"ethernet:test went away: nothing has been heard of it for 0\.5 s"):
        transport.check()
    with pytest.raises(DeviceLostError, match="went away"):
        transport.read32(0)
    with pytest.raises(DeviceLostError, match="went away"):
        transport.write32(0, 0)


def test_a_board_that_vanishes_ends_an_access_that_waits(make):
    model, transport = make(silence=0.3)
    model.silent = True
    with pytest.raises(DeviceLostError, match="went away"):
        transport.read32(0)


def test_no_board():
    model = ModelBoard()
    model.silent = True
    with pytest.raises(DeviceError, match="No board answers at ethernet:test"):
        EthernetTransport(model.theirs, HOST, silence=0.2, description="ethernet:test")
    model.close()


def test_a_board_of_another_version():
    model = ModelBoard(version=VERSION + 1)
    with pytest.raises(AbiMismatchError, match=rf"speaks version {VERSION + 1} of the host link, this driver {VERSION}"):
        EthernetTransport(model.theirs, HOST, description="ethernet:test")
    model.close()


def test_closed(make):
    _, transport = make()
    transport.close()
    transport.close()
    assert transport.fileno() is None
    for call in (transport.check, lambda: transport.read32(0), lambda: transport.map_memory(1), lambda: transport.enable_interrupts(1)):
        with pytest.raises(DeviceLostError, match="is closed"):
            call()


def test_it_cannot_be_shared(make):
    with pytest.raises(DeviceError, match="cannot be shared"):
        make()[1].share(4096)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("ethernet:", "ethernet:IFACE or ethernet:IFACE,MAC"),
        ("ethernet:lo,nonsense", "a MAC address has six bytes in hex"),
        ("ethernet:lo,ff:ff:ff:ff:ff:ff", "must be unicast"),
    ],
)
def test_bad_specifications(spec, text):
    with pytest.raises(DeviceError, match=text):
        open_transport(spec)


# -- frames ----------------------------------------------------------------------------------


def requests():
    told: list[int] = []
    memory = memoryview(bytearray(4 * BEAT_BYTES))
    return LinkRequests(lambda address, size: memory[address : address + size], told.append), told, memory


def asked(sequence: int, kind: LinkKind, payload: bytes = b"", **fields: int):
    return parse_frame(pack_frame(HOST, BOARD, payload, kind=kind, session=7, sequence=sequence, **fields))


def test_late_copies_change_nothing():
    board, told, memory = requests()
    first = asked(1, LinkKind.DMA_WRITE, beats(b"a" * BEAT_BYTES, [ALL]), count=1)
    reply = board.answer(first)
    assert reply is not None
    memory[:1] = b"x"
    assert board.answer(first) == reply
    assert bytes(memory[:2]) == b"xa"
    assert board.answer(asked(2, LinkKind.INTERRUPT, value=5)) is not None
    assert board.answer(first) is None
    assert board.answer(asked(4, LinkKind.INTERRUPT, value=6)) is None
    assert (told, bytes(memory[:2])) == ([5], b"xa")


def test_sequence_numbers_wrap():
    board, told, _ = requests()
    for number in range(1, 0x10003):
        assert board.answer(asked(number & 0xFFFF, LinkKind.INTERRUPT, value=number & 1)) is not None
    assert len(told) == 0x10002


@pytest.mark.parametrize(
    ("kind", "fields", "payload"),
    [
        (LinkKind.DMA_READ, {"count": 0}, b""),
        (LinkKind.DMA_READ, {"count": BEATS_MAX + 1}, b""),
        (LinkKind.DMA_WRITE, {"count": 2}, bytes(2 * (BEAT_BYTES + STROBE_BYTES) - 8)),
        (LinkKind.HELLO, {}, b""),
    ],
)
def test_what_no_board_asks_is_ignored(kind, fields, payload):
    board, told, memory = requests()
    assert board.answer(asked(1, kind, payload, **fields)) is None
    assert board.answer(asked(1, LinkKind.INTERRUPT, value=3)) is not None
    assert (told, any(memory)) == ([3], False)


def test_frames_are_whole_words_and_have_ethernets_least_size():
    for size in range(0, 200, 7):
        frame = pack_frame(1, 2, bytes(size), kind=LinkKind.PING)
        assert (len(frame) % 8, len(frame) >= 60) == (0, True)
    assert parse_frame(bytes(39)) is None


def test_write_beats_writes_strobed_bytes_only():
    target = memoryview(bytearray(2 * BEAT_BYTES))
    strobe = 1 | 1 << 63 | 0xF0
    write_beats(target, memoryview(beats(bytes(range(1, 129)), [strobe, ALL])), 2)
    expected = [number + 1 if strobe >> number & 1 else 0 for number in range(64)] + list(range(65, 129))
    assert list(target) == expected
