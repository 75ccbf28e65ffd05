"""`LinkedTop` as a board: a thread runs the model, with a wire on each of its two ports."""

from __future__ import annotations

import threading

from sim.device import Shell
from sim.simulator import Clock, Nic, Simulator
from sim.wires import Wire

from .linked_top import CONFIG, library

__all__ = ["LinkedBoard"]


class _NoServer:
    """A board's driver comes by the link, not by a socket: the core is always on."""

    connected = True

    def handle(self) -> bool:
        return False

    def poll(self) -> list:
        return []

    def close(self) -> None:
        pass


class LinkedBoard:
    """network, link: what is plugged into the ports; the board unplugs them."""

    def __init__(self, network: Wire, link: Wire) -> None:
        self.shell = Shell(library())
        nic = Nic(self.shell, _NoServer(), [network, link], tick=CONFIG.tick_us * 1e-6)
        self._simulator = Simulator([nic], Clock())
        self._thread = threading.Thread(target=self._simulator.run, name="board", daemon=True)

    def __enter__(self) -> LinkedBoard:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Switch it off; the wires stay plugged in."""
        self._simulator.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def __exit__(self, *exception: object) -> None:
        self.stop()
        violations, message = self.shell.counters().violations, self.shell.message
        self._simulator.close()
        assert not violations, message
