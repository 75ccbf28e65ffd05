"""PacketRoute: sends each packet to one of several outputs.

Latency 0, one beat per cycle, nothing registered: place a buffer behind it where timing
asks for one. The choice must hold from the first beat of a packet to its last.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .beat import packet_stream

__all__ = ["PacketRoute"]


class PacketRoute(wiring.Component):
    """One packet stream in, `n` out.

    Parameters: `width` bytes per beat, `n` outputs.

    Members
    -------
    i : In(packet_stream(width))
    to : In(range(n)); the output for the packet being offered.
    o : Out(packet_stream(width)).array(n)
    """

    def __init__(self, width, n):
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n!r}")
        self._n = n
        super().__init__(
            {
                "i": In(packet_stream(width)),
                "to": In(max(1, (n - 1).bit_length())),
                "o": Out(packet_stream(width)).array(n),
            }
        )

    def elaborate(self, platform):
        m = Module()
        with m.Switch(self.to):
            for index in range(self._n):
                with m.Case(index):
                    m.d.comb += [
                        self.o[index].valid.eq(self.i.valid),
                        self.i.ready.eq(self.o[index].ready),
                    ]
        for index in range(self._n):
            m.d.comb += self.o[index].payload.eq(self.i.payload)
        return m
