"""Where built things are kept, by the hash of what they were made from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["ROOT", "BuildError", "build_once", "cache_directory", "content_hash"]

ROOT = Path(__file__).resolve().parent.parent
"""Root of the source tree, or of the installed packages."""


class BuildError(RuntimeError):
    """A tool is missing or has failed; the message holds what it said."""


def cache_directory() -> Path:
    """`$ACCELTCP_CACHE`, or `build/` in a source tree, or the user's cache."""
    override = os.environ.get("ACCELTCP_CACHE")
    if override:
        return Path(override)
    if (ROOT / "host" / "acceltcp").is_dir() and os.access(ROOT, os.W_OK):
        return ROOT / "build"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "acceltcp"


def content_hash(parts: Iterable[bytes | str | Path]) -> str:
    """Hash of strings, bytes and the contents of files, in order."""
    digest = hashlib.sha256()
    for part in parts:
        data = (
            part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        )
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """`target`, which `build` makes in a directory of its own if it is not there yet.

    `build(directory)` leaves a file of the target's name in the directory, which is moved into
    place in one step. Of several processes that want the same thing one builds it and the
    others wait; what a process that was killed has left behind is swept away by the next.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # goes with the process, however that ends
        if target.exists():
            return target
        for left in target.parent.glob(f".{target.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)
        directory = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            build(directory)
            os.replace(directory / target.name, target)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return target
