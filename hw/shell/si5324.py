"""A Si5324 clock multiplier behind an I2C switch, and the gateware that programs it: `Si5324Plan`, `ReferenceClock`.

The chip makes its output from a crystal ("free run"): fout = crystal / N3 * N2 / N1, where crystal / N3 is what its phase
detector compares and crystal / N3 * N2 its oscillator. Limits, registers and times: Silicon Labs, Si5324 data sheet, and Si53xx
Family Reference Manual, "Register Descriptions".

`ReferenceClock` resets switch and chip, selects the chip's branch, writes the registers, starts the calibration and
reads until the loop has locked. Whatever goes wrong (no acknowledge, a line that is held low, no lock) it begins again.
"""

from dataclasses import dataclass

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from .i2c import I2cMaster, Op

__all__ = ["ReferenceClock", "Si5324Plan", "switch"]

_ADDRESS = 0x68
_RESET_US = 100  # at least 1
_READY_US = 20_000  # until it answers after a reset: at most 10 ms
_POLL_US = 1_000
_POLLS = 2_500  # it locks after 1.2 s at the latest
_STRETCH_US = 25_000
_QUARTER_US = 5  # 50 kHz: every time of standard mode is kept

_LOL_INT = 130  # bit 0: the loop is not locked
_ICAL = (136, 0x40)  # starts the calibration


@dataclass(frozen=True)
class Si5324Plan:
    """Dividers for one output.

    crystal: Hz. n1_hs, nc1_ls: the two parts of N1; n2_hs, n2_ls: of N2. n3: N3. bandwidth: the loop filter's step,
    BWSEL_REG. Raises `ValueError` for what the chip cannot do.
    """

    crystal: int
    n1_hs: int
    nc1_ls: int
    n2_hs: int
    n2_ls: int
    n3: int
    bandwidth: int

    def __post_init__(self):
        for name, low, high in (("n1_hs", 4, 11), ("n2_hs", 4, 11), ("n3", 1, 1 << 19), ("bandwidth", 0, 15)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be {low} to {high}, not {getattr(self, name)}")
        for name in ("nc1_ls", "n2_ls"):
            value = getattr(self, name)
            if not 1 <= value <= 1 << 20 or (value % 2 and (value > 1 or name == "n2_ls")):
                raise ValueError(f"{name} must be even and at most {1 << 20}, not {value}")
        for name, value, low, high in (
            ("crystal / N3", self.crystal / self.n3, 2e3, 2e6),
            ("the oscillator", self.oscillator, 4.85e9, 5.67e9),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} must be {low:g} to {high:g} Hz, not {value:g}")

    @property
    def oscillator(self):
        """Frequency in Hz."""
        return self.crystal * self.n2_hs * self.n2_ls / self.n3

    @property
    def output(self):
        """Frequency in Hz."""
        return self.oscillator / (self.n1_hs * self.nc1_ls)

    def writes(self):
        """(first register, bytes) of each write, without the one that starts the calibration."""
        return [
            (0, bytes([
                0x54,  # the crystal takes the place of input 2
                0xE4,  # input 1 before input 2: nothing drives input 1 on a board that runs free
                self.bandwidth << 4 | 2,
                0x15,  # no output before it is calibrated
                0x92,  # input chosen by itself
            ])),
            (10, bytes([0x08, 0x40])),  # output 2 off
            (25, bytes([self.n1_hs - 4 << 5])),
            (31, (self.nc1_ls - 1).to_bytes(3, "big")),
            (40, (self.n2_hs - 4 << 21 | self.n2_ls - 1).to_bytes(3, "big")),
            (43, 2 * (self.n3 - 1).to_bytes(3, "big")),  # of either input
        ]  # fmt: skip


def switch(address, branch):
    """The write that connects one branch of a PCA9548 switch: (address, bytes)."""
    return address, bytes([1 << branch])


def _transfer(address, content):
    return [(Op.START, 0), (Op.WRITE, address << 1), *((Op.WRITE, byte) for byte in content), (Op.STOP, 0)]


def _read(address, register):
    """Repeated START; the byte is what READ gives."""
    return [
        (Op.START, 0), (Op.WRITE, address << 1), (Op.WRITE, register),
        (Op.START, 0), (Op.WRITE, address << 1 | 1), (Op.READ, 0), (Op.STOP, 0),
    ]  # fmt: skip


class ReferenceClock(wiring.Component):
    """See the module's text. Domain `sync`; all outputs come from registers.

    Parameters
    ----------
    plan: Si5324Plan. route: transfers that make the chip reachable, each (address, bytes).
    mhz: of `sync`. scale: divides all waits, for simulations.

    Members
    -------
    scl_low, sda_low, scl, sda: as `I2cMaster`'s.
    reset: Out(1): of switch and chip.
    good: Out(1): the clock is there. It stays high: who uses the clock watches it with loops of his own.
    failures: Out(8): how often it had to begin again, at most 255.
    """

    scl_low: Out(1)
    sda_low: Out(1)
    scl: In(1, init=1)
    sda: In(1, init=1)
    reset: Out(1, init=1)
    good: Out(1)
    failures: Out(8)

    def __init__(self, plan, route, mhz, scale=1):
        self._cycles = {
            name: max(4, round(us * mhz / scale))
            for name, us in (
                ("reset", _RESET_US), ("ready", _READY_US), ("poll", _POLL_US), ("patience", _STRETCH_US), ("quarter", _QUARTER_US)
            )
        }  # fmt: skip
        self._polls = max(6, _POLLS // scale)
        self._script = [op for transfer in route for op in _transfer(*transfer)]
        for register, content in plan.writes():
            self._script += _transfer(_ADDRESS, bytes([register]) + content)
        self._script += _transfer(_ADDRESS, bytes(_ICAL))
        self._polling = len(self._script)
        self._script += _read(_ADDRESS, _LOL_INT)
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        cycles = self._cycles
        m.submodules.master = master = I2cMaster(cycles["quarter"], cycles["patience"])
        layout = data.StructLayout({"op": Op, "data": 8})
        m.submodules.script = script = Memory(
            shape=layout,
            depth=len(self._script),
            init=[{"op": op, "data": value} for op, value in self._script],
            attrs={"rom_style": "distributed"},
        )
        read = script.read_port(domain="comb")
        at, left = Signal(range(len(self._script) + 1)), Signal(range(max(cycles.values())))
        polls, locked = Signal(range(self._polls)), Signal()
        result = master.result
        m.d.comb += [
            self.scl_low.eq(master.scl_low),
            self.sda_low.eq(master.sda_low),
            master.scl.eq(self.scl),
            master.sda.eq(self.sda),
            read.addr.eq(at),
            master.request.p.op.eq(read.data.op),
            master.request.p.data.eq(read.data.data),
        ]
        with m.If(left != 0):
            m.d.sync += left.eq(left - 1)

        def wait(name, state):
            m.d.sync += left.eq(cycles[name] - 1)
            m.next = state

        with m.FSM():
            with m.State("Begin"):
                m.d.sync += [self.reset.eq(1), at.eq(0), polls.eq(0), locked.eq(0)]
                wait("reset", "Reset")
            with m.State("Reset"), m.If(left == 0):
                m.d.sync += self.reset.eq(0)
                wait("ready", "Wait")
            with m.State("Wait"), m.If(left == 0):
                m.next = "Ask"
            with m.State("Ask"):
                m.d.comb += master.request.valid.eq(1)
                with m.If(master.request.ready):
                    m.next = "Hear"
            with m.State("Hear"), m.If(result.valid):
                m.d.sync += at.eq(at + 1)
                m.next = "Ask"
                with m.If(read.data.op == Op.READ):
                    m.d.sync += locked.eq(~result.p.data[0])
                with m.If(result.p.fault | (result.p.nack & (read.data.op == Op.WRITE))):
                    m.next = "Failed"
                with m.Elif(at == len(self._script) - 1):
                    m.d.sync += [at.eq(self._polling), polls.eq(polls + 1)]
                    with m.If(locked):
                        m.next = "Good"
                    with m.Elif(polls == self._polls - 1):
                        m.next = "Failed"
                    with m.Else():
                        wait("poll", "Wait")
            with m.State("Failed"):
                m.d.sync += self.failures.eq(self.failures + (self.failures != 255))
                m.next = "Begin"
            with m.State("Good"):
                m.d.sync += self.good.eq(1)
        return m
