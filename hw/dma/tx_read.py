"""`TxRead`: checks what is to be sent and asks the bus for it.

Descriptors of the hosts and final frames of flows (docs/teardown.md) take turns. Each becomes one
`TxJob`, in order, with the outcome of its checks; a job whose status is not OK is asked nothing
for. The others are cut into bursts at multiples of `burst_bytes`.

* Latency: 4 cycles from descriptor or frame to read request.
* Throughput: one descriptor or frame and one burst per cycle; one of n bursts takes n cycles. While both
  wait, they alternate.
* Registered: `request`. `popped.ready` and `frames.ready` pass through three pipeline stages and depend
  on who asks.
* Overflow: a burst is requested only when `room` (beats) is there for all of its data.
* Reset: forgets what is under way.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from acceltcp.abi.messages import COMMAND, TX_DESCRIPTOR, Status, TxFlag, TxOpcode
from acceltcp.abi.registers import PORTS_MAX
from acceltcp.abi.wire import ETHERNET, ICMP, IPV4, IPV6, TCP, VLAN, TCPOption

from ..abi import message_layout
from ..config import AXI_BYTES, NicConfig
from ..csr.bus import QUEUE_BITS
from ..packet.meta import TxPatch
from .axi import ReadRequest, burst_bytes
from .descriptors import Popped

__all__ = ["FINAL_OFFSETS", "TIMESTAMPS_BYTES", "TxFrame", "TxJob", "TxRead"]

LENGTH_BITS = 14
"""Frames have at most 16,128 bytes (`NicConfig`)."""

UDP_HEADER = 8
ICMPV6_CHECKED = ICMP.byte_offset("checksum") + 2
"""What must lie in the frame of an ICMPv6 message: up to its checksum."""

FINAL_OFFSETS = {
    version: (ETHERNET.size + header.size, ETHERNET.size + VLAN.size + header.size)
    for version, header in (("ipv4", IPV4), ("ipv6", IPV6))
}
"""Where the TCP header of a final frame may start, without and with a VLAN tag."""

TIMESTAMPS_BYTES = 2 + TCPOption.TIMESTAMPS.length
"""Two NOPs and the timestamps option: all options that a final frame may have."""


def TxFrame(config):  # noqa: N802
    """A final frame of a flow that the NIC holds, to be read from host memory and sent.

    `index` and `last` (of its job) come back with its end; `patch` is written into it.
    """
    return data.StructLayout(
        {
            "address": 64,
            "length": 16,
            "port": (PORTS_MAX - 1).bit_length(),
            "l4_offset": 8,
            "ipv6": 1,
            "index": config.flow_bits,
            "last": 1,
            "patch": TxPatch,
        }
    )


def TxJob(axi_bytes=AXI_BYTES):  # noqa: N802
    """A checked descriptor or final frame on its way through the TX DMA."""
    return data.StructLayout(
        {
            "queue": QUEUE_BITS,
            "index": 16,  # free-running ring index
            "status": 4,  # acceltcp.abi.messages.Status; anything but OK: nothing is read
            "command": 1,  # else a frame
            "final": 1,  # a final frame of a flow: no queue, no index, no event
            "notify": 1,  # TX_DONE is asked for
            "offset": exact_log2(axi_bytes),  # of the first byte in the first bus beat
            "length": LENGTH_BITS,
            "beats": range((1 << LENGTH_BITS) // axi_bytes + 2),  # of the bus
            "extra": 1,  # one more beat on the bus than in the packet
            "port": 1,
            "l3_offset": 8,
            "l4_offset": 8,
            "flags": 6,  # TxFlag
        }
    )


def _Checked(axi_bytes):  # noqa: N802
    """A job and the address that it no longer needs later."""
    return data.StructLayout({"job": TxJob(axi_bytes), "address": 64})


class TxRead(wiring.Component):
    """Descriptors and final frames in; jobs and read requests out.

    Members
    -------
    popped: In(stream(Popped)); answers with ok = 0 are dropped.
    frames: In(stream(TxFrame(config))).
    command_free: a command may be taken. Without it one waits, and final frames go past it.
    command: one is taken in this cycle. blocked: one waits for `command_free`.
    room: beats that are free in the read buffer.
    claim: beats taken from `room` in this cycle.
    request: Out(stream(ReadRequest)).
    jobs: Out(stream(TxJob)); a job is put out together with its first request.
    idle: nothing is under way.
    """

    def __init__(self, config):
        if not isinstance(config, NicConfig):
            raise TypeError(f"config must be a NicConfig, not {config!r}")
        self._config = config
        self._page_beats = burst_bytes(config.axi_bytes) // config.axi_bytes
        super().__init__(
            {
                "popped": In(stream.Signature(Popped)),
                "frames": In(stream.Signature(TxFrame(config))),
                "command_free": In(1),
                "command": Out(1),
                "blocked": Out(1),
                "room": In(range(config.read_beats + 1)),
                "claim": Out(range(self._page_beats + 1)),
                "request": Out(stream.Signature(ReadRequest)),
                "jobs": Out(stream.Signature(TxJob(config.axi_bytes))),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi_bytes, page_beats = self._config.axi_bytes, self._page_beats
        beat_bits, page_bits = exact_log2(axi_bytes), exact_log2(burst_bytes(axi_bytes))
        layout = _Checked(axi_bytes)

        # Stage 1: every check by itself.
        ready2, ready3 = Signal(), Signal()
        valid1, valid2, valid3 = Signal(), Signal(), Signal()
        checked1 = Signal(layout, reset_less=True)
        wrong = Signal(data.StructLayout({status.name: 1 for status in self._checks}), reset_less=True)
        self._take(m, ~valid1 | ready2, valid1, checked1, wrong)

        # Stage 2: the status, and how many beats.
        checked2 = Signal(layout, reset_less=True)
        to_page_end = Signal(range(page_beats + 1), reset_less=True)
        total, net = Signal(LENGTH_BITS + 1), Signal(LENGTH_BITS + 1)
        m.d.comb += [
            ready2.eq(~valid2 | ready3),
            net.eq(checked1.job.length + (axi_bytes - 1)),
            total.eq(checked1.job.length + checked1.job.offset + (axi_bytes - 1)),
        ]
        with m.If(ready2):
            m.d.sync += [
                valid2.eq(valid1),
                checked2.eq(checked1),
                checked2.job.beats.eq(total[beat_bits:]),
                checked2.job.extra.eq(total[beat_bits:] != net[beat_bits:]),
                to_page_end.eq(page_beats - checked1.address[beat_bits:page_bits]),
                checked2.job.status.eq(Status.OK),
            ]
            for status in reversed(self._checks):
                with m.If(wrong[status.name]):
                    m.d.sync += checked2.job.status.eq(status)

        # Stage 3: the first burst. A frame that runs past the end of the address space is bad.
        checked3 = Signal(layout, reset_less=True)
        first_beats = Signal(range(page_beats + 1), reset_less=True)
        several = Signal(reset_less=True)
        crosses = Signal()
        m.d.comb += crosses.eq(checked2.job.beats > to_page_end)
        with m.If(ready3):
            m.d.sync += [
                valid3.eq(valid2),
                checked3.eq(checked2),
                first_beats.eq(Mux(crosses, to_page_end, checked2.job.beats)),
                several.eq(crosses),
            ]
            with m.If(crosses & checked2.address[page_bits:].all() & (checked2.job.status == Status.OK)):
                m.d.sync += checked3.job.status.eq(Status.BAD_ADDRESS)

        # Stage 4: requests.
        more = Signal()
        left = Signal.like(checked3.job.beats, reset_less=True)
        page = Signal(64 - page_bits, reset_less=True)
        request = Signal(ReadRequest, reset_less=True)
        request_valid = Signal()
        beats = Signal(range(page_beats + 1))
        go, last, good, free = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            good.eq(checked3.job.status == Status.OK),
            beats.eq(Mux(more, Mux(left > page_beats, page_beats, left), first_beats)),
            last.eq(Mux(more, left <= page_beats, ~(several & good))),
            free.eq(~request_valid | self.request.ready),
            # jobs.valid must not drop once it is up: `room` and `free` only grow while waiting.
            self.jobs.payload.eq(checked3.job),
            self.jobs.valid.eq(valid3 & ~more & (~good | (free & (self.room >= beats)))),
            go.eq(Mux(more, free & (self.room >= beats), self.jobs.valid & self.jobs.ready)),
            ready3.eq(~valid3 | (go & last)),
            self.claim.eq(Mux(go & good, beats, 0)),
            self.request.payload.eq(request),
            self.request.valid.eq(request_valid),
            self.idle.eq(~valid1 & ~valid2 & ~valid3 & ~request_valid),
        ]
        with m.If(self.request.ready):
            m.d.sync += request_valid.eq(0)
        with m.If(go):
            m.d.sync += [
                more.eq(~last),
                left.eq(Mux(more, left, checked3.job.beats) - beats),
                page.eq(Mux(more, page, checked3.address[page_bits:]) + 1),
            ]
            with m.If(good):
                m.d.sync += [
                    request_valid.eq(1),
                    request.address.eq(
                        Mux(more, page << page_bits, Cat(C(0, beat_bits), checked3.address[beat_bits:]))
                    ),
                    request.length.eq(beats - 1),
                ]
        return m

    def _take(self, m, ready, valid, checked, wrong):
        """Descriptors and frames by turns, each with its own checks, into the first stage."""
        descriptor = Signal(message_layout(TX_DESCRIPTOR))
        frame = self.frames.p
        # After a descriptor the frames are first, and the other way round.
        frames_first, take_frame, command = Signal(), Signal(), Signal()
        m.d.comb += [
            descriptor.as_value().eq(self.popped.p.descriptor),
            command.eq(self.popped.valid & self.popped.p.ok & (descriptor.opcode == TxOpcode.COMMAND)),
            self.blocked.eq(command & ~self.command_free),
            self.command.eq(command & self.popped.ready),
            take_frame.eq(self.frames.valid & (frames_first | ~self.popped.valid | self.blocked)),
            self.popped.ready.eq(ready & ~take_frame & ~self.blocked),
            self.frames.ready.eq(ready & take_frame),
        ]
        flags = TxFlag.L4_CHECKSUM | Mux(frame.ipv6, int(TxFlag.IPV6), int(TxFlag.IPV4_CHECKSUM))
        frame_wrong = self._wrong_frame(frame)
        with m.If(ready):
            m.d.sync += [
                valid.eq(take_frame | (self.popped.valid & self.popped.p.ok & ~self.blocked)),
                checked.job.queue.eq(self.popped.p.queue),
                checked.job.index.eq(self.popped.p.index),
                checked.job.final.eq(take_frame),
            ]
            with m.If(take_frame):
                m.d.sync += [
                    frames_first.eq(0),
                    checked.address.eq(frame.address),
                    checked.job.command.eq(0),
                    checked.job.notify.eq(0),
                    checked.job.offset.eq(frame.address),
                    checked.job.length.eq(frame.length),
                    checked.job.port.eq(frame.port),
                    checked.job.l3_offset.eq(frame.l4_offset - Mux(frame.ipv6, IPV6.size, IPV4.size)),
                    checked.job.l4_offset.eq(frame.l4_offset),
                    checked.job.flags.eq(flags),
                ]
            with m.Else():
                m.d.sync += [
                    checked.address.eq(descriptor.address),
                    checked.job.command.eq(descriptor.opcode == TxOpcode.COMMAND),
                    checked.job.notify.eq(descriptor.flags & TxFlag.EVENT != 0),
                    checked.job.offset.eq(descriptor.address),
                    checked.job.length.eq(descriptor.length),
                    checked.job.port.eq(descriptor.port),
                    checked.job.l3_offset.eq(descriptor.l3_offset),
                    checked.job.l4_offset.eq(descriptor.l4_offset),
                    checked.job.flags.eq(descriptor.flags),
                ]
                with m.If(self.popped.valid):
                    m.d.sync += frames_first.eq(1)
            for name, bad in self._wrong(m, descriptor, self.popped.p.error).items():
                m.d.sync += wrong[name].eq(Mux(take_frame, frame_wrong.get(name, 0), bad))

    def _wrong_frame(self, frame):
        """Name of a status -> the final frame deserves it. (CLOSE has looked at the table once, but the
        host may have written there since.)"""

        def known(version):
            return Cat(frame.l4_offset == offset for offset in FINAL_OFFSETS[version]).any()

        shortest = frame.l4_offset + Mux(frame.patch.timestamps, TCP.size + TIMESTAMPS_BYTES, TCP.size)
        return {
            "BAD_LENGTH": (frame.length < shortest) | (frame.length > self._config.max_frame),
            "BAD_ARGUMENT": ~Mux(frame.ipv6, known("ipv6"), known("ipv4"))
            | (frame.port >= self._config.ports),
        }

    _checks = (
        Status.BAD_ADDRESS,
        Status.BAD_OPCODE,
        Status.BAD_LENGTH,
        Status.FEATURE_ABSENT,
        Status.BAD_ARGUMENT,
    )
    """What can be wrong, the most telling first: the first that holds is reported."""

    def _wrong(self, m, descriptor, error):
        """Name of a status -> the descriptor deserves it."""

        def flag(bit):
            return (descriptor.flags & bit) != 0

        send, command = Signal(name="send"), Signal(name="command")
        ipv4_sum, l4_sum, ipv6, udp, icmpv6 = (
            flag(bit)
            for bit in (TxFlag.IPV4_CHECKSUM, TxFlag.L4_CHECKSUM, TxFlag.IPV6, TxFlag.UDP, TxFlag.ICMPV6)
        )
        l3_end, l4_end = Signal(9, name="l3_end"), Signal(9, name="l4_end")
        bad_flags, bad_l3, bad_l4 = (Signal(name=name) for name in ("bad_flags", "bad_l3", "bad_l4"))
        m.d.comb += [
            send.eq(descriptor.opcode == TxOpcode.SEND),
            command.eq(descriptor.opcode == TxOpcode.COMMAND),
            l3_end.eq(descriptor.l3_offset + Mux(ipv6, IPV6.size, IPV4.size)),
            l4_end.eq(descriptor.l4_offset + Mux(udp, UDP_HEADER, Mux(icmpv6, ICMPV6_CHECKED, TCP.size))),
            bad_flags.eq((ipv4_sum & ipv6) | (l4_sum & icmpv6 & (udp | ~ipv6))),
            # Checksums are sums of 16-bit words of the frame, so headers start at even offsets.
            bad_l3.eq(
                (ipv4_sum | l4_sum)
                & (
                    (descriptor.l3_offset < ETHERNET.size)
                    | descriptor.l3_offset[0]
                    | (l3_end > descriptor.length)
                )
            ),
            bad_l4.eq(
                l4_sum
                & (
                    (descriptor.l4_offset < l3_end)
                    | descriptor.l4_offset[0]
                    | (l4_end > descriptor.length)
                )
            ),
        ]
        bad_frame = (descriptor.length < ETHERNET.size) | (descriptor.length > self._config.max_frame)
        return {
            "BAD_ADDRESS": error,
            "BAD_OPCODE": ~send & ~command,
            "BAD_LENGTH": Mux(send, bad_frame, descriptor.length != COMMAND.size),
            "FEATURE_ABSENT": send & (descriptor.mss != 0),
            "BAD_ARGUMENT": send
            & (bad_flags | bad_l3 | bad_l4 | (descriptor.port >= self._config.ports)),
        }
