"""`LinkedNic`: the core and its host link, for boards without PCI Express. It wires and holds no logic.

The host is behind `s_axis_link_...` and `m_axis_link_...`; the network's ports are the core's.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..nic import Nic
from .host_link import HostLink
from .host_link_frames import WORD_BYTES

__all__ = ["LinkedNic"]

_LINK = {"tdata": 8 * WORD_BYTES, "tkeep": WORD_BYTES, "tvalid": 1, "tlast": 1, "tuser": 1}


class LinkedNic(wiring.Component):
    """A core with that configuration and a host link.

    Members
    -------
    mac : In(48)
        The board's address on the link.
    tick, s_axis_rx{p}_..., m_axis_tx{p}_... : as of `hw.nic.Nic`.
    s_axis_link_tdata, tkeep, tvalid, tlast, tuser : In. m_axis_link_... : Out, with tready
        The link's MAC, 8 bytes wide, like the network's.
    busy : Out(1)
        Something is in flight or due without further input except `tick`.
    """

    def __init__(self, config, **options):
        """options: of `HostLink`."""
        self._nic, self._link = Nic(config), HostLink(axi_bytes=config.axi_bytes, **options)
        network = {name: member for name, member in self._nic.signature.members.items() if "_axis_" in name}
        self._network = list(network)
        super().__init__(
            {
                "mac": In(48),
                "tick": In(1),
                **network,
                **{f"s_axis_link_{name}": In(bits) for name, bits in _LINK.items()},
                **{f"m_axis_link_{name}": Out(bits) for name, bits in _LINK.items()},
                "m_axis_link_tready": In(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        nic, link = self._nic, self._link
        m.submodules.link = link
        m.submodules.nic = ResetInserter(link.core_reset)(nic)

        def wire(outer, inner, flow):
            m.d.comb += inner.eq(outer) if flow is In else outer.eq(inner)

        for name in self._network:
            wire(getattr(self, name), getattr(nic, name), self.signature.members[name].flow)
        for name, member in self.signature.members.items():
            if "_axis_link_" in name:
                wire(getattr(self, name), getattr(link, name.replace("_link", "")), member.flow)
        for name, member in nic.signature.members.items():
            if name.startswith("m_axi_"):
                wire(getattr(link.s_axi, name.removeprefix("m_axi_")), getattr(nic, name), member.flow)
            elif name.startswith("s_axil_"):
                wire(getattr(link.m_axil, name.removeprefix("s_axil_")), getattr(nic, name), member.flow)
            elif name.startswith("irq_"):
                wire(getattr(link, name), getattr(nic, name), member.flow)
        m.d.comb += [
            link.mac.eq(self.mac),
            link.tick.eq(self.tick),
            nic.tick.eq(self.tick),
            self.busy.eq(link.busy | (nic.busy & ~link.core_reset)),
        ]
        return m
