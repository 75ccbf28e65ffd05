"""`OptionsParser`: really parses a TCP option list, in any order and padding.

RFC 9293 section 3.1 (list format), RFC 7323 (window scale, timestamps), RFC 2018 (SACK). A
pipeline with one stage per 4-byte word of options. Each byte's meaning, should an option start
there, is decoded a cycle ahead; a stage only finds out where options do start.

* Throughput: one list per cycle, never stalls. Latency: `LATENCY` (13) cycles. Registered.
* End-of-list ends the list; what follows it is not looked at. Unknown kinds are skipped.
* `bad`: a length of 0 or 1, an option that runs past the header, or a wrong length for MSS (4),
  window scale (3), SACK-permitted (2), SACK (10, 18, 26 or 34) or timestamps (10). The
  list is looked at no further; what stood before it is still reported.
* Of duplicates the last one counts. A window shift above 14 counts as 14.
* Values of absent options mean nothing, except `wscale`, which is then 15.
* Overflow: none. Reset: data registers are not cleared; validity travels elsewhere.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.cookie import WSCALE_NONE
from acceltcp.abi.wire import TCP_OPTION_BYTES_MAX, WSCALE_MAX, TCPOption

from .delay import Delay
from .meta import TcpOptions

__all__ = ["WORDS", "Decoded", "OptionsParser", "decode_byte", "walk_word"]

WORDS = TCP_OPTION_BYTES_MAX // 4

SACK_LENGTHS = tuple(2 + 8 * blocks for blocks in (1, 2, 3, 4))


class Decoded(data.Struct):
    """What it means if an option starts at this byte (byte 0 to 3 of its word)."""

    end: 1  # end of list
    bad: 1
    step1: 1  # the next option starts 1, 2, 3 bytes on
    step2: 1
    step3: 1
    leaves: 1  # it ends in a later word, or at this word's end
    rest: 6  # if it leaves: bytes of the following words that belong to it
    mss: 1
    wscale: 1
    sack: 1
    timestamps: 1
    sack_blocks: 1


class Place(data.Struct):
    """Where an option was found."""

    found: 1
    word: 4
    byte: 2


class State(data.Struct):
    """What one stage tells the next."""

    done: 1  # end of list, or bad
    bad: 1
    sack: 1
    skip: 6  # bytes, from the next word on, that belong to an option already seen
    mss: Place
    wscale: Place
    timestamps: Place


def decode_byte(m, word, at, i, left, decoded):
    """Registers the meaning of byte `at` of the list, which is byte `i` of `word`.

    left: how many bytes, from the word's first on, are options.
    """
    kind = word[8 * i : 8 * i + 8]
    length = word[8 * i + 8 : 8 * i + 16] if at + 1 < TCP_OPTION_BYTES_MAX else C(0, 8)
    end = Signal(name=f"end{at}")
    nop = Signal(name=f"nop{at}")
    bad = Signal(name=f"bad{at}")
    after = Signal(9, name=f"after{at}")  # from the word's start to the option's end
    m.d.comb += [
        end.eq(kind == TCPOption.EOL),
        nop.eq(kind == TCPOption.NOP),
        after.eq(length + i),
    ]
    wrong = Signal(name=f"wrong{at}")
    with m.Switch(kind):
        for option in (TCPOption.MSS, TCPOption.WSCALE, TCPOption.SACK_PERMITTED, TCPOption.TIMESTAMPS):
            with m.Case(option):
                m.d.comb += wrong.eq(length != option.length)
        with m.Case(TCPOption.SACK):
            m.d.comb += wrong.eq(~Cat(length == good for good in SACK_LENGTHS).any())
    m.d.comb += bad.eq(~end & ~nop & ((length < 2) | (after > left) | wrong))
    option = ~end & ~nop & ~bad
    m.d.sync += [
        decoded.end.eq(end),
        decoded.bad.eq(bad),
        decoded.step1.eq(nop),
        decoded.step2.eq(option & (length == 2)),
        decoded.step3.eq(option & (length == 3)),
        decoded.leaves.eq((option & (after >= 4)) | (nop if i == 3 else 0)),
        decoded.rest.eq(Mux(nop, 0, after - 4)),
        decoded.mss.eq(option & (kind == TCPOption.MSS)),
        decoded.wscale.eq(option & (kind == TCPOption.WSCALE)),
        decoded.sack.eq(option & (kind == TCPOption.SACK_PERMITTED)),
        decoded.timestamps.eq(option & (kind == TCPOption.TIMESTAMPS)),
        decoded.sack_blocks.eq(option & (kind == TCPOption.SACK)),
    ]


def walk_word(m, k, live, skip, decoded):
    """At which bytes of word `k` an option starts, and the next word's `skip`.

    live: the list goes on in this word. skip: bytes, from this word on, that belong to an option already seen.
    """
    starts = Signal(4, name=f"starts{k}")
    for i in range(4):
        reached = live & (skip == i)
        for steps, name in ((1, "step1"), (2, "step2"), (3, "step3")):
            if i >= steps:
                reached = reached | (starts[i - steps] & decoded[i - steps][name])
        m.d.comb += starts[i].eq(reached)
    # At most one option leaves the word, and none can if the word lies inside one.
    rest = Mux(skip[2:].any(), Cat(skip[:2], (skip[2:] - 1)[:4]), 0)  # less 4, without a carry through all bits
    for i in range(4):
        rest = rest | Mux(starts[i] & decoded[i].leaves, decoded[i].rest, 0)
    return starts, rest


class OptionsParser(wiring.Component):
    """Options of one TCP header per cycle.

    Members
    -------
    octets: the 40 bytes after the fixed header, byte 0 least significant.
    words: how many 4-byte words of them are options, 0 to 10.
    options: TcpOptions, `LATENCY` cycles later.
    """

    LATENCY = WORDS + 3

    octets: In(8 * TCP_OPTION_BYTES_MAX)
    words: In(range(WORDS + 1))
    options: Out(TcpOptions)

    def elaborate(self, platform):
        m = Module()
        # Stage k decodes word k; in the next cycle the list walks through it.
        words = self.words
        state = Signal(State, name="start")
        for k in range(WORDS):
            decoded = [Signal(Decoded, name=f"decoded{k}_{i}", reset_less=True) for i in range(4)]
            present = Signal(name=f"present{k}", reset_less=True)
            left = Signal(range(4 * WORDS + 1), name=f"left{k}")  # option bytes from this word on
            m.d.comb += left.eq((words - k) << 2)
            m.d.sync += present.eq(words > k)
            # Word k, and the byte after it, which may be a length.
            first, beyond = 32 * k, min(32 * k + 40, 8 * TCP_OPTION_BYTES_MAX)
            part = self._delay(m, f"word{k}", k, self.octets[first:beyond])
            for i in range(4):
                decode_byte(m, part, 4 * k + i, i, left, decoded[i])
            later_words = Signal(range(WORDS + 1), name=f"words{k}", reset_less=True)
            m.d.sync += later_words.eq(words)
            words = later_words
            after = Signal(State, name=f"state{k}", reset_less=True)
            self._walk(m, k, state, present, decoded, after)
            state = after
        # The bytes, as old as the last state.
        octets = self._delay(m, "octets", WORDS + 1, self.octets)
        self._extract(m, state, octets)
        return m

    def _delay(self, m, name, cycles, octets):
        if not cycles:
            return octets
        m.submodules[name] = delay = Delay(len(octets), cycles, kind="block")
        m.d.comb += delay.i.eq(octets)
        return delay.o

    def _walk(self, m, k, state, present, decoded, after):
        """Registers the state after word `k`."""
        live = Signal(name=f"live{k}")
        m.d.comb += live.eq(present & ~state.done)
        starts, skip = walk_word(m, k, live, state.skip, decoded)

        def any_start(name):
            return Cat(starts[i] & decoded[i][name] for i in range(4)).any()

        m.d.sync += [
            after.done.eq(state.done | any_start("end") | any_start("bad")),
            after.bad.eq(state.bad | any_start("bad")),
            after.sack.eq(state.sack | any_start("sack")),
        ]
        m.d.sync += after.skip.eq(skip)
        for name in ("mss", "wscale", "timestamps"):
            place, new = getattr(state, name), getattr(after, name)
            m.d.sync += new.eq(place)
            for i in range(4):
                with m.If(starts[i] & decoded[i][name]):
                    m.d.sync += [new.found.eq(1), new.word.eq(k), new.byte.eq(i)]

    def _extract(self, m, state, octets):
        """Two cycles: choose the word in which an option starts, then the byte."""
        result = Signal(TcpOptions, reset_less=True)
        flags = Signal(State, reset_less=True)
        m.d.comb += self.options.eq(result)
        m.d.sync += [
            flags.eq(state),
            result.bad.eq(flags.bad),
            result.sack.eq(flags.sack),
            result.mss_present.eq(flags.mss.found),
            result.timestamps.eq(flags.timestamps.found),
        ]

        def choose(name, size):
            """The option's `size` bytes after kind and length, one cycle after `state`."""
            place = getattr(state, name)
            around = Signal(8 * (size + 3), name=f"{name}_around", reset_less=True)
            with m.Switch(place.word):
                for word in range(WORDS):
                    with m.Case(word):
                        m.d.sync += around.eq(octets[8 * (4 * word + 2) :])
            value = Signal(8 * size, name=f"{name}_value")
            with m.Switch(getattr(flags, name).byte):
                for i in range(4):
                    with m.Case(i):
                        m.d.comb += value.eq(around[8 * i :])
            # Network byte order.
            return Cat(value[8 * i : 8 * i + 8] for i in reversed(range(size)))

        times = choose("timestamps", 8)
        shift = choose("wscale", 1)
        m.d.sync += [
            result.mss.eq(choose("mss", 2)),
            result.tsval.eq(times[32:]),
            result.tsecr.eq(times[:32]),
            result.wscale.eq(Mux(shift > WSCALE_MAX, WSCALE_MAX, shift)),
        ]
        with m.If(~flags.wscale.found):
            m.d.sync += result.wscale.eq(WSCALE_NONE)
        return result
