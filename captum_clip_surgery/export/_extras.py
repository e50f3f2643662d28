"""The libraries that read and write collections, and how to get them."""

from __future__ import annotations

import importlib
from typing import Any


def webdataset() -> Any:
    """WebDataset's package."""
    return _needed("webdataset")


def zarr() -> Any:
    """Zarr's package."""
    return _needed("zarr")


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this needs {name}; install the extra: pip install 'captum_clip_surgery[export]'"
        ) from error
