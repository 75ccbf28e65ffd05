"""The configuration file: what is in it, and what is said about what is wrong with it."""

from __future__ import annotations

import pytest

from acceltcp.lb.config import BackendConfig, load, parse

ONE = [{"host": "10.0.0.1", "port": 8080}]


def test_everything(tmp_path):
    file = tmp_path / "lb.toml"
    file.write_text(
        """
        balance = "uri_hash"
        balance_per = "connection"
        backend_keep_alive = false
        splice = true
        splice_min = 100000
        splice_until_close = true
        [listen]
        address = "10.0.0.2"
        port = 8000
        [[backends]]
        host = "10.0.0.1"
        port = 81
        [[backends]]
        host = "web.example"
        port = 82
        weight = 3
        [timeouts]
        connect = 1
        header = 2.5
        response = 3
        idle = 4
        keep_alive = 5
        down = 0
        stop = 6
        [limits]
        header_bytes = 8192
        backend_connections = 10
        pooled_connections = 4
        """
    )
    config = load(file)
    assert config.backends == (BackendConfig("10.0.0.1", 81, 1), BackendConfig("web.example", 82, 3))
    assert (config.listen.address, config.listen.port, config.balance) == ("10.0.0.2", 8000, "uri_hash")
    assert config.balance_per == "connection"
    assert (config.timeouts.header, config.timeouts.down, config.timeouts.stop) == (2.5, 0, 6)
    assert (config.limits.header_bytes, config.limits.backend_connections, config.limits.pooled_connections) == (8192, 10, 4)
    assert (config.splice_min, config.splice_until_close, config.backend_keep_alive) == (100000, True, False)


def test_only_back_ends_are_needed():
    config = parse({"backends": ONE})
    assert config.listen.port == 80 and config.listen.address is None and config.balance == "round_robin" and config.splice
    assert config.balance_per == "request"
    assert parse({"backends": ONE, "limits": {"backend_connections": 5}}).limits.pooled_connections == 5
    assert BackendConfig("fd00::1", 80).name == "[fd00::1]:80"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backends": None}, "backends is missing; expected at least one table [[backends]] with host and port"),
        ({"backends": []}, "backends is []; expected at least one table"),
        ({"backends": [5]}, "backends[0] must be a table like"),
        ({"backends": [{"host": "a"}]}, "backends[0].port is missing; expected something like 8080"),
        ({"backends": [{"port": 1}]}, "backends[0].host is missing; expected something like '10.0.0.1'"),
        ({"backends": [{"host": "a b", "port": 1}]}, "backends[0].host must be an address or a name, like '10.0.0.1'"),
        ({"backends": [{"host": "10.0.0.1:80", "port": 1}]}, "backends[0].host must be an address or a name, like '10.0.0.1' or 'web1.example', not"),
        ({"backends": [{"host": "http://a/", "port": 1}]}, "backends[0].host must be an address or a name"),
        ({"backends": [{"host": "10.0.0.256", "port": 1}]}, "backends[0].host must be an address or a name"),
        ({"backends": [{"host": "[fd00::1]", "port": 1}]}, "backends[0].host must be an address or a name"),
        ({"backends": [{"host": "fe80::1%eth0", "port": 1}]}, "backends[0].host must be an address or a name"),
        ({"backends": [{"host": 10, "port": 1}]}, "backends[0].host must be an address or a name"),
        ({"backends": [{"host": "a", "port": 65536}]}, "backends[0].port must be from 1 to 65535, not 65536"),
        ({"backends": [{"host": "a", "port": "80"}]}, "backends[0].port must be an integer from 1 to 65535, not '80'"),
        ({"backends": [{"host": "a", "port": 1, "weight": 0}]}, "backends[0].weight must be from 1 to 1000, not 0"),
        ({"backends": [{"host": "a", "port": 1, "wieght": 2}]}, "backends[0].wieght = 2: there is no such key; nearest: 'weight'"),
        ({"backends": ONE + ONE}, "backends[1] is 10.0.0.1:8080 again; expected each back end once"),
        ({"backends": [{"host": "fd00::1", "port": 1}, {"host": "FD00:0::1", "port": 1}]}, "backends[1] is [FD00:0::1]:1 again"),
        ({"backends": [{"host": "web.example", "port": 1}, {"host": "Web.example.", "port": 1}]}, "backends[1] is Web.example.:1 again"),
        ({"balance": "round-robin"}, "balance must be one of 'round_robin', 'least_connections', 'uri_hash', not 'round-robin'; nearest: 'round_robin'"),
        ({"balance": 5}, "balance must be one of"),
        ({"balance_per": "conection"}, "balance_per must be one of 'request', 'connection', not 'conection'; nearest: 'connection'"),
        ({"balance_pre": "request"}, "balance_pre = 'request': there is no such key; nearest: 'balance_per'"),
        ({"splice": 1}, "splice must be true or false, not 1"),
        ({"splice_min": 0}, "splice_min must be from 1 to"),
        ({"splice_mim": 5}, "splice_mim = 5: there is no such key; nearest: 'splice_min'"),
        ({"backend": []}, "backend = []: there is no such key; nearest: 'backends'"),
        ({"zzz": 1}, "zzz = 1: there is no such key; known: balance, balance_per, backend_keep_alive"),
        ({"listen": 80}, "listen must be a table like { port = ... }, not 80"),
        ({"listen": {"port": 0}}, "listen.port must be from 1 to 65535, not 0"),
        ({"listen": {"address": "10.0.0"}}, "listen.address must be an IP address like '10.0.0.2'"),
        ({"timeouts": {"conect": 1}}, "timeouts.conect = 1: there is no such key; nearest: 'connect'"),
        ({"timeouts": {"idle": 0}}, "timeouts.idle must be from 0.001 to 86400 seconds, not 0"),
        ({"timeouts": {"idle": float("nan")}}, "timeouts.idle must be from 0.001 to 86400 seconds, not nan"),
        ({"timeouts": {"idle": True}}, "timeouts.idle must be a number"),
        ({"limits": {"header_bytes": 10}}, "limits.header_bytes must be from 256 to"),
        ({"limits": {"backend_connections": 4, "pooled_connections": 5}}, "limits.pooled_connections must be at most limits.backend_connections (4), not 5"),
    ],
)
def test_wrong_values_are_named(change, said):
    with pytest.raises(ValueError) as error:
        parse({"backends": ONE, **change})
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("host", ["fd00::1", "::ffff:10.0.0.1", "a", "web-1.example", "_http.example.", "1.example", "10a"])
def test_hosts(host):
    assert parse({"backends": [{"host": host, "port": 1}]}).backends[0].host == host


def test_the_file_is_named(tmp_path):
    file = tmp_path / "lb.toml"
    for text, said in (
        (b"a = ", f"{file} is no TOML: "), (b"\xff", f"{file} is no TOML: "), (b"a = 1", f"{file}: a = 1: there"),
        (b"a = " + b"[" * 5000, f"{file} is no TOML: "),
    ):  # fmt: skip
        file.write_bytes(text)
        with pytest.raises(ValueError) as error:
            load(file)
        assert str(error.value).startswith(said)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.toml")
    file.write_text("balance = 'uri_hash'")
    with pytest.raises(ValueError, match="backends is missing"):
        load(file)
