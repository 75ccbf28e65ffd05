"""`MaskedSum`: the one's-complement sum over chosen bytes of each packet (RFC 1071).

A streaming adder tree without backpressure: beats enter one per cycle, packets may follow
each other without a gap (initiation interval 1, also for packets of one beat).

* Latency: `latency` cycles (5 or 6) from the cycle in which the last beat is on the input to
  the cycle in which the sum is on the output. Every stage is registered.
* Overflow: packets of up to 131,072 bytes sum correctly; the sum of a longer one means nothing.
* Reset: forgets what is under way; a packet cut by the reset gives a sum that means nothing.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["MaskedSum", "fold"]


def fold(value):
    """One step of the end-around carry: the bits above 16 added to the lower 16."""
    return value[:16] + value[16:]


class MaskedSum(wiring.Component):
    """Sum of the masked bytes, as big-endian 16-bit words in the frame's own alignment.

    A byte on an even lane is the high byte of its word, one on an odd lane the low byte; so a
    field at an even offset in the frame adds as itself. Zero only if all masked bytes are
    zero; 0xffff for a header or segment whose checksum is right.

    Parameters
    ----------
    width: bytes per beat.

    Members
    -------
    i_valid, i_first, i_last: a beat is on the input; it starts, ends a packet.
    i_data, i_mask: the beat, and one bit per byte: add it.
    o_valid, o_sum: the sum of a packet, for one cycle.
    """

    def __init__(self, width):
        if width < 2 or width & (width - 1):
            raise ValueError(f"width must be a power of two of at least 2, not {width!r}")
        self._width = width
        super().__init__(
            {
                "i_valid": In(1),
                "i_first": In(1),
                "i_last": In(1),
                "i_data": In(8 * width),
                "i_mask": In(width),
                "o_valid": Out(1),
                "o_sum": Out(16),
            }
        )

    @property
    def width(self):
        """Bytes per beat."""
        return self._width

    @property
    def _tree_stages(self):
        """Registered levels of the tree; the first adds pairs, the others groups of four."""
        stages, terms = 1, (self._width // 2 + 1) // 2
        while terms > 1:
            stages, terms = stages + 1, (terms + 3) // 4
        return stages

    @property
    def latency(self):
        """Cycles from the last beat to its packet's sum."""
        return self._tree_stages + 3

    def elaborate(self, platform):
        m = Module()
        # Tree: masking shares the look-up tables of the first adder level.
        terms = []
        for lane in range(0, self._width, 2):
            high = Mux(self.i_mask[lane], self.i_data[8 * lane : 8 * lane + 8], 0)
            low = Mux(self.i_mask[lane + 1], self.i_data[8 * lane + 8 : 8 * lane + 16], 0)
            terms.append(Cat(low, high))
        valid, first, last = self.i_valid, self.i_first, self.i_last
        for stage in range(self._tree_stages):
            size = 2 if stage == 0 else 4
            added = []
            for at in range(0, len(terms), size):
                total = sum(terms[at + 1 : at + size], terms[at])
                register = Signal(len(total), name=f"sum{stage}_{at}", reset_less=True)
                m.d.sync += register.eq(total)
                added.append(register)
            flags = Signal(2, name=f"ends{stage}", reset_less=True)
            staged_valid = Signal(name=f"valid{stage}")
            m.d.sync += [flags.eq(Cat(first, last)), staged_valid.eq(valid)]
            terms, valid, first, last = added, staged_valid, flags[0], flags[1]

        # Accumulate over the packet's beats, then fold twice: 32 -> 17 -> 16 bits.
        total = Signal(32, reset_less=True)
        total_valid = Signal()
        with m.If(valid):
            m.d.sync += total.eq(Mux(first, 0, total) + terms[0])
        m.d.sync += total_valid.eq(valid & last)

        folded = Signal(17, reset_less=True)
        folded_valid = Signal()
        o_sum = Signal(16, reset_less=True)
        o_valid = Signal()
        m.d.sync += [
            folded.eq(fold(total)),
            folded_valid.eq(total_valid),
            o_sum.eq(fold(folded)),
            o_valid.eq(folded_valid),
        ]
        m.d.comb += [self.o_sum.eq(o_sum), self.o_valid.eq(o_valid)]
        return m
