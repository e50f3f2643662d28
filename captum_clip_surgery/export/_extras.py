"""Optional libraries that read and write collections."""

from __future__ import annotations

import importlib
from typing import Any


def webdataset() -> Any:
    """Import WebDataset."""
    return _needed("webdataset")


def zarr() -> Any:
    """Import Zarr."""
    return _needed("zarr")


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this needs {name}; install the extra: pip install 'captum_clip_surgery[export]'"
        ) from error
