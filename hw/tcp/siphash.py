"""SipHash-2-4 (Aumasson and Bernstein, 2012) of messages of one fixed length: `SipHashPipeline`
takes one a cycle, `SipHashIterative` works on one at a time in a fraction of the area.

`SipHashPipeline`
  Latency: `latency` cycles, 2 per round and 1 for the last XOR: 37 for 55 bytes.
  Throughput: one message per cycle; it cannot be stalled and knows nothing of validity.
  Registered: everything after the first half round; the inputs go into an adder. Words wait
  for their round in block memory.
  Reset: none; there is no state but the data.

`SipHashIterative`
  Latency: one round per cycle; a result is offered `rounds` + 1 cycles after its message was
  taken: 19 for 55 bytes. Throughput: one message per `rounds` + 2 cycles.
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
_COMPRESSION = 2
_FINALIZATION = 4


class SipHashInput(data.StructLayout):
    """A key and a message of `length` bytes, both with byte 0 in the least significant bits."""

    def __init__(self, length):
        if not isinstance(length, int) or not 0 < length < 256:
            raise ValueError(f"length must be an integer from 1 to 255, not {length!r}")
        self._length = length
        super().__init__({"key": 128, "message": 8 * length})

    @property
    def length(self):
        """Bytes of the message."""
        return self._length

    @property
    def words(self):
        """64-bit words that are hashed: the last one holds the length."""
        return self._length // 8 + 1

    @property
    def rounds(self):
        """SipRounds for one message."""
        return _COMPRESSION * self.words + _FINALIZATION

    def word(self, message, index):
        """Word `index` of a message with its padding."""
        part = message[64 * index : min(64 * index + 64, 8 * self._length)]
        if index < self.words - 1:
            return part
        return Cat(part, C(0, 56 - len(part)), C(self._length, 8))


def _initial(key):
    return [C(_INIT[i], 64) ^ key[64 * (i % 2) : 64 * (i % 2) + 64] for i in range(4)]


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
    """SipHash-2-4, one message per cycle.

    Parameters
    ----------
    length: bytes of a message.

    Members
    -------
    i: key and message.
    o: hash of what was on `i` `latency` cycles ago.
    """

    def __init__(self, length):
        self._layout = SipHashInput(length)
        super().__init__({"i": In(self._layout), "o": Out(64)})

    @property
    def latency(self):
        """Cycles from `i` to `o`."""
        return 2 * self._layout.rounds + 1

    def elaborate(self, platform):
        m = Module()
        layout = self._layout

        # Word j enters before the half rounds 4 j and 4 (j + 1): what belongs behind the sum of one
        # costs nothing in front of the next one's. Until then it waits; the padding is constant
        # and is added where the word is used.
        period = 2 * _COMPRESSION
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

        v = _initial(self.i.key)
        halves = 2 * layout.rounds - 1
        for stage in range(halves):
            j, step = divmod(stage, period)
            v0, v1, v2, v3 = v
            takes_word = 0 < j <= layout.words and step == 0
            if j < layout.words and step == 0:
                v3 = v3 ^ early[j]
            if takes_word:
                v0 = v0 ^ late[j - 1]
            if stage == period * layout.words:
                v2 = v2 ^ 0xFF
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
        m.d.comb += self.o.eq(result)
        return m


class SipHashIterative(wiring.Component):
    """SipHash-2-4, one round per cycle.

    Parameters
    ----------
    length: bytes of a message.

    Members
    -------
    i: In(stream of SipHashInput)
    o: Out(stream of the 64-bit hash), one per message.
    """

    def __init__(self, length):
        self._layout = SipHashInput(length)
        super().__init__({"i": In(stream.Signature(self._layout)), "o": Out(stream.Signature(64))})

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

        word = Signal(64)
        second = Signal()
        last_word = Signal()
        compressing = Signal()
        m.d.comb += [
            # Rounds are counted down; an odd number left means the word's second round, since
            # the number of rounds is even.
            compressing.eq(left > _FINALIZATION),
            second.eq(left[0]),
            last_word.eq(left == _FINALIZATION),
            word.eq(Mux(compressing, words[:64], 0)),
        ]
        before = (v[0], v[1], v[2] ^ Mux(last_word, 0xFF, 0), v[3] ^ Mux(second, 0, word))
        middle = _half_round(m, "first", before, False)
        v0, v1, v2, v3 = _half_round(m, "second", middle, True)
        after = (v0 ^ Mux(second, word, 0), v1, v2, v3)

        with m.FSM(name="hash"):
            with m.State("Wait for a message"):
                m.d.comb += self.i.ready.eq(1)
                initial = _initial(self.i.p.key)
                m.d.sync += [register.eq(value) for register, value in zip(v, initial, strict=True)]
                m.d.sync += words.eq(Cat(layout.word(self.i.p.message, j) for j in range(layout.words)))
                m.d.sync += left.eq(layout.rounds)
                with m.If(self.i.valid):
                    m.next = "Hash"
            with m.State("Hash"):
                m.d.sync += [register.eq(value) for register, value in zip(v, after, strict=True)]
                m.d.sync += left.eq(left - 1)
                with m.If(second):
                    m.d.sync += words.eq(words >> 64)
                with m.If(left == 1):
                    m.next = "Offer the result"
            with m.State("Offer the result"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "Wait for a message"
        m.d.comb += self.o.payload.eq(v[0] ^ v[1] ^ v[2] ^ v[3])
        return m
