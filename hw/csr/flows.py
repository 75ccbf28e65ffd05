"""Register file to connection table and teardown engine."""

from amaranth.lib import data
from amaranth.lib.wiring import In, Out, Signature

from acceltcp.abi.messages import FLOW_RECORD
from acceltcp.abi.registers import FLOWS

from ..abi import message_layout

__all__ = ["TIMES", "FlowsPort"]

TIMES = ("time_wait", "fin_wait_2", "linger", "max_rto")
"""Registers with a time in timer steps."""


class FlowsPort(Signature):
    """From the register file's side; see `acceltcp.abi.registers.FLOWS`."""

    def __init__(self, config):
        index = config.flow_bits
        super().__init__(
            {
                "key": Out(32 * sum(name.startswith("word") for name in FLOWS.by_name)),
                "key_valid": Out(1),
                "ready": In(1),
                "held": In(index + 1),
                **{name: Out(20, init=FLOWS[name].reset) for name in TIMES},
                "window": Out(16, init=FLOWS["window"].reset),
                "find": Out(data.StructLayout({"start": 1, "index": index})),
                "found": In(
                    data.StructLayout(
                        {"busy": 1, "found": 1, "index": index, "record": message_layout(FLOW_RECORD)}
                    )
                ),
            }
        )
