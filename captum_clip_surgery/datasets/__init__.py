"""Data sets as they lie on disk once downloaded, and what is known of their images."""

from captum_clip_surgery.datasets.base import (
    IGNORED,
    Classes,
    DataSet,
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
    "IGNORED",
    "Classes",
    "DataSet",
    "Labels",
    "Masks",
    "Point",
    "Points",
    "Sample",
    "Tags",
    "open_dataset",
]
