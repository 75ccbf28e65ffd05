"""`acceltcp vm`: its errors, and the status of a command."""

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
    ],
)
def test_refused(stand_ins, capsys, arguments, message):
    assert cli.main([*arguments, "true"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("acceltcp vm: ") and message in said and said.count("\n") == 1
    assert stand_ins.asked == []


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
