"""What a figure should be."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Goal"]


@dataclass(frozen=True)
class Goal:
    """What a figure should be; `least` or `most`, or neither."""

    what: str
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool | None:
        """Whether `value` meets the goal; None where there is none."""
        if self.least is not None:
            return value >= self.least
        return value <= self.most if self.most is not None else None

    def __str__(self) -> str:
        if self.least is not None:
            return f"≥ {self.least:,g}"
        return f"≤ {self.most:,g}" if self.most is not None else ""
