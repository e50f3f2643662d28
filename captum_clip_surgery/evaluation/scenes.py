"""Methods measured on scenes with ground truth: the same model, texts and measures for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from captum_clip_surgery._utils.profiling import ProfileResult, profile_call
from captum_clip_surgery.attr._base import Method
from captum_clip_surgery.attr._engine import explain_of
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.demo.scenes import Scene, nouns
from captum_clip_surgery.evaluation.results import Result
from captum_clip_surgery.metrics import PairMeasures, grid_pointing_game, insertion_deletion
from captum_clip_surgery.metrics.bootstrap import ImageMeans
from captum_clip_surgery.models import ModelWatch

#: What can be measured: maps against masks, pixels taken and given, the image among others.
MEASURES = ("localization", "faithfulness", "grid")
STEPS = 10  # of insertion and deletion
SIDE = 2  # images in a row of a grid, and rows


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
    """Every method on scenes with ground truth.

    "localization" measures the map of each object, the scene's own nouns being the texts.
    "faithfulness" is insertion and deletion of each scene's first object in 10 steps, its
    probability among all nouns. "grid" tiles each four scenes to one picture, all their nouns being
    the texts, and looks for an object that only one of them has, if there is one.

    Args:
        clip: a classifier, whose texts are replaced by each scene's nouns.
        scenes: pictures with masks.
        methods: by name; see `registry`.
        distractors: Further texts that compete in feature surgery; a scene's own nouns are left
            out.
        size: side of the images shown to the model; None is the native size.
        progress: whether to draw a progress bar.
        confidence: whether to take intervals, which costs a second or so a method.
        measures: of `MEASURES`.

    Raises:
        ValueError: a measure there is not, no measures, no scenes.
    """
    measures = tuple(measures)
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        raise ValueError(f"measures {list(measures)}; there are {', '.join(MEASURES)}")
    if not scenes:
        raise ValueError("no scenes to measure on")
    if "grid" in measures and len(scenes) < SIDE**2:
        raise ValueError(f"{len(scenes)} scenes make no grid of {SIDE} x {SIDE}; take more")
    distractors = tuple(distractors)
    pairs = {name: PairMeasures() for name in methods}
    means = {name: ImageMeans() for name in methods}
    costs: dict[str, list[ProfileResult]] = {name: [] for name in methods}
    judge = clip.with_texts(nouns()) if "faithfulness" in measures else None
    clip(clip.preprocess(scenes[0].image, size))  # what libraries allocate at first is nobody's
    watch = ModelWatch(clip.model, whole=True)
    bar = partial(tqdm, disable=not progress)
    for index, scene in enumerate(bar(scenes, desc="measuring", unit="scene")):
        image = clip.preprocess(scene.image, size)
        local = _with_distractors(clip, scene.nouns, distractors)
        for name, method in methods.items():
            maps, cost = explain(method, local, image)
            costs[name].append(cost)
            if "localization" in measures:
                for attribution, mask in zip(maps, torch.from_numpy(scene.masks), strict=True):
                    pairs[name].update(attribution, mask, index)
            if judge is not None:
                target = judge.index(scene.nouns[0])
                areas = insertion_deletion(judge, image, maps[:1], target, STEPS)
                insertion, deletion = (float(area) for area in areas)
                means[name].update(insertion=insertion, deletion=deletion)
        watch.check()
    if "grid" in measures:
        for start in bar(range(0, len(scenes), SIDE**2), desc="grids", unit="grid"):
            tiles = [scenes[i] for i in range(start, min(start + SIDE**2, len(scenes)))]
            for name, share in _grid_shares(clip, tiles, start, methods, distractors, size).items():
                means[name].update(grid_pointing=share)
            watch.check()
    return {
        name: _result(pairs[name], means[name], costs[name], "localization" in measures, confidence)
        for name in methods
    }


def explain(
    method: Method, clip: ZeroShotClassifier, image: Tensor
) -> tuple[Tensor, ProfileResult]:
    """A method's maps of one image on the CPU, (K, h, w), and what they cost."""
    with torch.no_grad():  # methods of gradients enable them themselves
        maps, cost = profile_call(partial(explain_of(method(clip)), image), image.device)
    return maps[0].detach().cpu(), cost


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
    """Each method's share of the map in the tile of its object; none for too few or like tiles."""
    found = _odd_one_out(tiles, start // SIDE**2 % SIDE**2) if len(tiles) == SIDE**2 else None
    if found is None:
        return {}
    cell, noun = found
    rows = [
        np.concatenate([t.image for t in tiles[i : i + SIDE]], 1)
        for i in range(0, len(tiles), SIDE)
    ]
    image = clip.preprocess(np.concatenate(rows), size)
    texts = list(dict.fromkeys(noun for tile in tiles for noun in tile.nouns))
    local = _with_distractors(clip, texts, distractors)
    shares = {}
    for name, method in methods.items():
        with torch.no_grad():
            maps = explain_of(method(local))(image, [local.index(noun)])
        shares[name] = grid_pointing_game(maps[0, 0], SIDE, SIDE, cell)
    return shares


def _odd_one_out(tiles: Sequence[Scene], first: int) -> tuple[int, str] | None:
    """A tile, from the first one on, and a noun that no other has."""
    for cell in ((first + step) % len(tiles) for step in range(len(tiles))):
        others = {n for other, tile in enumerate(tiles) if other != cell for n in tile.nouns}
        own = [noun for noun in tiles[cell].nouns if noun not in others]
        if own:
            return cell, own[0]
    return None


def _result(
    pairs: PairMeasures,
    means: ImageMeans,
    costs: Sequence[ProfileResult],
    localized: bool,
    confident: bool,
) -> Result:
    sources: list[PairMeasures | ImageMeans] = [means]
    if localized:
        sources.insert(0, pairs)
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    return Result(
        {key: value for source in sources for key, value in source.compute().items()},
        {key: value for source in sources for key, value in source.confidence().items()}
        if confident
        else {},
        sum(cost.seconds for cost in costs) / len(costs),
        max(peaks, default=None),
    )
