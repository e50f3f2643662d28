"""Print the tables of docs/results.md from folders that `clip-surgery evaluate` has written.

    python -m tools.results_tables FOLDER...

Methods and measures can be spread over any number of folders, because all of them together take
hours. Where folders have the same measure of a method, the last one counts; time and memory are
those of the first folder that has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.evaluation._results import (
    ALL_COLUMNS,
    COUNTS,
    Result,
    read_results,
    to_markdown,
)

SPECIFICITY = {
    "text_specificity": "absent",
    "nonsense_specificity": "nonsense",
    "image_specificity": "other images",
}
COLUMNS = {key: title for key, title in ALL_COLUMNS.items() if key not in (*SPECIFICITY, *COUNTS)}


def merge(parts: Sequence[Mapping[str, Result]]) -> dict[str, Result]:
    """Return the results of each method over all parts, in the order of `METHODS`.

    Raises:
        ValueError: If a method is not one of `METHODS`.
    """
    if unknown := {name for part in parts for name in part} - set(METHODS):
        raise ValueError(f"unknown method {min(unknown)!r}; run it under a name in METHODS")
    merged = {}
    for name in METHODS:
        results = [part[name] for part in parts if name in part]
        if results:
            merged[name] = Result(
                {key: value for result in results for key, value in result.measures.items()},
                {key: ends for result in results for key, ends in result.intervals.items()},
                next((r.seconds for r in results if r.seconds is not None), None),
                next((r.peak_bytes for r in results if r.peak_bytes is not None), None),
            )
    return merged


def half_width(results: Mapping[str, Result], measure: str) -> float:
    """Return the largest distance of a measure from an end of its confidence interval."""
    return max(
        abs(end - result.measures[measure])
        for result in results.values()
        if measure in result.intervals
        for end in result.intervals[measure]
    )


def main(
    folders: Annotated[list[Path], typer.Argument(help="Folders with a `results.json` each.")],
) -> None:
    """Print the tables, and how wide the confidence intervals are."""
    results = merge([read_results(folder) for folder in folders])
    print(to_markdown(results, COLUMNS, memory=True), end="\n\n")
    untimed = {
        name: Result(result.measures, result.intervals, None, None)
        for name, result in results.items()
        if "text_specificity" in result.measures
    }
    print(to_markdown(untimed, SPECIFICITY), end="\n\n")
    for key, title in (COLUMNS | SPECIFICITY).items():
        if any(key in result.intervals for result in results.values()):
            print(f"{title}: 95 % intervals within {half_width(results, key):.1f}")


if __name__ == "__main__":
    typer.run(main)
