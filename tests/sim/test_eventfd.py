"""Signalling eventfds of somebody who does not cooperate."""

from __future__ import annotations

import os
import struct
import threading
import time

import pytest

from sim import eventfd
from sim.eventfd import is_eventfd, signal_eventfd

FULL = (1 << 64) - 2


@pytest.fixture(params=["kernel", "write"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of signalling."""
    if request.param == "write":
        monkeypatch.setattr(eventfd, "_kernel", None)
        monkeypatch.setattr(eventfd, "_without_kernel", True)
    return str(request.param)


def test_each_signal_counts(way: str) -> None:
    fd = os.eventfd(0)
    for _ in range(200):  # more than a context's room
        signal_eventfd(fd)
    assert os.eventfd_read(fd) == 200
    os.close(fd)


@pytest.mark.parametrize("flags", [0, os.EFD_NONBLOCK, os.EFD_SEMAPHORE])
def test_a_full_one_does_not_block(way: str, flags: int) -> None:
    fd = os.eventfd(0, flags)
    os.write(fd, struct.pack("<Q", FULL))
    for _ in range(3):
        signal_eventfd(fd)
    assert os.eventfd_read(fd) >= 1
    os.close(fd)


def test_nor_does_one_that_is_filled_again_and_again() -> None:
    """Whatever is between a look and a write, another thread fills in that time."""
    fd = os.eventfd(0)
    stop = threading.Event()

    def fill() -> None:
        os.set_blocking(fd, False)
        while not stop.is_set():
            try:
                os.write(fd, struct.pack("<Q", FULL))
            except BlockingIOError:
                os.set_blocking(fd, True)
                os.read(fd, 8)
                os.set_blocking(fd, False)

    def signal() -> None:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            signal_eventfd(fd)

    threads = [threading.Thread(target=each, daemon=True) for each in (fill, signal)]
    for thread in threads:
        thread.start()
    threads[1].join(10)
    assert not threads[1].is_alive()
    stop.set()
    signal_eventfd(fd)
    threads[0].join(10)


def test_what_is_one() -> None:
    read_end, write_end = os.pipe()
    fds = [os.eventfd(0), os.memfd_create("x"), read_end, write_end]
    assert [is_eventfd(fd) for fd in fds] == [True, False, False, False]
    for fd in fds:
        os.close(fd)
