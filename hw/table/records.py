"""What goes in and out of the connection table."""

from amaranth.lib import data, enum, stream
from amaranth.lib.wiring import In, Out, Signature

from ..config import KIND_BITS

__all__ = ["ConnectionKey", "Kind", "Lookup", "TablePort"]


class Kind(enum.Enum, shape=KIND_BITS):
    """What an entry is; each kind has a state memory of its own."""

    TEARDOWN = 0
    SPLICE = 1


class ConnectionKey(data.Struct):
    """A connection as received packets name it; IPv4 addresses are ::ffff:a.b.c.d, first byte
    most significant."""

    remote: 128
    local: 128
    remote_port: 16
    local_port: 16
    ipv6: 1


def Lookup(sizes):  # noqa: N802
    """Result of a look-up; without `hit` the rest means nothing."""
    return data.StructLayout({"hit": 1, "kind": Kind, "index": sizes.index_bits})


class TablePort(Signature):
    """Changes to the table, as who makes them sees it.

    insert: in order, one `inserted` each, with OK, DUPLICATE or TABLE_FULL
        (acceltcp.abi.messages.Status). Once it says OK every later look-up finds the entry.
    delete: by the two rows of the entry's digest, kind and index; one `deleted` each, in order,
        when no later look-up finds it any more. Deleting what is not there does nothing (the rows must be those of the digest if kind and index are held).
    """

    def __init__(self, sizes):
        row, index = sizes.row_bits, sizes.index_bits
        entry = {"kind": Kind, "index": index}
        super().__init__(
            {
                "insert": Out(stream.Signature(data.StructLayout({"digest": sizes.digest_bits, **entry}))),
                "inserted": In(stream.Signature(data.StructLayout({"status": 8}))),
                "delete": Out(stream.Signature(data.StructLayout({"rows": data.ArrayLayout(row, 2), **entry}))),
                "deleted": In(stream.Signature(data.StructLayout({"index": index}))),
            }
        )
