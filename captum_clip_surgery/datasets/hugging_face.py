"""Data sets of Hugging Face, as `datasets` keeps them on disk."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captum_clip_surgery._utils.errors import error_message
from captum_clip_surgery.datasets.base import Classes, DataSet, Labels, Sample, Tags, check_layout
from captum_clip_surgery.datasets.files import check_size, read_json
from captum_clip_surgery.datasets.paired import own_numbers, relabel
from captum_clip_surgery.preprocessing import open_image, upright

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
    number (`Value` of a `ClassLabel`) is a list of one. Pictures are turned as EXIF
    notes and converted to RGB; they must be stored in the rows, for paths are not followed. Columns
    of other names: `dataset.rename_column(...)` before saving.

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
        rows = _load(root)
        kinds = rows.features
        truth = "mask" if "mask" in kinds else "labels"
        if "image" not in kinds or truth not in kinds:
            raise ValueError(f"{title} has the columns {', '.join(kinds):.200}. Expected: {HINT}")
        pictures = ["image", "mask"] if truth == "mask" else ["image"]
        for column in pictures:
            if type(kinds[column]).__name__ != "Image":
                raise ValueError(
                    f"{title}: the column {column} is {kinds[column]!r:.80}, expected images: cast "
                    "it to datasets.Image()"
                )
        self._modes = {column: kinds[column].mode for column in pictures}
        rows = rows.with_format(None).select_columns(["image", truth])
        for column in pictures:
            # `datasets` would decode any format, and follow paths: both are left to this class.
            rows = rows.cast_column(column, type(kinds[column])(decode=False))
        self._rows = rows
        self._title = title
        if "mask" in kinds:
            check_layout(title, root, ["classes.txt"], HINT)
            classes = Classes.read(root / "classes.txt")
        else:
            label = getattr(kinds["labels"], "feature", kinds["labels"])
            if not hasattr(label, "names"):
                raise ValueError(f"{title}: labels are {kinds['labels']!r:.80}. Expected: {HINT}")
            classes = Classes(tuple((name,) for name in label.names), title)
        background = 0 if "mask" in kinds and classes.first[0] == "background" else None
        names = [f"{row:06}" for row in range(len(self._rows))]
        super().__init__(title, classes, names, background)

    def read(self, index: int) -> Sample:
        row = self._rows[index]
        name, where = self.names[index], f"{self._title}, row {index}"
        image = self._decode(row, "image", where).convert("RGB")
        if "mask" not in row:
            return Sample(name, image, Tags(frozenset(self._checked(row["labels"], where))))
        where = f"{self._title}, mask of row {index}"
        mask = self._decode(row, "mask", where, (image, Path(f"of row {index}")))
        stored = np.asarray(mask).astype(np.int32)
        if stored.ndim != 2:
            raise ValueError(f"{where} holds colours, expected the numbers of classes")
        check_size(image, Path(f"of row {index}"), mask.size, where)
        table = own_numbers(len(self.classes), VOID)
        return Sample(name, image, Labels(relabel(stored, table, Path(where))))

    def _decode(
        self, row: Any, column: str, where: str, like: tuple[Image.Image, Path] | None = None
    ) -> Image.Image:
        """A picture in a row, as `datasets` itself decodes it: upright, in the column's mode.

        Args:
            row: of the data set.
            column: the picture's.
            where: it is, for messages.
            like: an image that has as many pixels, and what messages call it.
        """
        content = row[column] and row[column].get("bytes")
        if not content:
            raise ValueError(
                f"{where} has no bytes of a picture, and no path is followed; save the data set "
                "with Dataset.save_to_disk, which stores them"
            )
        mode = self._modes[column]
        try:
            with open_image(io.BytesIO(content)) as opened:
                if like and math.prod(opened.size) != math.prod(like[0].size):
                    check_size(*like, opened.size, where)
                picture = upright(opened)
                return picture.convert(mode) if mode and mode != picture.mode else picture
        except Exception as error:  # decoders fail in their own ways
            raise ValueError(
                f"{where} cannot be read as a picture: {error_message(error)}"
            ) from None

    def _checked(self, labels: Any, where: str) -> list[int]:
        labels = labels if isinstance(labels, list) else [labels]
        for label in labels:
            if type(label) is not int or not 0 <= label < len(self.classes):
                raise ValueError(
                    f"{where} has the label {label!r:.80}, expected 0..{len(self.classes) - 1}"
                )
        return labels


def _load(root: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Hugging Face data sets need datasets; install the extra: "
            "pip install 'captum_clip_surgery[huggingface]'"
        ) from error
    try:
        for part in read_json(root / "state.json")["_data_files"]:
            if Path(part["filename"]).name != part["filename"]:
                raise ValueError(f"state.json names {part['filename']!r:.80}, not in its folder")
        return datasets.load_from_disk(str(root))  # type: ignore[attr-defined]
    except Exception as error:  # of JSON, of arrow, of features that do not exist
        raise ValueError(
            f"{root} cannot be read as a Hugging Face data set: {error_message(error):.200}. "
            f"Expected: {HINT}"
        ) from None
