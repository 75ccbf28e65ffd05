"""The loop that joins cores, clients, wires and time.

The core is clocked only while it has something to do. Protocol time follows the wall clock
(times a scale): before anything is handed to a core, and at least every 10 ms, it gets the
`tick` pulses that have become due. Without a client a core stands still: it is in reset state,
and frames for it are dropped. When nothing happens the process sleeps.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Sequence

from .device import Reason, Shell, Stop
from .server import Server
from .wires import Wire

__all__ = ["Clock", "Nic", "Simulator"]

log = logging.getLogger("acceltcp.sim")

IDLE_PERIOD = 0.010
"""Longest time without ticks, in seconds."""

RUN_CYCLES = 200
"""Cycles that a core runs before others get their turn: a few milliseconds, which is what a client waits for an answer."""

TICKS_MAX = 10_000
"""Ticks that a core is given at a time, before others get their turn."""

FRAMES_QUEUED_MAX = 256
"""Frames that wait before a core; what more comes waits in the wire."""


class Clock:
    """Protocol time in seconds since the start.

    scale: how much faster than the wall clock it runs.
    monotonic: the wall clock.
    """

    def __init__(self, scale: float = 1.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        if not 0 < scale <= 1e6:
            raise ValueError(f"the time scale must be above 0 and at most a million, not {scale!r}")
        self.scale = scale
        self._monotonic = monotonic
        self._start = monotonic()

    def now(self) -> float:
        """Protocol time."""
        return (self._monotonic() - self._start) * self.scale


class Nic:
    """A core with its PCI device and one wire per port.

    shell: the core.
    server: where its client comes in.
    wires: one per port.
    tick: seconds of protocol time per `tick` pulse.
    """

    def __init__(self, shell: Shell, server: Server, wires: Sequence[Wire], *, tick: float) -> None:
        if len(wires) != shell.ports:
            raise ValueError(f"a core of {shell.ports} ports takes as many wires, not {len(wires)}")
        self.shell = shell
        self.server = server
        self.wires = list(wires)
        self._tick = tick
        self._ticks = 0
        self._settled = True
        self._violations = 0
        self._refused = 0

    def catch_up(self, now: float) -> None:
        """Give the core the ticks that are due by now."""
        due = int(now / self._tick)
        if due > self._ticks and self.server.connected:
            self.shell.tick(due - self._ticks)
            self.shell.run(TICKS_MAX, Stop.TICKED)
            self._settled = False
        self._ticks = max(self._ticks, due)

    def turn(self, clock: Clock) -> bool:
        """Everything that can be done now; True if it should be called again at once."""
        self.catch_up(clock.now())
        if self.server.handle():
            self._settled = False
        self._take_frames(clock)
        if self._settled or not self.server.connected:
            return False
        reason = self.shell.run(RUN_CYCLES, Stop.IDLE | Stop.TX | Stop.IRQ)
        self._deliver(clock)
        self._settled = Reason.IDLE in reason
        if self._settled:
            self._report()
        return not self._settled

    def _take_frames(self, clock: Clock) -> None:
        now = clock.now()
        for port, wire in enumerate(self.wires):
            wire.work(now)
            if self.shell.rx_pending(port) >= FRAMES_QUEUED_MAX:
                continue
            for frame in wire.receive(now):
                if self.server.connected:
                    self.shell.rx(port, frame)
                    self._settled = False

    def _deliver(self, clock: Clock) -> None:
        for frame in self.shell.tx():
            if frame.error:
                log.warning("port %d sent a frame of %d bytes as bad; dropped", frame.port, len(frame.data))
            else:
                self.wires[frame.port].send(frame.data, clock.now())
        for vector in self.shell.irqs():
            self.server.pci.interrupt(vector)

    def _report(self) -> None:
        """Say once what should not happen."""
        counters = self.shell.counters()
        if counters.violations != self._violations:
            self._violations = counters.violations
            log.error(
                "the core has broken %d bus rules, the first: %s", counters.violations, self.shell.message
            )
        refused = counters.axi_read_errors + counters.axi_write_errors
        if refused and not self._refused:
            log.warning(
                "an access of the core to memory was refused: %s",
                "unmapped address or wrong direction"
                if self.server.pci.config.bus_master
                else "the driver has not enabled bus mastering",
            )
        self._refused = refused

    @property
    def settled(self) -> bool:
        """The core has nothing to do."""
        return self._settled

    def deadline(self) -> float | None:
        """Protocol time at which a wire has something to do."""
        times = [when for wire in self.wires if (when := wire.deadline()) is not None]
        return min(times, default=None)

    def close(self) -> None:
        """Stop serving, unplug the wires, free the core."""
        self.server.close()
        for wire in self.wires:
            wire.close()
        self.shell.close()


class Simulator:
    """Runs NICs until told to stop."""

    def __init__(self, nics: Sequence[Nic], clock: Clock) -> None:
        self.nics = list(nics)
        self.clock = clock
        self._stopped = False

    def stop(self) -> None:
        """Make `run` return; may be called from a signal handler."""
        self._stopped = True

    def step(self, timeout: float | None = None) -> None:
        """Wait for something to do, at most `timeout` seconds, and do it."""
        poll = select.poll()
        for nic in self.nics:
            for fd, events in nic.server.poll():
                poll.register(fd, events)
            for wire in nic.wires:
                for fd in wire.filenos():
                    poll.register(fd, select.POLLIN)
        poll.poll(self._wait(timeout) * 1000)
        again = [nic.turn(self.clock) for nic in self.nics]
        self._busy = any(again)

    _busy = False

    def _wait(self, timeout: float | None) -> float:
        if self._busy:
            return 0.0
        # Without a client nothing depends on time, but signals must be noticed.
        wait = IDLE_PERIOD if any(nic.server.connected for nic in self.nics) else 0.5
        if timeout is not None:
            wait = min(wait, timeout)
        now = self.clock.now()
        for nic in self.nics:
            when = nic.deadline()
            if when is not None:
                wait = min(wait, max(0.0, (when - now) / self.clock.scale))
        return wait

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopped:
            self.step()

    def close(self) -> None:
        """Close all NICs."""
        for nic in self.nics:
            nic.close()
