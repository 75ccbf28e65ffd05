"""`StreamCrossing`: a stream from one clock into another, through a FIFO with Gray-coded pointers.

* Throughput: one entry per cycle of the slower clock. Latency: about 3 cycles of `i_domain` and 5 of `o_domain`.
* Registered: `o.valid` and `o.payload`; `i.ready` comes from a register.
* Overflow: cannot happen; `i.ready` is low while the memory is full.
* Reset: both domains have to be in reset together, for at least four cycles of the slower one, which empties it.
  Reset in one of them alone breaks it.

The memory is a block memory with a clock for each port, so no path of data crosses; what crosses are the two
pointers. Only one bit of a Gray-coded pointer changes at a time, so a pointer may be sampled in the middle of a change,
as long as its bits arrive within a cycle of each other: `constraints` says so to the vendor's tool.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["StreamCrossing", "Synchroniser", "crossing_constraints", "shell_constraints"]

_FROM, _TO = "acceltcp.crossing_from", "acceltcp.crossing_to"
"""Attributes that mark the registers on both sides of a crossing; cells have them after synthesis."""


def crossing_constraints(name, nanoseconds):
    """XDC lines for the crossing of that name: how late the bits may arrive, and how far apart, in ns.

    nanoseconds: period of the faster of the two clocks.
    """
    source = f'[get_cells -hierarchical -filter {{{_FROM} == "{name}"}}]'
    target = f'[get_cells -hierarchical -filter {{{_TO} == "{name}"}}]'
    return [
        f"set_max_delay -datapath_only -from {source} -to {target} {nanoseconds:.3f}",
        f"set_bus_skew -from {source} -to {target} {nanoseconds:.3f}",
    ]


def shell_constraints(parts, mhz):
    """XDC lines for all crossings of the parts of a shell, which name theirs in `pointers`. mhz: the fastest clock."""
    return [line for part in parts for name in part.pointers for line in crossing_constraints(name, 1e3 / mhz)]


class Synchroniser(Elaboratable):
    """A register in the source's domain, two in the destination's. Bits of `i` may change together only if they are
    a Gray code.

    name: marks the registers, for `crossing_constraints`.
    i, o: signals of one width. Latency: 1 cycle of `i_domain`, then 2 to 3 of `o_domain`.
    init: value after reset, in both domains.
    """

    def __init__(self, i, o, *, name, i_domain, o_domain, init=0):
        if len(i) != len(o):
            raise ValueError(f"i and o must be of one width, not {len(i)} and {len(o)} bits")
        self._i, self._o, self._name, self._init = i, o, name, init
        self._i_domain, self._o_domain = i_domain, o_domain

    def elaborate(self, platform):
        m = Module()
        width = len(self._i)
        # The tool may neither merge the source with another register nor double it.
        source = Signal(width, init=self._init, attrs={_FROM: self._name, "DONT_TOUCH": "TRUE"})
        first = Signal(width, init=self._init, attrs={_TO: self._name, "ASYNC_REG": "TRUE"})
        second = Signal(width, init=self._init, attrs={"ASYNC_REG": "TRUE"})
        m.d[self._i_domain] += source.eq(self._i)
        m.d[self._o_domain] += [first.eq(source), second.eq(first)]
        m.d.comb += self._o.eq(second)
        return m


def _gray(number):
    return number ^ (number >> 1)


class StreamCrossing(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    shape: shape of the payload.
    depth: entries of the memory, a power of two of at least 8.
    name: tells crossings apart; unique in a design.
    i_domain, o_domain: clock domains of `i` and `o`.

    Members
    -------
    i: In(stream.Signature(shape))
    o: Out(stream.Signature(shape))
    """

    def __init__(self, shape, depth, *, name, i_domain, o_domain):
        if depth < 8 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two of at least 8, not {depth!r}")
        self._shape, self._depth, self._name = shape, depth, name
        self._i_domain, self._o_domain = i_domain, o_domain
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    @property
    def pointers(self):
        """Names of what crosses, for `crossing_constraints`."""
        return [f"{self._name}.{pointer}" for pointer in ("written", "read")]

    def elaborate(self, platform):
        m = Module()
        memory = m.submodules.memory = Memory(
            shape=self._shape, depth=self._depth, init=[], attrs={"ram_style": "block"}
        )
        write = memory.write_port(domain=self._i_domain)
        read = memory.read_port(domain=self._o_domain)
        # Positions have one bit more than addresses, to tell full from empty.
        bits = self._depth.bit_length()
        write_at, read_at = Signal(bits), Signal(bits)
        written, was_read = Signal(bits), Signal(bits)  # each as the other side sees it, Gray-coded
        for (signal, seen, i_domain, o_domain), name in zip(
            (
                (write_at, written, self._i_domain, self._o_domain),
                (read_at, was_read, self._o_domain, self._i_domain),
            ),
            self.pointers,
            strict=True,
        ):
            m.submodules += Synchroniser(_gray(signal), seen, name=name, i_domain=i_domain, o_domain=o_domain)

        # Write side. Full is a register: it looks one entry ahead.
        push, room, ahead = Signal(), Signal(init=1), Signal(bits)
        m.d.comb += [
            self.i.ready.eq(room),
            push.eq(self.i.valid & room),
            ahead.eq(write_at + push),
            write.addr.eq(write_at[:-1]),
            write.data.eq(self.i.payload),
            write.en.eq(push),
        ]
        # A pointer that is `depth` ahead differs from the other in the two highest bits of the Gray code.
        m.d[self._i_domain] += [
            write_at.eq(ahead),
            room.eq(_gray(ahead) != was_read ^ (0b11 << (bits - 2))),
        ]

        # Read side: the memory's output is a pipeline stage, then comes a register.
        some, advance, fetched, valid = Signal(), Signal(), Signal(), Signal()
        payload = Signal(self._shape, reset_less=True)
        m.d.comb += [
            some.eq(_gray(read_at) != written),
            advance.eq(~valid | self.o.ready),
            read.addr.eq(read_at[:-1]),
            read.en.eq(~fetched | advance),
            self.o.valid.eq(valid),
            self.o.payload.eq(payload),
        ]
        with m.If(read.en):
            m.d[self._o_domain] += [fetched.eq(some), read_at.eq(read_at + some)]
        with m.If(advance):
            m.d[self._o_domain] += [valid.eq(fetched), payload.eq(read.data)]
        return m
