"""A netlist of Xilinx cells, as Yosys writes it (`write_json`): what it uses and how deep it is.

Area is counted in LUT *sites*: a LUT cell of any size takes one, a distributed RAM or shift
register as many as its primitive has, an inverter that Yosys left standing takes one too.

Depth is counted in LUT *levels* on the longest path between two clocked elements or ports. LUT
cells and reads of distributed RAM (which are asynchronous) are a level each. Carry chains and
wide multiplexers (MUXF) are dedicated wires beside the LUTs: they are no level, and carries are
counted on their own. A cell type that is not known here is an error, so that no figure is
silently wrong; so is a combinational loop.
"""

import re
from collections import Counter
from dataclasses import asdict, astuple, dataclass, field

__all__ = ["Netlist", "NetlistError", "Path", "Usage"]

_LUTS = {**{f"LUT{n}": 1 for n in range(1, 7)}, "LUT6_2": 1, "INV": 1}
_SRLS = {"SRL16": 1, "SRL16E": 1, "SRLC16": 1, "SRLC16E": 1, "SRLC32E": 1}
# Primitive -> (LUT sites, {output: the address that it is read at})
_QUAD = {f"DO{x}": f"ADDR{x}" for x in "ABCD"}
_OCTAL = {f"DO{x}": f"ADDR{x}" for x in "ABCDEFGH"}
_DUAL = {"SPO": "A", "DPO": "DPRA"}
_LUTRAMS = {
    "RAM16X1D": (2, _DUAL),
    "RAM32X1D": (2, _DUAL),
    "RAM64X1D": (2, _DUAL),
    "RAM128X1D": (4, _DUAL),
    "RAM256X1D": (8, _DUAL),
    "RAM16X1S": (1, {"O": "A"}),
    "RAM32X1S": (1, {"O": "A"}),
    "RAM64X1S": (1, {"O": "A"}),
    "RAM128X1S": (2, {"O": "A"}),
    "RAM256X1S": (4, {"O": "A"}),
    "RAM512X1S": (8, {"O": "A"}),
    "RAM64X8SW": (8, {"O": "A"}),
    "RAM32M": (4, _QUAD),
    "RAM64M": (4, _QUAD),
    "RAM32M16": (8, _OCTAL),
    "RAM64M8": (8, _OCTAL),
}
_CARRIES = {"CARRY4", "CARRY8"}
_WIDE_MUXES = {"MUXF5", "MUXF6", "MUXF7", "MUXF8", "MUXF9"}
_FLIP_FLOPS = {f"FD{kind}{edge}" for kind in ("RE", "SE", "CE", "PE") for edge in ("", "_1")}
_LATCHES = {"LDCE", "LDPE"}
_BRAMS = {"RAMB36E1", "RAMB36E2"}
_HALF_BRAMS = {"RAMB18E1", "RAMB18E2"}
_URAMS = {"URAM288", "URAM288_BASE"}
_DSPS = {"DSP48E1", "DSP48E2"}
_CLOCKED = _FLIP_FLOPS | _LATCHES | _BRAMS | _HALF_BRAMS | _URAMS | _DSPS
_BUFFERS = {"BUFG", "IBUF", "OBUF", "BUF"}
_SILENT = {"$scopeinfo"}  # remembers where a flattened cell came from; no hardware
_CONSTANTS = {"0", "1", "x", "z"}


class NetlistError(ValueError):
    """The netlist has something in it that cannot be judged."""


@dataclass
class Usage:
    """What a netlist takes from the device."""

    lut_sites: int = 0
    lut: int = 0
    lutram: int = 0
    srl: int = 0
    ff: int = 0
    latch: int = 0
    bram36: int = 0
    bram18: int = 0
    uram: int = 0
    dsp: int = 0
    carry: int = 0
    wide_mux: int = 0

    @property
    def bram(self):
        """Block RAM in units of 36 kbit."""
        return self.bram36 + self.bram18 / 2

    def __add__(self, other):
        """What both take together."""
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class Path:
    """The longest path into one endpoint."""

    levels: int = 0
    carries: int = 0
    start: str = ""
    end: str = ""
    steps: list = field(default_factory=list)

    def as_dict(self):
        """Plain data for JSON."""
        return asdict(self)


class Netlist:
    """One module of a Yosys JSON netlist.

    Parameters
    ----------
    design : dict
        What `write_json` wrote, parsed.
    name : str
        The module to look at. Instances of other modules of the design are taken as
        boundaries, like ports; use a flattened netlist to see through them.
    """

    def __init__(self, design, name):
        modules = design["modules"]
        if name not in modules:
            raise NetlistError(f"the netlist has no module {name!r}, only {sorted(modules)[:10]}")
        self.name = name
        self._module = modules[name]
        self._cells = {n: c for n, c in self._module["cells"].items() if c["type"] not in _SILENT}
        # Yosys's libraries are in the file too, as black boxes.
        self._others = {n for n, m in modules.items() if "blackbox" not in m.get("attributes", {})}
        self._names = None

    @property
    def instances(self):
        """Instance name -> module, for the instances of other modules of the design."""
        primitives = {*_LUTS, *_SRLS, *_LUTRAMS, *_CARRIES, *_WIDE_MUXES, *_CLOCKED, *_BUFFERS}
        modules = self._others - primitives
        return {name: cell["type"] for name, cell in self._cells.items() if cell["type"] in modules}

    def usage(self):
        """Count the cells. Raises `NetlistError` for a type that is not known."""
        result = Usage()
        instances = self.instances
        for kind, count in Counter(cell["type"] for cell in self._cells.values()).items():
            if kind in _LUTS:
                result.lut += count
            elif kind in _SRLS:
                result.srl += count
            elif kind in _LUTRAMS:
                result.lutram += count * _LUTRAMS[kind][0]
            elif kind in _CARRIES:
                result.carry += count
            elif kind in _WIDE_MUXES:
                result.wide_mux += count
            elif kind in _FLIP_FLOPS:
                result.ff += count
            elif kind in _LATCHES:
                result.latch += count
            elif kind in _BRAMS:
                result.bram36 += count
            elif kind in _HALF_BRAMS:
                result.bram18 += count
            elif kind in _URAMS:
                result.uram += count
            elif kind in _DSPS:
                result.dsp += count
            elif kind not in _BUFFERS and kind not in instances.values():
                raise NetlistError(f"{self.name} has {count} cells of the unknown type {kind!r}")
        result.lut_sites = result.lut + result.lutram + result.srl
        return result

    def _arcs(self, cell):
        """(output bit, input bits, LUT levels, carries) of a cell's combinational paths."""
        kind, pins = cell["type"], cell["connections"]
        if kind in _LUTS:
            inputs = [b for pin, bits in pins.items() if not pin.startswith("O") for b in bits]
            for pin in ("O", "O5", "O6"):
                for bit in pins.get(pin, ()):
                    yield bit, inputs, 1, 0
        elif kind in _LUTRAMS:
            for output, address in _LUTRAMS[kind][1].items():
                inputs = self._pin(pins, address)
                for bit in pins.get(output, ()):
                    yield bit, inputs, 1, 0
        elif kind in _SRLS:
            inputs = self._pin(pins, "A")
            for bit in pins.get("Q", ()):
                yield bit, inputs, 1, 0
        elif kind in _CARRIES:
            carry_in = [*pins.get("CI", ()), *pins.get("CYINIT", ()), *pins.get("CI_TOP", ())]
            sums, generates = pins["S"], pins["DI"]
            for at, bit in enumerate(pins.get("O", ())):
                yield bit, [*carry_in, *sums[: at + 1], *generates[:at]], 0, 1
            for at, bit in enumerate(pins.get("CO", ())):
                yield bit, [*carry_in, *sums[: at + 1], *generates[: at + 1]], 0, 1
        elif kind in _WIDE_MUXES:
            inputs = [b for pin, bits in pins.items() if pin != "O" for b in bits]
            for bit in pins.get("O", ()):
                yield bit, inputs, 0, 0
        elif kind in _BUFFERS:
            for bit in pins.get("O", ()):
                yield bit, pins["I"], 0, 0

    @staticmethod
    def _pin(pins, prefix):
        """Bits of a pin that may be a vector (`A`) or numbered wires (`A0`, `A1`, ...)."""
        return [b for pin, bits in pins.items() if re.fullmatch(rf"{prefix}\d*", pin) for b in bits]

    def _endpoints(self):
        """(bit, where it goes) of every place where a path may end."""
        combinational = set(_LUTS) | _CARRIES | _WIDE_MUXES | _BUFFERS
        for name, cell in self._cells.items():
            kind = cell["type"]
            if kind in combinational:
                continue
            reads = set()
            if kind in _LUTRAMS:
                reads = {a for o, a in _LUTRAMS[kind][1].items() if cell["connections"].get(o)}
            for pin, bits in cell["connections"].items():
                if cell.get("port_directions", {}).get(pin) == "output" or pin in ("C", "CLK", "WCLK"):
                    continue
                # A read address starts an arc; the write address (the last one) also ends a path.
                if pin in reads and pin not in ("A", "ADDRD", "ADDRH"):
                    continue
                for bit in bits:
                    yield bit, (name, pin)
        for name, port in self._module["ports"].items():
            if port["direction"] != "input":
                for bit in port["bits"]:
                    yield bit, (None, name)

    def paths(self, count=1):
        """The longest path into each of the `count` deepest endpoints, deepest first.

        Endpoints that are bits of one register or memory count once. Raises `NetlistError`
        for a combinational loop.
        """
        arcs = {}
        for name, cell in self._cells.items():
            for bit, inputs, levels, carries in self._arcs(cell):
                arcs[bit] = ([b for b in inputs if b not in _CONSTANTS], levels, carries, name)
        depth = self._depths(arcs)
        best = {}
        for bit, where in self._endpoints():
            if bit in _CONSTANTS:
                continue
            levels, carries, _ = depth.get(bit, (0, 0, None))
            end = self._end_name(where)
            key = re.sub(r"\[\d+\]", "", end)
            if key not in best or best[key][:2] < (levels, carries):
                best[key] = (levels, carries, bit, end)
        deepest = sorted(best.values(), key=lambda b: (-b[0], -b[1], b[3]))[:count]
        return [self._trace(arcs, depth, *found) for found in deepest]

    def _depths(self, arcs):
        """bit -> (levels, carries, the input that decides)."""
        depth, open_ = {}, set()
        for root in arcs:
            stack = [root]
            while stack:
                bit = stack[-1]
                if bit in depth:
                    stack.pop()
                    continue
                inputs, levels, carries, cell = arcs[bit]
                missing = [b for b in inputs if b in arcs and b not in depth]
                if missing:
                    if bit in open_:
                        raise NetlistError(
                            f"{self.name} has a combinational loop through {self._net(bit)} ({cell})"
                        )
                    open_.add(bit)
                    stack.extend(missing)
                    continue
                open_.discard(bit)
                worst, via = (0, 0), None
                for b in inputs:
                    found = depth.get(b, (0, 0, None))[:2]
                    if via is None or found > worst:
                        worst, via = found, b
                depth[bit] = (worst[0] + levels, worst[1] + carries, via)
                stack.pop()
        return depth

    def _trace(self, arcs, depth, levels, carries, bit, end):
        steps = []
        while bit in arcs:
            net = self._net(bit)
            kind = self._cells[arcs[bit][3]]["type"]
            # Names that Yosys made up tell nothing.
            steps.append(kind if net.startswith("$") else f"{kind} {net}")
            via = depth[bit][2]
            if via is None:
                # All inputs are constants: a memory or shift register read at a fixed place.
                break
            bit = via
        return Path(levels, carries, self._net(bit), end, steps[::-1])

    def _net(self, bit):
        """The best name of a bit: public, shallow, short."""
        if self._names is None:
            self._names = {}
            for name, net in self._module.get("netnames", {}).items():
                rank = (net.get("hide_name", 0) or name.startswith("$"), len(name))
                wide = len(net["bits"]) > 1
                for at, b in enumerate(net["bits"]):
                    if b not in self._names or rank < self._names[b][0]:
                        self._names[b] = (rank, f"{name}[{at}]" if wide else name)
        return self._names[bit][1] if bit in self._names else f"net {bit}"

    def _end_name(self, where):
        cell, pin = where
        if cell is None:
            return f"port {pin}"
        pins = self._cells[cell]["connections"]
        if self._cells[cell]["type"] in _FLIP_FLOPS | _LATCHES and pins.get("Q"):
            return f"{self._net(pins['Q'][0])} ({pin})"
        return f"{cell} ({pin})"
