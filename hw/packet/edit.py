"""Editing of packets at line rate: `OptionEditor`, `VlanShift`, `HeaderOverlay`.

The first translates the numbers in a TCP option list. The second makes room for an 802.1Q tag or closes the gap
of one. The third writes the bytes of a new header over the beats of a packet. Each says more below.
"""

from amaranth import *
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.wire import TCP_OPTION_BYTES_MAX, VLAN, TCPOption

from ..stream.beat import BeatLayout, packet_stream
from .delay import Delay
from .options import WORDS, Decoded, decode_byte, walk_word

__all__ = ["HeaderOverlay", "Mark", "NumberKind", "OptionEditor", "VlanShift"]

_NUMBER_BYTES = 4


class NumberKind(enum.Enum, shape=3):
    """What becomes of a byte of the options."""

    LEAVE = 0
    NOP = 1
    TSVAL = 2  # part of a number to which something is added
    TSECR = 3
    SACK = 4


class Mark(data.Struct):
    """Of a byte of the options."""

    what: NumberKind
    place: 2  # which byte of the number: 0 is the least significant, which stands last


class Inside(data.Struct):
    """What a word tells the next one of the list."""

    done: 1  # end of list, or a fault
    skip: 6  # bytes, from the next word on, that belong to an option already seen
    timestamps: 1  # which one that is
    sack: 1
    nop: 1  # it becomes NOPs
    length_follows: 1  # of it, only the kind has been seen


class OptionEditor(wiring.Component):
    """Translates timestamps and SACK blocks of one TCP option list per cycle, wherever they stand.

    The list is walked as `OptionsParser` does it, a stage per 4-byte word (RFC 9293 section 3.1). Then each
    number grows by its addend modulo 2^32 (RFC 7323 section 3.2, RFC 2018 section 3), at any alignment: every byte
    adds its byte of the addend by itself, then takes the carry of the up to three bytes behind it.

    * Latency: `LATENCY` cycles. Throughput: one list per cycle, never stalls. Registered.
    * Without `timestamps` that option becomes NOPs, kind and length too; without `sack` a SACK option does.
    * Of duplicate options each is translated. Kinds that are not known are left alone.
    * End-of-list ends the list; so does a fault, as `OptionsParser.options.bad` has it. What stands before is
      translated, what follows, the faulty option included, is left alone. Bytes past `i_words` leave as they came.
    * Overflow: none. Reset: data registers are not cleared; validity travels elsewhere.

    Members
    -------
    i_octets: the 40 bytes after the fixed header, byte 0 least significant.
    i_words: how many 4-byte words of them are options, 0 to 10.
    i_timestamps, i_sack: the option stays.
    i_tsval, i_tsecr, i_edge: what is added to TSval, TSecr and the edges of SACK blocks.
    o_octets: the bytes, `LATENCY` cycles later.
    """

    _MARKED = WORDS + 1  # cycles until all marks are there
    LATENCY = _MARKED + 4

    i_octets: In(8 * TCP_OPTION_BYTES_MAX)
    i_words: In(range(WORDS + 1))
    i_timestamps: In(1)
    i_sack: In(1)
    i_tsval: In(32)
    i_tsecr: In(32)
    i_edge: In(32)
    o_octets: Out(8 * TCP_OPTION_BYTES_MAX)

    def elaborate(self, platform):
        m = Module()
        addends_layout = data.StructLayout({"tsval": 32, "tsecr": 32, "edge": 32})
        m.submodules.addends = addends = Delay(addends_layout, self._MARKED)
        m.d.comb += [addends.i[name].eq(getattr(self, f"i_{name}")) for name, _ in addends_layout]
        octets = self._delay(m, "octets", self._MARKED + 1, self.i_octets)
        m.d.comb += self.o_octets.eq(self._add(m, self._mark(m), addends.o, octets))
        return m

    def _delay(self, m, name, cycles, value):
        if not cycles:
            return value
        m.submodules[name] = delay = Delay(len(Value.cast(value)), cycles)
        m.d.comb += delay.i.eq(value)
        return delay.o

    def _mark(self, m):
        """The marks of all bytes. In stage k word k is decoded; in the next the list walks through it."""
        words, allowed = self.i_words, Cat(self.i_timestamps, self.i_sack)
        left = Signal(range(4 * WORDS + 1))  # option bytes from this word on
        m.d.comb += left.eq(words << 2)
        inside = Signal(Inside, name="start")
        marks, mark_bits = [], Mark.as_shape().size
        for k in range(WORDS):
            decoded = [Signal(Decoded, name=f"decoded{k}_{i}", reset_less=True) for i in range(4)]
            first, beyond = 32 * k, min(32 * k + 40, 8 * TCP_OPTION_BYTES_MAX)
            part = self._delay(m, f"word{k}", k, self.i_octets[first:beyond])
            for i in range(4):
                decode_byte(m, part, 4 * k + i, i, left, decoded[i])
            present = Signal(name=f"present{k}", reset_less=True)
            words_then = Signal(range(WORDS + 1), name=f"words{k}", reset_less=True)
            allowed_then = Signal(2, name=f"allowed{k}", reset_less=True)
            # For the next word, a cycle ahead.
            left = Signal(range(4 * WORDS + 1), name=f"left{k + 1}", reset_less=True)
            m.d.sync += [
                present.eq(words > k),
                words_then.eq(words),
                allowed_then.eq(allowed),
                left.eq((words - (k + 1)) << 2),
            ]
            words, allowed = words_then, allowed_then
            live = Signal(name=f"live{k}")
            m.d.comb += live.eq(present & ~inside.done)
            after = Signal(Inside, name=f"inside{k}", reset_less=True)
            word_marks = self._walk(m, k, live, allowed[0], allowed[1], inside, decoded, after)
            inside = after
            late = self._delay(m, f"marks{k}", WORDS - 1 - k, Cat(mark.as_value() for mark in word_marks))
            marks += [Mark(late[at : at + mark_bits]) for at in range(0, len(late), mark_bits)]
        return marks

    def _walk(self, m, k, live, keep_timestamps, keep_sack, inside, decoded, after):
        """Registers the marks of word `k` and the state after it."""
        starts, skip = walk_word(m, k, live, inside.skip, decoded)
        marks = [Signal(Mark, name=f"mark{4 * k + j}", reset_less=True) for j in range(4)]
        m.d.sync += [
            after.skip.eq(skip),
            after.done.eq(inside.done | Cat(starts[i] & (decoded[i].end | decoded[i].bad) for i in range(4)).any()),
            after.length_follows.eq(starts[3]),
            after.timestamps.eq(inside.timestamps),
            after.sack.eq(inside.sack),
            after.nop.eq(inside.nop),
        ]
        for i in range(4):
            option = decoded[i]
            with m.If(starts[i] & option.leaves):
                m.d.sync += [
                    after.timestamps.eq(option.timestamps),
                    after.sack.eq(option.sack_blocks),
                    after.nop.eq(option.timestamps & ~keep_timestamps | option.sack_blocks & ~keep_sack),
                ]
        for j, mark in enumerate(marks):
            # An option that came in: bytes are counted from its end, where its last number ends.
            # Lists of small numbers are look-up tables; comparisons would be carry chains.
            number = ~inside.length_follows if j == 0 else 1
            m.d.sync += [mark.what.eq(NumberKind.LEAVE), mark.place.eq(inside.skip[:2] - (j + 1))]
            with m.If(live & ~inside.skip.matches(*range(j + 1))):
                with m.If(inside.nop):
                    m.d.sync += mark.what.eq(NumberKind.NOP)
                with m.Elif(inside.timestamps & number):
                    with m.If(inside.skip.matches(*range(j + 1, j + 1 + _NUMBER_BYTES))):
                        m.d.sync += mark.what.eq(NumberKind.TSECR)
                    with m.Else():
                        m.d.sync += mark.what.eq(NumberKind.TSVAL)
                with m.Elif(inside.sack & number):
                    m.d.sync += mark.what.eq(NumberKind.SACK)
            # One that starts in this word fills the rest of it: kind, length, first bytes of the first number.
            for i in range(j + 1):
                for here, keep, kind in (
                    (decoded[i].timestamps, keep_timestamps, NumberKind.TSVAL),
                    (decoded[i].sack_blocks, keep_sack, NumberKind.SACK),
                ):
                    with m.If(starts[i] & here & ~keep):
                        m.d.sync += mark.what.eq(NumberKind.NOP)
                    if j - i >= 2:
                        with m.If(starts[i] & here & keep):
                            m.d.sync += [mark.what.eq(kind), mark.place.eq(_NUMBER_BYTES - 1 - (j - i - 2))]
        return marks

    def _add(self, m, marks, addends, octets):
        """Four stages: choose each byte's addend, add, find the carry, add it."""
        count = TCP_OPTION_BYTES_MAX
        chosen, sums, carries, results = (
            [Signal(bits, name=f"{name}{b}", reset_less=True) for b in range(count)]
            for name, bits in (("addend", 8), ("sum", 9), ("carry", 1), ("result", 8))
        )
        late_marks = marks
        for stage in range(3):
            new = [Signal(Mark, name=f"late{stage}_{b}", reset_less=True) for b in range(count)]
            m.d.sync += [later.eq(mark) for later, mark in zip(new, late_marks, strict=True)]
            late_marks = new
            if stage == 1:
                summed = new  # as old as `sums`
        held = [Signal(8, name=f"held{b}", reset_less=True) for b in range(count)]  # sums, as old as `carries`
        for b, mark in enumerate(marks):
            number = Signal(32, name=f"number{b}")
            with m.Switch(mark.what):
                for kind, value in (
                    (NumberKind.TSVAL, addends.tsval),
                    (NumberKind.TSECR, addends.tsecr),
                    (NumberKind.SACK, addends.edge),
                ):
                    with m.Case(kind):
                        m.d.comb += number.eq(value)
            m.d.sync += [
                chosen[b].eq(number.word_select(mark.place, 8)),
                sums[b].eq(octets[8 * b : 8 * b + 8] + chosen[b]),
                held[b].eq(sums[b]),
            ]
            # The byte behind overflows by itself, or is full and the next one overflows, and so on.
            carry, full = C(0, 1), C(1, 1)
            for behind in range(1, _NUMBER_BYTES):
                if b + behind < count:
                    belongs = full & (summed[b].place >= behind)
                    carry = carry | (belongs & sums[b + behind][8])
                    full = full & (sums[b + behind][:8] == 0xFF)
            adds = Signal(name=f"adds{b}")
            m.d.comb += adds.eq((summed[b].what != NumberKind.LEAVE) & (summed[b].what != NumberKind.NOP))
            m.d.sync += carries[b].eq(carry & adds)
            m.d.sync += results[b].eq(Mux(late_marks[b].what == NumberKind.NOP, TCPOption.NOP, held[b] + carries[b]))
        return Cat(*results)


class VlanShift(wiring.Component):
    """Moves the bytes of a packet by the size of an 802.1Q tag, or not.

    With `add` all bytes move back by 4: the first 4 bytes of the packet are then unspecified. With `remove` they
    move forward by 4: the first 4 bytes are gone. In both cases the link header has to be written anew.

    * Latency: 0 cycles from the register that holds a beat; so 1 cycle, or one beat more with `remove`.
    * Throughput: one beat per cycle; a packet whose last beat overflows by `add` takes a cycle more, and one that
      loses its last beat by `remove` takes one less on `o`.
    * Registered: neither side; what `o` offers is made from one register and, with `remove`, from `i`. `i.ready`
      depends on `o.ready` and on registers: place a FIFO behind it.
    * Packets have at least 8 bytes. `err` is kept. Overflow: cannot happen. Reset: empties it.

    Members
    -------
    i: In(packet_stream(width)); add, remove: In(1), not both, with every beat of the packet.
    o: Out(packet_stream(width))
    """

    def __init__(self, width):
        if width < 2 * VLAN.size:
            raise ValueError(f"width must be at least {2 * VLAN.size}, not {width!r}")
        self._width = width
        super().__init__(
            {
                "i": In(packet_stream(width)),
                "add": In(1),
                "remove": In(1),
                "o": Out(packet_stream(width)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        width, tag = self._width, VLAN.size
        beat = Signal(BeatLayout(width), reset_less=True)
        held, add, remove = Signal(), Signal(reset_less=True), Signal(reset_less=True)
        tail = Signal(8 * tag, reset_less=True)  # the last bytes of the beat before
        spills = Signal(reset_less=True)  # after this beat there is its tail to offer
        over = Signal()  # what is left to offer is the tail
        joins = Signal(reset_less=True)  # what is offered ends with the first bytes of the next beat
        sent, loads, swallow = Signal(), Signal(), Signal()
        following, out = self.i.payload, self.o.payload
        m.d.comb += [
            self.o.valid.eq(held & (~joins | self.i.valid)),
            out.eq(beat),
            sent.eq(self.o.valid & self.o.ready),
            self.i.ready.eq(~held | self.o.ready & ~spills),
            loads.eq(~held | sent & ~spills),
            swallow.eq(joins & held & following.last & (following.count <= tag)),
        ]
        with m.If(over):
            m.d.comb += [out.data[: 8 * tag].eq(tail), out.count.eq(beat.count - (width - tag))]
        with m.Elif(add):
            m.d.comb += out.data.eq(Cat(tail, beat.data))
            m.d.comb += out.count.eq(Mux(beat.last & ~spills, beat.count + tag, width))
            m.d.comb += out.last.eq(beat.last & ~spills)
        with m.Elif(remove):
            m.d.comb += out.data.eq(Cat(beat.data[8 * tag :], following.data[: 8 * tag]))
            m.d.comb += out.count.eq(Mux(joins, width, beat.count - tag))
            with m.If(swallow):
                m.d.comb += [out.count.eq(following.count + (width - tag)), out.last.eq(1), out.err.eq(following.err)]
        with m.If(sent):
            m.d.sync += [over.eq(spills), spills.eq(0), tail.eq(beat.data[8 * (width - tag) :])]
        with m.If(loads):
            m.d.sync += [
                held.eq(self.i.valid & ~swallow),
                beat.eq(following),
                add.eq(self.add),
                remove.eq(self.remove),
                spills.eq(self.add & following.last & (following.count > width - tag)),
                joins.eq(self.remove & ~following.last),
            ]
        return m


def NewHeader(octets):  # noqa: N802
    """New bytes for the beginning of a packet, byte 0 least significant; `written`: those that count."""
    return data.StructLayout({"octets": 8 * octets, "written": octets, "port": 1, "drop": 1})


class HeaderOverlay(wiring.Component):
    """Writes new bytes over the beginning of each packet, or drops the packet.

    * Latency: 0. Throughput: one beat per cycle, dropped ones too, and one packet per cycle for packets of one beat.
    * Registered: nothing; place a buffer behind it. Overflow: cannot happen. Reset: the next beat begins a packet.

    Members
    -------
    packets: In(packet_stream(width)).
    headers: In(stream(NewHeader(octets))): one per packet, in order; taken with its last beat.
    o: Out(packet_stream(width)); port: Out(1), with every beat.
    left: Out(1), a packet ends or is dropped in this cycle; dropped: Out(1), it is dropped.
    """

    def __init__(self, width, octets):
        self._width, self._octets = width, octets
        super().__init__(
            {
                "packets": In(packet_stream(width)),
                "headers": In(stream.Signature(NewHeader(octets))),
                "o": Out(packet_stream(width)),
                "port": Out(1),
                "left": Out(1),
                "dropped": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        width = self._width
        beats = -(-self._octets // width)
        header, beat = self.headers.p, self.packets.payload
        index = Signal(range(beats + 1))  # `beats` stands for all later ones
        take = Signal()
        m.d.comb += [
            self.o.payload.eq(beat),
            self.o.valid.eq(self.packets.valid & self.headers.valid & ~header.drop),
            self.packets.ready.eq(self.headers.valid & (header.drop | self.o.ready)),
            take.eq(self.packets.valid & self.packets.ready),
            self.left.eq(take & beat.last),
            self.dropped.eq(self.left & header.drop),
            self.headers.ready.eq(self.left),
            self.port.eq(header.port),
        ]
        with m.If(self.left):
            m.d.sync += index.eq(0)
        with m.Elif(take & (index != beats)):
            m.d.sync += index.eq(index + 1)
        # This beat's part of the header, then each byte by itself.
        octets, written = Signal(8 * width), Signal(width)
        with m.Switch(index):
            for k in range(beats):
                with m.Case(k):
                    m.d.comb += [
                        octets.eq(header.octets[8 * width * k : 8 * width * (k + 1)]),
                        written.eq(header.written[width * k : width * (k + 1)]),
                    ]
        for k in range(width):
            with m.If(written[k]):
                m.d.comb += self.o.p.data[8 * k : 8 * k + 8].eq(octets[8 * k : 8 * k + 8])
        return m
