"""SYN cookies (`acceltcp.abi.cookie`): the records, and `CookieEngine`, which computes their MAC.

The engine carries a record `side` of its user's along, so that order is kept without any
matching up. `pipelined=True`: one request per cycle, `latency` cycles for every request whether
it needs the hash or not; the engine never stalls. `pipelined=False`: a request that needs no
hash passes in the same cycle; one that does passes 19 cycles later, and `i.ready` is low
meanwhile.

* Throughput: one request per cycle; not pipelined, one hash per 20 cycles.
* Registered: pipelined, `o` is flip-flops and `i.ready` is constant. Not pipelined, `o` and
  `i.ready` follow `i` combinationally.
* Overflow: `o` cannot be stalled: its user takes a response whenever there is one.
* Reset: forgets all requests in work.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.cookie import COOKIE_PLAIN, COOKIE_TIMESTAMPS, HASHED, MSS_CLASSES

from ..abi import wire_bytes
from ..packet.delay import Delay
from .siphash import SipHashIterative, SipHashPipeline

__all__ = [
    "MAC_BITS",
    "CookieEngine",
    "CookieInputs",
    "CookieRequest",
    "CookieResponse",
    "CookieTerms",
    "compose_cookie",
    "header_field",
    "header_value",
    "mss_class",
    "mss_of_class",
]

MAC_BITS = max(header.positions["mac"][1] for header in (COOKIE_TIMESTAMPS, COOKIE_PLAIN))


class CookieTerms(data.Struct):
    """What a cookie grants: the fields of `HASHED` that say so."""

    timestamps: 1
    mss_class: 3
    wscale: 4  # the client's; acceltcp.abi.cookie.WSCALE_NONE when absent
    sack: 1
    ecn: 1


class CookieInputs(data.Struct):
    """All that goes into the MAC. The epoch's upper 32 bits are zero."""

    src: 128  # the client's
    dst: 128
    src_port: 16
    dst_port: 16
    client_iss: 32
    epoch: 32
    terms: CookieTerms


class CookieRequest(data.StructLayout):
    """Input of a `CookieEngine`; `hash` = 0 when `side` just passes."""

    def __init__(self, side):
        super().__init__({"hash": 1, "key": 128, "inputs": CookieInputs, "side": side})


class CookieResponse(data.StructLayout):
    """Output of a `CookieEngine`; `mac` means something only if the hash was asked for."""

    def __init__(self, side):
        super().__init__({"mac": MAC_BITS, "side": side})


def header_field(header, name, number):
    """Field of a header that is given as a number (its first field most significant)."""
    at, bits = header.positions[name]
    return Value.cast(number)[at : at + bits]


def header_value(header, **values):
    """The header as a number, first field most significant; values are cut to their fields."""
    unknown = set(values) - set(header.positions)
    if unknown:
        raise ValueError(f"{header.name} has no field {sorted(unknown)}")
    parts = []
    for field in reversed(header.fields):
        value = Value.cast(values.get(field.name, 0))[: field.bits]
        parts.append(Cat(value, C(0, field.bits - len(value))))
    return Cat(*parts)


def mss_class(mss):
    """Class of a segment size that is at least the smallest of `MSS_CLASSES`."""
    index = C(0, 3)
    for number, size in enumerate(MSS_CLASSES):
        index = Mux(mss >= size, number, index)
    return index


def mss_of_class(index):
    """Segment size of a class."""
    size = C(MSS_CLASSES[0], 16)
    for number, value in enumerate(MSS_CLASSES):
        size = Mux(index == number, value, size)
    return size


def compose_cookie(terms, epoch, mac):
    """The 32-bit cookie; `epoch` gives the low bits of the epoch counter."""
    with_timestamps = header_value(COOKIE_TIMESTAMPS, epoch=epoch, mss_class=terms.mss_class, mac=mac)
    plain = header_value(
        COOKIE_PLAIN, epoch=epoch, mss_class=terms.mss_class, wscale=terms.wscale, sack=terms.sack, mac=mac
    )
    return Mux(terms.timestamps, with_timestamps, plain)


def _message(inputs):
    """The bytes that are hashed."""
    terms = inputs.terms
    return wire_bytes(
        HASHED,
        src=inputs.src,
        dst=inputs.dst,
        src_port=inputs.src_port,
        dst_port=inputs.dst_port,
        client_iss=inputs.client_iss,
        epoch=inputs.epoch,
        timestamps=terms.timestamps,
        mss_class=terms.mss_class,
        wscale=terms.wscale,
        sack=terms.sack,
        ecn=terms.ecn,
    )


class CookieEngine(wiring.Component):
    """Computes the MAC of each request that asks for it and passes all on, in order.

    Parameters
    ----------
    side: shape of what travels along.
    pipelined: one request per cycle, or a small engine.

    Members
    -------
    i: In(stream of CookieRequest)
    o: Out(stream of CookieResponse, always_ready)
    """

    def __init__(self, side, *, pipelined):
        self._side, self._pipelined = side, bool(pipelined)
        super().__init__(
            {
                "i": In(stream.Signature(CookieRequest(side))),
                "o": Out(stream.Signature(CookieResponse(side), always_ready=True)),
            }
        )

    @property
    def pipelined(self):
        """Whether it takes one hash per cycle."""
        return self._pipelined

    @property
    def latency(self):
        """Cycles of a request that needs the hash."""
        if self._pipelined:
            return SipHashPipeline(HASHED.size).latency
        return SipHashIterative(HASHED.size).rounds + 1

    def elaborate(self, platform):
        m = Module()
        request = self.i.p
        if self._pipelined:
            m.submodules.hash = pipeline = SipHashPipeline(HASHED.size)
            m.submodules.side = side = Delay(self._side, pipeline.latency, kind="block")
            valid = Signal(pipeline.latency)
            m.d.sync += valid.eq(Cat(self.i.valid, valid))
            m.d.comb += [
                self.i.ready.eq(1),
                pipeline.i.key.eq(request.key),
                pipeline.i.message.eq(_message(request.inputs)),
                side.i.eq(request.side),
                self.o.valid.eq(valid[-1]),
                self.o.p.mac.eq(pipeline.o),
                self.o.p.side.eq(side.o),
            ]
            return m

        # The request stays on `i` until its hash is there, so its side needs no storage.
        m.submodules.hash = engine = SipHashIterative(HASHED.size)
        working = Signal()
        m.d.comb += [
            engine.i.p.key.eq(request.key),
            engine.i.p.message.eq(_message(request.inputs)),
            engine.i.valid.eq(self.i.valid & request.hash & ~working),
            engine.o.ready.eq(1),
            self.i.ready.eq(~request.hash | engine.o.valid),
            self.o.valid.eq(self.i.valid & self.i.ready),
            self.o.p.mac.eq(engine.o.payload),
            self.o.p.side.eq(request.side),
        ]
        with m.If(engine.o.valid):
            m.d.sync += working.eq(0)
        with m.Elif(engine.i.valid & engine.i.ready):
            m.d.sync += working.eq(1)
        return m
