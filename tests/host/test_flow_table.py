"""What is shown of the NIC's connection table, read through its registers."""

from __future__ import annotations

import asyncio

import pytest

from acceltcp.abi.messages import FlowState
from acceltcp.host import Device, DeviceError
from acceltcp.host.flow_table import FLOWS_SHOWN, flow_table

from .fake_device import FakeTransport
from .test_flows import FlowWorld, finish
from .world import ACK

STEP_S = 400e-6


def read(world: FlowWorld, **options) -> dict:
    known = {**world.hand_over.ended_flows(), **world.flows.held}
    return asyncio.run(flow_table(world.device, known, **options))


@pytest.mark.parametrize("v6", [False, True])
def test_a_flow_in_every_field(v6):
    world = FlowWorld()
    client, _ = world.held(b"ten bytes!", v6=v6, port=50123)
    world.run(0.1)
    flow = world.flow
    flow.retries = 2
    assert read(world) == {
        "held": 1,
        "capacity": 64,
        "flows": [
            {
                "index": 0,
                "state": "FIN_WAIT_1",
                "peer": "[fd00::1]:50123" if v6 else "10.0.0.1:50123",
                "local": "[fd00::2]:80" if v6 else "10.0.0.2:80",
                "unacked": 11,
                "retries": 2,
                "retry_limit": 10,
                "deadline_ms": pytest.approx((flow.started + flow.command["rto"]) * 0.4 - (world.now - 100) * 1000, abs=1),
                "frames": 1,
                "sending": False,
                "window": 4095 * 64,
                "rto_ms": flow.command["rto"] * 0.4,
                "queue": 0,
                "port": 0,
            }
        ],
    }
    finish(world, client)
    (row,) = read(world)["flows"]
    # Its addresses are still known in TIME_WAIT, for a while.
    assert row["state"] == "TIME_WAIT" and row["peer"].endswith(":50123") and row["unacked"] == 0
    world.run(5)
    assert read(world) == {"held": 0, "capacity": 64, "flows": []}


def test_every_state_has_its_name():
    world = FlowWorld()
    world.held()
    shown = []
    for state in FlowState:
        world.flow.state = state
        shown += [row["state"] for row in read(world)["flows"]]
    assert shown == [state.name for state in FlowState if state is not FlowState.DELETING]


def test_a_time_that_has_passed_is_negative():
    world = FlowWorld()
    world.held()
    world.flow.deadline = world.transport._steps - 50
    assert read(world)["flows"][0]["deadline_ms"] == pytest.approx(-20)


def test_flows_between_gaps_are_all_found():
    world = FlowWorld()
    for number in range(12):
        world.held(port=40000 + number)
    for index in (0, 3, 4, 11):
        del world.transport.flows[index]
    world.transport.flows[63] = world.transport.flows[5]
    found = read(world)
    assert [row["index"] for row in found["flows"]] == [1, 2, 5, 6, 7, 8, 9, 10, 63] and found["held"] == 9


@pytest.mark.parametrize("limit", [1, 3, 7, 8])
def test_no_more_than_asked_for(limit):
    world = FlowWorld()
    for number in range(7):
        world.held(port=40000 + number)
    found = read(world, limit=limit)
    assert [row["index"] for row in found["flows"]] == list(range(min(limit, 7))) and found["held"] == 7


def test_bounded_unless_told_otherwise():
    world = FlowWorld(flows=2048)
    world.held()
    world.transport.flows = dict.fromkeys(range(1500), world.flow)
    found = read(world)
    assert len(found["flows"]) == FLOWS_SHOWN == 1000 and found["held"] == 1500


def test_flows_of_another_program_have_no_addresses():
    world = FlowWorld()
    world.held()
    (row,) = asyncio.run(flow_table(world.device, {}))["flows"]
    assert (row["peer"], row["local"]) == ("?", "?")
    # An index that has been used again is not taken for the flow that was known.
    world.flow.snd_end += 1
    (row,) = read(world)["flows"]
    assert (row["peer"], row["local"]) == ("?", "?")


def test_other_work_goes_on_meanwhile():
    world = FlowWorld(flows=128)
    world.held()
    world.transport.flows = dict.fromkeys(range(100), world.flow)

    async def main() -> int:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.ensure_future(count())
        await flow_table(world.device, {})
        counting.cancel()
        return turns

    assert asyncio.run(main()) >= 5


def test_who_is_disturbed_by_another_program_ends():
    world = FlowWorld()
    for number in range(3):
        world.held(port=40000 + number)
    find = world.device.find_flow
    world.device.find_flow = lambda index: find(index if index < 2 else 0)
    assert [row["index"] for row in read(world)["flows"]] == [0, 1]


def test_arguments():
    world = FlowWorld()
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        read(world, limit=0)
    for index in (-1, 64):
        with pytest.raises(ValueError, match=f"index must be below 64, not {index}"):
            world.device.find_flow(index)
    with pytest.raises(DeviceError, match="built without TEARDOWN"):
        asyncio.run(flow_table(Device(FakeTransport()), {}))


def test_records_are_read_word_by_word():
    world = FlowWorld()
    client, _ = world.held()
    world.run(0.02)
    client.send(client.nxt, ACK, ack=world.flow.una + 3)
    world.run(0.02)
    index, record = world.device.find_flow(0)
    flow = world.flow
    assert index == 0 and world.device.find_flow(1) is None
    assert record == {
        "state": FlowState.FIN_WAIT_1, "port": 0, "timestamps": 1, "sending": 0, "queue": 0, "frames": 1, "retries": 0,
        "retry_limit": 10, "snd_end": flow.snd_end, "table": flow.command["table"], "unacked": 8, "rcv_nxt": client.nxt,
        "ts_recent": flow.ts_recent, "deadline": record["deadline"], "rto": flow.command["rto"], "window": 4095,
    }  # fmt: skip
    assert record["deadline"] * STEP_S == pytest.approx(flow.command["rto"] * STEP_S - 0.015, abs=0.002)
