"""`acceltcp bench vfio`: what the two transports of a PCI device cost, with the same simulated NIC behind both.

vfio-user is measured from a process of this machine; VFIO in a Linux guest, in which vfio-pci, an IOMMU and QEMU's own vfio-user client
stand between. The guest's processor is emulated, so its figures say nothing of a card: their ratio to the others, in one
run, is what shows a regression.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from acceltcp.host import DeviceError
from acceltcp.host.simulated import SimulatorProcess
from sim.guest import NIC_BDF
from sim.guest.agent import GuestError
from sim.guest.image import guest_image
from sim.guest.machine import Machine

from .goals import Goal
from .vfio_probe import probe

__all__ = ["GOALS", "TITLE", "measure"]

TITLE = "Transports: vfio-user, and VFIO in a guest"

_WHAT = {
    "register_reads_per_s": "register reads",
    "register_writes_per_s": "register writes, posted",
    "map_2mib_us": "to map 2 MiB for the device, mean",
    "interrupt_us": "from a command's doorbell to its interrupt and event, median",
    "tx_packets_per_s": "frames of 60 bytes, memory to wire",
}
GOALS = {
    **{f"vfio_user.{name}": Goal(what) for name, what in _WHAT.items()},
    **{f"vfio.{name}": Goal("the same, in the guest") for name, what in _WHAT.items()},
    **{f"ratio.{name}": Goal("vfio / vfio_user") for name in _WHAT},
}

_PROBE_S = 300.0


def measure(tell: Callable[[str], None] = lambda _: None, scale: float = 1.0) -> dict[str, float]:
    """The figures of `GOALS`. scale: of the number of accesses, packets and so on. Raises `RuntimeError` with a sentence."""
    image = guest_image(tell)
    try:
        tell("vfio-user")
        with SimulatorProcess({}, "the NIC") as nic:
            direct = probe(f"vfio-user:{nic.path}", scale)
        tell("VFIO in a guest: boot")
        with (
            SimulatorProcess({}, "the NIC") as nic,
            tempfile.TemporaryDirectory() as folder,
            Machine(image, [nic.path], console=Path(folder) / "console.log") as machine,
        ):
            machine.agent.run("acceltcp", "bind", NIC_BDF)
            tell("VFIO in a guest")
            done = machine.agent.run("python3", "-m", "bench.vfio_probe", f"vfio:{NIC_BDF}", str(scale), timeout=_PROBE_S)
            guest: dict[str, float] = json.loads(done.stdout)
    except (DeviceError, GuestError) as error:
        raise RuntimeError(str(error)) from None
    return {
        **{f"vfio_user.{name}": direct[name] for name in _WHAT},
        **{f"vfio.{name}": guest[name] for name in _WHAT},
        **{f"ratio.{name}": guest[name] / direct[name] for name in _WHAT},
    }
