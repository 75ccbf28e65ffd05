"""HeaderParser, one packet per cycle, against scapy's dissection.

The checksums are verified elsewhere (test_rx_front_end): here GOOD only says that there is one.
"""

import random

import pytest
from amaranth.lib import data

from hw.packet.meta import RxMeta
from hw.packet.parser import HeaderParser
from hw.packet.window import WINDOW_BYTES
from tests.hw.packet.traffic import GOOD, cases, reference, tcp_frame
from tests.hw.simulate import converts, run, seeds


def info_of(frame):
    """What L3Peek says, from the bytes."""
    vlan = frame[12:14] == b"\x81\x00"
    l3 = 18 if vlan else 14
    kind, version, ihl = frame[l3 - 2 : l3], frame[l3] >> 4, frame[l3] & 15
    v4 = kind == b"\x08\x00" and version == 4 and ihl >= 5
    v6 = kind == b"\x86\xdd" and version == 6
    at = l3 + (4 if v6 else 2)
    length = int.from_bytes(frame[at : at + 2], "big")
    return {
        "vlan": vlan,
        "ipv4": v4,
        "ipv6": v6,
        "ip_options": v4 and ihl > 5,
        "end": l3 + length + (40 if v6 else 0),
        "l4_length": length if v6 else (length - 20) % 65536,
    }


def check(frames, seed):
    dut = HeaderParser()
    rng = random.Random(seed)
    got = []

    async def bench(ctx):
        for cycle in range(len(frames) + dut.LATENCY):
            if cycle < len(frames):
                frame = frames[cycle]
                window = (frame + rng.randbytes(WINDOW_BYTES))[:WINDOW_BYTES]
                ctx.set(dut.octets, int.from_bytes(window, "little"))
                ctx.set(dut.vlan, frame[12:14] == b"\x81\x00")
                ctx.set(dut.length, len(frame))
            if 1 <= cycle <= len(frames):
                ctx.set(dut.info, info_of(frames[cycle - 1]))
            if cycle >= dut.LATENCY:
                got.append(data.Const(RxMeta, ctx.get(dut.meta.as_value())))
            await ctx.tick()

    run(dut, bench)
    for frame, meta in zip(frames, got, strict=True):
        compare(reference(frame), meta, frame)


def compare(want, meta, frame):
    for name, value in want.items():
        if name.startswith("_"):
            continue
        if name == "options":
            assert meta.options.bad == value["bad"], frame.hex()
            names = () if value["bad"] else value
            assert {key: meta.options[key] for key in names} == {key: value[key] for key in names}, (
                frame.hex()
            )
        elif name in ("ip_checksum", "l4_checksum"):
            assert meta[name] == (GOOD if value else 0), (name, frame.hex())
        else:
            assert meta[name] == value, (name, meta[name], value, frame.hex())


@pytest.mark.parametrize("seed", seeds(3))
def test_all_kinds(seed):
    check(cases(random.Random(seed), 150), seed)


@pytest.mark.parametrize("ipv6", (False, True))
@pytest.mark.parametrize("vlan", (False, True))
def test_longest_header(ipv6, vlan):
    rng = random.Random(1)
    options = b"\x01" * 28 + b"\x08\x0a" + rng.randbytes(8) + b"\x04\x02"
    payloads = (b"", b"x", rng.randbytes(1400))
    check([tcp_frame(rng, ipv6=ipv6, vlan=vlan, options=options, payload=p) for p in payloads], 0)


def test_converts():
    converts(HeaderParser())
