"""Register file to splice engine."""

from amaranth.lib.wiring import In, Out, Signature

from acceltcp.abi.registers import SPLICE

__all__ = ["LINGER_BITS", "SplicePort"]

LINGER_BITS = SPLICE["linger"].positions["units"][1]


class SplicePort(Signature):
    """From the register file's side; see `acceltcp.abi.registers.SPLICE`."""

    def __init__(self, config):
        super().__init__(
            {"held": In(config.splice_bits + 1), "linger": Out(LINGER_BITS, init=SPLICE["linger"].reset)}
        )
