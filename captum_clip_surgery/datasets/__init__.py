"""Data sets as they lie on disk once downloaded, and what is known of their images."""

from captum_clip_surgery.datasets.base import (
    IGNORE_INDEX,
    Classes,
    ImageDataset,
    Labels,
    Masks,
    Point,
    Points,
    Sample,
    Tags,
)
from captum_clip_surgery.datasets.catalog import DATASETS, open_dataset

__all__ = [
    "DATASETS",
    "IGNORE_INDEX",
    "Classes",
    "ImageDataset",
    "Labels",
    "Masks",
    "Point",
    "Points",
    "Sample",
    "Tags",
    "open_dataset",
]
