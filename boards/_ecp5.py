"""What the ECP5 boards have in common: gigabit PHYs at RGMII, tools, capacities."""

from amaranth.build import Attrs, Clock, Pins, PinsN, Resource, Subsignal

from hw.config import NicConfig

__all__ = ["CAPACITY_45", "CAPACITY_85", "CONFIG", "TOO_LARGE", "rgmii", "without"]

# Lattice data sheet FPGA-DS-02012, family selection guide; its block RAMs have 18 kbit, so two are counted as one here.
CAPACITY_45 = {"lut": 43_848, "ff": 43_848, "bram36": 54, "uram": 0, "dsp": 72}
CAPACITY_85 = {"lut": 83_640, "ff": 83_640, "bram36": 104, "uram": 0, "dsp": 156}

CONFIG = NicConfig(
    width=8, axi_bytes=8, queues=2, listeners=4, flows=512, ways=3, digest=60, splices=0, packets=64, descriptors=16, read_beats=512, writes=16,
    max_frame=1514, rx_buffer_beats=512, tx_buffer_beats=512, pipelined_hash=False, rss=False, ultra_ram=False,
)  # fmt: skip

TOO_LARGE = "ports routed; the core is too large"


def rgmii(number, *, rst, rx_clk, rx_ctl, rx_data, tx_clk, tx_ctl, tx_data, standard, **rx_attributes):
    """A PHY. rx_attributes: further ones of its data lines, which are straps while it is in reset."""
    return Resource(
        "eth_rgmii",
        number,
        Subsignal("rst", PinsN(rst, dir="o")),
        Subsignal("rx_clk", Pins(rx_clk, dir="i"), Clock(125e6)),
        Subsignal("rx_ctl", Pins(rx_ctl, dir="i")),
        Subsignal("rx_data", Pins(rx_data, dir="i"), Attrs(**rx_attributes)),
        Subsignal("tx_clk", Pins(tx_clk, dir="o")),
        Subsignal("tx_ctl", Pins(tx_ctl, dir="o")),
        Subsignal("tx_data", Pins(tx_data, dir="o")),
        Attrs(IO_TYPE=standard),
    )


def without(resources, *names):
    """The resources of a platform but those of these names."""
    return [resource for resource in resources if resource.name not in names]
