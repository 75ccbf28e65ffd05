# amaranth: UnusedElaboratable=no
# (Latencies are asked of parts made for that only.)
"""`ConnectionLookup`: from the addresses of a received packet to its entry in the connection table.

    connection --> ConnectionHash --> ConnectionTable --> FIFO --> lookup
                                        port <-> (inserts, deletes)

* Latency: `latency` cycles with the pipelined hash. With the small one 4 cycles for packets that
  need no look-up because the table is empty, else about 20.
* Throughput: one look-up per cycle; with the small hash one per about 13 cycles.
* Registered: `lookup`, and `connection.ready` (with the pipelined hash a constant).
* Overflow: with the pipelined hash `lookup` must be taken at the rate at which requests come; at most
  `RESULTS` may be in between. With the small one requests wait.
* Reset: empties the table; packets inside are forgotten.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ..stream.buffer import SkidBuffer
from ..stream.fifo import StreamFifo
from .connection_table import ConnectionTable
from .hash import ConnectionHash, ConnectionHashIterative
from .records import ConnectionKey, Lookup, TablePort

__all__ = ["ConnectionLookup"]

RESULTS = 32
"""Results that may wait for their packets."""


class ConnectionLookup(wiring.Component):
    """The connection table and its hash.

    Members
    -------
    connection: In(stream of ConnectionKey)
    lookup: Out(stream of Lookup): one for each, in order.
    port: In(TablePort(config.table)): changes to the table.
    key: In(128): the hash's secret.
    ready: the table has been cleared after the reset.
    held: entries in the table.
    busy: look-ups or changes are in work.
    """

    def __init__(self, config):
        self._config = config
        super().__init__(
            {
                "connection": In(stream.Signature(ConnectionKey)),
                "lookup": Out(stream.Signature(Lookup(config.table))),
                "port": In(TablePort(config.table)),
                "key": In(128),
                "ready": Out(1),
                "held": Out(config.table.index_bits + 1),
                "busy": Out(1),
            }
        )

    @property
    def latency(self):
        """Cycles from request to result with the pipelined hash."""
        results = StreamFifo(Lookup(self._config.table), RESULTS)
        return ConnectionHash(self._config).latency + ConnectionTable(self._config.table).latency + results.latency

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = ConnectionTable(self._config.table)
        m.submodules.results = results = StreamFifo(Lookup(self._config.table), RESULTS)
        connect(m, flipped(self.port), table.port)
        connect(m, results.o, flipped(self.lookup))
        m.d.comb += [self.ready.eq(table.ready), self.held.eq(table.held)]
        inside = Signal(range(2 * RESULTS))
        m.d.sync += inside.eq(
            inside + (self.connection.valid & self.connection.ready) - (self.lookup.valid & self.lookup.ready)
        )
        m.d.comb += self.busy.eq(table.busy | (inside != 0))
        if self._config.pipelined_hash:
            self._hash_pipelined(m, table, results)
        else:
            self._hash_small(m, table, results)
        return m

    def _hash_pipelined(self, m, table, results):
        m.submodules.hash = hashing = ConnectionHash(self._config)
        valid = Signal(hashing.latency)
        m.d.sync += valid.eq(Cat(self.connection.valid, valid))
        m.d.comb += [
            self.connection.ready.eq(1),
            hashing.key.eq(self.key),
            hashing.i.eq(self.connection.payload),
            table.i_valid.eq(valid[-1]),
            table.i_digest.eq(hashing.o),
            results.i.valid.eq(table.o_valid),
            results.i.payload.eq(table.o),
        ]

    def _hash_small(self, m, table, results):
        """While the table is empty nothing needs a hash. A request that finds it so is answered only when
        nothing is ahead of it, so that results stay in order."""
        m.submodules.hash = hashing = ConnectionHashIterative(self._config)
        m.submodules.requests = requests = SkidBuffer(ConnectionKey)
        connect(m, flipped(self.connection), requests.i)
        asked = Signal(range(RESULTS))
        miss, go = Signal(), Signal()
        m.d.comb += [
            miss.eq(requests.o.valid & (table.held == 0) & (asked == 0) & results.i.ready),
            go.eq(hashing.i.valid & hashing.i.ready),
            hashing.i.valid.eq(requests.o.valid & (table.held != 0) & (asked < RESULTS - 1)),
            hashing.i.p.key.eq(self.key),
            hashing.i.p.connection.eq(requests.o.payload),
            requests.o.ready.eq(miss | go),
            hashing.o.ready.eq(1),
            table.i_valid.eq(hashing.o.valid),
            table.i_digest.eq(hashing.o.payload),
            results.i.valid.eq(table.o_valid | miss),
            results.i.payload.eq(Mux(table.o_valid, Value.cast(table.o), 0)),
        ]
        m.d.sync += asked.eq(asked + go - table.o_valid)
