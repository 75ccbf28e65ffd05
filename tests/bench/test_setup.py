"""The benchmark of connection setup: every figure is there, and those in cycles meet their goals.

Cycles are exact, so they may be asserted; the simulation's speed depends on the machine.
"""

import json

import pytest

from bench import cli, setup


@pytest.fixture(scope="module")
def figures():
    # The model that the system tests use too.
    return setup.measure(queues=4, opt="test")


@pytest.mark.slow
def test_every_figure_is_measured(figures):
    assert list(figures) == list(setup.GOALS)
    assert all(value > 0 for key, value in figures.items() if key != "setup.flood_host_dma_bytes")


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in setup.GOALS if not key.startswith("sim.")])
def test_figures_in_cycles_meet_their_goals(figures, key):
    assert setup.GOALS[key].met(figures[key]) is not False, f"{key} is {figures[key]}, goal {setup.GOALS[key]}"


def test_goals_say_what_they_are():
    assert str(setup.Goal("x", least=0.5)) == "≥ 0.5"
    assert setup.Goal("x", most=96).met(97) is False
    assert setup.Goal("x").met(1) is None


def test_json_goes_where_it_is_told(monkeypatch, tmp_path, capsys):
    made_up = dict.fromkeys(setup.GOALS, 1.0)
    monkeypatch.setattr(setup, "measure", lambda step: made_up)
    target = tmp_path / "deep" / "bench.json"
    assert cli.main(["setup", "--json", str(target)]) == 0
    assert json.loads(target.read_text())["results"] == made_up
    assert "setup.syn_per_cycle" in capsys.readouterr().out
    assert cli.main(["setup", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == made_up


def test_a_failure_is_a_sentence(monkeypatch, capsys):
    def fail(step):
        raise RuntimeError("LISTEN ended with nothing")

    monkeypatch.setattr(setup, "measure", fail)
    assert cli.main(["setup"]) == 1
    assert "acceltcp bench: LISTEN ended with nothing" in capsys.readouterr().err
