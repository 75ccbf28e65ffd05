"""`Verdict`: compares the cookie and says what becomes of the packet.

A packet of a connection that the NIC closes goes there, whatever it is, and nowhere else. One of a spliced connection is
kept, whatever it is, with what the splice engine has to know of it.

* Latency: 1 cycle. Throughput: one packet per cycle; it cannot be stalled.
* Registered: the inputs; outputs are a few levels of logic behind them.
* Overflow: `dispatch` and `flow` have no ready, their users have room for every packet (or
  count what they drop). A SYN-ACK that finds `reply.ready` low is dropped and counted.
* Reset: forgets the packet inside.
"""

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..counts import counts_layout
from ..packet.meta import Reply
from ..table.records import Kind, Lookup
from .cookie import CookieResponse, compose_cookie
from .flow import FlowPacket
from .records import Action, SetupRecord
from .splice_records import SpliceInput

__all__ = ["Verdict"]

_COUNTS = (
    "setup_syn_ack",
    "setup_drop_busy",
    "setup_cookie_good",
    "setup_cookie_bad",
    "setup_deferred",
)


class Verdict(wiring.Component):
    """Last stage of the setup engine.

    Members
    -------
    i: In(stream of CookieResponse(SetupRecord), always_ready)
    lookup: In(Lookup): what the connection table says of the packet on `i`.
    flow: Out(stream of FlowPacket); never stalled: segments of connections in teardown.
    dispatch: Out(stream of SpliceInput, always_ready): one per packet, in order.
    reply: Out(stream of Reply): offered for one cycle only.
    counts: strobes.
    """

    def __init__(self, config):
        self._config = config
        super().__init__(
            {
                "i": In(stream.Signature(CookieResponse(SetupRecord), always_ready=True)),
                "lookup": In(Lookup(config.table)),
                "flow": Out(stream.Signature(FlowPacket(config))),
                "dispatch": Out(stream.Signature(SpliceInput(config), always_ready=True)),
                "reply": Out(stream.Signature(Reply)),
                "counts": Out(counts_layout(*_COUNTS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        side = self.i.p.side
        cookie = Signal(32)
        m.d.comb += cookie.eq(compose_cookie(side.terms, side.epoch, self.i.p.mac))

        # Stage 1: compare. For a claimed cookie the terms and the epoch come from the claim, so
        # that only the MAC can differ; comparing all of it is as cheap and needs no mask.
        valid = Signal()
        record = Signal(SetupRecord, reset_less=True)
        composed = Signal(32, reset_less=True)
        good = Signal()
        held, spliced = Signal(), Signal()
        ours = Signal()
        m.d.comb += ours.eq(self.lookup.hit & side.flow & (side.action != Action.DROP))
        index = Signal.like(self.lookup.index, reset_less=True)
        m.d.sync += [
            valid.eq(self.i.valid),
            held.eq(ours & (self.lookup.kind == Kind.TEARDOWN)),
            spliced.eq(ours & (self.lookup.kind == Kind.SPLICE)),
            index.eq(self.lookup.index),
            record.eq(side),
            composed.eq(cookie),
            good.eq((cookie == side.reply.seq) & ~side.hopeless),
        ]

        # Stage 2: act.
        answer = Signal()
        check = Signal()
        deferred = Signal()
        sent = Signal()
        dispatch = self.dispatch.p.dispatch
        flow = self.flow.p
        m.d.comb += [
            answer.eq(valid & ~held & ~spliced & (record.action == Action.ANSWER)),
            check.eq(valid & ~held & ~spliced & (record.action == Action.CHECK)),
            self.flow.valid.eq(valid & held),
            flow.index.eq(index),
            flow.answer.eq(record.action == Action.ANSWER),
            flow.segment.eq(record.segment),
            flow.reply.eq(record.reply),
            flow.reply.seq.eq(Mux(flow.answer, composed, record.reply.seq)),
            deferred.eq(check & good & record.deferrable),
            sent.eq(answer & self.reply.ready),
            self.reply.valid.eq(answer),
            self.reply.payload.eq(record.reply),
            self.reply.p.seq.eq(composed),
            self.dispatch.valid.eq(valid),
            dispatch.keep.eq(spliced | (record.action == Action.PASS) & ~held | check & ~deferred),
            dispatch.new.eq(check & good),
            dispatch.queue.eq(record.queue),
            dispatch.info.eq(record.info),
            dispatch.terms.eq(Mux(dispatch.new, Value.cast(record.terms), 0)),
            self.counts.setup_syn_ack.eq(sent),
            self.counts.setup_drop_busy.eq(answer & ~sent),
            self.counts.setup_cookie_good.eq(check & good),
            self.counts.setup_cookie_bad.eq(check & ~good),
            self.counts.setup_deferred.eq(deferred),
        ]
        if self._config.splices:
            packet = self.dispatch.p.packet
            m.d.comb += [
                self.dispatch.p.hit.eq(spliced),
                packet.way.eq(index),
                packet.seq.eq(record.reply.ack - 1),
                packet.ack.eq(record.reply.seq + 1),
                packet.tsval.eq(record.reply.tsecr),
                packet.timestamps.eq(record.segment.timestamps),
                packet.flags.eq(record.segment.flags),
                packet.payload_length.eq(record.segment.payload_length),
            ]
        return m
