"""Pictures that visitors bring or pick, within limits."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from functools import cache, cached_property

from PIL import Image

from captum_clip_surgery.app.remembering import Remembered
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.demo.scenes import Scene
from captum_clip_surgery.preprocessing import load_image, open_image

MAX_MEGABYTES = 20
MAX_MEGAPIXELS = 40
MAX_ASPECT = 20  # longer side by shorter one
SIDE = 1024  # of what is kept of a picture, its longer side in pixels
VISITORS = 128  # whose pictures are kept in memory
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # none that runs another program
#: Of the test scenes of two and three objects, some whose objects the embedded model tells apart.
EXAMPLES = (27, 6, 23, 45)
EXAMPLE_SIDE = 256


@dataclass(frozen=True)
class Shown:
    """A picture on the screen: upright RGB, at most `SIDE` pixels long, and what it is called.

    `example` is its number among the examples, None for a visitor's own.
    """

    image: Image.Image
    name: str
    example: int | None = None

    @cached_property
    def digest(self) -> str:
        """Of the pixels: the same picture is encoded once, whoever brings it."""
        size = repr(self.image.size).encode()
        return hashlib.blake2b(size + self.image.tobytes(), digest_size=16).hexdigest()


def read_picture(content: bytes, name: str) -> Shown:
    """A picture from the bytes of a file that may hold anything.

    Args:
        content: of the file.
        name: of the file, for messages and for the Python code.

    Raises:
        ValueError: too many bytes or pixels, too long a strip, or no picture; in words.
    """
    if not content:
        raise ValueError("the file is empty; choose a picture")
    if len(content) > MAX_MEGABYTES * 2**20:
        raise ValueError(
            f"the file has {len(content) / 2**20:.0f} MB, at most {MAX_MEGABYTES} MB are taken; "
            "save it smaller"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = open_image(io.BytesIO(content), FORMATS)
            _check_size(*opened.size)
            image = load_image(opened)
    except _BeyondLimit:
        raise
    except Image.DecompressionBombError:
        raise ValueError(
            f"the picture has far more than the {MAX_MEGAPIXELS} million pixels that are taken"
        ) from None
    # Pillow's readers raise whatever the bytes lead them to.
    except Exception as error:
        raise ValueError(
            f"the file cannot be read as a picture ({', '.join(FORMATS)}): it is damaged or of "
            "another kind"
        ) from error
    return Shown(reduced(image), name)


class _BeyondLimit(ValueError):
    pass


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_MEGAPIXELS * 10**6:
        raise _BeyondLimit(
            f"the picture has {width} x {height} pixels, at most {MAX_MEGAPIXELS} million are "
            "taken; make it smaller"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _BeyondLimit(
            f"the picture of {width} x {height} pixels is a strip: one side may be at most "
            f"{MAX_ASPECT} times the other; crop it"
        )


def reduced(image: Image.Image) -> Image.Image:
    """A picture whose longer side is at most `SIDE` pixels, itself where it is."""
    if max(image.size) <= SIDE:
        return image
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    return image


# --- examples ------------------------------------------------------------------------------------


@cache
def scene(example: int) -> Scene:
    """The scene of an example.

    Raises:
        ValueError: an example that there is not.
    """
    if not 0 <= example < len(EXAMPLES):
        raise ValueError(f"there is no example {example}; there are 0 to {len(EXAMPLES) - 1}")
    index = EXAMPLES[example]
    return Scenes("test", index + 1, size=EXAMPLE_SIDE, objects=[2, 3])[index]


def example_picture(example: int) -> Shown:
    """An example as a picture to show.

    Raises:
        ValueError: an example that there is not.
    """
    return Shown(Image.fromarray(scene(example).image), f"example-{example}", example)


# --- visitors ------------------------------------------------------------------------------------


class Visitors:
    """The picture that each visitor sees, in memory until the visitor leaves.

    Kept here and not in the browser, so that what is asked after an upload is asked of it.
    """

    def __init__(self, most: int = VISITORS) -> None:
        self._pictures: Remembered[str, Shown] = Remembered(most)

    def bring(self, visitor: str, picture: Shown) -> set[str]:
        """Keep a visitor's picture instead of the one before; the oldest goes beyond `most`.

        Returns:
            Digests of visitors' own pictures that nobody has any more.
        """
        before = self._own()
        self._pictures.put(visitor, picture)
        return before - self._own()

    def picture(self, visitor: str) -> Shown:
        """The picture that a visitor sees.

        Raises:
            ValueError: none, or no more.
        """
        found = self._pictures.get(visitor)
        if found is None:
            raise ValueError("your picture is no longer here; choose it again")
        return found

    def leave(self, visitor: str) -> set[str]:
        """Forget a visitor; digests of visitors' own pictures that nobody has any more."""
        before = self._own()
        self._pictures.pop(visitor)
        return before - self._own()

    def _own(self) -> set[str]:
        return {shown.digest for shown in self._pictures.values() if shown.example is None}
