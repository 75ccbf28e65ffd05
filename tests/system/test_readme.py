"""The programs of README.md, as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import if_nameindex, socket

import pytest

from .namespace import isolated
from .world import KERNEL4, NIC, NIC4, START_S, TAP, Program, connect, exchange, folder, plug, wait_until

README = Path(__file__).resolve().parents[2] / "README.md"


def programs() -> list[str]:
    """Blocks of Python that run by themselves."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "acceltcp.host.run(" in block]


def statements(program: str) -> int:
    """Lines that are not blank."""
    return sum(bool(line.strip()) for line in program.splitlines())


class Script(Program):
    """A program of the reader's own."""

    def __init__(self, text: str, where: Path) -> None:
        super().__init__("readme", ready=where, folder=where)
        self._file = where / "program.py"
        self._file.write_text(text)

    def start(self) -> Script:
        """Start it and wait until its interface is there."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(self._file)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            wait_until("the interface is there", lambda: _plugged() or self._ended(), START_S)
            assert not self._ended(), self.said()
        except BaseException:
            self.kill()
            raise
        plug()
        return self

    def _ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None


@contextmanager
def running(text: str, port: int) -> Iterator[None]:
    """The program, from when it answers until Ctrl-C."""
    with folder() as where:
        script = Script(text, where).start()
        try:
            deadline = time.monotonic() + 20
            while True:
                with suppress(OSError), connect(NIC4, port, timeout=1):
                    break
                assert time.monotonic() < deadline, script.said()
                time.sleep(0.05)
            yield
        finally:
            script.stop()
        said = script.said()
        assert said.rstrip().endswith("KeyboardInterrupt"), said
        # What Ctrl-C cancels is in its traceback; nothing else went wrong.
        assert set(re.findall(r"^(?:\w+\.)*(\w+Error)\b", said, re.MULTILINE)) <= {"CancelledError"}, said
        assert not re.search(r"failed(?!: ConnectionRefusedError\(\d+, 'cannot connect to 10\.0\.0\.1 port 8000: )", said), said


def test_there_are_two_programs_of_ten_lines():
    echo, proxy = programs()
    assert "start_server(echo" in echo and statements(echo) <= 10
    assert "splice(" in proxy and statements(proxy) <= 10


@isolated
def test_echo_server() -> None:
    with running(programs()[0], 7):
        for address in NIC.values():
            with connect(address, 7) as sock:
                exchange(sock, 100_000, address)


@isolated
def test_proxy() -> None:
    content = bytes(range(256)) * 2000
    with running(programs()[1], 80), folder() as files:
        # Nothing listens behind it yet: the client is reset.
        with connect(NIC4, 80) as sock, pytest.raises(ConnectionResetError):
            sock.recv(1)
        (files / "page").write_bytes(content)
        server = subprocess.Popen(
            [sys.executable, "-m", "http.server", "8000", "--bind", KERNEL4, "--directory", str(files)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until("the server listens", lambda: _listens(8000))
            for address in (NIC4, f"[{NIC['ipv6']}]"):
                page = subprocess.run(
                    ["curl", "-sS", "--max-time", "20", f"http://{address}/page"], capture_output=True, timeout=30
                )
                assert page.stdout == content, page.stderr
        finally:
            server.kill()
            server.wait(10)


def _plugged() -> bool:
    return TAP in (name for _, name in if_nameindex())


def _listens(port: int) -> bool:
    with socket() as probe:
        return probe.connect_ex((KERNEL4, port)) == 0
