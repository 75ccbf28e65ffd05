"""What the transports' benchmark measures, and that it notices what goes wrong."""

import pytest

from acceltcp.host import DeviceTimeoutError
from acceltcp.host.queue import Queue
from acceltcp.host.simulated import SimulatorProcess
from bench import vfio
from bench.vfio_probe import probe
from sim.guest.image import PackagesError, guest_image


def test_probe():
    with SimulatorProcess({}, "the NIC") as nic:
        figures = probe(f"vfio-user:{nic.path}", 0.02)
    assert {f"vfio.{name}" for name in figures} == {name for name in vfio.GOALS if name.startswith("vfio.")}
    assert all(value > 0 for value in figures.values())
    # A posted write costs less than a read, for which somebody has to answer.
    assert figures["register_writes_per_s"] > figures["register_reads_per_s"]


def test_frames_that_were_not_sent_are_no_result(monkeypatch):
    monkeypatch.setattr(Queue, "send", lambda self, frame: True)
    with SimulatorProcess({}, "the NIC") as nic, pytest.raises(DeviceTimeoutError, match="has sent 0 of 4 frames"):
        probe(f"vfio-user:{nic.path}", 0.001)


@pytest.mark.long
def test_both():
    try:
        guest_image()
    except PackagesError as error:
        pytest.skip(str(error))
    results = vfio.measure(scale=0.1)
    assert set(results) == set(vfio.GOALS)
    for name in ("register_reads_per_s", "tx_packets_per_s", "interrupt_us"):
        assert results[f"ratio.{name}"] == results[f"vfio.{name}"] / results[f"vfio_user.{name}"]
    assert results["ratio.tx_packets_per_s"] < 1 < results["ratio.map_2mib_us"]
