"""Identity, reset, registers and queues of a device, on the functional model."""

from __future__ import annotations

import logging
import random

import pytest

from acceltcp.abi import registers as regs
from acceltcp.abi.messages import (
    COMMAND,
    EVENT,
    RX_COMPLETION,
    RX_FREE,
    TX_DESCRIPTOR,
    CommandOpcode,
    Status,
    TxFlag,
    TxOpcode,
)
from acceltcp.host import device as device_module
from acceltcp.host import queue as queue_module
from acceltcp.host.device import Device, format_mac, parse_mac, random_mac
from acceltcp.host.errors import (
    AbiMismatchError,
    CommandRefusedError,
    DeviceError,
    DeviceLostError,
    DeviceTimeoutError,
)
from acceltcp.host.queue import Queue
from acceltcp.host.rings import RX_PACKING

from .fake_device import FakeTransport


@pytest.fixture
def transport():
    return FakeTransport()


@pytest.fixture
def device(transport):
    device = Device(transport)
    device.set_mac(parse_mac("02:00:00:00:00:05"))
    device.enable()
    return device


def frame(payload: bytes = b"", dst: str = "02:00:00:00:00:05") -> bytes:
    return (parse_mac(dst).to_bytes(6, "big") + b"\x02\0\0\0\0\x09" + b"\x88\xb5" + payload).ljust(60, b"\0")


# -- identity ----------------------------------------------------------------------------


def test_identity(device):
    identity = device.identity
    assert (identity.abi, identity.width, identity.ports, identity.queues) == (f"{regs.ABI_MAJOR}.{regs.ABI_MINOR}", 64, 1, 4)
    assert identity.tick_us == 100 and identity.listeners == 8 and identity.max_frame == 9018
    assert identity.features == regs.Feature.SETUP | regs.Feature.RSS
    device.require(regs.Feature.SETUP)
    with pytest.raises(DeviceError, match="built without SPLICE"):
        device.require(regs.Feature.SPLICE)


def test_not_our_device(transport):
    transport.magic = 0xFFFFFFFF
    with pytest.raises(DeviceError, match=r"no AccelTCP NIC.*0xffffffff"):
        Device(transport)


@pytest.mark.parametrize("abi", [(2, 0), (0, 9)])
def test_other_abi_names_both_versions(transport, abi):
    transport.abi = abi
    with pytest.raises(AbiMismatchError, match=rf"ABI {abi[0]}\.{abi[1]}, this driver ABI {regs.ABI_MAJOR}\.{regs.ABI_MINOR}"):
        Device(transport)


def test_newer_minor_is_taken(transport):
    transport.abi = (1, 7)
    transport.map_hash = 0
    assert Device(transport).identity.abi == "1.7"


def test_other_map(transport):
    transport.map_hash ^= 1
    with pytest.raises(AbiMismatchError, match=r"register map .* is not"):
        Device(transport)


def test_reset_that_never_ends(transport, monkeypatch):
    monkeypatch.setattr(device_module, "WATCHDOG_S", 0.05)
    transport.stuck = True
    with pytest.raises(DeviceTimeoutError, match="did not finish its reset within"):
        Device(transport)


# -- registers ---------------------------------------------------------------------------


def test_accessors(device, transport):
    device.registers.CONTROL.default_queue.write(queue=3)
    assert device.registers.CONTROL.default_queue.read() == {"queue": 3}
    assert device.registers.QUEUE[2].tx_tail.address == regs.QUEUE.address("tx_tail", 2)
    with pytest.raises(TypeError, match=r"QUEUE\[2\]\.tx_tail is write-only"):
        device.registers.QUEUE[2].tx_tail.get()
    with pytest.raises(TypeError, match=r"IDENT\.magic is read-only"):
        device.registers.IDENT.magic.set(1)
    with pytest.raises(ValueError, match="has no field"):
        device.registers.CONTROL.control.write(nonsense=1)
    with pytest.raises(AttributeError, match="no register 'nonsense'"):
        _ = device.registers.CONTROL.nonsense
    with pytest.raises(IndexError):
        _ = device.registers.QUEUE[64]
    device.registers.PORT[0].config.write(promiscuous=1)
    device.registers.PORT[0].config.update(keep_bad=1)
    assert device.registers.PORT[0].config.read() == {"promiscuous": 1, "keep_bad": 1}


def test_mac(device):
    device.set_mac(0x0200_1122_3344)
    assert format_mac(device.mac()) == "02:00:11:22:33:44"
    for bad in ("01:00:00:00:00:00", "00:00:00:00:00:00", "1:2:3", "zz:0:0:0:0:0", "2:0:0:0:0:100"):
        with pytest.raises(ValueError, match="MAC address"):
            parse_mac(bad)
    with pytest.raises(ValueError, match="port must be below 1, not 1"):
        device.set_mac(2, port=1)
    assert random_mac("a") == random_mac("a") != random_mac("b")
    assert parse_mac(format_mac(random_mac())) >> 40 & 3 == 2


def test_secret_is_written_once_and_never_told(device, transport, caplog):
    with caplog.at_level(logging.DEBUG):
        device.set_secret()
        first = transport.key
        device.set_secret()
    assert first != transport.key and len(first) == 16
    assert first.hex() not in caplog.text and "secret" not in repr(vars(device))
    device.set_secret(bytes(range(16)))
    assert transport.key == bytes(range(16))
    with pytest.raises(ValueError, match="16 bytes, not 3"):
        device.set_secret(b"abc")


def test_counters(device, transport):
    transport.counters["rx_bytes"] = 0x1_2345_6789_ABCD
    transport.counters["interrupts"] = 7
    counters = device.counters()
    assert set(counters) == {counter.name for counter in regs.COUNTERS}
    assert (counters["rx_bytes"], counters["interrupts"]) == (0x1_2345_6789_ABCD, 7)


# -- queues ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rx_free": 100}, "rx_free must be a power of two from 8 to 32768, not 100"),
        ({"tx": 4}, "tx must be a power of two from 8 to 32768, not 4"),
        ({"tx": 1024, "events": 1024}, "events must be at least twice tx=1024, not 1024"),
        ({"rx_free": 2048}, "completions must be at least rx_free=2048, not 1024"),
        ({"index": 4}, "queue must be below 4, not 4"),
        ({"buffer_size": 70000}, "buffer_size must be from 64 to 65535, not 70000"),
    ],
)
def test_bad_sizes(device, options, message):
    with pytest.raises(ValueError, match=message):
        Queue(device, **options)


SMALL = {"rx_free": 8, "completions": 16, "tx": 8, "events": 16}


def test_received_frames_come_in_order_over_many_wraps(device, transport):
    queue = Queue(device, **SMALL)
    rng = random.Random(1)
    sent: list[bytes] = []
    got: list[bytes] = []
    while len(got) < 500:
        for _ in range(rng.randrange(9)):
            data = frame(rng.randbytes(rng.randrange(1400)))
            before = transport.counters["rx_drop_no_buffer"]
            transport.inject(data)
            if transport.counters["rx_drop_no_buffer"] == before:
                sent.append(data)
        queue.poll(lambda view, items: got.append(bytes(view)), limit=rng.randrange(1, 9))
    while queue.poll(lambda view, items: got.append(bytes(view))):
        pass
    assert got == sent
    assert queue.stats.rx == len(sent)


def test_frame_that_fits_no_buffer_is_counted_and_its_buffer_used_again(device, transport):
    queue = Queue(device, **SMALL, buffer_size=512)
    got = []
    for _ in range(30):
        transport.inject(frame(bytes(600)))
        queue.poll(lambda view, items: got.append(bytes(view)))
    assert not got and queue.stats.bad_buffers == 30
    transport.inject(frame(b"x"))
    queue.poll(lambda view, items: got.append(bytes(view)))
    assert got == [frame(b"x")]


@pytest.mark.parametrize("seed", range(5))
def test_buffers_that_end_out_of_order_are_posted_again(device, transport, seed):
    rng = random.Random(seed)
    queue = Queue(device, **SMALL)
    state = transport.queue[0]
    free: list[dict[str, int]] = []
    at_first = [RX_FREE.unpack(queue.rx_free.buffer.view, i * RX_FREE.size) for i in range(8)]
    produced = 0
    for _ in range(300):
        while state.free_head != state.free_tail:
            free.append(RX_FREE.unpack(queue.rx_free.buffer.view, state.free_head % 8 * RX_FREE.size))
            state.free_head = state.free_head + 1 & 0xFFFF
        # The device has each buffer once, as it was posted first.
        assert sorted(free, key=lambda entry: entry["tag"]) == at_first
        count = rng.randrange(1, 9)
        wanted = []
        for _ in range(count):
            entry = free.pop(rng.randrange(len(free)) if rng.random() < 0.3 else 0)
            wanted.append(rng.randbytes(rng.randrange(60, 100)))
            transport.at(entry["address"], entry["length"])[: len(wanted[-1])] = wanted[-1]
            place = produced % 16 * RX_COMPLETION.size
            queue.completions.buffer.view[place : place + RX_COMPLETION.size] = RX_COMPLETION.pack(
                tag=entry["tag"], length=len(wanted[-1]), phase=1 - produced // 16 % 2
            )
            produced += 1
        got: list[bytes] = []
        while len(got) < count and queue.poll(lambda view, items, got=got: got.append(bytes(view))):
            pass
        assert got == wanted, f"seed {seed}"


def test_completion_for_a_buffer_that_does_not_exist_is_counted(device, transport, caplog):
    queue = Queue(device, **SMALL)
    queue.completions.buffer.view[: RX_COMPLETION.size] = RX_COMPLETION.pack(tag=8, length=60, phase=1)
    assert queue.poll(lambda view, items: pytest.fail("there is no such buffer")) == 1
    assert queue.stats.bad_buffers == 1 and "buffer 8, which does not exist" in caplog.text


@pytest.mark.parametrize("entries", [8, 16, 64])
def test_full_ring_always_waits_for_an_event(device, entries):
    rng = random.Random(entries)
    queue = Queue(device, rx_free=8, completions=8, tx=entries, events=2 * entries)
    sent = commands = 0
    for _ in range(200):
        while queue.reserve() is not None:
            if rng.random() < 0.3:
                queue.post_command(COMMAND.pack(opcode=CommandOpcode.NOP), lambda result: None, ring=False)
                commands += 1
            else:
                queue.commit(60)
                sent += 1
        ring = [TX_DESCRIPTOR.unpack(queue.tx.buffer.view, i * TX_DESCRIPTOR.size) for i in range(entries)]
        assert any(entry["opcode"] == TxOpcode.COMMAND or entry["flags"] & TxFlag.EVENT for entry in ring)
        queue.tx.head = queue.tx.head + rng.randrange(1, entries + 1) & 0xFFFF
        queue.tx.rung = queue.tx.tail  # as if the device had been told; it would carry them out
    assert min(sent, commands) > 100


def test_packets_and_commands_are_counted_when_they_go(device, transport):
    queue = Queue(device, **SMALL)
    for _ in range(3):
        queue.send(frame())
    results = []
    queue.post_command(COMMAND.pack(opcode=CommandOpcode.NOP), results.append, ring=False)
    assert (queue.stats.tx, queue.stats.commands) == (0, 0)
    queue.flush()
    queue.flush()
    queue.poll(lambda view, items: None)
    assert (queue.stats.tx, queue.stats.commands) == (3, 1) and results[0].status is Status.OK


def test_handler_that_fails_costs_no_buffer(device, transport, caplog):
    queue = Queue(device, **SMALL)

    def fail(view, items):
        raise RuntimeError("no")

    for _ in range(20):
        transport.inject(frame())
        queue.poll(fail)
    assert queue.stats.rx == 20 and "could not be handled" in caplog.text


def test_completion_fields(device, transport):
    queue = Queue(device, **SMALL)
    seen = []
    transport.deliver(frame(), {"l3_offset": 14, "vlan_tci": 0x1234, "wscale": 9, "port": 1, "verdict": 3})
    queue.poll(lambda view, items: seen.append({name: slot.of(items) for name, slot in RX_PACKING.slots.items()}))
    assert (seen[0]["l3_offset"], seen[0]["vlan_tci"], seen[0]["wscale"]) == (14, 0x1234, 9)
    assert (seen[0]["port"], seen[0]["verdict"], seen[0]["length"]) == (1, 3, 60)


def test_send_over_many_wraps_reuses_slots_only_when_read(device, transport):
    queue = Queue(device, **SMALL)
    wire: list[bytes] = []
    transport.on_wire = wire.append
    rng = random.Random(2)
    sent = []
    blocked = 0
    for i in range(600):
        transport.frozen = rng.random() < 0.5
        data = frame(i.to_bytes(4, "big") + rng.randbytes(rng.randrange(1000)))
        while not queue.send(data):
            blocked += 1
            queue.flush()
            transport.thaw()
            queue.poll(lambda view, items: None)
        sent.append(data)
        if rng.random() < 0.5:
            queue.flush()
    queue.flush()
    transport.thaw()
    assert wire == sent and blocked > 10
    assert queue.drain()


def test_space_is_told_after_a_full_ring(device, transport):
    queue = Queue(device, **SMALL)
    told = []
    queue.on_space = lambda: told.append(1)
    transport.frozen = True
    while queue.send(frame()):
        pass
    queue.flush()
    assert not queue.poll(lambda view, items: None) and not told
    transport.thaw()
    queue.poll(lambda view, items: None)
    assert told == [1]


@pytest.mark.parametrize("size", [13, 2049])
def test_frame_of_impossible_size(device, size):
    with pytest.raises(ValueError, match=f"14 to 2048 bytes, not {size}"):
        Queue(device, **SMALL).send(bytes(size))


def test_transmit_error_is_counted(device, transport, caplog):
    queue = Queue(device, **SMALL)
    queue.tx.push(0xDEAD0000, 60, 0, 0, 0, 1, 0)
    queue.flush()
    queue.poll(lambda view, items: None)
    assert queue.stats.tx_errors == 1 and "BAD_ADDRESS" in caplog.text
    assert queue.tx.space == 8


def test_commands(device, transport):
    queue = Queue(device, **SMALL)
    for _ in range(40):
        assert queue.run_command(COMMAND.pack(opcode=CommandOpcode.NOP)).status == Status.OK
    with pytest.raises(CommandRefusedError, match="refused command 99: BAD_OPCODE") as refused:
        queue.run_command(COMMAND.pack(opcode=99))
    assert refused.value.status == Status.BAD_OPCODE
    with pytest.raises(ValueError, match="64 bytes, not 3"):
        queue.run_command(b"abc")


def test_command_watchdog(device, transport):
    queue = Queue(device, **SMALL)
    transport.swallow_commands = True
    with pytest.raises(DeviceTimeoutError, match=r"did not finish NOP within 0\.05 s"):
        queue.run_command(COMMAND.pack(), timeout=0.05)
    transport.swallow_commands = False
    transport.post_event(0, type=2, tag=1)  # late: nobody waits any more
    assert queue.run_command(COMMAND.pack()).status == Status.OK


def test_lost_device_is_told(device, transport):
    queue = Queue(device, **SMALL)
    transport.dead = DeviceLostError("fake: went away.")
    with pytest.raises(DeviceLostError):
        queue.run_command(COMMAND.pack())


def test_event_overflow_is_told(device, transport, caplog):
    queue = Queue(device, **SMALL)
    entry = transport._entry(0, "event", 0, EVENT.size)
    entry[:] = EVENT.pack(type=99, overflow=1, phase=1)
    queue.poll(lambda view, items: None)
    assert queue.stats.event_overflows == 1 and "lost events" in caplog.text


def test_interrupt_comes_at_once_when_something_is_there(device, transport):
    queue = Queue(device, **SMALL)
    device.transport.enable_interrupts(1)
    queue.arm()
    assert transport.counters["interrupts"] == 0
    transport.inject(frame())
    transport.inject(frame())
    assert transport.counters["interrupts"] == 1
    queue.arm()
    assert transport.counters["interrupts"] == 2
    queue.poll(lambda view, items: None)
    queue.arm()
    assert transport.counters["interrupts"] == 2


def test_refused_queue(device, transport, monkeypatch):
    monkeypatch.setattr(device.memory, "allocate", lambda size, alignment=64, real=device.memory.allocate: _shifted(real(size + 8)))
    with pytest.raises(DeviceError, match="was refused"):
        Queue(device, **SMALL)


def _shifted(buffer):
    return type(buffer)(buffer.view[8:], buffer.address + 8, buffer.size - 8)


def test_stopped_queue_gives_its_memory_back(device, transport):
    for _ in range(50):
        queue = Queue(device)
        queue.stop()
        queue.stop()
    assert len(transport.memory) <= 4


def test_queue_that_never_stops(device, transport, monkeypatch):
    queue = Queue(device, **SMALL)
    monkeypatch.setattr(queue_module, "WATCHDOG_S", 0.02)
    real = transport.read32
    idle = regs.QUEUE.address("status", 0)
    monkeypatch.setattr(transport, "read32", lambda offset: 0 if offset == idle else real(offset))
    with pytest.raises(DeviceTimeoutError, match="did not become idle"):
        queue.stop()
