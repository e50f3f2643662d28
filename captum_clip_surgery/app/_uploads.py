"""Files that browsers upload: read once, then deleted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder


def take_file(upload: Any) -> tuple[bytes, str]:
    """Return the bytes and the name of an uploaded file, which is deleted.

    Browsers may send any path: files outside the upload folder are neither read nor deleted.
    """
    if not isinstance(upload, Mapping) or not isinstance(upload.get("path"), str):
        raise ValueError("no file was uploaded; choose it again")
    try:
        path = Path(upload["path"]).resolve()
        uploads = Path(get_upload_folder()).resolve()
        if not path.is_relative_to(uploads) or not path.is_file():
            raise ValueError("no file was uploaded; choose it again")
        content = path.read_bytes()
    except OSError:
        raise ValueError("the file could not be uploaded; choose it again") from None
    path.unlink(missing_ok=True)
    name = upload.get("orig_name")
    return content, Path(name).name[:100] if isinstance(name, str) else path.name
