"""The core as Verilog.

The only file of the simulator that imports the gateware, and only when it has to: a
configuration that was exported from the same sources before comes from the cache.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .cache import ROOT, BuildError, build_once, cache_directory, content_hash

if TYPE_CHECKING:
    from hw.config import NicConfig

__all__ = ["TOP_MODULE", "export_verilog", "run_constants", "source_hash"]

TOP_MODULE = "acceltcp_nic"


def source_hash() -> str:
    """Hash of everything the Verilog is made from, except the configuration.

    Raises `BuildError` without Amaranth.
    """
    import acceltcp.abi

    abi = Path(acceltcp.abi.__file__).parent
    files = sorted((ROOT / "hw").rglob("*.py")) + sorted(abi.glob("*.py")) + [Path(__file__)]
    try:
        parts: list[str | Path] = [importlib.metadata.version("amaranth")]
    except importlib.metadata.PackageNotFoundError:
        raise BuildError("Amaranth is not installed, which the core is made with: pip install 'acceltcp[sim]'") from None
    for file in files:
        parts += [file.name, file]
    return content_hash(parts)


def run_constants(text: str) -> str:
    """Yosys' Verilog with processes that only assign a constant made to run.

    Where part of a signal is constant and part is not, Yosys writes `always @*` with nothing to
    wake it; by the standard it never runs, and Verilator drops it. `always_comb` runs once.
    """
    constant = r"^( *)always @\*(\n +\S[^\n]* = \d+'[hb][0-9a-f]+;)$"
    return re.sub(constant, r"\1always_comb\2", text, flags=re.MULTILINE)


def export_verilog(config: NicConfig, *, quiet: bool = False) -> str:
    """The core with that configuration, as Verilog text."""
    name = content_hash([source_hash(), repr(config)])

    def build(directory: Path) -> None:
        from hw.nic import Nic
        from hw.verilog import convert

        if not quiet:
            print(f"exporting {config}", file=sys.stderr, flush=True)
        text = convert(Nic(config), TOP_MODULE, strip_internal_attrs=True)
        (directory / f"{name}.v").write_text(run_constants(text))

    return build_once(cache_directory() / "verilog" / f"{name}.v", build).read_text()
