"""Runs in the guest: makes the NIC reach for memory that was never mapped for it, and prints what came of it, as JSON.

Usage: misprogrammed.py BDF
"""

import json
import sys
import time

from acceltcp.abi.messages import COMMAND, CommandOpcode
from acceltcp.host import Device, DeviceError
from acceltcp.host.dma import DmaAllocator, DmaRegion
from acceltcp.host.queue import Queue
from acceltcp.host.vfio import VfioTransport

KERNEL_MEMORY = 0x100_0000
"""Guest-physical: the guest's kernel lies here, at 16 MiB. The IOMMU is to know nothing of it."""

AWAY = 1 << 38

FRAME = bytes.fromhex("0200000000010200000000020800") + bytes(46)
NOP = COMMAND.pack(opcode=CommandOpcode.NOP)


def main(bdf):
    said = {}
    with Device(VfioTransport(bdf)) as device:
        before = device.counters()

        # A frame that would carry the kernel's memory to the wire.
        queue = Queue(device)
        queue._tx_addresses[0] = KERNEL_MEMORY
        queue.send(FRAME)
        queue.flush()
        deadline = time.monotonic() + 10
        while not queue.stats.tx_errors and time.monotonic() < deadline:
            queue.poll_events()
        said["tx_errors"] = queue.stats.tx_errors
        queue.stop()

        # Rings of which every address is wrong.
        memory = device.memory
        device.memory = DmaAllocator(lambda size: moved(device.transport.map_memory(size)))
        wrong = Queue(device)
        try:
            said["wrong_rings"] = f"status {wrong.run_command(NOP, timeout=2.0).status}"
        except DeviceError as error:
            said["wrong_rings"] = str(error)
        after = device.counters()
        said["counters"] = {name: after[name] - before[name] for name in ("axi_read_errors", "axi_write_errors", "tx_packets")}

        # It still works.
        device.reset()
        device.memory = memory
        said["afterwards"] = Queue(device).run_command(NOP).status
    print(json.dumps(said))


def moved(region):
    return DmaRegion(region.view, region.address + AWAY, region.size)


if __name__ == "__main__":
    main(sys.argv[1])
