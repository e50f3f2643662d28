"""Command `evaluate`: how well methods do on rendered scenes, and the way to data sets on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from captum_clip_surgery._utils.drivers import refuse_several
from captum_clip_surgery._utils.provenance import environment_info
from captum_clip_surgery.attr._registry import resolve_names
from captum_clip_surgery.cli import _datasets
from captum_clip_surgery.cli._model import (
    PLACEHOLDER,
    changed_options,
    choose_methods,
    load_model,
    read_lines,
    report_left_out,
    required_root,
    split_names,
)
from captum_clip_surgery.cli._options import Evaluate
from captum_clip_surgery.cli._queries import read_class_images, with_class_images
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.evaluation import evaluate_scenes, to_markdown
from captum_clip_surgery.evaluation._results import ALL_COLUMNS, DEFAULT_COLUMNS, write_results
from captum_clip_surgery.evaluation._scenes import MEASURES, check_measures

NUM_SCENES = 500
#: Options that scenes do not have, and those that only they have.
DATASET_OPTIONS = (
    "root",
    "tasks",
    "protocol",
    "batch_size",
    "workers",
    "resume",
    "array",
    "engine",
    "seed",
    "timeout",
)
SCENE_OPTIONS = ("distractors", "size", "measures")


def evaluate(options: Evaluate) -> None:
    """Run the command."""
    if options.dataset == "scenes":
        refuse_several("evaluate --dataset scenes")
        _check_unset(options, DATASET_OPTIONS, "scenes are rendered, not read from disk")
        _evaluate_scenes(options)
        return
    root = required_root(options)
    _check_unset(options, SCENE_OPTIONS, "on data sets, the protocol sets what these say of scenes")
    _datasets.evaluate(options, root)


def _check_unset(options: Evaluate, names: Sequence[str], reason: str) -> None:
    """Raise ValueError if one of the named options differs from its default."""
    if changed := changed_options(options, names):
        raise ValueError(
            f"{', '.join(changed)} cannot be combined with --dataset {options.dataset}: {reason}"
        )


def _evaluate_scenes(options: Evaluate) -> None:
    names = resolve_names(split_names(options.methods))
    limit, split = options.limit or NUM_SCENES, options.split or "test"
    measures = MEASURES if options.measures == "all" else split_names(options.measures)
    check_measures(measures, limit)
    images = read_class_images(options.query_image)
    clip = load_model(options.clip, PLACEHOLDER, quiet=options.json)
    clip = with_class_images(clip, images, nouns(), "the scenes")
    methods, left_out = choose_methods(clip, names, options.feature_surgery)
    report_left_out(left_out)
    scenes = Scenes(split, limit, options.size or clip.native_size[0], objects=[2, 3])
    results = evaluate_scenes(
        clip,
        scenes,
        methods,
        read_lines(options.distractors),
        options.size,
        progress=sys.stderr.isatty(),
        measures=measures,
    )
    provenance = {
        "dataset": f"scenes of 2 or 3 objects, {split}",
        "images": limit,
        "model": clip.tower.describe(),
        "features": clip.describe_features(),
        "feature_surgery": options.feature_surgery,
        "left_out": left_out,
        **environment_info(clip.device),
    }
    write_results(results, options.output, provenance)
    columns = DEFAULT_COLUMNS if tuple(measures) == ("localization",) else ALL_COLUMNS
    if options.json:
        print((options.output / "results.json").read_text(encoding="utf-8"))
        return
    print(to_markdown(results, columns, memory=True))
    print(f"\nAll measures, confidence intervals and a chart are in {options.output}.")
