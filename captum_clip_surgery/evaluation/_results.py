"""Results of an evaluation: tables, files and a chart."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.attr._descriptions import title_of
from captum_clip_surgery.visualization import save_figure
from captum_clip_surgery.visualization._charts import bar_figure

#: Headers of the columns of a table, by measure.
DEFAULT_COLUMNS = {"explanation_iou": "mIoU", "msc": "mSC", "pointing": "pointing"}
#: Headers of all measures.
ALL_COLUMNS = DEFAULT_COLUMNS | {
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
    "text_specificity": "text spec.",
    "nonsense_specificity": "nonsense",
    "image_specificity": "image spec.",
    "n_pairs": "pairs",
    "skipped": "skipped",
}
#: Measures that are counts.
COUNTS = ("n_pairs", "skipped")


@dataclass(frozen=True)
class Result:
    """The results of one method on a data set.

    Attributes:
        measures: Measures in percent, see docs/measures.md.
        intervals: Their 95 % confidence intervals by bootstrap over images.
        seconds: Mean time per image; None if methods share a forward pass.
        peak_bytes: Maximum over images of the memory used at the peak, beyond what was in use
            before; None if methods share a forward pass, or it cannot be measured.
    """

    measures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    seconds: float | None
    peak_bytes: int | None

    def cell(self, measure: str, wide: bool = False) -> str:
        """Return a measure as a cell of a table.

        Args:
            measure: Name of the measure; the cell is "-" if the method does not have it.
            wide: Whether to add the confidence interval.

        Example::

            >>> result = Result({"msc": 53.21}, {"msc": (52.3, 54.1)}, 0.02, None)
            >>> result.cell("msc"), result.cell("msc", wide=True), result.cell("insertion")
            ('+53.2', '+53.2 (52.3 to 54.1)', '-')
        """
        if measure not in self.measures:
            return "-"
        digits = 0 if measure in COUNTS else 1
        value = f"{self.measures[measure]:{'+' * (measure == 'msc')}.{digits}f}"
        if not wide or measure not in self.intervals:
            return value
        low, high = self.intervals[measure]
        return f"{value} ({low:.1f} to {high:.1f})"


def to_markdown(
    results: Mapping[str, Result],
    columns: Mapping[str, str] = DEFAULT_COLUMNS,
    memory: bool = False,
    wide: bool = False,
) -> str:
    """Return a table in Markdown with one row per method.

    Args:
        results: Results by method.
        columns: Headers by measure; measures that no method has are left out.
        memory: Whether to add a column with the peak of memory.
        wide: Whether to add confidence intervals.
    """
    measured = {key: name for key, name in columns.items() if _is_measured(results, key)}
    timed = any(result.seconds is not None for result in results.values())
    header = ["method", *measured.values(), *["ms"] * timed, *["MiB"] * (timed and memory)]
    rows = [
        [
            name,
            *(result.cell(key, wide) for key in measured),
            *["-" if result.seconds is None else f"{1000 * result.seconds:.0f}"] * timed,
            *[_mebibytes(result.peak_bytes)] * (timed and memory),
        ]
        for name, result in results.items()
    ]
    return markdown(header, rows)


def _is_measured(results: Mapping[str, Result], measure: str) -> bool:
    return any(measure in result.measures for result in results.values())


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.0f}"


def write_results(results: Mapping[str, Result], folder: Path, about: Mapping[str, Any]) -> None:
    """Write results as `results.json`, `.csv` and `.md`, and a chart as `.png`.

    Args:
        results: Results by method.
        folder: The folder, which is created if necessary.
        about: Further content of the JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {**about, "methods": {name: asdict(result) for name, result in results.items()}}
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tables = [
        to_markdown(results, ALL_COLUMNS, memory=True),
        "With 95 % confidence intervals:",
        to_markdown(results, ALL_COLUMNS, memory=True, wide=True),
    ]
    (folder / "results.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["method", "measure", "value", "low", "high", "seconds_an_image", "peak_bytes"]
        )
        for name, result in results.items():
            for key, value in result.measures.items():
                low, high = result.intervals.get(key, ("", ""))
                writer.writerow([name, key, value, low, high, result.seconds, result.peak_bytes])
    if any(_is_measured(results, key) for key in ALL_COLUMNS if key not in COUNTS):
        save_figure(chart(results), folder / "results.png")


def write_details(
    measures: Mapping[tuple[str, str, str], Mapping[str, float]], path: Path, kind: str
) -> None:
    """Write measures of classes or images as a CSV file.

    Args:
        measures: Measures by task, method, and class or image.
        path: The file.
        kind: Header of the third column, such as "class".
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "method", kind, "measure", "value"])
        for key, values in measures.items():
            writer.writerows([*key, name, value] for name, value in values.items())


def read_results(folder: Path) -> dict[str, Result]:
    """Read the results that `write` wrote.

    Raises:
        FileNotFoundError: If there is no `results.json` in the folder.
        ValueError: If it is malformed.
    """
    path = folder / "results.json"
    try:
        methods = json.loads(path.read_text(encoding="utf-8"))["methods"]
        return {name: _result(fields) for name, fields in methods.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} holds no results: {error!r:.200}") from None


def _result(fields: Any) -> Result:
    measures, intervals = fields["measures"], fields["intervals"]
    numbers = [*measures.values(), *(end for pair in intervals.values() for end in pair)]
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise TypeError("a measure is not a number")
    return Result(
        measures,
        {key: (low, high) for key, (low, high) in intervals.items()},
        fields["seconds"],
        fields["peak_bytes"],
    )


def chart(results: Mapping[str, Result]) -> Any:
    """Draw a panel of bars with confidence intervals for each measure."""
    return bar_figure(
        {
            title: {
                title_of(name): (result.measures[key], result.intervals.get(key))
                for name, result in results.items()
                if key in result.measures
            }
            for key, title in ALL_COLUMNS.items()
            if key not in COUNTS and _is_measured(results, key)
        }
    )
