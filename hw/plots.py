"""Figures drawn by matplotlib without a display, and saved twice: as PNG and as SVG."""

from pathlib import Path

__all__ = ["drawing", "save"]


def drawing():
    """`matplotlib.pyplot`, for files only. Raises `ModuleNotFoundError` without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure, file):
    """Save and close a figure as `file`, whose suffix does not count, in a folder that is made if need be; the files' names."""
    files = [Path(file).with_suffix(suffix) for suffix in (".png", ".svg")]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for each in files:
        figure.savefig(each, dpi=150)
    drawing().close(figure)
    return files
