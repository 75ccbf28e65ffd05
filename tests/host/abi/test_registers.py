import json

import pytest

from acceltcp.abi import registers
from acceltcp.abi.registers import (
    BAR0_BYTES,
    BLOCKS,
    COUNTER_BASE,
    COUNTERS,
    IDENT,
    QUEUE,
    Access,
    block,
    map_hash,
)

ALL = [(b, r) for b in BLOCKS for r in b.registers]
IDS = [f"{b.name}.{r.name}" for b, r in ALL]


def test_no_two_registers_share_an_address():
    taken: dict[int, str] = {}
    for b, r in ALL:
        for index in range(b.count):
            address = b.address(r.name, index)
            assert address not in taken, f"{b.name}.{r.name} lies on {taken[address]}"
            taken[address] = f"{b.name}[{index}].{r.name}"
    for i, counter in enumerate(COUNTERS):
        for address in (COUNTER_BASE + 8 * i, COUNTER_BASE + 8 * i + 4):
            assert address not in taken, f"{counter.name} lies on {taken[address]}"
            taken[address] = counter.name
    assert max(taken) < BAR0_BYTES


@pytest.mark.parametrize("b, r", ALL, ids=IDS)
def test_every_register_is_well_formed(b, r):
    assert b.address(r.name) % 4 == 0
    assert r.doc.endswith(".") and all(f.doc.endswith(".") for f in r.fields if not f.reserved)
    assert 0 < sum(f.bits for f in r.fields) <= 32
    assert r.reset < 1 << sum(f.bits for f in r.fields)
    assert r.access is Access.RW or not r.reset
    if b.count > 1:
        assert r.offset < b.stride
    names = [f.name for f in r.fields]
    assert len(set(names)) == len(names)


def test_blocks_and_counters_are_documented():
    assert all(b.doc.endswith(".") for b in BLOCKS)
    assert all(c.doc.endswith(".") for c in COUNTERS)
    names = [c.name for c in COUNTERS]
    assert len(set(names)) == len(names)


def test_what_stays_for_ever():
    assert (IDENT.address("magic"), IDENT.address("abi"), IDENT.address("map_hash")) == (0, 4, 8)
    assert registers.MAGIC.to_bytes(4, "little") == b"ATCP"


def test_every_ring_has_the_same_four_registers():
    for base, ring in enumerate(("rx_free", "rx_completion", "tx", "event")):
        last = {"rx_free": "tail", "tx": "tail"}.get(ring, "head")
        for offset, part in enumerate(("base_low", "base_high", "size", last)):
            assert QUEUE[f"{ring}_{part}"].offset == 16 * base + 4 * offset


def test_address_of_an_array_and_its_limit():
    assert QUEUE.address("tx_tail", 63) == 0x8000 + 63 * 0x80 + 0x2C
    with pytest.raises(IndexError, match="QUEUE has 64 instances, no index 64"):
        QUEUE.address("tx_tail", 64)
    with pytest.raises(KeyError):
        block("NOWHERE")
    assert block("QUEUE") is QUEUE


def test_encode_and_decode():
    shape = IDENT["shape"]
    fields = {"width": 64, "ports": 2, "queues": 16, "tick_us": 10}
    assert shape.decode(shape.encode(**fields)) == fields
    with pytest.raises(ValueError, match=r"shape\.ports must fit 8 bits, not 256"):
        shape.encode(ports=256)
    with pytest.raises(ValueError, match="shape has no field 'depth'"):
        shape.encode(depth=1)
    assert "_zero" not in IDENT["tables"].decode(0xFFFF_FFFF)


def test_hash_follows_positions_and_not_texts(monkeypatch):
    import dataclasses

    before = map_hash()
    scratch = IDENT["scratch"]

    def with_scratch(changed):
        rest = tuple(changed if r is scratch else r for r in IDENT.registers)
        return (dataclasses.replace(IDENT, registers=rest), *BLOCKS[1:])

    monkeypatch.setattr(registers, "BLOCKS", with_scratch(dataclasses.replace(scratch, doc="Else.")))
    assert map_hash() == before
    monkeypatch.setattr(registers, "BLOCKS", with_scratch(dataclasses.replace(scratch, offset=0x20)))
    assert map_hash() != before
    assert 0 < before < 1 << 32


def test_map_is_plain_data():
    plain = registers.register_map()
    assert json.loads(json.dumps(plain)) == plain
    assert [b["block"] for b in plain["blocks"]] == [b.name for b in BLOCKS]
