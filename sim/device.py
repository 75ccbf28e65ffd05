"""The Verilated core in its shell, driven from Python.

`Shell` wraps the C ABI of `cpp/shell.hpp` with types and exceptions. Calls release the GIL
while the core runs. A `Shell` may be used from one thread at a time.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterable, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from hw.config import NicConfig

__all__ = [
    "Counters",
    "LogEntry",
    "LogKind",
    "Protection",
    "Reason",
    "Shell",
    "ShellError",
    "Stop",
    "TxFrame",
    "open_nic",
]

ABI = 1
AXI_BYTES = 64
"""Width of the AXI4 master that cpp/ serves."""
PORTS_MAX = 2
FRAME_BYTES_MAX = 1 << 16


class ShellError(OSError):
    """The shell refused something; `errno` and a sentence."""


class Reason(enum.IntFlag):
    """Why `Shell.run` returned."""

    IDLE = 1
    TX = 2
    IRQ = 4
    LIMIT = 8
    TICKED = 16


class Stop(enum.IntFlag):
    """What `Shell.run` returns for, beside the number of cycles."""

    NOTHING = 0
    IDLE = 1
    TX = 2
    IRQ = 4
    TICKED = 8
    """All ticks have been given."""


class Protection(enum.IntFlag):
    """What the device may do with memory."""

    NONE = 0
    READ = 1
    WRITE = 2


class LogKind(enum.IntEnum):
    """What a `LogEntry` tells; `where` is a port or an address, `value` a number, beats or data."""

    RX_FIRST = 1
    RX_LAST = 2
    TX_FIRST = 3
    TX_LAST = 4
    AXI_READ = 5
    AXI_WRITE = 6
    AXIL_WRITE = 7
    IRQ = 8


class LogEntry(NamedTuple):
    """One event inside the simulation."""

    cycle: int
    kind: LogKind
    where: int
    value: int


class TxFrame(NamedTuple):
    """A frame from the core; `error` is set when a MAC would have aborted it."""

    port: int
    data: bytes
    error: bool
    first_cycle: int
    last_cycle: int


class Counters(NamedTuple):
    """Totals since the shell was made."""

    cycles: int
    ticks: int
    irqs: int
    axi_read_bursts: int
    axi_read_beats: int
    axi_read_errors: int
    axi_write_bursts: int
    axi_write_beats: int
    axi_write_bytes: int
    axi_write_errors: int
    axil_reads: int
    axil_writes: int
    rx_frames: tuple[int, ...]
    rx_bytes: tuple[int, ...]
    rx_beats: tuple[int, ...]
    tx_frames: tuple[int, ...]
    tx_bytes: tuple[int, ...]
    tx_beats: tuple[int, ...]
    violations: int
    faults: int


class _Counters(ctypes.Structure):
    _fields_ = [
        (name, c_uint64 * PORTS_MAX if name.startswith(("rx_", "tx_")) else c_uint64)
        for name in Counters._fields
    ]


class _TxInfo(ctypes.Structure):
    _fields_ = [
        ("port", c_uint32),
        ("length", c_uint32),
        ("error", c_uint32),
        ("reserved", c_uint32),
        ("first_cycle", c_uint64),
        ("last_cycle", c_uint64),
    ]


class _LogEntry(ctypes.Structure):
    _fields_ = [("cycle", c_uint64), ("where", c_uint64), ("value", c_uint32), ("kind", c_uint32)]


_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "shell_abi": (c_uint32, ()),
    "shell_width": (c_uint32, ()),
    "shell_ports": (c_uint32, ()),
    "shell_new": (c_void_p, ()),
    "shell_free": (None, (c_void_p,)),
    "shell_message": (c_char_p, (c_void_p,)),
    "shell_reset": (None, (c_void_p, c_uint32)),
    "shell_set_latency": (None, (c_void_p, c_uint32, c_uint32)),
    "shell_set_axi_stall": (c_int, (c_void_p, c_uint32)),
    "shell_set_rx_pace": (c_int, (c_void_p, c_uint32, c_uint32, c_uint32)),
    "shell_set_tx_stall": (c_int, (c_void_p, c_uint32, c_uint32)),
    "shell_set_seed": (None, (c_void_p, c_uint64)),
    "shell_set_settle": (None, (c_void_p, c_uint32)),
    "shell_map": (c_int, (c_void_p, c_uint64, c_uint64, c_int, c_uint64, c_uint32)),
    "shell_map_pointer": (c_int, (c_void_p, c_uint64, c_uint64, c_void_p, c_uint32)),
    "shell_unmap": (c_int, (c_void_p, c_uint64, c_uint64, POINTER(c_uint64))),
    "shell_unmap_all": (None, (c_void_p,)),
    "shell_mappings": (c_uint64, (c_void_p,)),
    "shell_mapped_bytes": (c_uint64, (c_void_p,)),
    "shell_set_bus_master": (None, (c_void_p, c_uint32)),
    "shell_rx": (c_int, (c_void_p, c_uint32, c_char_p, c_uint32, c_uint32)),
    "shell_rx_many": (c_int, (c_void_p, c_uint32, c_char_p, POINTER(c_uint32), c_uint32)),
    "shell_rx_pending": (c_uint64, (c_void_p, c_uint32)),
    "shell_tx": (c_int, (c_void_p, POINTER(_TxInfo), POINTER(c_uint8), c_uint32)),
    "shell_set_tx_keep": (None, (c_void_p, c_uint32)),
    "shell_irq": (c_int, (c_void_p,)),
    "shell_write": (c_int, (c_void_p, c_uint32, c_uint32, c_uint32)),
    "shell_read": (c_int, (c_void_p, c_uint32, POINTER(c_uint32), c_uint64)),
    "shell_tick": (None, (c_void_p, c_uint64)),
    "shell_ticks_pending": (c_uint64, (c_void_p,)),
    "shell_run": (c_uint32, (c_void_p, c_uint64, c_uint32)),
    "shell_cycle": (c_uint64, (c_void_p,)),
    "shell_busy": (c_uint32, (c_void_p,)),
    "shell_counters": (None, (c_void_p, POINTER(_Counters))),
    "shell_set_log": (None, (c_void_p, c_uint64)),
    "shell_log_read": (c_uint64, (c_void_p, POINTER(_LogEntry), c_uint64)),
    "shell_trace_open": (c_int, (c_void_p, c_char_p)),
    "shell_trace_close": (None, (c_void_p,)),
}


class Shell:
    """One simulated core with MACs, a memory bus, a register bus and interrupts around it.

    library: what `sim.verilate.verilate` made.
    read_latency, write_latency: AXI cycles from address to first beat, and from last beat to
        response.
    """

    def __init__(self, library: str | Path, *, read_latency: int = 16, write_latency: int = 4) -> None:
        self._handle: int | None = None
        self._lib = ctypes.CDLL(str(library))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._lib, name)
            function.restype = result
            function.argtypes = arguments
        abi = self._lib.shell_abi()
        if abi != ABI:
            raise ShellError(0, f"{library} has shell ABI {abi}, not {ABI}")
        self.width: int = self._lib.shell_width()
        """Bytes per beat of the packet path."""
        self.ports: int = self._lib.shell_ports()
        """MAC ports."""
        self._handle = self._lib.shell_new()
        self._info = _TxInfo()
        self._buffer = (c_uint8 * FRAME_BYTES_MAX)()
        self.set_latency(read_latency, write_latency)

    def close(self) -> None:
        """Free the model. Nothing else may be called afterwards."""
        if self._handle is not None:
            self._lib.shell_free(self._handle)
            self._handle = None

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _check(self, result: int) -> int:
        if result < 0:
            raise ShellError(-result, self.message)
        return result

    @property
    def message(self) -> str:
        """What the shell said last: about an error or the first broken bus rule."""
        return str(self._lib.shell_message(self._handle).decode())

    # Settings

    def reset(self, cycles: int = 8) -> None:
        """Reset the core and forget all that is queued; memory mappings and settings stay."""
        self._lib.shell_reset(self._handle, cycles)

    def set_latency(self, read: int, write: int) -> None:
        """AXI latencies in cycles, each at least 1."""
        self._lib.shell_set_latency(self._handle, read, write)

    def set_axi_stall(self, probability: float) -> None:
        """How often an AXI handshake pauses, 0 up to but not 1."""
        self._check(self._lib.shell_set_axi_stall(self._handle, round(1000 * probability)))

    def set_rx_pace(self, port: int, gap: int = 0, pause: float = 0.0) -> None:
        """Idle cycles between frames, and how often a beat pauses (0 up to but not 1)."""
        self._check(self._lib.shell_set_rx_pace(self._handle, port, gap, round(1000 * pause)))

    def set_tx_stall(self, port: int, probability: float) -> None:
        """How often the MAC is not ready to send; 1: never ready."""
        self._check(self._lib.shell_set_tx_stall(self._handle, port, round(1000 * probability)))

    def set_seed(self, seed: int) -> None:
        """Seed of all pauses."""
        self._lib.shell_set_seed(self._handle, seed)

    def set_settle(self, cycles: int) -> None:
        """How many quiet cycles count as idle."""
        self._lib.shell_set_settle(self._handle, cycles)

    # Memory

    def map_file(self, iova: int, size: int, fd: int, offset: int, prot: int) -> None:
        """Map a file's memory at a bus address. A negative `fd` reserves the range only.

        Raises `ShellError` with `EEXIST` for an overlap and `EINVAL` for a bad range or a
        file that is too short.
        """
        self._check(self._lib.shell_map(self._handle, iova, size, fd, offset, prot))

    def map_pointer(self, iova: int, size: int, pointer: int, prot: int = 3) -> None:
        """Map memory of this process; the caller keeps it alive until it is unmapped."""
        self._check(self._lib.shell_map_pointer(self._handle, iova, size, pointer, prot))

    def unmap(self, iova: int, size: int) -> int:
        """Undo the mappings within a range; returns how many bytes those had. Raises `ShellError` (`EINVAL`) if it cuts one."""
        unmapped = c_uint64()
        self._check(self._lib.shell_unmap(self._handle, iova, size, byref(unmapped)))
        return unmapped.value

    def unmap_all(self) -> None:
        """Undo all mappings."""
        self._lib.shell_unmap_all(self._handle)

    @property
    def mappings(self) -> int:
        """How many mappings there are."""
        return int(self._lib.shell_mappings(self._handle))

    @property
    def mapped_bytes(self) -> int:
        """How many bytes of files are mapped."""
        return int(self._lib.shell_mapped_bytes(self._handle))

    def set_bus_master(self, on: bool) -> None:
        """While off, every access of the core to memory ends in an error."""
        self._lib.shell_set_bus_master(self._handle, on)

    # Wire

    def rx(self, port: int, frame: bytes, error: bool = False) -> None:
        """Queue a frame towards the core; `error` marks it as the MAC does for a bad FCS."""
        self._check(self._lib.shell_rx(self._handle, port, bytes(frame), len(frame), error))

    def rx_many(self, port: int, frames: Sequence[bytes]) -> None:
        """Queue many frames, back to back."""
        lengths = (c_uint32 * len(frames))(*map(len, frames))
        self._check(self._lib.shell_rx_many(self._handle, port, b"".join(frames), lengths, len(frames)))

    def rx_pending(self, port: int) -> int:
        """Frames that have not gone in completely."""
        return int(self._lib.shell_rx_pending(self._handle, port))

    def tx(self) -> list[TxFrame]:
        """All frames that have come out since the last call, in order."""
        frames = []
        while self._check(self._lib.shell_tx(self._handle, byref(self._info), self._buffer, FRAME_BYTES_MAX)):
            info = self._info
            frames.append(
                TxFrame(
                    info.port,
                    ctypes.string_at(self._buffer, info.length),
                    bool(info.error),
                    info.first_cycle,
                    info.last_cycle,
                )
            )
        return frames

    def set_tx_keep(self, keep: bool) -> None:
        """With false, frames that come out are counted and logged but not kept."""
        self._lib.shell_set_tx_keep(self._handle, keep)

    # Registers, interrupts, time

    def write(self, address: int, value: int, strobe: int = 15) -> None:
        """Queue a register write; it happens as the core runs, in order with others."""
        self._check(self._lib.shell_write(self._handle, address, value & 0xFFFF_FFFF, strobe))

    def read(self, address: int, max_cycles: int = 100_000) -> int:
        """Read a register, after all writes queued before. Runs the core."""
        value = c_uint32()
        self._check(self._lib.shell_read(self._handle, address, byref(value), max_cycles))
        return value.value

    def irqs(self) -> list[int]:
        """Interrupt vectors raised since the last call, in order."""
        vectors = []
        while (vector := self._lib.shell_irq(self._handle)) >= 0:
            vectors.append(vector)
        return vectors

    def tick(self, count: int = 1) -> None:
        """Queue `count` pulses of the core's `tick`, one a cycle."""
        self._lib.shell_tick(self._handle, count)

    @property
    def ticks_pending(self) -> int:
        """Queued pulses that the core has not seen."""
        return int(self._lib.shell_ticks_pending(self._handle))

    def run(self, max_cycles: int = 1_000_000, stop: Stop = Stop.IDLE) -> Reason:
        """Run until one of `stop` happens or `max_cycles` have passed."""
        return Reason(self._lib.shell_run(self._handle, max_cycles, stop))

    @property
    def cycle(self) -> int:
        """Cycles so far."""
        return int(self._lib.shell_cycle(self._handle))

    @property
    def busy(self) -> bool:
        """The core's `busy`."""
        return bool(self._lib.shell_busy(self._handle))

    def counters(self) -> Counters:
        """All totals."""
        raw = _Counters()
        self._lib.shell_counters(self._handle, byref(raw))
        values: dict[str, Any] = {name: getattr(raw, name) for name in Counters._fields}
        for name, value in values.items():
            if not isinstance(value, int):
                values[name] = tuple(value)[: self.ports]
        return Counters(**values)

    def check(self) -> None:
        """Raise `AssertionError` if the core has broken a rule of a bus."""
        broken = self.counters().violations
        if broken:
            raise AssertionError(f"{broken} bus rules broken, the first: {self.message}")

    # Looking inside

    def set_log(self, capacity: int) -> None:
        """Keep the last `capacity` events; 0 turns the log off. Forgets what is there."""
        self._lib.shell_set_log(self._handle, capacity)

    def log(self, limit: int = 1 << 16) -> Iterable[LogEntry]:
        """Take the oldest `limit` events out."""
        entries = (_LogEntry * limit)()
        count = self._lib.shell_log_read(self._handle, entries, limit)
        return [LogEntry(e.cycle, LogKind(e.kind), e.where, e.value) for e in entries[:count]]

    def trace_open(self, path: str | Path) -> None:
        """Write waveforms (VCD); the library must have been built with tracing."""
        self._check(self._lib.shell_trace_open(self._handle, str(path).encode()))

    def trace_close(self) -> None:
        """Finish the waveform file."""
        self._lib.shell_trace_close(self._handle)


def open_nic(
    config: NicConfig,
    *,
    opt: str = "test",
    trace: bool = False,
    read_latency: int = 16,
    write_latency: int = 4,
    quiet: bool = False,
) -> Shell:
    """Export, build (or take from the cache) and open the core with that configuration.

    Raises `ValueError` for a width of AXI4 that the C++ around it does not know.
    """
    from .export import export_verilog
    from .verilate import verilate

    if config.axi_bytes != AXI_BYTES:
        raise ValueError(f"axi_bytes must be {AXI_BYTES} in simulation, not {config.axi_bytes}")
    library = verilate(
        export_verilog(config, quiet=quiet),
        width=config.width,
        ports=config.ports,
        opt=opt,
        trace=trace,
        quiet=quiet,
    )
    return Shell(library, read_latency=read_latency, write_latency=write_latency)
