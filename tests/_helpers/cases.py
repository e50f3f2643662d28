"""Many values in one case, where setting up costs more than what is tested."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def each(
    names: str | tuple[str, ...], values: Iterable[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test once for every value, in one case, and report all values that fail.

    Takes the place of `pytest.mark.parametrize` where a value takes milliseconds. The values share
    the case's fixtures.

    Args:
        names: The argument that takes the values, or a tuple of arguments.
        values: One value a run, or a tuple of as many values as there are names.

    Returns:
        A decorator of test functions.

    Example::

        @each("size", [16, 32])
        def test_even(size: int) -> None:
            assert size % 2 == 0
    """
    arguments = (names,) if isinstance(names, str) else names
    rows = [(value,) if isinstance(names, str) else value for value in values]
    assert rows, f"no values of {names}"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            failures: list[BaseException] = []
            for row in rows:
                try:
                    test(**fixtures, **dict(zip(arguments, row, strict=True)))
                except (Exception, pytest.fail.Exception) as error:
                    error.add_note(f"with {names} = {row}")
                    failures.append(error)
            if len(failures) == 1:
                raise failures[0]
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(rows)} values fail", failures)

        signature = inspect.signature(test)
        fixtures = [p for name, p in signature.parameters.items() if name not in arguments]
        assert len(fixtures) == len(signature.parameters) - len(arguments), "no such argument"
        run.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
        return run

    return decorate
