import errno
import hashlib
import json
from pathlib import Path

import pytest

from hw.artifacts import Artifacts


def test_files_and_their_manifest(tmp_path):
    artifacts = Artifacts(tmp_path / "deep" / "out")
    artifacts.begin()
    assert artifacts.write("a.v", "module a;") == tmp_path / "deep/out/a.v"
    artifacts.write("build.sh", "#!/bin/sh\n")
    (artifacts.folder / "a.bit").write_bytes(b"\x00\xff")
    artifacts.add("a.bit")
    artifacts.finish(board="toy")
    manifest = json.loads((artifacts.folder / "manifest.json").read_text())
    assert manifest["board"] == "toy"
    assert manifest["sha256"]["a.bit"] == hashlib.sha256(b"\x00\xff").hexdigest()
    assert list(manifest["sha256"]) == ["a.bit", "a.v", "build.sh"]
    assert (artifacts.folder / "build.sh").stat().st_mode & 0o111
    assert not list(artifacts.folder.glob("*.part"))


def test_a_new_build_withdraws_the_manifest(tmp_path):
    artifacts = Artifacts(tmp_path)
    artifacts.finish()
    Artifacts(tmp_path).begin()
    assert not (tmp_path / "manifest.json").exists()


def test_a_full_disk_leaves_the_former_file_and_no_part(tmp_path, monkeypatch):
    artifacts = Artifacts(tmp_path)
    artifacts.write("a.v", "old")
    real = Path.write_text

    def full(self, text, *args, **kwargs):
        real(self, text[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError) as caught:
        artifacts.write("a.v", "new and longer")
    assert caught.value.filename == str(tmp_path / "a.v") and caught.value.errno == errno.ENOSPC
    assert (tmp_path / "a.v").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.v"]


def test_an_interrupt_leaves_no_file_under_its_name(tmp_path, monkeypatch):
    def interrupted(self, text, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Artifacts(tmp_path).write("a.v", "text")
    assert not list(tmp_path.iterdir())
