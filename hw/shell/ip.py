"""`VendorIp`: one description of a block that the vendor's tool generates.

From it come the instance in the design, the commands that make the block, and an empty module with its ports, by which
the Verilog is checked where the tool is not at hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from amaranth import Const, Instance, Signal, Value
from amaranth.hdl import IOValue

__all__ = ["VendorIp", "axi_ports"]


@dataclass(frozen=True)
class VendorIp:
    """A block.

    module: name of the generated module.
    name: what the vendor's catalogue calls the block.
    doc: the vendor's document that describes the ports, with its table.
    ports: name -> ("i", "o" or "io" as the block sees it, width in bits).
    properties: name, with or without `CONFIG.` before it -> value, in the order in which they must be set.
    vendor, library: where the catalogue has it.
    after: further lines of Tcl, once the properties stand.
    """

    module: str
    name: str
    doc: str
    ports: Mapping[str, tuple[str, int]]
    properties: Mapping[str, str] = field(default_factory=dict)
    vendor: str = "xilinx.com"
    library: str = "ip"
    after: tuple[str, ...] = ()

    def instance(self, **connections):
        """The block in a design. `connections`: port -> value; an integer takes the width of its port.

        Pins of the device are connected as `IOValue`, whatever their direction. Outputs may be left open, inputs may not. Raises `ValueError` for a port that the block does not have, an input
        without a value, or a value whose width is not the port's.
        """
        arguments = {}
        for port, value in connections.items():
            if port not in self.ports:
                raise ValueError(f"{self.name} has no port {port!r}; it has {', '.join(sorted(self.ports))}")
            direction, width = self.ports[port]
            if isinstance(value, int):
                value = _constant(self, port, value, width)
            elif not isinstance(value, IOValue):
                value = Value.cast(value)
            if len(value) != width:
                raise ValueError(f"port {port!r} of {self.name} has {width} bits, not {len(value)}")
            arguments[f"{direction}_{port}"] = value
        for port, (direction, width) in self.ports.items():
            if direction == "o" and port not in connections:
                # An open port and a forgotten one look alike to a lint; this one is meant.
                arguments[f"o_{port}"] = Signal(width, name=f"{self.module}_{port}_open")
        missing = [port for port, (way, _) in self.ports.items() if way != "o" and port not in connections]
        if missing:
            raise ValueError(f"{self.name} needs a value for {', '.join(missing)}")
        return Instance(self.module, **arguments)

    def low(self, *prefixes):
        """Connections that keep those inputs low whose names begin with one of these."""
        return {
            name: 0 for name, (direction, _) in self.ports.items() if direction == "i" and name.startswith(prefixes)
        }

    def stub(self):
        """Verilog of an empty module with these ports."""
        words = {"i": "input", "o": "output", "io": "inout"}
        lines = [
            f"  {words[direction]} wire [{width - 1}:0] {port}" for port, (direction, width) in self.ports.items()
        ]
        return f"(* blackbox *)\nmodule {self.module} (\n" + ",\n".join(lines) + "\n);\nendmodule\n"


def _constant(ip, port, value, width):
    if not 0 <= value < 1 << width:
        raise ValueError(f"port {port!r} of {ip.name} has {width} bits, too few for {value}")
    return Const(value, width)


_ADDRESS = {"id": None, "addr": None, "len": 8, "size": 3, "burst": 2}


def axi_ports(prefix, role, *, data, address, identifier, extra=()):
    """Ports of a full AXI4 interface (AMBA AXI, IHI 0022) with the names `prefix_awaddr` and so on.

    role: "master" or "slave", as the block is. data, address, identifier: widths in bits.
    extra: further signals of both address channels, name -> width.
    """
    if role not in ("master", "slave"):
        raise ValueError(f"role must be 'master' or 'slave', not {role!r}")
    request, answer = ("o", "i") if role == "master" else ("i", "o")
    widths = _ADDRESS | {"id": identifier, "addr": address} | dict(extra)
    ports = {}
    for channel in ("aw", "ar"):
        ports |= {f"{channel}{name}": (request, width) for name, width in widths.items()}
        ports |= {f"{channel}valid": (request, 1), f"{channel}ready": (answer, 1)}
    ports |= {"wdata": (request, data), "wstrb": (request, data // 8), "wlast": (request, 1)}
    ports |= {"wvalid": (request, 1), "wready": (answer, 1)}
    ports |= {"bid": (answer, identifier), "bresp": (answer, 2), "bvalid": (answer, 1), "bready": (request, 1)}
    ports |= {"rid": (answer, identifier), "rdata": (answer, data), "rresp": (answer, 2), "rlast": (answer, 1)}
    ports |= {"rvalid": (answer, 1), "rready": (request, 1)}
    return {f"{prefix}_{name}": port for name, port in ports.items()}
