"""Runs commands in the guest, through QEMU's guest agent: JSON lines over a UNIX socket (QEMU's documentation, "QEMU Guest Agent
Protocol Reference")."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Agent", "GuestError", "GuestProcess"]

_POLL_S = 0.1
_REPLY_S = 30.0


class GuestError(RuntimeError):
    """The guest does not do what it should; a sentence."""


class GuestProcess:
    """A command that runs in the guest."""

    def __init__(self, agent: Agent, command: Sequence[str], pid: int) -> None:
        self.command = list(command)
        self.pid = pid
        self._agent = agent
        self._status: dict[str, Any] | None = None

    def poll(self) -> int | None:
        """Its exit status, minus the signal that ended it, or None while it runs."""
        if self._status is None:
            status = self._agent.ask("guest-exec-status", pid=self.pid)
            if status["exited"]:
                self._status = status
        if self._status is None:
            return None
        return -int(self._status["signal"]) if "signal" in self._status else int(self._status.get("exitcode", 0))

    def wait(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """What it printed, once it has ended. Raises `GuestError` when it does not end in time."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise GuestError(f"in the guest, {' '.join(self.command)!r} has not ended within {timeout:g} s")
            time.sleep(_POLL_S)
        assert self._status is not None
        if self._status.get("out-truncated") or self._status.get("err-truncated"):
            raise GuestError(f"in the guest, {' '.join(self.command)!r} printed more than its agent keeps: send that to a file in /shared")
        out, err = (base64.b64decode(self._status.get(name, "")).decode(errors="replace") for name in ("out-data", "err-data"))
        return subprocess.CompletedProcess(self.command, code, out, err)


class Agent:
    """The guest agent behind the UNIX socket `path`.

    alive: tells whether the machine still runs. Raises `GuestError` when it does not answer within `timeout` seconds.
    """

    def __init__(self, path: Path, timeout: float, alive: Callable[[], bool] = lambda: True) -> None:
        self._alive = alive
        self._data = b""
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + timeout
        try:
            self._connect(path, deadline)
            self._synchronise(deadline, timeout)
        except BaseException:
            self.close()
            raise

    def _connect(self, path: Path, deadline: float) -> None:
        while True:
            with contextlib.suppress(OSError):
                self._socket.connect(str(path))
                return
            if not self._alive() or time.monotonic() > deadline:
                raise GuestError(f"the guest's agent cannot be reached at {path}")
            time.sleep(_POLL_S)

    def _synchronise(self, deadline: float, timeout: float) -> None:
        """Until it runs nobody reads; then it may get several of these, and answers each."""
        while time.monotonic() < deadline and self._alive():
            number = secrets.randbits(31)
            self._send("guest-sync", {"id": number})
            with contextlib.suppress(TimeoutError):
                while not self._answers(number):
                    pass
                return
        if not self._alive():
            raise GuestError("the guest ended before it had come up")
        raise GuestError(f"the guest has not come up within {timeout:g} s")

    def _answers(self, number: int) -> bool:
        """Whether the next line is the answer to this one: others may be in the way, also half ones."""
        try:
            return _parsed(self._line(1.0)).get("return") == number
        except ValueError:
            return False

    def close(self) -> None:
        """Leave it alone."""
        self._socket.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """One command of the protocol and its answer. Raises `GuestError`."""
        self._send(command, arguments)
        try:
            answer = self._receive(_REPLY_S)
        except TimeoutError:
            raise GuestError(f"the guest's agent has not answered {command} within {_REPLY_S:g} s") from None
        if "error" in answer:
            raise GuestError(f"the guest's agent refused {command}: {answer['error'].get('desc', 'no reason given')}")
        return answer.get("return")

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        message: dict[str, Any] = {"execute": command}
        if arguments:
            message["arguments"] = arguments
        self._socket.settimeout(_REPLY_S)
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError:
            raise GuestError(f"the guest's agent has not taken {command} within {_REPLY_S:g} s") from None
        except OSError as error:
            raise GuestError(f"the guest is gone: {error.strerror}") from None

    def _receive(self, timeout: float) -> dict[str, Any]:
        line = self._line(timeout)
        try:
            return _parsed(line)
        except ValueError:
            raise GuestError(f"the guest's agent has answered what is no answer: {line[:80]!r}") from None

    def _line(self, timeout: float) -> bytes:
        """The next one. Raises `TimeoutError`, and `GuestError` when the connection ends."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._data:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                part = self._socket.recv(65536)
            except TimeoutError:
                raise
            except OSError as error:
                raise GuestError(f"the guest is gone: {error.strerror}") from None
            if not part:
                raise GuestError("the guest is gone: its agent's connection was closed")
            self._data += part
        line, _, self._data = self._data.partition(b"\n")
        return line

    def start(self, *command: str) -> GuestProcess:
        """Start a command, found on the guest's PATH."""
        answer = self.ask("guest-exec", path=command[0], arg=list(command[1:]), **{"capture-output": True})
        return GuestProcess(self, command, int(answer["pid"]))

    def run(self, *command: str, timeout: float = 60.0, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. Raises `GuestError` when it takes too long or, with `check`, fails."""
        done = self.start(*command).wait(timeout)
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip()[-2000:]
            raise GuestError(f"in the guest, {' '.join(command)!r} ended with status {done.returncode}: {said}")
        return done


def _parsed(line: bytes) -> dict[str, Any]:
    """A message of the protocol. Raises `ValueError`."""
    answer = json.loads(line)
    if not isinstance(answer, dict):
        raise ValueError("no object")
    return answer
