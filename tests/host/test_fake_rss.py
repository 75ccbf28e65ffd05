"""The model device spreads packets as the gateware does: published vectors, listeners with and without SPREAD."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from acceltcp.abi import registers as regs
from acceltcp.abi.toeplitz import RSS_KEY_PUBLISHED, key_words
from tests.host.fake_device import FakeTransport
from tests.hw.packet.rss_vectors import VECTORS

ALL = regs.RssType.IPV4 | regs.RssType.TCP_IPV4 | regs.RssType.IPV6 | regs.RssType.TCP_IPV6
MAC = "02:00:00:00:00:05"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v.src)
def test_published_vectors(vector, monkeypatch):
    nic = FakeTransport()
    delivered: list[tuple[int, int]] = []
    monkeypatch.setattr(nic, "deliver", lambda frame, out, queue: delivered.append((queue, out.get("rss_hash", 0))))
    nic.write32(regs.PORT.address("mac_high"), 0x0200)
    nic.write32(regs.PORT.address("mac_low"), 5)
    nic.write32(regs.CONTROL.address("control"), 1)
    nic.write32(regs.CONTROL.address("default_queue"), 3)
    for number, word in enumerate(key_words(RSS_KEY_PUBLISHED)):
        nic.write32(regs.RSS.address(f"key{number}"), word)
    for index in range(regs.RSS_TABLE_ENTRIES):
        nic.write32(regs.RSS.address("entry"), regs.RSS["entry"].encode(index=index, queue=index % 3))
    ip = (IPv6 if vector.ipv6 else IP)(src=vector.src, dst=vector.dst)
    ether = Ether(dst=MAC, src="02:00:00:00:00:09")
    tcp = bytes(ether / ip / TCP(sport=vector.src_port, dport=vector.dst_port, flags="A"))
    udp = bytes(ether / ip / UDP(sport=vector.src_port, dport=vector.dst_port))
    nic.inject(tcp)
    assert delivered.pop() == (3, 0)
    nic.write32(regs.RSS.address("control"), ALL)
    for frame, value in ((tcp, vector.with_ports), (udp, vector.addresses_only)):
        nic.inject(frame)
        assert delivered.pop() == (value % 128 % 3, value)
    nic.inject(b"\xff" * 6 + bytes(6) + b"\x08\x06" + bytes(46))
    assert delivered.pop() == (3, 0)
