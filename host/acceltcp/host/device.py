"""One NIC: identity, reset, switches, counters. Packets go through `queue.Queue`."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from acceltcp.abi.messages import FLOW_RECORD
from acceltcp.abi.registers import (
    ABI_MAJOR,
    ABI_MINOR,
    COUNTER_BASE,
    COUNTERS,
    MAGIC,
    TIMER_TICKS,
    Feature,
    map_hash,
)

from .accessors import BlockAccess, Registers
from .dma import DmaAllocator
from .errors import AbiMismatchError, DeviceError, DeviceTimeoutError
from .transport import Transport, open_transport

__all__ = ["Device", "Identity", "format_mac", "parse_mac", "random_mac"]

WATCHDOG_S = 5.0
"""How long the device may take to reset, to stop a queue or to take a snapshot."""


def parse_mac(text: str) -> int:
    """'02:00:00:00:00:01' as a number. Raises `ValueError` for anything but a unicast address."""
    parts = text.replace("-", ":").split(":")
    try:
        raw = bytes(int(part, 16) for part in parts)
    except ValueError:
        raw = b""
    if len(raw) != 6:
        raise ValueError(f"a MAC address has six bytes in hex, like 02:00:00:00:00:01, not {text!r}")
    if raw[0] & 1 or not any(raw):
        raise ValueError(f"a NIC's MAC address must be unicast and not zero, not {text!r}")
    return int.from_bytes(raw, "big")


def format_mac(mac: int) -> str:
    """The usual notation."""
    return mac.to_bytes(6, "big").hex(":")


def random_mac(seed: str | None = None) -> int:
    """A locally administered unicast address; the same one for the same seed."""
    number = random.Random(seed).getrandbits(48) if seed is not None else random.SystemRandom().getrandbits(48)
    return number & ~(3 << 40) | 2 << 40


@dataclass(frozen=True)
class Identity:
    """What the device says about itself."""

    abi: str
    map_hash: int
    features: Feature
    width: int
    ports: int
    queues: int
    tick_us: int
    listeners: int
    flows: int
    max_frame: int


class Device:
    """A NIC behind a transport, identified and checked.

    Use `Device.open(spec)` or `Device(transport)`; both reset the device unless told not to.
    Raises `AbiMismatchError` when it speaks another version of the contract, else `DeviceError`.
    """

    def __init__(self, transport: Transport, *, reset: bool = True) -> None:
        self.transport = transport
        self.registers = Registers(transport)
        self.memory = DmaAllocator(transport.map_memory)
        self.identity = self._identify()
        self.on_reset: list[Callable[[], None]] = []
        """Called after every reset: nothing reads or writes host memory any more, and all is forgotten."""
        if reset:
            self.reset()

    @classmethod
    def open(cls, spec: str, *, reset: bool = True, stop: Callable[[], bool] = lambda: False) -> Device:
        """Connect to the device that `spec` names (see `acceltcp.host.transport`)."""
        transport = open_transport(spec, stop=stop)
        try:
            return cls(transport, reset=reset)
        except BaseException:
            transport.close()
            raise

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the device. Stop queues and switch off reception before."""
        self.transport.close()

    # -- identity ----------------------------------------------------------------------

    def _identify(self) -> Identity:
        ident = self.registers.IDENT
        name = self.transport.description
        magic = ident.magic.get()
        if magic != MAGIC:
            raise DeviceError(f"{name} is no AccelTCP NIC: its magic number is {magic:#010x}, not {MAGIC:#010x}.")
        abi = ident.abi.read()
        theirs, ours = f"{abi['major']}.{abi['minor']}", f"{ABI_MAJOR}.{ABI_MINOR}"
        if abi["major"] != ABI_MAJOR or abi["minor"] < ABI_MINOR:
            raise AbiMismatchError(
                f"{name} speaks ABI {theirs}, this driver ABI {ours}: use the driver that belongs to the gateware."
            )
        found = ident.map_hash.get()
        if abi["minor"] == ABI_MINOR and found != map_hash():
            raise AbiMismatchError(
                f"{name} says ABI {theirs} like this driver, but its register map {found:08x} is not {map_hash():08x}: "
                "one of the two was built from another version of the declarations."
            )
        shape, tables = ident.shape.read(), ident.tables.read()
        if not 1 <= shape["queues"] <= len(self.registers.QUEUE) or shape["ports"] < 1 or shape["tick_us"] < 1:
            raise DeviceError(f"{name} describes itself as {shape}, which cannot be.")
        return Identity(
            abi=theirs,
            map_hash=found,
            features=Feature(ident.features.get()),
            width=shape["width"],
            ports=shape["ports"],
            queues=shape["queues"],
            tick_us=shape["tick_us"] * 10,
            listeners=tables["listeners"],
            flows=1 << tables["flows_log2"] if tables["flows_log2"] else 0,
            max_frame=ident.max_frame.get(),
        )

    def require(self, feature: Feature) -> None:
        """Raise `DeviceError` unless this build of the NIC has the feature."""
        if feature not in self.identity.features:
            raise DeviceError(f"{self.transport.description} was built without {feature.name}.")

    # -- switches ----------------------------------------------------------------------

    def _wait(self, flag: str, what: str) -> None:
        deadline = time.monotonic() + WATCHDOG_S
        delay = 0.0
        while self.registers.CONTROL.status.read()[flag]:
            if time.monotonic() > deadline:
                raise DeviceTimeoutError(f"{self.transport.description} did not {what} within {WATCHDOG_S:g} s.")
            time.sleep(delay)
            delay = min(delay + 0.0005, 0.01)

    def reset(self) -> None:
        """Soft reset: every queue, listener, counter and secret is gone afterwards."""
        self.registers.CONTROL.reset.write(reset=1)
        self._wait("resetting", "finish its reset")
        for hear in list(self.on_reset):
            hear()

    def enable(self, on: bool = True) -> None:
        """Receive from the wire, or no longer."""
        self.registers.CONTROL.control.update(enable=int(on))

    def set_mac(self, mac: int, port: int = 0) -> None:
        """Address of a port. Raises `ValueError` unless it is unicast."""
        parse_mac(format_mac(mac))
        self._check_port(port)
        self.registers.PORT[port].mac_low.set(mac & 0xFFFFFFFF)
        self.registers.PORT[port].mac_high.write(high=mac >> 32)

    def mac(self, port: int = 0) -> int:
        """Address of a port."""
        self._check_port(port)
        block = self.registers.PORT[port]
        return block.mac_high.read()["high"] << 32 | block.mac_low.get()

    def configure_port(self, port: int = 0, *, promiscuous: bool = False, keep_bad: bool = False) -> None:
        """Filters of a port."""
        self._check_port(port)
        self.registers.PORT[port].config.write(promiscuous=int(promiscuous), keep_bad=int(keep_bad))

    def _check_port(self, port: int) -> None:
        if not 0 <= port < self.identity.ports:
            raise ValueError(f"port must be below {self.identity.ports}, not {port!r}")

    def set_secret(self, secret: bytes | None = None, *, now: bool = True) -> None:
        """Cookie secret of 16 bytes; a fresh random one if none is given. It is kept nowhere."""
        block = self.registers.SECRET
        _write_secret(block, secret)
        block.commit.write(now=int(now))

    # -- flows -------------------------------------------------------------------------

    def prepare_flows(
        self, *, time_wait: float, fin_wait_2: float, linger: float, max_rto: float, secret: bytes | None = None
    ) -> None:
        """Make the NIC ready to close connections; it can be done once after a reset.

        Times in seconds, longest 2^19 timer steps. secret: 16 bytes; fresh random ones if none are
        given. They are kept nowhere. Raises `DeviceError` when the build cannot do it, `DeviceTimeoutError`
        when its tables are not ready in time.
        """
        self.require(Feature.TEARDOWN)
        block = self.registers.FLOWS
        if block.status.read()["secret_valid"]:
            raise DeviceError(f"{self.transport.description} has its secret for flows already: reset it first.")
        _write_secret(block, secret)
        block.commit.write(commit=1)
        for name, seconds in (
            ("time_wait", time_wait), ("fin_wait_2", fin_wait_2), ("linger", linger), ("max_rto", max_rto)
        ):  # fmt: skip
            if seconds < 0:
                raise ValueError(f"{name} must not be negative, not {seconds!r}")
            getattr(block, name).write(steps=min(round(seconds / self.flow_step_s()), (1 << 19) - 1))
        deadline = time.monotonic() + WATCHDOG_S
        while not block.status.read()["ready"]:
            if time.monotonic() > deadline:
                raise DeviceTimeoutError(
                    f"{self.transport.description} did not clear its tables of flows within {WATCHDOG_S:g} s."
                )
            time.sleep(0.0005)

    def flow_step_s(self) -> float:
        """Seconds per timer step of a flow."""
        return TIMER_TICKS * self.identity.tick_us * 1e-6

    def find_flow(self, index: int) -> tuple[int, dict[str, int]] | None:
        """The first flow in use at or after `index`, and its `FLOW_RECORD`; None when there is none."""
        if not 0 <= index < max(self.identity.flows, 1):
            raise ValueError(f"index must be below {self.identity.flows}, not {index!r}")
        block = self.registers.FLOWS
        block.find.set(index)
        deadline = time.monotonic() + WATCHDOG_S
        while (found := block.found.read())["busy"]:
            if time.monotonic() > deadline:
                raise DeviceTimeoutError(f"{self.transport.description} did not find a flow within {WATCHDOG_S:g} s.")
        if not found["found"]:
            return None
        words = [getattr(block, f"record{number}").get() for number in range(FLOW_RECORD.size // 4)]
        return found["index"], FLOW_RECORD.unpack(struct.pack(f"<{len(words)}I", *words))

    # -- readings ----------------------------------------------------------------------

    def timestamp_clock(self) -> int:
        """The NIC's TCP timestamp clock now."""
        return self.registers.TIME.ts_clock.get()

    def timestamp_step_s(self) -> float:
        """Seconds per step of that clock."""
        return max(self.registers.TIME.ts_ticks.get(), 1) * self.identity.tick_us * 1e-6

    def counters(self) -> dict[str, int]:
        """All counters, captured at one clock edge, by name."""
        self.registers.CONTROL.snapshot.write(snapshot=1)
        self._wait("snapshot_busy", "take a counter snapshot")
        words = self.transport.read_block(COUNTER_BASE, 2 * len(COUNTERS))
        halves = zip(words[::2], words[1::2], strict=True)
        return {counter.name: low | high << 32 for counter, (low, high) in zip(COUNTERS, halves, strict=True)}


def _write_secret(block: BlockAccess, secret: bytes | None) -> None:
    key = os.urandom(16) if secret is None else secret
    if len(key) != 16:
        raise ValueError(f"a secret has 16 bytes, not {len(key)}")
    for number, word in enumerate(struct.unpack("<4I", key)):
        getattr(block, f"word{number}").set(word)
