"""The command `acceltcp`: output, exit status, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from acceltcp import __version__, cli
from acceltcp.abi.messages import FlowState
from acceltcp.abi.registers import ABI_MAJOR, ABI_MINOR
from acceltcp.apps import tap
from acceltcp.host import DeviceError, transport

from .fake_device import FakeFlow, FakeTransport

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def fake(monkeypatch):
    made = FakeTransport()
    monkeypatch.setitem(transport.SCHEMES, "fake", lambda spec, stop: made)
    return made


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"acceltcp {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "--device", "eth0"], "acceltcp: A device is given as SCHEME:"),
        (["info", "--device", "vfio-user:/nonexistent"], "acceltcp: There is no device at /nonexistent"),
        (["stats", "--control", "/nonexistent"], "acceltcp: Nobody answers at /nonexistent."),
        (["flows", "--control", "/nonexistent"], "acceltcp: Nobody answers at /nonexistent."),
        (["flows", "--device", "fake:"], "acceltcp: fake: was built without TEARDOWN."),
        (["echo", "--device", "fake:", "--mac", "zz"], "acceltcp: a MAC address has six bytes"),
        (["echo", "--device", "fake:", "--address", "1.2.3"], "acceltcp: an address must be like '10.0.0.2/24'"),
        (["echo", "--device", "never:", "--port", "99999"], "acceltcp: port must be from 1 to 65535, not 99999"),
        (["http", "--device", "never:", "--port", "0"], "acceltcp: port must be from 1 to 65535, not 0"),
        (["echo", "--device", "never:", "--workers", "64"], "acceltcp: workers must be from 1 to 63, not 64"),
        (["echo", "--device", "fake:", "--workers", "4"], "acceltcp: 4 workers need 5 queues"),
        (["echo", "--device", "sim:?queues=4", "--workers", "5"], "acceltcp: 5 workers need 6 queues"),
        (["echo", "--device", "never:", "--no-setup", "--defer-accept"], "acceltcp: --defer-accept needs the NIC to answer SYNs"),
        (["echo", "--device", "never:", "--tap-address", "1.2.3.4"], "acceltcp: an address of the TAP device needs a prefix, like 1.2.3.4/24"),
        (["echo", "--device", "never:", "--tap-address", "fd00::1"], "acceltcp: an address of the TAP device needs a prefix, like fd00::1/64"),
        (["http", "--device", "fake:", "--directory", "/nonexistent"], "acceltcp: No such file or directory: /nonexistent"),
        (["http", "--device", "fake:", "--directory", __file__], f"acceltcp: Not a directory: {__file__}"),
        (["echo", "--device", "fake:", "--tap-address", "1.2.3"], "acceltcp: '1.2.3' does not appear to be"),
    ],
)
def test_errors_are_sentences(words, message, capsys, fake):
    """never: is no kind of device; who opened it would be told so, and not what is wrong."""
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(message) and "Traceback" not in captured.err


def test_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(cli._EXTERNAL, "sim", ("no_such_package.cli", "sim", ""))
    assert cli.main(["sim", "--help"]) == 1
    assert "pip install 'acceltcp[sim]'" in capsys.readouterr().err


def test_external_command_gets_its_words(monkeypatch, tmp_path):
    (tmp_path / "elsewhere.py").write_text("def main(words):\n    return len(words)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli._EXTERNAL, "bench", ("elsewhere", "dev", ""))
    assert cli.main(["bench", "a", "--b", "c"]) == 3


def test_info(fake, capsys):
    assert cli.main(["info", "--device", "fake:", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["abi"], found["queues"], found["features"]) == (f"{ABI_MAJOR}.{ABI_MINOR}", 4, ["SETUP", "RSS"])
    fake.closed = False
    assert cli.main(["info", "--device", "fake:"]) == 0
    assert "queues" in capsys.readouterr().out


def test_stats(fake, capsys):
    fake.counters["rx_packets"] = 12345
    assert cli.main(["stats", "--device", "fake:"]) == 0
    out = capsys.readouterr().out
    assert "12,345" in out and "rx_bytes" not in out
    assert cli.main(["stats", "--device", "fake:", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counters"]["rx_packets"] == 12345


@pytest.fixture
def busy(fake):
    """A NIC that holds two of four flows, of a program that nobody can ask."""
    fake.give_flows(4)
    command = {"flags": 0, "port": 0, "retries": 10, "rto": 2500, "table": 0x1000}
    for index, state, retries in ((1, FlowState.FIN_WAIT_1, 3), (3, FlowState.TIME_WAIT, 0)):
        fake.flows[index] = FakeFlow(
            0, command, (b"", b"", 0, 0), [], snd_end=1001, una=1, rcv_nxt=5, state=state, window=100, ts_recent=0,
            deadline=1 << 20, started=0, retries=retries,
        )  # fmt: skip
    return fake


def test_flows(busy, capsys):
    assert cli.main(["flows", "--device", "fake:"]) == 0
    heading, first, second, last = capsys.readouterr().out.splitlines()
    assert heading.split() == ["index", "state", "peer", "local", "unacked", "retries", "deadline", "ms", "frames"]
    assert first.split()[:7] == ["1", "FIN_WAIT_1", "?", "?", "1000", "3", "of"]
    assert second.split()[:2] == ["3", "TIME_WAIT"]
    assert [line.index("?") for line in (first, second)] == [heading.index("peer")] * 2
    assert last == "2 of 4 held."
    assert busy.closed and len(busy.flows) == 2, "looking resets nothing"


def test_flows_for_machines(busy, capsys):
    assert cli.main(["flows", "--device", "fake:", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["held"], found["capacity"]) == (2, 4)
    first, second = found["flows"]
    assert min(flow.pop("deadline_ms") for flow in (first, second)) > 400_000
    assert first == {
        "index": 1, "state": "FIN_WAIT_1", "peer": "?", "local": "?", "unacked": 1000, "retries": 3, "retry_limit": 10,
        "frames": 0, "sending": False, "window": 6400, "rto_ms": 1000.0, "queue": 0, "port": 0,
    }  # fmt: skip
    assert second == {**first, "index": 3, "state": "TIME_WAIT", "retries": 0}


def test_flows_of_an_idle_nic(fake, capsys):
    fake.give_flows(65536)
    assert cli.main(["flows", "--device", "fake:"]) == 0
    assert capsys.readouterr().out == "The NIC holds no connection; it has room for 65,536.\n"
    assert cli.main(["flows", "--device", "fake:", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"held": 0, "capacity": 65536, "flows": []}


def test_flows_that_are_not_shown_are_counted(busy, capsys):
    busy.give_flows(2048)
    busy.flows = dict.fromkeys(range(1234), busy.flows[1])
    assert cli.main(["flows", "--device", "fake:"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1000 + 1 and lines[-1] == "1,234 of 2,048 held, 234 of them not shown."


@pytest.mark.parametrize("command", ["echo", "http"])
@pytest.mark.parametrize(
    ("words", "offloads"), [([], (True, True)), (["--no-teardown"], (True, False)), (["--no-setup"], (False, True))]
)
def test_servers_have_the_nic_open_and_close_connections_unless_told_not_to(command, words, offloads, monkeypatch, capsys):
    asked = []

    def nic(device, addresses, **options):
        asked.append((options["setup"], options["teardown"]))
        raise DeviceError("Enough.")

    monkeypatch.setattr(cli, "Nic", nic)
    assert cli.main([command, "--device", "fake:", *words]) == 1
    assert asked == [offloads] and capsys.readouterr().err == "acceltcp: Enough.\n"


def test_looking_at_a_simulator_needs_no_tap():
    assert cli._unwired("sim:?tap=acc0&width=8") == "sim:?width=8"
    assert cli._unwired("sim:?tap=acc0") == "sim:"
    assert cli._unwired("vfio-user:/x") == "vfio-user:/x"


def test_peer_addresses():
    assert tap.peer_addresses(["10.0.0.2/24", "fd00::2/64"]) == ["10.0.0.1/24", "fd00::1/64"]
    assert tap.peer_addresses(["10.0.0.1/24"]) == ["10.0.0.2/24"]
    assert tap.tap_name("sim:?tap=acc0&width=8") == "acc0"
    assert tap.tap_name("sim:") is None and tap.tap_name("vfio-user:/x") is None
    assert tap.tap_commands("t", ["10.0.0.1/24", "fd00::1/64"]) == [
        ["ip", "link", "set", "t", "up"],
        ["ip", "addr", "replace", "10.0.0.1/24", "dev", "t"],
        ["ip", "addr", "replace", "fd00::1/64", "dev", "t", "nodad"],
    ]


SERVE = """
import sys
from acceltcp import cli
from acceltcp.host import transport
from tests.host.fake_device import FakeTransport
opened = []
def open_once(spec, stop):
    assert not opened, "the device was opened twice"
    opened.append(FakeTransport(flows=16))
    return opened[0]
transport.SCHEMES["fake"] = open_once
sys.exit(cli.main(sys.argv[1:]))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "host")])}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("own_path", [False, True])
def test_server_answers_stats_and_ends_in_order(number, own_path, tmp_path):
    where = ["--control", str(tmp_path / "c.sock")] if own_path else []
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "echo", "--device", "fake:", *where],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("Serving echo at 10.0.0.2:7 (MAC 02:") or "MAC" in lines[0]
        assert lines[1].startswith("Serving echo at [fd00::2]:7")
        ask = [sys.executable, "-m", "acceltcp", "stats", "--json", "--device", "fake:", *where]
        done = subprocess.run(ask, env=environment(), capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["counters"]["commands"] == 2
        info = subprocess.run(
            [sys.executable, "-m", "acceltcp", "info", "--json", "--device", "fake:", *where],
            env=environment(), capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert json.loads(info.stdout)["queues"] == 4 and json.loads(info.stdout)["flows"] == 16
        flows = subprocess.run(
            [sys.executable, "-m", "acceltcp", "flows", "--json", "--device", "fake:", *where],
            env=environment(), capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert json.loads(flows.stdout) == {"held": 0, "capacity": 16, "flows": []}
        second = subprocess.run(
            [sys.executable, "-c", SERVE.replace("assert not opened", "assert False"), "echo", "--device", "fake:", *where],
            env=environment(), capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert second.returncode == 1 and "Another program uses this device already" in second.stderr
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 0 and out.endswith("Closed.\n") and err == ""
        assert not list(tmp_path.rglob("*.sock"))
    finally:
        process.kill()
        process.wait()


IMPORTING = """
import os, signal, sys
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "acceltcp.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Slow())
from acceltcp.__main__ import main
sys.exit(main())
"""


def test_ctrl_c_while_the_command_is_loaded():
    done = subprocess.run([sys.executable, "-c", IMPORTING], env=environment(), capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_command_is_the_module():
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["project"]["scripts"] == {"acceltcp": "acceltcp.__main__:main"}


def test_driver_needs_no_rich():
    code = "import sys; sys.modules['rich'] = None; import acceltcp.host, acceltcp.cli; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


def test_driver_imports_only_the_contract():
    code = (
        "import sys, acceltcp.host, acceltcp.cli\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'hw', 'sim', 'bench', 'boards', 'amaranth', 'rich', 'scapy'}))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    assert time.monotonic() - started < 30


SLOW = """
import sys
from acceltcp import cli
from acceltcp.host import simulated
simulated._BOOT = "import os, time; print('compiling', file=__import__('sys').stderr, flush=True); time.sleep(100)"
sys.exit(cli.main(sys.argv[1:]))
"""


def test_ctrl_c_while_the_simulator_compiles():
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "echo", "-v", "--device", "sim:"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert "compiling" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=15)
        assert process.returncode == 130 and "Traceback" not in err
    finally:
        process.kill()
        process.wait()
