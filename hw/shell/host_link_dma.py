"""The core's memory accesses and interrupts as requests of the host link, one at a time.

A burst is carried out in pieces of at most `BEATS_MAX` beats, each a request that is repeated until its reply
comes. The data of a write stay in block memory until then. Reads, writes and interrupts take turns by burst.

Throughput: a beat of 64 bytes per 10 cycles into or out of the memory, then the round trip of the link. All outputs are
registered or depend on the state alone. Overflow: cannot happen, the core waits. Reset forgets what is under way, so it must
reset the core, too.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from acceltcp.abi.host_link import BEAT_BYTES, BEATS_MAX, STROBE_BYTES, LinkKind, LinkStatus

from ..csr.bus import QUEUE_BITS
from ..dma.axi import AXI_ID_BITS, AxiMasterSignature
from .host_link_frames import BEAT_WORDS, PAYLOAD_WORDS, STROBE_WORDS, WORD_BYTES, LinkHeader

__all__ = ["LinkDma"]

_SLVERR = 0b10
_WRITE_WORDS = STROBE_WORDS + BEAT_WORDS


class LinkDma(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    retry_ticks : int
        Pulses of `tick` after which a request is repeated.

    Members
    -------
    axi : In(AxiMasterSignature())
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

    def __init__(self, *, retry_ticks):
        if not isinstance(retry_ticks, int) or retry_ticks < 1:
            raise ValueError(f"retry_ticks must be an integer of at least 1, not {retry_ticks!r}")
        self._retry_ticks = retry_ticks
        super().__init__(
            {
                "axi": In(AxiMasterSignature()),
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

        shift = Signal(8 * (STROBE_BYTES + BEAT_BYTES), reset_less=True)  # one beat, word by word
        word = Signal(range(_WRITE_WORDS + 1))  # of the beat
        at = Signal(range(PAYLOAD_WORDS + 1))  # in memory
        beats = Signal(range(BEATS_MAX + 1))  # of this piece, done so far
        left = Signal(range((1 << len(axi.arlen)) + 1))  # beats of the burst after this piece
        burst_id = Signal(AXI_ID_BITS)
        failed = Signal()
        reading = Signal()  # a read went last, or is under way
        timer = Signal(range(self._retry_ticks + 1))
        piece = Signal.like(left)  # beats of the next piece
        m.d.comb += [
            piece.eq(Mux(left > BEATS_MAX, BEATS_MAX, left)),
            axi.rid.eq(burst_id),
            axi.bid.eq(burst_id),
            axi.rresp.eq(Mux(failed, _SLVERR, 0)),
            axi.bresp.eq(Mux(failed, _SLVERR, 0)),
            axi.rdata.eq(shift[8 * STROBE_BYTES :]),
            axi.rlast.eq((left == 0) & (beats == self.count)),
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
                m.d.sync += [failed.eq(0), beats.eq(0), at.eq(0)]
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
                        self.address.eq(axi.awaddr),
                        burst_id.eq(axi.awid),
                        left.eq(axi.awlen + 1),
                        reading.eq(0),
                    ]
                    m.next = "Take beat"
                with m.Elif(axi.arvalid):
                    m.d.comb += axi.arready.eq(1)
                    m.d.sync += [
                        self.kind.eq(LinkKind.DMA_READ),
                        self.address.eq(axi.araddr),
                        burst_id.eq(axi.arid),
                        left.eq(axi.arlen + 1),
                        reading.eq(1),
                    ]
                    m.next = "Ask"

            # A write: beats into memory, each behind its strobe.
            with m.State("Take beat"):
                m.d.comb += axi.wready.eq(1)
                m.d.sync += [shift.eq(Cat(axi.wstrb, axi.wdata)), word.eq(0)]
                with m.If(axi.wvalid):
                    m.d.sync += [beats.eq(beats + 1), left.eq(left - 1)]
                    m.next = "Store beat"
            with m.State("Store beat"):
                m.d.comb += [write.en.eq(1), write.addr.eq(at), write.data.eq(shift[: 8 * WORD_BYTES])]
                m.d.sync += [shift.eq(shift[8 * WORD_BYTES :]), word.eq(word + 1), at.eq(at + 1)]
                with m.If(word == _WRITE_WORDS - 1):
                    with m.If((left == 0) | (beats == BEATS_MAX)):
                        m.d.sync += [
                            self.count.eq(beats),
                            self.payload_words.eq(at + 1),
                            self.sequence.eq(self.sequence + 1),
                        ]
                        m.next = "Send"
                    with m.Else():
                        m.next = "Take beat"

            # A read: the next piece.
            with m.State("Ask"):
                m.d.sync += [
                    self.count.eq(piece),
                    left.eq(left - piece),
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
                m.d.sync += [beats.eq(0), at.eq(0), word.eq(0)]
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
                with m.If(word != BEAT_WORDS):
                    m.d.sync += at.eq(at + 1)
                with m.If(word != 0):
                    m.d.sync += shift.eq(Cat(shift[8 * WORD_BYTES :], read.data))
                with m.If(word == BEAT_WORDS):
                    m.d.sync += [beats.eq(beats + 1), word.eq(0)]
                    m.next = "Give beat"
            with m.State("Give beat"):
                m.d.comb += axi.rvalid.eq(1)
                with m.If(axi.rready):
                    m.next = "Fetch beat"
                    with m.If(beats == self.count):
                        m.d.sync += self.address.eq(self.address + BEATS_MAX * BEAT_BYTES)
                        m.next = "Ask"
                        with m.If(left == 0):
                            m.next = "Choose"

        idle = fsm.ongoing("Choose") & ~self.irq_valid & ~axi.awvalid & ~axi.arvalid
        m.d.comb += self.busy.eq(~idle & ~fsm.ongoing("Wait for reply"))
        return m
