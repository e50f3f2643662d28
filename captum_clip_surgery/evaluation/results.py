"""What methods reached on a data set: kept, read again, and drawn as tables and a chart."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.visualization import bar_figure, save_figure

#: Columns of the short table, and of the long one.
SHORT = {"explanation_iou": "mIoU", "msc": "mSC", "pointing": "pointing"}


LONG = SHORT | {
    "pointing_near": "near",
    "energy": "energy",
    "auroc": "AUROC",
    "average_precision": "AP",
    "pixel_accuracy": "pixel acc.",
    "segmentation_miou": "seg. mIoU",
    "class_iou": "class mIoU",
    "class_accuracy": "class acc.",
    "all_accuracy": "all acc.",
    "mean_ap": "mAP",
    "p_miou": "p-mIoU",
    "pair_iou": "pair IoU",
    "grid_pointing": "grid",
    "insertion": "insertion",
    "deletion": "deletion",
}


@dataclass(frozen=True)
class Result:
    """One method on a data set.

    `measures` in percent (see docs/measures.md), their 95 % confidence `intervals` by bootstrap
    over images, `seconds` an image in the mean, and `peak_bytes`, the most that any image took
    above what was in use (see `ProfileResult`), None where methods share a pass.
    """

    measures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    seconds: float | None
    peak_bytes: int | None

    def cell(self, measure: str, wide: bool = False) -> str:
        """A figure as it stands in a table: "-" where it was not taken, `wide` with its interval.

        Example::

            >>> result = Result({"msc": 53.21}, {"msc": (52.3, 54.1)}, 0.02, None)
            >>> result.cell("msc"), result.cell("msc", wide=True), result.cell("insertion")
            ('+53.2', '+53.2 (52.3 to 54.1)', '-')
        """
        if measure not in self.measures:
            return "-"
        value = f"{self.measures[measure]:{'+' * (measure == 'msc')}.1f}"
        if not wide or measure not in self.intervals:
            return value
        low, high = self.intervals[measure]
        return f"{value} ({low:.1f} to {high:.1f})"


def to_markdown(
    results: Mapping[str, Result],
    columns: Mapping[str, str] = SHORT,
    memory: bool = False,
    wide: bool = False,
) -> str:
    """A table with one row for each method.

    Args:
        results: by method.
        columns: names by measure; those that nobody took are left out.
        memory: whether a column tells the peak.
        wide: whether figures have their intervals.
    """
    taken = {key: name for key, name in columns.items() if _is_taken(results, key)}
    timed = any(result.seconds is not None for result in results.values())
    header = ["method", *taken.values(), *["ms"] * timed, *["MiB"] * (timed and memory)]
    rows = [
        [
            name,
            *(result.cell(key, wide) for key in taken),
            *["-" if result.seconds is None else f"{1000 * result.seconds:.0f}"] * timed,
            *[_mebibytes(result.peak_bytes)] * (timed and memory),
        ]
        for name, result in results.items()
    ]
    return markdown(header, rows)


def _is_taken(results: Mapping[str, Result], measure: str) -> bool:
    return any(measure in result.measures for result in results.values())


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.0f}"


def write(results: Mapping[str, Result], folder: Path, about: Mapping[str, Any]) -> None:
    """Results as `results.json` (with what they are about), `.csv`, `.md` and a chart `.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**about, "methods": {name: asdict(result) for name, result in results.items()}}
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    tables = [
        to_markdown(results, LONG, memory=True),
        "With 95 % confidence intervals:",
        to_markdown(results, LONG, memory=True, wide=True),
    ]
    (folder / "results.md").write_text("\n\n".join(tables) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["method", "measure", "value", "low", "high", "seconds_an_image", "peak_bytes"]
        )
        for name, result in results.items():
            for key, value in result.measures.items():
                low, high = result.intervals.get(key, ("", ""))
                writer.writerow([name, key, value, low, high, result.seconds, result.peak_bytes])
    if any(_is_taken(results, key) for key in LONG):
        save_figure(chart(results), folder / "results.png")


def read(folder: Path) -> dict[str, Result]:
    """The results that `write` left in a folder.

    Raises:
        FileNotFoundError: no `results.json` there.
        ValueError: one that `write` did not make; names it.
    """
    path = folder / "results.json"
    try:
        methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
        return {name: _result(found) for name, found in methods.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} holds no results: {error!r:.200}") from None


def _result(found: Any) -> Result:
    measures, intervals = found["measures"], found["intervals"]
    numbers = [*measures.values(), *(end for pair in intervals.values() for end in pair)]
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise TypeError("a measure is no number")
    return Result(
        measures,
        {key: (low, high) for key, (low, high) in intervals.items()},
        found["seconds"],
        found["peak_bytes"],
    )


def chart(results: Mapping[str, Result]) -> Any:
    """Bars with intervals, a panel for each measure that was taken."""
    return bar_figure(
        {
            title: {
                name: (result.measures[key], result.intervals.get(key))
                for name, result in results.items()
                if key in result.measures
            }
            for key, title in LONG.items()
            if _is_taken(results, key)
        }
    )
