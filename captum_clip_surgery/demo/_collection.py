"""Scenes of one object each as a data set with masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from captum_clip_surgery.datasets import Classes, ImageDataset, Masks, Sample
from captum_clip_surgery.demo._scenes import BACKGROUNDS, render_scene

#: A function of a generator, a noun and a side that returns the background (side, side, 3) in 0..1.
Background = Callable[[np.random.Generator, str, int], np.ndarray]


def any_background(rng: np.random.Generator, noun: str, size: int) -> np.ndarray:
    """Return a background of any kind, whatever the noun."""
    kinds = [kind for split in BACKGROUNDS.values() for kind in split]
    return kinds[rng.integers(len(kinds))](rng, size)


class SceneCollection(ImageDataset):
    """A data set of rendered scenes: the same number for each noun, with exact masks.

    Args:
        names: The nouns.
        per_noun: Number of scenes of each noun.
        size: Side of the square images in pixels.
        seed: Seed of the scenes.
        background: Function of a generator, the noun and the side that returns the background
            (side, side, 3) in 0..1; None means all kinds of `Scenes`.

    Raises:
        ValueError: If there are no nouns, or scenes do not have one of them.

    Example::

        >>> data = SceneCollection(["dog", "pizza"], per_noun=3, size=64)
        >>> len(data), data[4].name, sorted(data[4].target.masks)
        (6, 'pizza-1', [1])
    """

    def __init__(
        self,
        names: Sequence[str],
        per_noun: int = 10,
        size: int = 128,
        seed: int = 0,
        background: Background | None = None,
    ) -> None:
        places = [f"{noun}-{number}" for noun in names for number in range(per_noun)]
        super().__init__("scenes", Classes(tuple((noun,) for noun in names), "scenes"), places)
        self.per_noun = per_noun
        self.size = size
        self.seed = seed
        self.background_of = background or any_background

    def read(self, index: int) -> Sample:
        """Render a scene."""
        label = index // self.per_noun
        noun = self.classes.first[label]
        rng = np.random.default_rng([self.seed, index])
        canvas = np.array(self.background_of(rng.spawn(1)[0], noun, self.size), np.float32)
        scene = render_scene(rng, canvas, [noun])
        image = Image.fromarray(scene.image)
        return Sample(self.names[index], image, Masks({label: scene.masks[0]}))
