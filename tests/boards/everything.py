"""A design that takes every resource of a platform: what each pin is exported as can then be read."""

from amaranth import *
from amaranth.lib import io


class Everything(Elaboratable):
    """Asks for all resources; outputs are low, inputs go nowhere."""

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain()
        ports = []
        for name, number in list(platform.resources):
            self._collect(platform.request(name, number, dir="-"), ports)
        for port in ports:
            m.submodules += io.Buffer(port.direction, port)
        return m

    def _collect(self, port, found):
        if isinstance(port, io.PortLike):
            found.append(port)
        else:
            for name in vars(port):
                self._collect(getattr(port, name), found)
