"""Hugging Face data sets, as `datasets` saves them to disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from captum_clip_surgery._utils.errors import error_message
from captum_clip_surgery._utils.files import read_json
from captum_clip_surgery.datasets._base import ImageDataset, Labels, Sample, Tags
from captum_clip_surgery.datasets._classes import Classes
from captum_clip_surgery.datasets._layout import check_layout
from captum_clip_surgery.datasets._own import OwnImage, check_ignored, read_labels

HINT = (
    "the output of Dataset.save_to_disk, with the columns image and either mask (images of class "
    "numbers; next to it classes.txt with one class per line) or labels (lists of a ClassLabel)"
)


class HuggingFace(ImageDataset):
    """A saved Hugging Face data set with the columns `image` and `mask` or `labels`.

    Expected files::

        root/dataset_info.json, state.json, data-00000-of-00001.arrow   by Dataset.save_to_disk
        root/classes.txt          for masks: one class per line, comma-separated names

    Images and masks are read as by `Folder`: masks hold the class's line number in `classes.txt`,
    counted from 0, and 255 for unlabeled pixels (65535 in 16 bits), EXIF rotations are applied, and
    masks must match the image as shown. Labels take their names from the column's `ClassLabel`; a
    single label is read as a list of one. Images must be stored in the rows, because paths are not
    followed. Rename other columns with `dataset.rename_column(...)` before saving.

    Args:
        root: The folder; for a `DatasetDict` the folder of one split.

    Raises:
        FileNotFoundError: If the folder is missing, or `classes.txt` for masks.
        ValueError: If columns are missing or of another type, or only one class occurs in masks
            beside ignored pixels.
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
        self._mask_mode = features["mask"].mode if has_masks else None
        rows = rows.with_format(None).select_columns(["image", target])
        for column in images:
            # `datasets` would decode any format, follow paths, and read 16 bits as 8.
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
        names = [f"{row:06}" for row in range(len(rows))]
        super().__init__(title, classes, names, classes.background if has_masks else None)
        if has_masks:
            masks = rows.select_columns("mask")
            check_ignored(title, classes, len(rows), lambda i: self._labels_of(masks[i]["mask"], i))

    def read(self, index: int) -> Sample:
        """Read an image and its labels or classes."""
        row = self._rows[index]
        where = f"{self.name}, row {index}"
        own = OwnImage.read(_bytes_of(row["image"], where), where)
        target = (
            self._labels_of(row["mask"], index, own)
            if "mask" in row
            else Tags(frozenset(self._read_tags(row["labels"], where)))
        )
        return Sample(self.names[index], own.image, target)

    def _labels_of(self, cell: Any, index: int, own: OwnImage | None = None) -> Labels:
        where = f"{self.name}, mask of row {index}"
        return read_labels(_bytes_of(cell, where), where, self.classes, own, self._mask_mode)

    def _read_tags(self, labels: Any, where: str) -> list[int]:
        labels = labels if isinstance(labels, list) else [labels]
        for label in labels:
            if type(label) is not int or not 0 <= label < len(self.classes):
                raise ValueError(
                    f"{where} has the label {label!r:.80}, expected 0..{len(self.classes) - 1}; "
                    "leave out unlabeled rows with dataset.filter(...)"
                )
        return labels


def _bytes_of(cell: Any, where: str) -> io.BytesIO:
    """Return the bytes of an image in a row.

    Raises:
        ValueError: If there are none.
    """
    content = cell and cell.get("bytes")
    if not content:
        raise ValueError(
            f"{where} has no bytes of an image, and paths are not followed; save the data set with "
            "Dataset.save_to_disk, which stores them"
        )
    return io.BytesIO(content)


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
