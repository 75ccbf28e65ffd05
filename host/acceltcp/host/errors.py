"""What can go wrong between host and device."""

from __future__ import annotations

__all__ = ["AbiMismatchError", "CommandRefusedError", "DeviceError", "DeviceLostError", "DeviceTimeoutError"]


class DeviceError(Exception):
    """The device, or the way to it, does not do what it should. The text is a whole sentence."""


class DeviceLostError(DeviceError):
    """The device went away: its process ended or its connection broke."""


class DeviceTimeoutError(DeviceError):
    """The device did not answer within the time it has."""


class AbiMismatchError(DeviceError):
    """The device speaks another version of the contract."""


class CommandRefusedError(DeviceError):
    """A command ended with a status other than OK; it has had no effect."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
