"""docs/lb.md says what there is."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

from acceltcp.lb import config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "lb.md").read_text()


def test_the_example_is_one():
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert len(config.parse(tomllib.loads(example)).backends) == 2


def test_every_key_and_its_default():
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| `([^`]+)` \|", TEXT, re.MULTILINE))
    ours = config.parse({"backends": [{"host": "a", "port": 1}]})
    expected = {}
    for field in dataclasses.fields(ours):
        value = getattr(ours, field.name)
        if dataclasses.is_dataclass(value):
            expected |= {f"{field.name}.{part}": item for part, item in dataclasses.asdict(value).items()}
        elif field.name != "backends":
            expected[field.name] = value
    assert expected.pop("listen.address") is None
    assert {name: tomllib.loads(f"x = {value}")["x"] for name, value in rows.items()} == expected


def test_every_reason_of_a_refusal():
    code = "".join(path.read_text() for path in (ROOT / "host" / "acceltcp" / "lb").glob("*.py"))
    reasons = set(re.findall(r'Refused\([\w.]+, "([a-z_]+)"', code))
    assert len(reasons) == 9 and all(f"`{reason}`" in TEXT for reason in reasons), reasons
