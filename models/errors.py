"""What goes wrong, and whose fault it is."""

from __future__ import annotations


class CertiformerError(Exception):
    """Every error this package raises on purpose."""


class InputError(CertiformerError, ValueError):
    """The caller's input is wrong: the message names the value, the cause and the remedy."""


class InternalError(CertiformerError, AssertionError):
    """A bug of ours; please report it with the message."""
