"""A process of a benchmark that serves with a NIC, and is measured: its command line, its NIC, and the commands that it answers, a line
of JSON on standard input each."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import acceltcp.host
from acceltcp.host import Nic
from acceltcp.host.tcp import TcpSettings

from .host_configs import Config

__all__ = ["answer", "open_nic", "server_arguments"]

_TIME_WAIT_S = 0.25
"""TIME_WAIT in the host or the NIC: short, so that a round ends soon; no tuple is used twice within one."""


async def answer(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Say that all is ready, then answer commands until standard input ends; a command may be a coroutine function."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({}), flush=True)
    while line := await reader.readline():
        command = json.loads(line)
        result = commands[command.pop("do")](**command)
        print(json.dumps(await result if inspect.isawaitable(result) else result), flush=True)


def server_arguments(prog: str) -> argparse.ArgumentParser:
    """The command line of a process that serves with a NIC."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--device", required=True)
    parser.add_argument("--mac")
    parser.add_argument("--address", action="append", required=True)
    parser.add_argument("--interval", type=int, default=0, help="ticks between two interrupts")
    parser.add_argument("--config", required=True, help="JSON of a `Config`")
    return parser


def open_nic(arguments: argparse.Namespace, switches: Config) -> Nic:
    """The NIC of that command line, with the offloads of the configuration."""
    settings = TcpSettings(time_wait=_TIME_WAIT_S, linger=_TIME_WAIT_S, **switches.tcp)
    return acceltcp.host.open(
        arguments.device, arguments.address, mac=arguments.mac, tcp=settings, queue={"interval": arguments.interval},
        setup=switches.setup, teardown=switches.teardown,
    )  # fmt: skip
