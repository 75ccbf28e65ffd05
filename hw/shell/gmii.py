"""An Ethernet MAC of 1000BASE-T at GMII (IEEE 802.3 clause 35): `GmiiReceiver` and `GmiiTransmitter`, a byte a cycle at 125 MHz.

* Domain `sync` is the PHY interface's clock; a shell renames it and puts `RxCrossing` and `TxCrossing` before the core.
* Full duplex at 1 Gbit/s only: no carrier extension, no bursts, no pause frames, no 10 or 100 Mbit/s.
* Received frames come without preamble and FCS. Bad ones are marked `err`: wrong FCS, RX_ER, shorter than 64 bytes,
  or longer than allowed; what is over that length is dropped. A frame too short for any byte to be left of it is a bad beat of one byte.
* A frame is not padded on its way out: the core has done so.
"""

from amaranth import *
from amaranth.lib import crc, wiring
from amaranth.lib.crc.catalog import CRC32_ETHERNET
from amaranth.lib.wiring import In, Out

from ..stream.beat import BeatLayout, packet_stream

__all__ = ["GmiiReceiver", "GmiiTransmitter"]

_WIDTH = 8
_PREAMBLE, _PREAMBLE_BYTES, _SFD = 0x55, 7, 0xD5
_FCS_BYTES = 4
_SMALLEST = 64
_GAP = 12


class GmiiReceiver(wiring.Component):
    """From the PHY. Latency: 12 cycles from a full beat's first byte to the beat; the last beat comes in the cycle after the FCS.

    Parameters
    ----------
    largest: bytes of the largest frame, without FCS.

    Members
    -------
    rxd: In(8). rx_dv, rx_er: In(1).
    o: Out(packet_stream(8, always_ready=True))
    """

    def __init__(self, largest):
        self._largest = largest
        super().__init__(
            {"rxd": In(8), "rx_dv": In(1), "rx_er": In(1), "o": Out(packet_stream(_WIDTH, always_ready=True))}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.fcs = fcs = crc.Processor(CRC32_ETHERNET(data_width=8))
        limit = self._largest + _FCS_BYTES
        length = Signal(range(limit + 2))
        # The last bytes may be the FCS: a byte is of the frame once as many have come after it.
        held = Signal(8 * _FCS_BYTES)
        beat = Signal(BeatLayout(_WIDTH))
        error = Signal()
        m.d.comb += [fcs.data.eq(self.rxd), self.o.payload.eq(beat)]

        # After a reset the line may be in the middle of a frame.
        with m.FSM(init="SKIP"):
            with m.State("SKIP"), m.If(~self.rx_dv):
                m.next = "IDLE"
            with m.State("IDLE"):
                m.d.comb += fcs.start.eq(1)
                m.d.sync += [length.eq(0), beat.count.eq(0), error.eq(0)]
                with m.If(self.rx_dv):
                    with m.If(self.rx_er | ((self.rxd != _PREAMBLE) & (self.rxd != _SFD))):
                        m.next = "SKIP"
                    with m.Elif(self.rxd == _SFD):
                        m.next = "FRAME"
            with m.State("FRAME"):
                with m.If(self.rx_dv):
                    m.d.comb += fcs.valid.eq(1)
                    m.d.sync += [error.eq(error | self.rx_er), held.eq(Cat(held[8:], self.rxd))]
                    with m.If(length <= limit):
                        m.d.sync += length.eq(length + 1)
                    with m.If((length >= _FCS_BYTES) & (length < limit)):
                        m.d.sync += beat.count.eq(beat.count + 1)
                        m.d.sync += beat.data.word_select(beat.count[:3], 8).eq(held[:8])
                        with m.If(beat.count == _WIDTH):
                            m.d.comb += self.o.valid.eq(1)
                            m.d.sync += beat.count.eq(1)
                with m.Else():
                    m.d.comb += [
                        self.o.valid.eq(1),
                        self.o.p.last.eq(1),
                        self.o.p.err.eq(error | ~fcs.match_detected | (length < _SMALLEST) | (length > limit)),
                    ]
                    with m.If(beat.count == 0):
                        m.d.comb += self.o.p.count.eq(1)
                    m.next = "IDLE"
        return m


class GmiiTransmitter(wiring.Component):
    """To the PHY. Latency: nine cycles from a beat to its first byte; then no gap, and 12 bytes' time between frames.

    A cycle in a frame for which the stream has no byte, and the FCS of a frame marked `err`, go out with TX_ER: who receives
    that discards it.

    Members
    -------
    i: In(packet_stream(8)); once a packet has begun, `valid` stays to its last beat.
    txd: Out(8). tx_en, tx_er: Out(1).
    """

    def __init__(self):
        super().__init__({"i": In(packet_stream(_WIDTH)), "txd": Out(8), "tx_en": Out(1), "tx_er": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.fcs = fcs = crc.Processor(CRC32_ETHERNET(data_width=8))
        beat = self.i.p
        place = Signal(range(max(_GAP, _WIDTH)))
        octet, enable, error, bad = Signal(8), Signal(), Signal(), Signal()
        m.d.comb += fcs.data.eq(octet)
        m.d.sync += [self.txd.eq(octet), self.tx_en.eq(enable), self.tx_er.eq(error), place.eq(place + 1)]

        with m.FSM(init="GAP"):
            with m.State("IDLE"):
                m.d.sync += place.eq(0)
                with m.If(self.i.valid):
                    m.d.comb += [octet.eq(_PREAMBLE), enable.eq(1)]
                    m.d.sync += place.eq(1)
                    m.next = "PREAMBLE"
            with m.State("PREAMBLE"):
                m.d.comb += [octet.eq(_PREAMBLE), enable.eq(1), fcs.start.eq(1)]
                with m.If(place == _PREAMBLE_BYTES):
                    m.d.comb += octet.eq(_SFD)
                    m.d.sync += place.eq(0)
                    m.next = "FRAME"
            with m.State("FRAME"):
                m.d.comb += [
                    octet.eq(beat.data.word_select(place[:3], 8)),
                    enable.eq(1),
                    error.eq(~self.i.valid),
                    fcs.valid.eq(self.i.valid),
                ]
                with m.If(~self.i.valid):
                    m.d.sync += place.eq(place)
                with m.Elif(place == beat.count - 1):
                    m.d.comb += self.i.ready.eq(1)
                    m.d.sync += place.eq(0)
                    with m.If(beat.last):
                        m.d.sync += bad.eq(beat.err)
                        m.next = "FCS"
            with m.State("FCS"):
                m.d.comb += [octet.eq(fcs.crc.word_select(place[:2], 8)), enable.eq(1), error.eq(bad)]
                with m.If(place == _FCS_BYTES - 1):
                    m.d.sync += place.eq(0)
                    m.next = "GAP"
            # The cycle in IDLE in which a frame begins sends its first byte already.
            with m.State("GAP"), m.If(place == _GAP - 1):
                m.next = "IDLE"
        return m
