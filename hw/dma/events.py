"""Events to the host (work in progress: the record is final)."""

from amaranth.lib import data

from acceltcp.abi.messages import EVENT

from ..abi import message_layout

__all__ = ["EventRequest"]


class EventRequest(data.Struct):
    """One event for `queue`'s ring; `phase` and `overflow` are filled in by the writer."""

    queue: 8
    event: message_layout(EVENT)
