"""`Setup`: connection setup without state, for all ports. It only wires its stages together:

    meta --> Classifier --> CookieEngine --> Verdict --+--> dispatch FIFO --> (splices) --> dispatch
       |         |                              |      +--> SYN-ACK FIFO  --> syn_ack
       |     ListenTable <-- listen             |      +--> flow
       +--> connection ...................... lookup
       +--> Rss: the queue of what no listener keeps to its own, beside the listen table

Every packet comes out on `dispatch`, in order, kept or not. Meanwhile its connection is looked
up elsewhere; the results meet again in front of the verdict.

* Latency: 46 cycles from `meta` to `dispatch` and to `syn_ack`, whatever the packet. With the small
  hash engine 11 to `dispatch` without a hash and 30 with one, and longer behind those that need one.
* Throughput: one packet per cycle; with the small engine one packet that needs a hash per 20.
* Registered: `dispatch`, `syn_ack` and, with the pipelined hash, `meta.ready` (a constant).
* The result of a look-up must be there `lookup_latency_max` cycles after its request, in order. With
  the small engine there is no such limit: up to 16 packets wait for theirs.
* Overflow: with the pipelined hash nothing inside can be stalled. The dispatch FIFO has room for
  every packet that may be waiting, since each receive front end lets at most `config.packets`
  be undecided. SYN-ACKs that find their FIFO full are dropped and counted; the client repeats
  its SYN.
* Reset: forgets the packets inside and empties the listen table.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.messages import Verdict as VerdictCode
from acceltcp.abi.registers import COUNTERS

from ..counts import counts_layout
from ..csr.rss import RssPort
from ..packet.meta import Reply, RxDispatch, RxMeta
from ..packet.rss import Rss
from ..stream.fifo import StreamFifo
from ..table.records import ConnectionKey, Lookup
from .classify import Classifier
from .cookie import CookieEngine, CookieResponse, mss_of_class
from .flow import FlowPacket
from .listen import ListenPort, ListenTable
from .records import SetupRecord
from .splice_records import SpliceInput, SpliceOutput
from .verdict import Verdict

__all__ = ["REPLIES", "Setup"]

REPLIES = 32
"""SYN-ACKs that may wait for the reply builder."""

LOOKUPS = 16
"""Packets that may wait for their look-up with the small hash engine."""

_COUNTS = (
    "rx_drop_filter",
    "rx_drop_length",
    "rx_drop_ip_checksum",
    "rx_drop_l4_checksum",
    *(counter.name for counter in COUNTERS if counter.name.startswith("setup_")),
)


class Setup(wiring.Component):
    """The setup engine.

    Members
    -------
    meta: In(stream of RxMeta): received packets.
    dispatch: Out(stream of RxDispatch): what to do with each, in order.
    syn_ack: Out(stream of Reply)
    connection: Out(stream of ConnectionKey): every packet's; without a TCP header it means nothing.
    lookup: In(stream of Lookup): what the connection table says, one for each, in order.
    flow: Out(stream of FlowPacket); never stalled: segments of connections in teardown.
    to_splices, from_splices: Out(stream of SpliceInput), In(stream of SpliceOutput): every packet passes the splice engine on its
        way to `dispatch`, in order. Only with `config.splices`.
    mac, promiscuous, keep_bad: per port, see `acceltcp.abi.registers.PORT`.
    default_queue: for packets of no listener that RSS does not spread.
    rss: In(RssPort()): key, types and indirection table; without `config.rss` they are ignored.
    ts_clock, epoch: see `acceltcp.abi.registers.TIME`.
    key_current, key_previous, key_valid: cookie secrets, byte 0 least significant.
    listen: In(ListenPort())
    busy: packets, replies or commands are in work.
    counts: strobes.
    """

    def __init__(self, config):
        self._config = config
        super().__init__(
            {
                "meta": In(stream.Signature(RxMeta)),
                "dispatch": Out(stream.Signature(RxDispatch)),
                "syn_ack": Out(stream.Signature(Reply)),
                "connection": Out(stream.Signature(ConnectionKey)),
                "lookup": In(stream.Signature(Lookup(config.table))),
                "flow": Out(stream.Signature(FlowPacket(config))),
                **(
                    {
                        "to_splices": Out(stream.Signature(SpliceInput(config))),
                        "from_splices": In(stream.Signature(SpliceOutput)),
                    }
                    if config.splices
                    else {}
                ),
                "mac": In(48).array(config.ports),
                "promiscuous": In(1).array(config.ports),
                "keep_bad": In(1).array(config.ports),
                "default_queue": In(8),
                "rss": In(RssPort()),
                "ts_clock": In(32),
                "epoch": In(32),
                "key_current": In(128),
                "key_previous": In(128),
                "key_valid": In(1),
                "listen": In(ListenPort()),
                "busy": Out(1),
                "counts": Out(counts_layout(*_COUNTS)),
            }
        )

    @property
    def lookup_latency_max(self):
        """Cycles from a request on `connection` by which its result must stand on `lookup`; None
        where packets wait for it."""
        if not self._config.pipelined_hash:
            return None
        return Classifier.latency + CookieEngine(SetupRecord, pipelined=True).latency

    def elaborate(self, platform):
        m = Module()
        config = self._config
        waiting = config.packets * config.ports
        m.submodules.table = table = ListenTable(config)
        m.submodules.classifier = classifier = Classifier(config)
        m.submodules.cookie = cookie = CookieEngine(SetupRecord, pipelined=config.pipelined_hash)
        m.submodules.verdict = verdict = Verdict(config)
        m.submodules.decided = decided = StreamFifo(SpliceInput(config), waiting, kind="block")
        m.submodules.replies = replies = StreamFifo(Reply, REPLIES, kind="block")

        # The listen table's commands and the parameters.
        wiring.connect(m, wiring.flipped(self.listen), table.port)
        for name in ("ts_clock", "epoch", "key_current", "key_previous", "key_valid"):
            m.d.comb += getattr(classifier, name).eq(getattr(self, name))
        for name in ("mac", "promiscuous", "keep_bad"):
            for inner, outer in zip(getattr(classifier, name), getattr(self, name), strict=True):
                m.d.comb += inner.eq(outer)

        # The pipeline. It moves on unless the cookie engine holds its input. A packet goes into it and
        # to the connection table at once.
        enable = Signal()
        room = Signal()
        meta = self.meta.p
        m.d.comb += [
            enable.eq(~classifier.o_valid | cookie.i.ready),
            self.meta.ready.eq(enable & room & self.connection.ready),
            self.connection.valid.eq(self.meta.valid & enable & room),
            self.connection.p.remote.eq(meta.src),
            self.connection.p.local.eq(meta.dst),
            self.connection.p.remote_port.eq(meta.src_port),
            self.connection.p.local_port.eq(meta.dst_port),
            self.connection.p.ipv6.eq(meta.ipv6),
            classifier.enable.eq(enable),
            classifier.i_valid.eq(self.meta.valid & room & self.connection.ready),
            classifier.i.eq(self.meta.payload),
            table.enable.eq(enable),
            table.key.eq(classifier.key),
            classifier.listener.eq(table.listener),
            cookie.i.valid.eq(classifier.o_valid),
            cookie.i.payload.eq(classifier.o),
            verdict.lookup.eq(self.lookup.payload),
        ]
        if config.rss:
            m.submodules.rss = rss = Rss()
            wiring.connect(m, wiring.flipped(self.rss), rss.port)
            m.d.comb += [
                rss.enable.eq(enable),
                rss.i.eq(self.meta.payload),
                rss.default_queue.eq(self.default_queue),
                classifier.steering.eq(rss.o),
            ]
        else:
            m.d.comb += classifier.steering.queue.eq(self.default_queue)
        self._join(m, cookie.o, verdict.i, room)
        wiring.connect(m, verdict.flow, wiring.flipped(self.flow))
        # `decided` never fills up, see above; `Verdict` has no ready to look at.
        m.d.comb += [
            decided.i.valid.eq(verdict.dispatch.valid),
            decided.i.payload.eq(verdict.dispatch.payload),
        ]
        wiring.connect(m, verdict.reply, replies.i)
        wiring.connect(m, replies.o, wiring.flipped(self.syn_ack))

        # Give the dispatch record its constant fields back.
        dispatch = self.dispatch.p
        verdict_of = VerdictCode.PLAIN
        if config.splices:
            wiring.connect(m, decided.o, wiring.flipped(self.to_splices))
            source = self.from_splices
            verdict_of = source.p.verdict
            m.d.comb += dispatch.forward.eq(source.p.forward)
        else:
            source = decided.o
        record, completion = source.p.dispatch, dispatch.completion
        m.d.comb += [
            self.dispatch.valid.eq(source.valid),
            source.ready.eq(self.dispatch.ready),
            dispatch.port.eq(record.info.port),
            dispatch.keep.eq(record.keep),
            dispatch.queue.eq(record.queue),
            completion.verdict.eq(Mux(record.new, VerdictCode.NEW, verdict_of)),
            completion.mss.eq(Mux(record.new, mss_of_class(record.terms.mss_class), 0)),
        ]
        for fields, names in (
            (record.info, record.info.shape().members),
            (record.terms, ("wscale", "sack", "timestamps", "ecn")),
        ):
            m.d.comb += [getattr(completion, name).eq(getattr(fields, name)) for name in names]

        for part in (classifier.counts, verdict.counts):
            for name in part.shape().members:
                m.d.comb += getattr(self.counts, name).eq(getattr(part, name))

        # Packets taken and not yet handed over; a FIFO's level would miss the pipeline.
        inside = Signal(range(2 * waiting + 1))
        m.d.sync += inside.eq(
            inside + (self.meta.valid & self.meta.ready) - (self.dispatch.valid & self.dispatch.ready)
        )
        m.d.comb += self.busy.eq(self.meta.valid | (inside != 0) | (replies.level != 0) | table.busy)
        return m

    def _join(self, m, cookie, verdict, room):
        """Packets meet the results of their look-ups."""
        if self._config.pipelined_hash:
            m.d.comb += [
                verdict.valid.eq(cookie.valid),
                verdict.payload.eq(cookie.payload),
                self.lookup.ready.eq(cookie.valid),
                room.eq(1),
            ]
            return
        m.submodules.undecided = undecided = StreamFifo(CookieResponse(SetupRecord), LOOKUPS)
        inside = Signal(range(LOOKUPS + 1))
        m.d.sync += inside.eq(inside + (self.meta.valid & self.meta.ready) - verdict.valid)
        m.d.comb += [
            undecided.i.valid.eq(cookie.valid),
            undecided.i.payload.eq(cookie.payload),
            verdict.payload.eq(undecided.o.payload),
            verdict.valid.eq(undecided.o.valid & self.lookup.valid),
            undecided.o.ready.eq(self.lookup.valid),
            self.lookup.ready.eq(undecided.o.valid),
            room.eq(inside != LOOKUPS),
        ]
