import dataclasses

import pytest

from hw.config import NicConfig
from hw.options import configuration, parser

BASE = NicConfig(width=64, flows=4096, queues=16)


def config(*arguments):
    return configuration(BASE, parser("build", "").parse_args(arguments))


def test_nothing_given_is_the_boards():
    assert config() == BASE


def test_every_parameter_has_a_flag():
    flags = {flag for action in parser("build", "")._actions for flag in action.option_strings}
    assert {"--" + name.replace("_", "-") for name in NicConfig.names()} <= flags


def test_every_parameter_comes_from_a_file(tmp_path):
    # A value other than the default of each.
    values = {
        "width": 8, "axi_bytes": 32, "ports": 2, "queues": 8, "listeners": 32, "flows": 2048, "stash": 8, "ways": 3, "digest": 64, "splices": 64,
        "rx_buffer_beats": 4096, "tx_buffer_beats": 2048, "packets": 256, "descriptors": 64, "read_beats": 1024,
        "writes": 64, "max_frame": 2000, "pipelined_hash": False, "tick_us": 50, "rss": False, "ultra_ram": False,
    }  # fmt: skip
    assert list(values) == NicConfig.names()
    file = tmp_path / "nic.toml"
    file.write_text("".join(f"{name} = {str(value).lower()}\n" for name, value in values.items()))
    assert dataclasses.asdict(config("--config", str(file))) == values


def test_flags_win(tmp_path):
    file = tmp_path / "nic.toml"
    file.write_text("queues = 8\nlisteners = 32\nrss = false\n")
    made = config("--config", str(file), "--queues", "4", "--rss")
    assert (made.queues, made.listeners, made.rss) == (4, 32, True)


def test_what_follows_from_widths_and_flows():
    base = dataclasses.replace(BASE, rx_buffer_beats=512, splices=512)
    made = configuration(base, parser("build", "").parse_args(["--width", "32", "--flows", "1024"]))
    assert made.rx_buffer_beats == (64 << 10) // 32 and made.splices == 256
    made = configuration(base, parser("build", "").parse_args(["--width", "8", "--axi-bytes", "8"]))
    assert (made.axi_bytes, made.read_beats) == (8, (32 << 10) // 8)
    made = configuration(made, parser("build", "").parse_args(["--width", "32"]))
    assert (made.axi_bytes, made.read_beats) == (32, (32 << 10) // 32)


@pytest.mark.parametrize(
    "text, message",
    [
        ("qeues = 4\n", "there is no parameter 'qeues'; did you mean 'queues'?"),
        ("queues = '4'\n", "queues must be a whole number, not '4'"),
        ("queues = true\n", "queues must be a whole number, not True"),
        ("rss = 1\n", "rss must be true or false, not 1"),
        ("queues = \n", "Invalid value (at line 1"),
        ("queues = 3\n", "queues must be a power of two from 1 to 64, not 3"),
        ("[core]\nqueues = 4\n", "there is no parameter 'core'"),
    ],
)
def test_bad_files_are_one_line(text, message, tmp_path):
    file = tmp_path / "nic.toml"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        config("--config", str(file))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"nic\.toml: 'utf-8' codec"):
        config("--config", str(file))
