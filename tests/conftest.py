"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Tests interrupt what they started with SIGINT. Whoever was started in the background of a shell ignores it, and so would they."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
