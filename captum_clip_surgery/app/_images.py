"""Images that users upload or choose, within limits."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache, cached_property
from threading import Lock

from cachetools import LRUCache
from PIL import Image

from captum_clip_surgery.demo import MODEL_FOLDER, Scenes
from captum_clip_surgery.demo._scenes import Scene
from captum_clip_surgery.preprocessing import (
    TooManyPixelsError,
    UnreadFormatError,
    load_image,
    open_image,
)

MAX_MEGABYTES = 20
MAX_MEGAPIXELS = 40
#: Largest ratio of an image's longer side to its shorter one.
MAX_ASPECT = 20
#: Longer side in pixels to which images are reduced.
SIDE = 1024
#: Number of users whose images are kept in memory.
MAX_SESSIONS = 128
#: Formats that are read; none runs another program. HEIF needs the extra `heif`.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "HEIF")
#: Title under which the page asks for a query image and a text to subtract.
QUERY_TITLE = "Query image and difference"
#: Test scenes of two or three objects that the embedded model tells apart: the first examples.
SCENES = (27, 6, 23, 45)
SCENE_SIDE = 256
#: Number of the example that is a photograph. It is the same on every page, because views and links
#: name examples by their numbers.
PHOTO_EXAMPLE = len(SCENES)
#: A cup of coffee, by Rachel Michetti (CC0).
PHOTO = MODEL_FOLDER.parent / "coffee.jpg"
PHOTO_TEXTS = ("a cup of coffee", "a spoon", "a wooden table")
PHOTO_CAPTION = "a cup of coffee on a wooden table"


@dataclass(frozen=True)
class PageImage:
    """An image on the page.

    Args:
        pixels: Upright RGB image of at most 1,024 pixels per side.
        name: File name.
        example: Number of the example, or None for a user's own image.
    """

    pixels: Image.Image
    name: str
    example: int | None = None

    @property
    def title(self) -> str:
        """What figures call the image."""
        return self.name if self.example is None else "the example"

    @property
    def scene(self) -> int | None:
        """Index of the test scene, or None if the image is not one."""
        return None if self.example is None or self.is_photo else SCENES[self.example]

    @property
    def is_photo(self) -> bool:
        """Whether the image is the example that is a photograph."""
        return self.example == PHOTO_EXAMPLE

    @cached_property
    def digest(self) -> str:
        """Digest of the pixels, so that the same image is encoded once for all users."""
        size = repr(self.pixels.size).encode()
        return hashlib.blake2b(size + self.pixels.tobytes(), digest_size=16).hexdigest()


def required_query(query: PageImage | None) -> PageImage:
    """Return the query image.

    Raises:
        ValueError: If there is none.
    """
    if query is None:
        raise ValueError(f"the query image is missing; choose it under “{QUERY_TITLE}”")
    return query


def read_image(content: bytes, name: str) -> PageImage:
    """Read an image from the bytes of an untrusted file.

    Args:
        content: Bytes of the file.
        name: Name of the file, for the Python code.

    Raises:
        ValueError: If there are too many bytes or pixels, the image is too long a strip, or the
            file is not an image.
    """
    if not content:
        raise ValueError("the file is empty; choose an image")
    if len(content) > MAX_MEGABYTES * 2**20:
        raise ValueError(
            f"the file has {len(content) / 2**20:.0f} MB; the limit is {MAX_MEGABYTES} MB"
        )
    try:
        opened = open_image(io.BytesIO(content), FORMATS)
        _check_size(*opened.size)
        pixels = load_image(opened)
    except _LimitError:
        raise
    except TooManyPixelsError:
        raise ValueError(
            f"the image has far too many pixels; the limit is {MAX_MEGAPIXELS} million"
        ) from None
    except UnreadFormatError as error:
        raise ValueError(f"the file cannot be read as an image; {error}") from None
    except Exception as error:  # Pillow's decoders raise exceptions of any type
        raise ValueError(
            f"the file cannot be read as an image; it is damaged, or not one of "
            f"{', '.join(FORMATS)}"
        ) from error
    return PageImage(_reduce(pixels), name)


class _LimitError(ValueError):
    pass


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_MEGAPIXELS * 10**6:
        raise _LimitError(
            f"the image has {width} x {height} pixels; the limit is {MAX_MEGAPIXELS} million"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _LimitError(
            f"the image is a strip of {width} x {height} pixels; one side may be at most "
            f"{MAX_ASPECT} times the other. Crop it"
        )


def _reduce(pixels: Image.Image) -> Image.Image:
    """Reduce an image to at most `SIDE` pixels per side."""
    if max(pixels.size) <= SIDE:
        return pixels
    pixels = pixels.copy()
    pixels.thumbnail((SIDE, SIDE))
    return pixels


@cache
def example_scene(example: int) -> Scene:
    """Return the scene of an example that is not the photograph.

    Raises:
        ValueError: If the example is not a scene.
    """
    if not 0 <= example < len(SCENES):
        raise ValueError(f"example {example} is not a test scene; choose 0 to {len(SCENES) - 1}")
    index = SCENES[example]
    return Scenes("test", index + 1, size=SCENE_SIDE, objects=[2, 3])[index]


def _is_photo(example: int) -> bool:
    """Return whether an example is the photograph; raise ValueError if there is no such example."""
    if not 0 <= example <= PHOTO_EXAMPLE:
        raise ValueError(f"there is no example {example}; choose 0 to {PHOTO_EXAMPLE}")
    return example == PHOTO_EXAMPLE


def example_image(example: int) -> PageImage:
    """Return the image of an example.

    Raises:
        ValueError: If there is no such example.
    """
    if _is_photo(example):
        pixels = load_image(PHOTO)
    else:
        pixels = Image.fromarray(example_scene(example).image)
    return PageImage(pixels, f"example-{example}", example)


def example_texts(example: int) -> tuple[tuple[str, ...], str]:
    """Return the texts and the caption of an example.

    Raises:
        ValueError: If there is no such example.
    """
    if _is_photo(example):
        return PHOTO_TEXTS, PHOTO_CAPTION
    scene = example_scene(example)
    return scene.nouns, scene.caption


class Sessions:
    """The current image of each user, kept in memory until the session is closed.

    It is kept here and not in the browser, so that requests after an upload refer to that upload.

    Args:
        max_sessions: Number of sessions that are kept; the least recently used is dropped first.
    """

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._images: LRUCache[str, PageImage] = LRUCache(max_sessions)
        self._lock = Lock()  # sessions are closed while others are served

    def set_image(self, session: str, image: PageImage) -> set[str]:
        """Replace the image of a session.

        Returns:
            Digests of users' own images that no session uses.
        """
        with self._lock:
            before = self._digests()
            self._images[session] = image
            return before - self._digests()

    def image(self, session: str) -> PageImage:
        """Return the image of a session.

        Raises:
            ValueError: If it is no longer kept.
        """
        with self._lock:
            image = self._images.get(session)
        if image is None:
            raise ValueError("your image is no longer in memory; choose it again")
        return image

    def close(self, session: str) -> set[str]:
        """Drop a session.

        Returns:
            Digests of users' own images that no session uses.
        """
        with self._lock:
            before = self._digests()
            self._images.pop(session, None)
            return before - self._digests()

    def _digests(self) -> set[str]:
        return {image.digest for image in self._images.values() if image.example is None}
