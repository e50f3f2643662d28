"""Optional libraries that read collections."""

from __future__ import annotations

import importlib
from typing import Any


def webdataset() -> Any:
    """Import WebDataset.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module("webdataset")
    except ImportError as error:
        raise ImportError(
            "this needs webdataset; install the extra: pip install 'captum_clip_surgery[export]'"
        ) from error
