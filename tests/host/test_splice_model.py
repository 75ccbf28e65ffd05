"""The model of the NIC's splicing (`fake_splice`): exact values for each of its rules, and packets read by scapy."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from acceltcp.abi.messages import (
    SPLICE_COMMAND,
    SPLICE_EVENT,
    SPLICE_SIDE,
    SPLICE_UPDATE_COMMAND,
    CommandOpcode,
    EventType,
    SpliceSideFlag,
    Status,
    Verdict,
)
from acceltcp.host.device import Device
from acceltcp.host.queue import Queue

from .fake_device import FakeTransport
from .fake_splice import FakePair, rewrite

M32 = 0xFFFFFFFF
FIN, SYN, RST, PSH, ACK, ECE = 1, 2, 4, 8, 16, 64
OUR_MAC = bytes.fromhex("020000000002")


def number(address: str) -> int:
    packed = IPv6(dst=address).dst if ":" in address else address
    raw = bytes(IPv6(dst=packed))[24:40] if ":" in address else bytes(IP(dst=packed))[16:20]
    return int.from_bytes(raw.rjust(16, b"\0"), "little")


def side(remote: str, local: str, remote_port: int, local_port: int, **fields: int) -> dict[str, int]:
    told = {
        "remote": number(remote), "local": number(local), "remote_port": remote_port, "local_port": local_port,
        "dst_mac": int.from_bytes(bytes.fromhex("0200000000") + bytes([remote_port & 0xFF]), "little"), "vlan_tci": 0,
        "flags": SpliceSideFlag.TIMESTAMPS | SpliceSideFlag.SACK, "port": 0, "snd_shift": 7, "rcv_shift": 7,
        "snd_nxt": 0, "snd_una": 0, "rcv_nxt": 0, "ts_offset": 0,
    }  # fmt: skip
    return {**told, **fields}


def sides(**both: int) -> list[dict[str, int]]:
    """The client: we have sent up to 1000, of which 900 are acknowledged, and received up to 5000; the server: all of 70000, and
    up to 2^32 - 100."""
    return [
        side("10.0.0.1", "10.0.0.2", 4001, 80, snd_nxt=1000, snd_una=900, rcv_nxt=5000, ts_offset=50, **both),
        side("10.0.0.3", "10.0.0.2", 8080, 4003, snd_nxt=70000, snd_una=70000, rcv_nxt=M32 - 99, ts_offset=7, **both),
    ]


def pair(limit: int | None = None, idle: int = 0) -> FakePair:
    made = FakePair.made(1 << 24, 0, sides(), idle, limit)
    made.activate(0)
    return made


def send(made: FakePair, d: int, seq: int, ack: int, length: int = 0, flags: int = ACK, tsval: int | None = None, now: int = 0):
    return made.packet(d, seq & M32, ack & M32, flags, length, tsval, now, 5)


HOST_ONLY, FORWARDED, COPIED = (True, False, Verdict.DIVERTED), (False, True, Verdict.PLAIN), (True, True, Verdict.GUARD)


def test_numbers_begin_where_the_host_has_left_off():
    made = pair()
    client, server = made.sides
    assert client.offset == 65000 and server.offset == 1100  # 70000 - 5000, 1000 - (2^32 - 100)
    assert (client.guard, server.guard, client.guard_end) == (True, False, 1000)


def test_packets_are_copied_until_the_backlog_is_acknowledged():
    made = pair()
    assert send(made, 0, 5000, 950, 10) == COPIED
    assert send(made, 1, M32 - 99, 70010) == COPIED
    assert send(made, 0, 5010, 1000) == COPIED  # as it was before this packet
    assert send(made, 0, 5010, 1000) == FORWARDED
    assert send(made, 1, M32 - 99, 70010, 200) == FORWARDED
    client, server = made.sides
    assert (client.ack, client.snd_end, client.octets, client.packets) == (1000, 5010, 10, 3)
    assert (server.ack, server.snd_end, server.octets, server.packets) == (70010, 100, 200, 2)


@pytest.mark.parametrize(
    ("ack", "taken"), [(899, 900), (900, 900), (901, 901), (1000, 1000), (1001, 1001), (999 + (1 << 20), 999 + (1 << 20)), (1000 + (1 << 20), 900)]
)
def test_acknowledgments(ack, taken):
    """What is beyond the forwarded data the host has sent on, within bounds."""
    made = pair()
    send(made, 0, 5000, ack)
    assert made.sides[0].ack == taken
    assert made.sides[1].snd_end == (max(taken, 1000) - 1100) & M32


def test_both_close():
    made = pair(idle=100)
    send(made, 0, 5000, 1000)
    assert send(made, 0, 5000, 1000, 5, FIN | ACK, now=1) == FORWARDED
    assert (made.sides[0].snd_end, made.sides[0].fin) == (5006, True)
    send(made, 1, M32 - 99, 70006, flags=FIN | ACK, now=2)
    assert made.state == "ACTIVE"
    send(made, 0, 5006, 1001, now=3)
    assert made.state == "LINGER" and made.deadline == 8
    made.sweep(7)
    assert made.state == "LINGER"
    made.sweep(8)
    assert (made.state, made.status) == ("ENDING", Status.OK)


def test_a_fin_that_was_lost_at_first():
    """What follows it has its number already."""
    made = pair()
    send(made, 0, 5001, 1000)
    assert (made.sides[0].snd_end, made.sides[0].fin) == (5001, False)
    send(made, 0, 5000, 1000, flags=FIN | ACK)
    assert (made.sides[0].snd_end, made.sides[0].fin) == (5001, True)


def test_a_syn_ends_what_lingers():
    made = pair()
    send(made, 0, 5000, 1000, flags=FIN | ACK)
    send(made, 1, M32 - 99, 70001, flags=FIN | ACK)
    send(made, 0, 5001, 1001)
    assert made.state == "LINGER"
    assert send(made, 0, 77, 0, flags=SYN) == (False, False, Verdict.PLAIN)
    assert (made.state, made.status) == ("ENDING", Status.OK)


@pytest.mark.parametrize(("seq", "valid"), [(4999, False), (5000, True), (5001, False), (5010, True)])
def test_resets_must_be_exact(seq, valid):
    made = pair()
    send(made, 0, 5000, 1000, 10)
    assert send(made, 0, seq, 0, flags=RST)[1]
    assert (made.state == "ENDING") == valid
    if valid:
        assert (made.status, made.reset_by) == (Status.RESET, 0)


def test_a_limit():
    made = pair(limit=1000)
    assert made.limit_end == 2000
    assert send(made, 0, 5000, 1000, 10) == HOST_ONLY
    assert send(made, 0, 5000, 1000) == FORWARDED
    assert made.sides[0].ack == 1000
    assert send(made, 1, M32 - 99, 70000, 600) == FORWARDED
    assert send(made, 1, 500, 70000, 401) == HOST_ONLY  # a byte too many
    assert send(made, 1, 500, 70000, 400, FIN | ACK) == HOST_ONLY
    assert send(made, 1, 900, 70000) == FORWARDED
    assert send(made, 0, 5010, 1999) == FORWARDED and made.state == "ACTIVE"
    assert send(made, 0, 5010, 2000) == FORWARDED
    assert (made.state, made.status) == ("ENDING", Status.LIMIT)
    assert send(made, 0, 5010, 2000) == HOST_ONLY
    assert (made.sides[1].octets, made.sides[0].octets) == (600, 0)


def test_a_limit_whose_end_the_host_has_sent_on():
    made = pair(limit=1000)
    send(made, 1, M32 - 99, 70000, 600)
    assert send(made, 1, 500, 70000, 401) == HOST_ONLY
    send(made, 0, 5000, 2000)
    assert made.status == Status.LIMIT and made.sides[1].snd_end == 900


def test_idle():
    made = pair(idle=3)
    send(made, 0, 5000, 1000, now=10)
    made.sweep(12)
    assert made.state == "ACTIVE"
    made.sweep(13)
    assert (made.state, made.status) == ("ENDING", Status.IDLE)


def test_time_stamps():
    made = pair()
    send(made, 0, 5000, 1000, tsval=M32)
    assert made.sides[0].tsval == M32
    send(made, 0, 5000, 1000, tsval=5)
    send(made, 0, 5000, 1000, tsval=4)
    assert made.sides[0].tsval == 5


# -- the packet that leaves ----------------------------------------------------------------------


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("v6", [False, True])
def test_a_translated_packet(v6, tagged):
    both = sides()
    if v6:
        for told, remote in zip(both, ("fd00::1", "fd00::3"), strict=True):
            told.update(remote=number(remote), local=number("fd00::2"), flags=told["flags"] | SpliceSideFlag.IPV6)
    if tagged:
        both[1].update(flags=both[1]["flags"] | SpliceSideFlag.VLAN, vlan_tci=0x2005)
    both[1]["rcv_shift"] = 5
    made = FakePair.made(0, 0, both, 0, None)
    ip = IPv6(src="fd00::1", dst="fd00::2", hlim=9, tc=3) if v6 else IP(src="10.0.0.1", dst="10.0.0.2", ttl=9, tos=3)
    options = [("NOP", None), ("NOP", None), ("Timestamp", (100, 200)), ("SAck", (950, 1100))]
    frame = bytes(
        Ether(src="02:00:00:00:00:01", dst=OUR_MAC.hex(":")) / ip
        / TCP(sport=4001, dport=80, seq=5000, ack=900, flags="PAE", window=100, options=options) / b"hello"
    )  # fmt: skip
    out = rewrite(frame, 14, 54 if v6 else 34, made, 0, OUR_MAC)
    assert out is not None
    got = Ether(out)
    assert got.src == OUR_MAC.hex(":") and got.dst == "02:00:00:00:00:90"
    assert (got[Dot1Q].vlan, got[Dot1Q].prio) == (5, 1) if tagged else Dot1Q not in got
    network = got[IPv6] if v6 else got[IP]
    assert (network.src, network.dst) == (("fd00::2", "fd00::3") if v6 else ("10.0.0.2", "10.0.0.3"))
    assert (network.hlim, network.tc) == (8, 0) if v6 else (network.ttl, network.tos) == (8, 0)
    tcp = got[TCP]
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack) == (4003, 8080, 70000, 900 - 1100 & M32)
    assert (str(tcp.flags), tcp.window) == ("PA", 400)
    said = dict(tcp.options)
    assert said["Timestamp"] == (107, 150) and said["SAck"] == (950 - 1100 & M32, 0)
    assert bytes(tcp.payload)[:5] == b"hello"
    # Its checksums are right: scapy computes the same.
    again = Ether(out)
    del again[TCP].chksum
    if not v6:
        del again[IP].chksum
    assert bytes(again) == out
    frame = bytearray(frame)
    frame[14 + (7 if v6 else 8)] = 1
    assert rewrite(bytes(frame), 14, 54 if v6 else 34, made, 0, OUR_MAC) is None


# -- the device ----------------------------------------------------------------------------------


class Machine:
    """A device, a queue, memory for the table."""

    def __init__(self, splices: int = 2) -> None:
        self.transport = FakeTransport()
        self.transport.give_splices(splices)
        self.device = Device(self.transport)
        self.queue = Queue(self.device)
        self.table = self.device.memory.allocate(256, 256)
        self.events: list[dict[str, int]] = []

    def prepare(self) -> None:
        self.device.prepare_flows(time_wait=1, fin_wait_2=1, linger=1, max_rto=1)

    def splice(self, both: list[dict[str, int]], **fields: int) -> tuple[int, int]:
        for at, told in enumerate(both):
            self.table.view[at * SPLICE_SIDE.size : (at + 1) * SPLICE_SIDE.size] = SPLICE_SIDE.pack(**told)
        command = SPLICE_COMMAND.pack(**{"opcode": CommandOpcode.SPLICE, "table": self.table.address, **fields})
        return self._run(command)

    def update(self, name: int) -> tuple[int, int]:
        return self._run(SPLICE_UPDATE_COMMAND.pack(opcode=CommandOpcode.SPLICE_UPDATE, splice=name))

    def _run(self, command: bytes) -> tuple[int, int]:
        results: list[tuple[int, int]] = []
        self.queue.post_command(command, lambda result: results.append((result.status, result.value)))
        self.queue.poll_events()
        return results[0]


@pytest.mark.parametrize(
    ("fields", "side_fields"),
    [
        ({"limit": 1}, {}), ({"bounded": 1}, {}), ({"bounded": 1, "limit": (1 << 30) + 1}, {}), ({"idle": 0x8000}, {}),
        ({"table": 1 << 54}, {}), ({"table": 128}, {}), ({}, {"flags": 1}), ({}, {"flags": 32}), ({}, {"snd_shift": 15}),
        ({}, {"port": 1}), ({}, {"remote": number("10.0.0.2"), "remote_port": 80, "local_port": 80}),
    ],
)  # fmt: skip
def test_bad_arguments(fields, side_fields):
    machine = Machine()
    machine.prepare()
    both = sides()
    both[0].update(side_fields)
    assert machine.splice(both, **fields)[0] == Status.BAD_ARGUMENT
    assert not machine.transport.splices.pairs


def test_refusals():
    machine = Machine(splices=1)
    assert machine.splice(sides())[0] == Status.NO_SECRET
    machine.prepare()
    assert machine.splice(sides(), table=1 << 40)[0] == Status.BAD_ADDRESS
    same = sides()
    assert machine.splice([same[0], same[0]])[0] == Status.BAD_ARGUMENT
    assert machine.splice(sides())[0] == Status.OK
    assert machine.device.registers.SPLICE.held.get() == 1
    assert machine.splice(sides())[0] == Status.TABLE_FULL
    machine.transport.splices.most = 2
    assert machine.splice(sides())[0] == Status.DUPLICATE


def test_names_are_not_taken_for_others():
    machine = Machine()
    machine.prepare()
    told: list[dict[str, int]] = []
    machine.queue.on_splice_event = lambda raw: told.append(SPLICE_EVENT.unpack(raw))
    status, first = machine.splice(sides())
    assert status == Status.OK
    assert machine.update(first + 1)[0] == Status.NOT_FOUND
    assert machine.update(first)[0] == Status.OK
    machine.queue.poll_events()
    assert [(one["type"], one["status"], one["splice"]) for one in told] == [
        (EventType.SPLICE_SIDE, Status.OK, first), (EventType.SPLICE_DONE, Status.ABORTED, first),
    ]  # fmt: skip
    assert machine.update(first)[0] == Status.NOT_FOUND
    status, second = machine.splice(sides())
    assert status == Status.OK and second != first
    assert machine.update(first)[0] == Status.NOT_FOUND
