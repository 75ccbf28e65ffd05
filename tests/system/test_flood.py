"""A SYN flood is the NIC's business: the host does not hear of it."""

from __future__ import annotations

import threading
import time

import pytest

from sim.flood import flood

from .namespace import isolated
from .world import MAC, NIC4, NIC6, TAP, Service, folder, request, wait_until

SYNS_PER_S = 3333
FETCHES = 20
PAGE = b"<h1>page</h1>\n" * 50
SPOOFED_MAC = 0x02_00_00_00_00_99


def attack(count: int) -> float:
    return flood(
        TAP, count, per_second=SYNS_PER_S, seed=7, dst_mac=int(MAC.replace(":", ""), 16), src_mac=SPOOFED_MAC,
        address=NIC4, port=80,
    )  # fmt: skip


def fetch(count: int) -> None:
    for number in range(count):
        reply = request(
            (NIC4, NIC6)[number % 2], 80, b"GET / HTTP/1.1\r\nHost: nic\r\nConnection: close\r\n\r\n"
        )
        assert reply.endswith(b"\r\n\r\n" + PAGE), reply[:100]
        time.sleep(0.05)


@isolated
@pytest.mark.slow
@pytest.mark.parametrize("syns", [4000, pytest.param(10_000, marks=pytest.mark.long)])
def test_flood(syns: int) -> None:
    with folder() as where:
        pages = where / "pages"
        pages.mkdir()
        (pages / "index.html").write_bytes(PAGE)
        with Service("http", "--directory", str(pages), folder=where) as service:
            fetch(2)  # neighbours know each other now
            time.sleep(1)

            def grown(before: dict[str, int]) -> dict[str, int]:
                return {name: value - before[name] for name, value in service.stats()["counters"].items()}

            before = service.stats()["counters"]
            fetch(FETCHES)
            time.sleep(0.5)
            quiet = grown(before)
            assert quiet["setup_syn"] == quiet["setup_syn_ack"] == FETCHES

            before = service.stats()["counters"]
            thread = threading.Thread(target=attack, args=(syns,), daemon=True)
            thread.start()
            fetch(FETCHES)
            thread.join(60)
            assert not thread.is_alive()
            wait_until("every SYN is answered", lambda: grown(before)["setup_syn_ack"] >= syns + FETCHES, 60)
            time.sleep(0.5)
            flooded = grown(before)
            print("without flood", quiet, "with flood", flooded, sep="\n")
            # A fetch takes a few host packets, more or less as the timing falls; a flood adds none.
            assert flooded["setup_syn"] == flooded["setup_syn_ack"] >= syns + FETCHES
            assert (
                sum(value for name, value in flooded.items() if name.startswith(("rx_drop", "setup_drop")))
                == 0
            )
            assert abs(flooded["rx_host_packets"] - quiet["rx_host_packets"]) <= 2 * FETCHES
            assert flooded["rx_host_bytes"] <= 1.5 * quiet["rx_host_bytes"]

            before = service.stats()["counters"]
            attack(syns)
            wait_until("every SYN is answered", lambda: grown(before)["setup_syn_ack"] == syns, 60)
            alone = grown(before)
            # Neighbours may look each other up again; nothing that grows with the flood.
            assert alone["rx_host_packets"] <= 8
            assert alone["axi_write_bytes"] <= 2048
            assert alone["interrupts"] <= 8
