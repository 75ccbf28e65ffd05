"""Records of connection teardown: what is kept of a flow, and what its parts tell each other.

    received segments -> FlowPacket -> Teardown -> Reply       (to the wire)
    CLOSE command -> FlowInstall -----> Teardown -> FlowJob     (frames to read and send)
    FLOW_UPDATE ----> FlowUpdate -----> Teardown -> EventRequest
                      FlowSent <- transmitter <- FlowJob

docs/teardown.md says what they mean.
"""

from amaranth.lib import data, enum

from acceltcp.abi.messages import FINAL_FRAMES_MAX, FlowState
from acceltcp.abi.registers import PORTS_MAX, QUEUES_MAX

from ..packet.meta import Reply

__all__ = [
    "FINAL_BITS",
    "FRAMES_BITS",
    "TIME_BITS",
    "WINDOW_BITS",
    "FlowInstall",
    "FlowJob",
    "FlowPacket",
    "FlowSent",
    "FlowUpdate",
    "RttState",
    "Segment",
    "flow_layout",
]

FRAMES_BITS = (FINAL_FRAMES_MAX - 1).bit_length()
"""Width of the number of frames less one."""

FINAL_BITS = 18
"""Width of a distance in sequence numbers from somewhere in the final frames to their end."""

TIME_BITS = 20
"""Width of a time in timer steps; times are compared modulo 2^20 and lie less than half of that ahead."""

RTO_BITS = 14
"""Width of the first retransmission time-out in timer steps."""

WINDOW_BITS = 12
"""Width of the peer's window in steps of `WINDOW_UNIT` bytes."""

TABLE_BITS = 46
"""Width of the frame table's address without its low 8 bits, which are zero."""

RTT_BITS = 14
"""Width of the time at which the sampled segment left, in timer steps."""


class State(enum.Enum, shape=3):
    """acceltcp.abi.messages.FlowState."""

    FREE = FlowState.FREE.value
    DELETING = FlowState.DELETING.value
    FIN_WAIT_1 = FlowState.FIN_WAIT_1.value
    FIN_WAIT_2 = FlowState.FIN_WAIT_2.value
    CLOSING = FlowState.CLOSING.value
    LAST_ACK = FlowState.LAST_ACK.value
    TIME_WAIT = FlowState.TIME_WAIT.value
    LINGER = FlowState.LINGER.value


class RttState(enum.Enum, shape=2):
    """What `rtt` holds."""

    NONE = 0  # nothing was timed
    TIMING = 1  # when the sampled segment left
    SAMPLE = 2  # the sample
    SPOILT = 3  # nothing: a retransmission made it ambiguous (Karn)


def flow_layout(config):
    """The state of one flow: 288 bits with 262,144 flows, four words of Ultra RAM.

    From `FIN_WAIT_1` to `LAST_ACK` all fields mean what they say. In TIME_WAIT and LINGER `window`
    holds the status (acceltcp.abi.messages.Status) of a FLOW_DONE event that is still owed in
    its low 4 bits, `owed` in the bit above, and in the bit above that whether strays are answered with RST. FREE
    and DELETING: see docs/teardown.md.
    """
    return data.StructLayout(
        {
            # Never changed while the flow is in the table.
            "snd_end": 32,  # sequence number after our FIN
            "table": TABLE_BITS,  # frame table's address / 256
            "frames": FRAMES_BITS,  # entries of the table - 1
            "queue": (QUEUES_MAX - 1).bit_length(),
            "port": (PORTS_MAX - 1).bit_length(),
            "timestamps": 1,
            "wscale": 4,  # peer's window shift
            "rto": RTO_BITS,  # first retransmission time-out, timer steps
            "retry_limit": 4,
            "rows": data.ArrayLayout(config.table.row_bits, 2),  # of the entry in the connection table
            "rcv_base": 32,  # next sequence number expected from the peer, its FIN not counted
            # Changed by segments and timers.
            "state": State,
            "unacked": FINAL_BITS,  # snd_end - snd_una
            "ts_recent": 32,
            "window": WINDOW_BITS,
            "deadline": TIME_BITS,
            "retries": 4,  # time-outs in a row: also how often the time-out has doubled
            "duplicates": 2,  # duplicate ACKs, counted to three
            "sending": 1,  # a job is with the transmitter: host memory is being read
            "rtt": RTT_BITS,
            "rtt_state": RttState,
            "retransmissions": 6,  # jobs that sent again; stops at 63
            "challenge": 2,  # when the last challenge ACK went, in units of 256 timer steps
        }
    )


class Segment(data.Struct):
    """What a flow has to know of a received segment besides what its `Reply` holds."""

    flags: 8  # acceltcp.abi.wire.TCPFlag
    window: 16
    payload_length: 16
    timestamps: 1  # the option is there
    options_bad: 1


def FlowPacket(config):  # noqa: N802
    """A segment of a flow that the NIC holds.

    `reply` is turned round already: `reply.ack` is SEG.SEQ + 1, `reply.seq` is SEG.ACK - 1,
    `reply.tsecr` is SEG.TSval. With `answer` it is a whole SYN-ACK for a SYN that a listener
    would answer (its `seq` is the cookie).
    """
    return data.StructLayout({"index": config.flow_bits, "answer": 1, "segment": Segment, "reply": Reply})


def FlowInstall(config):  # noqa: N802
    """Write a flow's whole state."""
    return data.StructLayout({"index": config.flow_bits, "state": flow_layout(config)})


def FlowUpdate(config):  # noqa: N802
    """acceltcp.abi.messages.FLOW_COMMAND; answered with a status, in order."""
    return data.StructLayout(
        {
            "index": config.flow_bits,
            "snd_end": 32,
            "ack": 32,
            "ts_recent": 32,
            "window": WINDOW_BITS,
            "fin": 1,
            "abort": 1,
        }
    )


def FlowSent(config):  # noqa: N802
    """A job has ended: nothing of it reads host memory any more. `status` is OK, or says what is
    wrong with its frames (acceltcp.abi.messages.Status)."""
    return data.StructLayout({"index": config.flow_bits, "status": 8})


def FlowJob(config):  # noqa: N802
    """Frames to read from host memory and send.

    Of the flow's frames, in order, those whose end lies less than `left` before `snd_end`; at
    most `limit` of them; after the first one only those whose start lies less than
    (`room` + 1) * WINDOW_UNIT bytes after the first one's: a distance counts in whole units, rounded down.
    """
    return data.StructLayout(
        {
            "index": config.flow_bits,
            "table": TABLE_BITS,
            "frames": FRAMES_BITS,
            "port": (PORTS_MAX - 1).bit_length(),
            "snd_end": 32,
            "left": FINAL_BITS,
            "limit": FRAMES_BITS + 1,
            "room": WINDOW_BITS,
            # What the frames carry, whatever the host has written there.
            "ack": 32,
            "timestamps": 1,
            "tsecr": 32,
        }
    )
