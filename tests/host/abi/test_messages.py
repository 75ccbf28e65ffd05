import enum

import pytest

from acceltcp.abi import messages
from acceltcp.abi.messages import (
    CLOSE_COMMAND,
    COMMAND,
    EVENT,
    FINAL_FRAME,
    FLOW_COMMAND,
    FLOW_RECORD,
    LISTEN_COMMAND,
    MESSAGES,
    RING_SIZE_LOG2_MAX,
    RING_SIZE_LOG2_MIN,
    RX_COMPLETION,
    RX_FREE,
    SPLICE_COMMAND,
    SPLICE_EVENT,
    SPLICE_SIDE,
    SPLICE_UPDATE_COMMAND,
    TX_DESCRIPTOR,
    CommandOpcode,
    Status,
)
from acceltcp.abi.registers import QUEUE

IDS = [message.name for message in MESSAGES]


def test_sizes_divide_a_bus_beat():
    sizes = {
        RX_FREE: 16, RX_COMPLETION: 32, TX_DESCRIPTOR: 16, EVENT: 32, COMMAND: 64, LISTEN_COMMAND: 64,
        FINAL_FRAME: 16, CLOSE_COMMAND: 64, FLOW_COMMAND: 64,
        SPLICE_SIDE: 64, SPLICE_COMMAND: 64, SPLICE_UPDATE_COMMAND: 64, SPLICE_EVENT: 32,
    }  # fmt: skip
    # A record is read through registers: whole words are enough.
    assert {m.name: m.size for m in MESSAGES if m is not FLOW_RECORD} == {m.name: size for m, size in sizes.items()}
    assert all(64 % m.size == 0 for m in sizes)
    assert FLOW_RECORD.size % 4 == 0


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_every_field_is_documented_and_whole_numbers_are_aligned(message):
    for field in message.fields:
        assert field.reserved or field.doc.endswith(".")
        at, bits = message.positions[field.name]
        if bits in (8, 16, 32, 64) and not field.reserved:
            assert at % bits == 0, f"{field.name} at bit {at}"


@pytest.mark.parametrize("message", MESSAGES, ids=IDS)
def test_codes_fit_their_fields(message):
    for field in message.fields:
        if field.codes:
            assert max(field.codes) < 1 << field.bits
            if issubclass(field.codes, enum.IntFlag):
                assert all(value & (value - 1) == 0 for value in field.codes)


@pytest.mark.parametrize("message", [RX_COMPLETION, EVENT], ids=["RX_COMPLETION", "EVENT"])
def test_phase_is_the_last_bit_of_what_the_device_writes(message):
    assert message.positions["phase"] == (8 * message.size - 1, 1)
    assert message.pack(phase=1) == bytes(message.size - 1) + b"\x80"


def test_commands_share_their_head():
    for name in ("opcode", "tag"):
        assert COMMAND.positions[name] == LISTEN_COMMAND.positions[name]
    body_at, body_bits = COMMAND.positions["body"]
    assert LISTEN_COMMAND.positions["address"][0] == body_at and body_at + body_bits == 512
    raw = LISTEN_COMMAND.pack(opcode=CommandOpcode.LISTEN, tag=7, port=80)
    assert COMMAND.unpack(raw)["opcode"] == CommandOpcode.LISTEN and COMMAND.unpack(raw)["tag"] == 7


def test_a_command_is_little_endian():
    raw = LISTEN_COMMAND.pack(port=0x1234, mss=1460)
    at = LISTEN_COMMAND.byte_offset("port")
    assert raw[at : at + 2] == b"\x34\x12"


def test_ring_sizes_fit_register_and_index():
    assert QUEUE["tx_size"].positions["log2"][1] >= RING_SIZE_LOG2_MAX.bit_length()
    index_bits = QUEUE["tx_tail"].positions["index"][1]
    # A full ring and an empty one must differ in their free-running indices.
    assert RING_SIZE_LOG2_MIN < RING_SIZE_LOG2_MAX < index_bits
    assert TX_DESCRIPTOR.positions["port"][1] >= 1


def test_zero_means_well():
    """Zeroed memory reads as nothing: no opcode, no event, status OK."""
    assert Status(0) is Status.OK and messages.EventType(0) is messages.EventType.NONE
    assert 0 not in set(messages.TxOpcode)
