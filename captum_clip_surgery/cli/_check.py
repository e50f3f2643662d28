"""Commands `models` and `check`: which models work, and a check-up of one of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from captum_clip_surgery.cli import _options
from captum_clip_surgery.cli._images import find_images
from captum_clip_surgery.cli._model import given_texts, load_model, read_lines
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.diagnostics import tower_report
from captum_clip_surgery.metrics._alone import EVERYDAY
from captum_clip_surgery.models._catalog import (
    list_models,
    list_transformers_models,
    to_markdown,
    transformers_markdown,
)
from captum_clip_surgery.preprocessing import ImageInput
from captum_clip_surgery.visualization import save_figure

NUM_SCENES = 12


def models(options: _options.Models) -> None:
    """Run the command."""
    entries = list_models(progress=sys.stderr.isatty())
    others = list_transformers_models()
    if options.json:
        print(json.dumps([entry.to_dict() for entry in entries + others], indent=2))
    else:
        print(f"{transformers_markdown(others)}\n\n{to_markdown(entries)}")


def check(options: _options.Check) -> None:
    """Run the command."""
    usual = nouns() if options.clip.model is None else EVERYDAY
    texts = given_texts(options.texts) or list(usual)
    paths = find_images(options.images or [])
    clip = load_model(options.clip, texts, read_lines(options.distractors), quiet=options.json)
    scenes = Scenes("test", NUM_SCENES, clip.native_size[0])
    images: Sequence[ImageInput] = paths or [scene.image for scene in scenes]
    report = tower_report(clip, clip.preprocess(images, options.size))
    path = save_figure(report.figure(), options.output / "check.png")
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    if not options.images:
        print(
            "No images given, so the report is about scenes of emoji. Give images of the kind you "
            "use."
        )
    print(f"{report}\n\nfigure: {path}")
