"""The vendor's 10G MAC with PCS and transceiver (10GBASE-R), a block of logic: `ten_gig`, and its stream, `TenGigReceiver`.

Several of them share the clocks of one quad. The first has the shared logic within (reference clock, QPLL, reset sequence), and
`SHARED` names what it gives to the others.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..stream.beat import BeatLayout, packet_stream
from .ip import VendorIp

__all__ = ["CONFIGURATION", "MHZ", "SHARED", "WIDTH", "TenGigReceiver", "ten_gig"]

WIDTH = 8
"""Bytes of its stream."""

MHZ = 156.25
"""Clock of its stream."""

CONFIGURATION = 1 << 4 | 1 << 2 | 1 << 1
"""Of either direction: frames of any length (`TenGigReceiver` has the limit), VLAN tags, enabled; FCS added and checked."""

SHARED = {
    "coreclk_out": "coreclk",
    "areset_datapathclk_out": "areset_coreclk",
    "txusrclk_out": "txusrclk",
    "txusrclk2_out": "txusrclk2",
    "gttxreset_out": "gttxreset",
    "gtrxreset_out": "gtrxreset",
    "txuserrdy_out": "txuserrdy",
    "reset_counter_done_out": "reset_counter_done",
    "qplllock_out": "qplllock",
    "qplloutclk_out": "qplloutclk",
    "qplloutrefclk_out": "qplloutrefclk",
}
"""Output of the block with shared logic -> input of those without."""


def ten_gig(number, *, shared):
    """`VendorIp` of port `number`. shared: with the shared logic within."""
    if shared:
        clocks = dict.fromkeys(SHARED, ("o", 1))
        clocks |= {"resetdone_out": ("o", 1), "refclk_p": ("i", 1), "refclk_n": ("i", 1), "reset": ("i", 1)}
    else:
        clocks = dict.fromkeys(SHARED.values(), ("i", 1))
        clocks |= {"areset": ("i", 1), "txoutclk": ("o", 1), "tx_resetdone": ("o", 1), "rx_resetdone": ("o", 1)}
    return VendorIp(
        module=f"ten_gig{number}",
        name="axi_10g_ethernet",
        doc="AMD PG157 3.1, Port Descriptions; the ports of a 7 series GTH without management interface",
        ports={
            **clocks,
            "dclk": ("i", 1),
            "txp": ("o", 1),
            "txn": ("o", 1),
            "rxp": ("i", 1),
            "rxn": ("i", 1),
            "signal_detect": ("i", 1),
            "tx_fault": ("i", 1),
            "tx_disable": ("o", 1),
            "pcspma_status": ("o", 8),
            "sim_speedup_control": ("i", 1),
            "rxrecclk_out": ("o", 1),
            "mac_tx_configuration_vector": ("i", 80),
            "mac_rx_configuration_vector": ("i", 80),
            "mac_status_vector": ("o", 3),
            "pcs_pma_configuration_vector": ("i", 536),
            "pcs_pma_status_vector": ("o", 448),
            "tx_axis_aresetn": ("i", 1),
            "rx_axis_aresetn": ("i", 1),
            "tx_ifg_delay": ("i", 8),
            "s_axis_tx_tdata": ("i", 8 * WIDTH),
            "s_axis_tx_tkeep": ("i", WIDTH),
            "s_axis_tx_tlast": ("i", 1),
            "s_axis_tx_tready": ("o", 1),
            "s_axis_tx_tuser": ("i", 1),
            "s_axis_tx_tvalid": ("i", 1),
            "s_axis_pause_tdata": ("i", 16),
            "s_axis_pause_tvalid": ("i", 1),
            "m_axis_rx_tdata": ("o", 8 * WIDTH),
            "m_axis_rx_tkeep": ("o", WIDTH),
            "m_axis_rx_tlast": ("o", 1),
            "m_axis_rx_tuser": ("o", 1),
            "m_axis_rx_tvalid": ("o", 1),
            "tx_statistics_valid": ("o", 1),
            "tx_statistics_vector": ("o", 26),
            "rx_statistics_valid": ("o", 1),
            "rx_statistics_vector": ("o", 30),
        },
        properties={
            "Management_Interface": "false",
            "base_kr": "BASE-R",
            "SupportLevel": f"{int(shared)}",
            "autonegotiation": "0",
            "fec": "0",
            "Statistics_Gathering": "0",
        },
    )


class TenGigReceiver(wiring.Component):
    """From the MAC's AXI4-Stream, which cannot be stalled, to beats.

    The MAC says with the last beat whether the frame is good, once it has seen the FCS, and that beat may have no bytes left;
    so each beat waits for the next. What is beyond `largest` is cut, and the frame bad; so is a frame with a hole. A
    frame without any byte becomes a bad beat of one byte.

    * Latency: until the next beat or, for the last, one cycle. Throughput: one beat per cycle.
    * Registered: nothing at `o` but the beat that waits; what ends it is the MAC's, through a few gates.
    * Overflow: cannot happen. Reset: forgets the beat that waits; the rest of its frame counts as a frame.

    Parameters
    ----------
    largest: bytes of the largest frame, without FCS.

    Members
    -------
    tdata, tkeep, tvalid, tlast, tuser: In, as the MAC names them; `tuser` is high with `tlast` for a good frame.
    o: Out(packet_stream(WIDTH, always_ready=True))
    """

    def __init__(self, largest):
        self._largest = largest
        super().__init__(
            {
                "tdata": In(8 * WIDTH),
                "tkeep": In(WIDTH),
                "tvalid": In(1),
                "tlast": In(1),
                "tuser": In(1),
                "o": Out(packet_stream(WIDTH, always_ready=True)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        held, have = Signal(BeatLayout(WIDTH), reset_less=True), Signal()
        count = Signal(range(WIDTH + 1))
        m.d.comb += count.eq(sum(self.tkeep))
        room, bad = Signal(range(self._largest + 1), init=self._largest), Signal()

        # What is wrong with the frame up to and with this beat.
        over, hole, wrong = Signal(), Signal(), Signal()
        partial = Signal()  # a beat was not full, so only the frame's end may follow
        m.d.comb += [
            over.eq(count > room),
            hole.eq((self.tkeep[1:] & ~self.tkeep[:-1]).any() | (partial & (count != 0))),
            wrong.eq(bad | over | hole | (self.tlast & ~self.tuser)),
        ]
        # A beat without bytes, or without room for any, only ends what is held.
        empty, ends = Signal(), Signal()
        m.d.comb += [
            empty.eq((count == 0) | (room == 0)),
            ends.eq(self.tvalid & self.tlast & empty & have & ~held.last),
            self.o.valid.eq(have & (held.last | (self.tvalid & (~empty | ends)))),
            self.o.p.data.eq(held.data),
            self.o.p.count.eq(Mux(self.o.p.last, held.count, WIDTH)),
            self.o.p.last.eq(held.last | ends),
            self.o.p.err.eq(Mux(held.last, held.err, ends & wrong)),
        ]
        with m.If(self.o.valid):
            m.d.sync += have.eq(0)
        with m.If(self.tvalid):
            m.d.sync += [
                room.eq(Mux(self.tlast, self._largest, Mux(over, 0, room - count))),
                bad.eq(wrong & ~self.tlast),
                partial.eq((partial | ((count != 0) & ~self.tkeep.all())) & ~self.tlast),
            ]
            with m.If(~empty | (self.tlast & ~ends)):
                m.d.sync += [
                    have.eq(1),
                    held.data.eq(self.tdata),
                    held.count.eq(Mux(empty, 1, Mux(over, room, count))),
                    held.last.eq(self.tlast),
                    held.err.eq(self.tlast & (wrong | empty)),
                ]
        return m
