"""Hostile peers of the vfio-user protocol, made by chance, for either side.

`python -m sim.fuzz --messages 1000000` sends the server commands that are right, wrong, cut, mixed up and thick with
descriptors, and the driver replies of the same kind. What has to come of each message is predicted by a model written
from the specification (`model`), which knows nothing of the code that is tested; what no message may do, such as
keep a descriptor, is asked of the kernel (`process`).
"""

from __future__ import annotations

__all__ = ["FuzzError"]


class FuzzError(AssertionError):
    """Something happened that must not; says how to see it again."""
