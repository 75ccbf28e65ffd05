"""What can be set of TCP."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TcpSettings"]


@dataclass(frozen=True)
class TcpSettings:
    """Times in seconds, sizes in bytes."""

    mtu: int = 1500
    receive_buffer: int = 1 << 20
    initial_rto: float = 1.0
    min_rto: float = 0.2
    max_rto: float = 60.0
    retries: int = 10
    """Retransmissions of one segment, or unanswered window probes, before giving up."""
    delayed_ack: float = 0.04
    time_wait: float = 2.0
    linger: float = 2.0
    """How long a closed tuple drops what comes instead of taking it for something new."""
    fin_wait_2: float = 60.0
    """How long we wait for the FIN of a peer after the application has closed."""
    initial_segments: int = 10
    unknown_hold: float = 1.0
    """A segment that belongs to nothing is reset only when it still does after this time."""
    unknown_limit: int = 1024
    challenge_interval: float = 0.1
    """Least time between two answers to segments that should not be."""
    reassembly_pieces: int = 1024
