"""A wire that loses, duplicates and reorders frames, both ways: what arrives is what was sent."""

from __future__ import annotations

import hashlib
import random
import time

import pytest

from .namespace import isolated
from .world import NIC, Service, connect, exchange, folder, together

WIRE = "loss=0.02&duplicate=0.02&reorder=0.02&reorder_delay=5ms"


@isolated
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_echo(seed: int) -> None:
    """Twenty connections at once, from 1 byte to 1 MB."""
    rng = random.Random(seed)
    sizes = [1, 2, 1_000_000] + [int(10 ** rng.uniform(0, 5.6)) for _ in range(17)]
    print(f"seed {seed}: {sizes}")

    def job(number: int) -> None:
        time.sleep(number * 0.02)
        with connect(list(NIC.values())[number % 2], 7) as sock:
            exchange(sock, sizes[number], (seed, number))

    with folder() as where, Service("echo", folder=where, sim=f"{WIRE}&seed={seed}") as service:
        together([lambda number=number: job(number) for number in range(len(sizes))])
        stats = service.stats()
        assert stats["tcp"]["opened"] == len(sizes)
        assert stats["tcp"]["bad_checksum"] == 0
        assert stats["counters"]["setup_syn"] >= len(sizes)


@isolated
@pytest.mark.slow
def test_corruption() -> None:
    """Flipped bits cost packets, never data; the NIC says where it found them."""
    with folder() as where, Service("echo", folder=where, sim="corrupt=0.03&seed=5") as service:
        for number, address in enumerate(NIC.values()):
            with connect(address, 7) as sock:
                exchange(sock, 300_000, number)
        counters = service.stats()["counters"]
        dropped = sum(value for name, value in counters.items() if name.startswith("rx_drop_"))
        assert counters["rx_drop_l4_checksum"] > 0
        assert dropped >= counters["rx_drop_l4_checksum"]


@isolated
@pytest.mark.slow
@pytest.mark.parametrize("size", [2_000_000, pytest.param(10_000_000, marks=pytest.mark.long)])
def test_download(size: int) -> None:
    """Megabytes from the server over the same wire."""
    with folder() as where:
        pages = where / "pages"
        pages.mkdir()
        data = random.Random(3).randbytes(size)
        (pages / "big").write_bytes(data)
        with (
            Service("http", "--directory", str(pages), folder=where, sim=f"{WIRE}&seed=3") as service,
            connect(NIC["ipv4"], 80, timeout=60) as sock,
        ):
            sock.sendall(b"GET /big HTTP/1.1\r\nHost: nic\r\nConnection: close\r\n\r\n")
            reply = bytearray()
            while part := sock.recv(1 << 18):
                reply += part
            body = bytes(reply).partition(b"\r\n\r\n")[2]
            assert len(body) == len(data)
            assert hashlib.sha256(body).digest() == hashlib.sha256(data).digest()
            assert service.stats()["counters"]["tx_host_packets"] > size // 1460
