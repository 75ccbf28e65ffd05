"""Frames, built with scapy, and what the contract says the NIC makes of them."""

from __future__ import annotations

import ipaddress
import logging
import random
from typing import Any

from acceltcp.abi import cookie as cookies
from acceltcp.abi.messages import Verdict
from acceltcp.abi.wire import MSS_DEFAULT_IPV4, MSS_DEFAULT_IPV6, WSCALE_MAX

from .driver import Listener, Received

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers.inet import IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.l2 import Dot1Q, Ether  # noqa: E402

__all__ = [
    "CLIENT4",
    "CLIENT6",
    "CLIENT_MAC",
    "MACS",
    "SERVER4",
    "SERVER6",
    "Client",
    "as_number",
    "assert_frames_equal",
    "assert_new",
    "granted",
    "mac_text",
    "pad",
    "parsed",
    "plain_frame",
    "show",
    "syn_ack",
    "udp_frame",
]

MACS = (0x02A1_0000_0001, 0x02A1_0000_0002)
"""Addresses of the NIC's ports."""

CLIENT_MAC = 0x06C1_1E47_0001
CLIENT4, SERVER4 = "198.51.100.7", "192.0.2.10"
CLIENT6, SERVER6 = "2001:db8::c", "2001:db8:1::53"


def mac_text(mac: int) -> str:
    return mac.to_bytes(6, "big").hex(":")


def as_number(address: str) -> int:
    """An address as a plain number: 32 or 128 bits."""
    return int(ipaddress.ip_address(address))


def as_128(address: str) -> int:
    """As it is hashed and kept in tables."""
    number = as_number(address)
    return number if ":" in address else cookies.IPV4_MAPPED_PREFIX | number


def pad(frame: bytes, fill: bytes = b"\0") -> bytes:
    """At least 60 bytes, as a MAC sends."""
    return frame + fill * (60 - len(frame))


class Client:
    """A client's side of a connection: builds its segments."""

    def __init__(
        self,
        port: int = 40000,
        *,
        ipv6: bool = False,
        vlan: int | None = None,
        options: list[tuple[str, Any]] | None = None,
        iss: int = 0x1122_3344,
        server_port: int = 80,
        src: str | None = None,
        dst: str | None = None,
        dst_mac: int = 0,
        src_mac: int = CLIENT_MAC,
        ecn: bool = False,
    ) -> None:
        self.port, self.ipv6, self.vlan, self.iss = port, ipv6, vlan, iss
        self.server_port, self.ecn = server_port, ecn
        self.options = [("MSS", 1460)] if options is None else options
        self.src = src or (CLIENT6 if ipv6 else CLIENT4)
        self.dst = dst or (SERVER6 if ipv6 else SERVER4)
        self.dst_mac, self.src_mac = dst_mac or MACS[0], src_mac

    def lower(self) -> Any:
        """Ethernet, VLAN and IP headers."""
        packet = Ether(dst=mac_text(self.dst_mac), src=mac_text(self.src_mac))
        if self.vlan is not None:
            packet /= Dot1Q(prio=self.vlan >> 13, dei=self.vlan >> 12 & 1, vlan=self.vlan & 0xFFF)
        return packet / (IPv6(src=self.src, dst=self.dst) if self.ipv6 else IP(src=self.src, dst=self.dst, id=7))

    def segment(self, flags: str, seq: int, ack: int = 0, *, options: Any = (), data: bytes = b"", **tcp: Any) -> bytes:
        """A whole frame, padded with bytes that are not zero (they must not matter)."""
        header = TCP(
            sport=self.port, dport=self.server_port, flags=flags, seq=seq & 0xFFFF_FFFF, ack=ack & 0xFFFF_FFFF,
            options=list(options), **tcp,
        )
        packet = self.lower() / header
        if data:
            packet /= data
        return pad(bytes(packet), b"\xa5")

    def syn(self, flags: str | None = None, **kwargs: Any) -> bytes:
        flags = flags or ("SEC" if self.ecn else "S")
        kwargs.setdefault("options", self.options)
        return self.segment(flags, self.iss, **kwargs)

    def ack(self, syn_ack: bytes, *, data: bytes = b"", flags: str = "A", **kwargs: Any) -> bytes:
        """The segment that answers a SYN-ACK: first byte's sequence number, its timestamp echoed."""
        answer = Ether(syn_ack)[TCP]
        stamps = [value for name, value in answer.options if name == "Timestamp"]
        options = [("NOP", None), ("NOP", None), ("Timestamp", (777, stamps[0][0]))] if stamps else []
        kwargs.setdefault("options", options)
        return self.segment(flags, self.iss + 1, answer.seq + 1, data=data, **kwargs)


def mss_class(mss: int) -> int:
    return max(index for index, size in enumerate(cookies.MSS_CLASSES) if size <= mss)


def granted(syn: bytes, listener: Listener) -> dict[str, int]:
    """What a SYN gets: the fields of a NEW completion, by the contract."""
    packet = Ether(syn)
    tcp, offers = packet[TCP], dict(packet[TCP].options)
    default = MSS_DEFAULT_IPV6 if IPv6 in packet else MSS_DEFAULT_IPV4
    stamps = "Timestamp" in offers
    flags = int(tcp.flags)
    return {
        "mss": cookies.MSS_CLASSES[mss_class(offers.get("MSS", default))],
        "wscale": min(offers["WScale"], WSCALE_MAX) if "WScale" in offers else cookies.WSCALE_NONE,
        "sack": int("SAckOK" in offers),
        "timestamps": int(stamps),
        "ecn": int(stamps and listener.ecn and flags & 0xC0 == 0xC0),
    }


def syn_ack(syn: bytes, listener: Listener, *, secret: bytes, epoch: int, ts_clock: int) -> bytes:
    """The exact frame that answers a SYN."""
    packet = Ether(syn)
    tcp, offers = packet[TCP], dict(packet[TCP].options)
    ip = packet[IPv6] if IPv6 in packet else packet[IP]
    grant = granted(syn, listener)
    isn = cookies.cookie(
        secret,
        src=as_128(ip.src), dst=as_128(ip.dst), src_port=tcp.sport, dst_port=tcp.dport,
        client_iss=tcp.seq, epoch=epoch, timestamps=bool(grant["timestamps"]),
        mss_class=cookies.MSS_CLASSES.index(grant["mss"]), wscale=grant["wscale"],
        sack=bool(grant["sack"]), ecn=bool(grant["ecn"]),
    )  # fmt: skip
    options: list[tuple[str, Any]] = [("MSS", listener.mss)]
    if grant["timestamps"]:
        tsval = ts_clock & ~63 | grant["ecn"] << 5 | grant["sack"] << 4 | grant["wscale"]
        if tsval > ts_clock:
            tsval -= 64
        options += [("SAckOK", b"")] if grant["sack"] else [("NOP", None)] * 2
        options += [("Timestamp", (tsval & 0xFFFF_FFFF, offers["Timestamp"][0]))]
    elif grant["sack"]:
        options += [("NOP", None)] * 2 + [("SAckOK", b"")]
    if "WScale" in offers:
        options += [("NOP", None), ("WScale", listener.wscale)]
    answer = Ether(dst=packet.src, src=packet.dst)
    if Dot1Q in packet:
        answer /= Dot1Q(prio=packet[Dot1Q].prio, dei=packet[Dot1Q].dei, vlan=packet[Dot1Q].vlan)
    if IPv6 in packet:
        answer /= IPv6(src=ip.dst, dst=ip.src, hlim=64)
    else:
        answer /= IP(src=ip.dst, dst=ip.src, flags="DF", id=0, ttl=64)
    answer /= TCP(
        sport=tcp.dport, dport=tcp.sport, seq=isn, ack=(tcp.seq + 1) & 0xFFFF_FFFF,
        flags="SAE" if grant["ecn"] else "SA", window=listener.window, options=options,
    )  # fmt: skip
    return pad(bytes(answer))


def show(frame: bytes) -> str:
    return f"{Ether(frame)!r} {frame.hex()}"


def assert_frames_equal(got: bytes, expected: bytes) -> None:
    assert got == expected, f"\n got {show(got)}\nwant {show(expected)}"


def assert_new(received: Received, syn: bytes, listener: Listener, frame: bytes) -> None:
    """A NEW completion for `frame` with everything that `syn` was granted."""
    assert received.data == frame
    got = {name: received.completion[name] for name in ("mss", "wscale", "sack", "timestamps", "ecn")}
    assert received.verdict == Verdict.NEW, received.completion
    assert got == granted(syn, listener), received.completion
    assert (received.listener, received.listener_index) == (1, listener.index), received.completion


def parsed(frame: bytes) -> dict[str, int]:
    """What a completion must say about a TCP frame without errors, IP options or fragments."""
    packet = Ether(frame)
    vlan = Dot1Q in packet
    l3 = 18 if vlan else 14
    v6 = IPv6 in packet
    l4 = l3 + (40 if v6 else 20)
    return {
        "length": len(frame), "l3_offset": l3, "l4_offset": l4, "payload_offset": l4 + 4 * packet[TCP].dataofs,
        "ip_checksum": 0 if v6 else 1, "l4_checksum": 1, "vlan": int(vlan), "ipv4": int(not v6), "ipv6": int(v6), "tcp": 1,
        "fragment": 0, "ip_options": 0, "options_bad": 0,
        "vlan_tci": int.from_bytes(frame[14:16], "big") if vlan else 0, "rss_hash": 0, "status": 0,
    }  # fmt: skip


def plain_frame(rng: random.Random, length: int, dst_mac: int | None = None) -> bytes:
    """A frame that is not IP: an experimental EtherType and random bytes."""
    header = (dst_mac or MACS[0]).to_bytes(6, "big") + CLIENT_MAC.to_bytes(6, "big") + b"\x88\xb5"
    return header + rng.randbytes(length - len(header))


def udp_frame(rng: random.Random, size: int, *, ipv6: bool = False, vlan: int | None = None) -> bytes:
    client = Client(ipv6=ipv6, vlan=vlan)
    return pad(bytes(client.lower() / UDP(sport=5353, dport=53) / rng.randbytes(size)))
