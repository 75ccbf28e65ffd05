"""Configuration of the load balancer: a TOML file, checked key by key.

Everything that is wrong is a `ValueError` that names the key, what was expected and what was found; for a key that does
not exist the nearest one that does.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from acceltcp.host.checks import check_flag, check_integer, check_number, parse_address

__all__ = ["BALANCES", "PERS", "BackendConfig", "Config", "Limits", "Listen", "Timeouts", "load", "parse"]

BALANCES = ("round_robin", "least_connections", "uri_hash")
PERS = ("request", "connection")
_SECONDS_MOST = 86400


@dataclass(frozen=True)
class Listen:
    """Where clients connect. address: None is every address of the NIC."""

    port: int = 80
    address: str | None = None


@dataclass(frozen=True)
class BackendConfig:
    """A back end. weight: its share of the requests, in proportion to the others'."""

    host: str
    port: int
    weight: int = 1

    @property
    def name(self) -> str:
        """As logs and statistics call it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Timeouts:
    """In seconds."""

    connect: float = 3.0
    """For a back end to take a connection."""
    header: float = 10.0
    """For a client to send a whole head, from its first byte on."""
    response: float = 60.0
    """For a back end to begin its answer, once it has the whole request."""
    idle: float = 60.0
    """Without a byte in mid-body; in a tunnel, of either side."""
    keep_alive: float = 60.0
    """A connection may wait so long for its next request, a client's and a back end's."""
    down: float = 5.0
    """A back end that took no connection is tried last for so long."""
    stop: float = 5.0
    """For running requests when the balancer is told to end."""


@dataclass(frozen=True)
class Limits:
    """What may be used at most."""

    header_bytes: int = 16384
    """Of a head, and of the trailer fields of a chunked body."""
    backend_connections: int = 256
    """To each back end at once, those in the pool included."""
    pooled_connections: int = 32
    """To each back end that wait for a request."""
    min_rate: int = 1024
    """Bytes per second of a spliced body, over all of it; 0: any. A client that answers without taking anything is not idle."""


@dataclass(frozen=True)
class Config:
    """Everything."""

    backends: tuple[BackendConfig, ...]
    listen: Listen = field(default_factory=Listen)
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    balance: str = "round_robin"
    balance_per: str = "request"
    """What a back end is chosen for. A "connection" is given to it with the first request, and read no more."""
    backend_keep_alive: bool = True
    """Connections to back ends are used again."""
    splice: bool = True
    """The NIC may forward bodies."""
    splice_min: int = 65536
    """Shortest body, in bytes, for which it is asked to."""
    splice_until_close: bool = False
    """It may also forward bodies that end with the connection; what the client sends meanwhile then reaches the back end unread."""


_Check = Callable[[str, object], None]


def _integer(low: int, high: int) -> _Check:
    return lambda name, value: check_integer(name, value, low, high)


def _seconds(low: float) -> _Check:
    return lambda name, value: check_number(name, value, low, _SECONDS_MOST)


def _flag(name: str, value: object) -> None:
    try:
        check_flag(name, value)
    except ValueError:
        raise ValueError(f"{name} must be true or false, not {value!r}") from None


def _address(name: str, value: object) -> None:
    parse_address(name, value)


_NAME = re.compile(r"(?:[-\w]+\.)*[-\w]*[A-Za-z_][-\w]*\.?", re.ASCII)
"""A name of a host: the last label has a letter, or it would be half an address."""


def _canonical(host: str) -> str:
    """The same text for all spellings of a host. Raises `ValueError` for what is none."""
    if _NAME.fullmatch(host):
        return host.lower().rstrip(".")
    return str(parse_address("host", host))


def _host(name: str, value: object) -> None:
    try:
        if not isinstance(value, str):
            raise ValueError
        _canonical(value)
    except ValueError:
        raise ValueError(f"{name} must be an address or a name, like '10.0.0.1' or 'web1.example', not {value!r}") from None


def _one_of(names: tuple[str, ...]) -> _Check:
    def check(name: str, value: object) -> None:
        if not isinstance(value, str) or value not in names:
            near = difflib.get_close_matches(str(value), names, 1)
            raise ValueError(
                f"{name} must be one of {', '.join(map(repr, names))}, not {value!r}" + (f"; nearest: {near[0]!r}" if near else "")
            )

    return check


_LISTEN: dict[str, _Check] = {"port": _integer(1, 65535), "address": _address}
_BACKEND: dict[str, _Check] = {"host": _host, "port": _integer(1, 65535), "weight": _integer(1, 1000)}
_TIMEOUTS: dict[str, _Check] = {
    **dict.fromkeys(("connect", "header", "response", "idle", "keep_alive"), _seconds(0.001)),
    **dict.fromkeys(("down", "stop"), _seconds(0)),
}
_LIMITS: dict[str, _Check] = {
    "header_bytes": _integer(256, 1 << 20), "backend_connections": _integer(1, 1 << 16), "pooled_connections": _integer(0, 1 << 16),
    "min_rate": _integer(0, 1 << 40),
}  # fmt: skip
_TOP: dict[str, _Check] = {
    "balance": _one_of(BALANCES), "balance_per": _one_of(PERS), "backend_keep_alive": _flag, "splice": _flag,
    "splice_min": _integer(1, 1 << 62), "splice_until_close": _flag,
}  # fmt: skip
_TABLES = ("listen", "timeouts", "limits", "backends")


def load(path: Path | str) -> Config:
    """The configuration that a file has. Errors name the file."""
    try:
        with Path(path).open("rb") as file:
            document = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    try:
        return parse(document)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse(document: Mapping[str, Any]) -> Config:
    """The configuration that a TOML document means."""
    top = {name: value for name, value in document.items() if name not in _TABLES}
    values = _checked("", top, _TOP, also=_TABLES)
    backends = document.get("backends")
    if not isinstance(backends, list) or not backends:
        what = "is missing" if backends is None else f"is {backends!r}"
        raise ValueError(f"backends {what}; expected at least one table [[backends]] with host and port")
    found: list[BackendConfig] = []
    for number, table in enumerate(backends):
        where = f"backends[{number}]"
        _table(where, table, "host = \"10.0.0.1\", port = 8080")
        given = _checked(f"{where}.", table, _BACKEND)
        for name, example in (("host", "'10.0.0.1'"), ("port", "8080")):
            if name not in given:
                raise ValueError(f"{where}.{name} is missing; expected something like {example}")
        backend = BackendConfig(**given)
        if (_canonical(backend.host), backend.port) in [(_canonical(other.host), other.port) for other in found]:
            raise ValueError(f"{where} is {backend.name} again; expected each back end once (weight gives it more)")
        found.append(backend)
    parts: dict[str, Any] = {}
    for name, kind, checks in (("listen", Listen, _LISTEN), ("timeouts", Timeouts, _TIMEOUTS), ("limits", Limits, _LIMITS)):
        table = document.get(name, {})
        _table(name, table, f"{next(iter(checks))} = ...")
        parts[name] = kind(**_checked(f"{name}.", table, checks))
    limits: Limits = parts["limits"]
    if limits.pooled_connections > limits.backend_connections:
        if "pooled_connections" in document.get("limits", {}):
            raise ValueError(
                f"limits.pooled_connections must be at most limits.backend_connections ({limits.backend_connections}), "
                f"not {limits.pooled_connections}"
            )
        parts["limits"] = replace(limits, pooled_connections=limits.backend_connections)
    return Config(backends=tuple(found), **parts, **values)


def _table(where: str, value: object, example: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a table like {{ {example} }}, not {value!r}")


def _checked(where: str, given: Mapping[str, Any], checks: Mapping[str, _Check], also: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a table, each checked."""
    for name, value in given.items():
        if name not in checks:
            known = [*checks, *also]
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"nearest: {near[0]!r}" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{where}{name} = {value!r}: there is no such key; {hint}")
        checks[name](f"{where}{name}", value)
    return dict(given)
