"""A small UNIX socket next to a device that is in use, to ask its user for readings.

The program that drives a NIC serves it (`ControlServer`), `acceltcp stats` and `acceltcp info`
ask (`ask`). One request and one reply, each a line of JSON. The path follows from the device's
specification; the folder belongs to the user alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import DeviceError
from .vfio.sysfs import parse_bdf

__all__ = ["ControlServer", "ask", "check_unused", "control_path"]


def control_path(spec: str) -> Path:
    """Where the user of that device answers, unless told otherwise. A simulated NIC is known by its TAP interfaces, whatever
    else is said about it, and by the network namespace that they are in: ours. A card is known by its place, however that is written.

    Raises `DeviceError` when the folder for it belongs to somebody else.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) / "acceltcp" if runtime else Path("/tmp") / f"acceltcp-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise DeviceError(f"The folder {folder} must belong to you alone.")
    return folder / f"{hashlib.sha256(_name(spec).encode()).hexdigest()[:16]}.sock"


def _name(spec: str) -> str:
    if spec.startswith("vfio:"):
        return f"vfio:{parse_bdf(spec.removeprefix('vfio:'))}"
    kind, _, options = spec.partition("?")
    taps = [option for option in options.split("&") if option.startswith("tap=")]
    if kind != "sim:" or not taps:
        return spec
    return f"{kind}?{'&'.join(taps)} {os.stat('/proc/self/ns/net').st_ino}"


def check_unused(path: Path) -> None:
    """Raise `DeviceError` when a program answers there."""
    if ask(path, "ping") is not None:
        raise DeviceError(f"Another program uses this device already (it answers at {path}).")


class ControlServer:
    """Answers requests by name with what the given functions return or, being coroutines, end with. Use in `async with`."""

    def __init__(self, path: Path, readings: dict[str, Callable[[], Any]]) -> None:
        self.path = path
        self._readings = readings
        self._server: asyncio.AbstractServer | None = None

    async def __aenter__(self) -> ControlServer:
        check_unused(self.path)
        self.path.unlink(missing_ok=True)
        # Bound under another name first, so that whoever sees the path can connect.
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path=fresh)
        fresh.chmod(0o600)
        fresh.rename(self.path)
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._server is not None:
            self._server.close()
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            line = await asyncio.wait_for(reader.readline(), 5)
            name = line.decode(errors="replace").strip()
            reading = self._readings.get(name)
            try:
                answer: dict[str, Any] = {"answer": {}} if name == "ping" else {"error": f"nothing is known of {name!r}"}
                if reading is not None:
                    value = reading()
                    answer = {"answer": await value if inspect.isawaitable(value) else value}
            except DeviceError as error:
                answer = {"error": str(error)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


def ask(path: Path, request: str, timeout: float = 5.0) -> dict[str, Any] | None:
    """The reply from the program behind `path`; None when nobody is there.

    Raises `DeviceError` when it answers with an error, or not within `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(timeout)
        try:
            link.connect(str(path))
        except OSError:
            return None
        try:
            link.sendall(request.encode() + b"\n")
            data = b""
            while not data.endswith(b"\n") and (part := link.recv(65536)):
                data += part
            reply = json.loads(data)
        except TimeoutError:
            raise DeviceError(f"The program that uses the device (at {path}) has not answered within {timeout:g} s.") from None
        except (OSError, ValueError):
            reply = None
    if not isinstance(reply, dict):
        raise DeviceError(f"The program that uses the device (at {path}) gave no answer; perhaps it is ending.")
    if "error" in reply:
        raise DeviceError(str(reply["error"]))
    return reply.get("answer", {})
