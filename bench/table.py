"""The connection table alone, Verilated: load factor, cycles of an insertion, look-ups in every cycle."""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from acceltcp.abi.flow import FLOW_HASHED
from hw.build import MODULE, export
from hw.config import TableSizes
from hw.table.connection_table import ConnectionTable
from sim.cache import build_once, cache_directory, content_hash
from sim.export import run_constants
from sim.verilate import COMPILER_FLAGS, verilator_root

__all__ = ["attack_keys", "digests", "measure", "random_keys"]

SOURCE = Path(__file__).parent / "cpp" / "table.cpp"
SEED = 1
FLAGS = ("-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-timing", "-Wno-fatal", "-Wno-lint", "-Wno-style", "--quiet")
WORDS = FLOW_HASHED.size // 8 + 1

_M = {name: FLOW_HASHED.byte_offset(name) for name in ("remote", "local", "remote_port", "local_port")}


def _build(sizes: TableSizes, opt: str) -> Path:
    """The driver with the table in it, made if need be."""
    verilog = run_constants(export(None, ConnectionTable(sizes)))
    root = verilator_root()
    compiler = COMPILER_FLAGS[opt]
    target = cache_directory() / "verilator" / f"table-{content_hash([verilog, SOURCE, *FLAGS, *compiler])}"

    def build(directory: Path) -> None:
        (directory / "table.v").write_text(verilog)
        generated, include = directory / "obj", root / "include"
        commands = [
            [str(root / "bin" / "verilator_bin"), "--cc", *FLAGS, "--top-module", MODULE, "--prefix", "Vtable",
             "--Mdir", str(generated), str(directory / "table.v")],
        ]  # fmt: skip
        for number, command in enumerate(commands):
            done = subprocess.run(command, env={**os.environ, "VERILATOR_ROOT": str(root)}, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{command[0]} failed on the connection table:\n{(done.stdout + done.stderr)[-4000:]}")
            if number == 0:
                sources = [*generated.glob("*.cpp"), SOURCE, include / "verilated.cpp", include / "verilated_threads.cpp"]
                commands.append(
                    ["g++", "-std=gnu++17", *compiler, "-w", f"-I{generated}", f"-I{include}", f"-I{include / 'vltstd'}",
                     "-o", str(directory / target.name), *map(str, sources), "-lpthread"]
                )  # fmt: skip

    return build_once(target, build)


def random_keys(count: int, seed: int = SEED) -> np.ndarray:
    """FLOW_HASHED messages of random IPv6 connections, one per row."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 256, (count, FLOW_HASHED.size), dtype=np.uint8)
    keys[:, -1] = 1
    return keys


def attack_keys(count: int) -> np.ndarray:
    """What somebody can do who may choose addresses and ports but does not know the secret: neighbours. IPv4
    clients in one subnet, every port of one address after the other, to one server."""
    keys = np.zeros((count, FLOW_HASHED.size), dtype=np.uint8)
    number = np.arange(count, dtype=np.uint32)
    for name, value in (("remote", 0x0A000001 + (number >> 16)), ("local", np.full(count, 0xC0000201, dtype=np.uint32))):
        at = _M[name]
        keys[:, at + 10 : at + 12] = 0xFF
        for k in range(4):
            keys[:, at + 12 + k] = value >> 24 - 8 * k & 0xFF
    for k in range(2):
        keys[:, _M["remote_port"] + k] = number >> 8 - 8 * k & 0xFF
        keys[:, _M["local_port"] + k] = 80 >> 8 - 8 * k & 0xFF
    return keys


def digests(messages: np.ndarray, secret: bytes) -> np.ndarray:
    """`acceltcp.abi.flow.siphash_1_3_128` of every row at once: two 64-bit halves, the low one first."""
    count = len(messages)
    padded = np.zeros((count, 8 * WORDS), dtype=np.uint8)
    padded[:, : FLOW_HASHED.size] = messages
    padded[:, -1] = FLOW_HASHED.size
    words = padded.view("<u8")
    key = [np.uint64(int.from_bytes(secret[at : at + 8], "little")) for at in (0, 8)]
    start = (0x736F6D6570736575, 0x646F72616E646F6D ^ 0xEE, 0x6C7967656E657261, 0x7465646279746573)
    v = [np.full(count, np.uint64(number) ^ key[i % 2]) for i, number in enumerate(start)]

    def rotate(value: np.ndarray, by: int) -> np.ndarray:
        return value << np.uint64(by) | value >> np.uint64(64 - by)

    def sip_round() -> None:
        v[0] = v[0] + v[1]
        v[2] = v[2] + v[3]
        v[1] = rotate(v[1], 13) ^ v[0]
        v[3] = rotate(v[3], 16) ^ v[2]
        v[0] = rotate(v[0], 32)
        v[2] = v[2] + v[1]
        v[0] = v[0] + v[3]
        v[1] = rotate(v[1], 17) ^ v[2]
        v[3] = rotate(v[3], 21) ^ v[0]
        v[2] = rotate(v[2], 32)

    for j in range(WORDS):
        v[3] = v[3] ^ words[:, j]
        sip_round()
        v[0] = v[0] ^ words[:, j]
    halves = []
    for register, change in ((2, 0xEE), (1, 0xDD)):
        v[register] = v[register] ^ np.uint64(change)
        for _ in range(3):
            sip_round()
        halves.append(v[0] ^ v[1] ^ v[2] ^ v[3])
    return np.stack(halves, axis=1)


def _run(driver: Path, sizes: TableSizes, messages: np.ndarray, churn: int) -> dict[str, Any]:
    secret = random.Random(SEED).randbytes(16)
    hashed = digests(messages, secret)
    mask = (1 << sizes.digest_bits) - 1
    hashed[:, 1] &= np.uint64(mask >> 64)
    with tempfile.NamedTemporaryFile(prefix="acceltcp-") as file:
        hashed.astype("<u8").tofile(file.name)
        arguments = [file.name, sizes.index_bits, sizes.digest_bits, 1 << sizes.index_bits, churn, ConnectionTable.latency]
        done = subprocess.run([str(driver), *map(str, arguments)], capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"the table's driver ended with status {done.returncode}: {done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    if result["wrong"]:
        raise RuntimeError(f"{result['wrong']} of {result['lookups']} look-ups were wrong")
    if not result["refused_at"]:
        raise RuntimeError(f"{len(messages)} keys did not fill the table of {sizes.slots} slots")
    return result


def measure(sizes: TableSizes, *, opt: str = "bench", step: Callable[[str], None] = lambda text: None) -> dict[str, float]:
    """The figures `table.*` of a table of these sizes. opt: how its model is compiled."""
    churn = 1 << sizes.index_bits - 3
    count = sizes.slots + sizes.stash + churn + 64
    step("connection table: random keys")
    driver = _build(sizes, opt)
    plain = _run(driver, sizes, random_keys(count), churn)
    step("connection table: neighbouring keys")
    attack = _run(driver, sizes, attack_keys(count), churn)
    loads = [result["refused_at"] / sizes.slots for result in (plain, attack)]
    return {
        # Every look-up was answered, each by what it should be.
        "table.lookups_per_cycle": plain["lookups"] / plain["cycles"],
        "table.load_factor_first_refusal": min(loads),
        "table.load_factor_first_refusal_random": loads[0],
        "table.load_factor_first_refusal_attack": loads[1],
        "table.insert_cycles_p50": plain["p50"],
        "table.insert_cycles_p99": plain["p99"],
    }
