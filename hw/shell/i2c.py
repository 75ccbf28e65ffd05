"""`I2cMaster`: the only master of an I2C bus (NXP UM10204), byte by byte, with clock stretching.

A request is a START, a STOP, a byte to write or a byte to read (which is refused with NACK, so each read is of one
byte). Each bit takes four quarters of a period: the clock is low, high, high, low. While a slave holds the clock low
the quarter does not begin; if it does so too long the request ends with `fault`.

* Latency: a START or STOP one period, a byte nine. Throughput: one request at a time.
* Registered: both lines and `result`.
* Overflow: cannot happen. Reset: lets go of both lines, in the middle of a transfer, too.
"""

from amaranth import *
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

__all__ = ["I2cMaster", "Op", "Request", "Result"]


class Op(enum.Enum, shape=2):
    """What a request is."""

    START = 0
    STOP = 1
    WRITE = 2
    READ = 3


class Request(data.Struct):
    """A request."""

    op: Op
    data: 8  # of WRITE


class Result(data.Struct):
    """How it ended."""

    data: 8  # of READ
    nack: 1  # of WRITE: nobody has taken the byte
    fault: 1  # the clock was held low too long


class I2cMaster(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    quarter: cycles of a quarter of the bus's period.
    patience: cycles for which the clock may be held low.

    Members
    -------
    scl_low, sda_low: Out(1): pull the line down; else it is let go.
    scl, sda: In(1): the lines, asynchronous.
    request: In(stream of Request).
    result: Out(stream of Result), always ready: one for each request, when it has ended.
    """

    scl_low: Out(1)
    sda_low: Out(1)
    scl: In(1, init=1)
    sda: In(1, init=1)
    request: In(stream.Signature(Request))
    result: Out(stream.Signature(Result, always_ready=True))

    def __init__(self, quarter, patience):
        if quarter < 4:
            # The lines are seen three cycles late.
            raise ValueError(f"quarter must be at least 4 cycles, not {quarter!r}")
        self._quarter, self._patience = quarter, patience
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        scl, sda = Signal(init=1), Signal(init=1)
        m.submodules += [FFSynchronizer(self.scl, scl, init=1), FFSynchronizer(self.sda, sda, init=1)]
        op, shift = Signal(Op), Signal(9)  # the highest bit is the next on the line, or the latest
        bits, step = Signal(range(10)), Signal(2)
        left, held = Signal(range(self._quarter)), Signal(range(self._patience + 1))
        busy, stretched, fault = Signal(), Signal(), Signal()
        m.d.comb += [
            self.request.ready.eq(~busy),
            stretched.eq(~self.scl_low & ~scl),
            fault.eq(held == self._patience),
            self.result.p.data.eq(shift[1:]),
            self.result.p.nack.eq(shift[0]),
            self.result.p.fault.eq(fault),
        ]
        m.d.sync += self.result.valid.eq(0)
        with m.If(~busy):
            with m.If(self.request.valid):
                m.d.sync += [busy.eq(1), step.eq(0), held.eq(0), left.eq(self._quarter - 1)]
                m.d.sync += [op.eq(self.request.p.op), bits.eq(0)]
                # The ninth bit is the answer's: the line is let go for it.
                with m.Switch(self.request.p.op):
                    with m.Case(Op.WRITE):
                        m.d.sync += [shift.eq(Cat(1, self.request.p.data)), bits.eq(8)]
                    with m.Case(Op.READ):
                        m.d.sync += [shift.eq(~0), bits.eq(8)]
                self._drive(m, 0, self.request.p.op, Mux(self.request.p.op == Op.WRITE, self.request.p.data[-1], 1))
        with m.Elif(stretched):
            m.d.sync += held.eq(held + 1)
            with m.If(fault):
                m.d.sync += [held.eq(held), busy.eq(0), self.result.valid.eq(1), self.sda_low.eq(0)]
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.Else():
            m.d.sync += [left.eq(self._quarter - 1), step.eq(step + 1)]
            for at in range(3):
                with m.If(step == at):
                    self._drive(m, at + 1, op, shift[-1])
            with m.If(step == 1):
                m.d.sync += [held.eq(0), shift.eq(Cat(sda, shift[:-1]))]
            with m.If(step == 3):
                with m.If(bits == 0):
                    m.d.sync += [busy.eq(0), self.result.valid.eq(1)]
                with m.Else():
                    m.d.sync += bits.eq(bits - 1)
                    self._drive(m, 0, op, shift[-1])
        return m

    def _drive(self, m, step, op, bit):
        """Set the lines for a quarter: clock low, high, high, and low again unless the bus is let go."""
        if step:
            m.d.sync += self.scl_low.eq((None, C(0), C(0), op != Op.STOP)[step])
        else:
            with m.If(op != Op.START):  # a first START finds the clock high, a repeated one finds it low
                m.d.sync += self.scl_low.eq(1)
        with m.Switch(op):
            with m.Case(Op.START):
                m.d.sync += self.sda_low.eq(step >= 2)
            with m.Case(Op.STOP):
                m.d.sync += self.sda_low.eq(step < 2)
            with m.Default():
                if step == 0:  # data changes in the middle of the clock's low time
                    m.d.sync += self.sda_low.eq(~bit)
