"""Writes the points of Open Images V7, tiny, as they are once downloaded."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

HEADER = "ImageId,X,Y,Label,EstimatedYesNo,Source,YesVotes,NoVotes,UnsureVotes,TextLabel"


def write_open_images(
    root: Path,
    rows: Sequence[Sequence[object]],
    described: Mapping[str, str],
    split: str = "validation",
) -> None:
    """Descriptions, points and images.

    Args:
        rows: of a point, its image, x, y, label, answer, and its text if it has one.
        described: names of labels.
        split: "train", "validation" or "test".
    """
    short = {"validation": "val"}.get(split, split)
    (root / split).mkdir(parents=True, exist_ok=True)
    with (root / "oidv7-class-descriptions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("LabelName", "DisplayName"), *described.items()])
    points = root / f"oidv7-{short}-annotations-point-labels.csv"
    with points.open("w", newline="", encoding="utf-8") as file:
        file.write(HEADER + "\r\n")
        writer = csv.writer(file)
        for image, x, y, label, answer, *text in rows:
            writer.writerow([image, x, y, label, answer, "ih", 3, 0, 0, *(text or [""])])
            Image.new("RGB", (16, 12), (200, 100, 50)).save(root / split / f"{image}.jpg")
