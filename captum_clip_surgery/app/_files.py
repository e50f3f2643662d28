"""Downloads: figures, arrays, Python code, and views; all are made in memory."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from captum_clip_surgery.app._code import Model, python
from captum_clip_surgery.app._images import MAX_MEGABYTES, PageImage, example_image, read_image
from captum_clip_surgery.app._settings import MAX_JSON, Settings
from captum_clip_surgery.app._tabs import Result
from captum_clip_surgery.visualization import save_figure

#: Bytes of a view with its image.
MAX_VIEW = 2 * MAX_MEGABYTES * 2**20
#: What the page says after a reload for which keep.js had no room.
NOT_KEPT = (
    "The browser had no room to keep the query image beside your image for a reload. Choose it "
    "again."
)
#: Characters of a link; some browsers and servers reject longer ones.
MAX_LINK = 6000


@dataclass(frozen=True)
class File:
    """A file's name, media type and bytes."""

    name: str
    mime: str
    content: bytes

    def to_dict(self) -> dict[str, str]:
        """Return the file for the page's script."""
        content = base64.b64encode(self.content).decode()
        return {"name": self.name, "mime": self.mime, "content": content}


def png(result: Result, settings: Settings) -> File:
    """Return the figure for screens."""
    return File(f"{settings.tab}.png", "image/png", _figure(result, ".png"))


def svg(result: Result, settings: Settings) -> File:
    """Return the figure for print."""
    return File(f"{settings.tab}.svg", "image/svg+xml", _figure(result, ".svg"))


def npz(result: Result, settings: Settings) -> File:
    """Return the raw arrays of a tab."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **result.arrays)  # type: ignore[arg-type]
    return File(f"{settings.tab}.npz", "application/octet-stream", buffer.getvalue())


#: Files made of a tab's result, by their names on the page.
OF_RESULT: dict[str, Callable[[Result, Settings], File]] = {"PNG": png, "SVG": svg, "NPZ": npz}


def script(
    model: Model, image: PageImage, settings: Settings, query: PageImage | None = None
) -> File:
    """Return the Python code that repeats the tab."""
    code = python(model, image, settings, query)
    return File(f"{settings.tab}.py", "text/x-python", code.encode())


def _figure(result: Result, suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return save_figure(result.figure(), Path(folder) / f"figure{suffix}").read_bytes()


# --- views ---------------------------------------------------------------------------------------


def view(image: PageImage, settings: Settings, query: PageImage | None = None) -> File:
    """Return settings and images as a file that `read_view` reads."""
    content: dict[str, object] = {"settings": json.loads(settings.to_json())}
    if settings.example is None:
        content["image"] = encode_image(image)
    if query is not None:
        content["query"] = encode_image(query)
    return File("view.json", "application/json", json.dumps(content, ensure_ascii=False).encode())


def encode_image(image: PageImage) -> dict[str, str] | None:
    """Return a user's own image as JSON values; None for an example."""
    if image.example is not None:
        return None
    buffer = io.BytesIO()
    image.pixels.save(buffer, format="PNG")
    return {"name": image.name, "png": base64.b64encode(buffer.getvalue()).decode()}


#: Settings, an image and a query image, if there are any, and hints for the user.
Kept = tuple[Settings | None, PageImage, PageImage | None, tuple[str, ...]]


def read_kept(content: object) -> Kept | None:
    """Return what the browser kept: a view, or an image whose texts are still to be written.

    A query image that the browser had no room for is left out of the settings. What another version
    of the page kept, or something else wrote, is None.
    """
    try:
        return _read_kept(content) if isinstance(content, str) and content else None
    except ValueError:
        return None


def _read_kept(content: str) -> Kept:
    values, hints = _read_values(content.encode()), tuple[str, ...]()
    kept = values["settings"] if isinstance(values["settings"], dict) else {}
    if kept.get("query") and values.get("query") is None:
        kept, hints = {**kept, "query": ""}, (NOT_KEPT,)
    if not (kept.get("texts") or kept.get("query")):
        return None, _read_image(values, "image"), None, hints
    return *_read_view({**values, "settings": kept}), hints


def read_view(content: bytes) -> tuple[Settings, PageImage, PageImage | None]:
    """Return the settings, the image and the query image, if any, of a file that `view` wrote.

    Raises:
        ValueError: If the file is too long or not a view, or a setting or the image is rejected.
    """
    return _read_view(_read_values(content))


def _read_view(values: Mapping[str, Any]) -> tuple[Settings, PageImage, PageImage | None]:
    settings = Settings.from_dict(values["settings"])
    query = _read_image(values, "query") if settings.query else None
    if settings.example is not None:
        return settings, example_image(settings.example), query
    return settings, _read_image(values, "image"), query


def _read_values(content: bytes) -> dict[str, Any]:
    """Return the values of a view, unchecked except that there are settings."""
    if len(content) > MAX_VIEW:
        raise ValueError(f"the file has {len(content)} bytes; the limit of views is {MAX_VIEW}")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("the file is not a view; open one that this page saved") from None
    if not isinstance(values, dict) or "settings" not in values:
        raise ValueError("the file is not a view: it has no settings")
    return values


def _read_image(values: Mapping[str, Any], key: str) -> PageImage:
    image = values.get(key)
    if not isinstance(image, dict) or not isinstance(image.get("png"), str):
        missing = "neither an image nor an example" if key == "image" else "no query image"
        raise ValueError(f"the view has {missing}")
    try:
        decoded = base64.b64decode(image["png"], validate=True)
    except ValueError:
        raise ValueError("an image of the view is damaged") from None
    return read_image(decoded, str(image.get("name", "image.png"))[:100])


def link(settings: Settings) -> str:
    """Return the query of a link that opens the view of an example.

    Raises:
        ValueError: If an image is the user's own, or the texts are too long for a link.
    """
    if settings.example is None or settings.query:
        raise ValueError(
            "a link cannot hold your own images; save the view as a file, or choose an example "
            "without a query image"
        )
    query = f"?view={quote(settings.to_json(), safe='')}"
    if len(query) > MAX_LINK:
        raise ValueError("the texts are too long for a link; save the view as a file")
    return query


def read_link(value: str) -> tuple[Settings, PageImage]:
    """Read the decoded value of a link from `link`.

    Raises:
        ValueError: If the value is not a view's settings, or there is no example.
    """
    if len(value) > MAX_JSON:
        raise ValueError("the link is too long")
    settings = Settings.from_json(value)
    if settings.query:
        raise ValueError(
            f"the link names the query image {settings.query!r}, which links cannot hold; open the "
            "view from a file"
        )
    if settings.example is None:
        raise ValueError(
            "the link names no example, and cannot hold another image; open the view from a file"
        )
    return settings, example_image(settings.example)
