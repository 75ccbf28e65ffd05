"""AXI4 inside the NIC: channels as Amaranth streams, `NicConfig.axi_bytes` wide (8, 16, 32 or 64 bytes; 64 where nothing is said).

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
    "burst_bytes",
]

AXI_ID_BITS = 2

_PAGE = 4096
_BEATS_MAX = 256


def burst_bytes(axi_bytes):
    """Bursts of the DMA end at multiples of so many bytes: 4 KiB, or less where AXI4 allows no more than 256 beats (IHI 0022, A3.4)."""
    return min(_PAGE, _BEATS_MAX * axi_bytes)


class ReadRequest(data.Struct):
    """One AXI read burst. The requester splits at 4 KiB boundaries."""

    address: 64  # multiple of the width
    length: 8  # beats - 1


def ReadBeat(axi_bytes=AXI_BYTES):  # noqa: N802
    """One beat of read data. `error`: SLVERR or DECERR; `last`: of the burst."""
    return data.StructLayout({"data": 8 * axi_bytes, "error": 1, "last": 1})


def WriteBeat(axi_bytes=AXI_BYTES):  # noqa: N802
    """One beat of write data; a burst's address (a multiple of the width) and length (beats - 1) travel with its first beat.

    The requester splits at 4 KiB boundaries and never pauses for something that depends on
    another requester between the first and the last beat.
    """
    return data.StructLayout({"address": 64, "length": 8, "data": 8 * axi_bytes, "strobe": axi_bytes, "last": 1})


class WriteDone(data.Struct):
    """A burst has been answered; in the order of the requester's bursts."""

    error: 1


class ReadPort(Signature):
    """A requester's read connection, from the requester's side."""

    def __init__(self, axi_bytes=AXI_BYTES):
        super().__init__(
            {
                "request": Out(stream.Signature(ReadRequest)),
                "response": In(stream.Signature(ReadBeat(axi_bytes), always_ready=True)),
            }
        )


class WritePort(Signature):
    """A requester's write connection, from the requester's side."""

    def __init__(self, axi_bytes=AXI_BYTES):
        super().__init__(
            {
                "request": Out(stream.Signature(WriteBeat(axi_bytes))),
                "response": In(stream.Signature(WriteDone, always_ready=True)),
            }
        )


class AxiMasterSignature(Signature):
    """The five channels of the master, as flat AXI4 signals (AMBA AXI, IHI 0022)."""

    def __init__(self, axi_bytes=AXI_BYTES):
        super().__init__(
            {
                "awid": Out(AXI_ID_BITS),
                "awaddr": Out(64),
                "awlen": Out(8),
                "awsize": Out(3),
                "awburst": Out(2),
                "awvalid": Out(1),
                "awready": In(1),
                "wdata": Out(8 * axi_bytes),
                "wstrb": Out(axi_bytes),
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
                "rdata": In(8 * axi_bytes),
                "rresp": In(2),
                "rlast": In(1),
                "rvalid": In(1),
                "rready": Out(1),
            }
        )
