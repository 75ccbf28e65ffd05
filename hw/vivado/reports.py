"""Reads the vendor tool's text reports: timing and utilisation."""

import re

__all__ = ["ReportError", "timing", "utilisation"]

_TIMING = {
    "WNS(ns)": "setup_slack_ns",
    "TNS(ns)": "setup_slack_total_ns",
    "TNS Failing Endpoints": "setup_failing",
    "WHS(ns)": "hold_slack_ns",
    "THS Failing Endpoints": "hold_failing",
    "WPWS(ns)": "pulse_slack_ns",
}
"""Column of the timing summary -> name of the figure."""

_SITES = {
    "CLB LUTs": "lut",
    "Slice LUTs": "lut",
    "CLB Registers": "ff",
    "Slice Registers": "ff",
    "Block RAM Tile": "bram36",
    "URAM": "uram",
    "DSPs": "dsp",
}
"""Site type, in either generation's words -> resource, as in a board's capacity."""


class ReportError(ValueError):
    """A report does not have what it should have; the text says what."""


def timing(text):
    """Figures of `report_timing_summary`: slacks in ns, numbers of failing endpoints, and `met`."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.split()[:1] == ["WNS(ns)"]:
            break
    else:
        raise ReportError("the timing report has no line that begins with WNS(ns)")
    headings = re.split(r"\s{2,}", line.strip())
    next(lines, "")
    values = next(lines, "").split()
    if len(values) != len(headings):
        raise ReportError(f"the timing summary has {len(headings)} columns and {len(values)} values")
    found = {}
    for heading, value in zip(headings, values, strict=True):
        if heading in _TIMING:
            # A design without such paths has NA.
            number = None if value == "NA" else float(value)
            found[_TIMING[heading]] = int(number) if number is not None and "Endpoints" in heading else number
    if missing := _TIMING.keys() - set(headings):
        raise ReportError(f"the timing summary lacks {', '.join(sorted(missing))}")
    slacks = [value for name, value in found.items() if name.endswith("slack_ns") and value is not None]
    found["met"] = all(value >= 0 for value in slacks)
    return found


def utilisation(text):
    """Figures of `report_utilization`: resource -> {"used", "available"}, block RAM in units of 36 kbit."""
    found, headings = {}, []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == "Site Type":
            headings = cells
        # Rows are indented by what they belong to; a later table may count a part of the site type once more.
        name = _SITES.get(cells[0].rstrip("*"))
        if name and name not in found and "Used" in headings and len(cells) == len(headings):
            row = dict(zip(headings, cells, strict=True))
            found[name] = {"used": float(row["Used"]), "available": float(row["Available"])}
    if missing := {"lut", "ff"} - found.keys():
        raise ReportError(f"the utilisation report has no row for {', '.join(sorted(missing))}")
    return found
