"""The benchmark of the host stack, a small form of it: every figure is there, what it counts is right, and its own tools are."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import xml.etree.ElementTree

import pytest

from bench import host
from bench.host_configs import CONFIGS, OPTIMISATIONS, PLAIN
from bench.host_load import REQUEST, response_of, transactions
from bench.host_rig import Plan, copy_counter

SMALL = Plan(
    opt="test", rounds=1, small=200, large=8, connections=150, setups=300, uploads=8, relays=4, configs=("off", "all"), relay_rounds=1, idle=0.05
)


@pytest.mark.slow
def test_a_small_form_of_it():
    """One test, as the measurement takes half a minute."""
    figures = host.measure(plan=SMALL)
    others = tuple(f"_{config.name}" for config in CONFIGS if config.name not in SMALL.configs)
    left_out = [key for key in host.GOALS if key not in figures]
    assert list(figures) == [key for key in host.GOALS if key not in left_out]
    assert all(key.endswith(others) for key in left_out)
    # CPU times and memory of so little work drown in what a busy machine adds; what is counted does not.
    counted = ("host.packets_received", "host.packets_per_batch", "host.bytes_copied_per_byte_sent")
    assert all(value > 0 for key, value in figures.items() if key.startswith(counted)), figures

    # By RFC 9293: the request alone reaches the host, once; without offloads SYN, ACK, request and FIN at least do, and
    # SYN-ACK, the response with FIN and the last ACK go out. A busy machine makes clients repeat themselves.
    assert 1 <= figures["host.packets_received_all"] < 1.5
    assert figures["host.packets_sent_all"] < 0.5
    assert 4 <= figures["host.packets_received_off"] < 5.5
    assert 3 <= figures["host.packets_sent_off"] < 4.5

    assert figures["host.bytes_copied_per_byte_received_all"] < 0.2
    assert figures["host.bytes_copied_per_byte_received_no_zero_copy"] >= 1
    assert 0.9 < figures["host.bytes_copied_per_byte_sent_all"] < figures["host.bytes_copied_per_byte_sent_no_direct"]


def test_each_optimisation_is_off_in_one_configuration_alone():
    assert [config.tcp for config in CONFIGS if config.tcp and config is not PLAIN] == [{name: False} for name in OPTIMISATIONS]
    assert (PLAIN.setup, PLAIN.teardown, any(PLAIN.tcp.values())) == (False, False, False)
    assert {(config.setup, config.teardown) for config in CONFIGS if not config.tcp} == {
        (setup, teardown) for setup in (False, True) for teardown in (False, True)
    }


_COPYING = """
import ctypes, sys
count, size = map(int, sys.argv[1:])
source, target = bytearray(size), bytearray(size)
counter = ctypes.c_ulonglong.in_dll(ctypes.CDLL(None), "acceltcp_copied_bytes")
view = memoryview(target)
before = counter.value
for _ in range(count):
    view[:] = source
print(counter.value - before)
"""


@pytest.mark.parametrize(("size", "counted"), [(100, False), (1448, True), (1 << 20, True)])
def test_copies_are_counted(size, counted):
    done = subprocess.run(
        [sys.executable, "-c", _COPYING, "1000", str(size)], capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | {"LD_PRELOAD": str(copy_counter())},
    )  # fmt: skip
    copied = int(done.stdout)
    # The interpreter may copy something of its own meanwhile.
    assert copied >= 1000 * size if counted else copied < 100 * size
    assert copied <= 1000 * size + 100_000


class Answering:
    """A kernel server that answers every connection with the same bytes, and closes."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.requests.append(connection.recv(len(REQUEST), socket.MSG_WAITALL))
                connection.sendall(self.answer)

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *exception: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)


def test_the_load_makes_whole_transactions():
    with Answering(response_of(5000)) as server:
        assert transactions(server.port, 20, 6, REQUEST, response_of(5000), "127.0.0.1") == []
    assert server.requests == [REQUEST] * 20
    assert len(REQUEST) == 64


def test_the_load_keeps_connections():
    with Answering(response_of(128)) as server:
        kept = transactions(server.port, 5, 2, REQUEST, response_of(128), "127.0.0.1", keep=True)
    assert len({each.getpeername() + each.getsockname() for each in kept}) == 5
    for each in kept:
        each.close()


@pytest.mark.parametrize("spoilt", ["short", "long", "changed"])
def test_a_wrong_response_is_noticed(spoilt):
    answer = response_of(5000)
    wrong = {"short": answer[:-1], "long": answer + b"x", "changed": answer[:4000] + bytes([answer[4000] ^ 1]) + answer[4001:]}
    with Answering(wrong[spoilt]) as server, pytest.raises(RuntimeError, match=f"port {server.port} got"):
        transactions(server.port, 3, 1, REQUEST, answer, "127.0.0.1")


def test_a_refused_connection_is_told():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(RuntimeError, match=f"a client of port {port}"):
        transactions(port, 3, 1, REQUEST, b"", "127.0.0.1")


def test_the_plot_is_drawn(tmp_path):
    order = random.Random(1)
    results = {key: order.uniform(1, 2) for key in host.GOALS}
    files = host.plot(results, tmp_path / "folder" / "breakdown.png")
    assert [file.name for file in files] == ["breakdown.png", "breakdown.svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert xml.etree.ElementTree.parse(files[1]).getroot().tag.endswith("svg")
