"""Measures one transport to a NIC: `python -m bench.vfio_probe SPEC [SCALE]` prints the figures as JSON.

Runs on the host for vfio-user and in the guest for VFIO, so it needs nothing but the driver. SCALE shortens (below 1) or lengthens it.
"""

from __future__ import annotations

import json
import select
import statistics
import sys
import time
from collections.abc import Callable

from acceltcp.abi.messages import COMMAND, CommandOpcode
from acceltcp.host import Device, DeviceTimeoutError
from acceltcp.host.dma import REGION_BYTES
from acceltcp.host.queue import Queue

__all__ = ["probe"]

_REGISTERS, _MAPPINGS, _INTERRUPTS, _PACKETS = 2000, 16, 50, 4000
_FRAME = bytes.fromhex("02000000000102000000000288b5") + bytes(46)
_WAIT_S = 30.0


def probe(spec: str, scale: float = 1.0) -> dict[str, float]:
    """Figures by name, of a device that nobody else uses. Raises `DeviceError`."""

    def count(number: int) -> int:
        return max(int(number * scale), 4)

    with Device.open(spec) as device:
        transport, scratch = device.transport, device.registers.CONTROL.default_queue.address
        figures = {
            "register_reads_per_s": _rate(count(_REGISTERS), lambda _: transport.read32(scratch)),
            "register_writes_per_s": _rate(count(_REGISTERS), lambda _: transport.write32(scratch, 0), lambda: transport.read32(scratch)),
            "map_2mib_us": 1e6 / _rate(count(_MAPPINGS), lambda _: transport.map_memory(REGION_BYTES)),
        }
        queue = Queue(device)
        figures["interrupt_us"] = 1e6 * statistics.median(_interrupt(device, queue) for _ in range(count(_INTERRUPTS)))
        figures["tx_packets_per_s"] = _packets(queue, count(_PACKETS))
        return figures


def _rate(times: int, act: Callable[[int], object], end: Callable[[], object] = lambda: None) -> float:
    started = time.perf_counter()
    for number in range(times):
        act(number)
    end()  # writes are posted; a read comes after them
    return times / (time.perf_counter() - started)


def _interrupt(device: Device, queue: Queue) -> float:
    """Seconds from a command's doorbell until its interrupt is there and its event read."""
    (eventfd,) = device.transport.enable_interrupts(1)
    waiter = select.poll()
    waiter.register(eventfd, select.POLLIN)
    done: list[object] = []
    queue.arm()
    started = time.perf_counter()
    queue.post_command(COMMAND.pack(opcode=CommandOpcode.NOP), done.append)
    while not done:
        if not waiter.poll(_WAIT_S * 1000):
            raise DeviceTimeoutError(f"{device.transport.description} has not raised an interrupt within {_WAIT_S:g} s.")
        with open(eventfd, "rb", buffering=0, closefd=False) as file:
            file.read(8)
        queue.poll_events()
        if not done:
            queue.arm()
    return time.perf_counter() - started


def _packets(queue: Queue, frames: int) -> float:
    """Smallest frames from memory to the wire, per second."""
    device, sent = queue.device, 0
    before = device.counters()["tx_packets"]
    started = time.perf_counter()
    while sent < frames:
        while sent < frames and queue.send(_FRAME):
            sent += 1
        queue.flush()
        queue.poll_events()
        if time.perf_counter() - started > _WAIT_S:
            raise DeviceTimeoutError(f"{device.transport.description} has sent {sent} of {frames} frames within {_WAIT_S:g} s.")
    # A command comes after the frames before it.
    queue.run_command(COMMAND.pack(opcode=CommandOpcode.NOP), timeout=_WAIT_S)
    took = time.perf_counter() - started
    gone = device.counters()["tx_packets"] - before
    if gone != frames:
        raise DeviceTimeoutError(f"{device.transport.description} has sent {gone} of {frames} frames.")
    return frames / took


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)))
