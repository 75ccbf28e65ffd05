"""Transfers over the real RTL with the kernel as the peer in both roles: what `tests.host.kernel_transfer` does on the model, smaller."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.host.kernel_transfer import PORT, KernelServer, OurServer, kernel_opens, served, we_open

from .namespace import isolated
from .test_capture import MALFORMED, bad_checksums, tshark
from .world import KERNEL4, KERNEL6, MAC, NIC4, NIC6, World, folder, together, wait_until

PLAN = [(1, 1), (0, 1), (1, 0), (0, 0), (1448, 1449), (30_000, 70_000)]
SIZES = [150_000, pytest.param(400_000, marks=pytest.mark.long)]
"""Bytes of the large ones."""
WIRES = {
    "clean": "",
    "bad": "loss=0.02&duplicate=0.02&reorder=0.02&reorder_delay=5ms&seed=4",
    "delayed": "delay=10ms&jitter=5ms&loss=0.005&seed=5",
}


def whole_plan(size: int) -> list[tuple[int, int]]:
    """How many bytes go up and down: a few at most, or large transfers each way and both ways."""
    return [*PLAN, (size, 0), (0, size), (size // 2, size // 2)]


@isolated
@pytest.mark.slow
@pytest.mark.parametrize("wire", ["clean", "bad", pytest.param("delayed", marks=pytest.mark.long)])
@pytest.mark.parametrize("size", SIZES)
def test_kernel_opens(wire: str, size: int) -> None:
    """Every size, each way and both ways at once; with setup and teardown in the NIC, and with all in the host."""
    plan = whole_plan(size)
    with World(WIRES[wire]) as world:
        for number, switches in enumerate(({}, {"setup": False, "teardown": False})):
            server = OurServer()
            listening = world.listen(PORT, server, **switches)
            for up, down in plan:
                kernel_opens((NIC4, NIC6)[number], up, down)
            world.call(served(server, len(plan)))
            world.call(listening.close())
        wait_until("all are closed", lambda: not world.do(lambda: world.nic.endpoint.connections), 30)
        assert world.tcp_stats()["failed"] == 0, world.tcp_stats()


@isolated
@pytest.mark.slow
@pytest.mark.parametrize("wire", ["clean", "bad", pytest.param("delayed", marks=pytest.mark.long)])
@pytest.mark.parametrize("size", SIZES)
def test_we_open(wire: str, size: int) -> None:
    """The host opens; the kernel serves."""
    plan = whole_plan(size)
    with World(WIRES[wire]) as world:
        server = KernelServer()
        for number, (up, down) in enumerate(plan):
            world.call(we_open(world.nic, (KERNEL4, KERNEL6)[number % 2], up, down))
        world.call(served(server, len(plan)))
        assert world.tcp_stats()["failed"] == 0, world.tcp_stats()


@isolated
@pytest.mark.slow
def test_both_roles_at_once() -> None:
    """A hundred connections each way at the same time; nothing malformed on the wire, nothing acknowledged that never came."""
    count = 100
    with folder() as where:
        capture = where / "all.pcap"
        with World(f"pcap={capture}") as world:
            ours, theirs = OurServer(), KernelServer()
            world.listen(PORT, ours, backlog=2 * count)

            async def open_all() -> None:
                await asyncio.gather(*(we_open(world.nic, KERNEL4, n * 37 % 3000, n * 91 % 5000) for n in range(count)))

            failed: list[BaseException] = []

            def active() -> None:
                try:
                    world.call(open_all(), 120)
                except BaseException as error:
                    failed.append(error)

            thread = threading.Thread(target=active)
            thread.start()
            together([lambda n=n: kernel_opens(NIC4, n * 53 % 3000, n * 71 % 5000) for n in range(count)])
            thread.join(130)
            assert not failed and not thread.is_alive(), failed
            world.call(served(ours, count))
            world.call(served(theirs, count))
            assert world.tcp_stats()["failed"] == 0, world.tcp_stats()
        for wrong in (MALFORMED, "tcp.analysis.ack_lost_segment"):
            assert tshark(capture, f"eth.src == {MAC} && ({wrong})", "frame.number", "tcp.seq", "tcp.ack") == [], wrong
        assert bad_checksums(capture, None) == []
