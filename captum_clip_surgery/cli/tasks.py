"""`segment`, `recognize`, `points` and `words`: what surgery enables, on one's own images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.cli.common import (
    Depth,
    Images,
    Json,
    Model,
    Pictures,
    Pretrained,
    Size,
    load_model,
    read_lines,
    say,
)
from captum_clip_surgery.demo import nouns
from captum_clip_surgery.functional import FORMS
from captum_clip_surgery.tasks import figures
from captum_clip_surgery.tasks import recognition as recognition_task
from captum_clip_surgery.tasks import segmentation as segmentation_task
from captum_clip_surgery.tasks.multimodal import word_maps
from captum_clip_surgery.tasks.points import INSTANCES, prompts
from captum_clip_surgery.tasks.sam import Sam
from captum_clip_surgery.visualization import save_figure

Text = Annotated[list[str] | None, typer.Option(help="A text; repeat for more.")]
Texts = Annotated[Path | None, typer.Option(help="File of texts, one a line.")]
Output = Annotated[Path, typer.Option(help="Folder for what is found.")]


def segment(
    images: Images,
    text: Text = None,
    texts: Texts = None,
    background: Annotated[
        list[str] | None, typer.Option(help="A text for what is no class; repeat for more.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Of the best class's probability; below it is background."),
    ] = None,
    model: Model = None,
    pretrained: Pretrained = None,
    size: Size = None,
    window: Annotated[int | None, typer.Option(help="Side of sliding windows in pixels.")] = None,
    stride: Annotated[int | None, typer.Option(help="From window to window in pixels.")] = None,
    keep_aspect: Annotated[bool, typer.Option(help="Do not squash images.")] = False,
    refine: Annotated[bool, typer.Option(help="Follow the image's edges (needs kornia).")] = False,
    feature_surgery: Annotated[
        str, typer.Option(help=f"{', '.join(FORMS)} or none, as in the paper.")
    ] = "none",
    num_blocks: Depth = None,
    output: Output = Path("clip-surgery-segments"),
    as_json: Json = False,
) -> None:
    """Give every pixel the class whose text it is most like: labels as PNG, and a figure."""
    clip = _load(model, pretrained, text, texts, as_json)
    if background and threshold is not None:
        raise ValueError("--background and --threshold both say what is background; give one")
    pictures, found, classes = Pictures(images), [], clip.texts
    for path, picture in pictures:
        (result,) = segmentation_task.segment(
            clip,
            [picture],
            size=size,
            background=background or threshold,
            window=window,
            stride=stride,
            keep_aspect=keep_aspect,
            refine=refine,
            feature_surgery=None if feature_surgery == "none" else feature_surgery,
            num_blocks=num_blocks,
        )
        stem, shares, classes = pictures.stems[path], result.shares(), result.classes
        labels = output / f"{stem}-labels.png"
        output.mkdir(parents=True, exist_ok=True)
        result.save(labels)
        figure = figures.segmentation_figure(np.asarray(picture), result)
        drawn = save_figure(figure, output / f"{stem}-segments.png")
        say(f"{path} -> {drawn}, {labels}", as_json)
        for name, share in shares.items():
            say(f"  {share:6.1%}  {name}", as_json)
        found.append({"image": str(path), "labels": str(labels), "shares": shares})
    _end(pictures, {"classes": classes, "images": found}, as_json)


def recognize(
    images: Images,
    text: Text = None,
    texts: Texts = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    threshold: Annotated[
        float | None, typer.Option(help="Name the classes that score higher instead.")
    ] = None,
    form: Annotated[
        str, typer.Option(help=f"Of feature surgery: {', '.join(FORMS)} or none.")
    ] = "release",
    model: Model = None,
    pretrained: Pretrained = None,
    size: Size = None,
    output: Output = Path("clip-surgery-recognition"),
    as_json: Json = False,
) -> None:
    """Name what images show: every class's score, and the best ones."""
    clip = _load(model, pretrained, text, texts, as_json)
    pictures, found = Pictures(images), []
    for path, picture in pictures:
        (result,) = recognition_task.recognize(
            clip, [picture], None if form == "none" else form, size=size
        )
        named = result.top(top) if threshold is None else result.above(threshold)
        figure = figures.recognition_figure(np.asarray(picture), result)
        drawn = save_figure(figure, output / f"{pictures.stems[path]}-classes.png")
        say(f"{path} -> {drawn}", as_json)
        for name, score in named:
            say(f"  {score:+.4f}  {name}", as_json)
        if not named:
            say(f"  no class scores above {threshold}", as_json)
        found.append({"image": str(path), "found": named, "scores": result.scores.tolist()})
    content = {"classes": list(clip.texts), "images": found}
    output.mkdir(parents=True, exist_ok=True)
    (output / "recognition.json").write_text(json.dumps(content, indent=2) + "\n")
    say(f"all scores: {output / 'recognition.json'}", as_json)
    _end(pictures, content, as_json)


def points(
    images: Images,
    text: Text = None,
    texts: Texts = None,
    union: Annotated[bool, typer.Option(help="One prompt for all texts.")] = False,
    instances: Annotated[str, typer.Option(help=f"{', '.join(INSTANCES)}.")] = "one",
    boxes: Annotated[bool, typer.Option(help="Boxes around what is found, too.")] = False,
    threshold: Annotated[float, typer.Option(help="Of the normalised map, 0 to 1.")] = 0.8,
    down_sample: Annotated[int, typer.Option(help="Divides the map's sides for points.")] = 2,
    sam: Annotated[
        Path | None, typer.Option(help="Folder of a SAM that transformers loads; draws its masks.")
    ] = None,
    model: Model = None,
    pretrained: Pretrained = None,
    size: Size = None,
    num_blocks: Depth = None,
    output: Output = Path("clip-surgery-points"),
    as_json: Json = False,
) -> None:
    """Points and boxes that prompt the Segment Anything Model: JSON, and a figure."""
    clip = _load(model, pretrained, text, texts, as_json)
    segmenter = None if sam is None else Sam.from_pretrained(sam, clip.device)
    pictures, found = Pictures(images), []
    for path, picture in pictures:
        (of_image,) = prompts(
            clip,
            [picture],
            union=union,
            instances=instances,
            boxes=boxes,
            threshold=threshold,
            down_sample=down_sample,
            size=size,
            num_blocks=num_blocks,
        )
        stem = pictures.stems[path]
        masks = None if segmenter is None else segmenter.masks(picture, of_image)
        figure = figures.points_figure(np.asarray(picture), of_image, masks)
        drawn = save_figure(figure, output / f"{stem}-points.png")
        entry: dict[str, Any] = {
            "image": str(path),
            "prompts": [prompt.to_dict() for prompt in of_image],
        }
        if masks is not None:
            entry["masks"] = []
            for number, mask in enumerate(masks):
                file = output / f"{stem}-mask-{number}.png"
                Image.fromarray(mask).save(file)
                entry["masks"].append(str(file))
        written = output / f"{stem}-points.json"
        written.write_text(json.dumps(entry, indent=2) + "\n")
        say(f"{path} -> {drawn}, {written}", as_json)
        for prompt in of_image:
            on = int(prompt.labels.sum())
            say(f"  {prompt.text}: {on} points on it, {len(prompt.labels) - on} off it", as_json)
        found.append(entry)
    _end(pictures, {"images": found}, as_json)


def words(
    images: Images,
    caption: Annotated[str, typer.Option(help="A sentence, whose words get a map each.")],
    special: Annotated[bool, typer.Option(help="Also for its start and end.")] = False,
    model: Model = None,
    pretrained: Pretrained = None,
    size: Size = None,
    num_blocks: Depth = None,
    output: Output = Path("clip-surgery-words"),
    as_json: Json = False,
) -> None:
    """Where images show each word of a caption, and which words matter."""
    # As it is, without templates, which would make it longer.
    clip = load_model(model, pretrained, [caption], quiet=as_json, templates=())
    pictures, found = Pictures(images), []
    for path, picture in pictures:
        (maps,) = word_maps(
            clip, [picture], [caption], special=special, num_blocks=num_blocks, size=size
        )
        figure = figures.words_figure(np.asarray(picture), maps)
        drawn = save_figure(figure, output / f"{pictures.stems[path]}-words.png")
        say(f"{path} -> {drawn}", as_json)
        for word, score in maps.shared():
            say(f"  {score:+.3f}  {word}", as_json)
        found.append({"image": str(path), **maps.to_dict()})
    content = {"caption": caption, "images": found}
    output.mkdir(parents=True, exist_ok=True)
    (output / "words.json").write_text(json.dumps(content) + "\n")
    _end(pictures, content, as_json)


def _load(
    model: str | None,
    pretrained: str | None,
    text: list[str] | None,
    texts: Path | None,
    quiet: bool,
) -> ZeroShotClassifier:
    wanted = [*(text or []), *read_lines(texts)]
    if not wanted and model is None:
        wanted = list(nouns())
    if not wanted:
        raise ValueError("no texts: give --text, once for each, or --texts FILE")
    return load_model(model, pretrained, wanted, quiet=quiet)


def _end(pictures: Pictures, content: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(content, indent=2))
    pictures.report()
