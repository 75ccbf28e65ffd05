"""The core's memory accesses and interrupts as requests of the host link, one at a time.

On the link memory comes in units of `BEAT_BYTES`, whatever the width of the core's bus. A burst is carried out in pieces of at most
`BEATS_MAX` units, each a request that is repeated until its reply comes: a read asks for whole units and gives what the burst
wants of them, a write says which bytes of its units it means. The data of a write stay in block memory until then. Reads, writes and interrupts
take turns by burst.

Throughput: a beat of 64 bytes per 10 cycles into or out of the memory, one of 8 bytes per 3, then the round trip of the link. All
outputs are registered or depend on the state alone. Overflow: cannot happen, the core waits. Reset forgets what is under way, so it must
reset the core, too.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from acceltcp.abi.host_link import BEAT_BYTES, BEATS_MAX, LinkKind, LinkStatus

from ..csr.bus import QUEUE_BITS
from ..dma.axi import AXI_ID_BITS, AxiMasterSignature
from .host_link_frames import BEAT_WORDS, PAYLOAD_WORDS, STROBE_WORDS, WORD_BYTES, LinkHeader

__all__ = ["LinkDma"]

_SLVERR = 0b10
_UNIT_BITS = exact_log2(BEAT_BYTES)
_WORD_BITS = exact_log2(WORD_BYTES)
_WRITE_WORDS = STROBE_WORDS + BEAT_WORDS


class LinkDma(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    retry_ticks : int
        Pulses of `tick` after which a request is repeated.
    axi_bytes : int
        Width of the core's bus.

    Members
    -------
    axi : In(AxiMasterSignature(axi_bytes))
    irq_valid, irq_vector : In. irq_ready : Out
    tick : In(1)
    pending : Out(1)
        `kind`, `sequence`, `count`, `address`, `value` and `payload_words` are to be sent.
    sent : In(1)
        That is being done.
    read_index, read_enable : In. read_data : Out
        Payload for the sender, a cycle later.
    valid, header, payload_words_in : In
        A frame of this session has come.
    word, word_index, word_valid : In
        Its payload, as `LinkReceiver` gives it.
    busy : Out(1)
        Something is to be done now; not while a reply is waited for.
    """

    def __init__(self, *, retry_ticks, axi_bytes=BEAT_BYTES):
        if not isinstance(retry_ticks, int) or retry_ticks < 1:
            raise ValueError(f"retry_ticks must be an integer of at least 1, not {retry_ticks!r}")
        self._retry_ticks, self._axi_bytes = retry_ticks, axi_bytes
        super().__init__(
            {
                "axi": In(AxiMasterSignature(axi_bytes)),
                "irq_valid": In(1),
                "irq_vector": In(QUEUE_BITS),
                "irq_ready": Out(1),
                "tick": In(1),
                "pending": Out(1),
                **{name: Out(LinkHeader[name].shape) for name in ("kind", "sequence", "count", "address", "value")},
                "payload_words": Out(range(PAYLOAD_WORDS + 1)),
                "sent": In(1),
                "read_index": In(range(PAYLOAD_WORDS)),
                "read_enable": In(1),
                "read_data": Out(8 * WORD_BYTES),
                "valid": In(1),
                "header": In(LinkHeader),
                "payload_words_in": In(range(PAYLOAD_WORDS + 1)),
                "word": In(8 * WORD_BYTES),
                "word_index": In(range(PAYLOAD_WORDS)),
                "word_valid": In(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi = self.axi
        # One memory for both: what a write sends, or what a read has brought.
        m.submodules.memory = memory = Memory(shape=8 * WORD_BYTES, depth=PAYLOAD_WORDS, init=[])
        read, write = memory.read_port(), memory.write_port()

        axi_words = self._axi_bytes // WORD_BYTES
        shift = Signal(8 * self._axi_bytes, reset_less=True)  # one beat, word by word
        enables = Signal(self._axi_bytes, reset_less=True)  # its strobes, likewise
        strobes = Signal(8 * WORD_BYTES)  # of a unit of memory, gathered
        word = Signal(range(axi_words + 1))  # of the beat
        lane = Signal(exact_log2(BEAT_WORDS))  # of the next word in its unit
        at = Signal(range(PAYLOAD_WORDS + 1))  # in memory
        units = Signal(range(BEATS_MAX + 1))  # of this piece, done so far
        left = Signal(range((axi_words << len(axi.arlen)) + 1))  # words of the burst still to be taken or given
        burst_id = Signal(AXI_ID_BITS)
        failed = Signal()
        reading = Signal()  # a read went last, or is under way
        timer = Signal(range(self._retry_ticks + 1))
        rest = (left + lane + (BEAT_WORDS - 1)) >> exact_log2(BEAT_WORDS)  # units in which there is something to read
        m.d.comb += [
            axi.rid.eq(burst_id),
            axi.bid.eq(burst_id),
            axi.rresp.eq(Mux(failed, _SLVERR, 0)),
            axi.bresp.eq(Mux(failed, _SLVERR, 0)),
            axi.rdata.eq(shift),
            axi.rlast.eq(left == 0),
            read.addr.eq(self.read_index),
            read.en.eq(self.read_enable),
            self.read_data.eq(read.data),
        ]
        matches = Signal()
        complete = Signal()
        m.d.comb += [
            complete.eq((self.kind != LinkKind.DMA_READ) | (self.payload_words_in >= self.count * BEAT_WORDS)),
            matches.eq(
                self.valid
                & self.header.reply
                & (self.header.kind == self.kind)
                & (self.header.sequence == self.sequence)
                & (complete | (self.header.status != LinkStatus.OK))
            ),
        ]

        # A reply may come in while its request is about to be repeated. A frame that is bad, or no reply, leaves rubbish,
        # which the reply overwrites.
        receiving = Signal()
        with m.If(receiving):
            m.d.comb += [write.en.eq(self.word_valid), write.addr.eq(self.word_index), write.data.eq(self.word)]

        with m.FSM() as fsm:
            m.d.comb += receiving.eq((fsm.ongoing("Send") | fsm.ongoing("Wait for reply")) & (self.kind == LinkKind.DMA_READ))
            with m.State("Choose"):
                m.d.sync += [failed.eq(0), units.eq(0), at.eq(0), word.eq(0)]
                with m.If(self.irq_valid):
                    m.d.comb += self.irq_ready.eq(1)
                    m.d.sync += [
                        self.kind.eq(LinkKind.INTERRUPT),
                        self.value.eq(self.irq_vector),
                        self.count.eq(0),
                        self.payload_words.eq(0),
                        self.sequence.eq(self.sequence + 1),
                    ]
                    m.next = "Send"
                with m.Elif(axi.awvalid & (reading | ~axi.arvalid)):
                    m.d.comb += axi.awready.eq(1)
                    m.d.sync += [
                        self.kind.eq(LinkKind.DMA_WRITE),
                        self.address.eq(axi.awaddr[_UNIT_BITS:] << _UNIT_BITS),
                        lane.eq(axi.awaddr[_WORD_BITS:_UNIT_BITS]),
                        burst_id.eq(axi.awid),
                        left.eq((axi.awlen + 1) * axi_words),
                        reading.eq(0),
                    ]
                    m.next = "Take beat"
                with m.Elif(axi.arvalid):
                    m.d.comb += axi.arready.eq(1)
                    m.d.sync += [
                        self.kind.eq(LinkKind.DMA_READ),
                        self.address.eq(axi.araddr[_UNIT_BITS:] << _UNIT_BITS),
                        lane.eq(axi.araddr[_WORD_BITS:_UNIT_BITS]),
                        burst_id.eq(axi.arid),
                        left.eq((axi.arlen + 1) * axi_words),
                        reading.eq(1),
                    ]
                    m.next = "Ask"

            # A write: words into memory, each unit behind its strobes.
            with m.State("Take beat"):
                m.d.comb += axi.wready.eq(1)
                m.d.sync += [shift.eq(axi.wdata), enables.eq(axi.wstrb), word.eq(0)]
                with m.If(axi.wvalid):
                    m.next = "Store word"
            with m.State("Store word"):
                m.d.comb += [write.en.eq(1), write.addr.eq(at + STROBE_WORDS + lane), write.data.eq(shift)]
                m.d.sync += [
                    shift.eq(shift >> 8 * WORD_BYTES),
                    enables.eq(enables >> WORD_BYTES),
                    strobes.word_select(lane, WORD_BYTES).eq(enables),
                    word.eq(word + 1),
                    lane.eq(lane + 1),
                    left.eq(left - 1),
                ]
                with m.If((lane == BEAT_WORDS - 1) | (left == 1)):
                    m.next = "Store strobes"
                with m.Elif(word == axi_words - 1):
                    m.next = "Take beat"
            with m.State("Store strobes"):
                m.d.comb += [write.en.eq(1), write.addr.eq(at), write.data.eq(strobes)]
                m.d.sync += [strobes.eq(0), at.eq(at + _WRITE_WORDS), units.eq(units + 1)]
                m.next = "Take beat"
                with m.If((left == 0) | (units == BEATS_MAX - 1)):
                    m.d.sync += [
                        self.count.eq(units + 1),
                        self.payload_words.eq(at + _WRITE_WORDS),
                        self.sequence.eq(self.sequence + 1),
                    ]
                    m.next = "Send"

            # A read: the next piece.
            with m.State("Ask"):
                m.d.sync += [
                    self.count.eq(Mux(rest > BEATS_MAX, BEATS_MAX, rest)),
                    self.payload_words.eq(0),
                    self.sequence.eq(self.sequence + 1),
                ]
                m.next = "Send"

            with m.State("Send"):
                m.d.comb += self.pending.eq(1)
                m.d.sync += timer.eq(0)
                with m.If(self.sent):
                    m.next = "Wait for reply"
            with m.State("Wait for reply"):
                m.d.sync += [units.eq(0), at.eq(Mux(reading, lane, 0)), word.eq(0)]
                with m.If(self.tick):
                    m.d.sync += timer.eq(timer + 1)
                    with m.If(timer == self._retry_ticks - 1):
                        m.next = "Send"
                with m.If(matches):
                    with m.If(self.header.status != LinkStatus.OK):
                        m.d.sync += failed.eq(1)
                    with m.Switch(self.kind):
                        with m.Case(LinkKind.DMA_READ):
                            m.next = "Fetch beat"
                        with m.Case(LinkKind.DMA_WRITE):
                            m.d.sync += self.address.eq(self.address + BEATS_MAX * BEAT_BYTES)
                            m.next = "Take beat"
                            with m.If(left == 0):
                                m.next = "Answer write"
                        with m.Default():
                            m.next = "Choose"

            with m.State("Answer write"):
                m.d.comb += axi.bvalid.eq(1)
                with m.If(axi.bready):
                    m.next = "Choose"

            # The reply to a read: out of memory into a beat. The word that was asked for comes a cycle later.
            with m.State("Fetch beat"):
                m.d.comb += [read.addr.eq(at), read.en.eq(1)]
                m.d.sync += word.eq(word + 1)
                with m.If(word != axi_words):
                    m.d.sync += at.eq(at + 1)
                with m.If(word != 0):
                    m.d.sync += shift.eq(Cat(shift, read.data)[8 * WORD_BYTES :])
                with m.If(word == axi_words):
                    m.d.sync += [left.eq(left - axi_words), word.eq(0)]
                    m.next = "Give beat"
            with m.State("Give beat"):
                m.d.comb += axi.rvalid.eq(1)
                with m.If(axi.rready):
                    m.next = "Fetch beat"
                    with m.If(at == self.count * BEAT_WORDS):
                        m.d.sync += [self.address.eq(self.address + BEATS_MAX * BEAT_BYTES), lane.eq(0)]
                        m.next = "Ask"
                    with m.If(left == 0):
                        m.next = "Choose"

        idle = fsm.ongoing("Choose") & ~self.irq_valid & ~axi.awvalid & ~axi.arvalid
        m.d.comb += self.busy.eq(~idle & ~fsm.ongoing("Wait for reply"))
        return m
