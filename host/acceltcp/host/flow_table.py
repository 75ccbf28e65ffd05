"""What the NIC's connection table holds, for people who look for a fault.

The NIC shows one record at a time (`FLOWS.find`); it keeps a hash of addresses and ports, so these are
known of flows that the asking program has handed over.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from typing import Any

from acceltcp.abi.messages import WINDOW_UNIT, FlowState
from acceltcp.abi.registers import Feature

from .device import Device
from .tcp.flows import Flow
from .tcp.segment import ends_of

__all__ = ["FLOWS_SHOWN", "flow_table"]

FLOWS_SHOWN = 1000
"""Flows read at most, unless told otherwise: a record takes a dozen register reads."""

UNKNOWN = "?"


async def flow_table(device: Device, known: Mapping[int, Flow], limit: int = FLOWS_SHOWN) -> dict[str, Any]:
    """`held`: entries in the table; `flows`: up to `limit` of them, a dictionary each. Others may come and go
    meanwhile. Raises `DeviceError` when this build has none."""
    device.require(Feature.TEARDOWN)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit!r}")
    step = device.flow_step_s()
    flows: list[dict[str, Any]] = []
    index = 0
    while index < device.identity.flows and len(flows) < limit:
        found = device.find_flow(index)
        if found is None:
            break
        at, record = found
        if at < index:
            break  # another program uses the same registers
        flow = known.get(at)
        flows.append(_row(at, record, flow if flow and flow.snd_end == record["snd_end"] else None, step))
        index = at + 1
        await asyncio.sleep(0)  # a record takes a while, and others use this loop
    # The table has let go already of what is in DELETING.
    flows = [flow for flow in flows if flow["state"] != FlowState.DELETING.name]
    return {"held": max(device.registers.FLOWS.held.get(), len(flows)), "capacity": device.identity.flows, "flows": flows}


def _row(index: int, record: Mapping[str, int], flow: Flow | None, step: float) -> dict[str, Any]:
    peer, local = _ends(flow.key) if flow is not None else (UNKNOWN, UNKNOWN)
    return {
        "index": index,
        "state": FlowState(record["state"]).name,
        "peer": peer,
        "local": local,
        "unacked": record["unacked"],
        "retries": record["retries"],
        "retry_limit": record["retry_limit"],
        "deadline_ms": round(_signed(record["deadline"]) * step * 1e3, 1),
        "frames": record["frames"],
        "sending": bool(record["sending"]),
        "window": record["window"] * WINDOW_UNIT,
        "rto_ms": round(record["rto"] * step * 1e3, 1),
        "queue": record["queue"],
        "port": record["port"],
    }


def _signed(value: int) -> int:
    """A time that may have passed already."""
    return value - (1 << 32) if value >> 31 else value


def _ends(key: bytes) -> tuple[str, str]:
    """The peer's and our end as text."""
    ends = ends_of(key)
    return _end(ends.remote, ends.remote_port), _end(ends.local, ends.local_port)


def _end(packed: bytes, port: int) -> str:
    address = ipaddress.ip_address(packed)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
