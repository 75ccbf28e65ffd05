"""Register file to receive side scaling."""

from amaranth.lib.wiring import Out, Signature

from acceltcp.abi.registers import RSS, RSS_KEY_BYTES

__all__ = ["RssPort"]

_ENTRY = RSS["entry"].positions


class RssPort(Signature):
    """From the register file's side; see `acceltcp.abi.registers.RSS`.

    `key` has its byte 0 in the least significant bits. `write` is a strobe: entry `index` of the indirection
    table becomes `queue`.
    """

    def __init__(self):
        super().__init__(
            {
                "types": Out(RSS["control"].positions["types"][1]),
                "key": Out(8 * RSS_KEY_BYTES),
                "write": Out(1),
                "index": Out(_ENTRY["index"][1]),
                "queue": Out(_ENTRY["queue"][1]),
            }
        )
