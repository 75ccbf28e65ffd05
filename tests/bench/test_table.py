"""The bench of the connection table: its keys and hashes are the real ones, and a small table gives figures."""

import random

import numpy as np
import pytest

from acceltcp.abi.flow import FLOW_HASHED, siphash_1_3_128
from bench.table import attack_keys, digests, measure, random_keys
from hw.config import NicConfig


def test_digests_are_those_of_the_abi():
    secret = random.Random(1).randbytes(16)
    for keys in (random_keys(50, seed=2), attack_keys(50)):
        for key, halves in zip(keys, digests(keys, secret), strict=True):
            assert int(halves[0]) | int(halves[1]) << 64 == siphash_1_3_128(secret, key.tobytes())


def test_keys():
    assert len(np.unique(random_keys(5000), axis=0)) == 5000
    keys = attack_keys(70_000)
    assert len(np.unique(keys, axis=0)) == 70_000
    first, last = (FLOW_HASHED.unpack(keys[number].tobytes()) for number in (0, 65_537))
    assert first["local"] == last["local"] and first["local_port"] == last["local_port"]
    changed = {name for name in first if first[name] != last[name]}
    assert changed == {"remote", "remote_port"}, "neighbours differ where clients of one subnet do"


@pytest.mark.slow
def test_measure():
    said = []
    found = measure(NicConfig(flows=512).table, opt="test", step=said.append)
    assert len(said) == 2
    assert found["table.lookups_per_cycle"] == 1
    for name in ("first_refusal", "first_refusal_random", "first_refusal_attack"):
        assert 0.9 <= found[f"table.load_factor_{name}"] <= 1.1  # the stash counts as well
    assert 5 <= found["table.insert_cycles_p50"] <= found["table.insert_cycles_p99"] < 1000
