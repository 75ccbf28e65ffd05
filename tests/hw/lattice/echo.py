"""A whole small design for an ECP5 board: its clock and one gigabit port that sends back what it receives."""

from amaranth import *
from amaranth.lib.wiring import connect

from hw.shell.ecp5_clock import Ecp5Clock
from hw.shell.rgmii_port import WIDTH, RgmiiPort
from hw.stream.beat import BeatLayout
from hw.stream.fifo import StreamFifo


class Echo(Elaboratable):
    def __init__(self, board, config=None):
        self._board = board

    def elaborate(self, platform):
        m = Module()
        m.submodules.port = port = RgmiiPort(0, self._board.macs[0], 1514, self._board.core_mhz)
        for domain in ("sync", *port.domains):
            m.domains += ClockDomain(domain)
        m.submodules.clock = Ecp5Clock("clk100", self._board.core_mhz)
        m.submodules.queue = queue = StreamFifo(BeatLayout(WIDTH), 16)
        m.d.comb += [queue.i.payload.eq(port.rx.payload), queue.i.valid.eq(port.rx.valid)]
        connect(m, queue.o, port.tx)
        return m
