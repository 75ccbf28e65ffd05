"""Registers of the host queues: read-back, checks, states, and the broadcast to the engines.

What the host wrote is kept in one memory for read-back. Every write that counts is also
broadcast on `QueueBus`, from which the engines fill memories of their own.

* Enable: the four ring sizes and bases are checked; a bad one makes the queue REFUSED and is
  counted. Enabling an enabled queue does nothing. Enabling one whose disable is still under
  way (`status.idle` is 0) is refused too: its indices could not start at 0.
* Disable: the state becomes DISABLED at once, `idle` stays 0 until the engines have let go.
* Bases and sizes can be written only while the queue is off and idle; else the write is
  ignored, since a ring must not move while the engines use it.
* Doorbells and `arm` are broadcast as they are; the engines judge them. A write whose strobes do not
  cover all of the register's fields is ignored. Read-write registers merge partial writes (done
  by the register file, which hands over whole words).
* Queues that this build does not have read as zero and ignore writes.

Latency: read 1 cycle; a write is on the bus 1 cycle later; an enable 11 cycles later, with
`busy` in between. Clearing takes 32 cycles per queue, also with `busy`: all registers, here
and (over the bus) in the engines. It follows a soft reset, and a hard reset if anything was
written since the FPGA was configured; until then the memories are zero by themselves.
"""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from acceltcp.abi.messages import RING_SIZE_LOG2_MIN
from acceltcp.abi.registers import QUEUE, Access, QueueState

from ..counts import counts_layout
from .bus import QUEUE_BITS, QueueBus, queue_word

__all__ = ["QueueRegisters"]

_WORDS = QUEUE.stride // 4
_WORD_BITS = (_WORDS - 1).bit_length()
_RINGS = ("rx_free", "rx_completion", "tx", "event")
_BASES = [queue_word(f"{ring}_base_low") for ring in _RINGS]
_SIZES = [queue_word(f"{ring}_size") for ring in _RINGS]
_SETUP = {queue_word(f"{ring}_{part}") for ring in _RINGS for part in ("base_low", "base_high", "size")}
_CONTROL = queue_word("control")
_STATUS = queue_word("status")
_KEPT = {queue_word(r.name) for r in QUEUE.registers if r.access is Access.RW}
_BITS = {queue_word(r.name): sum(field.bits for field in r.fields) for r in QUEUE.registers}
_STROBES = {
    queue_word(r.name): (1 << (_BITS[queue_word(r.name)] + 7) // 8) - 1
    for r in QUEUE.registers
    if r.access is Access.WO
}


class QueueRegisters(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    config : NicConfig
        For the number of queues.

    Members
    -------
    queue, word : In
        Which register; held from the read until after the write.
    value : Out(32)
        Its value, one cycle later.
    write : In(1)
        Strobe: write it. Only while `busy` is 0 and at least two cycles after `queue` and
        `word` have changed.
    data, strobe : In
        The whole new word, and the bytes that the host really wrote.
    busy : Out(1)
        A check or clearing is under way: do not write.
    disable_pending, disable_now, disable_done, clear, cleared
        See `Quiesce`.
    bus : Out(QueueBus())
        To the engines.
    counts : Out
        `queue_errors`.
    """

    def __init__(self, config):
        self._queues = config.queues
        super().__init__(
            {
                "queue": In(QUEUE_BITS),
                "word": In(_WORD_BITS),
                "value": Out(32),
                "write": In(1),
                "data": In(32),
                "strobe": In(4),
                "busy": Out(1),
                "disable_pending": Out(1),
                "disable_now": In(1),
                "disable_done": Out(1),
                "clear": In(1),
                "cleared": Out(1),
                "bus": Out(QueueBus()),
                "counts": Out(counts_layout("queue_errors")),
            }
        )

    def elaborate(self, platform):
        m = Module()
        count = self._queues
        m.submodules.kept = kept = memory.Memory(shape=32, depth=count * _WORDS, init=[])
        read, write = kept.read_port(), kept.write_port()

        # A queue is on (`enabled`), or off and still used by the engines (`leaving`), or off.
        enabled, refused, leaving = (Signal(count, name=n) for n in ("enabled", "refused", "leaving"))
        exists = Signal()
        m.d.comb += exists.eq(self.queue < count)
        is_enabled = Signal()
        is_refused = Signal()
        is_leaving = Signal()
        m.d.sync += [
            is_enabled.eq(enabled.bit_select(self.queue, 1) & exists),
            is_refused.eq(refused.bit_select(self.queue, 1) & exists),
            is_leaving.eq(leaving.bit_select(self.queue, 1) & exists),
            self.disable_pending.eq(leaving.any()),
        ]
        state = Mux(is_enabled, QueueState.ENABLED, Mux(is_refused, QueueState.REFUSED, QueueState.DISABLED))
        was_status = Signal()
        existed = Signal()
        m.d.sync += [was_status.eq(self.word == _STATUS), existed.eq(exists)]
        with m.If(existed):
            at, _ = QUEUE["status"].positions["state"]
            idle_at, _ = QUEUE["status"].positions["idle"]
            status = (state << at) | ((~(is_enabled | is_leaving) & 1) << idle_at)
            m.d.comb += self.value.eq(Mux(was_status, status, read.data))

        word_is_kept = Signal()
        word_is_setup = Signal()
        word_covered = Signal()
        masked = Signal(32)  # bits above a register's fields stay zero
        with m.Switch(self.word):
            for word, bits in _BITS.items():
                with m.Case(word):
                    m.d.comb += [
                        word_is_kept.eq(int(word in _KEPT)),
                        word_is_setup.eq(int(word in _SETUP)),
                        masked.eq(self.data[:bits]),
                    ]
                    if strobes := _STROBES.get(word):
                        m.d.comb += word_covered.eq((self.strobe & strobes) == strobes)

        bus = self.bus
        walk = Signal(range(count * _WORDS + 1))  # clearing: memory address; disabling: queue
        walk_queue, walk_word = walk[_WORD_BITS:], walk[:_WORD_BITS]
        step = Signal(range(10))
        good = Signal()
        dirty = Signal(reset_less=True)
        m.d.comb += [
            read.addr.eq(Cat(self.word, self.queue)),
            write.addr.eq(Cat(self.word, self.queue)),
            write.data.eq(masked),
        ]
        m.d.sync += [
            bus.write.eq(0),
            bus.enable.eq(0),
            bus.disable.eq(0),
            self.counts.queue_errors.eq(0),
            self.disable_done.eq(0),
            self.cleared.eq(0),
        ]
        this = (1 << self.queue)[:count]

        def refuse():
            m.d.sync += [refused.eq(refused | this), self.counts.queue_errors.eq(1)]

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("Run"))

            with m.State("Start"):
                with m.If(dirty):
                    m.next = "Clear"
                with m.Else():
                    m.next = "Run"
            with m.State("Run"):
                with m.If(self.write & exists):
                    m.d.sync += [
                        dirty.eq(1),
                        bus.queue.eq(self.queue),
                        bus.word.eq(self.word),
                        bus.data.eq(masked),
                    ]
                    with m.If((self.word == _CONTROL) & self.strobe[0]):
                        m.d.comb += write.en.eq(1)
                        with m.If(self.data[0]):
                            with m.If(is_leaving):
                                refuse()
                            with m.Elif(~is_enabled):
                                m.d.sync += [step.eq(0), good.eq(1)]
                                m.next = "Check"
                        with m.Else():
                            m.d.sync += refused.eq(refused & ~this)
                            with m.If(is_enabled):
                                m.d.sync += [enabled.eq(enabled & ~this), leaving.eq(leaving | this)]
                    with m.Elif(word_is_kept & (self.word != _CONTROL)):
                        allowed = ~(word_is_setup & (is_enabled | is_leaving))
                        m.d.comb += write.en.eq(allowed)
                        m.d.sync += bus.write.eq(allowed)
                    with m.Else():
                        m.d.sync += bus.write.eq(word_covered)
                with m.Elif(self.clear & ~self.cleared):
                    m.d.sync += walk.eq(0)
                    m.next = "Clear"
                with m.Elif(self.disable_now & ~self.disable_done):
                    # One queue per cycle, all of them: no search for the next bit is needed.
                    m.d.sync += [
                        bus.queue.eq(walk),
                        bus.disable.eq(leaving.bit_select(walk, 1)),
                        leaving.eq(leaving & ~(1 << walk)[:count]),
                        walk.eq(walk + 1),
                    ]
                    with m.If(walk == count - 1):
                        m.d.sync += [walk.eq(0), self.disable_done.eq(1)]
            with m.State("Check"):
                # Reads one word per cycle and looks at the word read in the cycle before.
                check = Signal(_WORD_BITS)
                m.d.comb += [check.eq(Array(_BASES + _SIZES)[step[:3]]), read.addr.eq(Cat(check, self.queue))]
                m.d.sync += step.eq(step + 1)
                with m.Switch(step):
                    with m.Case(*range(1, 5)):
                        with m.If(read.data[:6].any()):
                            m.d.sync += good.eq(0)
                    with m.Case(*range(5, 9)):
                        with m.If(read.data[:4] < RING_SIZE_LOG2_MIN):
                            m.d.sync += good.eq(0)
                    with m.Case(9):
                        with m.If(good):
                            m.d.sync += [
                                bus.enable.eq(1),
                                enabled.eq(enabled | this),
                                refused.eq(refused & ~this),
                            ]
                        with m.Else():
                            refuse()
                        m.next = "Run"
            with m.State("Clear"):
                m.d.comb += [write.addr.eq(walk), write.data.eq(0), write.en.eq(1)]
                clears = Signal()
                with m.Switch(walk_word):
                    with m.Case(*sorted(_KEPT - {_CONTROL})):
                        m.d.comb += clears.eq(1)
                m.d.sync += [
                    bus.queue.eq(walk_queue),
                    bus.word.eq(walk_word),
                    bus.data.eq(0),
                    bus.write.eq(clears),
                    walk.eq(walk + 1),
                    enabled.eq(0),
                    refused.eq(0),
                    leaving.eq(0),
                ]
                with m.If(walk == count * _WORDS - 1):
                    m.d.sync += [walk.eq(0), dirty.eq(0), self.cleared.eq(1)]
                    m.next = "Run"
        return m
