"""What queries other than texts find, on scenes of the embedded model.

    python benchmarks/queries.py [--scenes N] [--model FOLDER] [--output FILE.md]
    python benchmarks/queries.py --tables subtracted,gap

The figures of docs/queries.md:

- subtracted: feature surgery of texts, images and regions by what is subtracted, on validation
  scenes
- objects: how often the maximum of a map is inside the object of the same noun, on test scenes
- pairs: how often the regions that `explain_pair` finds are the object that two scenes share
- gap: cosines within and between images and texts of different scenes, and the distance between
  their means, which Liang et al. call the modality gap (Mind the Gap, NeurIPS 2022)

Query scenes are drawn with a fixed seed from validation scenes that show the noun, except for the
scene itself. They do not depend on `--scenes`, up to `NUM_EXAMPLES`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Annotated

import numpy as np
import torch
import typer
from _options import ModelFolder, TablesFile, load_model, split_names
from torch import Tensor
from tqdm import tqdm

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier, explain_pair
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.demo import Scene, Scenes
from captum_clip_surgery.evaluation import Result
from captum_clip_surgery.evaluation._results import DEFAULT_COLUMNS
from captum_clip_surgery.metrics import PairMeasures
from captum_clip_surgery.queries import (
    DifferenceQuery,
    FeatureQuery,
    ImageQuery,
    MeanQuery,
    Query,
    RegionQuery,
)
from captum_clip_surgery.queries._types import Part

#: Numbers of objects of the scenes, unless a table says otherwise.
OBJECTS = (2, 3)
SEED = 7
#: Numbers of scenes to draw query scenes from. There are more of those with a single object, so
#: that nearly every noun is in at least `NUM_AVERAGED` of either.
NUM_EXAMPLES, NUM_SINGLE_EXAMPLES = 400, 1000
#: Number of query scenes that are averaged.
NUM_AVERAGED = 3
#: Number of training scenes whose mean feature is subtracted.
NUM_TRAINING = 100
#: Number of pairs of regions among which the shared object is sought.
NUM_REGION_PAIRS = 3
BATCH_SIZE = 16
#: Side in pixels of scenes of which only the nouns are read, which are the same at every size.
SMALL_SIDE = 32
#: Value of the pixels of the gray image.
GRAY = 128

#: A scene's index and a noun to queries by the setting that they are measured in.
QueriesOf = Callable[[int, str], Mapping[Hashable, Query]]


@dataclass(frozen=True)
class Example:
    """A scene that shows a noun, as a query, and the noun's object in it."""

    image: ImageQuery
    region: RegionQuery


class Examples:
    """Validation scenes from which query scenes are drawn.

    Args:
        count: Number of scenes.
        side: Their side in pixels.
        objects: Numbers of objects from which each scene's is drawn.
    """

    def __init__(self, count: int, side: int, objects: Sequence[int]) -> None:
        self.scenes = Scenes("validation", count, side, objects)
        self._indices: dict[str, list[int]] = defaultdict(list)
        for index, scene in enumerate(Scenes("validation", count, SMALL_SIDE, objects)):
            for noun in scene.nouns:
                self._indices[noun].append(index)

    def draw(self, noun: str, index: int, count: int, itself: bool) -> list[Example]:
        """Draw scenes that show a noun: an empty list if there are fewer than `count`.

        Args:
            noun: The noun.
            index: Index of the scene that is queried.
            count: Number of scenes.
            itself: Whether the queried scene is one of these scenes; it is not drawn.
        """
        candidates = [each for each in self._indices[noun] if not (itself and each == index)]
        if len(candidates) < count:
            return []
        drawn = Random(f"{SEED} {index} {noun}").sample(candidates, count)
        return [_example(self.scenes[each], noun) for each in drawn]


def _example(scene: Scene, noun: str) -> Example:
    mask = scene.masks[scene.nouns.index(noun)]
    return Example(ImageQuery(scene.image), RegionQuery(scene.image, mask=mask))


def measure(
    clip: ZeroShotClassifier,
    scenes: Sequence[Scene],
    queries_of: QueriesOf,
    feature_surgery: str | None,
) -> dict[Hashable, PairMeasures]:
    """Measure the maps of each object's queries against its mask, by setting.

    All queries of a batch of scenes share one classifier and one pass of the image tower. A query's
    map is independent of the others if `feature_surgery` is "empty" or None.
    """
    measured: dict[Hashable, PairMeasures] = defaultdict(PairMeasures)
    for start in tqdm(range(0, len(scenes), BATCH_SIZE), desc="measuring", unit="batch"):
        batch = scenes[start : start + BATCH_SIZE]
        rows = [
            (number, mask, setting, query)
            for number, scene in enumerate(batch)
            for noun, mask in zip(scene.nouns, scene.masks, strict=True)
            for setting, query in queries_of(start + number, noun).items()
        ]
        if not rows:
            continue
        local = clip.with_queries([query for *_, query in rows])
        surgery = LayerCLIPSurgery(local, feature_surgery=feature_surgery)
        with torch.no_grad():
            maps = surgery.attribute_all(clip.preprocess([scene.image for scene in batch]))
        for column, (number, mask, setting, _) in enumerate(rows):
            measured[setting].update(maps[number, column], torch.from_numpy(mask), start + number)
    return measured


# --- what is subtracted --------------------------------------------------------------------------


def subtracted_queries(clip: ZeroShotClassifier) -> dict[str, Part | None]:
    """Return what is subtracted from queries, by name; None for nothing."""
    side = clip.native_size[0]
    images = [scene.image for scene in Scenes("train", NUM_TRAINING, side)]
    everything = np.ones((side, side), dtype=bool)
    averages = [
        MeanQuery([ImageQuery(image) for image in images], "images"),
        # As for any region, the mean token of a scene has length one.
        MeanQuery([RegionQuery(image, mask=everything) for image in images], "tokens"),
    ]
    # Encoded once here: as parts of other queries, they would be encoded again for every batch.
    embedding, token = clip.with_queries(averages).text_features()
    return {
        "nothing": None,
        "the empty text": FeatureQuery(clip.empty_features()),
        "the embedding of a gray image": ImageQuery(np.full((side, side, 3), GRAY, np.uint8)),
        f"the mean embedding of {NUM_TRAINING} training scenes": FeatureQuery(embedding),
        "the mean patch token of these scenes": FeatureQuery(token),
    }


def subtracted_table(clip: ZeroShotClassifier, count: int) -> str:
    """Compare what is subtracted from texts, images and regions."""
    side = clip.native_size[0]
    examples = Examples(max(count, NUM_EXAMPLES), side, OBJECTS)
    subtracted = subtracted_queries(clip)
    kinds = ("text", "image", "region")

    def queries_of(index: int, noun: str) -> dict[Hashable, Query]:
        return {
            (name, kind): query if other is None else DifferenceQuery(query, other)
            for example in examples.draw(noun, index, 1, itself=True)
            for kind, query in zip(kinds, (noun, example.image, example.region), strict=True)
            for name, other in subtracted.items()
        }

    scenes = Scenes("validation", count, side, OBJECTS)
    measured = measure(clip, scenes, queries_of, feature_surgery=None)
    rows = [[name, *(_cells(measured[name, kind]) for kind in kinds)] for name in subtracted]
    header = [f"subtracted ({' / '.join(DEFAULT_COLUMNS.values())})", *kinds]
    n_pairs = measured["nothing", "text"].n_pairs
    return _titled(f"{count} validation scenes, {n_pairs} objects", header, rows)


def _cells(measures: PairMeasures) -> str:
    result = Result(measures.compute(), {}, None, None)
    return " / ".join(result.cell(name) for name in DEFAULT_COLUMNS)


# --- objects that queries find -------------------------------------------------------------------


def objects_table(clip: ZeroShotClassifier, count: int) -> str:
    """Compare how often texts, images and regions point at an object."""
    side = clip.native_size[0]
    scenes = Scenes("test", count, side, OBJECTS)
    kinds = ("image", "region", f"mean of {NUM_AVERAGED} images", "text")
    rows = []
    for title, examples in {
        "two or three objects": Examples(NUM_EXAMPLES, side, OBJECTS),
        "a single object": Examples(NUM_SINGLE_EXAMPLES, side, [1]),
    }.items():

        def queries_of(
            index: int, noun: str, examples: Examples = examples
        ) -> dict[Hashable, Query]:
            drawn = examples.draw(noun, index, NUM_AVERAGED, itself=False)
            if not drawn:
                return {}
            mean = MeanQuery([example.image for example in drawn])
            return dict(zip(kinds, (drawn[0].image, drawn[0].region, mean, noun), strict=True))

        # "empty" is what "auto" chooses for the few texts of a scene.
        measured = measure(clip, scenes, queries_of, feature_surgery="empty")
        shares = [f"{measured[kind].compute()['pointing']:.1f}" for kind in kinds]
        rows.append([title, str(measured["text"].n_pairs), *shares])
    header = ["query scenes with", "objects", *kinds]
    return _titled(f"{count} test scenes, maxima inside the object in percent", header, rows)


# --- both sides of a match -----------------------------------------------------------------------


def pairs_table(clip: ZeroShotClassifier, count: int) -> str:
    """Count the pairs of scenes whose strongest pairs of regions are the object they share."""
    scenes = list(Scenes("validation", count, clip.native_size[0], OBJECTS))
    hits = []
    for first, second, noun in tqdm(list(_sharing(scenes)), desc="explaining", unit="pair"):
        pairs = explain_pair(clip, first.image, second.image).pairs(NUM_REGION_PAIRS)
        masks = [scene.masks[scene.nouns.index(noun)] for scene in (first, second)]
        inside = [
            _is_on(pair.query_region, masks[0]) and _is_on(pair.region, masks[1]) for pair in pairs
        ]
        hits.append((any(inside[:1]), any(inside)))
    header = [
        "pairs of scenes",
        "strongest pair of regions",
        f"one of the {NUM_REGION_PAIRS} strongest",
    ]
    shares = [f"{100 * share:.1f}" for share in np.mean(hits, axis=0)] if hits else ["-", "-"]
    row = [str(len(hits)), *shares]
    title = (
        f"{count} validation scenes, pairs that share exactly one noun, both centers on the shared "
        "object in percent"
    )
    return _titled(title, header, [row])


def _sharing(scenes: Sequence[Scene]) -> Iterator[tuple[Scene, Scene, str]]:
    """Yield the pairs of scenes that share exactly one noun, and this noun."""
    for first, second in combinations(scenes, 2):
        shared = set(first.nouns) & set(second.nouns)
        if len(shared) == 1:
            yield first, second, shared.pop()


def _is_on(region: Tensor, mask: np.ndarray) -> bool:
    """Return whether the center of a region (h, w) of patches is inside a mask (H, W)."""
    center = region.nonzero().double().mean(0) + 0.5  # in patches
    row, column = (center * torch.tensor(mask.shape) / torch.tensor(region.shape)).int().tolist()
    return bool(mask[row, column])


# --- the gap between images and texts ------------------------------------------------------------


def gap_table(clip: ZeroShotClassifier, count: int) -> str:
    """Compare the features of images with those of texts."""
    side = clip.native_size[0]
    scenes = list(Scenes("validation", count, side, OBJECTS))
    singles = list(Scenes("validation", count, side, [1]))
    captions = [scene.caption for scene in scenes]
    # Captions are sentences: templates are for nouns.
    tokenizer = clip.text_encoder.tokenizer
    plain = ZeroShotClassifier(clip.model, captions, tokenizer=tokenizer, templates=[])
    of_nouns = clip.with_texts([scene.nouns[0] for scene in singles])
    rows = [
        ["two or three objects, captions", *_gap(plain, scenes)],
        ["a single object, its noun", *_gap(of_nouns, singles)],
    ]
    header = [
        "scenes and texts",
        "images",
        "texts",
        "matching",
        "other scenes",
        "distance of means",
    ]
    title = f"{count} validation scenes, mean cosines among images, among texts and between both"
    return _titled(title, header, rows)


@torch.no_grad()
def _gap(clip: ZeroShotClassifier, scenes: Sequence[Scene]) -> list[str]:
    """Return the cells of a classifier whose texts match scenes one by one."""
    batches = [scenes[i : i + BATCH_SIZE] for i in range(0, len(scenes), BATCH_SIZE)]
    features = [
        clip.image_features(clip.preprocess([scene.image for scene in batch]))
        for batch in tqdm(batches, desc="embedding", unit="batch")
    ]
    images, texts = torch.cat(features).double(), clip.text_features().double()
    distance = (images.mean(0) - texts.mean(0)).norm()
    figures = [
        _mean_of_others(images @ images.T),
        _mean_of_others(texts @ texts.T),
        (images * texts).sum(-1).mean(),
        _mean_of_others(images @ texts.T),
        distance,
    ]
    return [f"{float(figure):.3f}" for figure in figures]


def _mean_of_others(cosines: Tensor) -> Tensor:
    """Return the mean of cosines (N, N) outside the diagonal."""
    return cosines[~torch.eye(len(cosines), dtype=torch.bool)].mean()


def _titled(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"**{title}**\n\n{markdown(header, rows)}\n"


#: Tables and their numbers of scenes, by name.
TABLES: dict[str, tuple[Callable[[ZeroShotClassifier, int], str], int]] = {
    "subtracted": (subtracted_table, 400),
    "objects": (objects_table, 200),
    "pairs": (pairs_table, 150),
    "gap": (gap_table, 400),
}


def main(
    tables: Annotated[str, typer.Option(help="Comma-separated tables.")] = ",".join(TABLES),
    scenes: Annotated[
        int | None,
        typer.Option(
            min=2, help="Number of scenes (default: 400; 200 for `objects`, 150 for `pairs`)."
        ),
    ] = None,
    model: ModelFolder = None,
    output: TablesFile = None,
) -> None:
    """Print the tables."""
    chosen = split_names(tables, TABLES, "--tables")
    clip = load_model(model, ["dog"])
    parts = []
    for name in chosen:
        table, count = TABLES[name]
        parts.append(table(clip, scenes or count))
        print(parts[-1], flush=True)
    if output is not None:
        output.write_text("\n".join(parts))


if __name__ == "__main__":
    typer.run(main)
