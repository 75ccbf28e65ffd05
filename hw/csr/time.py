"""Time and secrets: the clocks driven by `tick`, and the rotation of the cookie secret.

`Clock`: `ticks`, the timestamp clock (a step every `ts_ticks` ticks) and the cookie epoch
(a step every `epoch_ticks` ticks). Every output is a register. `ts_clock` and `ticks` follow
`tick` by 1 cycle; the epoch follows by 2, because `boundary` is registered first so that
the epoch and both keys change at the same clock edge. A period of 0 counts as 1. A period
that is shortened takes effect at the next tick.

`Secret`: the keys in force. A committed secret waits for the next boundary; then it
becomes the current key, and the old one stays as the key of the epoch before. Writing
`TIME.epoch` is a boundary if it changes the number. `now`, and the first secret ever, take
force at once for both epochs. Nothing here can be read back through a register.

Reset (hard or soft) clears clocks, epoch and keys. RFC 7323 section 5.4 (timestamp clock), RFC
4987 section 3.6 (cookies whose secret changes with time).
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, Signature

from acceltcp.abi.registers import SECRET, TIME

__all__ = ["Clock", "Secret", "SecretPort", "TimePort"]


class TimePort(Signature):
    """Register file to `Clock`, from the register file's side."""

    def __init__(self):
        super().__init__(
            {
                "ts_ticks": Out(16, init=TIME["ts_ticks"].reset),
                "epoch_ticks": Out(32, init=TIME["epoch_ticks"].reset),
                "epoch_write": Out(1),  # strobe: `epoch_value` becomes the epoch
                "epoch_value": Out(32),
                "ticks": In(64),
                "ts_clock": In(32),
                "epoch": In(32),
            }
        )


class SecretPort(Signature):
    """Register file to `Secret`, from the register file's side."""

    def __init__(self):
        super().__init__(
            {
                "key": Out(32 * sum(name.startswith("word") for name in SECRET.by_name)),
                "commit": Out(1),  # strobe
                "now": Out(1),  # with `commit`
                "valid": In(1),  # a secret is in force
            }
        )


class Clock(wiring.Component):
    """The clocks; see the module's text.

    Members
    -------
    tick : In(1)
        One cycle per tick.
    port : In(TimePort())
        Settings and read-back.
    ts_clock, epoch : Out(32)
        For the cookie engine.
    boundary : Out(1)
        The epoch changes at the end of this cycle.
    """

    tick: In(1)
    port: In(TimePort())
    ts_clock: Out(32)
    epoch: Out(32)
    boundary: Out(1)

    def elaborate(self, platform):
        m = Module()
        port = self.port
        m.d.comb += [port.ts_clock.eq(self.ts_clock), port.epoch.eq(self.epoch)]

        ts_count = Signal(16)
        epoch_count = Signal(32)
        with m.If(self.tick):
            m.d.sync += [port.ticks.eq(port.ticks + 1), ts_count.eq(ts_count + 1)]
            with m.If(ts_count + 1 >= port.ts_ticks):
                m.d.sync += [ts_count.eq(0), self.ts_clock.eq(self.ts_clock + 1)]

        # The epoch is decided one cycle before it changes, so that `boundary` is a register and
        # may fan out to the keys.
        advance = Signal()
        written = Signal()
        value = Signal(32)
        m.d.sync += [advance.eq(0), written.eq(port.epoch_write), self.boundary.eq(0)]
        with m.If(port.epoch_write):
            # The moment of the write is where the epoch starts.
            m.d.sync += [
                epoch_count.eq(0),
                value.eq(port.epoch_value),
                self.boundary.eq(port.epoch_value != self.epoch),
            ]
        with m.Elif(self.tick):
            m.d.sync += epoch_count.eq(epoch_count + 1)
            with m.If(epoch_count + 1 >= port.epoch_ticks):
                m.d.sync += [epoch_count.eq(0), advance.eq(1), self.boundary.eq(1)]
        with m.If(written):
            m.d.sync += self.epoch.eq(value)
        with m.Elif(advance):
            m.d.sync += self.epoch.eq(self.epoch + 1)
        return m


class Secret(wiring.Component):
    """The keys in force; see the module's text.

    Members
    -------
    port : In(SecretPort())
        The staged key and its commit.
    boundary : In(1)
        From `Clock`: the epoch changes at the end of this cycle.
    key_current, key_previous : Out(128)
        Keys of the current epoch and of the one before; byte 0 least significant.
    key_valid : Out(1)
        There are keys.
    """

    port: In(SecretPort())
    boundary: In(1)
    key_current: Out(128)
    key_previous: Out(128)
    key_valid: Out(1)

    def elaborate(self, platform):
        m = Module()
        port = self.port
        m.d.comb += port.valid.eq(self.key_valid)

        # A copy of its own, so that the host may already write the next secret's words.
        staged = Signal(128)
        pending = Signal()

        with m.If(self.boundary):
            m.d.sync += self.key_previous.eq(self.key_current)
            with m.If(pending):
                m.d.sync += [self.key_current.eq(staged), pending.eq(0)]
        with m.If(port.commit):
            with m.If(port.now | ~self.key_valid):
                m.d.sync += [
                    self.key_current.eq(port.key),
                    self.key_previous.eq(port.key),
                    self.key_valid.eq(1),
                    pending.eq(0),
                ]
            with m.Else():
                m.d.sync += [staged.eq(port.key), pending.eq(1)]
        return m
