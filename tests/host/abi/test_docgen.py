import json
import re
import subprocess
import sys

import pytest

from acceltcp.abi import docgen, messages, registers, wire


def test_committed_pages_are_up_to_date():
    assert docgen.main(["--check"]) == 0, "run python -m acceltcp.abi.docgen"


def test_writes_then_checks(tmp_path, capsys):
    assert docgen.main(["--check", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("out of date") == 4
    assert not list(tmp_path.iterdir())
    assert docgen.main(["--out", str(tmp_path)]) == 0
    assert {p.name for p in tmp_path.iterdir()} == set(docgen.pages())
    assert docgen.main(["--check", "--out", str(tmp_path)]) == 0
    page = tmp_path / "wire.md"
    page.write_text(page.read_text() + "edited by hand\n")
    assert docgen.main(["--check", "--out", str(tmp_path)]) == 1


def test_runs_as_a_command():
    result = subprocess.run(
        [sys.executable, "-m", "acceltcp.abi.docgen", "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_everything_is_mentioned():
    pages = docgen.pages()
    for block in registers.BLOCKS:
        for register in block.registers:
            assert f"**{register.name}**" in pages["registers.md"]
    for counter in registers.COUNTERS:
        assert f"`{counter.name}`" in pages["registers.md"]
    for message in messages.MESSAGES:
        for field in message.fields:
            assert f"`{field.name}`" in pages["messages.md"]
    for header in wire.HEADERS:
        assert f"## {header.name}\n" in pages["wire.md"]


def test_texts_of_enumeration_members_are_found():
    page = docgen.pages()["messages.md"]
    assert "| 1 | `NEW` | First segment of a connection" in page
    assert "| 0 | `EVENT` | Write a `TX_DONE` event" in page


@pytest.mark.parametrize("name", [name for name in docgen.pages() if name.endswith(".md")])
def test_tables_are_whole(name):
    """Every row of a table has as many cells as its head."""
    width = None
    for line in docgen.pages()[name].splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        assert width in (None, cells), line
        width = cells


def test_json_has_the_hash_and_the_map():
    plain = json.loads(docgen.pages()["registers.json"])
    assert plain.pop("map_hash") == registers.map_hash()
    assert plain == registers.register_map()
