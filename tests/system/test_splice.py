"""Splices in the RTL between the kernel and the kernel."""

from __future__ import annotations

import random

import pytest

from .namespace import isolated
from .splicing import PROXY, Backend, Proxy, many
from .world import World, wait_until


def quiet(world: World) -> None:
    """Nothing is left: no splice, no entry of the table, no connection of the host."""
    wait_until("no splice is held", lambda: world.do(lambda: world.nic.stats()["splice"]["live"]) == 0, 30)


@isolated
@pytest.mark.slow
def test_every_byte() -> None:
    """One connection after the other, every size up to 300 kB."""
    with World() as world:
        backend, proxy = Backend(), Proxy(world)
        world.listen(PROXY, proxy)
        sizes = [(0, 0), (1, 1), (0, 100_000), (100_000, 0), (300_000, 300_000)]
        many([(k, up, down) for k, (up, down) in enumerate(sizes)], workers=1)
        quiet(world)
        assert not proxy.errors and not backend.errors, (proxy.errors, backend.errors)
        assert [r.hardware for r in proxy.results] == [True] * len(sizes)
        counters = world.counters()
        print({name: value for name, value in counters.items() if value and ("splice" in name or "rx" in name)})
        assert counters["splice_opened"] == counters["splice_closed"] == len(sizes)
        backend.close()
