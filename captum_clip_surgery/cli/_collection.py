"""Command `audit`: classes that lean on the background."""

from __future__ import annotations

import json
import sys

from captum_clip_surgery._utils.text import quantity
from captum_clip_surgery.cli._collection_options import Audit
from captum_clip_surgery.cli._images import find_images
from captum_clip_surgery.cli._model import (
    PLACEHOLDER,
    changed_options,
    echo,
    existing,
    given_texts,
    load_model,
    read_lines,
    required_root,
    required_texts,
)
from captum_clip_surgery.collection import audit as audit_collection
from captum_clip_surgery.collection._report import rows_of, summary
from captum_clip_surgery.datasets import Boxes, ImageDataset, PlainImages, open_dataset
from captum_clip_surgery.demo import SceneCollection, nouns
from captum_clip_surgery.evaluation._runner import draw_sample

#: Nouns of scenes, and scenes of each.
NUM_NOUNS, SCENES_PER_NOUN = 24, 10
#: Options that only data sets have.
DATASET_OPTIONS = ("dataset", "root", "split")


def audit(options: Audit) -> None:
    """Run the command."""
    data, cues = _open(options), read_lines(options.cues)
    clip = load_model(options.clip, PLACEHOLDER, quiet=options.json)
    if data is None:
        size = options.size or clip.native_size[0]
        data = SceneCollection(nouns()[::6][:NUM_NOUNS], SCENES_PER_NOUN, size)
    result = audit_collection(
        clip,
        data,
        draw_sample(len(data), options.limit, options.seed),
        options.size,
        options.min_images,
        options.false_alarms,
        cues,
        options.batch_size,
        progress=sys.stderr.isatty(),
    )
    path = result.write(options.output)
    if options.json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    echo(summary(result).replace("**", "").removeprefix("# "))
    echo("\n".join(["", *rows_of(result.classes)]))
    if result.left_out:
        echo(
            f"\n{quantity(len(result.left_out), 'class')} left out, each with its reason in the "
            f"report: fewer than {options.min_images} images, or no background in images of other "
            "classes; raise --limit or lower --min-images"
        )
    echo(f"\nreport: {path}")
    if not result.classes:
        sys.exit("error: no class was audited")


def _open(options: Audit) -> ImageDataset | None:
    """Return the images to audit; None means scenes, whose size depends on the model."""
    if options.images and options.boxes:
        raise ValueError("give image files or --boxes, not both; --boxes names its images")
    changed = changed_options(options, DATASET_OPTIONS)
    if changed and (options.images or options.boxes):
        raise ValueError(f"{', '.join(changed)} cannot be combined with files of your own")
    if not options.images and given_texts(options.texts):
        raise ValueError(
            "--text and --texts need image files, whose classes they are; boxes and data sets have "
            "classes of their own"
        )
    if options.boxes:
        return Boxes(existing(options.boxes))
    if options.images:
        texts = required_texts(options.texts)
        if len(texts) < 2:
            raise ValueError("an audit needs at least 2 classes, got 1; add --text or --texts")
        return PlainImages(find_images(options.images), texts)
    if options.dataset == "scenes":
        if options.root is not None or options.split is not None:
            raise ValueError(
                "--root and --split belong to a data set on disk; choose it with --dataset"
            )
        return None
    return open_dataset(options.dataset, required_root(options), options.split)
