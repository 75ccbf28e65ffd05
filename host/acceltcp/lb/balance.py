"""In which order the back ends are tried for a request."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Protocol

__all__ = ["Balanced", "Balancer", "LeastConnections", "RoundRobin", "UriHash", "make_balancer"]


class Balanced(Protocol):
    """What is chosen from."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> int: ...
    @property
    def active(self) -> int:
        """Requests that it has now."""


class Balancer:
    """Base class. The members never change."""

    def __init__(self, members: Sequence[Balanced]) -> None:
        self._weights = [member.weight for member in members]
        self._members = list(members)

    def order(self, target: bytes) -> list[int]:
        """Numbers of all members, the best one for a request of this target first."""
        raise NotImplementedError


class RoundRobin(Balancer):
    """In turn; a member of weight 3 has three turns of a round, spread evenly over it."""

    def __init__(self, members: Sequence[Balanced]) -> None:
        super().__init__(members)
        self._credit = [0] * len(members)

    def order(self, target: bytes) -> list[int]:
        credit = self._credit
        for number, weight in enumerate(self._weights):
            credit[number] += weight
        order = sorted(range(len(credit)), key=lambda number: -credit[number])
        credit[order[0]] -= sum(self._weights)
        return order


class LeastConnections(Balancer):
    """Who has the fewest requests for its weight; in turn among equals."""

    def __init__(self, members: Sequence[Balanced]) -> None:
        super().__init__(members)
        self._turns = RoundRobin(members)

    def order(self, target: bytes) -> list[int]:
        # Stable: equals stay in the order of their turns.
        return sorted(self._turns.order(target), key=lambda number: self._members[number].active / self._weights[number])


class UriHash(Balancer):
    """Always the same for a target, as long as it answers; without one member the targets of all others stay where they are
    (weighted rendezvous hashing)."""

    def order(self, target: bytes) -> list[int]:
        def score(number: int) -> float:
            digest = blake2b(target, digest_size=8, key=self._members[number].name.encode()[:64]).digest()
            share = (int.from_bytes(digest, "little") + 0.5) / (1 << 64)
            return math.log(min(share, 1 - 1e-16)) / self._weights[number]

        return sorted(range(len(self._members)), key=lambda number: -score(number))


_KINDS: dict[str, Callable[[Sequence[Balanced]], Balancer]] = {
    "round_robin": RoundRobin, "least_connections": LeastConnections, "uri_hash": UriHash,
}  # fmt: skip


def make_balancer(name: str, members: Sequence[Balanced]) -> Balancer:
    """The one that a configuration names."""
    return _KINDS[name](members)
