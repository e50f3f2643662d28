"""Messages of exceptions that other libraries raise."""

from __future__ import annotations


def error_message(error: BaseException) -> str:
    """Return the message of an exception, or the name of its type if it has none."""
    return str(error) or type(error).__name__
