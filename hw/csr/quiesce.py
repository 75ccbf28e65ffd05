"""Stopping the engines: the sequence behind queue disable and soft reset.

    hold -> engines idle for SETTLE_CYCLES -> disable the queues waiting for it -> release
    hold -> engines idle and wires drained for SETTLE_CYCLES -> core_reset -> clear the queue
            registers -> release

Idleness must last for SETTLE_CYCLES, because a request that an engine had already made when
`hold` rose may show in `idle` only some cycles later. A soft reset does not wait for ever: after
`timeout` cycles without idleness (a dead bus) it goes on regardless. A queue disable does
wait, since freeing the queue's memory would not be safe; only a soft reset ends that.

Latency: SETTLE_CYCLES + 2 from idleness to action. `hold` and `core_reset` are registers.
Requests made while a sequence runs are remembered. A hard reset releases the engines.
"""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["RESET_CYCLES", "SETTLE_CYCLES", "Quiesce"]

SETTLE_CYCLES = 16
RESET_CYCLES = 16


class Quiesce(wiring.Component):
    """See the module's text.

    Parameters
    ----------
    timeout : int
        Cycles that a soft reset waits for idleness.

    Members
    -------
    reset : In(1)
        Strobe: soft reset.
    disable_pending : In(1)
        Queues wait to be disabled.
    disable_now : Out(1)
        Disable them: the engines are held and idle.
    disable_done : In(1)
        Strobe: done.
    clear : Out(1)
        Clear the queue registers.
    cleared : In(1)
        Strobe: done.
    idle : In(1)
        No engine has anything in flight.
    drained : In(1)
        No frame is half sent; a soft reset waits for it too. A disable does not: a stopped wire
        is no reason to keep a queue's memory.
    hold : Out(1)
        Engines start nothing new.
    core_reset : Out(1)
        Engines are reset, for RESET_CYCLES.
    resetting : Out(1)
        A soft reset is under way.
    active : Out(1)
        Any sequence is under way.
    """

    def __init__(self, timeout=1 << 20):
        if not isinstance(timeout, int) or timeout < 2 * SETTLE_CYCLES:
            raise ValueError(f"timeout must be at least {2 * SETTLE_CYCLES} cycles, not {timeout!r}")
        self._timeout = timeout
        super().__init__(
            {
                "reset": In(1),
                "disable_pending": In(1),
                "disable_now": Out(1),
                "disable_done": In(1),
                "clear": Out(1),
                "cleared": In(1),
                "idle": In(1),
                "drained": In(1, init=1),
                "hold": Out(1),
                "core_reset": Out(1),
                "resetting": Out(1),
                "active": Out(1),
            }
        )

    @property
    def timeout(self):
        """Cycles that a soft reset waits for idleness."""
        return self._timeout

    def elaborate(self, platform):
        m = Module()
        settle = Signal(range(SETTLE_CYCLES))
        pulse = Signal(range(RESET_CYCLES))
        patience = Signal(range(self._timeout))
        out_of_patience = Signal()

        with m.If(self.resetting & ~out_of_patience):
            m.d.sync += [patience.eq(patience + 1), out_of_patience.eq(patience == self._timeout - 1)]

        with m.FSM() as fsm:
            m.d.comb += self.active.eq(~fsm.ongoing("Run") | self.resetting | self.disable_pending)

            with m.State("Run"):
                with m.If(self.resetting | self.disable_pending):
                    m.d.sync += self.hold.eq(1)
                    m.next = "Settle"
            with m.State("Settle"):
                at_rest = self.idle & (self.drained | ~self.resetting)
                m.d.sync += settle.eq(Mux(at_rest, settle + 1, 0))
                with m.If(self.resetting & out_of_patience):
                    m.next = "Start reset"
                with m.Elif(at_rest & (settle == SETTLE_CYCLES - 1)):
                    with m.If(self.resetting):
                        m.next = "Start reset"
                    with m.Else():
                        m.d.sync += self.disable_now.eq(1)
                        m.next = "Disable"
            with m.State("Disable"):
                with m.If(self.disable_done):
                    m.d.sync += self.disable_now.eq(0)
                    m.next = "Release"
            with m.State("Start reset"):
                m.d.sync += [self.core_reset.eq(1), pulse.eq(0)]
                m.next = "Reset"
            with m.State("Reset"):
                m.d.sync += pulse.eq(pulse + 1)
                with m.If(pulse == RESET_CYCLES - 1):
                    m.d.sync += [self.core_reset.eq(0), self.clear.eq(1)]
                    m.next = "Clear"
            with m.State("Clear"):
                with m.If(self.cleared):
                    m.d.sync += [
                        self.clear.eq(0),
                        self.resetting.eq(0),
                        patience.eq(0),
                        out_of_patience.eq(0),
                    ]
                    m.next = "Release"
            with m.State("Release"):
                m.d.sync += [self.hold.eq(0), settle.eq(0)]
                m.next = "Run"

        with m.If(self.reset & ~self.resetting):
            m.d.sync += [self.resetting.eq(1), patience.eq(0), out_of_patience.eq(0)]
        return m
