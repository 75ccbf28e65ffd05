"""What tshark, which shares no code with us, says about the NIC's traffic."""

from __future__ import annotations

import collections
import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from acceltcp.abi.cookie import TIMESTAMP_OPTIONS

from .namespace import isolated
from .world import MAC, NIC, TAP, Echo, World, connect, exchange, folder, ip, request, sysctl

WSCALE = 9
CHECKS = ("tcp.check_checksum:TRUE", "ip.check_checksum:TRUE")
OVERTAKING = "tcp.analysis.lost_segment && tcp.len == 0 && tcp.flags == 0x010"
"""An ACK that passed final frames which were still being read from host memory (docs/teardown.md, "What a received
segment does"): its SEQ is behind them."""
MALFORMED = '_ws.malformed && !(frame.protocols matches ":tcp:(?!data|_ws)")'
"""Headers that tshark cannot read. What it makes of the payload, by the number of a client's port, counts for
nothing: our payloads are random."""
CHAT, NOTE, WARN, ERROR = 0x200000, 0x400000, 0x600000, 0x800000


def tshark(capture: Path, display: str, *fields: str, relative: bool = False) -> list[list[str]]:
    """The fields of all packets that match, all values of a field joined by commas. relative: a connection's first byte has number 1."""
    checks = (*CHECKS, f"tcp.relative_sequence_numbers:{str(relative).upper()}")
    options = [part for check in checks for part in ("-o", check)]
    columns = [part for field in fields for part in ("-e", field)]
    out = subprocess.run(
        ["tshark", "-n", "-r", str(capture), *options, "-Y", display, "-T", "fields", *columns],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    return [row.split("\t") for row in out.stdout.splitlines()]


def verdicts(capture: Path, display: str = "frame") -> collections.Counter[str]:
    """Expert notices of warning and error severity on frames from the NIC, by text."""
    counted: collections.Counter[str] = collections.Counter()
    rows = tshark(
        capture, f"eth.src == {MAC} && _ws.expert && ({display})", "_ws.expert.severity", "_ws.expert.message"
    )
    for severities, messages in rows:
        if "D-SACK Sequence" in messages:
            # We tell the kernel that it has sent something twice (RFC 2883), as it does when the machine is busy. Such
            # an ACK repeats the last one's number, which tshark may note as well.
            messages = ",".join(
                part for part in messages.split(",") if not part.startswith(("D-SACK Sequence", "Duplicate ACK"))
            )
            if not messages:
                continue
        if any(int(severity, 0) >= WARN for severity in severities.split(",")):
            counted[messages] += 1
    return counted


def bad_checksums(capture: Path, dropped: int | None) -> list[list[str]]:
    """Frames from the NIC whose checksum is wrong or was not looked at; `[]` unless there is one.

    The kernel's own frames must be right too, but for those that the NIC has `dropped` for it: a
    machine with too much to do may read a frame off the TAP while Linux rewrites it to send it again. (Not judged
    if None: a wire that loses frames loses such ones too.) Linux writes 0xffff for a sum of 0 into any frame that it
    sums in software, which every receiver takes (RFC 1624 section 3 tells why) and tshark does not.
    """
    unsure = " || ".join(
        f"({name} && {name}.checksum.status != 1)" for name in ("tcp", "icmp", "icmpv6", "ip")
    )
    fields = ("eth.src", "tcp.seq", "tcp.len", "tcp.flags.str", "tcp.checksum", "tcp.checksum_calculated")
    found = tshark(capture, unsure, "frame.number", *fields)
    found = [row for row in found if row[1] == MAC or row[-2:] != ["0xffff", "0x0000"]]
    if found:
        kept = Path(tempfile.gettempdir(), "acceltcp-bad-checksum.pcap")
        shutil.copy(capture, kept)
        print(f"the capture is kept as {kept}: {found}")
    ours = [row for row in found if row[1] == MAC]
    assert dropped is None or len(found) - len(ours) == dropped, found
    return ours


@isolated
@pytest.mark.slow
def test_expert() -> None:
    """Transfers of all kinds, large frames too: nothing malformed, no wrong checksum, no
    segment that tshark takes for a fault of ours."""
    with folder() as where:
        capture = where / "all.pcap"
        with World(f"pcap={capture}", mtu=9000) as world:
            world.listen(7, Echo(), ecn=True, wscale=WSCALE)
            for mtu in (1500, 9000):
                ip("link", "set", TAP, "mtu", str(mtu))
                for address, stamps in itertools.product(NIC.values(), (1, 0)):
                    sysctl(tcp_timestamps=stamps, tcp_ecn=1)
                    with connect(address, 7) as sock:
                        exchange(sock, 200_000, (mtu, address, stamps))
                    assert request(address, 7, b"") == b""
                    assert request(address, 7, b"?") == b"?"
            for address in NIC.values():
                with pytest.raises(ConnectionRefusedError):
                    connect(address, 9)
            counters = world.counters()
        assert len(tshark(capture, "frame", "frame.number")) > 500
        assert tshark(capture, MALFORMED, "frame.number", "frame.protocols") == []
        assert bad_checksums(capture, counters["rx_drop_l4_checksum"]) == []
        found = verdicts(capture, f"!(tcp.flags.reset == 1) && !({OVERTAKING})")
        assert not found, found
        # Refused connections are answered with resets that acknowledge the SYN.
        resets = tshark(
            capture, f"eth.src == {MAC} && tcp.srcport == 9", "tcp.flags.str", "tcp.seq", "tcp.len"
        )
        assert len(resets) == len(NIC)
        assert all("R" in flags and "A" in flags and seq == length == "0" for flags, seq, length in resets)
        # Nobody is spoken to beyond his window, and no segment was sent in vain.
        for fault in ("window_full", "retransmission", "lost_segment", "zero_window", "ack_lost_segment"):
            shown = f"eth.src == {MAC} && tcp.analysis.{fault} && !({OVERTAKING})"
            assert tshark(capture, shown, "frame.number") == [], fault


@isolated
@pytest.mark.slow
def test_syn_ack() -> None:
    """Every SYN-ACK as tshark decodes it, for every mix of options."""
    mixes = list(itertools.product((1, 0), repeat=4))
    with folder() as where:
        capture = where / "syn.pcap"
        with World(f"pcap={capture}", mtu=1500) as world:
            world.listen(7, Echo(), ecn=True, wscale=WSCALE, window=40_000, mss=1400)
            ports: dict[tuple[str, str], tuple[int, ...]] = {}
            for mix, (family, address) in itertools.product(mixes, NIC.items()):
                stamps, sack, wscale, ecn = mix
                sysctl(tcp_timestamps=stamps, tcp_sack=sack, tcp_window_scaling=wscale, tcp_ecn=ecn)
                with connect(address, 7) as sock:
                    ports[family, str(sock.getsockname()[1])] = mix
                    sock.sendall(b"x")
                    assert sock.recv(1) == b"x"
            counters = world.counters()
        syns = packets(capture, "tcp.flags.syn == 1 && tcp.flags.ack == 0")
        answers = packets(capture, f"eth.src == {MAC} && tcp.flags.syn == 1 && tcp.flags.ack == 1")
        assert len(ports) == 32 and answers.keys() >= ports.keys()
        for key, (stamps, sack, wscale, ecn) in ports.items():
            syn, answer = syns[key], answers[key]
            what = f"{key} {ports[key]}: {answer}"
            assert int(answer["tcp.ack"]) == int(syn["tcp.seq"]) + 1 & 0xFFFFFFFF, what
            assert answer["tcp.window_size_value"] == "40000", what
            assert answer["tcp.options.mss_val"] == "1400", what
            assert answer["tcp.options.wscale.shift"] == (str(WSCALE) if wscale else ""), what
            assert bool(answer["tcp.options.sack_perm"]) == bool(sack), what
            assert (
                answer["tcp.flags.ece"] in ("1", "True")
                if ecn and stamps
                else answer["tcp.flags.ece"] in ("0", "False")
            ), what
            assert answer["tcp.flags.cwr"] in ("0", "False"), what
            assert bool(answer["tcp.options.timestamp.tsval"]) == bool(stamps), what
            if stamps:
                assert answer["tcp.options.timestamp.tsecr"] == syn["tcp.options.timestamp.tsval"], what
                low = TIMESTAMP_OPTIONS.unpack(int(answer["tcp.options.timestamp.tsval"]).to_bytes(4, "big"))
                assert (low["sack"], low["ecn"]) == (sack, ecn), what
            assert answer["ip.flags.df"] in (("1", "True") if key[0] == "ipv4" else ("",)), what
        # Data of connections with ECN say so on the IP header, and no others.
        marks = collections.defaultdict(set)
        for v4, v6, port in tshark(
            capture, f"eth.src == {MAC} && tcp.len > 0", "ip.dsfield.ecn", "ipv6.tclass.ecn", "tcp.dstport"
        ):
            marks["ipv6" if v6 else "ipv4", port].add(v6 or v4)
        for key, (stamps, _, _, ecn) in ports.items():
            assert ("2" if ecn and stamps else "0") in marks[key], (key, ports[key], marks[key])
            assert (ecn and stamps) or marks[key] == {"0"}, (key, ports[key], marks[key])
        assert bad_checksums(capture, counters["rx_drop_l4_checksum"]) == []
        assert not verdicts(capture, "!(tcp.flags.reset == 1)")


def packets(capture: Path, display: str) -> dict[tuple[str, str], dict[str, str]]:
    """Fields of packets by family and the client's port; of several the last."""
    names = (
        "tcp.srcport", "tcp.dstport", "ipv6.src", "tcp.seq", "tcp.ack", "tcp.window_size_value", "tcp.options.mss_val",
        "tcp.options.wscale.shift", "tcp.options.sack_perm", "tcp.options.timestamp.tsval",
        "tcp.options.timestamp.tsecr", "tcp.flags.ece", "tcp.flags.cwr", "ip.flags.df",
    )  # fmt: skip
    found = {}
    for row in tshark(capture, display, *names):
        fields = dict(zip(names, row, strict=True))
        port = next(fields[name] for name in ("tcp.srcport", "tcp.dstport") if fields[name] != "7")
        found["ipv6" if fields["ipv6.src"] else "ipv4", port] = fields
    return found
