"""SipHash (Aumasson and Bernstein, 2012) of messages of one fixed length: `SipHashPipeline`
takes one a cycle, `SipHashIterative` works on one at a time in a fraction of the area.

SipHash-2-4 with 64 bits of output unless told otherwise; the variant with 128 bits is that of the
authors' reference code. In cycles, for the two that the NIC uses: A is SipHash-2-4 of 55 bytes
(cookies), B is SipHash-1-3 of 37 bytes with 128 bits of output (connection table).

`SipHashPipeline`
  Latency: `latency` cycles, 2 per round and 1 for the last XOR: A 37, B 23.
  Throughput: one message per cycle; it cannot be stalled and knows nothing of validity.
  Registered: everything after the first half round; the inputs go into an adder. Words wait
  for their round in block memory.
  Reset: none; there is no state but the data.

`SipHashIterative`
  Latency: one round per cycle; a result is offered `rounds` + 1 cycles after its message was
  taken: A 19, B 12. Throughput: one message per `rounds` + 2 cycles.
  Registered: `i.ready` and `o.valid`; `o.payload` is one XOR behind flip-flops.
  Overflow: cannot happen. Reset: forgets the message in work.

A half round is two 64-bit additions, each followed by an XOR: one carry chain per stage.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..packet.delay import Delay

__all__ = ["SipHashInput", "SipHashIterative", "SipHashPipeline"]

_INIT = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
_SECOND_MARK = 0xDD
"""What is added to v1 between the first 64 bits of output and the others."""


class SipHashInput(data.StructLayout):
    """A key and a message of `length` bytes, both with byte 0 in the least significant bits.

    It knows the variant: rounds per word (1, 2 or 4), rounds of the finalisation (at least 1; with 128 bits
    of output they come twice) and bits of output (64 or 128).
    """

    def __init__(self, length, *, compression=2, finalization=4, bits=64):
        if not isinstance(length, int) or not 0 < length < 256:
            raise ValueError(f"length must be an integer from 1 to 255, not {length!r}")
        if compression not in (1, 2, 4):
            raise ValueError(f"compression must be 1, 2 or 4 rounds, not {compression!r}")
        if not isinstance(finalization, int) or not 1 <= finalization <= 16:
            raise ValueError(f"finalization must be from 1 to 16 rounds, not {finalization!r}")
        if bits not in (64, 128):
            raise ValueError(f"bits must be 64 or 128, not {bits!r}")
        self._length, self._bits = length, bits
        self._compression, self._finalization = compression, finalization
        super().__init__({"key": 128, "message": 8 * length})

    @property
    def length(self):
        """Bytes of the message."""
        return self._length

    @property
    def compression(self):
        """SipRounds per word."""
        return self._compression

    @property
    def finalization(self):
        """SipRounds between the last word and the first 64 bits of output, and between these and the others."""
        return self._finalization

    @property
    def bits(self):
        """Bits of the hash."""
        return self._bits

    @property
    def words(self):
        """64-bit words that are hashed: the last one holds the length."""
        return self._length // 8 + 1

    @property
    def rounds(self):
        """SipRounds for one message."""
        return self._compression * self.words + self._finalization * (self._bits // 64)

    @property
    def mark(self):
        """What is added to v2 in front of the finalisation."""
        return 0xFF if self._bits == 64 else 0xEE

    def word(self, message, index):
        """Word `index` of a message with its padding."""
        part = message[64 * index : min(64 * index + 64, 8 * self._length)]
        if index < self.words - 1:
            return part
        return Cat(part, C(0, 56 - len(part)), C(self._length, 8))

    def initial(self, key):
        """The four values that a hash begins with."""
        mask = list(_INIT)
        if self._bits == 128:
            mask[1] ^= self.mark
        return [C(mask[i], 64) ^ key[64 * (i % 2) : 64 * (i % 2) + 64] for i in range(4)]


def _half_round(m, name, v, second, *, swap=False):
    """The first or second half of a SipRound over the four values `v`.

    A carry chain takes its first operand as it is and an XOR into the second one for free;
    with `swap` it is v1 that may be an XOR in a first half, else v0.
    """
    low = Signal(64, name=f"{name}_low")
    high = Signal(64, name=f"{name}_high")
    v0, v1, v2, v3 = (Value.cast(part) for part in v)
    if second:
        m.d.comb += [low.eq(v0 + v3), high.eq(v2 + v1)]
        return low, v1.rotate_left(17) ^ high, high.rotate_left(32), v3.rotate_left(21) ^ low
    m.d.comb += [low.eq(v0 + v1 if swap else v1 + v0), high.eq(v2 + v3)]
    return low.rotate_left(32), v1.rotate_left(13) ^ low, high, v3.rotate_left(16) ^ high


class SipHashPipeline(wiring.Component):
    """SipHash, one message per cycle.

    Parameters
    ----------
    length: bytes of a message.
    variant: as for `SipHashInput`.

    Members
    -------
    i: key and message.
    o: hash of what was on `i` `latency` cycles ago.
    """

    def __init__(self, length, **variant):
        self._layout = SipHashInput(length, **variant)
        super().__init__({"i": In(self._layout), "o": Out(self._layout.bits)})

    @property
    def latency(self):
        """Cycles from `i` to `o`."""
        return 2 * self._layout.rounds + 1

    def elaborate(self, platform):
        m = Module()
        layout = self._layout

        # Word j enters before the first half rounds of words j and j + 1: what belongs behind the sum
        # of one costs nothing in front of the next one's. Until then it waits; the padding is
        # constant and is added where the word is used.
        period = 2 * layout.compression
        early, late = [], []
        for j in range(layout.words):
            part = Value.cast(self.i.message)[64 * j : min(64 * j + 64, 8 * layout.length)]
            for taps, cycles in ((early, period * j), (late, period * (j + 1))):
                delayed = part
                if cycles:
                    name = f"word{j}_{cycles}"
                    m.submodules[name] = delay = Delay(len(part), cycles, kind="block")
                    m.d.comb += delay.i.eq(part)
                    delayed = delay.o
                padding = Value.cast(layout.word(C(0, 8 * layout.length), j))
                taps.append(Cat(delayed, padding[len(part) :]))

        v = layout.initial(self.i.key)
        halves = 2 * layout.rounds - 1
        first_end = period * layout.words + 2 * layout.finalization
        outputs = []
        for stage in range(halves):
            j, step = divmod(stage, period)
            v0, v1, v2, v3 = v
            takes_word = 0 < j <= layout.words and step == 0
            if j < layout.words and step == 0:
                v3 = v3 ^ early[j]
            if takes_word:
                v0 = v0 ^ late[j - 1]
            if stage == period * layout.words:
                v2 = v2 ^ layout.mark
            if stage == first_end:
                # Only with 128 bits of output. All rounds are whole here, so the XOR is plain; its result
                # waits for the other 64 bits.
                m.submodules.first = first = Delay(64, 2 * layout.finalization, kind="block")
                low = Signal(64, reset_less=True)
                m.d.sync += low.eq(v0 ^ v1 ^ v2 ^ v3)
                m.d.comb += first.i.eq(low)
                outputs.append(first.o)
                v1 = v1 ^ _SECOND_MARK
            second = stage % 2
            after = _half_round(m, f"stage{stage}", (v0, v1, v2, v3), second, swap=not takes_word)
            v = [Signal(64, name=f"v{i}_{stage}", reset_less=True) for i in range(4)]
            # After a second half the XORs into v1 and v3 are left to the next half round, where
            # they are free; but in front of a word v1 has to be the sum's plain operand.
            kept = list(after)
            if second:
                kept[3] = v3
                defer_v1 = (stage + 1) % period or (stage + 1) // period > layout.words
                if defer_v1:
                    kept[1] = v1
            m.d.sync += [register.eq(value) for register, value in zip(v, kept, strict=True)]
            if second:
                v[3] = v[3].rotate_left(21) ^ v[0]
                if defer_v1:
                    v[1] = v[1].rotate_left(17) ^ v[2].rotate_left(32)

        # In the XOR of all four values the last half round's `low` cancels out.
        _, v1, v2, v3 = v
        high = Signal(64, reset_less=True)
        rest = Signal(64, reset_less=True)
        result = Signal(64, reset_less=True)
        m.d.sync += [
            high.eq(v2 + v1),
            rest.eq(v1.rotate_left(17) ^ v3.rotate_left(21)),
            result.eq(high ^ high.rotate_left(32) ^ rest),
        ]
        m.d.comb += self.o.eq(Cat(*outputs, result))
        return m


class SipHashIterative(wiring.Component):
    """SipHash, one round per cycle.

    Parameters
    ----------
    length: bytes of a message.
    variant: as for `SipHashInput`.

    Members
    -------
    i: In(stream of SipHashInput)
    o: Out(stream of the hash), one per message.
    """

    def __init__(self, length, **variant):
        self._layout = layout = SipHashInput(length, **variant)
        super().__init__({"i": In(stream.Signature(layout)), "o": Out(stream.Signature(layout.bits))})

    @property
    def rounds(self):
        """Cycles of work for one message."""
        return self._layout.rounds

    def elaborate(self, platform):
        m = Module()
        layout = self._layout
        v = [Signal(64, name=f"v{i}", reset_less=True) for i in range(4)]
        words = Signal(64 * layout.words, reset_less=True)
        left = Signal(range(layout.rounds + 1))

        # Rounds are counted down. Behind the words the word is zero, so it matters only there which
        # of a word's rounds it is.
        final_rounds = layout.rounds - layout.compression * layout.words
        word = Signal(64)
        first_of_word, last_of_word = Signal(), Signal()
        finalize = Signal()
        phase = Signal(max(1, layout.compression.bit_length() - 1))
        m.d.comb += [
            word.eq(Mux(left > final_rounds, words[:64], 0)),
            finalize.eq(left == final_rounds),
            phase.eq(left - final_rounds),
            first_of_word.eq((phase == 0) if layout.compression > 1 else 1),
            last_of_word.eq((phase == 1) if layout.compression > 1 else 1),
        ]
        v1, swap = v[1], False
        outputs = []
        if layout.bits == 128:
            low = Signal(64, reset_less=True)
            again = Signal()
            m.d.comb += again.eq(left == layout.finalization)
            with m.If(again):
                m.d.sync += low.eq(v[0] ^ v[1] ^ v[2] ^ v[3])
            v1, swap = v1 ^ Mux(again, _SECOND_MARK, 0), True
            outputs.append(low)
        before = (v[0], v1, v[2] ^ Mux(finalize, layout.mark, 0), v[3] ^ Mux(first_of_word, word, 0))
        middle = _half_round(m, "first", before, False, swap=swap)
        v0, v1, v2, v3 = _half_round(m, "second", middle, True)
        after = (v0 ^ Mux(last_of_word, word, 0), v1, v2, v3)

        with m.FSM(name="hash"):
            with m.State("Wait for a message"):
                m.d.comb += self.i.ready.eq(1)
                initial = layout.initial(self.i.p.key)
                m.d.sync += [register.eq(value) for register, value in zip(v, initial, strict=True)]
                m.d.sync += words.eq(Cat(layout.word(self.i.p.message, j) for j in range(layout.words)))
                m.d.sync += left.eq(layout.rounds)
                with m.If(self.i.valid):
                    m.next = "Hash"
            with m.State("Hash"):
                m.d.sync += [register.eq(value) for register, value in zip(v, after, strict=True)]
                m.d.sync += left.eq(left - 1)
                with m.If(last_of_word):
                    m.d.sync += words.eq(words >> 64)
                with m.If(left == 1):
                    m.next = "Offer the result"
            with m.State("Offer the result"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "Wait for a message"
        m.d.comb += self.o.payload.eq(Cat(*outputs, v[0] ^ v[1] ^ v[2] ^ v[3]))
        return m
