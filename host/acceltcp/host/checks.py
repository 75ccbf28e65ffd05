"""Checks of what users give: each raises a `ValueError` that names the argument, what was expected and what came.

A value of the wrong type is refused in the same way: a caller has one kind of error to expect.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

__all__ = [
    "IPAddress", "check_flag", "check_integer", "check_is", "check_names", "check_number", "check_texts", "parse_address",
]  # fmt: skip

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_flag(name: str, value: object) -> None:
    """`value` must be True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}")


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """`value` must be an integer from `low` to `high`, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer from {low} to {high}, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value!r}")


def check_number(name: str, value: object, low: float, high: float, unit: str = "seconds") -> None:
    """`value` must be a number from `low` to `high`, and no bool."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number from {low} to {high} {unit}, not {value!r}")
    if not low <= value <= high:  # not a number is not between them
        raise ValueError(f"{name} must be from {low} to {high} {unit}, not {value!r}")


def check_is(name: str, value: object, kind: type) -> None:
    """`value` must be an instance of a class."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, not {value!r}")


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `TypeError`, as Python does for arguments that do not exist, unless all names are known ones."""
    names = sorted(known)
    for name in given:
        if name not in names:
            raise TypeError(f"{what} has no option {name!r}, only {', '.join(names)}")


def check_texts(name: str, value: object, example: str) -> None:
    """`value` must be several texts, and not one."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of texts like [{example!r}], not {value!r}")


def parse_address(name: str, value: object) -> IPAddress:
    """The address that a text or an address is. A zone ("%eth0") names an interface of the kernel: there is none here."""
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        address = value
    else:
        try:
            if not isinstance(value, str):
                raise ValueError
            address = ipaddress.ip_address(value)
        except ValueError:
            raise ValueError(f"{name} must be an IP address like '10.0.0.2' or 'fd00::2', not {value!r}") from None
    if address.version == 6 and address.scope_id is not None:
        raise ValueError(f"{name} must be an address without a zone, as the NIC has one link only, not {str(value)!r}")
    return address
