"""The gigabit MAC with its crossings, and what it receives sent back: what a cable's other end sees of it."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from hw.shell.gmii import GmiiReceiver, GmiiTransmitter
from hw.shell.mac_crossing import RxCrossing, TxCrossing
from hw.stream.beat import BeatLayout
from hw.stream.fifo import StreamFifo

__all__ = ["LARGEST", "GmiiLoop"]

LARGEST = 1514
_BEATS = 512


class GmiiLoop(wiring.Component):
    """`sync` is the core's clock; the MAC has `mac_clk`. Bad frames are sent back, too, marked as such."""

    mac_clk: In(1)
    mac_rst: In(1)
    rxd: In(8)
    rx_dv: In(1)
    rx_er: In(1)
    txd: Out(8)
    tx_en: Out(1)
    tx_er: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.domains += [ClockDomain("mac"), ClockDomain("port")]
        on_mac = DomainRenamer("mac")
        m.submodules.receiver = receiver = on_mac(GmiiReceiver(LARGEST))
        m.submodules.transmitter = transmitter = on_mac(GmiiTransmitter())
        m.submodules.rx = rx = RxCrossing(8, _BEATS, name="rx")
        m.submodules.tx = tx = TxCrossing(8, LARGEST, name="tx")
        m.submodules.queue = queue = StreamFifo(BeatLayout(8), _BEATS)
        m.d.comb += [
            ClockSignal("mac").eq(self.mac_clk),
            ResetSignal("mac").eq(self.mac_rst),
            ClockSignal("port").eq(ClockSignal("sync")),
            ResetSignal("port").eq(self.mac_rst),
            *(getattr(receiver, name).eq(getattr(self, name)) for name in ("rxd", "rx_dv", "rx_er")),
            *(getattr(self, name).eq(getattr(transmitter, name)) for name in ("txd", "tx_en", "tx_er")),
            queue.i.payload.eq(rx.o.payload),
            queue.i.valid.eq(rx.o.valid),
        ]
        connect(m, receiver.o, rx.i)
        connect(m, queue.o, tx.i)
        connect(m, tx.o, transmitter.i)
        return m
