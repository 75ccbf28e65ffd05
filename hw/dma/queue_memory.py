"""A number per queue in distributed memory: `QueueMemory`, and the bare memories it is made of.

Reads are combinational, one write per cycle takes effect in the next; so state can be read, changed
and written back in one cycle, for a different queue or the same one in every cycle. Reset does not
clear it: who uses it writes a queue's number before it counts.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..csr.bus import QUEUE_BITS, queue_word

__all__ = ["QueueMemory", "bus_memory", "queue_memory"]


def queue_memory(m, queues, name, shape):
    """A memory with one word per queue, a submodule of `m`; its ports are the caller's."""
    memory = Memory(shape=shape, depth=max(2, queues), init=[], attrs={"ram_style": "distributed"})
    m.submodules[name] = memory
    return memory


def bus_memory(m, queues, bus, name, word, bits):
    """A `queue_memory` that follows one register on the bus."""
    memory = queue_memory(m, queues, name, bits)
    write = memory.write_port()
    m.d.comb += [
        write.addr.eq(bus.queue),
        write.data.eq(bus.data),
        write.en.eq(bus.write & (bus.word == queue_word(word)) & (bus.queue < queues)),
    ]
    return memory


class QueueMemory(wiring.Component):
    """Numbers of `width` bits for `queues` queues, with `readers` read ports.

    Members
    -------
    write, write_queue, write_value: the write port.
    read_queue, read_value: the read ports.
    """

    def __init__(self, queues, width, readers):
        self._queues, self._width, self._readers = queues, width, readers
        super().__init__(
            {
                "write": In(1),
                "write_queue": In(QUEUE_BITS),
                "write_value": In(width),
                "read_queue": In(QUEUE_BITS).array(readers),
                "read_value": Out(width).array(readers),
            }
        )

    def elaborate(self, platform):
        m = Module()
        memory = queue_memory(m, self._queues, "memory", self._width)
        write = memory.write_port()
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.write_queue),
            write.data.eq(self.write_value),
        ]
        for queue, value in zip(self.read_queue, self.read_value, strict=True):
            read = memory.read_port(domain="comb")
            m.d.comb += [read.addr.eq(queue), value.eq(read.data)]
        return m
