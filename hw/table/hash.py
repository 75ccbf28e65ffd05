# amaranth: UnusedElaboratable=no
# (Latencies are asked of parts made for that only.)
"""Digest of a connection: `ConnectionHash` takes one key a cycle, `ConnectionHashIterative` one at a time.

The digest is the low `config.table.digest_bits` bits of SipHash-1-3 with 128 bits of output over
`acceltcp.abi.flow.FLOW_HASHED` under a secret: what `acceltcp.abi.flow.flow_digest` computes.

`ConnectionHash`
  Latency: `latency` cycles (23). Throughput: one key per cycle; it cannot be stalled and knows nothing of
  validity. Registered: `o`; the inputs go into an adder. Overflow: cannot happen. Reset: none; there is no state
  but the data.

`ConnectionHashIterative`
  Latency: the digest is offered 12 cycles after its key was taken. Throughput: one key per 13 cycles. Registered:
  `i.ready` and `o.valid`; `o.payload` is one XOR behind flip-flops. Overflow: cannot happen. Reset: forgets the
  key in work.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.flow import FLOW_HASHED

from ..abi import wire_bytes
from ..tcp.siphash import SipHashIterative, SipHashPipeline
from .records import ConnectionKey

__all__ = ["ConnectionHash", "ConnectionHashIterative"]

_VARIANT = {"compression": 1, "finalization": 3, "bits": 128}


def _message(connection):
    """The bytes that are hashed."""
    return wire_bytes(FLOW_HASHED, **{name: getattr(connection, name) for name in ConnectionKey.as_shape().members})


class ConnectionHash(wiring.Component):
    """Digests, one per cycle.

    Members
    -------
    key: In(128): the secret, byte 0 in the least significant bits.
    i: In(ConnectionKey)
    o: Out(digest_bits): digest of what was on `i` `latency` cycles ago.
    """

    def __init__(self, config):
        super().__init__({"key": In(128), "i": In(ConnectionKey), "o": Out(config.table.digest_bits)})

    @property
    def latency(self):
        """Cycles from `i` to `o`."""
        return SipHashPipeline(FLOW_HASHED.size, **_VARIANT).latency

    def elaborate(self, platform):
        m = Module()
        m.submodules.hash = hashing = SipHashPipeline(FLOW_HASHED.size, **_VARIANT)
        m.d.comb += [
            hashing.i.key.eq(self.key),
            hashing.i.message.eq(_message(self.i)),
            self.o.eq(hashing.o),
        ]
        return m


class ConnectionHashIterative(wiring.Component):
    """Digests, one at a time.

    Members
    -------
    i: In(stream of {key, connection}): the secret as for `ConnectionHash`, and the ConnectionKey.
    o: Out(stream of the digest), one per key, in order.
    """

    def __init__(self, config):
        asked = data.StructLayout({"key": 128, "connection": ConnectionKey})
        super().__init__(
            {"i": In(stream.Signature(asked)), "o": Out(stream.Signature(config.table.digest_bits))}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.hash = hashing = SipHashIterative(FLOW_HASHED.size, **_VARIANT)
        m.d.comb += [
            hashing.i.valid.eq(self.i.valid),
            hashing.i.p.key.eq(self.i.p.key),
            hashing.i.p.message.eq(_message(self.i.p.connection)),
            self.i.ready.eq(hashing.i.ready),
            self.o.valid.eq(hashing.o.valid),
            self.o.payload.eq(hashing.o.payload),
            hashing.o.ready.eq(self.o.ready),
        ]
        return m
