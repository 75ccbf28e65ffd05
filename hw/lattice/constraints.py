"""Constraints of a whole board for nextpnr-ecp5, as LPF text (Lattice's preference language, as far as nextpnr reads it)."""

__all__ = ["port_constraints"]


def port_constraints(platform, board):
    """Pins with their standards, and clocks that come in through pins. `platform` has converted its design."""
    lines = [f"# {board.title}: pins and clocks. Made by hw.build.", "BLOCK ASYNCPATHS;", "BLOCK RESETPATHS;"]
    for port, pin, attributes in platform.iter_port_constraints_bits():
        lines.append(f'LOCATE COMP "{port}" SITE "{pin}";')
        if attributes:
            lines.append(f'IOBUF PORT "{port}" ' + " ".join(f"{name}={value}" for name, value in attributes.items()) + ";")
    for port, frequency in platform.iter_port_clock_constraints():
        lines.append(f'FREQUENCY PORT "{port.name}" {frequency / 1e6:g} MHZ;')
    return "\n".join(lines) + "\n"
