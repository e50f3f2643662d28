"""Rendered scenes with ground truth: an image of one to three nouns, a caption, and exact masks.

A scene is determined by its split, index, size and numbers of objects, so nothing is stored or
downloaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import overload

import numpy as np
from PIL import Image

Array = np.ndarray
Generator = np.random.Generator
#: A kind of background: a function of a generator and a side that returns (side, side, 3) in 0..1.
BackgroundKind = Callable[[Generator, int], Array]

SPRITE_SIDE = 112
SPRITE_COLUMNS = 12
MAX_OBJECTS = 3
#: Fraction of each object that later objects must leave visible.
MIN_VISIBLE = 0.5
#: Smallest and largest longer side of an object, relative to the scene's side.
SCALES = (0.28, 0.55)
#: Seed of each split. A split also has backgrounds of kinds that no other split has.
STREAMS = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Scene:
    """A rendered image and its ground truth.

    Args:
        image: Image (H, W, 3) of uint8.
        caption: Sentence that names the objects.
        nouns: Names of the objects.
        masks: Visible parts of the objects, (objects, H, W) of bool, in the order of `nouns`.
    """

    image: Array
    caption: str
    nouns: tuple[str, ...]
    masks: Array


@cache
def nouns() -> tuple[str, ...]:
    """Return the names of all objects that appear in scenes."""
    return tuple((files("captum_clip_surgery.demo") / "nouns.txt").read_text().split())


@cache
def _sprites() -> tuple[tuple[Image.Image, ...], ...]:
    """Return the sprite of each noun at full, half and quarter size, premultiplied by alpha."""
    with (files("captum_clip_surgery.demo") / "sprites.png").open("rb") as file:
        atlas = Image.open(file, formats=["PNG"]).convert("RGBa")

    def levels(index: int) -> tuple[Image.Image, ...]:
        row, column = divmod(index, SPRITE_COLUMNS)
        left, top = column * SPRITE_SIDE, row * SPRITE_SIDE
        full = atlas.crop((left, top, left + SPRITE_SIDE, top + SPRITE_SIDE))
        return full, full.reduce(2), full.reduce(4)

    return tuple(levels(index) for index in range(len(nouns())))


class Scenes(Sequence[Scene]):
    """A sequence of scenes, rendered on access.

    Args:
        split: "train", "validation" or "test"; determines the random stream and the kinds of
            background.
        length: Number of scenes.
        size: Side of the square images in pixels.
        objects: Numbers of objects from which each scene's is drawn, 1 to 3; repeated numbers are
            drawn more often.
        backgrounds: Functions of a generator and a side that return a background (side, side, 3)
            in 0..1; None means the split's kinds.

    Raises:
        ValueError: If `split` is unknown, `objects` is empty or out of range, or `backgrounds` is
            empty.

    Example::

        >>> scene = Scenes("test", 10, objects=[2])[0]
        >>> scene.image.shape, len(scene.nouns), scene.masks.shape
        ((128, 128, 3), 2, (2, 128, 128))
    """

    def __init__(
        self,
        split: str,
        length: int,
        size: int = 128,
        objects: Sequence[int] = (1, 2, 3),
        backgrounds: Sequence[BackgroundKind] | None = None,
    ) -> None:
        if split not in STREAMS:
            raise ValueError(f"split must be one of {', '.join(STREAMS)}, got {split!r}")
        if not objects or not all(1 <= count <= MAX_OBJECTS for count in objects):
            raise ValueError(f"objects must be numbers from 1 to {MAX_OBJECTS}, got {objects!r}")
        if backgrounds is not None and not backgrounds:
            raise ValueError("backgrounds is empty; pass functions, or None for the split's kinds")
        self.split = split
        self.length = length
        self.size = size
        self.objects = tuple(objects)
        self.backgrounds = BACKGROUNDS[split] if backgrounds is None else tuple(backgrounds)

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scene]: ...
    def __getitem__(self, index: int | slice) -> Scene | list[Scene]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is out of range for {self.length} scenes")
        # The numbers of objects are part of the seed: otherwise the n-th scenes of one and of two
        # objects would share their first object.
        rng = np.random.default_rng([STREAMS[self.split], *self.objects, index % self.length])
        count = int(rng.choice(self.objects))
        # The background has its own stream, so that the layout is the same at every size.
        background_rng = rng.spawn(1)[0]
        background = self.backgrounds[background_rng.integers(len(self.backgrounds))]
        canvas = background(background_rng, self.size)
        return _render(rng, canvas, rng.choice(len(nouns()), count, replace=False))

    def __iter__(self) -> Iterator[Scene]:
        return (self[index] for index in range(self.length))


def render_scene(rng: Generator, canvas: Array, names: Sequence[str]) -> Scene:
    """Render chosen objects on a chosen background.

    Args:
        rng: Generator of the layout and the caption.
        canvas: The background (side, side, 3) in 0..1; it is painted over.
        names: Names of 1 to 3 different objects.

    Raises:
        ValueError: If a name is not one of `nouns()`.
    """
    unknown = [name for name in names if name not in nouns()]
    if unknown:
        raise ValueError(f"scenes have no {unknown[0]!r}; their objects are those of nouns()")
    return _render(rng, canvas, [nouns().index(name) for name in names])


def _render(rng: Generator, canvas: Array, chosen: Sequence[int] | Array) -> Scene:
    size, count = len(canvas), len(chosen)
    masks = np.zeros((count, size, size), dtype=bool)
    # Objects may overlap, but a layout that hides too much of one is drawn again.
    while True:
        layers = [_place(rng, _sprites()[noun], size, count) for noun in chosen]
        masks[:] = [layer.alpha_mask(size) for layer in layers]
        areas = masks.sum((1, 2))
        for i in range(count - 1):
            masks[i] &= ~masks[i + 1 :].any(0)
        if (masks.sum((1, 2)) >= MIN_VISIBLE * areas).all():
            break
    for layer in layers:
        layer.paint(canvas)
    names = tuple(nouns()[noun] for noun in chosen)
    image = (np.clip(canvas, 0, 1) * 255).round().astype(np.uint8)
    return Scene(image, _caption(rng, names), names, masks)


@dataclass(frozen=True)
class _Layer:
    """An object placed in a scene: its pixels, premultiplied by alpha, from (top, left)."""

    top: int
    left: int
    color: Array  # (h, w, 3) in 0..1
    alpha: Array  # (h, w, 1) in 0..1

    def _window(self) -> tuple[slice, slice]:
        height, width = self.alpha.shape[:2]
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def alpha_mask(self, size: int) -> Array:
        mask = np.zeros((size, size), dtype=bool)
        mask[self._window()] = self.alpha[..., 0] > 0.5
        return mask

    def paint(self, canvas: Array) -> None:
        window = self._window()
        canvas[window] = canvas[window] * (1 - self.alpha) + self.color


def _place(rng: Generator, levels: tuple[Image.Image, ...], size: int, count: int) -> _Layer:
    """Scale, rotate, mirror and tint an object, and choose a place where it fits."""
    smallest, largest = SCALES
    side = rng.uniform(smallest, largest - 0.04 * (count - 1)) * size
    angle = rng.uniform(-35, 35) * math.pi / 180
    mirror = -1 if rng.random() < 0.5 else 1
    box = math.ceil(side * (abs(math.cos(angle)) + abs(math.sin(angle))))
    box = min(box, size)
    # Sample from the smallest copy that is not enlarged, to avoid aliasing.
    fitting = [level for level in levels if level.width >= side]
    sprite = fitting[-1] if fitting else levels[0]
    zoom = sprite.width / side
    cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
    a, b, d, e = cos * mirror, sin * mirror, -sin, cos
    middle, center = sprite.width / 2, box / 2
    matrix = (a, b, middle - (a + b) * center, d, e, middle - (d + e) * center)
    drawn = sprite.transform((box, box), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    pixels = np.asarray(drawn, dtype=np.float32) / 255
    color, alpha = pixels[..., :3] @ _tint(rng), pixels[..., 3:]
    top, left = (int(place * (size - box + 1)) for place in rng.random(2))
    return _Layer(top, left, np.clip(color, 0, alpha), alpha)


def _tint(rng: Generator) -> Array:
    """Return a color matrix (3, 3): a small rotation of hue and a change of brightness."""
    angle = rng.uniform(-0.3, 0.3)
    cos, sin = math.cos(angle), math.sin(angle) / math.sqrt(3)
    mean = np.full((3, 3), (1 - cos) / 3)
    turn = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) * sin
    return ((mean + turn + np.eye(3) * cos) * rng.uniform(0.75, 1.1)).astype(np.float32)


# --- backgrounds: functions of a generator and a size that return (size, size, 3) in 0..1 --------


def _colors(rng: Generator, count: int) -> Array:
    return rng.uniform(0, 1, (count, 3)).astype(np.float32)


def _axes(rng: Generator, size: int) -> tuple[Array, Array]:
    """Return coordinates in 0..1, rotated by a random angle."""
    line = np.linspace(0, 1, size, dtype=np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    x, y = line[None, :], line[:, None]
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _blend(weight: Array, rng: Generator) -> Array:
    first, second = _colors(rng, 2)
    return first + (second - first) * weight[..., None].astype(np.float32)


def _smooth(rng: Generator, size: int, cells: int) -> Array:
    """Return random values on a coarse grid, upsampled to (size, size, 3)."""
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(large, dtype=np.float32) / 255


def _plain(rng: Generator, size: int) -> Array:
    return np.broadcast_to(_colors(rng, 1), (size, size, 3)).copy()


def _ramps(rng: Generator, size: int) -> Array:
    return _blend(_axes(rng, size)[0] % 1, rng)


def _clouds(rng: Generator, size: int) -> Array:
    return _smooth(rng, size, int(rng.integers(2, 9)))


def _stripes(rng: Generator, size: int) -> Array:
    return _blend(np.floor(_axes(rng, size)[0] * rng.integers(3, 14)) % 2, rng)


def _speckle(rng: Generator, size: int) -> Array:
    noise = rng.standard_normal((size, size, 3), dtype=np.float32)
    return np.clip(_colors(rng, 1)[0] + noise * rng.uniform(0.05, 0.3), 0, 1)


def _blocks(rng: Generator, size: int) -> Array:
    cells = int(rng.integers(2, 12))
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(large, dtype=np.float32) / 255


def _checks(rng: Generator, size: int) -> Array:
    x, y = _axes(rng, size)
    cells = rng.integers(3, 10)
    return _blend((np.floor(x * cells) + np.floor(y * cells)) % 2, rng)


def _waves(rng: Generator, size: int) -> Array:
    x, y = _axes(rng, size)
    frequency, swing = rng.uniform(15, 50), rng.uniform(0.02, 0.15)
    return _blend(0.5 + 0.5 * np.sin(frequency * (x + swing * np.sin(12 * y))), rng)


def _rings(rng: Generator, size: int) -> Array:
    x, y = np.meshgrid(*[np.linspace(0, 1, size, dtype=np.float32)] * 2)
    cx, cy = rng.uniform(0, 1, 2)
    radius = np.hypot(x - cx, y - cy)
    return _blend(0.5 + 0.5 * np.sin(radius * rng.uniform(15, 60)), rng)


def _horizon(rng: Generator, size: int) -> Array:
    """Return a sky over a ground, each with its own texture."""
    sky, ground = _smooth(rng, size, 3) * 0.4 + 0.5, _smooth(rng, size, 16) * 0.4 + 0.1
    line = np.linspace(0, 1, size)[:, None, None] > rng.uniform(0.35, 0.75)
    return np.where(line, ground, sky * _colors(rng, 1)[0] ** 0.3)


def _marble(rng: Generator, size: int) -> Array:
    veins = _smooth(rng, size, 5)[..., 0] + 0.5 * _smooth(rng, size, 11)[..., 0]
    return _blend(np.abs(np.sin(veins * rng.uniform(8, 20))), rng)


#: Kinds of background by split.
BACKGROUNDS: dict[str, tuple[BackgroundKind, ...]] = {
    "train": (_plain, _ramps, _clouds, _stripes, _speckle, _blocks),
    "validation": (_checks, _waves),
    "test": (_rings, _horizon, _marble),
}


# --- captions ------------------------------------------------------------------------------------

TEMPLATES = (
    "{}",
    "a picture of {}.",
    "a drawing of {}.",
    "there is {} here.",
    "we see {}.",
    "{} in the scene.",
    "{} on a background.",
)
#: Words that are not worth a warning, although few captions contain them.
FUNCTION_WORDS = "a an and are at by in is near of on or that the this to with"
PHRASES = ("a {}", "the {}", "{}", "one {}")


def prompt_templates() -> tuple[str, ...]:
    """Return the templates of captions of one object, each with a slot for the noun."""
    return tuple(template.format(phrase) for template in TEMPLATES for phrase in PHRASES)


def unknown_words(texts: Iterable[str]) -> list[str]:
    """Return the words of texts that no caption contains, without repetitions."""
    known = set(re.findall(r"\w+", " ".join([*nouns(), *prompt_templates(), FUNCTION_WORDS])))
    words = re.findall(r"\w+", " ".join(texts).lower())
    return [word for word in dict.fromkeys(words) if word not in known]


def _caption(rng: Generator, names: Sequence[str]) -> str:
    """Return a sentence that names the objects, in random order and wording."""
    phrase, template = rng.choice(PHRASES), rng.choice(TEMPLATES)
    phrases = [str(phrase).format(names[i]) for i in rng.permutation(len(names))]
    *others, last = phrases
    listing = f"{', '.join(others)} and {last}" if others else last
    return str(template).format(listing)
