"""The flood's frames are what scapy takes for SYNs, with right checksums."""

import ipaddress

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from sim.flood import SPOOFED_SOURCES, checksum, syn_frames

TARGET = {"dst_mac": 0x020000000002, "src_mac": 0x020000000099, "address": "10.0.0.2", "port": 80}


@pytest.mark.parametrize("seed", [1, 2])
def test_frames_are_syns_with_right_checksums(seed):
    frames = list(syn_frames(50, seed=seed, **TARGET))
    for frame in frames:
        packet = Ether(frame)
        assert len(frame) == 74
        assert ipaddress.ip_address(packet[IP].src) in SPOOFED_SOURCES
        assert (packet[IP].dst, packet[TCP].dport, str(packet[TCP].flags)) == ("10.0.0.2", 80, "S")
        assert dict(packet[TCP].options)["MSS"] == 1460
        again = Ether(frame)
        del again[IP].chksum, again[TCP].chksum
        assert bytes(again) == frame
    assert len({frame[26:36] for frame in frames}) == 50
    assert frames == list(syn_frames(50, seed=seed, **TARGET))


def test_checksum_of_the_example_in_rfc_1071():
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert checksum(b"\x01") == 0xFFFF - 0x0100
