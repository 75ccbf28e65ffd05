"""Every mix of options that Linux can be made to send, and what both sides took from it."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from pathlib import Path

import pytest

from acceltcp.abi.cookie import MSS_CLASSES

from .namespace import isolated
from .world import (
    ADDRESSES,
    MAC,
    NIC,
    TAP,
    Echo,
    Vlan,
    World,
    connect,
    exchange,
    folder,
    ip,
    sysctl,
    tcp_info,
)

MIXES = list(itertools.product((1, 0), repeat=4))
SIZES = (1, 1000, 4096, 20_000, 100_000)
WSCALE = 6
HEADERS = {"ipv4": 40, "ipv6": 60}
VLAN = 5
NIC_VLAN = {"ipv4": "10.5.0.2", "ipv6": "fd05::2"}


def offer(timestamps: int, sack: int, wscale: int, ecn: int) -> None:
    sysctl(tcp_timestamps=timestamps, tcp_sack=sack, tcp_window_scaling=wscale, tcp_ecn=ecn)


def one(
    echo: Echo, address: str, port: int, size: int, seed: object, *, mss: int | None = None, jumbo: bool
) -> None:
    """A connection with the options that are set now: both sides must have understood the same."""
    offered = [
        int(Path(f"/proc/sys/net/ipv4/tcp_{n}").read_text())
        for n in ("timestamps", "sack", "window_scaling", "ecn")
    ]
    timestamps, sack, wscale, ecn = map(bool, offered)
    headers = HEADERS["ipv6" if ":" in address else "ipv4"]
    overhead = 12 if timestamps else 0
    with connect(address, port, mss=mss) as sock:
        local = sock.getsockname()[1]
        before = tcp_info(sock)
        exchange(sock, size, seed)
        kernel = tcp_info(sock)
    tcp = echo.connections.pop(local).tcp
    what = f"{address} size={size} mss={mss} {offered}: kernel {before}"
    # Linux cannot say ECN without timestamps to a server that answers statelessly; nor can we.
    expected = (timestamps, sack, wscale, ecn and timestamps)
    assert (before.timestamps, before.sack, before.wscale, before.ecn) == expected, what
    assert (tcp.timestamps, tcp.sack, tcp.ecn) == (timestamps, sack, ecn and timestamps), what
    assert (before.snd_wscale, tcp.rcv_shift) == ((WSCALE, WSCALE) if wscale else (0, 0)), what
    assert tcp.snd_shift == before.rcv_wscale, what
    mtu = 9000 if jumbo else 1500
    offered_mss = min(mss or mtu, mtu - headers)
    assert before.advmss == offered_mss - overhead, what
    mss_class = max(value for value in MSS_CLASSES if value <= offered_mss)
    assert tcp.mss == mss_class - overhead, what
    assert before.snd_mss == offered_mss - overhead, what
    if size >= 20_000 and tcp.mss > 536:  # Linux starts its estimate there
        assert kernel.rcv_mss == tcp.mss, f"{what}; then {kernel}"


@isolated
@pytest.mark.slow
@pytest.mark.parametrize("size", [200_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("family", ["ipv4", pytest.param("ipv6", marks=pytest.mark.long)])
def test_every_mix(family: str, size: int) -> None:
    address = NIC[family]
    with World(mtu=9000) as world:
        echo = Echo()
        world.listen(7, echo, ecn=True, wscale=WSCALE)
        ip("link", "set", TAP, "mtu", "1500")
        for number, mix in enumerate(MIXES):
            offer(*mix)
            one(echo, address, 7, SIZES[number % len(SIZES)], (family, mix), jumbo=False)
        # Segment sizes around each class; 88 is the least that Linux takes.
        around = (88, 535, 536, 537, 1219, 1220, 1299, 1300, 1400, 1439, 1440, 1459, 1460)
        for number, mss in enumerate(around):
            offer(number % 2, 1, 1, 0)
            one(echo, address, 7, 20_000, (family, mss), mss=mss, jumbo=False)
        ip("link", "set", TAP, "mtu", "9000")
        for number, mss in enumerate((536, 1460, 4000, 8939, 8940, 8960, None)):
            offer(1 - number % 2, 1, 1, 1)
            one(echo, address, 7, size // 3, (family, mss), mss=mss, jumbo=True)
        offer(1, 1, 1, 0)
        one(echo, address, 7, size, family, jumbo=True)
        ip("link", "set", TAP, "mtu", "1500")
        one(echo, address, 7, size, family, jumbo=False)
        counters = world.counters()
        assert counters["setup_drop_options"] == 0


@isolated
def test_server_without_ecn_or_scaling() -> None:
    """What the server does not want is not granted."""
    with World() as world:
        echo = Echo()
        world.listen(7, echo, ecn=False, wscale=0, mss=1000)
        offer(1, 1, 1, 1)
        for address in NIC.values():
            with connect(address, 7) as sock:
                local = sock.getsockname()[1]
                info = tcp_info(sock)
                exchange(sock, 30_000, address)
            tcp = echo.connections.pop(local).tcp
            assert not info.ecn and not tcp.ecn
            assert info.snd_wscale == 0 and tcp.rcv_shift == 0 and tcp.snd_shift == info.rcv_wscale
            assert info.snd_mss == 1000 - 12


@isolated
def test_vlan() -> None:
    """Replies of the NIC and of the host carry the tag of the request."""
    addresses = (*ADDRESSES, f"{NIC_VLAN['ipv4']}/24", f"{NIC_VLAN['ipv6']}/64")
    with folder() as where:
        capture = where / "vlan.pcap"
        with World(f"pcap={capture}", addresses=addresses) as world, contextlib.ExitStack() as stack:
            echo = Echo()
            world.listen(7, echo, wscale=WSCALE)
            vlan = stack.enter_context(Vlan(VLAN))
            ip("addr", "add", "10.5.0.1/24", "dev", vlan.name)
            ip("addr", "add", "fd05::1/64", "dev", vlan.name, "nodad")
            for family, address in NIC_VLAN.items():
                for mix in ((1, 1, 1, 0), (0, 1, 1, 0), (0, 0, 0, 0)):
                    offer(*mix)
                    one(echo, address, 7, 50_000, (family, mix), jumbo=False)
                with pytest.raises(ConnectionRefusedError):
                    connect(address, 9)
                one(echo, NIC[family], 7, 10_000, family, jumbo=False)
        fields = ("-e", "vlan.id", "-e", "ip.src", "-e", "ipv6.src", "-e", "arp.src.proto_ipv4")
        rows = subprocess.run(
            ["tshark", "-n", "-r", str(capture), "-Y", f"eth.src == {MAC}", "-T", "fields", *fields],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout.splitlines()  # fmt: skip
        tagged = 0
        for row in rows:
            tag, v4, v6, arp = row.split("\t")
            assert tag in ("", str(VLAN)), row
            # (What announces an address goes out untagged, before anybody asked.)
            if tag:
                tagged += 1
                assert (v4 or v6 or arp) in NIC_VLAN.values(), row
        untagged_tcp = subprocess.run(
            [
                "tshark", "-n", "-r", str(capture), "-Y",
                f"eth.src == {MAC} && tcp && !vlan && (ip.addr == 10.5.0.0/24 || ipv6.addr == fd05::/64)",
            ],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
        assert untagged_tcp == ""
        assert tagged > 200
