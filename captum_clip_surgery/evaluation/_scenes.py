"""Evaluation on scenes of the embedded model, with exact masks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from captum_clip_surgery._utils.profiling import ProfileResult, profile_call
from captum_clip_surgery._utils.text import did_you_mean
from captum_clip_surgery.attr import Method
from captum_clip_surgery.attr._coverage import cover_image
from captum_clip_surgery.attr._engine import explain_of
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.demo._scenes import Scene, nouns
from captum_clip_surgery.evaluation._results import Result
from captum_clip_surgery.metrics import (
    PairMeasures,
    grid_pointing_game,
    image_specificity,
    insertion_deletion,
)
from captum_clip_surgery.metrics._alone import NUM_ABSENT, ask_alone, maps_alone
from captum_clip_surgery.metrics._bootstrap import ImageMeans
from captum_clip_surgery.models._guards import ModelWatch

#: Maps against masks; the effect of pixels on the score; maps of an image among others; maps for
#: other texts and of other images.
MEASURES = ("localization", "faithfulness", "grid", "specificity")
#: Number of steps of insertion and deletion.
STEPS = 10
#: Number of scenes per row and per column of a grid.
GRID = 2
#: Measures of specificity by the kind of maps that a map is compared with.
TITLES = {"absent": "text", "nonsense": "nonsense"}


@dataclass
class _Totals:
    """Accumulated values from which one method's results are computed."""

    pairs: PairMeasures = field(default_factory=PairMeasures)
    means: ImageMeans = field(default_factory=ImageMeans)
    costs: list[ProfileResult] = field(default_factory=list)

    def result(self, localized: bool, confidence: bool) -> Result:
        """Return the measures, with confidence intervals if requested."""
        sources: list[PairMeasures | ImageMeans] = [self.means]
        if localized:
            sources.insert(0, self.pairs)
        peaks = [cost.peak_bytes for cost in self.costs if cost.peak_bytes is not None]
        return Result(
            {key: value for source in sources for key, value in source.compute().items()},
            {
                key: interval
                for source in (sources if confidence else ())
                for key, interval in source.confidence().items()
            },
            sum(cost.seconds for cost in self.costs) / len(self.costs),
            max(peaks, default=None),
        )


def evaluate_scenes(
    clip: ZeroShotClassifier,
    scenes: Sequence[Scene],
    methods: Mapping[str, Method],
    distractors: Iterable[str] = (),
    size: int | None = None,
    progress: bool = True,
    confidence: bool = True,
    measures: Iterable[str] = ("localization",),
) -> dict[str, Result]:
    """Measure methods on scenes with exact masks.

    "localization" compares the map of each object with its mask; the texts are the scene's own
    nouns. "faithfulness" is insertion and deletion of each scene's first object in 10 steps, with
    its probability among all nouns. "grid" joins every four scenes into one image, with all their
    nouns as texts, and looks for an object that only one of them has, if there is one.
    "specificity" is the rank correlation of the map of each scene's first object with maps for four
    absent nouns, for nonsense, and of the previous scene, with each text used alone: nine maps per
    scene.

    Args:
        clip: A classifier, whose texts are replaced by each scene's nouns.
        scenes: Images with masks.
        methods: Functions that create methods for a classifier, by name; see `METHODS`.
        distractors: Further texts that compete in feature surgery; a scene's own nouns are left
            out.
        size: Side in pixels of the images that the model sees; None means the native size.
        progress: Whether to show a progress bar.
        confidence: Whether to compute confidence intervals, about a second per method.
        measures: Names in `MEASURES`.

    Returns:
        Results by method.

    Raises:
        ValueError: If a measure is unknown, or there are no measures or too few scenes.
        RuntimeError: If the model changes during the run.
    """
    measures, distractors = tuple(measures), tuple(distractors)
    check_measures(measures, len(scenes))
    totals = {name: _Totals() for name in methods}
    competing = clip.with_texts(nouns()) if "faithfulness" in measures else None
    clip(clip.preprocess(scenes[0].image, size))  # what libraries allocate once counts for none
    watch = ModelWatch(clip.model, whole=True)
    bar = partial(tqdm, disable=not progress)
    for index, scene in enumerate(bar(scenes, desc="measuring", unit="scene")):
        image = clip.preprocess(scene.image, size)
        local = _with_distractors(clip, scene.nouns, distractors)
        for name, method in methods.items():
            maps, cost = profile(method, local, image)
            totals[name].costs.append(cost)
            if "localization" in measures:
                for attribution, mask in zip(maps, torch.from_numpy(scene.masks), strict=True):
                    totals[name].pairs.update(attribution, mask, index)
            if competing is not None:
                target = competing.index(scene.nouns[0])
                areas = insertion_deletion(competing, image, maps[:1], target, STEPS)
                insertion, deletion = (float(area) for area in areas)
                totals[name].means.update(insertion=insertion, deletion=deletion)
        if "specificity" in measures:
            before = None if index == 0 else clip.preprocess(scenes[index - 1].image, size)
            figures = _specificity(clip, methods, scene, image, before, index)
            for name, values in figures.items():
                totals[name].means.update(**values)
        watch.check()
    if "grid" in measures:
        for start in bar(range(0, len(scenes), GRID**2), desc="grids", unit="grid"):
            tiles = [scenes[i] for i in range(start, min(start + GRID**2, len(scenes)))]
            shares = _grid_shares(clip, tiles, start, methods, distractors, size)
            for name, share in shares.items():
                totals[name].means.update(grid_pointing=share)
            watch.check()
    localized = "localization" in measures
    return {name: total.result(localized, confidence) for name, total in totals.items()}


def _specificity(
    clip: ZeroShotClassifier,
    methods: Mapping[str, Method],
    scene: Scene,
    image: Tensor,
    before: Tensor | None,
    index: int,
) -> dict[str, dict[str, float]]:
    """Return each method's correlations for a scene's first object, by measure."""
    noun = scene.nouns[0]
    absent = [other for other in nouns() if other not in scene.nouns]
    drawn = random.Random(index).sample(absent, NUM_ABSENT)
    asked = ask_alone(clip, methods, image, [[noun]], [drawn])
    figures = {}
    for name in methods:
        means = asked.specificity(name).means()
        figures[name] = {f"{TITLES[kind]}_specificity": mean for kind, mean in means.items()}
    if before is not None:
        tables = maps_alone(clip, methods, before, [noun])
        for name in methods:
            own, other = asked.tables[0][name][noun], tables[name][noun]
            figures[name]["image_specificity"] = image_specificity(own, other[None])
    return figures


def check_measures(measures: Sequence[str], num_scenes: int) -> None:
    """Check names of measures and the number of scenes.

    Raises:
        ValueError: If a measure is unknown, or there are no measures or too few scenes.
    """
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        hint = did_you_mean(unknown[0], MEASURES) if unknown else ""
        raise ValueError(
            f"measures must be one of {', '.join(MEASURES)}, got {list(measures)}{hint}"
        )
    if not num_scenes:
        raise ValueError("no scenes to measure on")
    if "grid" in measures and num_scenes < GRID**2:
        raise ValueError(
            f"a grid of {GRID} x {GRID} needs at least {GRID**2} scenes, got {num_scenes}"
        )


def profile(
    method: Method, clip: ZeroShotClassifier, image: Tensor
) -> tuple[Tensor, ProfileResult]:
    """Return a method's maps (K, h, w) of one image on the CPU, and their cost."""
    with torch.no_grad():  # methods that need gradients enable them themselves
        maps, cost = profile_call(partial(explain_of(method(clip)), image), image.device)
    return cover_image(clip, maps, image)[0].detach().cpu(), cost


def _with_distractors(
    clip: ZeroShotClassifier, texts: Sequence[str], distractors: Sequence[str]
) -> ZeroShotClassifier:
    return clip.with_texts(
        texts, [distractor for distractor in distractors if distractor not in texts]
    )


def _grid_shares(
    clip: ZeroShotClassifier,
    tiles: Sequence[Scene],
    start: int,
    methods: Mapping[str, Method],
    distractors: Sequence[str],
    size: int | None,
) -> dict[str, float]:
    """Return the share of each method's map in the tile of its object.

    It is empty if there are too few tiles, or no object is in one of them only.
    """
    if len(tiles) < GRID**2:
        return {}
    unique = _odd_one_out(tiles, start // GRID**2 % GRID**2)
    if unique is None:
        return {}
    cell, noun = unique
    rows = [
        np.concatenate([t.image for t in tiles[i : i + GRID]], 1)
        for i in range(0, len(tiles), GRID)
    ]
    image = clip.preprocess(np.concatenate(rows), size)
    texts = list(dict.fromkeys(noun for tile in tiles for noun in tile.nouns))
    local = _with_distractors(clip, texts, distractors)
    shares = {}
    for name, method in methods.items():
        with torch.no_grad():
            maps = cover_image(local, explain_of(method(local))(image, [local.index(noun)]), image)
        shares[name] = grid_pointing_game(maps[0, 0], GRID, GRID, cell)
    return shares


def _odd_one_out(tiles: Sequence[Scene], first: int) -> tuple[int, str] | None:
    """Return a tile, starting the search at `first`, and a noun that no other tile has."""
    for cell in ((first + step) % len(tiles) for step in range(len(tiles))):
        others = {n for other, tile in enumerate(tiles) if other != cell for n in tile.nouns}
        unique = [noun for noun in tiles[cell].nouns if noun not in others]
        if unique:
            return cell, unique[0]
    return None
