"""The guest's image: kept, checked, made anew; and why it cannot be made. What is in it, the system tests use."""

import errno
import json
import os
import signal
import threading
import time

import pytest

from sim.cache import BuildError
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


@pytest.fixture
def mmdebstrap(monkeypatch, tmp_path):
    """A script in its place."""

    def put(script):
        path = tmp_path / "bin" / "mmdebstrap"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(image.shutil, "which", lambda _: str(path))
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")

    return put


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo E: Failed to fetch: Temporary failure resolving >&2; exit 1", "cannot be had from http.*mmdebstrap failed.*: E: Failed to fetch: Temp"),
        ("exit 25", "mmdebstrap failed, making the guest's image: status 25"),
        ("exec sleep 30", r"mmdebstrap did not end within 0\.2 s"),
    ],
)
def test_no_packages(mmdebstrap, monkeypatch, tmp_path, script, message):
    monkeypatch.setattr(image, "_FETCH_S", 0.2 if "sleep" in script else 20)
    mmdebstrap(script)
    with pytest.raises(PackagesError, match=message):
        image._unpack(tmp_path / "tree", ("bash",))


def test_a_program_that_cannot_be_run(tmp_path):
    with pytest.raises(BuildError, match=r"^depmod cannot be run: No such file or directory$"):
        image._run([str(tmp_path / "none")], {}, "depmod")


def test_called_off(mmdebstrap, tmp_path):
    """mmdebstrap has a folder elsewhere, which it removes when it is asked to end, but not when it is killed."""
    elsewhere = tmp_path / "elsewhere"
    mmdebstrap(f"trap 'rmdir {elsewhere}; exit 1' TERM; mkdir {elsewhere}; while :; do sleep 0.05; done")

    def call_off(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, call_off)
    waiter = threading.Thread(target=lambda: (wait_for(elsewhere), os.kill(os.getpid(), signal.SIGALRM)))
    waiter.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            image._unpack(tmp_path / "tree", ("bash",))
    finally:
        waiter.join()
        signal.signal(signal.SIGALRM, old)
    assert not elsewhere.exists()


def wait_for(path):
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_cache_that_cannot_be_written(built, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACCELTCP_CACHE", str(tmp_path / "file"))
    with pytest.raises(BuildError, match=r"the guest's image cannot be made in .*/file/guest: Not a directory"):
        guest_image()
    assert built == []


def test_a_full_disk(built, monkeypatch, tmp_path):
    def fail(target, tell):
        target.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(image, "_build", fail)
    with pytest.raises(BuildError, match=r"^the guest's image cannot be made in .*/guest: No space left on device$"):
        guest_image()
    assert [path.name for path in (tmp_path / "guest").iterdir() if path.is_dir()] == []


def test_damage_that_two_see_is_mended_once(built, monkeypatch):
    """What the first has made anew must not be thrown away by the second."""
    found = guest_image()
    found.root.write_bytes(b"toor")
    whole, checks = image._whole, []

    def look(target):
        checks.append(target)
        if len(checks) == 1:  # meanwhile, another process
            monkeypatch.setattr(image, "_whole", whole)
            guest_image()
            return False
        return whole(target)

    monkeypatch.setattr(image, "_whole", look)
    assert guest_image().root.read_bytes() == b"root"
    assert len(built) == 2
