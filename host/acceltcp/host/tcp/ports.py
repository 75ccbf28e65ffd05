"""Numbers that an attacker off the path must not guess: ephemeral ports (RFC 6056) and initial sequence
numbers (RFC 6528)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from hashlib import blake2s

__all__ = ["EphemeralPorts", "InitialSequence"]

_TABLE = 1024
"""Counters of the double-hash algorithm."""
_TICKS_PER_S = 250_000
"""The clock of RFC 9293 section 3.4.1: a step every 4 us."""
_MASK = 0xFFFFFFFF


def _secret(secret: bytes | None) -> bytes:
    if secret is None:
        return os.urandom(32)
    if not 16 <= len(secret) <= 32:
        raise ValueError(f"a secret must have 16 to 32 bytes, not {len(secret)}")
    return secret


class EphemeralPorts:
    """Local ports of active opens, by the double-hash algorithm (RFC 6056 section 3.3.4).

    Towards one destination the ports follow each other, so that one is used again as late as possible; where they begin
    is a keyed hash of the two addresses and the remote port. A second hash chooses a counter, so that
    connections to other destinations mostly do not move it. The counters begin anywhere.

    first, last: the range, both included. in_use: (local address, remote address, remote port, local port) -> whether
    the port cannot be taken: it is in use, or what comes to it would not come here. secret: 16 to 32
    bytes; default: random. Raises `ValueError` for a range that is none.
    """

    __slots__ = ("_counters", "_first", "_in_use", "_secret", "_size")

    def __init__(
        self, first: int, last: int, in_use: Callable[[bytes, bytes, int, int], bool], secret: bytes | None = None
    ) -> None:
        if not 1 <= first <= last <= 0xFFFF:
            raise ValueError(f"ports must be two from 1 to 65535, the first not above the last, not {first} and {last}")
        self._first = first
        self._size = last - first + 1
        self._in_use = in_use
        self._secret = _secret(secret)
        self._counters = [int.from_bytes(os.urandom(2), "big") for _ in range(_TABLE)]

    def choose(self, local: bytes, remote: bytes, remote_port: int) -> int:
        """A port that is free for a connection from `local` to `remote`. Every port of the range is tried.

        Raises `OSError` (EADDRNOTAVAIL) when none is free.
        """
        # Both hashes of the RFC in one: parts of a keyed digest are independent.
        digest = blake2s(local + remote + remote_port.to_bytes(2, "big"), digest_size=8, key=self._secret).digest()
        offset = int.from_bytes(digest[:4], "big")
        slot = int.from_bytes(digest[4:], "big") % _TABLE
        first, size, in_use = self._first, self._size, self._in_use
        counter = self._counters[slot]
        for step in range(size):
            port = first + (offset + counter + step) % size
            if not in_use(local, remote, remote_port, port):
                self._counters[slot] = counter + step + 1
                return port
        raise OSError(
            errno.EADDRNOTAVAIL, f"no port from {first} to {first + size - 1} is free for another connection to that address and port"
        )


class InitialSequence:
    """Initial sequence numbers: a keyed hash of the four-tuple, plus a clock (RFC 6528 section 3).

    A connection that follows another of the same tuple gets a higher one; nobody can tell from those of
    other tuples. secret: 16 to 32 bytes; default: random.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = _secret(secret)

    def iss(self, local: bytes, remote: bytes, local_port: int, remote_port: int, now: float) -> int:
        """The number (32 bits) for a connection that begins at `now` (seconds of a clock that does not go back)."""
        tuple_ = local + remote + (local_port << 16 | remote_port).to_bytes(4, "big")
        hashed = int.from_bytes(blake2s(tuple_, digest_size=4, key=self._secret).digest(), "big")
        return hashed + int(now * _TICKS_PER_S) & _MASK
