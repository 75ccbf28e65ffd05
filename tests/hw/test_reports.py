import json

import pytest

from hw import build, reports

from .test_report import IMPLEMENTATION, report


@pytest.fixture
def out(tmp_path):
    """Two boards with reports, and one without."""
    for made in (
        report(board="toy_a"),
        report(board="toy_b", lut=24_000, levels=12, implementation=IMPLEMENTATION),
    ):
        folder = tmp_path / made.board
        folder.mkdir()
        (folder / "report.json").write_text(made.to_json())
    (tmp_path / "toy_c").mkdir()
    return tmp_path


def test_all_boards(out, capsys):
    assert reports.main(["--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "30,000 (50.0%)" in text and "24,000 (40.0%)" in text
    assert "NOT MET, -0.120 ns" in text and "toy_c" not in text
    assert "Deepest paths" in text  # each board's own report follows


def test_the_same_by_the_build_command(out, capsys):
    assert reports.main(["--out", str(out)]) == 0
    first = capsys.readouterr().out
    assert build.main(["--report", "--out", str(out)]) == 0
    assert capsys.readouterr().out == first


def test_json(out, capsys):
    assert reports.main(["--out", str(out), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert set(plain) == {"toy_a", "toy_b"} and plain["toy_b"]["total"]["levels"] == 12


def test_difference(out):
    found = reports.compare(reports.load(out / "toy_a"), reports.load(out / "toy_b/report.json"))
    assert found == {"whole core": {"lut_sites": (30_000, 24_000), "levels": (9, 12)}}
    one, two = report(), report()
    two.stages["new"] = two.stages.pop("small")
    assert reports.compare(one, two) == {
        "small": {"lut_sites": (5, 0), "levels": (1, 0)},
        "new": {"lut_sites": (0, 5), "levels": (0, 1)},
    }


def test_difference_by_name_of_board_or_file(out, capsys):
    assert reports.main(["--out", str(out), "--compare", "toy_a", str(out / "toy_b" / "report.json")]) == 0
    text = capsys.readouterr().out
    assert "30,000 -> 24,000 (-6,000)" in text and "9 -> 12 (+3)" in text
    assert build.main(["--compare", "toy_a", "toy_a", "--out", str(out)]) == 0
    assert "toy_a and toy_a: the same figures" in capsys.readouterr().out
    assert reports.main(["--out", str(out), "--compare", "toy_a", "toy_b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole core"]["levels"] == [9, 12]


def test_plot(out, tmp_path, capsys):
    assert reports.main(["--out", str(out), "--plot", str(tmp_path / "pictures" / "area.png")]) == 0
    assert (tmp_path / "pictures/area.png").read_bytes().startswith(b"\x89PNG")
    drawing = (tmp_path / "pictures/area.svg").read_text()
    assert "<svg" in drawing
    assert "area.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "build a board first"),
        (["--compare", "toy_a", "toy_b"], "No such file or directory"),
    ],
)
def test_nothing_there_is_one_line(arguments, message, tmp_path, capsys):
    assert reports.main(["--out", str(tmp_path), *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("text", ["{", '{"board": "x"}', "3"])
def test_a_broken_report_is_named(text, out, capsys):
    (out / "toy_a/report.json").write_text(text)
    assert reports.main(["--out", str(out)]) == 1
    assert f"error: {out}/toy_a/report.json: " in capsys.readouterr().err
