"""`VendorIp`: instances, stubs, errors."""

import pytest
from amaranth import Module, Signal
from amaranth.back import rtlil
from amaranth.hdl import IOPort

from hw.shell.ip import VendorIp, axi_ports

IP = VendorIp("thing0", "thing", "none", {"clk": ("i", 1), "count": ("o", 4), "pins": ("io", 2)}, {"A": "1"})


def test_instance_connects_the_ports():
    m, clock, count, pins = Module(), Signal(), Signal(4), IOPort(2, name="pins")
    m.submodules.thing = IP.instance(clk=clock, count=count, pins=pins)
    text = rtlil.convert(m, ports=[clock, count, pins])
    assert "cell \\thing0" in text
    for port in IP.ports:
        assert f"connect \\{port} " in text


@pytest.mark.parametrize(
    "given, message",
    [
        ({"clock": 1}, "thing has no port 'clock'; it has clk, count, pins"),
        ({"clk": Signal(2)}, "port 'clk' of thing has 1 bits, not 2"),
        ({"clk": 2}, "port 'clk' of thing has 1 bits, too few for 2"),
        ({"clk": 0}, "thing needs a value for pins"),
    ],
)
def test_wrong_connections(given, message):
    with pytest.raises(ValueError, match=message):
        IP.instance(**given)


def test_stub():
    assert IP.stub() == (
        "(* blackbox *)\nmodule thing0 (\n  input wire [0:0] clk,\n  output wire [3:0] count,\n"
        "  inout wire [1:0] pins\n);\nendmodule\n"
    )


def test_axi_ports_of_both_roles():
    master = axi_ports("m", "master", data=512, address=64, identifier=4, extra={"prot": 3})
    slave = axi_ports("m", "slave", data=512, address=64, identifier=4, extra={"prot": 3})
    assert master.keys() == slave.keys()
    for name, (direction, width) in master.items():
        assert slave[name] == ({"i": "o", "o": "i"}[direction], width)
    assert master["m_awaddr"] == ("o", 64) and master["m_rdata"] == ("i", 512) and master["m_arprot"] == ("o", 3)


def test_axi_role():
    with pytest.raises(ValueError, match="role must be 'master' or 'slave', not 'both'"):
        axi_ports("m", "both", data=32, address=32, identifier=1)
