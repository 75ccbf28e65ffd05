"""The command `acceltcp`, also as `python -m acceltcp`.

Imports nothing before it can deal with Ctrl-C: loading the command takes a moment.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command; the exit status."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
