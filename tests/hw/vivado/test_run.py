import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

import boards
from hw.vivado.run import VivadoError, available, run
from hw.vivado.scripts import project_files

from . import fake_vivado as fake


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name, text in project_files(boards.load("alveo_u50"), "top", "", "", "", []).items():
        (out / name).write_text(text)
    return out


def install(folder, monkeypatch, body):
    fake.install(folder.parent / "tools", monkeypatch, body)


def test_figures_and_progress(folder, monkeypatch):
    install(folder, monkeypatch, fake.GOOD)
    words = []
    figures = run(folder, "top", words.append)
    assert figures["tool"] == "Vivado 2024.2"
    assert figures["timing"]["setup_slack_ns"] == 0.012 and figures["timing"]["met"]
    assert figures["utilisation"]["bram36"] == {"used": 210.5, "available": 1344}
    assert words == [
        *("synthesis", "placement", "placement: Placer Initialization", "routing", "reports", "complete"),
    ]


@pytest.mark.parametrize(
    "body, message, reports",
    [
        (
            fake.FAILS,
            r"vivado failed in reports: ERROR: \[Route 35-9\] router went away \(see \S+/vivado.log\)",
            False,
        ),
        (fake.DIES, r"vivado failed in reports: it ended with status 7", False),
        (fake.FORGETS, r"vivado ended without top.bit, top.mcs", False),
        (
            fake.MISSED,
            r"vivado failed in reports: ERROR: timing is not met: worst setup slack -0.120 ns",
            True,
        ),
        (
            fake.GARBLED,
            r"left a report that cannot be read: the timing report has no line that begins with WNS",
            False,
        ),
    ],
)
def test_failures_are_one_line(folder, monkeypatch, body, message, reports):
    install(folder, monkeypatch, body)
    with pytest.raises(VivadoError, match=message) as caught:
        run(folder, "top")
    assert "\n" not in str(caught.value)
    assert bool(caught.value.figures) == reports
    if reports:
        assert (
            caught.value.figures["timing"]["setup_failing"] == 41
            and not caught.value.figures["timing"]["met"]
        )


def test_reports_of_an_earlier_run_are_not_this_ones(folder, monkeypatch):
    install(folder, monkeypatch, fake.GOOD)
    run(folder, "top")
    install(folder, monkeypatch, fake.DIES)
    with pytest.raises(VivadoError) as caught:
        run(folder, "top")
    assert caught.value.figures is None


def test_not_on_path(folder, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not available()
    with pytest.raises(VivadoError, match="vivado is not on PATH"):
        run(folder, "top")


def alive(folder):
    """Processes that were started in the folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if os.readlink(f"/proc/{pid}/cwd") == str(folder) and re.search(rb"sleep|vivado", command):
                found.append(pid)
        except OSError:
            continue
    return found


def test_a_helper_that_holds_the_output_open_does_not_hang_us(folder, monkeypatch):
    install(folder, monkeypatch, fake.LEAVES_A_HELPER)
    assert run(folder, "top")["timing"]["met"]
    assert not alive(folder)


def test_an_interrupt_ends_the_tool_and_its_helpers(folder, monkeypatch):
    install(folder, monkeypatch, fake.HANGS)

    def interrupt():
        deadline = time.monotonic() + 30
        while not (folder / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(folder, "top")
    thread.join()
    assert not alive(folder)
