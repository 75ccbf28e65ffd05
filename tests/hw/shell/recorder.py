"""A stand-in for a vendor's block and for the platform, to see what a port tells the block."""

from types import SimpleNamespace

from amaranth.hdl import IOPort

__all__ = ["Recorder", "differential", "lanes"]


def lanes(width):
    """Serial lanes of a cage, as a raw resource has them."""
    return {lane: SimpleNamespace(io=IOPort(width, name=lane)) for lane in ("rx_p", "rx_n", "tx_p", "tx_n")}


def differential():
    """A reference clock, as a raw resource has it."""
    return SimpleNamespace(p=IOPort(1, name="p"), n=IOPort(1, name="n"))


class Recorder:
    """In the place of a `VendorIp` and of a platform. resources: name -> function that makes what a request gives."""

    def __init__(self, ip, **resources):
        self._ip, self._resources, self.connections = ip, resources, {}

    def instance(self, **connections):
        self.connections = connections
        return self._ip.instance(**connections)

    def request(self, name, number, dir):
        return self._resources[name]()
