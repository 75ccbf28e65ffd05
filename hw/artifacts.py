"""A folder of results: a file is there under its name only when it is whole, and a manifest only when all are."""

import hashlib
import json
from pathlib import Path

__all__ = ["MANIFEST", "Artifacts"]

MANIFEST = "manifest.json"


class Artifacts:
    """Writes the files of one build.

    An interruption at any point leaves no half file under a final name, at most one with `.part` after it, and no
    manifest; building again overwrites both. Errors of the operating system (`OSError`) name the file.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._hashes = {}

    def begin(self):
        """Make the folder, and withdraw what an earlier build said of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)

    def write(self, name, text):
        """Write one file and return its path; scripts for the shell become executable."""
        self._hashes[name] = hashlib.sha256(text.encode()).hexdigest()
        return self._write(name, text)

    def _write(self, name, text):
        path = self.folder / name
        part = path.with_name(f"{name}.part")
        try:
            part.write_text(text)
            if name.endswith(".sh"):
                part.chmod(0o755)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from None
        return path

    def add(self, name):
        """Take a file into the manifest that somebody else has written."""
        with (self.folder / name).open("rb") as file:
            self._hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()

    def finish(self, **facts):
        """Write the manifest: `facts`, and the SHA-256 of every file."""
        self._write(
            MANIFEST, json.dumps({**facts, "sha256": dict(sorted(self._hashes.items()))}, indent=2) + "\n"
        )
