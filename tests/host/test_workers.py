"""Workers without processes: the shared listen table, messages, which frames concern everybody. tests/system has the whole."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether

from acceltcp.abi.messages import LISTEN_COMMAND, CommandOpcode, ListenFlag, Status
from acceltcp.abi.registers import RSS_TABLE_ENTRIES
from acceltcp.abi.toeplitz import RSS_KEY_PUBLISHED, spread_evenly
from acceltcp.host import CommandRefusedError, Device, DeviceError, DeviceLostError
from acceltcp.host import workers as module
from acceltcp.host.queue import CommandResult
from acceltcp.host.sharing import Kind, Sharing, pack_answer, unpack_command
from acceltcp.host.workers import Workers, _is_for_all, _State
from tests.host.abi.test_toeplitz import by_definition
from tests.host.fake_device import FakeTransport
from tests.hw.packet.rss_vectors import VECTORS

LISTEN, UNLISTEN, UPDATE = CommandOpcode.LISTEN, CommandOpcode.UNLISTEN, CommandOpcode.LISTEN_UPDATE


async def idle(nic) -> None:
    """A worker's program."""


class FakeWorker:
    """What `Workers` asks of a `_Worker` when it deals with the listen table."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.state = _State.RUNNING
        self.tasks: set[asyncio.Task[None]] = set()


class FakeNic:
    """The listen table of a NIC: (IPv6, port) -> (index, paused)."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, int], tuple[int, bool]] = {}
        self.commands: list[int] = []
        self.refusal: Status | None = None

    async def command(self, raw: bytes) -> CommandResult:
        if self.refusal is not None:
            raise CommandRefusedError(self.refusal, "refused")
        fields = LISTEN_COMMAND.unpack(raw)
        place = fields["flags"] & ListenFlag.IPV6, fields["port"]
        paused = bool(fields["flags"] & ListenFlag.PAUSED)
        assert fields["flags"] & ListenFlag.SPREAD
        self.commands.append(fields["opcode"])
        if fields["opcode"] == LISTEN:
            assert place not in self.entries
            self.entries[place] = len(self.commands) + 10, paused
        elif fields["opcode"] == UNLISTEN:
            del self.entries[place]
            return CommandResult(Status.OK, 0)
        else:
            self.entries[place] = self.entries[place][0], paused
        return CommandResult(Status.OK, self.entries[place][0])


class Table:
    """Workers with a fake NIC."""

    def __init__(self, count: int) -> None:
        self.workers = Workers(idle, "sim:", ["10.0.0.2/24"], workers=count)
        self.nic = self.workers.nic = FakeNic()  # type: ignore[assignment]
        self.workers._loop = asyncio.get_running_loop()
        self.all = [FakeWorker(index) for index in range(count)]
        self.workers._workers = self.all  # type: ignore[assignment]

    async def run(self, index: int, opcode: int = LISTEN, port: int = 80, **fields: int) -> tuple[Status, int]:
        values = {"opcode": opcode, "port": port, "mss": 1460, "queue": index, "flags": ListenFlag.SPREAD, **fields}
        return await self.workers._listen(index, LISTEN_COMMAND.unpack(LISTEN_COMMAND.pack(**values)))

    def paused(self, port: int = 80) -> bool:
        return self.nic.entries[0, port][1]

    async def end(self, index: int, again: bool = False) -> None:
        self.all[index].state = _State.ENDED
        await self.workers._unlisten(self.all[index], again)  # type: ignore[arg-type]
        if again:
            self.all[index] = FakeWorker(index)


def asynchronous(test):
    def wrapper() -> None:
        asyncio.run(asyncio.wait_for(test(), 8))

    wrapper.__name__ = test.__name__
    return wrapper


@asynchronous
async def test_one_entry_for_all() -> None:
    table = Table(3)
    status, at = await table.run(0)
    assert status == Status.OK
    assert table.paused(), "two workers do not listen yet"
    assert await table.run(1) == (Status.OK, at)
    assert table.paused()
    assert await table.run(2) == (Status.OK, at)
    assert not table.paused()
    assert table.nic.commands == [LISTEN, UPDATE]
    assert await table.run(1) == (Status.DUPLICATE, 0)
    assert await table.run(0, port=81, opcode=UNLISTEN) == (Status.NOT_FOUND, 0)
    for index in (0, 1):
        assert (await table.run(index, UNLISTEN))[0] == Status.OK
        assert (0, 80) in table.nic.entries
        assert await table.run(index, UNLISTEN) == (Status.NOT_FOUND, 0)
    await table.run(2, UNLISTEN)
    assert not table.nic.entries


@asynchronous
async def test_another_listener_at_the_same_place() -> None:
    table = Table(2)
    await table.run(0)
    assert await table.run(1, mss=1200) == (Status.DUPLICATE, 0)
    assert (await table.run(1, port=81))[0] == Status.OK
    assert (await table.run(1, flags=ListenFlag.IPV6))[0] == Status.OK


@asynchronous
async def test_paused_while_all_are() -> None:
    table = Table(2)
    for index in range(2):
        await table.run(index)
    for index, paused, together in ((0, True, False), (1, True, True), (0, False, False), (1, False, False)):
        await table.run(index, UPDATE, flags=ListenFlag.SPREAD | (ListenFlag.PAUSED if paused else 0))
        assert table.paused() == together
    await table.run(0, UPDATE, flags=ListenFlag.SPREAD | ListenFlag.PAUSED)
    assert not table.paused()
    await table.end(1)
    assert table.paused(), "the one that is left has paused the port"


@asynchronous
async def test_the_end_of_a_worker() -> None:
    table = Table(2)
    for index in range(2):
        await table.run(index)
    await table.end(0)
    assert not table.paused()
    await table.end(1)
    assert not table.nic.entries


@asynchronous
async def test_a_successor_is_waited_for() -> None:
    table = Table(2)
    for index in range(2):
        await table.run(index)
    await table.end(0, again=True)
    assert table.paused()
    assert (await table.run(0))[0] == Status.OK
    assert not table.paused()


@asynchronous
async def test_who_does_not_come_is_not_waited_for_long() -> None:
    module_limit, module._LISTEN_S = module._LISTEN_S, 0.05
    try:
        table = Table(2)
        await table.run(0)
        assert table.paused()
        await asyncio.sleep(0.3)
        assert not table.paused()
        await table.end(0, again=True)
        assert table.paused()
        table.workers._expect(0)
        await asyncio.sleep(0.3)
        assert not table.nic.entries, "nobody listens there any more"
    finally:
        module._LISTEN_S = module_limit


@asynchronous
async def test_a_refusal_leaves_nothing() -> None:
    table = Table(2)
    table.nic.refusal = Status.TABLE_FULL
    with pytest.raises(CommandRefusedError):
        await table.run(0)
    table.nic.refusal = None
    assert (await table.run(0))[0] == Status.OK


def test_arguments() -> None:
    for count in (0, -1, 1.5, 64):
        with pytest.raises(ValueError, match=f"workers must be from 1 to 63, not {count}"):
            Workers(idle, "sim:", ["10.0.0.2/24"], workers=count)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="40 bytes, not 3"):
        Workers(idle, "sim:", ["10.0.0.2/24"], workers=1, key=b"abc")


@pytest.mark.parametrize(
    ("device", "count", "opened"),
    [
        ("sim:", 3, "sim:"),
        ("sim:?tap=acc0", 4, "sim:?tap=acc0&queues=8"),
        ("sim:?tap=acc0&loss=0.1", 8, "sim:?tap=acc0&loss=0.1&queues=16"),
        ("sim:?queues=16", 4, "sim:?queues=16"),
        ("vfio-user:/x", 9, "vfio-user:/x"),
    ],
)
def test_a_simulator_gets_a_queue_for_each_worker_and_one_more(monkeypatch, device: str, count: int, opened: str) -> None:
    asked: list[str] = []

    def take(spec: str, **_: object) -> None:
        asked.append(spec)
        raise DeviceError("Enough.")

    monkeypatch.setattr(Device, "open", take)
    with pytest.raises(DeviceError, match="Enough"):
        asyncio.run(Workers(idle, device, ["10.0.0.2/24"], workers=count).start())
    assert asked == [opened]


def test_too_few_queues() -> None:
    sentence = "4 workers need 5 queues .*, {} has 4\\."
    with pytest.raises(DeviceError, match=sentence.format("sim:\\?queues=4")):
        Workers(idle, "sim:?queues=4", ["10.0.0.2/24"], workers=4)
    transport = FakeTransport()
    workers = Workers(idle, Device(transport), ["10.0.0.2/24"], workers=4)
    with pytest.raises(DeviceError, match=sentence.format(transport.description)):
        asyncio.run(workers.start())
    assert transport.closed and not workers.pids
    with pytest.raises(DeviceError, match="1 worker needs 2 queues"):
        Workers(idle, "sim:?queues=1", ["10.0.0.2/24"], workers=1)


@asynchronous
async def test_entries_go_to_those_that_are_left() -> None:
    table = Table(3)
    workers = table.workers
    workers._write_table = lambda new: setattr(workers, "_table", new)  # type: ignore[method-assign]
    workers._table = before = spread_evenly(range(3))
    table.all[1].state = _State.ENDED
    workers._give_away(1)
    after = workers._table
    assert all(new == old for new, old in zip(after, before, strict=True) if old != 1)
    assert set(after) == {0, 2} and abs(after.count(0) - after.count(2)) <= 2


# Messages


@asynchronous
async def test_sharing() -> None:
    owner, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    owner.settimeout(5)
    sharing = Sharing(link, 1, RSS_KEY_PUBLISHED, (40000, 40099))
    frames: list[tuple[bytes, int]] = []
    ended = asyncio.Event()
    sharing.on_frame = lambda frame, port: frames.append((frame, port))
    sharing.on_end = ended.set
    sharing.readings = lambda: {"tcp": {"opened": 3}}
    sharing.start()
    sharing.ready()
    assert owner.recv(100) == bytes([Kind.READY])

    command = LISTEN_COMMAND.pack(opcode=LISTEN, port=80)
    first, second = (asyncio.ensure_future(sharing.run(command, 5)) for _ in range(2))
    await asyncio.sleep(0)
    numbers = []
    for _ in range(2):
        number, asked = unpack_command(owner.recv(1000))
        assert asked == command
        numbers.append(number)
    owner.send(pack_answer(numbers[1], Status.DUPLICATE, 0))
    owner.send(pack_answer(numbers[0], Status.OK, 17))
    owner.send(pack_answer(99, Status.OK, 1))  # nobody waits for it
    assert await first == CommandResult(Status.OK, 17)
    assert await second == CommandResult(Status.DUPLICATE, 0)
    with pytest.raises(TimeoutError):
        await sharing.run(command, 0.01)
    owner.recv(1000)

    owner.send(bytes([Kind.FRAME, 1]) + b"frame")
    owner.send(bytes([Kind.ASK, 5, 0, 0, 0]))
    await asyncio.sleep(0.05)
    assert frames == [(b"frame", 1)]
    assert owner.recv(1000) == bytes([Kind.TELL, 5, 0, 0, 0]) + b'{"tcp": {"opened": 3}}'

    waiting = asyncio.ensure_future(sharing.run(command, 5))
    await asyncio.sleep(0)
    owner.close()
    with pytest.raises(DeviceLostError, match="owns the device has gone"):
        await waiting
    await asyncio.wait_for(ended.wait(), 30)
    with pytest.raises(DeviceError):
        await sharing.run(command, 1)
    link.close()


@asynchronous
async def test_our_share_of_ports() -> None:
    """By the published vectors: a connection is ours if the entry of its hash is."""
    owner, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sharing = Sharing(link, 1, RSS_KEY_PUBLISHED, (40000, 40099))
    sharing.start()
    for vector in VECTORS:
        entry = vector.with_ports % RSS_TABLE_ENTRIES
        for at, ours in ((entry, True), ((entry + 1) % RSS_TABLE_ENTRIES, False)):
            owner.send(bytes([Kind.TABLE, *(int(index == at) for index in range(RSS_TABLE_ENTRIES))]))
            await asyncio.sleep(0.001)
            src, dst = vector.packed
            assert sharing.is_ours(dst, src, vector.src_port, vector.dst_port) == ours
            if not vector.ipv6:
                mapped = [ip_address(f"::ffff:{address}").packed for address in (vector.dst, vector.src)]
                assert sharing.is_ours(*mapped, vector.src_port, vector.dst_port) == ours
    sharing.close()
    owner.close()
    link.close()


@asynchronous
async def test_ports_of_active_opens() -> None:
    owner, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sharing = Sharing(link, 1, RSS_KEY_PUBLISHED, (40000, 40099))
    sharing.start()
    owner.send(bytes([Kind.TABLE, *spread_evenly(range(4))]))
    await asyncio.sleep(0.01)
    local, remote = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])
    ours = {port for port in range(40000, 40100) if by_definition(RSS_KEY_PUBLISHED, remote + local + b"\0\x50" + port.to_bytes(2, "big")) % 4 == 1}
    assert 10 < len(ours) < 50
    used: list[int] = []

    def begin(port: int) -> int:
        if port in used:
            raise OSError(errno.EADDRINUSE, "in use")
        used.append(port)
        return port

    for _ in ours:
        assert sharing.connect(begin, local, remote, 80, 0) in ours
    assert set(used) == ours
    with pytest.raises(OSError, match="in use"):
        sharing.connect(begin, local, remote, 80, 0)
    used.clear()
    mine = min(ours)
    assert sharing.connect(begin, local, remote, 80, mine) == mine
    with pytest.raises(OSError, match="in use"):
        sharing.connect(begin, local, remote, 80, mine)
    other = min(set(range(40000, 40100)) - ours)
    with pytest.raises(OSError, match=f"to port {other} goes to another process") as caught:
        sharing.connect(begin, local, remote, 80, other)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    sharing.close()
    owner.close()
    link.close()


def test_command_of_wrong_size() -> None:
    with pytest.raises(ValueError, match="69 bytes, not 3"):
        unpack_command(b"abc")


# Frames


def test_which_frames_concern_everybody() -> None:
    ether = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
    four, six = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")
    quoted = bytes(IP(src="10.0.0.2", dst="10.0.0.9") / TCP())[:28]
    yes = [
        ether / ARP(op=2, psrc="10.0.0.1"),
        ether / four / ICMP(type=3, code=4) / quoted,
        ether / four / ICMP(type=11) / quoted,
        ether / IP(src="10.0.0.1", dst="10.0.0.2", options=[b"\x01"] * 4) / ICMP(type=12) / quoted,
        ether / six / ICMPv6ND_NA(tgt="fd00::1"),
        ether / six / ICMPv6PacketTooBig(mtu=1280),
        ether / six / ICMPv6DestUnreach(),
    ]
    no = [
        ether / ARP(op=1, pdst="10.0.0.2"),
        ether / four / ICMP(type=8),
        ether / four / ICMP(type=0),
        ether / four / UDP() / b"x",
        ether / four / TCP(),
        ether / six / ICMPv6ND_NS(tgt="fd00::2"),
        ether / six / ICMPv6EchoRequest(),
        ether / six / UDP() / b"x",
        ether / Dot1Q(vlan=5) / ARP(op=2),
    ]
    for wanted, packets in ((True, yes), (False, no)):
        for packet in packets:
            frame = bytes(packet).ljust(60, b"\0")
            assert _is_for_all(memoryview(frame)) == wanted, packet.summary()
    rng = random.Random(5)
    for size in range(120):  # whatever comes
        _is_for_all(memoryview(rng.randbytes(size)))
        _is_for_all(memoryview((bytes(ether) + rng.choice((b"\x08\x00", b"\x86\xdd")) + rng.randbytes(100))[:size]))
