"""`acceltcp lb`: what it says, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from acceltcp import cli
from acceltcp.host import transport

from ..host.fake_device import FakeTransport
from ..host.test_cli import SERVE, environment


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("balance = 'x'", "balance must be one of 'round_robin', 'least_connections', 'uri_hash', not 'x'"),
        ("", "backends is missing; expected at least one table [[backends]] with host and port"),
        ("backends = [{host = '10.0.0.1', prot = 80}]", "backends[0].prot = 80: there is no such key; nearest: 'port'"),
        ("a = = 2", "is no TOML"),
    ],
)
def test_a_wrong_file_is_an_error_before_the_device_is_opened(text, said, tmp_path, capsys):
    file = tmp_path / "lb.toml"
    file.write_text(text)
    assert cli.main(["lb", "--device", "never:", "--config", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"acceltcp: {file}") and said in error and error.count("\n") == 1


def test_no_file(tmp_path, capsys):
    assert cli.main(["lb", "--device", "never:", "--config", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"acceltcp: No such file or directory: {tmp_path / 'none'}\n"
    with pytest.raises(SystemExit):
        cli.main(["lb", "--device", "never:"])
    assert "--config" in capsys.readouterr().err


def test_an_address_that_is_not_the_nics(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(transport.SCHEMES, "fake", lambda spec, stop: FakeTransport())
    file = tmp_path / "lb.toml"
    file.write_text("listen = {address = '10.0.0.77'}\nbackends = [{host = '10.0.0.1', port = 80}]")
    assert cli.main(["lb", "--device", "fake:", "--config", str(file)]) == 1
    assert capsys.readouterr().err == "acceltcp: 10.0.0.77 is no address of this NIC\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_order_with_its_figures(number, tmp_path):
    file: Path = tmp_path / "lb.toml"
    file.write_text("listen = {port = 8080}\nbackends = [{host = '10.0.0.1', port = 80}]")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "lb", "--device", "fake:", "--config", str(file), "--json"],
        env=environment() | {"XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"]},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("Serving lb at 10.0.0.2:8080 (MAC ") and lines[1].startswith("Serving lb at [fd00::2]:8080")
        ask = [sys.executable, "-m", "acceltcp", "stats", "--json", "--device", "fake:"]
        done = subprocess.run(ask, env=environment(), capture_output=True, text=True, timeout=30)
        assert done.returncode == 0 and json.loads(done.stdout)["lb"] == {}
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, err) == (0, "") and out.endswith("Closed.\n{}\n")
    finally:
        process.kill()
        process.wait()
