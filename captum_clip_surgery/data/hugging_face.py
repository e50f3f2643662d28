"""Data sets of Hugging Face, as `datasets` keeps them on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captum_clip_surgery.data.base import (
    Classes,
    DataSet,
    Labels,
    Sample,
    Tags,
    check_layout,
)
from captum_clip_surgery.data.files import check_size
from captum_clip_surgery.data.paired import own_numbers, relabel

HINT = (
    "what Dataset.save_to_disk wrote, with the columns image and either mask (images of class "
    "numbers; classes.txt beside it, a class a line) or labels (lists of a ClassLabel)"
)
VOID = 255


class HuggingFace(DataSet):
    """A saved Hugging Face data set: its column `image`, and `mask` or `labels`.

    Layout::

        root/dataset_info.json, state.json, data-00000-of-00001.arrow   by Dataset.save_to_disk
        root/classes.txt          with masks: a class a line, its names with commas between

    Masks hold the number of the class's line from 0, and 255 where it is not judged; a first class
    "background" is the background. Labels take their names from the column's `ClassLabel`; one
    number (`Value` of a `ClassLabel`) is a list of one. Pictures are converted to RGB as they are
    stored. Columns of other names: `dataset.rename_column(...)` before saving.

    Args:
        root: the folder; of a `DatasetDict` the folder of one split.

    Raises:
        FileNotFoundError: no such folder, or no `classes.txt` with masks.
        ValueError: columns that are missing or of another kind.
        ImportError: no `datasets`.
    """

    def __init__(self, root: Path | str) -> None:
        root = Path(root)
        title = f"Hugging Face data set {root.resolve().name}"
        check_layout(title, root, ["state.json", "dataset_info.json"], HINT)
        self._rows = _load(root)
        kinds = self._rows.features
        if "image" not in kinds or not ("mask" in kinds or "labels" in kinds):
            raise ValueError(f"{title} has the columns {', '.join(kinds)}. Expected: {HINT}")
        self._title = title
        if "mask" in kinds:
            check_layout(title, root, ["classes.txt"], HINT)
            classes = Classes.read(root / "classes.txt")
        else:
            label = getattr(kinds["labels"], "feature", kinds["labels"])
            if not hasattr(label, "names"):
                raise ValueError(f"{title}: labels are {kinds['labels']}. Expected: {HINT}")
            classes = Classes(tuple((name,) for name in label.names), title)
        background = 0 if "mask" in kinds and classes.first[0] == "background" else None
        names = [f"{row:06}" for row in range(len(self._rows))]
        super().__init__(title, classes, names, background)

    def read(self, index: int) -> Sample:
        row = self._rows[index]
        name = self.names[index]
        image = _picture(row["image"], f"{self._title}, row {index}").convert("RGB")
        if "mask" not in row:
            labels = row["labels"] if isinstance(row["labels"], list) else [row["labels"]]
            return Sample(name, image, Tags(frozenset(labels)))
        where = Path(f"{self._title}, mask of row {index}")
        stored = np.asarray(_picture(row["mask"], str(where))).astype(np.int32)
        if stored.ndim != 2:
            raise ValueError(f"{where} holds colours, expected the numbers of classes")
        check_size(image, Path(f"of row {index}"), stored, where)
        table = own_numbers(len(self.classes), VOID)
        return Sample(name, image, Labels(relabel(stored, table, where)))


def _load(root: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Hugging Face data sets need datasets; install the extra: "
            "pip install 'captum_clip_surgery[huggingface]'"
        ) from error
    return datasets.load_from_disk(str(root))  # type: ignore[attr-defined]


def _picture(value: Any, where: str) -> Image.Image:
    if not isinstance(value, Image.Image):
        raise ValueError(
            f"{where} is a {type(value).__name__}, expected an image: cast the column to "
            "datasets.Image()"
        )
    return value
