"""Commands for tasks on the user's own images, from `segment` to `match`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captum_clip_surgery import tasks
from captum_clip_surgery._utils.text import quantity, slug
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.cli import _task_options
from captum_clip_surgery.cli._bridge import spell_arguments
from captum_clip_surgery.cli._images import ImageFiles
from captum_clip_surgery.cli._model import (
    PLACEHOLDER,
    check_contrast,
    echo,
    existing,
    feature_surgery_of,
    given_texts,
    load_model,
    read_lines,
    read_texts,
)
from captum_clip_surgery.cli._queries import load_with_queries
from captum_clip_surgery.datasets import Classes
from captum_clip_surgery.preprocessing import load_image
from captum_clip_surgery.tasks import Sam, default_background, figures
from captum_clip_surgery.tasks._prompts import NO_POINTS
from captum_clip_surgery.tasks._recognition import check_threshold
from captum_clip_surgery.tasks._sam import check_instances
from captum_clip_surgery.tasks._segmenter import MAX_COLORS, label_colors
from captum_clip_surgery.tasks._vocabulary import BACKGROUND
from captum_clip_surgery.visualization import save_figure

#: Smallest contribution that `match` prints: half of the last digit.
MIN_PRINTED = 0.0005
#: Number of words that are printed.
NUM_WORDS = 5


def segment(options: _task_options.Segment) -> None:
    """Run the command."""
    if options.queries.minus is not None:
        raise ValueError(
            "segment takes no --minus, because subtracting one text from all classes does not "
            "change which of their cosines is largest; give it as a class of its own, --text"
        )
    names = _class_names(options)
    own_background = [*names.pop(BACKGROUND, ()), *(options.background or ())]
    is_alone = len(names) < 2 and not options.queries.query_image
    if is_alone and options.no_background:
        raise ValueError(
            "--no-background assigns every pixel to one of the texts and needs at least two; give "
            "more, or leave it out"
        )
    files = ImageFiles(options.images)
    texts = [text for synonyms in names.values() for text in synonyms]
    distractors = read_lines(options.distractors)
    clip = load_with_queries(options.clip, texts, options.queries, distractors, options.json)
    if options.synonyms is None:  # names of queries are not their texts
        names = {name: (name,) for name in clip.texts}
    background = None if options.no_background else own_background or default_background(clip)
    if background and not own_background:
        texts_of_background = ", ".join(background)
        echo(f"background: {texts_of_background} (change it with --background)", options.json)
    arguments = vars(options.segmentation) | {
        "feature_surgery": feature_surgery_of(options.segmentation.feature_surgery),
        "classes": names,
        "background": background or options.threshold,
        "threshold": options.threshold if background else None,
    }
    entries, totals = [], Counter[str]()
    classes: Sequence[str] = tuple(names)
    for path, image in files:
        (result,) = tasks.segment(clip, [image], **arguments)
        stem, classes = options.output / files.stems[path], result.classes
        labels_path = stem.with_name(f"{stem.name}-labels.png")
        options.output.mkdir(parents=True, exist_ok=True)
        result.save(labels_path)
        figure = figures.segmentation_figure(np.asarray(image), result)
        figure_path = save_figure(figure, stem.with_name(f"{stem.name}-segments.png"))
        echo(f"{path} -> {figure_path}, {labels_path}", options.json)
        areas, shares = result.areas(), result.shares()
        for name, share in shares.items():
            percent = f"{share:.1%}" if share >= 0.001 else "<0.1%"
            echo(f"  {percent:>6}  {name}", options.json)
        entry: dict[str, Any] = {
            "image": str(path),
            "labels": str(labels_path),
            "areas": areas,
            "shares": shares,
        }
        if options.masks:
            indices = {name: classes.index(name) for name in areas}
            masks = [(result.labels == index).cpu().numpy() for index in indices.values()]
            tags = [f"{index}-{slug(name)}" for name, index in indices.items()]
            entry["masks"] = dict(zip(areas, _write_masks(masks, stem, tags), strict=True))
        totals.update(areas)
        entries.append(entry)
    content = {
        "classes": [_class_row(row, totals, len(classes)) for row in label_colors(classes)],
        "background": background,
        "images": entries,
    }
    path = _write_json(options.output / "classes.json", content)
    echo(f"classes, their colors in the label images and areas in pixels: {path}", options.json)
    _finish(files, content, options.json)


def _class_row(row: dict[str, Any], areas: Mapping[str, int], count: int) -> dict[str, Any]:
    """Return the entry of one of `count` classes in `classes.json`."""
    color = row["color"] if count <= MAX_COLORS else None  # label images are gray then
    return {**row, "color": color, "area": areas[row["name"]]}


def _class_names(options: _task_options.Segment) -> dict[str, tuple[str, ...]]:
    """Return the names of each class, by its own name."""
    if options.synonyms is None:
        texts = read_texts(options.texts, options.clip, options.queries)
        return {text: (text,) for text in texts}
    if given_texts(options.texts) or options.queries.query_image:
        raise ValueError("--synonyms lists all classes; leave out texts and queries")
    classes = Classes.read(existing(options.synonyms))
    names = dict(zip(classes.first, classes.synonyms, strict=True))
    if classes.background is not None:
        names[BACKGROUND] = names.pop(classes.first[0])
    return names


def recognize(options: _task_options.Recognize) -> None:
    """Run the command."""
    check_threshold(options.threshold)
    files, clip = _prepare(options, options.feature_surgery)
    surgery = feature_surgery_of(options.feature_surgery)
    entries = []
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
    check_instances(options.prompts.instances, options.prompts.union)
    if options.sam is not None:
        existing(options.sam)
    files, clip = _prepare(options, options.prompts.feature_surgery)
    sam = None if options.sam is None else Sam.from_pretrained(options.sam, clip.device)
    arguments = vars(options.prompts) | {
        "feature_surgery": feature_surgery_of(options.prompts.feature_surgery)
    }
    entries = []
    for path, image in files:
        (prompts,) = tasks.prompts(clip, [image], **arguments)
        masks = None if sam is None else sam.masks(image, prompts)
        stem = options.output / files.stems[path]
        figure = figures.points_figure(np.asarray(image), prompts, masks)
        figure_path = save_figure(figure, stem.with_name(f"{stem.name}-points.png"))
        entry: dict[str, Any] = {
            "image": str(path),
            "prompts": [prompt.to_dict() for prompt in prompts],
        }
        if masks is not None:
            tags = [f"{number}-{slug(prompt.text)}" for number, prompt in enumerate(prompts)]
            entry["masks"] = _write_masks(masks, stem, tags)
        json_path = _write_json(stem.with_name(f"{stem.name}-points.json"), entry)
        echo(f"{path} -> {figure_path}, {json_path}", options.json)
        for prompt in prompts:
            if not len(prompt.labels):
                reason = spell_arguments(NO_POINTS, ["down_sample"])  # the user's text stays
                echo(f"  {prompt.text} {reason}", options.json)
                continue
            positive = int(prompt.labels.sum())
            negative = len(prompt.labels) - positive
            echo(f"  {prompt.text}: {positive} positive, {negative} negative points", options.json)
        entries.append(entry)
    _finish(files, {"images": entries}, options.json)


def words(options: _task_options.Words) -> None:
    """Run the command."""
    if not options.caption.strip():
        raise ValueError("--caption is empty; give a sentence")
    if options.query_image or options.minus is not None:
        raise ValueError(
            "words takes no --query-image, because an image has no words ('match' shows which "
            "regions of two images match), and no --minus, because the map of a word depends only "
            "on its own caption ('explain' shows what speaks for one text rather than another)"
        )
    files, entries = ImageFiles(options.images), []
    # Without templates, which would make the caption longer than the context.
    clip = load_model(options.clip, [options.caption], quiet=options.json, templates=())
    for path, image in files:
        (maps,) = tasks.word_maps(clip, [image], [options.caption], **vars(options.words))
        figure = figures.words_figure(np.asarray(image), maps)
        figure_path = save_figure(figure, options.output / f"{files.stems[path]}-words.png")
        echo(f"{path} -> {figure_path}", options.json)
        strongest = maps.shared(len(maps.words))
        shown = strongest[:NUM_WORDS]
        if len(shown) < len(strongest):
            echo(f"  the {len(shown)} strongest of {len(strongest)} words:", options.json)
        for word, score in shown:
            echo(f"  {score:+.3f}  {word}", options.json)
        entries.append({"image": str(path), **maps.to_dict()})
    content = {"caption": options.caption, "method": options.words.method, "images": entries}
    _write_json(options.output / "words.json", content, indent=None)
    _finish(files, content, options.json)


def match(options: _task_options.Match) -> None:
    """Run the command."""
    if len(options.images) != 2:
        given = quantity(len(options.images), "file")
        raise ValueError(f"match takes two images, a query and an image, got {given}")
    query, image = map(load_image, options.images)
    clip = load_model(options.clip, PLACEHOLDER, quiet=options.json)
    result = tasks.explain_pair(clip, query, image, size=options.size)
    stem = "-".join(path.stem for path in options.images)
    names = options.images[0].name, options.images[1].name
    figure = result.figure(query, image, names=names, count=options.pairs)
    figure_path = save_figure(figure, options.output / f"{stem}-match.png")
    content: dict[str, Any] = dict(zip(("query", "image"), map(str, options.images), strict=True))
    content = content | result.to_dict(options.pairs)
    json_path = _write_json(options.output / f"{stem}-match.json", content, indent=None)
    echo(f"{content['query']}, {content['image']} -> {figure_path}, {json_path}", options.json)
    for line in _sum_lines(content):
        echo(line, options.json)
    if options.json:
        print(json.dumps(content, indent=2))


def _sum_lines(content: Mapping[str, Any]) -> list[str]:
    """Return lines whose numbers sum to the cosine: pairs of regions, other patches, remainder."""
    pairs = [pair for pair in content["pairs"] if pair["contribution"] >= MIN_PRINTED]
    others = content["patches"] - sum(pair["contribution"] for pair in pairs)
    lines = [
        f"  {pair['contribution']:+.3f}  query {_corners(pair['query_box'])}  "
        f"image {_corners(pair['box'])}"
        for pair in pairs
    ]
    lines.append(f"  {others:+.3f}  all other pairs of patches")
    lines.append(f"  {sum(content['remainder'].values()):+.3f}  outside patches")
    lines.append(f"  {content['cosine']:+.3f}  cosine, the sum")
    return lines


def _corners(box: Sequence[float]) -> str:
    left, top, right, bottom = box
    return f"({left:.0f}, {top:.0f})-({right:.0f}, {bottom:.0f})"


def _prepare(
    options: _task_options.Recognize | _task_options.Points, feature_surgery: str
) -> tuple[ImageFiles, ZeroShotClassifier]:
    """Check texts and images, then load the model, which takes longer."""
    texts = read_texts(options.texts, options.clip, options.queries)
    distractors, files = read_lines(options.distractors), ImageFiles(options.images)
    check_contrast(feature_surgery, texts, distractors, options.queries)
    return files, load_with_queries(options.clip, texts, options.queries, distractors, options.json)


def _write_masks(masks: Any, stem: Path, tags: Sequence[str]) -> list[str]:
    """Write masks (H, W) of bool as PNG files with the tags in their names; return the paths."""
    paths = [stem.with_name(f"{stem.name}-mask-{tag}.png") for tag in tags]
    for path, mask in zip(paths, masks, strict=True):
        Image.fromarray(mask).save(path)
    return [str(path) for path in paths]


def _write_json(path: Path, content: object, indent: int | None = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
    return path


def _finish(files: ImageFiles, content: object, as_json: bool) -> None:
    if as_json:
        print(json.dumps(content, indent=2))
    files.exit_if_unreadable()
