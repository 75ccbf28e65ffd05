"""Resources that several boards share, in the manner of `amaranth_boards.resources`.

Serial lanes (transceivers) have no I/O standard: each pin of them can be nothing else. Raw ports of theirs
are asked for with `platform.request(name, number, dir="-")`.
"""

from amaranth.build import Attrs, Clock, DiffPairs, Pins, Resource, Subsignal

__all__ = ["clock", "lanes", "led", "output", "pcie", "qsfp", "reference", "satellite", "strapped"]

_SLOW = {"SLEW": "SLOW"}


def clock(name, number, p, n, frequency):
    """A differential oscillator of the board; `frequency` in Hz."""
    return Resource(name, number, DiffPairs(p, n, dir="i"), Clock(frequency), Attrs(IOSTANDARD="LVDS"))


def lanes(rx_p, rx_n, tx_p, tx_n):
    """Transceiver lanes, lane 0 first."""
    return [
        Subsignal("rx_p", Pins(rx_p, dir="i")),
        Subsignal("rx_n", Pins(rx_n, dir="i")),
        Subsignal("tx_p", Pins(tx_p, dir="o")),
        Subsignal("tx_n", Pins(tx_n, dir="o")),
    ]


def reference(p, n, frequency):
    """Reference clock of transceivers; `frequency` in Hz."""
    return Subsignal("refclk", DiffPairs(p, n, dir="i"), Clock(frequency))


def pcie(name, *serial, refclk, perst, standard):
    """The edge connector. `perst` is as on the connector: low while in reset."""
    return Resource(
        name,
        0,
        *lanes(*serial),
        reference(*refclk, 100e6),
        Subsignal("perst", Pins(perst, dir="i"), Attrs(IOSTANDARD=standard, PULLUP="TRUE")),
    )


def qsfp(number, *serial, refclk, frequency, control=()):
    """A QSFP28 cage with the reference clock of its lanes; `control`: Subsignals of its other pins."""
    return Resource("qsfp", number, *lanes(*serial), reference(*refclk, frequency), *control)


def satellite(tx, rx, gpio, standard):
    """The card's management controller: a serial line (`uart.tx` is driven by the FPGA) and a few wires."""
    slow = Attrs(**_SLOW, DRIVE="4")
    return Resource(
        "satellite",
        0,
        Subsignal("uart", Subsignal("tx", Pins(tx, dir="o"), slow), Subsignal("rx", Pins(rx, dir="i"))),
        Subsignal("gpio", Pins(gpio, dir="io"), slow),
        Attrs(IOSTANDARD=standard),
    )


def led(number, pin, standard, drive="8"):
    """One light, on when driven high."""
    return Resource("led", number, Pins(pin, dir="o"), Attrs(IOSTANDARD=standard, **_SLOW, DRIVE=drive))


def output(name, pins, standard):
    """A slow output of a cage."""
    return Subsignal(name, Pins(pins, dir="o"), Attrs(IOSTANDARD=standard, **_SLOW, DRIVE="8"))


def strapped(name, pins, standard):
    """An input of a cage with a pull-up, for a module that is absent."""
    return Subsignal(name, Pins(pins, dir="i"), Attrs(IOSTANDARD=standard, PULLUP="TRUE"))
