"""The HTTP server, without a NIC under it: what odd requests get."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from acceltcp.apps.http import HttpServer


class Client:
    """A connection on which all requests have come already."""

    def __init__(self, data: bytes) -> None:
        self._left = data
        self.sent = b""

    async def readuntil(self, separator: bytes, *, limit: int) -> bytes:
        head, found, self._left = self._left.partition(separator)
        if not found:
            raise asyncio.IncompleteReadError(head, None)
        return head + found

    def write(self, data: bytes) -> None:
        self.sent += data

    async def drain(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path):
    served = tmp_path / "www"
    (served / "sub").mkdir(parents=True)
    (served / "file.txt").write_text("inside")
    (tmp_path / "secret").write_text("outside")
    (served / "link").symlink_to(tmp_path / "secret")
    (served / "sub" / "index.html").symlink_to(tmp_path / "secret")
    return served


def fetch(folder: Path, target: bytes, fields: bytes = b"") -> bytes:
    client = Client(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + fields + b"\r\n")
    asyncio.run(HttpServer(folder).handle(client))  # type: ignore[arg-type]
    return client.sent


@pytest.mark.parametrize(
    "target",
    [b"/../secret", b"/%2e%2e/secret", b"/..%2fsecret", b"/link", b"/%00", b"/file.txt/", b"http://x/../secret"],
)
def test_nothing_outside_the_folder(folder, target):
    assert fetch(folder, target).startswith(b"HTTP/1.1 404 ")


def test_an_index_that_leads_outside_is_not_served(folder):
    answer = fetch(folder, b"/sub/")
    assert answer.startswith(b"HTTP/1.1 200 ") and b"Index of /sub/" in answer and b"outside" not in answer


@pytest.mark.parametrize("target", [b"/sub", b"//sub", b"///sub"])
def test_redirect_stays_on_this_host(folder, target):
    answer = fetch(folder, target)
    assert answer.startswith(b"HTTP/1.1 301 ") and b"\r\nLocation: /sub/\r\n" in answer


def test_a_target_that_is_no_uri(folder):
    assert fetch(folder, b"http://[::1/file.txt").startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("fields", [b"Host: y\r\n", b"Content-Length: 5\r\nContent-Length: 0\r\n"])
def test_ambiguous_fields_are_refused(folder, fields):
    assert fetch(folder, b"/file.txt", fields).startswith(b"HTTP/1.1 400 ")


def test_names_that_are_not_unicode(folder):
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_text("")
    assert b'href="./%FF"' in fetch(folder, b"/")
