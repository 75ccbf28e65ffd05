"""Writes ring entries to host memory, and says when they have arrived.

On a bus of 64 bytes two neighbours that share a beat leave as one beat when both are there, or arrive
within a few cycles of each other: with one-line packets that is the difference between two
and one and a half bus beats per packet. On a narrower one every entry is a burst of its own. Latency, throughput, overflow and reset: see
`EntryWriter`.
"""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..csr.bus import QUEUE_BITS, QueueBus
from ..stream.fifo import StreamFifo
from .axi import WriteBeat, WritePort
from .queue_memory import bus_memory
from .ring import ENTRY_BYTES, LOG2_BITS, Posted, RingEntry

__all__ = ["EntryWriter"]


class EntryWriter(wiring.Component):
    """Writes ring entries to host memory, in order, and says when they have arrived.

    Latency: 5 cycles from `i` to the write request, and up to `PATIENCE` more for an
    entry in the lower half of a beat that has no neighbour yet. Throughput: one entry per
    cycle, in half a beat each when they are neighbours; on a bus narrower than 64 bytes a beat per cycle, and no more latency. `write.request` is registered.
    Overflow: stalls `i` when `config.writes` writes wait for their answers. Reset: forgets.

    Parameters
    ----------
    config : NicConfig
    ring : "rx_completion" or "event"

    Members
    -------
    bus : In(QueueBus())
    i : In(stream.Signature(RingEntry))
    write : Out(WritePort())
    posted : Out(Posted)
        The bus has answered, well or badly: a refused write is counted where the bus is,
        and the host finds no new entry.
    idle : Out(1)
    """

    PATIENCE = 4

    def __init__(self, config, ring):
        if ring not in ("rx_completion", "event"):
            raise ValueError(f"ring must be 'rx_completion' or 'event', not {ring!r}")
        self._config, self._ring = config, ring
        super().__init__(
            {
                "bus": In(QueueBus()),
                "i": In(stream.Signature(RingEntry)),
                "write": Out(WritePort(config.axi_bytes)),
                "posted": Out(Posted),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, ring = self._config, self._ring
        sizes = bus_memory(m, config.queues, self.bus, "sizes", f"{ring}_size", LOG2_BITS)
        lows = bus_memory(m, config.queues, self.bus, "lows", f"{ring}_base_low", 32)
        highs = bus_memory(m, config.queues, self.bus, "highs", f"{ring}_base_high", 32)

        # Stage 1: look up the ring. Stage 2: phase and offset. Stage 3: address.
        stage = [Signal(RingEntry, name=f"entry{k}", reset_less=True) for k in (1, 2, 3)]
        valid = [Signal(name=f"valid{k}") for k in (1, 2, 3)]
        go = [Signal(name=f"go{k}") for k in (1, 2, 3)]
        size = Signal(LOG2_BITS, reset_less=True)
        base = [Signal(64, name=f"base{k}", reset_less=True) for k in (1, 2)]
        offset = Signal(20, reset_less=True)
        address = Signal(64, reset_less=True)
        take = Signal()  # from stage 3
        ports = [memory.read_port(domain="comb") for memory in (sizes, lows, highs)]
        m.d.comb += [port.addr.eq(self.i.payload.queue) for port in ports]
        m.d.comb += [
            go[2].eq(~valid[2] | take),
            go[1].eq(~valid[1] | go[2]),
            go[0].eq(~valid[0] | go[1]),
            self.i.ready.eq(go[0]),
        ]
        with m.If(go[0]):
            m.d.sync += [
                valid[0].eq(self.i.valid),
                stage[0].eq(self.i.payload),
                size.eq(ports[0].data),
                base[0].eq(Cat(ports[1].data, ports[2].data)),
            ]
        with m.If(go[1]):
            wrapped = Cat(stage[0].index[k] & (size > k) for k in range(16))
            m.d.sync += [
                valid[1].eq(valid[0]),
                stage[1].eq(stage[0]),
                stage[1].entry[-1].eq(~stage[0].index.bit_select(size, 1)),
                base[1].eq(base[0]),
                offset.eq(wrapped << (ENTRY_BYTES.bit_length() - 1)),
            ]
        with m.If(go[2]):
            m.d.sync += [valid[2].eq(valid[1]), stage[2].eq(stage[1]), address.eq(base[1] + offset)]

        leave = self._pair if config.axi_bytes >= 2 * ENTRY_BYTES else self._burst
        done = leave(m, stage[2], valid[2], address, take)
        m.d.comb += self.idle.eq(~self.i.valid & ~Cat(valid).any() & done)
        return m

    def _pair(self, m, entry, valid, address, take):
        """Hold an entry until its neighbour, another entry or the end of patience comes.

        Returns whether nothing is held and every write is answered.
        """
        held = Signal(RingEntry, reset_less=True)
        held_address = Signal(64, reset_less=True)
        held_valid = Signal()
        patience = Signal(range(self.PATIENCE + 1))
        unanswered = self._unanswered(m)
        out = Signal(WriteBeat(self._config.axi_bytes), reset_less=True)
        out_valid = Signal()
        upper, mate, leave, room = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            self.write.request.payload.eq(out),
            self.write.request.valid.eq(out_valid),
            upper.eq(held.index[0]),  # rings start on a multiple of 64
            mate.eq(
                valid
                & ~upper
                & (entry.queue == held.queue)
                & (entry.index == Cat(C(1, 1), held.index[1:]))
            ),
            room.eq((~out_valid | self.write.request.ready) & unanswered.i.ready),
            leave.eq(held_valid & room & (upper | valid | (patience == 0))),
            take.eq(valid & (~held_valid | leave)),
            unanswered.i.valid.eq(leave),
            unanswered.i.payload.queue.eq(held.queue),
            unanswered.i.payload.index.eq(held.index + 1 + mate),
        ]
        with m.If(self.write.request.ready):
            m.d.sync += out_valid.eq(0)
        with m.If(leave):
            both = Cat(held.entry, Mux(mate, entry.entry, held.entry))
            half = ENTRY_BYTES
            m.d.sync += [
                out_valid.eq(1),
                out.address.eq(Cat(C(0, 6), held_address[6:])),
                out.length.eq(0),
                out.last.eq(1),
                out.data.eq(both),
                out.strobe.eq(Cat((~upper).replicate(half), (upper | mate).replicate(half))),
                held_valid.eq(0),
            ]
        with m.If(take & ~(leave & mate)):
            m.d.sync += [
                held.eq(entry),
                held_address.eq(address),
                held_valid.eq(1),
                patience.eq(self.PATIENCE),
            ]
        with m.Elif(patience != 0):
            m.d.sync += patience.eq(patience - 1)

        return ~held_valid & ~out_valid & self._answer(m, unanswered)

    def _burst(self, m, entry, valid, address, take):
        """Each entry is a burst of its own: entries begin at multiples of their size, so none crosses 4 KiB.

        Returns whether nothing is held and every write is answered.
        """
        axi_bytes = self._config.axi_bytes
        beats = ENTRY_BYTES // axi_bytes
        unanswered = self._unanswered(m)
        octets = Signal(8 * ENTRY_BYTES, reset_less=True)  # shifted out, low bytes first
        at = Signal(64, reset_less=True)
        left = Signal(range(beats + 1))  # beats of it
        out = self.write.request
        m.d.comb += [
            out.valid.eq(left != 0),
            out.payload.address.eq(at),
            out.payload.length.eq(beats - 1),
            out.payload.data.eq(octets),
            out.payload.strobe.eq(~0),
            out.payload.last.eq(left == 1),
            take.eq(valid & unanswered.i.ready & ((left == 0) | ((left == 1) & out.ready))),
            unanswered.i.valid.eq(take),
            unanswered.i.payload.queue.eq(entry.queue),
            unanswered.i.payload.index.eq(entry.index + 1),
        ]
        with m.If(take):
            m.d.sync += [octets.eq(entry.entry), at.eq(address), left.eq(beats)]
        with m.Elif(out.valid & out.ready):
            m.d.sync += [octets.eq(octets >> 8 * axi_bytes), left.eq(left - 1)]
        return (left == 0) & self._answer(m, unanswered)

    def _unanswered(self, m):
        """What the writes under way bring, in order: entries of a queue up to an index."""
        place = data.StructLayout({"queue": QUEUE_BITS, "index": 16})
        m.submodules.unanswered = unanswered = StreamFifo(place, self._config.writes, kind="block")
        return unanswered

    def _answer(self, m, unanswered):
        """Tell of writes that are answered. Returns whether all are, and told.

        Answers may come before the record of their write stands on the FIFO's output.
        """
        answers = Signal(range(self._config.writes + 4))
        pop = Signal()
        m.d.comb += [
            pop.eq((answers != 0) & unanswered.o.valid),
            unanswered.o.ready.eq(answers != 0),
        ]
        m.d.sync += [
            answers.eq(answers + self.write.response.valid - pop),
            self.posted.valid.eq(pop),
            self.posted.queue.eq(unanswered.o.payload.queue),
            self.posted.index.eq(unanswered.o.payload.index),
        ]
        return (unanswered.level == 0) & ~self.posted.valid
