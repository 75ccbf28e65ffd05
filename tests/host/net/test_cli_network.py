"""Routes and neighbours on the command line."""

from __future__ import annotations

import pytest

from acceltcp import cli
from acceltcp.host import transport

from ..fake_device import FakeTransport


@pytest.fixture(autouse=True)
def fake(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setitem(transport.SCHEMES, "fake", lambda spec, stop: FakeTransport())


def test_flags_reach_the_nic():
    words = ["echo", "--route", "default via 10.0.0.1", "--route", "fd01::/64 via fe80::9",
             "--neighbour", "10.0.0.1=02:00:00:00:00:01", "--neighbour", "fe80::9=02:00:00:00:00:09"]  # fmt: skip
    assert cli._network_options(cli._parser().parse_args(words)) == {
        "routes": ["default via 10.0.0.1", "fd01::/64 via fe80::9"],
        "neighbours": {"10.0.0.1": "02:00:00:00:00:01", "fe80::9": "02:00:00:00:00:09"},
    }
    assert cli._network_options(cli._parser().parse_args(["http"])) == {}


def test_what_no_neighbour_is(capsys):
    assert cli.main(["echo", "--device", "fake:", "--neighbour", "10.0.0.1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("acceltcp: a neighbour is given as ADDRESS=MAC, like") and "Traceback" not in said
