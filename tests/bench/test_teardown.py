"""The benchmark of teardown on a small core: every figure is there, and those in cycles meet their goals."""

import pytest

from bench import teardown
from hw.config import NicConfig

SMALL = NicConfig(
    queues=4, listeners=8, flows=512, splices=0, rx_buffer_beats=128, tx_buffer_beats=128, packets=128, max_frame=1514, read_beats=512
)  # fmt: skip
OF_THE_U50 = "teardown.concurrent_flows_u50"


@pytest.fixture(scope="module")
def figures():
    return teardown.measure(config=SMALL, opt="test", count=400, connections=5)


@pytest.mark.long
def test_every_figure_is_measured(figures):
    assert list(figures) == list(teardown.GOALS)
    assert all(value > 0 for key, value in figures.items() if key not in ("teardown.uram_u50", "teardown.bram36_u50"))
    assert figures[OF_THE_U50] == SMALL.flows


@pytest.mark.long
@pytest.mark.parametrize("key", [key for key in teardown.GOALS if key != OF_THE_U50])
def test_figures_meet_their_goals(figures, key):
    assert teardown.GOALS[key].met(figures[key]) is not False, f"{key} is {figures[key]}, goal {teardown.GOALS[key]}"


@pytest.mark.long
def test_the_nic_spares_the_host(figures):
    assert figures["host.packets_per_short_connection"] < figures["host.packets_per_short_connection_software"]
