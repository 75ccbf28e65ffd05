"""The kernel's side of a simulated NIC's TAP device: bring it up and give it addresses.

The simulator makes the TAP device; the address on it belongs to the machine's own
configuration, so this runs `ip`, and when that is not permitted says what to type.
"""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
from collections.abc import Iterable

from acceltcp.host.transport import split_spec

__all__ = ["check_address", "configure", "peer_addresses", "set_up", "tap_commands", "tap_name"]


def tap_name(spec: str) -> str | None:
    """The TAP device of a `sim:` specification, if it has one."""
    scheme, _, options = split_spec(spec)
    return options.get("tap") or None if scheme == "sim" else None


def check_address(text: str) -> None:
    """Raise `ValueError` unless this is an address with its prefix, which says what lies behind the TAP device."""
    interface = ipaddress.ip_interface(text)
    if "/" not in text:
        raise ValueError(f"an address of the TAP device needs a prefix, like {interface.ip}/{24 if interface.version == 4 else 64}, not {text}")


def peer_addresses(ours: Iterable[str]) -> list[str]:
    """For each of the NIC's addresses one for the kernel in the same network: the first that is free."""
    found: list[str] = []
    interfaces = list(dict.fromkeys(map(ipaddress.ip_interface, ours)))
    taken = {interface.ip for interface in interfaces}
    for interface in interfaces:
        network = interface.network
        for offset in range(1, 4):
            if offset >= network.num_addresses:
                break
            candidate = network[offset]
            if candidate not in taken:
                taken.add(candidate)
                found.append(f"{candidate}/{network.prefixlen}")
                break
    return found


def tap_commands(tap: str, addresses: Iterable[str]) -> list[list[str]]:
    """What to run so that the kernel can talk through the TAP device."""
    commands = [["ip", "link", "set", tap, "up"]]
    for address in addresses:
        nodad = ["nodad"] if ":" in address else []
        commands.append(["ip", "addr", "replace", address, "dev", tap, *nodad])
    return commands


def configure(tap: str, addresses: Iterable[str]) -> tuple[bool, str]:
    """Run the commands; whether all worked, and what `ip` said otherwise."""
    if shutil.which("ip") is None:
        return False, "there is no command 'ip' (package iproute2)"
    for command in tap_commands(tap, addresses):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return False, done.stderr.strip() or f"{' '.join(command)} failed"
    return True, ""


def set_up(spec: str, ours: Iterable[str], wanted: list[str] | None) -> tuple[str, list[str], str] | None:
    """Set up the kernel's side for a device: its TAP, the addresses it gets, and why that failed ("": it did not).

    ours: the NIC's addresses. wanted: of the kernel's side; None: one next to each of the NIC's; ["none"]: nothing is done.
    None when there is nothing to do.
    """
    tap = tap_name(spec)
    if tap is None or wanted == ["none"]:
        return None
    peers = wanted or peer_addresses(ours)
    _, reason = configure(tap, peers)
    return tap, peers, reason
