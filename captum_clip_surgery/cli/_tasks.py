"""Commands `segment`, `recognize`, `points` and `words`: tasks on the user's own images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captum_clip_surgery import tasks
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.cli import _task_options
from captum_clip_surgery.cli._images import ImageFiles
from captum_clip_surgery.cli._model import echo, feature_surgery_of, load_model, read_texts
from captum_clip_surgery.tasks import Sam, figures
from captum_clip_surgery.visualization import save_figure


def segment(options: _task_options.Segment) -> None:
    """Run the command."""
    clip = _load(options)
    arguments = vars(options.segmentation) | {
        "feature_surgery": feature_surgery_of(options.segmentation.feature_surgery),
        "background": options.background or options.threshold,
        "threshold": options.threshold if options.background else None,
    }
    files, entries, classes = ImageFiles(options.images), [], clip.texts
    for path, image in files:
        (result,) = tasks.segment(clip, [image], **arguments)
        stem, shares, classes = files.stems[path], result.shares(), result.classes
        labels_path = options.output / f"{stem}-labels.png"
        options.output.mkdir(parents=True, exist_ok=True)
        result.save(labels_path)
        figure = figures.segmentation_figure(np.asarray(image), result)
        figure_path = save_figure(figure, options.output / f"{stem}-segments.png")
        echo(f"{path} -> {figure_path}, {labels_path}", options.json)
        for name, share in shares.items():
            echo(f"  {share:6.1%}  {name}", options.json)
        entries.append({"image": str(path), "labels": str(labels_path), "shares": shares})
    _finish(files, {"classes": classes, "images": entries}, options.json)


def recognize(options: _task_options.Recognize) -> None:
    """Run the command."""
    clip = _load(options)
    surgery = feature_surgery_of(options.feature_surgery)
    files, entries = ImageFiles(options.images), []
    for path, image in files:
        (result,) = tasks.recognize(clip, [image], surgery, size=options.size)
        threshold = options.threshold
        best = result.top(options.top) if threshold is None else result.above(threshold)
        figure = figures.recognition_figure(np.asarray(image), result)
        figure_path = save_figure(figure, options.output / f"{files.stems[path]}-classes.png")
        echo(f"{path} -> {figure_path}", options.json)
        for name, score in best:
            echo(f"  {score:+.4f}  {name}", options.json)
        if not best:
            echo(f"  no class scores above {threshold}", options.json)
        entries.append({"image": str(path), "best": best, "scores": result.scores.tolist()})
    content = {"classes": list(clip.texts), "images": entries}
    path = _write_json(options.output / "recognition.json", content)
    echo(f"all scores: {path}", options.json)
    _finish(files, content, options.json)


def points(options: _task_options.Points) -> None:
    """Run the command."""
    clip = _load(options)
    sam = None if options.sam is None else Sam.from_pretrained(options.sam, clip.device)
    files, entries = ImageFiles(options.images), []
    for path, image in files:
        (prompts,) = tasks.prompts(clip, [image], **vars(options.prompts))
        masks = None if sam is None else sam.masks(image, prompts)
        stem = options.output / files.stems[path]
        figure = figures.points_figure(np.asarray(image), prompts, masks)
        figure_path = save_figure(figure, stem.with_name(f"{stem.name}-points.png"))
        entry: dict[str, Any] = {
            "image": str(path),
            "prompts": [prompt.to_dict() for prompt in prompts],
        }
        if masks is not None:
            entry["masks"] = _write_masks(masks, stem)
        json_path = _write_json(stem.with_name(f"{stem.name}-points.json"), entry)
        echo(f"{path} -> {figure_path}, {json_path}", options.json)
        for prompt in prompts:
            positive = int(prompt.labels.sum())
            negative = len(prompt.labels) - positive
            echo(f"  {prompt.text}: {positive} positive, {negative} negative points", options.json)
        entries.append(entry)
    _finish(files, {"images": entries}, options.json)


def words(options: _task_options.Words) -> None:
    """Run the command."""
    # Without templates, which would make the caption longer than the context.
    clip = load_model(options.clip, [options.caption], quiet=options.json, templates=())
    files, entries = ImageFiles(options.images), []
    for path, image in files:
        (maps,) = tasks.word_maps(clip, [image], [options.caption], **vars(options.words))
        figure = figures.words_figure(np.asarray(image), maps)
        figure_path = save_figure(figure, options.output / f"{files.stems[path]}-words.png")
        echo(f"{path} -> {figure_path}", options.json)
        for word, score in maps.shared():
            echo(f"  {score:+.3f}  {word}", options.json)
        entries.append({"image": str(path), **maps.to_dict()})
    content = {"caption": options.caption, "method": options.words.method, "images": entries}
    _write_json(options.output / "words.json", content, indent=None)
    _finish(files, content, options.json)


def _load(
    options: _task_options.Segment | _task_options.Recognize | _task_options.Points,
) -> ZeroShotClassifier:
    return load_model(options.clip, read_texts(options.texts, options.clip), quiet=options.json)


def _write_masks(masks: Any, stem: Path) -> list[str]:
    """Write masks (H, W) of bool as PNG files, and return their paths."""
    paths = [stem.with_name(f"{stem.name}-mask-{number}.png") for number in range(len(masks))]
    for path, mask in zip(paths, masks, strict=True):
        Image.fromarray(mask).save(path)
    return [str(path) for path in paths]


def _write_json(path: Path, content: object, indent: int | None = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent) + "\n")
    return path


def _finish(files: ImageFiles, content: object, as_json: bool) -> None:
    if as_json:
        print(json.dumps(content, indent=2))
    files.exit_if_unreadable()
