"""Messages of exceptions that other libraries raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def error_message(error: BaseException) -> str:
    """Return the message of an exception, or the name of its type if it has none."""
    return str(error) or type(error).__name__


@contextmanager
def rust_panics_as_errors() -> Iterator[None]:
    """Turn a panic of a library in Rust into a `ValueError`; it is not an `Exception` by itself.

    Raises:
        ValueError: If there is a panic, as tokenizers has on some damaged files.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # each library has a class of its own
            raise
        raise ValueError(error_message(error)) from None
