"""Run a test in a network namespace of its own, where it may make TAP interfaces.

`@isolated` runs the decorated test function in a child pytest under `unshare`: as root with
a network namespace, otherwise with a user namespace too. What the child printed is shown
when it fails. Inside, the function runs as it stands. The child is the first process of a
process namespace, so that nothing that it started outlives it.
"""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["isolated", "unshare_command"]

_INSIDE = "ACCELTCP_TEST_NAMESPACE"
_MARGIN_S = 60
"""The child ends so long before pytest-timeout would end this process, so that its output is seen."""


def unshare_command() -> list[str]:
    """Prefix that runs a command in a new network namespace with the rights to set it up; it
    ends when the caller does, however that ends."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["setpriv", "--pdeathsig", "KILL", "unshare", *rights, "--net", "--pid", "--kill-child"]


def isolated(function: Callable[..., Any]) -> Callable[..., Any]:
    """See the module's docstring. The test must take its parameters by `parametrize`."""

    @functools.wraps(function)
    def wrapper(*args: Any, request: Any, **kwargs: Any) -> None:
        if os.environ.get(_INSIDE):
            function(*args, **kwargs)
            return
        command = [
            *unshare_command(), sys.executable, "-m", "pytest", "-q", "-x", "-s",
            "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "", request.node.nodeid,
        ]  # fmt: skip
        marker = request.node.get_closest_marker("timeout")
        limit = float(marker.args[0] if marker else request.config.getini("timeout")) - _MARGIN_S
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        try:
            child = subprocess.run(
                command,
                cwd=request.config.rootpath,
                env=environment | {_INSIDE: "1"},
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=limit,
            )
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout
            raise AssertionError(
                f"not over after {limit:g} s; in the namespace:\n{(said or '')[-8000:]}"
            ) from None
        assert child.returncode == 0, f"in the namespace:\n{child.stdout[-8000:]}"
        print(child.stdout)

    # pytest passes `request` only to functions that name it.
    signature = inspect.signature(function)
    parameters = [
        *signature.parameters.values(),
        inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY),
    ]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapper
