"""`acceltcp vm`: its errors, and the status of a command."""

import errno
import os
import signal
import subprocess
from types import SimpleNamespace

import pytest

from sim.guest import cli
from sim.guest.image import PackagesError


@pytest.fixture
def stand_ins(monkeypatch):
    """No image, no simulator, no QEMU; what a command gives is in `done`."""
    done = subprocess.CompletedProcess([], 0, "out\n", "err\n")
    asked = []

    class Simulator:
        def __init__(self, options, description):
            asked.append(options)
            self.path = "/run/nic.sock"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            asked.append("ended")

    class Machine(Simulator):
        def __init__(self, image, nics, **options):
            asked.append((nics, options["memory"], options["iommu"]))
            self.agent = SimpleNamespace(run=lambda *words, **_: asked.append(words) or done)

    monkeypatch.setattr(cli, "guest_image", lambda tell: None)
    monkeypatch.setattr(cli, "SimulatorProcess", Simulator)
    monkeypatch.setattr(cli, "Machine", Machine)
    monkeypatch.setattr(cli.tap_setup, "configure", lambda tap, peers: (True, ""))
    return SimpleNamespace(done=done, asked=asked)


@pytest.mark.parametrize(("code", "status"), [(0, 0), (3, 3), (-9, 137)])
def test_command(stand_ins, capsys, code, status):
    stand_ins.done.returncode = code
    assert cli.main(["--no-iommu", "--device", "sim:?tap=t0&loss=0.1", "ls", "-l", "--color"]) == status
    said = capsys.readouterr()
    assert said.out == "out\n" and said.err.endswith("err\n")
    assert stand_ins.asked == [
        {"tap": "t0", "loss": "0.1"}, (["/run/nic.sock"], 1024, False), ("ls", "-l", "--color"), "ended", "ended"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "vfio:65:00.0"], "the guest's card is a simulated one, sim:?tap=NAME..., not 'vfio:65:00.0'"),
        (["--device", "acc0"], "A device is given as SCHEME:..."),
        (["--tap-address", "10.0.0.1"], "needs a prefix, like 10.0.0.1/24"),
        (["--tap-address", "here/24"], "'here/24' does not appear to be"),
        (["--memory", "100"], "memory must be from 512 to 65536 MiB, not 100"),
        (["--timeout", "0"], "--timeout takes seconds above 0, not 0"),
        (["--timeout", "nan"], "--timeout takes seconds above 0, not nan"),
    ],
)
def test_refused(stand_ins, capsys, arguments, message):
    assert cli.main([*arguments, "true"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("acceltcp vm: ") and message in said and said.count("\n") == 1
    assert stand_ins.asked == []


def test_two_dashes_before_the_command(stand_ins):
    assert cli.main(["--", "ls", "--", "-l"]) == 0
    assert stand_ins.asked[2] == ("ls", "--", "-l")


def test_a_shell_without_input(stand_ins, capsys, monkeypatch):
    """As after `acceltcp vm <&-`."""
    monkeypatch.setattr(cli.sys, "stdin", None)
    assert cli.main([]) == 1
    assert capsys.readouterr().err == "acceltcp vm: a shell in the guest needs a standard input; without one, give a COMMAND\n"
    assert stand_ins.asked == []
    assert cli.main(["true"]) == 0


def test_a_full_disk(stand_ins, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/acceltcp-vm-1")

    monkeypatch.setattr(cli, "Machine", fail)
    assert cli.main(["true"]) == 1
    assert capsys.readouterr().err.endswith("\nacceltcp vm: [Errno 28] No space left on device: '/tmp/acceltcp-vm-1'\n")
    assert stand_ins.asked[-1] == "ended"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end(stand_ins, number):
    """Everything is put away, however often it is told."""
    before = signal.getsignal(number)

    class Told(subprocess.CompletedProcess):
        @property
        def stdout(self):
            try:
                os.kill(os.getpid(), number)
            finally:
                os.kill(os.getpid(), number)

        @stdout.setter
        def stdout(self, _):
            pass

    stand_ins.done.__class__ = Told
    with pytest.raises(SystemExit) as ended:
        cli.main(["true"])
    assert ended.value.code == 128 + number
    assert stand_ins.asked[-2:] == ["ended", "ended"] and signal.getsignal(number) is before


def test_told_to_stay(stand_ins, monkeypatch):
    """As nohup does."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli._orderly_end():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


def test_no_image(stand_ins, capsys, monkeypatch):
    def fail(tell):
        raise PackagesError("Debian's packages cannot be had")

    monkeypatch.setattr(cli, "guest_image", fail)
    assert cli.main(["true"]) == 1
    assert capsys.readouterr().err == "acceltcp vm: Debian's packages cannot be had\n"


def test_a_tap_interface_that_cannot_be_set_up(stand_ins, capsys, monkeypatch):
    monkeypatch.setattr(cli.tap_setup, "configure", lambda tap, peers: (False, "not permitted"))
    assert cli.main(["true"]) == 0
    said = capsys.readouterr().err
    assert "could not be set up (not permitted). Type, as root:" in said and "ip addr replace 10.0.0.1/24 dev acc0" in said
