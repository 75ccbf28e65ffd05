"""Receive DMA, second part: writes packet bytes to buffers at any byte address.

A barrel shifter turns each beat to the byte lanes of its buffer in three steps (by multiples of
16 lanes, of 4, then by 0 to 3; with 8 or 16 lanes in two); a line takes its upper lanes from the beat turned now and its lower
lanes from the one before. Strobes cover the packet's bytes and nothing else. Bursts end at
4 KiB boundaries, with 8 lanes at those of 2 KiB, which also keeps them within 256 beats.

Latency: 8 cycles from a beat to its write request. Throughput: one line per cycle, with no
gap between packets of one beat; a packet that touches more lines than it has beats takes
one cycle more. `write.request` is registered; `packets[k].ready` depends on registers only.
Overflow: stalls its inputs; a burst starts only when fewer than `config.writes` are unanswered or answered and not
yet taken from `answered`. Reset: forgets what is under way.

AMBA AXI protocol specification (IHI 0022), A3.4: bursts do not cross 4 KiB.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from ..stream.beat import packet_stream
from ..stream.fifo import StreamFifo
from .axi import WriteBeat, WriteDone, WritePort, burst_bytes
from .rx_allocate import RxPlan

__all__ = ["RxWrite"]

_EXIT = 32  # more lines than the pipeline and the way back of a credit hold


def _Line(axi_bytes):  # noqa: N802
    """What goes through the pipeline beside the data; `first` and `final` are of the packet, `length` of the burst."""
    lane_bits = exact_log2(axi_bytes)
    return data.StructLayout(
        {"first": 1, "final": 1, "shift": lane_bits, "end": lane_bits, "address": 64 - lane_bits, "length": 8, "burst_last": 1}
    )


class RxWrite(wiring.Component):
    """See the module's docstring.

    Parameters
    ----------
    config : NicConfig

    Members
    -------
    plan : In(stream.Signature(RxPlan(config.axi_bytes)))
    packets : In(packet_stream(config.axi_bytes)), one per port
        Packets in the order of their plans.
    write : Out(WritePort())
    answered : Out(stream.Signature(WriteDone))
        Answers of the bus, one per burst, in order.
    """

    def __init__(self, config):
        self._config = config
        super().__init__(
            {
                "plan": In(stream.Signature(RxPlan(config.axi_bytes))),
                "packets": In(packet_stream(config.axi_bytes)).array(config.ports),
                "write": Out(WritePort(config.axi_bytes)),
                "answered": Out(stream.Signature(WriteDone)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        writes, axi_bytes = self._config.writes, self._config.axi_bytes
        line_bits = exact_log2(burst_bytes(axi_bytes) // axi_bytes)

        # Credits: lines that fit the exit FIFO, bursts that may be unanswered.
        m.submodules.exit = exit_ = StreamFifo(WriteBeat(axi_bytes), _EXIT, kind="block")
        connect(m, exit_.o, flipped(self.write.request))
        lines, bursts = Signal(range(_EXIT + 1), init=_EXIT), Signal(range(writes + 1), init=writes)
        go, burst_first = Signal(), Signal(init=1)
        m.d.sync += [
            lines.eq(lines - go + (exit_.o.valid & exit_.o.ready)),
            bursts.eq(bursts - (go & burst_first) + (self.answered.valid & self.answered.ready)),
        ]
        m.submodules.answers = answers = StreamFifo(WriteDone, writes, kind="lutram")
        connect(m, answers.o, flipped(self.answered))
        m.d.comb += [
            answers.i.valid.eq(self.write.response.valid),
            answers.i.payload.eq(self.write.response.payload),
        ]

        # Walk: one line per cycle. `plan` is the packet at work.
        plan, active, first = Signal(RxPlan(axi_bytes), reset_less=True), Signal(), Signal()
        final, wants_beat, allowed, some = Signal(), Signal(), Signal(), Signal()
        left_in_page = Signal(line_bits)  # less one
        line = Signal(_Line(axi_bytes))
        source = Signal(8 * axi_bytes)
        m.d.comb += [
            final.eq(plan.lines == 0),
            wants_beat.eq(~(final & plan.residual) | first),
            left_in_page.eq(~plan.line[:line_bits]),
            allowed.eq(active & (lines != 0) & (~burst_first | (bursts != 0))),
            go.eq(allowed & (~wants_beat | some)),
            self.plan.ready.eq(~active | (go & final)),
            line.first.eq(first),
            line.final.eq(final),
            line.shift.eq(plan.shift),
            line.end.eq(plan.end),
            line.address.eq(plan.line),
            line.length.eq(Mux(plan.lines < left_in_page, plan.lines, left_in_page)),
            line.burst_last.eq(final | (left_in_page == 0)),
        ]
        with m.Switch(plan.port):
            for k, packets in enumerate(self.packets):
                with m.Case(k):
                    m.d.comb += [
                        some.eq(packets.valid),
                        source.eq(packets.payload.data),
                        packets.ready.eq(allowed & wants_beat),
                    ]
        with m.If(go):
            m.d.sync += [
                plan.lines.eq(plan.lines - 1),
                plan.line.eq(plan.line + 1),
                first.eq(0),
                burst_first.eq(line.burst_last),
            ]
        with m.If(self.plan.ready):
            m.d.sync += [active.eq(self.plan.valid), plan.eq(self.plan.payload), first.eq(1)]

        self._shift(m, go, line, source, exit_.i)
        return m

    def _shift(self, m, go, line, source, o):
        """The pipeline without stalls: turn by 16 lanes, by 4, by 1, join two beats."""
        axi_bytes = self._config.axi_bytes
        steps = [step for step in (16, 4, 1) if step < axi_bytes]
        turned = [Signal(8 * axi_bytes, name=f"turned{k + 1}", reset_less=True) for k in range(len(steps))]
        beside = [Signal(_Line(axi_bytes), name=f"line{k + 1}", reset_less=True) for k in range(len(steps))]
        valid = Signal(len(steps) + 1)
        m.d.sync += valid.eq(Cat(go, valid))

        def turn(octets, line, step):
            """Turned by 0 to 3 steps: one look-up table per bit."""
            result = Signal(8 * axi_bytes, name=f"by{step}")
            with m.Switch(line.shift[exact_log2(step) :][:2]):
                for k in range(min(4, axi_bytes // step)):
                    with m.Case(k):
                        m.d.comb += result.eq(octets.rotate_left(8 * step * k))
            return result

        octets = source
        for step, after_step, line_after in zip(steps[:-1], turned, beside, strict=False):
            m.d.sync += [after_step.eq(turn(octets, line, step)), line_after.eq(line)]
            octets, line = after_step, line_after
        fine = turn(octets, line, 1)
        # Lanes at and after the first byte's, lanes up to the last byte's.
        after, before = Signal(axi_bytes, reset_less=True), Signal(axi_bytes, reset_less=True)
        previous = Signal(8 * axi_bytes, reset_less=True)
        with m.If(valid[-3]):
            m.d.sync += [turned[-1].eq(fine), beside[-1].eq(line), previous.eq(turned[-1])]
            m.d.sync += [
                after.eq(Cat(line.shift <= k for k in range(axi_bytes))),
                before.eq(Cat(line.end >= k for k in range(axi_bytes))),
            ]

        beat = Signal(WriteBeat(axi_bytes), reset_less=True)
        last = beside[-1]
        m.d.sync += [
            beat.address.eq(Cat(C(0, exact_log2(axi_bytes)), last.address)),
            beat.length.eq(last.length),
            beat.last.eq(last.burst_last),
            beat.strobe.eq(
                (after | (~last.first).replicate(axi_bytes))
                & (before | (~last.final).replicate(axi_bytes))
            ),
        ]
        for k in range(axi_bytes):
            lane = slice(8 * k, 8 * k + 8)
            m.d.sync += beat.data[lane].eq(Mux(after[k], turned[-1][lane], previous[lane]))
        m.d.comb += [o.payload.eq(beat), o.valid.eq(valid[-1])]
