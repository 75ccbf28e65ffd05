"""The slaves' side of an I2C bus (NXP UM10204): a switch, and behind one of its branches a Si5324.

Written after the data sheets, apart from the gateware. The lines are looked at in every cycle, as slaves see them.
"""

from fractions import Fraction

__all__ = ["ClockChip", "Slaves", "Switch"]


class Switch:
    """A PCA9548: the byte written says which branches are connected."""

    def __init__(self, address):
        self.address = address
        self.reset()

    def reset(self):
        self.branches = 0

    def start(self):
        """A write begins."""

    def write(self, byte):
        self.branches = byte
        return True


class ClockChip:
    """A Si5324. `locks_after`: reads of register 130 that say it is not locked yet; None: it never locks."""

    address = 0x68

    def __init__(self, crystal, locks_after=2):
        self.crystal, self._locks_after = crystal, locks_after
        self.calibrations, self.asked = 0, 0
        self.reset()

    def reset(self):
        self.registers, self._pointer, self._first, self._waits = {}, 0, True, None

    def start(self):
        self._first = True

    def write(self, byte):
        if self._first:
            self._pointer, self._first = byte, False
            return True
        self.registers[self._pointer] = byte
        if self._pointer == 136 and byte & 0x40:
            self.calibrations += 1
            self._waits = self._locks_after
        self._pointer += 1
        return True

    def read(self):
        if self._pointer != 130:
            return self.registers.get(self._pointer, 0)
        self.asked += 1
        if self._waits is None or self._waits > 0:
            self._waits = self._waits and self._waits - 1
            return 1
        return 0

    def output(self):
        """Frequency in Hz of output 1, from the registers, as the reference manual defines them."""
        reg = self.registers
        assert reg[0] & 0x40, "the crystal is not its input"
        assert not reg[0] & 0x02 and not reg[10] & 0x04, "bypassed, or output 1 is off"
        long = {at: reg[at] << 16 | reg[at + 1] << 8 | reg[at + 2] for at in (31, 40, 43, 46)}
        n1 = ((reg[25] >> 5) + 4) * ((long[31] & 0xFFFFF) + 1)
        n2 = ((reg[40] >> 5) + 4) * ((long[40] & 0xFFFFF) + 1)
        assert long[43] == long[46], "inputs 1 and 2 differ"
        n3 = (long[43] & 0x7FFFF) + 1
        return Fraction(self.crystal) * n2 / (n3 * n1)


class Slaves:
    """Background testbench: `run(ctx)`.

    dut: has scl_low, sda_low, scl, sda and perhaps reset. top: device of the bus itself.
    behind: branch -> devices. stretch: cycles for which the clock is held low after each byte.
    deaf: transfers that nobody acknowledges, from the first on. stuck: number of the byte after which a slave holds the
    clock low until it is reset, None for none.
    """

    def __init__(self, dut, top, behind, *, stretch=0, deaf=0, stuck=None):
        self.dut, self.top, self.behind = dut, top, behind
        self.stretch, self.deaf, self.stuck = stretch, deaf, stuck
        self.transfers, self.bytes, self.resets = [], 0, 0
        self.lows, self.highs = [], []

    def reachable(self):
        branches = getattr(self.top, "branches", 0)
        return [self.top, *(device for branch, found in self.behind.items() if branches >> branch & 1 for device in found)]

    async def run(self, ctx):
        dut = self.dut
        scl_held = sda_held = False
        hold = 0
        before = (1, 1)
        device = bits = None  # bits: of the byte under way; None outside a transfer
        reading = acknowledge = False
        since = 0
        async for _ in ctx.tick():
            if hasattr(dut, "reset") and ctx.get(dut.reset):
                if scl_held or device:
                    self.resets += 1
                self.top.reset()
                for found in self.behind.values():
                    for each in found:
                        each.reset()
                scl_held = sda_held = False
                device = bits = None
                if self.stuck is not None and self.bytes > self.stuck:
                    self.stuck = None
            if hold:
                hold -= 1
                scl_held = bool(hold) or scl_held == "stuck"
            scl = int(not ctx.get(dut.scl_low) and not scl_held)
            sda = int(not ctx.get(dut.sda_low) and not sda_held)
            ctx.set(dut.scl, scl)
            ctx.set(dut.sda, sda)
            since += 1
            if scl != before[0]:
                (self.highs if before[0] else self.lows).append(since)
                since = 0
            if scl and before[0] and sda != before[1]:
                # START or STOP
                device, bits, reading, sda_held = None, None if sda else [], False, False
                if not sda:
                    self.transfers.append([])
            elif bits is not None and scl and not before[0]:
                bits.append(sda)
            elif bits is not None and not scl and before[0]:
                sda_held = False
                if len(bits) == 8:
                    byte = int("".join(map(str, bits)), 2)
                    self.bytes += 1
                    if reading and device:
                        acknowledge = False  # the master's turn
                    else:
                        self.transfers[-1].append(byte)
                        if device is None:
                            if len(self.transfers) > self.deaf:
                                device = next((d for d in self.reachable() if d.address == byte >> 1), None)
                            reading = bool(byte & 1)
                            acknowledge = device is not None
                            if device and not reading:
                                device.start()
                        else:
                            acknowledge = device.write(byte)
                    sda_held = acknowledge
                    if self.stuck is not None and self.bytes == self.stuck + 1:
                        scl_held = "stuck"
                    elif self.stretch:
                        scl_held, hold = True, self.stretch
                elif len(bits) == 9:
                    if bits[8]:
                        reading = False
                    bits = []
                    if reading:
                        answer = device.read()
                if reading and device and acknowledge is True and len(bits) < 8:
                    sda_held = not answer >> 7 - len(bits) & 1
            before = (scl, sda)
