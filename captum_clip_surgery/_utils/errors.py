"""What errors of others say, for the messages of our own."""

from __future__ import annotations


def error_message(error: BaseException) -> str:
    """Its message, or its type where it has none."""
    return str(error) or type(error).__name__
