"""OptionsParser against a byte-by-byte reader and scapy: all mixes, orders, paddings, damage."""

import random

import pytest
from amaranth.lib import data
from scapy.layers.inet import TCP

from hw.packet.meta import TcpOptions
from hw.packet.options import OptionsParser
from tests.hw.packet.traffic import bad_options, good_options, option_reference, scapy_options
from tests.hw.simulate import converts, run, seeds


def simulate(lists, seed=0):
    """One list per cycle; the results."""
    dut = OptionsParser()
    rng = random.Random(seed)
    results = []

    async def bench(ctx):
        for cycle in range(len(lists) + dut.LATENCY):
            if cycle < len(lists):
                octets = lists[cycle]
                # What follows the options is payload: anything.
                whole = octets + rng.randbytes(40 - len(octets))
                ctx.set(dut.octets, int.from_bytes(whole, "little"))
                ctx.set(dut.words, len(octets) // 4)
            if cycle >= dut.LATENCY:
                results.append(data.Const(TcpOptions, ctx.get(dut.options.as_value())))
            await ctx.tick()

    run(dut, bench)
    return results


def compare(lists, results):
    for octets, got in zip(lists, results, strict=True):
        want = option_reference(octets)
        if want["bad"]:
            assert got.bad == 1, octets.hex()
        else:
            assert {name: got[name] for name in want} == want, octets.hex()


@pytest.mark.parametrize("seed", seeds(3))
def test_legal_lists(seed):
    rng = random.Random(seed)
    lists = [good_options(rng) for _ in range(300)]
    for octets in lists:
        segment = TCP(bytes(TCP(dataofs=5 + len(octets) // 4)) + octets)
        assert scapy_options(segment) == option_reference(octets), octets.hex()
    compare(lists, simulate(lists))


@pytest.mark.parametrize("seed", seeds(3))
def test_malformed_lists(seed):
    rng = random.Random(seed)
    lists = [bad_options(rng) for _ in range(200)]
    assert all(option_reference(octets)["bad"] for octets in lists)
    compare(lists, simulate(lists))


@pytest.mark.parametrize("seed", seeds(3))
def test_noise(seed):
    """Bytes that are mostly plausible kinds and lengths, so that walks go far before they fail."""
    rng = random.Random(seed)
    likely = [0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 8, 10, 18, 40, 255]
    lists = [bytes(rng.choice(likely) for _ in range(4 * rng.randrange(11))) for _ in range(300)]
    compare(lists, simulate(lists))


def test_every_position_of_every_option():
    options = [b"\x02\x04\x12\x34", b"\x03\x03\x0e", b"\x03\x03\x0f", b"\x04\x02"]
    options += [b"\x08\x0aABCDEFGH", b"\x05\x0aabcdefgh"]
    lists = []
    for option in options:
        for at in range(40 - len(option) + 1):
            head = b"\x01" * at + option
            lists += [head.ljust(40, b"\x01"), head + b"\x01" * (-len(head) % 4)]
    compare(lists, simulate(lists))


def test_last_duplicate_counts():
    (got,) = simulate([b"\x02\x04\x00\x01\x02\x04\x00\x02"])
    assert got.mss_present and got.mss == 2


def test_truncated_at_every_byte():
    """The header ends inside the option; the bytes after it belong to the payload."""
    lists = []
    for option in (b"\x02\x04\x12\x34", b"\x03\x03\x01", b"\x04\x02", b"\x08\x0aABCDEFGH"):
        for cut in range(1, len(option)):
            lists.append(b"\x01" * (-cut % 4) + option[:cut])
    assert all(option_reference(octets)["bad"] for octets in lists)
    compare(lists, simulate(lists))


def test_converts():
    converts(OptionsParser())
