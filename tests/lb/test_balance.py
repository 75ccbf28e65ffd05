"""Who gets a request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from acceltcp.lb.balance import make_balancer
from acceltcp.lb.config import BALANCES


@dataclass
class Member:
    name: str
    weight: int = 1
    active: int = 0


def members(*weights: int) -> list[Member]:
    return [Member(f"10.0.0.{number}:80", weight) for number, weight in enumerate(weights)]


@pytest.mark.parametrize("name", BALANCES)
def test_everybody_is_in_every_order(name):
    balancer = make_balancer(name, members(1, 5, 2))
    assert all(sorted(balancer.order(b"/%d" % number)) == [0, 1, 2] for number in range(50))


def test_round_robin_is_in_turn_and_in_proportion():
    balancer = make_balancer("round_robin", members(1, 1, 1))
    assert [balancer.order(b"/")[0] for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    balancer = make_balancer("round_robin", members(5, 1, 1))
    chosen = [balancer.order(b"/")[0] for _ in range(7)]
    assert Counter(chosen) == {0: 5, 1: 1, 2: 1} and chosen[:2] != [0, 0, 0, 0, 0] and chosen.index(1) < 5


def test_least_connections_counts_by_weight():
    some = members(1, 1, 4)
    balancer = make_balancer("least_connections", some)
    for _ in range(60):
        some[balancer.order(b"/")[0]].active += 1
    assert [member.active for member in some] == [10, 10, 40]
    some[1].active = 0
    assert balancer.order(b"/")[0] == 1


def test_least_connections_takes_turns_among_equals():
    balancer = make_balancer("least_connections", members(1, 1, 1))
    assert Counter(balancer.order(b"/")[0] for _ in range(30)) == {0: 10, 1: 10, 2: 10}


def test_uri_hash_is_stable_even_and_moves_little():
    targets = [b"/page/%d?x=%d" % (number, number * 7) for number in range(3000)]
    three = make_balancer("uri_hash", members(1, 1, 1))
    chosen = {target: three.order(target)[0] for target in targets}
    assert all(three.order(target)[0] == number for target, number in chosen.items())
    assert all(900 < count < 1100 for count in Counter(chosen.values()).values())
    two = make_balancer("uri_hash", members(1, 1))
    assert all(two.order(target)[0] == number for target, number in chosen.items() if number < 2)
    # The order of those that follow is that of a world without the first.
    assert all(two.order(target)[0] == three.order(target)[1] for target, number in chosen.items() if number == 2)


def test_uri_hash_by_weight():
    balancer = make_balancer("uri_hash", members(1, 3))
    count = Counter(balancer.order(b"/%d" % number)[0] for number in range(4000))
    assert 850 < count[0] < 1150
