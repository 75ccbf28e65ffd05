"""Verilog of a component whose ports include always-ready streams, which a plain export refuses."""

from __future__ import annotations

from amaranth import Signal, Value
from amaranth.back import verilog
from amaranth.lib import wiring

__all__ = ["to_verilog"]


def to_verilog(component: wiring.Component) -> str:
    """The component as Verilog; constant members of its signature are left out."""
    ports = []
    for _, _, member in component.signature.flatten(component):
        value = Value.cast(member)
        if isinstance(value, Signal):
            ports.append(value)
    return verilog.convert(component, ports=ports, emit_src=False)
