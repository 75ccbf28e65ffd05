import pytest

from hw.vivado.reports import ReportError, timing, utilisation

from .fake_vivado import TIMING, UTILISATION


def test_timing():
    assert timing(TIMING.format(wns="0.012", tns="0.000", failing=0)) == {
        "setup_slack_ns": 0.012,
        "setup_slack_total_ns": 0.0,
        "setup_failing": 0,
        "hold_slack_ns": 0.01,
        "hold_failing": 0,
        "pulse_slack_ns": 0.0,
        "met": True,
    }


def test_missed_timing():
    found = timing(TIMING.format(wns="-0.120", tns="-3.500", failing=41))
    assert (found["setup_slack_ns"], found["setup_failing"], found["met"]) == (-0.12, 41, False)


def test_no_path_at_all_is_no_slack():
    found = timing(TIMING.format(wns="NA", tns="NA", failing="NA"))
    assert (found["setup_slack_ns"], found["setup_failing"], found["met"]) == (None, None, True)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has no line that begins with WNS"),
        (TIMING.format(wns="", tns="0", failing=0), "12 columns and 11 values"),
        (TIMING.replace("WHS(ns)", "XHS(ns)").format(wns=1, tns=0, failing=0), r"lacks WHS\(ns\)"),
    ],
)
def test_a_broken_timing_report_is_an_error(text, message):
    with pytest.raises(ReportError, match=message):
        timing(text)


def test_utilisation():
    assert utilisation(UTILISATION) == {
        "lut": {"used": 98123, "available": 871680},
        "ff": {"used": 120456, "available": 1743360},
        "bram36": {"used": 210.5, "available": 1344},
        "uram": {"used": 288, "available": 640},
        "dsp": {"used": 12, "available": 5952},
    }


def test_utilisation_of_the_older_family():
    found = utilisation(
        UTILISATION.replace("CLB LUTs", "Slice LUTs*").replace("CLB Registers", "Slice Registers")
    )
    assert found["lut"]["used"] == 98123 and found["ff"]["available"] == 1743360


def test_a_broken_utilisation_report_is_an_error():
    with pytest.raises(ReportError, match="no row for ff"):
        utilisation(UTILISATION.replace("CLB Registers", "CLB Regs"))
