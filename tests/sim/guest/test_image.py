"""The guest's image: kept, checked, made anew; and why it cannot be made. What is in it, the system tests use."""

import json
import subprocess

import pytest

from sim.guest import image
from sim.guest.image import PackagesError, guest_image


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Builds that take no time; the list grows with each."""
    monkeypatch.setenv("ACCELTCP_CACHE", str(tmp_path))
    builds = []

    def build(target, tell):
        target.mkdir()
        (target / "vmlinuz").write_bytes(b"kernel")
        (target / "root.cpio").write_bytes(b"root")
        files = {name: image._checksum(target / name) for name in ("vmlinuz", "root.cpio")}
        (target / "manifest.json").write_text(json.dumps({"packages": {"bash": "1:5.2"}, "files": files}))
        builds.append(target)

    monkeypatch.setattr(image, "_build", build)
    return builds


def test_built_once(built):
    first, second = guest_image(), guest_image()
    assert first == second and len(built) == 1
    assert first.kernel.read_bytes() == b"kernel" and first.packages == {"bash": "1:5.2"}


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest"])
def test_damaged(built, damage):
    found, said = guest_image(), []
    if damage == "changed":
        found.root.write_bytes(b"toor")
    elif damage == "missing":
        found.kernel.unlink()
    else:
        (found.folder / "manifest.json").write_text("{")
    again = guest_image(said.append)
    assert len(built) == 2 and again.root.read_bytes() == b"root"
    assert said == ["the guest's image is damaged: making it anew"]


def test_another_recipe_is_another_image(built, monkeypatch, tmp_path):
    first = guest_image()
    init = tmp_path / "init"
    init.write_text("#!/bin/true\n")
    monkeypatch.setattr(image, "_INIT", init)
    assert guest_image().folder != first.folder and len(built) == 2


def test_a_build_that_fails_leaves_nothing(built, monkeypatch, tmp_path):
    def fail(target, tell):
        target.mkdir()
        (target / "vmlinuz").touch()
        raise image.BuildError("cpio failed")

    monkeypatch.setattr(image, "_build", fail)
    with pytest.raises(image.BuildError, match="cpio failed"):
        guest_image()
    assert [path for path in (tmp_path / "guest").iterdir() if path.is_dir()] == []


def test_no_mmdebstrap(monkeypatch, tmp_path):
    monkeypatch.setattr(image.shutil, "which", lambda _: None)
    with pytest.raises(PackagesError, match="mmdebstrap is needed to make the guest's image: apt-get install mmdebstrap"):
        image._unpack(tmp_path / "tree", ("bash",))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (subprocess.CompletedProcess([], 1, "", "E: Failed to fetch: Temporary failure resolving"), "cannot be had from http.*Temporary failure"),
        (subprocess.TimeoutExpired("mmdebstrap", 9), "mmdebstrap did not end within"),
        (PermissionError(13, "Permission denied"), "mmdebstrap cannot be run: Permission denied"),
    ],
)
def test_no_packages(monkeypatch, tmp_path, answer, message):
    def run(*_, **__):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(image.shutil, "which", lambda _: "/usr/bin/mmdebstrap")
    monkeypatch.setattr(image.subprocess, "run", run)
    with pytest.raises(PackagesError, match=message):
        image._unpack(tmp_path / "tree", ("bash",))
