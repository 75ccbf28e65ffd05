"""`sim:` - start a simulated NIC in a process of its own and connect to it.

The device runs as `python -m acceltcp sim --socket TMP ...`; options of the specification
become its options (`loss=0.01` is `--loss 0.01`, a name without value is a switch). It ends
when the transport is closed, and also when this process dies: its standard input is a pipe
that only we hold open.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable

from .dma import DmaRegion
from .errors import DeviceError, DeviceLostError
from .transport import Transport
from .vfio_user import VfioUserTransport

__all__ = ["SimulatedTransport", "SimulatorProcess"]

log = logging.getLogger("acceltcp.sim")

_REASON = "acceltcp sim: "
"""How the simulator's last sentence begins."""

_BOOT = """
import os, runpy, signal, sys, threading, time
def watch():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
runpy.run_module("acceltcp", run_name="__main__", alter_sys=True)
"""


class SimulatorProcess:
    """A simulated device in a child process, which serves it on the socket `path`.

    options: of `acceltcp sim`, by name without dashes; a switch has no value. description: for messages.
    start_timeout: seconds that the simulator may take to come up; the first start compiles the gateware.
    stop: asked meanwhile; True makes it give up. Raises `DeviceError` with what it said when it does not come up.
    """

    def __init__(
        self, options: dict[str, str], description: str, *, start_timeout: float = 900.0, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.description = description
        self._errors: deque[str] = deque(maxlen=20)
        self._folder = tempfile.mkdtemp(prefix="acceltcp-")
        self.path = os.path.join(self._folder, "nic.sock")
        arguments = [sys.executable, "-c", _BOOT, "sim", "--socket", self.path]
        for key, value in options.items():
            arguments.append("--" + key.replace("_", "-"))
            if value:
                arguments.append(value)
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=environment, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read_errors, name="acceltcp-sim-stderr", daemon=True)
        self._reader.start()
        try:
            self._await(start_timeout, stop)
        except BaseException:
            self.close()
            raise

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for raw in self._process.stderr:
            line = raw.decode(errors="replace").rstrip()
            if line:
                self._errors.append(line)
                log.info("%s", line)

    def _await(self, timeout: float, stop: Callable[[], bool]) -> None:
        deadline = time.monotonic() + timeout
        while not os.path.exists(self.path):
            if self._process.poll() is not None:
                self._reader.join(1.0)
                raise DeviceError(self.ended())
            if stop():
                raise DeviceError(f"The start of {self.description} was called off.")
            if time.monotonic() > deadline:
                raise DeviceError(f"The simulator of {self.description} did not come up within {timeout:g} s.")
            time.sleep(0.02)

    def forget(self) -> None:
        """What it has said so far is not why it ends, should it."""
        self._errors.clear()

    @property
    def last_line(self) -> str:
        """What it said last."""
        return self._errors[-1] if self._errors else ""

    def ended(self) -> str:
        """A sentence for its end: how, and what it said."""
        code = self._process.returncode
        how = f"ended with status {code}" if code is None or code >= 0 else f"was ended by signal {-code}"
        lines = list(self._errors)
        if code in (1, 2):  # a bad option or a start that failed: why, without the list of all options and what went well before
            at = next((number for number, line in enumerate(lines) if line.startswith(_REASON)), 0)
            lines = lines[at:]
        said = "\n  ".join(lines)
        return f"The simulator of {self.description} {how}" + (f"; it said:\n  {said}" if said else ".")

    def explain(self, error: DeviceLostError) -> DeviceLostError:
        """The loss of a connection, told by why the process ended, if it did."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
            self._reader.join(1.0)
            return DeviceLostError(self.ended())
        return error

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    def __enter__(self) -> SimulatorProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End it. May be called twice."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(2.0)
        if self._process.stderr is not None and not self._reader.is_alive():
            self._process.stderr.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class SimulatedTransport(Transport):
    """A `SimulatorProcess`, and the connection to it."""

    def __init__(
        self,
        options: dict[str, str],
        *,
        description: str = "sim:",
        start_timeout: float = 900.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.description = description
        self._inner: VfioUserTransport | None = None
        self._simulator = SimulatorProcess(options, description, start_timeout=start_timeout, stop=stop)
        try:
            self._inner = VfioUserTransport(self._simulator.path, timeout=30.0, description=description)
            self._simulator.forget()  # what it is plugged into
        except BaseException as error:
            self.close()
            if isinstance(error, DeviceLostError):
                raise self._simulator.explain(error) from None
            raise

    @property
    def pid(self) -> int:
        """Process number of the simulator."""
        return self._simulator.pid

    def _get(self) -> VfioUserTransport:
        if self._inner is None:
            raise DeviceLostError(f"{self.description} is closed.")
        return self._inner

    def read32(self, offset: int) -> int:
        try:
            return self._get().read32(offset)
        except DeviceLostError as error:
            raise self._simulator.explain(error) from None

    def read_block(self, offset: int, count: int) -> list[int]:
        try:
            return self._get().read_block(offset, count)
        except DeviceLostError as error:
            raise self._simulator.explain(error) from None

    def write32(self, offset: int, value: int) -> None:
        try:
            self._get().write32(offset, value)
        except DeviceLostError as error:
            raise self._simulator.explain(error) from None

    def map_memory(self, size: int) -> DmaRegion:
        return self._get().map_memory(size)

    def enable_interrupts(self, count: int) -> list[int]:
        return self._get().enable_interrupts(count)

    def reset(self) -> None:
        self._get().reset()

    def share(self, memory: int) -> Transport:
        return self._get().share(memory)

    def fileno(self) -> int | None:
        return self._inner.fileno() if self._inner is not None else None

    def check(self) -> None:
        try:
            self._get().check()
        except DeviceLostError as error:
            raise self._simulator.explain(error) from None

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None
        self._simulator.close()
