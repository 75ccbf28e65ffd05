"""`Realigner`: cuts a packet out of the bus beats it lies in, at any byte address.

Every bus beat is rotated so that the packet's first byte stands in lane 0, then each output
beat is put together from two neighbours: the low lanes from the earlier, the high lanes from the
later beat. A fixed-latency pipeline without backpressure: who feeds it has reserved room for
what comes out.

* Latency: output beat k follows 4 cycles after input beat k + 1; if there is none, 5 cycles after
  input beat k; a cycle less for 8 or 16 bytes.
* Throughput: one input beat per cycle, packets back to back. A packet gives at most as many
  output beats as it has input beats.
* Registered: every stage and the output. Rotation takes a stage of one 4:1 multiplexer for every two bits of the offset.
* Reset: forgets what is under way. Data registers are not cleared.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..config import AXI_BYTES

__all__ = ["Realigner"]



def _Beat(axi_bytes):  # noqa: N802
    """A beat on its way through the rotation."""
    return data.StructLayout(
        {"data": 8 * axi_bytes, "offset": exact_log2(axi_bytes), "length": 16, "first": 1, "last": 1, "error": 1}
    )


class Realigner(wiring.Component):
    """Bus beats in, packet beats out, both of `axi_bytes`.

    Members
    -------
    i_valid: a beat of a packet is on the input.
    i_data, i_error: the beat.
    i_first, i_last: the packet begins, ends in this beat.
    i_offset: byte of the first beat at which the packet begins; the same for all its beats.
    i_length: bytes of the packet, likewise; 1 or more.
    o_valid, o_data, o_count, o_last, o_err: a beat of the packet, by the rules of `Beat`; `o_err` if
        any input beat had an error.
    """

    def __init__(self, axi_bytes=AXI_BYTES):
        self._axi_bytes = axi_bytes
        super().__init__(
            {
                "i_valid": In(1),
                "i_data": In(8 * axi_bytes),
                "i_error": In(1),
                "i_first": In(1),
                "i_last": In(1),
                "i_offset": In(exact_log2(axi_bytes)),
                "i_length": In(16),
                "o_valid": Out(1),
                "o_data": Out(8 * axi_bytes),
                "o_count": Out(exact_log2(axi_bytes) + 1),
                "o_last": Out(1),
                "o_err": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi_bytes, layout = self._axi_bytes, _Beat(self._axi_bytes)
        beat = Signal(layout, name="input")
        m.d.comb += [
            beat.data.eq(self.i_data),
            beat.offset.eq(self.i_offset),
            beat.length.eq(self.i_length),
            beat.first.eq(self.i_first),
            beat.last.eq(self.i_last),
            beat.error.eq(self.i_error),
        ]
        valid = self.i_valid

        # Stages 1 to 3: rotate by 0 to 3, 0 to 12, 0 to 48 bytes, as far as there are so many.
        for stage in range((exact_log2(axi_bytes) + 1) // 2):
            turned = Signal(layout, name=f"turned{stage}", reset_less=True)
            turned_valid = Signal(name=f"turned{stage}_valid")
            m.d.sync += [turned.eq(beat), turned_valid.eq(valid)]
            with m.Switch(beat.offset[2 * stage : 2 * stage + 2]):
                for amount in range(1, min(4, axi_bytes >> 2 * stage)):
                    with m.Case(amount):
                        m.d.sync += turned.data.eq(beat.data.rotate_right(8 * amount << 2 * stage))
            beat, valid = turned, turned_valid

        # Which lanes of an output beat stand in its earlier input beat.
        early = Signal(axi_bytes, reset_less=True)
        held = Signal(8 * axi_bytes, reset_less=True)
        left = Signal(16, reset_less=True)
        error = Signal(reset_less=True)
        flush = Signal()
        with m.If(valid):
            m.d.sync += [
                held.eq(beat.data),
                error.eq(beat.error | (error & ~beat.first)),
            ]
            with m.If(beat.first):
                m.d.sync += [
                    left.eq(beat.length),
                    early.eq(Cat(lane + beat.offset < axi_bytes for lane in range(axi_bytes))),
                ]
            with m.Else():
                m.d.sync += left.eq(left - axi_bytes)

        # Stage 4: the output beat. A packet whose tail is already held is flushed in the next
        # cycle; the first beat of another packet, coming in then, gives no output of its own.
        m.d.sync += flush.eq(valid & beat.last & (beat.first | (left > axi_bytes)))
        o_data = Signal.like(self.o_data, reset_less=True)
        o_count = Signal.like(self.o_count, reset_less=True)
        o_last, o_err = Signal(reset_less=True), Signal(reset_less=True)
        ends = Signal()
        m.d.comb += ends.eq(left <= axi_bytes)
        for lane in range(axi_bytes):
            octet = slice(8 * lane, 8 * lane + 8)
            m.d.sync += o_data[octet].eq(Mux(early[lane], held[octet], beat.data[octet]))
        m.d.sync += [
            self.o_valid.eq(flush | (valid & ~beat.first)),
            o_count.eq(Mux(ends, left, axi_bytes)),
            o_last.eq(ends),
            o_err.eq(error | (~flush & beat.error)),
        ]
        m.d.comb += [
            self.o_data.eq(o_data),
            self.o_count.eq(o_count),
            self.o_last.eq(o_last),
            self.o_err.eq(o_err),
        ]
        return m
