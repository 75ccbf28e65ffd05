"""A process of a benchmark that makes load: a command, a line of JSON on standard input, at a time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

__all__ = ["obey"]


def obey(name: str, *commands: Callable[..., None]) -> int:
    """Carry out commands by their functions' names until standard input ends; each answer says how long it took. The exit status."""
    by_name = {each.__name__: each for each in commands}
    try:
        for line in sys.stdin:
            command = json.loads(line)
            started = time.monotonic()
            by_name[command.pop("do")](**command)
            print(json.dumps({"seconds": time.monotonic() - started}), flush=True)
    except (RuntimeError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0
