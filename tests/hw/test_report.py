import json

import pytest
from rich.console import Console

from hw.report import Figures, Report
from hw.synth.netlist import Path, Usage


def report(lut=30_000, levels=9, **changes):
    usage = Usage(lut_sites=lut, lut=lut - 8, lutram=8, ff=100, bram36=1, bram18=3, carry=2)
    deepest = Path(levels, 2, "a[0]", "b[1] (D)", ["LUT6 x", "CARRY4"])
    fields = {
        "board": "toy",
        "part": "xc-toy",
        "config": {"width": 64},
        "capacity": {"lut": 60_000, "ff": 1_000, "bram36": 10, "uram": 0, "dsp": 4},
        "goals": {"lut_sites": 38_000, "levels": 10},
        "total": Figures(usage, [deepest, Path(3, 0, "c", "d (D)", ["LUT2"])]),
        "stages": {
            "small": Figures(Usage(lut_sites=5, lut=5), [Path(1)]),
            "[odd]": Figures(Usage(lut_sites=50, lut=50), []),
        },
        "seconds": {"export": 1.234, "whole core": 61},
        "cpu_seconds": {"export": 1.0, "whole core": 58.04},
        "tool": "Yosys",
    }
    return Report(**{**fields, **changes})


def test_json_has_all_figures():
    plain = json.loads(report().to_json())
    assert plain["total"]["lut_sites"] == 30_000 and plain["total"]["levels"] == 9
    assert plain["total"]["paths"][0]["start"] == "a[0]"
    assert plain["stages"]["small"]["lut"] == 5 and plain["stages"]["[odd]"]["levels"] == 0
    assert plain["seconds"] == {"export": 1.2, "whole core": 61}
    assert plain["cpu_seconds"] == {"export": 1.0, "whole core": 58.0}
    assert plain["config"] == {"width": 64}


def test_shares_of_the_part():
    shares = report().shares()
    assert shares == {"lut": 0.5, "ff": 0.1, "bram36": 0.25, "dsp": 0}  # two RAMB18 are one RAMB36


def test_goals():
    met = report().verdicts()
    assert met == {"lut_sites": (38_000, 30_000, True), "levels": (10, 9, True)}
    assert report(lut=38_000, levels=10).verdicts()["levels"][2]
    missed = report(lut=38_001, levels=11)
    assert [verdict[2] for verdict in missed.verdicts().values()] == [False, False]
    assert missed.to_text().count("NOT MET") == 2
    assert json.loads(missed.to_json())["goals"]["levels"] == {"limit": 10, "value": 11, "met": False}


def test_text_is_a_table_with_the_largest_stage_first():
    text = report().to_text()
    assert text.index("[odd]") < text.index("small") < text.index("whole core, flattened")
    assert "9 +2 carry" in text and "30,000" in text and "50.0% of 60,000 LUT" in text
    assert "a[0] -> b[1] (D)" in text and "LUT6 x" in text
    assert "whole core 61 s (58 s of processor)" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 140


def test_latches_are_called_out():
    total = Figures(Usage(latch=2), [])
    assert "2 latches: a design error" in report(total=total, stages={}).to_text()
    assert "latches" not in report().to_text()


def test_prints_to_a_terminal(capsys):
    report().print(Console(width=140))
    assert "Goal lut_sites <= 38,000: 30,000 met" in capsys.readouterr().out


IMPLEMENTATION = {
    "tool": "Vivado 2024.2",
    "timing": {
        "setup_slack_ns": -0.12,
        "setup_failing": 41,
        "hold_slack_ns": 0.01,
        "pulse_slack_ns": None,
        "met": False,
    },
    "utilisation": {"lut": {"used": 30_000, "available": 60_000}, "uram": {"used": 0, "available": 0}},
}


def test_what_the_vendors_tool_says():
    text = report(total=None, stages={}, goals={}, tool="", implementation=IMPLEMENTATION).to_text()
    assert "Timing NOT MET at 41 endpoints; worst slack in ns: setup -0.120, hold +0.010, pulse none" in text
    assert "30,000 LUT (50.0%)" in text and "URAM" not in text and "whole core, flattened" not in text


def test_reports_come_back_from_json():
    for made in (report(), report(implementation=IMPLEMENTATION), report(total=None, stages={})):
        again = Report.from_dict(json.loads(made.to_json()))
        assert again.as_dict() == made.as_dict()


@pytest.mark.parametrize("plain", [{}, [], {"total": 3}, None])
def test_something_else_is_no_report(plain):
    with pytest.raises(ValueError, match="this is no build report"):
        Report.from_dict(plain)
