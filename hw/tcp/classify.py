"""`Classifier`: looks at every received packet and says what the setup engine has to do with it.

Drops what must not reach anybody, finds the SYNs to answer and the acknowledgments whose cookie
has to be checked, and prepares the inputs of the hash and the fields of the SYN-ACK. RFC 9293
sections 3.10.7.2 (segments to a listener) and 3.9.2.3 (invalid addresses), RFC 4987 (SYN cookies),
RFC 3168 section 6.1.1 (ECN set-up), RFC 7323.

* Latency: 5 cycles (`latency`). Throughput: one packet per cycle.
* Registered: everything. `enable` = 0 holds the whole pipeline; counter strobes pause.
* Overflow: cannot happen. Reset: forgets the packets inside.

Key and epoch are sampled in the same cycle, so a rotation never mixes the two.
"""

from amaranth import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.cookie import (
    COOKIE_PLAIN,
    COOKIE_TIMESTAMPS,
    IPV4_MAPPED_PREFIX,
    MSS_CLASSES,
    TIMESTAMP_OPTION_BITS,
    TIMESTAMP_OPTIONS,
    WSCALE_NONE,
)
from acceltcp.abi.messages import ChecksumState
from acceltcp.abi.wire import MSS_DEFAULT_IPV4, MSS_DEFAULT_IPV6, TCPFlag

from ..abi import flag_of
from ..counts import counts_layout
from ..packet.meta import ReplyKind, RxMeta
from ..packet.rss import Steering
from .cookie import CookieRequest, CookieTerms, header_field, header_value, mss_class
from .listen import Listener, ListenKey
from .records import Action, HostInfo, SetupRecord

__all__ = ["Classifier"]

_COUNTS = (
    "rx_drop_filter",
    "rx_drop_length",
    "rx_drop_ip_checksum",
    "rx_drop_l4_checksum",
    "setup_syn",
    "setup_drop_flags",
    "setup_drop_address",
    "setup_drop_options",
    "setup_drop_paused",
    "setup_drop_no_secret",
)

_GROUP_BIT = 40
"""Bit of a 48-bit MAC address, first byte most significant, that marks group addresses."""

_Compared = data.StructLayout(
    {
        "meta": RxMeta,
        "ts_clock": 32,
        "older": 26,  # clock field of TIMESTAMP_OPTIONS, one step back
        "group": 1,
        "group_source": 1,
        "mine": 1,
        "promiscuous": 1,
        "keep_bad": 1,
        "same_ends": 1,
        "unusable": 1,  # an address that nobody can have
        "mapped": 1,  # IPv4-mapped address in an IPv6 header
        "mss": 16,
        "claimed": 32,
        "iss": 32,
        "answer": 32,
    }
)
_Judged = data.StructLayout(
    {
        "meta": RxMeta,
        "ts_clock": 32,
        "older": 26,
        "drop_filter": 1,
        "drop_length": 1,
        "drop_ip_checksum": 1,
        "drop_l4_checksum": 1,
        "mine": 1,
        "opening": 1,  # a SYN that is ours to answer if there is a listener
        "checking": 1,  # an acknowledgment that is ours to check if there is a listener
        "clean": 1,
        "bad_flags": 1,
        "bad_address": 1,
        "bad_options": 1,
        "mapped": 1,
        "ecn_wanted": 1,
        "terms": CookieTerms,
        "claimed": 32,
        "claimed_epoch": 2,
        "iss": 32,
        "answer": 32,
    }
)


def _unusable(address, meta):
    """Broadcast, multicast or unspecified."""
    ipv4 = address[:32]
    unusable4 = (ipv4 == 0) | (ipv4 == 0xFFFF_FFFF) | (ipv4[28:] == 0xE)
    unusable6 = (address == 0) | (address[120:] == 0xFF)
    return Mux(meta.ipv6, unusable6, unusable4)


def _mapped(address):
    return address[32:] == IPV4_MAPPED_PREFIX >> 32


class Classifier(wiring.Component):
    """Classifies received packets.

    Members
    -------
    enable: the pipeline moves on.
    i_valid, i: a packet, taken when `enable`.
    mac, promiscuous, keep_bad: per port, see `acceltcp.abi.registers.PORT`.
    ts_clock, epoch, key_current, key_previous, key_valid: time and secrets.
    key, listener: to a `ListenTable` with the same `enable`.
    steering: from an `Rss` with the same `enable` and input: 4 cycles behind `i`.
    o_valid, o: input of a `CookieEngine`.
    counts: strobes.
    """

    latency = 5

    def __init__(self, config):
        self._ports = config.ports
        super().__init__(
            {
                "enable": In(1),
                "i_valid": In(1),
                "i": In(RxMeta),
                "mac": In(48).array(config.ports),
                "promiscuous": In(1).array(config.ports),
                "keep_bad": In(1).array(config.ports),
                "ts_clock": In(32),
                "epoch": In(32),
                "key_current": In(128),
                "key_previous": In(128),
                "key_valid": In(1),
                "key": Out(ListenKey),
                "listener": In(Listener),
                "steering": In(Steering),
                "o_valid": Out(1),
                "o": Out(CookieRequest(SetupRecord)),
                "counts": Out(counts_layout(*_COUNTS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        meta = Signal(RxMeta, reset_less=True)
        ts_clock = Signal(32, reset_less=True)
        compared = Signal(_Compared, reset_less=True)
        judged = Signal(_Judged, reset_less=True)
        waiting = Signal(_Judged, reset_less=True)
        request = Signal(CookieRequest(SetupRecord), reset_less=True)
        valid = Signal(self.latency)

        with m.If(self.enable):
            m.d.sync += [
                valid.eq(Cat(self.i_valid, valid)),
                meta.eq(self.i),
                ts_clock.eq(self.ts_clock),
            ]
            m.d.sync += waiting.eq(judged)  # the listener comes 3 cycles after its key, beside it
        m.d.comb += [
            self.key.address.eq(meta.dst),
            self.key.port.eq(meta.dst_port),
            self.key.ipv6.eq(meta.ipv6),
            self.o_valid.eq(valid[-1]),
            self.o.eq(request),
        ]
        self._compare(m, meta, ts_clock, compared)
        self._judge(m, compared, judged)
        self._decide(m, valid[3], waiting, request)
        return m

    def _of_port(self, values, port):
        return values[0] if self._ports == 1 else Mux(port, values[1], values[0])

    def _compare(self, m, meta, ts_clock, s):
        """Everything that compares or adds wide fields."""
        syn = flag_of(meta.flags, TCPFlag.SYN)
        with m.If(self.enable):
            m.d.sync += [
                s.meta.eq(meta),
                s.ts_clock.eq(ts_clock),
                s.older.eq(ts_clock[TIMESTAMP_OPTION_BITS:] - 1),
                s.group.eq(meta.dst_mac[_GROUP_BIT]),
                s.group_source.eq(meta.src_mac[_GROUP_BIT]),
                s.mine.eq(meta.dst_mac == self._of_port(self.mac, meta.port)),
                s.promiscuous.eq(self._of_port(self.promiscuous, meta.port)),
                s.keep_bad.eq(self._of_port(self.keep_bad, meta.port)),
                s.same_ends.eq((meta.src == meta.dst) & (meta.src_port == meta.dst_port)),
                s.unusable.eq(_unusable(meta.src, meta) | _unusable(meta.dst, meta)),
                s.mapped.eq(meta.ipv6 & (_mapped(meta.src) | _mapped(meta.dst))),
                s.claimed.eq(meta.ack - 1),
                # A SYN carries the initial sequence number itself, the first segment after it
                # carries one more.
                s.iss.eq(Mux(syn, meta.seq, meta.seq - 1)),
                s.answer.eq(meta.seq + 1),
                s.mss.eq(meta.options.mss),
            ]
            with m.If(~meta.options.mss_present):
                m.d.sync += s.mss.eq(Mux(meta.ipv6, MSS_DEFAULT_IPV6, MSS_DEFAULT_IPV4))

    def _judge(self, m, c, s):
        """All that can be said without knowing the listener."""
        meta, options = c.meta, c.meta.options
        syn, fin, rst, ack, ece, cwr = (
            flag_of(meta.flags, flag)
            for flag in (TCPFlag.SYN, TCPFlag.FIN, TCPFlag.RST, TCPFlag.ACK, TCPFlag.ECE, TCPFlag.CWR)
        )
        strict = ~c.keep_bad
        ip_bad, l4_bad = meta.ip_checksum == ChecksumState.BAD, meta.l4_checksum == ChecksumState.BAD
        bad = meta.length_bad | ip_bad | l4_bad
        stranger = ~c.group & ~c.mine & ~c.promiscuous

        with m.If(self.enable):
            m.d.sync += [
                s.meta.eq(meta),
                s.ts_clock.eq(c.ts_clock),
                s.older.eq(c.older),
                s.drop_filter.eq(stranger),
                s.drop_length.eq(~stranger & strict & meta.length_bad),
                s.drop_ip_checksum.eq(~stranger & strict & ~meta.length_bad & ip_bad),
                s.drop_l4_checksum.eq(~stranger & strict & ~meta.length_bad & ~ip_bad & l4_bad),
                s.mine.eq(c.mine),
                s.clean.eq(meta.tcp & ~bad & ~stranger),
                # A SYN in a broadcast frame is ours to drop.
                s.opening.eq(syn & ~ack & (c.mine | c.group)),
                s.checking.eq(~syn & ~rst & ack & c.mine),
                s.bad_flags.eq(fin | rst),
                s.bad_address.eq(
                    c.group | c.group_source | c.same_ends | c.unusable | c.mapped | (meta.src_port == 0)
                ),
                s.bad_options.eq(options.bad | (c.mss < MSS_CLASSES[0])),
                s.mapped.eq(c.mapped),
                s.ecn_wanted.eq(ece & cwr & options.timestamps),
                s.claimed.eq(c.claimed),
                s.iss.eq(c.iss),
                s.answer.eq(c.answer),
                s.terms.timestamps.eq(options.timestamps),
            ]
            with m.If(syn):
                m.d.sync += [
                    s.terms.mss_class.eq(mss_class(c.mss)),
                    s.terms.wscale.eq(options.wscale),
                    s.terms.sack.eq(options.sack),
                    s.terms.ecn.eq(0),
                ]
            with m.Elif(options.timestamps):
                m.d.sync += [
                    s.claimed_epoch.eq(header_field(COOKIE_TIMESTAMPS, "epoch", c.claimed)),
                    s.terms.mss_class.eq(header_field(COOKIE_TIMESTAMPS, "mss_class", c.claimed)),
                    s.terms.wscale.eq(header_field(TIMESTAMP_OPTIONS, "wscale", options.tsecr)),
                    s.terms.sack.eq(header_field(TIMESTAMP_OPTIONS, "sack", options.tsecr)),
                    s.terms.ecn.eq(header_field(TIMESTAMP_OPTIONS, "ecn", options.tsecr)),
                ]
            with m.Else():
                m.d.sync += [
                    s.claimed_epoch.eq(header_field(COOKIE_PLAIN, "epoch", c.claimed)),
                    s.terms.mss_class.eq(header_field(COOKIE_PLAIN, "mss_class", c.claimed)),
                    s.terms.wscale.eq(header_field(COOKIE_PLAIN, "wscale", c.claimed)),
                    s.terms.sack.eq(header_field(COOKIE_PLAIN, "sack", c.claimed)),
                    s.terms.ecn.eq(0),
                ]

    def _decide(self, m, valid, s, request):
        """The listener is known: choose the action, the epoch and the key."""
        listener, meta, steering = self.listener, s.meta, self.steering
        record, reply, inputs = request.side, request.side.reply, request.inputs

        # Epochs are a counter of which a cookie carries the low bits: 0 or 1 behind is valid.
        behind = Signal(2)
        current_epoch = Signal()
        too_old = Signal()
        epoch = Signal(32)
        m.d.comb += [
            behind.eq(self.epoch[:2] - s.claimed_epoch),
            current_epoch.eq(s.opening | ~behind[0] & (~s.terms.timestamps | ~behind[1])),
            too_old.eq(s.terms.timestamps & behind[1]),
            epoch.eq(Mux(current_epoch, self.epoch, self.epoch - 1)),
        ]

        syn = Signal()
        offloaded = Signal()
        answer = Signal()
        check = Signal()
        hopeless = Signal()
        drop = Signal()
        m.d.comb += [
            syn.eq(s.clean & s.opening & listener.hit),
            offloaded.eq(s.clean & s.mine & listener.hit),
            check.eq(offloaded & s.checking),
            hopeless.eq(too_old | meta.options.bad | s.mapped | ~self.key_valid),
            drop.eq(s.drop_filter | s.drop_length | s.drop_ip_checksum | s.drop_l4_checksum),
        ]

        counts = Signal.like(self.counts)
        m.d.comb += [
            counts.rx_drop_filter.eq(s.drop_filter),
            counts.rx_drop_length.eq(s.drop_length),
            counts.rx_drop_ip_checksum.eq(s.drop_ip_checksum),
            counts.rx_drop_l4_checksum.eq(s.drop_l4_checksum),
            counts.setup_syn.eq(syn),
        ]
        with m.If(syn):
            with m.If(s.bad_flags):
                m.d.comb += counts.setup_drop_flags.eq(1)
            with m.Elif(s.bad_address):
                m.d.comb += counts.setup_drop_address.eq(1)
            with m.Elif(s.bad_options):
                m.d.comb += counts.setup_drop_options.eq(1)
            with m.Elif(listener.paused):
                m.d.comb += counts.setup_drop_paused.eq(1)
            with m.Elif(~self.key_valid):
                m.d.comb += counts.setup_drop_no_secret.eq(1)
            with m.Else():
                m.d.comb += answer.eq(1)
        counting = Signal.like(self.counts)
        m.d.sync += counting.eq(Mux(valid & self.enable, Value.cast(counts), 0))
        m.d.comb += self.counts.eq(counting)

        terms = Signal(CookieTerms)
        tsval_options = Signal(TIMESTAMP_OPTION_BITS)
        clock = Signal(32 - TIMESTAMP_OPTION_BITS)
        low_clock = s.ts_clock[:TIMESTAMP_OPTION_BITS]
        m.d.comb += [
            terms.eq(s.terms),
            tsval_options.eq(
                header_value(TIMESTAMP_OPTIONS, ecn=terms.ecn, sack=terms.sack, wscale=terms.wscale)
            ),
            # Our timestamp must not be ahead of the clock, from which the host goes on.
            clock.eq(Mux(tsval_options > low_clock, s.older, s.ts_clock[TIMESTAMP_OPTION_BITS:])),
        ]
        with m.If(s.opening):
            m.d.comb += terms.ecn.eq(s.ecn_wanted & listener.ecn)

        with m.If(self.enable):
            m.d.sync += [
                request.hash.eq(answer | check & ~hopeless),
                request.key.eq(Mux(current_epoch, self.key_current, self.key_previous)),
                inputs.src.eq(meta.src),
                inputs.dst.eq(meta.dst),
                inputs.src_port.eq(meta.src_port),
                inputs.dst_port.eq(meta.dst_port),
                inputs.client_iss.eq(s.iss),
                inputs.epoch.eq(epoch),
                inputs.terms.eq(terms),
                record.hopeless.eq(hopeless),
                record.deferrable.eq(
                    listener.defer_accept & (meta.payload_length == 0) & ~flag_of(meta.flags, TCPFlag.FIN)
                ),
                record.epoch.eq(epoch),
                record.terms.eq(terms),
                record.queue.eq(
                    Mux(offloaded & ~(listener.spread & steering.hashed), listener.queue, steering.queue)
                ),
                record.flow.eq(s.clean & s.mine),
                record.segment.flags.eq(meta.flags),
                record.segment.window.eq(meta.window),
                record.segment.payload_length.eq(meta.payload_length),
                record.segment.timestamps.eq(meta.options.timestamps),
                record.segment.options_bad.eq(meta.options.bad),
                reply.kind.eq(ReplyKind.SYN_ACK),
                reply.port.eq(meta.port),
                reply.dst_mac.eq(meta.src_mac),
                reply.src_mac.eq(meta.dst_mac),
                reply.vlan.eq(meta.vlan),
                reply.vlan_tci.eq(meta.vlan_tci),
                reply.ipv6.eq(meta.ipv6),
                reply.src.eq(meta.dst),
                reply.dst.eq(meta.src),
                reply.src_port.eq(meta.dst_port),
                reply.dst_port.eq(meta.src_port),
                reply.seq.eq(s.claimed),
                reply.ack.eq(s.answer),
                reply.ecn.eq(terms.ecn),
                reply.window.eq(listener.window),
                reply.mss.eq(listener.mss),
                reply.wscale.eq(listener.wscale),
                reply.wscale_present.eq(terms.wscale != WSCALE_NONE),
                reply.sack.eq(terms.sack),
                reply.timestamps.eq(terms.timestamps),
                reply.tsval.eq(Cat(tsval_options, clock)),
                reply.tsecr.eq(meta.options.tsval),
            ]
            with m.If(drop | syn & ~answer):
                m.d.sync += record.action.eq(Action.DROP)
            with m.Elif(answer):
                m.d.sync += record.action.eq(Action.ANSWER)
            with m.Elif(check):
                m.d.sync += record.action.eq(Action.CHECK)
            with m.Else():
                m.d.sync += record.action.eq(Action.PASS)

            special = {
                "ts_clock": s.ts_clock,
                "options_bad": meta.options.bad,
                "listener": offloaded,
                "listener_index": Mux(offloaded, listener.index, 0),
                "rss_hash": steering.hash,
            }
            for name in HostInfo.members:
                value = special[name] if name in special else getattr(meta, name)
                m.d.sync += getattr(record.info, name).eq(value)
