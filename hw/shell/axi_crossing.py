"""`AxiCrossing`: the core's AXI4 master, or what the host does to the BARs, from one clock into another.

Each of the five channels is a `StreamCrossing`; AXI asks for no order between them. Latency, throughput, reset: its.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..config import AXI_BYTES
from .crossing import StreamCrossing
from .message_writer import BusSignature

__all__ = ["AxiCrossing"]

_FORWARD, _BACK = ("aw", "w", "ar"), ("b", "r")


class AxiCrossing(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    name: unique in the design.
    i_domain, o_domain: clock domains of the master's side and of the slave's.
    size: bytes of a beat.

    Members
    -------
    i: In(BusSignature(size)); o: Out(BusSignature(size)).
    """

    def __init__(self, *, name, i_domain, o_domain, depth=64, size=AXI_BYTES):
        self._fields, self._channels = {}, {}
        members = BusSignature(size).members
        for channel in (*_FORWARD, *_BACK):
            self._fields[channel] = {
                member.removeprefix(channel): Shape.cast(shape.shape).width
                for member, shape in members.items()
                if member.startswith(channel) and not member.endswith(("valid", "ready"))
            }
            domains = (i_domain, o_domain) if channel in _FORWARD else (o_domain, i_domain)
            self._channels[channel] = StreamCrossing(
                data.StructLayout(self._fields[channel]), depth, name=f"{name}.{channel}",
                i_domain=domains[0], o_domain=domains[1],
            )  # fmt: skip
        super().__init__({"i": In(BusSignature(size)), "o": Out(BusSignature(size))})

    @property
    def pointers(self):
        """What crosses; see `StreamCrossing`."""
        return [pointer for channel in self._channels.values() for pointer in channel.pointers]

    def elaborate(self, platform):
        m = Module()
        for channel, crossing in self._channels.items():
            m.submodules[channel] = crossing
            source, target = (self.i, self.o) if channel in _FORWARD else (self.o, self.i)
            m.d.comb += [
                crossing.i.valid.eq(getattr(source, f"{channel}valid")),
                getattr(source, f"{channel}ready").eq(crossing.i.ready),
                getattr(target, f"{channel}valid").eq(crossing.o.valid),
                crossing.o.ready.eq(getattr(target, f"{channel}ready")),
            ]
            for name in self._fields[channel]:
                m.d.comb += [
                    crossing.i.p[name].eq(getattr(source, f"{channel}{name}")),
                    getattr(target, f"{channel}{name}").eq(crossing.o.p[name]),
                ]
        return m
