"""Hugging Face data sets, as `datasets` saves them to disk."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captum_clip_surgery._utils.errors import error_message
from captum_clip_surgery._utils.files import read_json
from captum_clip_surgery.datasets._base import ImageDataset, Labels, Sample, Tags
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._files import check_size
from captum_clip_surgery.datasets._layout import check_layout
from captum_clip_surgery.datasets._paired import lookup_table, relabel
from captum_clip_surgery.preprocessing import open_image, upright

__all__ = ["HuggingFace"]

HINT = (
    "the output of Dataset.save_to_disk, with the columns image and either mask (images of class "
    "numbers; next to it classes.txt with one class per line) or labels (lists of a ClassLabel)"
)
VOID = 255


class HuggingFace(ImageDataset):
    """A saved Hugging Face data set with the columns `image` and `mask` or `labels`.

    Expected files::

        root/dataset_info.json, state.json, data-00000-of-00001.arrow   by Dataset.save_to_disk
        root/classes.txt          for masks: one class per line, comma-separated names

    Masks hold the class's line number in `classes.txt`, counted from 0, and 255 for unlabeled
    pixels; a first class "background" is the background class. Labels take their names from the
    column's `ClassLabel`; a single label is read as a list of one. EXIF rotations are applied and
    images converted to RGB. Images must be stored in the rows, because paths are not followed.
    Rename other columns with `dataset.rename_column(...)` before saving.

    Args:
        root: The folder; for a `DatasetDict` the folder of one split.

    Raises:
        FileNotFoundError: If the folder is missing, or `classes.txt` for masks.
        ValueError: If columns are missing or of another type.
        ImportError: If `datasets` is missing.
    """

    def __init__(self, root: Path | str) -> None:
        root = Path(root)
        title = f"Hugging Face data set {root.resolve().name}"
        check_layout(title, root, ["state.json", "dataset_info.json"], HINT)
        rows = _load(root)
        features = rows.features
        has_masks = "mask" in features
        target = "mask" if has_masks else "labels"
        if "image" not in features or target not in features:
            columns = ", ".join(features)
            raise ValueError(f"{title} has the columns {columns:.200}. Expected: {HINT}")
        images = ["image", "mask"] if has_masks else ["image"]
        for column in images:
            if type(features[column]).__name__ != "Image":
                raise ValueError(
                    f"{title}: the column {column} is {features[column]!r:.80}, expected images: "
                    "cast it to datasets.Image()"
                )
        self._modes = {column: features[column].mode for column in images}
        rows = rows.with_format(None).select_columns(["image", target])
        for column in images:
            # `datasets` would decode any format and follow paths, so `_decode` replaces it.
            rows = rows.cast_column(column, type(features[column])(decode=False))
        self._rows = rows
        if has_masks:
            check_layout(title, root, ["classes.txt"], HINT)
            classes = Classes.read(root / "classes.txt")
        else:
            label = getattr(features["labels"], "feature", features["labels"])
            if not hasattr(label, "names"):
                raise ValueError(
                    f"{title}: labels are {features['labels']!r:.80}. Expected: {HINT}"
                )
            classes = Classes(tuple((name,) for name in label.names), title)
        background = 0 if has_masks and classes.first[0] == "background" else None
        super().__init__(title, classes, [f"{row:06}" for row in range(len(rows))], background)

    def read(self, index: int) -> Sample:
        """Read an image and its labels or classes."""
        row = self._rows[index]
        name, where = self.names[index], f"{self.name}, row {index}"
        image = self._decode(row, "image", where).convert("RGB")
        if "mask" not in row:
            return Sample(name, image, Tags(frozenset(self._read_tags(row["labels"], where))))
        where = f"{self.name}, mask of row {index}"
        mask = self._decode(row, "mask", where, (image, Path(f"of row {index}")))
        stored = np.asarray(mask).astype(np.int32)
        if stored.ndim != 2:
            raise ValueError(f"{where} holds colors, expected class numbers")
        check_size(image, Path(f"of row {index}"), mask.size, where)
        table = lookup_table(len(self.classes), VOID)
        return Sample(name, image, Labels(relabel(stored, table, Path(where))))

    def _decode(
        self, row: Any, column: str, where: str, like: tuple[Image.Image, Path] | None = None
    ) -> Image.Image:
        """Decode an image of a row as `datasets` does: upright, in the column's mode.

        Args:
            row: Row of the data set.
            column: Column of the image.
            where: Description of the place, for messages.
            like: Image with the expected number of pixels, and its description for messages.
        """
        content = row[column] and row[column].get("bytes")
        if not content:
            raise ValueError(
                f"{where} has no bytes of an image, and paths are not followed; save the data set "
                "with Dataset.save_to_disk, which stores them"
            )
        mode = self._modes[column]
        try:
            with open_image(io.BytesIO(content)) as opened:
                if like and math.prod(opened.size) != math.prod(like[0].size):
                    check_size(*like, opened.size, where)
                image = upright(opened)
                return image.convert(mode) if mode and mode != image.mode else image
        except Exception as error:  # decoders raise many types
            raise ValueError(
                f"{where} cannot be read as an image: {error_message(error)}"
            ) from None

    def _read_tags(self, labels: Any, where: str) -> list[int]:
        labels = labels if isinstance(labels, list) else [labels]
        for label in labels:
            if type(label) is not int or not 0 <= label < len(self.classes):
                raise ValueError(
                    f"{where} has the label {label!r:.80}, expected 0..{len(self.classes) - 1}"
                )
        return labels


def _load(root: Path) -> Any:
    """Load a saved data set, refusing data files outside its folder."""
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
    except Exception as error:  # invalid JSON, invalid arrow files, unknown features
        raise ValueError(
            f"{root} cannot be read as a Hugging Face data set: {error_message(error):.200}. "
            f"Expected: {HINT}"
        ) from None
