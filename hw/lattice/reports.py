"""Reads what nextpnr leaves with `--report`: JSON with the clocks' frequencies and the use of cells."""

import json

__all__ = ["ReportError", "figures"]

_CELLS = {"TRELLIS_COMB": "lut", "TRELLIS_FF": "ff", "DP16KD": "ebr", "MULT18X18D": "dsp", "EHXPLLL": "pll"}


class ReportError(ValueError):
    """It does not have what it should have; the text says what."""


def figures(text):
    """{"timing", "utilisation"} as of `hw.vivado.reports`, and for each clock the MHz reached and wanted.

    Slack is that of whole periods: nextpnr gives a frequency per clock, and looks at no hold times. Clocks
    without a constraint count for nothing. Raises `ReportError`.
    """
    try:
        plain = json.loads(text)
        names = _names(plain["fmax"])
        clocks = {
            names[name]: {"mhz": round(row["achieved"], 2), "wanted_mhz": round(row["constraint"], 2)}
            for name, row in plain["fmax"].items()
        }
        cells = {
            name: {"used": plain["utilization"][kind]["used"], "available": plain["utilization"][kind]["available"]}
            for kind, name in _CELLS.items()
            if kind in plain["utilization"]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"this is no report of nextpnr: {type(error).__name__} {error}") from None
    if missing := {"lut", "ff"} - cells.keys():
        raise ReportError(f"nextpnr's report has no cells for {', '.join(sorted(missing))}")
    slacks = [1e3 / row["wanted_mhz"] - 1e3 / row["mhz"] for row in clocks.values()]
    timing = {
        "setup_slack_ns": round(min(slacks), 3) if slacks else None,
        "setup_failing": sum(slack < 0 for slack in slacks),
        "hold_slack_ns": None,
        "pulse_slack_ns": None,
        "met": all(slack >= 0 for slack in slacks),
    }
    return {"timing": timing, "clocks": clocks, "utilisation": cells}


def _names(nets):
    """nextpnr's name of each clock's net -> its last part, where that is enough to tell them apart."""
    plain = {net: net.removeprefix("$glbnet$") for net in nets}
    last = [name.rpartition(".")[2] for name in plain.values()]
    return {net: name.rpartition(".")[2] if last.count(name.rpartition(".")[2]) == 1 else name for net, name in plain.items()}
