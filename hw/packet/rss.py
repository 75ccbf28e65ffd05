"""`Rss`: receive side scaling. The Toeplitz hash of a packet, and from it the packet's queue.

Every bit of the hash is the parity of 288 bits of input, each of which one bit of the key lets through; so it is a
tree of exclusive ors, cut by registers (`acceltcp.abi.toeplitz` is the definition):

    1  the input as it stood on the wire, ports and all of it only where they are hashed
    2  16 partial parities for each bit of the hash
    3  the hash
    4  the queue: entry of the indirection table, or the default

* Latency: 4 cycles (`latency`), as long as the listen table and the classifier before its last stage, beside which it
  works. Throughput: one packet per cycle.
* Registered: everything. `enable` = 0 holds the whole pipeline.
* Overflow: cannot happen. Reset: none; what is inside is harmless without the packet that it belongs to. The
  indirection table keeps its contents: an entry never written means nothing, and no type of packet is on after a reset.
"""

from functools import reduce
from operator import xor

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from acceltcp.abi.registers import RSS_TABLE_ENTRIES, RssType
from acceltcp.abi.toeplitz import RSS_INPUT_BYTES

from ..csr.rss import RssPort
from .meta import RxMeta

__all__ = ["Rss", "Steering"]

_HASH_BITS = 32
_PARTS = 16


class Steering(data.Struct):
    """Where a packet goes that no listener wants for a queue of its own."""

    hashed: 1
    hash: 32  # 0 unless `hashed`
    queue: 8  # the default queue unless `hashed`


def _type(types, member):
    return types[int(member).bit_length() - 1]


class Rss(wiring.Component):
    """Hash and queue, one packet per cycle.

    Members
    -------
    port: In(RssPort()): key, types and entries, from the register file.
    default_queue: In(8): for packets that are not hashed.
    enable: In(1): the pipeline moves on.
    i: In(RxMeta)
    o: Out(Steering): of what was on `i` `latency` enabled cycles ago.
    """

    latency = 4

    port: In(RssPort())
    default_queue: In(8)
    enable: In(1)
    i: In(RxMeta)
    o: Out(Steering)

    def elaborate(self, platform):
        m = Module()
        input_bits = 8 * RSS_INPUT_BYTES
        meta, types = self.i, self.port.types
        m.submodules.table = table = Memory(
            shape=self.port.queue.shape(), depth=RSS_TABLE_ENTRIES, init=[], attrs={"ram_style": "distributed"}
        )
        write, read = table.write_port(), table.read_port(domain="comb")
        m.d.comb += [
            write.addr.eq(self.port.index),
            write.data.eq(self.port.queue),
            write.en.eq(self.port.write),
        ]

        # Stage 1: the input, its first bit the most significant. It is all zeros, and so is the
        # hash, for what is not hashed.
        ports = Signal()
        hashed = Signal()
        message = Signal(input_bits)
        m.d.comb += [
            ports.eq(
                meta.tcp
                & Mux(meta.ipv6, _type(types, RssType.TCP_IPV6), _type(types, RssType.TCP_IPV4) & meta.ipv4)
            ),
            hashed.eq(
                ports
                | (meta.ipv6 & _type(types, RssType.IPV6))
                | (meta.ipv4 & _type(types, RssType.IPV4))
            ),
        ]
        both = Cat(meta.dst_port, meta.src_port) & ports.replicate(32)
        addresses = {
            6: Cat(both, meta.dst, meta.src),
            4: Cat(both, meta.dst[:32], meta.src[:32]) << input_bits - 96,
        }
        m.d.comb += message.eq(Mux(meta.ipv6, addresses[6], addresses[4]))
        message1 = Signal(input_bits, reset_less=True)
        hashed1, hashed2, hashed3 = (Signal(name=f"hashed{stage}", reset_less=True) for stage in (1, 2, 3))

        # Stages 2 and 3: parities, of all bits of the hash in one word. (Bit by bit the circuit would be the same, and its
        # simulation a third slower.) Byte 0 of the key is the least significant, its first bit the top one.
        key = Signal(len(self.port.key))
        m.d.comb += key.eq(Cat(self.port.key[at : at + 8] for at in reversed(range(0, len(key), 8))))
        partial = [Signal(_HASH_BITS, name=f"partial{part}", reset_less=True) for part in range(_PARTS)]
        hash3 = Signal(_HASH_BITS, reset_less=True)
        size = input_bits // _PARTS
        for part, parity in enumerate(partial):
            # Input bit i lets 32 bits of the key through, from its bit i on (both counted from the top).
            terms = (
                key[len(key) - _HASH_BITS - i : len(key) - i] & message1[input_bits - 1 - i].replicate(_HASH_BITS)
                for i in range(part * size, (part + 1) * size)
            )
            with m.If(self.enable):
                m.d.sync += parity.eq(reduce(xor, terms))
        with m.If(self.enable):
            m.d.sync += hash3.eq(reduce(xor, partial))

        # Stage 4: the queue.
        steering = Signal(Steering, reset_less=True)
        m.d.comb += [read.addr.eq(hash3), self.o.eq(steering)]
        with m.If(self.enable):
            m.d.sync += [
                message1.eq(Mux(hashed, message, 0)),
                hashed1.eq(hashed),
                hashed2.eq(hashed1),
                hashed3.eq(hashed2),
                steering.hashed.eq(hashed3),
                steering.hash.eq(hash3),
                steering.queue.eq(Mux(hashed3, read.data, self.default_queue)),
            ]
        return m
