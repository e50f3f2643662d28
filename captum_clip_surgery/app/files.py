"""What a visitor takes home: figures, arrays, Python, and the view itself; all of it in memory."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from captum_clip_surgery.app import code
from captum_clip_surgery.app.pictures import MAX_MEGABYTES, Shown, example_picture, read_picture
from captum_clip_surgery.app.settings import MAX_JSON, Settings
from captum_clip_surgery.app.tabs import Result
from captum_clip_surgery.visualization import save_figure

MAX_VIEW = 2 * MAX_MEGABYTES * 2**20  # bytes of a view with its picture
MAX_LINK = 6000  # characters; longer ones some browsers and servers refuse


@dataclass(frozen=True)
class File:
    """A file's name, kind and bytes."""

    name: str
    mime: str
    content: bytes

    def to_dict(self) -> dict[str, str]:
        """As the page's script takes it."""
        content = base64.b64encode(self.content).decode()
        return {"name": self.name, "mime": self.mime, "content": content}


def png(result: Result, settings: Settings) -> File:
    """The figure for screens."""
    return File(f"{settings.tab}.png", "image/png", _figure(result, ".png"))


def svg(result: Result, settings: Settings) -> File:
    """The figure for print."""
    return File(f"{settings.tab}.svg", "image/svg+xml", _figure(result, ".svg"))


def npz(result: Result, settings: Settings) -> File:
    """Raw maps or what a task found, with the names that belong to them."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **result.arrays)  # type: ignore[arg-type]
    return File(f"{settings.tab}.npz", "application/octet-stream", buffer.getvalue())


#: Kinds of files that need the tab's result, by their names on the page.
OF_RESULT: dict[str, Callable[[Result, Settings], File]] = {"PNG": png, "SVG": svg, "NPZ": npz}


def script(model: code.Model, picture: Shown, settings: Settings) -> File:
    """The Python that repeats the tab."""
    text = code.python(model, picture, settings)
    return File(f"{settings.tab}.py", "text/x-python", text.encode())


def _figure(result: Result, suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return save_figure(result.figure(), Path(folder) / f"figure{suffix}").read_bytes()


# --- views ---------------------------------------------------------------------------------------


def view(picture: Shown, settings: Settings) -> File:
    """Settings and picture, which `read_view` brings back."""
    content: dict[str, object] = {"settings": json.loads(settings.to_json())}
    if settings.example is None:
        buffer = io.BytesIO()
        picture.image.save(buffer, format="PNG")
        encoded = base64.b64encode(buffer.getvalue()).decode()
        content["picture"] = {"name": picture.name, "png": encoded}
    return File("view.json", "application/json", json.dumps(content, ensure_ascii=False).encode())


def read_view(content: bytes) -> tuple[Settings, Shown]:
    """What `view` wrote.

    Raises:
        ValueError: too long, no view, or a setting or picture that is refused.
    """
    if len(content) > MAX_VIEW:
        raise ValueError(f"the file has {len(content)} bytes, a view has at most {MAX_VIEW}")
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("the file is no view: open one that this page saved") from None
    if not isinstance(given, dict) or "settings" not in given:
        raise ValueError("the file is no view: it has no settings")
    settings = Settings.of(given["settings"])
    if settings.example is not None:
        return settings, example_picture(settings.example)
    picture = given.get("picture")
    if not isinstance(picture, dict) or not isinstance(picture.get("png"), str):
        raise ValueError("the view has neither a picture nor an example")
    try:
        decoded = base64.b64decode(picture["png"], validate=True)
    except ValueError:
        raise ValueError("the view's picture is damaged") from None
    return settings, read_picture(decoded, str(picture.get("name", "picture.png"))[:100])


def link(settings: Settings) -> str:
    """The end of an address that brings a view of an example back.

    Raises:
        ValueError: a picture of the visitor's own, or too many texts for an address.
    """
    if settings.example is None:
        raise ValueError(
            "a link holds no picture: save the view as a file, or pick an example for a link"
        )
    found = f"?view={quote(settings.to_json(), safe='')}"
    if len(found) > MAX_LINK:
        raise ValueError("the texts are too long for a link: save the view as a file")
    return found


def read_link(value: str) -> tuple[Settings, Shown]:
    """What `link` wrote, decoded as servers do.

    Raises:
        ValueError: no settings, or a view without an example.
    """
    if len(value) > MAX_JSON:
        raise ValueError("the link is too long")
    settings = Settings.from_json(value)
    if settings.example is None:
        raise ValueError("the link names no example, and holds no picture")
    return settings, example_picture(settings.example)
