"""Constraints of a whole board, as XDC text."""

__all__ = ["port_constraints"]


def port_constraints(platform, board):
    """Pins with their standards, clocks that come in through pins, and properties of the design.

    `platform` has converted its design. They are read before synthesis; what speaks of cells is the shell's and is
    read after it.
    """
    lines = [f"# {board.title}: pins, clocks, configuration. Made by hw.build."]
    for port, pin, attributes in platform.iter_port_constraints_bits():
        lines.append(f"set_property PACKAGE_PIN {pin} [get_ports {{{port}}}]")
        lines += [f"set_property {name} {value} [get_ports {{{port}}}]" for name, value in attributes.items()]
    for port, frequency in platform.iter_port_clock_constraints():
        lines.append(
            f"create_clock -name {port.name} -period {1e9 / frequency:.6f} [get_ports {{{port.name}}}]"
        )
    lines += [f"set_property {name} {value} [current_design]" for name, value in board.bitstream.items()]
    if board.watts:
        lines.append(f"set_operating_conditions -design_power_budget {board.watts}")
    return "\n".join(lines) + "\n"
