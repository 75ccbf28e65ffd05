"""What the kernel says about a process: the oracle that nobody can talk out of it."""

from __future__ import annotations

import gc
import os
import time

__all__ = ["descriptors", "mapped_bytes", "quiet_descriptors", "resident_bytes"]


def descriptors(pid: int) -> int:
    """Open descriptors of a process. Another process's are stable only while it does nothing."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def quiet_descriptors(pid: int, seconds: float) -> int:
    """Descriptors of a process once they have stayed as many for so long: what went before has come to its end."""
    if pid == os.getpid():
        gc.collect()
    before, since = descriptors(pid), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(seconds / 20)
        if (now := descriptors(pid)) != before:
            before, since = now, time.monotonic()
    return before


def mapped_bytes(pid: int, name: str) -> int:
    """Bytes that a process has mapped of the memory files (memfd) whose name begins with `name`."""
    prefix, total = f"/memfd:{name}", 0
    with open(f"/proc/{pid}/maps") as lines:
        for line in lines:
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[5].startswith(prefix):
                low, high = fields[0].split("-")
                total += int(high, 16) - int(low, 16)
    return total


def resident_bytes(pid: int) -> int:
    """Memory that a process holds."""
    with open(f"/proc/{pid}/statm") as line:
        return int(line.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
