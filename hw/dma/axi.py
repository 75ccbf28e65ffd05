"""AXI4 inside the NIC: channels as Amaranth streams, 64 bytes wide.

Requesters never stall a response: who asks for a read has reserved room for what comes
back, so R and B are `always_ready` towards them. One AXI identifier per requester, so
responses of one requester stay in order and those of different ones may interleave.
"""

from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, Signature

from ..config import AXI_BYTES

__all__ = [
    "AXI_ID_BITS",
    "AxiMasterSignature",
    "ReadBeat",
    "ReadPort",
    "ReadRequest",
    "WriteBeat",
    "WriteDone",
    "WritePort",
]

AXI_ID_BITS = 2


class ReadRequest(data.Struct):
    """One AXI read burst. The requester splits at 4 KiB boundaries."""

    address: 64  # multiple of AXI_BYTES
    length: 8  # beats - 1


class ReadBeat(data.Struct):
    """One beat of read data."""

    data: 8 * AXI_BYTES
    error: 1  # SLVERR or DECERR
    last: 1  # of the burst


class WriteBeat(data.Struct):
    """One beat of write data; a burst's address travels with its first beat.

    The requester splits at 4 KiB boundaries and never pauses for something that depends on
    another requester between the first and the last beat.
    """

    address: 64  # multiple of AXI_BYTES; looked at on the first beat
    length: 8  # beats - 1; looked at on the first beat
    data: 8 * AXI_BYTES
    strobe: AXI_BYTES
    last: 1


class WriteDone(data.Struct):
    """A burst has been answered; in the order of the requester's bursts."""

    error: 1


class ReadPort(Signature):
    """A requester's read connection, from the requester's side."""

    def __init__(self):
        super().__init__(
            {
                "request": Out(stream.Signature(ReadRequest)),
                "response": In(stream.Signature(ReadBeat, always_ready=True)),
            }
        )


class WritePort(Signature):
    """A requester's write connection, from the requester's side."""

    def __init__(self):
        super().__init__(
            {
                "request": Out(stream.Signature(WriteBeat)),
                "response": In(stream.Signature(WriteDone, always_ready=True)),
            }
        )


class AxiMasterSignature(Signature):
    """The five channels of the master, as flat AXI4 signals (AMBA AXI, IHI 0022)."""

    def __init__(self):
        super().__init__(
            {
                "awid": Out(AXI_ID_BITS),
                "awaddr": Out(64),
                "awlen": Out(8),
                "awsize": Out(3),
                "awburst": Out(2),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(8 * AXI_BYTES),
                "wstrb": Out(AXI_BYTES),
                "wlast": Out(1),
                "wvalid": Out(1),
                "wready": In(1),
                "bid": In(AXI_ID_BITS),
                "bresp": In(2),
                "bvalid": In(1),
                "bready": Out(1),
                "arid": Out(AXI_ID_BITS),
                "araddr": Out(64),
                "arlen": Out(8),
                "arsize": Out(3),
                "arburst": Out(2),
                "arvalid": Out(1),
                "arready": In(1),
                "rid": In(AXI_ID_BITS),
                "rdata": In(8 * AXI_BYTES),
                "rresp": In(2),
                "rlast": In(1),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )
