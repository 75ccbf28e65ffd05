"""Reading nextpnr's report, recorded from a run of 0.11.1 on `Echo` for the Versa (its critical paths left out)."""

import json

import pytest

from hw.lattice.reports import ReportError, figures
from hw.report import Report

REPORT = {
    "critical_paths": [],
    "fmax": {
        "$glbnet$port.receiver.fcs.mac0_clk": {"achieved": 152.9051971435547, "constraint": 125},
        "$glbnet$port.rx_crossing.queue.port0_clk": {"achieved": 252.20681762695312, "constraint": 25},
    },
    "utilization": {
        "DP16KD": {"available": 108, "used": 6},
        "EHXPLLL": {"available": 4, "used": 1},
        "IOLOGIC": {"available": 160, "used": 11},
        "MULT18X18D": {"available": 72, "used": 0},
        "TRELLIS_COMB": {"available": 43848, "used": 972},
        "TRELLIS_FF": {"available": 43848, "used": 851},
    },
}


def test_figures():
    found = figures(json.dumps(REPORT))
    assert found["clocks"] == {"mac0_clk": {"mhz": 152.91, "wanted_mhz": 125}, "port0_clk": {"mhz": 252.21, "wanted_mhz": 25}}
    assert found["timing"]["met"] and found["timing"]["setup_failing"] == 0
    # 8 ns are wanted, 1000 / 152.91 are needed.
    assert found["timing"]["setup_slack_ns"] == pytest.approx(8 - 6.540, abs=0.001)
    assert found["utilisation"]["ebr"] == {"used": 6, "available": 108}
    assert {name: row["used"] for name, row in found["utilisation"].items()} == {
        "lut": 972, "ff": 851, "ebr": 6, "dsp": 0, "pll": 1,
    }  # fmt: skip


def test_missed():
    report = {**REPORT, "fmax": {"$glbnet$a": {"achieved": 100.0, "constraint": 125}, "b": {"achieved": 26.0, "constraint": 25}}}
    timing = figures(json.dumps(report))["timing"]
    assert (timing["met"], timing["setup_failing"], timing["setup_slack_ns"]) == (False, 1, -2.0)


def test_clocks_of_one_last_name_keep_their_whole_names():
    report = {**REPORT, "fmax": {name: {"achieved": 1.0, "constraint": 1} for name in ("a.clk", "b.clk")}}
    assert set(figures(json.dumps(report))["clocks"]) == {"a.clk", "b.clk"}


def test_the_build_report_shows_it():
    report = Report(board="b", part="p", config={}, capacity={}, goals={}, implementation={"tool": "nextpnr", **figures(json.dumps(REPORT))})  # fmt: skip
    text = report.to_text()
    assert "mac0_clk: 152.91 MHz of 125 wanted" in text and "6 EBR (5.6%)" in text and "Timing met" in text
    assert Report.from_dict(json.loads(report.to_json())).implementation == report.implementation


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"fmax": {}, "utilization": {}}', '{"fmax": {"a": {}}, "utilization": {}}', '{"fmax": 3, "utilization": 4}']
)
def test_no_report(text):
    with pytest.raises(ReportError, match="nextpnr"):
        figures(text)
