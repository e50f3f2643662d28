"""Commands `demo`, `explain` and `compare`: where a model sees texts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from captum_clip_surgery import comparison
from captum_clip_surgery._utils.similarity import describe_similarities, format_cosines
from captum_clip_surgery.attr import METHODS, Method, attribute_many
from captum_clip_surgery.attr._coverage import cover_image
from captum_clip_surgery.attr._descriptions import title_of
from captum_clip_surgery.attr._registry import DEFAULT_METHODS, resolve_names
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.cli import _options
from captum_clip_surgery.cli._images import ImageFiles
from captum_clip_surgery.cli._model import (
    EMBEDDED_MODEL_NOTE,
    check_contrast,
    choose_methods,
    echo,
    read_lines,
    report_left_out,
    required_texts,
    split_names,
)
from captum_clip_surgery.cli._queries import load_with_queries
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.diagnostics import trust
from captum_clip_surgery.evaluation import evaluate_scenes, to_markdown
from captum_clip_surgery.functional import CONTRASTING
from captum_clip_surgery.metrics._alone import describe_specificity, specificity_of_maps
from captum_clip_surgery.visualization import compare_figure, save_figure

#: Number of first images from which registers are found.
MAX_REGISTER_IMAGES = 64
#: Index of the test scene that `demo` shows: three objects, each found by its own map.
DEMO_SCENE = 60


def demo(options: _options.Demo) -> None:
    """Run the command."""
    start = time.perf_counter()
    print(EMBEDDED_MODEL_NOTE)
    names = ", ".join(DEFAULT_METHODS)
    print(f"Measuring {names} on {options.scenes} scenes. This can take a minute ...", flush=True)
    test = Scenes("test", max(options.scenes, DEMO_SCENE + 1), size=256, objects=[2, 3])
    scene = test[DEMO_SCENE]
    clip = ZeroShotClassifier.demo(scene.nouns)
    batch = clip.preprocess(scene.image)
    maps = _explain(clip, batch, _default_methods())
    with torch.no_grad():
        logits = clip(batch)
    cosines = clip.cosines(logits)[0].tolist()
    notes = format_cosines(cosines, clip.differences)
    path = _write_figure(options.output / "demo.png", scene.image, maps, clip.texts, notes)
    results = evaluate_scenes(
        clip,
        test[: options.scenes],
        _default_methods(),
        progress=sys.stderr.isatty(),
        confidence=False,
    )
    pairs = results["CLIP"].measures["n_pairs"]
    print(
        f"\nHow well the maps find {pairs:.0f} objects in {options.scenes} test scenes, compared "
        f"with their masks:\n\n{to_markdown(results)}\n\n"
        "mIoU: overlap with the mask in percent. mSC: mean score inside minus outside the mask, in "
        "percent;\nbelow zero, a method points at the background. pointing: percent of maxima "
        "inside the mask.\nms: time per image.\n\n"
        f"The figure is {path}. All of this took {time.perf_counter() - start:.0f} s.\n"
        "Next: clip-surgery explain photo.jpg --text dog --text cat --model ViT-B-16 --pretrained "
        "openai"
    )


def explain(options: _options.Explain) -> None:
    """Run the command."""
    if options.trust and options.feature_surgery in CONTRASTING:
        raise ValueError(
            f"--trust asks for each text alone, but --feature-surgery {options.feature_surgery} "
            "contrasts texts; choose auto, empty or none"
        )
    files, clip, methods, left_out = _prepare(options)
    report_left_out(left_out)
    entries = []
    for path, image in files:
        stem = options.output / files.stems[path]
        batch = clip.preprocess(image, options.size)
        maps = _explain(clip, batch, methods)
        with torch.no_grad():
            logits = clip(batch)
        cosines = clip.cosines(logits)[0].tolist()
        matches = _matches(clip, cosines, logits[0].softmax(-1).tolist())
        text_notes = format_cosines(cosines, clip.differences)
        notes = _trust_notes(clip, methods, batch) if options.trust else None
        suffix = options.drawing.format
        figure_path = stem.with_name(f"{stem.name}-maps.{suffix}")
        sign = options.drawing.sign
        _write_figure(figure_path, np.asarray(image), maps, clip.texts, text_notes, sign, notes)
        echo(f"{path} -> {figure_path}", options.json)
        ranking = logits[0].argsort(descending=True, stable=True).tolist()
        for index in ranking:
            echo(f"  {clip.texts[index]}: {matches[index][1]}", options.json)
        entry: dict[str, Any] = {
            "image": str(path),
            "figure": str(figure_path),
            "texts": [matches[index][0] for index in ranking],
        }
        if options.trust:
            method = next(iter(methods.values()))
            report = trust(clip, method, batch, clip.texts[ranking[0]])
            entry["trust"] = f"{report.method}, {clip.texts[ranking[0]]!r}: {report.verdict}"
            echo(f"  {entry['trust']} ({report.passes})", options.json)
            save_figure(report.figure(), stem.with_name(f"{stem.name}-trust.{suffix}"))
            report_path = stem.with_name(f"{stem.name}-trust.md")
            report_path.write_text(f"{report.to_markdown()}\n", encoding="utf-8")
        if options.npz:
            entry["npz"] = str(stem.with_name(f"{stem.name}-maps.npz"))
            _write_maps(Path(entry["npz"]), maps, clip.texts)
        entries.append(entry)
    if options.json:
        print(json.dumps({"images": entries, "left_out": left_out}, indent=2))
    elif len(clip.texts) == 1 and entries:
        print("A cosine alone does not say how well a text matches: add texts to compare with.")
    files.exit_if_unreadable()


def compare(options: _options.Compare) -> None:
    """Run the command."""
    files, clip, methods, left_out = _prepare(options)
    images = [image for _, image in files]
    if not images:
        files.exit_if_unreadable()
    result = comparison.compare(
        clip,
        images,
        methods=methods,
        size=options.size,
        trust=options.trust,
        progress=sys.stderr.isatty(),
    )
    left_out |= result.left_out
    report_left_out(left_out)
    table = result.to_markdown()
    figure = result.figure(options.scales, options.drawing.sign)
    path = save_figure(figure, options.output / f"compare.{options.drawing.format}")
    (options.output / "compare.md").write_text(table + "\n", encoding="utf-8")
    if options.json:
        content = {"figure": str(path), "methods": result.rows(), "left_out": left_out}
        print(json.dumps(content, indent=2))
    else:
        print(f"{table}\nfigure: {path}")
    files.exit_if_unreadable()


def _prepare(
    options: _options.Explain | _options.Compare,
) -> tuple[ImageFiles, ZeroShotClassifier, dict[str, Method], dict[str, str]]:
    """Check the options, load the model and select methods, with a reason for each one left out."""
    names = resolve_names(split_names(options.methods))
    texts = required_texts(options.texts, options.queries)
    files = ImageFiles(options.images)
    if isinstance(options, _options.Compare):
        comparison.check_rows(len(files.paths), len(texts))
    distractors = read_lines(options.distractors)
    check_contrast(options.feature_surgery, texts, distractors, options.queries)
    clip = load_with_queries(options.clip, texts, options.queries, distractors, options.json)
    repair = options.repair
    if repair == "registers":
        clip, repair = _with_registers(clip, files, options.size), None
    methods, left_out = choose_methods(clip, names, options.feature_surgery, options.fine, repair)
    return files, clip, methods, left_out


def _with_registers(
    clip: ZeroShotClassifier, files: ImageFiles, size: int | None
) -> ZeroShotClassifier:
    images = [image for _, image in islice(files, MAX_REGISTER_IMAGES)]
    if not images:
        files.exit_if_unreadable()
    return clip.with_registers(clip.preprocess(images, size))


def _matches(
    clip: ZeroShotClassifier, cosines: Sequence[float], shares: Sequence[float]
) -> list[tuple[dict[str, Any], str]]:
    """Return each text's match with an image, as JSON values and in words."""
    differences = clip.differences
    values = [
        {"text": text, "difference of cosines" if difference else "cosine": cosine}
        | ({"share": share} if len(clip.texts) > 1 else {})
        for text, cosine, share, difference in zip(
            clip.texts, cosines, shares, differences, strict=True
        )
    ]
    return list(zip(values, describe_similarities(cosines, shares, differences), strict=True))


def _default_methods() -> dict[str, Method]:
    return {name: METHODS[name] for name in DEFAULT_METHODS}


def _explain(
    clip: ZeroShotClassifier, batch: Tensor, methods: Mapping[str, Method]
) -> dict[str, Tensor]:
    """Return the maps (K, h, w) of methods for one image (1, 3, H, W), by name."""
    explainers = {name: method(clip) for name, method in methods.items()}
    bar = tqdm(explainers.items(), leave=False, disable=not sys.stderr.isatty())
    maps = {}
    for name, method in bar:  # one by one, because the slow ones take many passes
        bar.set_description(name)
        found = attribute_many({name: method}, batch)[name]
        maps[name] = cover_image(clip, found, batch)[0].detach().cpu()
    return maps


def _write_figure(
    path: Path,
    image: np.ndarray,
    maps: Mapping[str, Tensor],
    texts: Sequence[str],
    cosines: Sequence[str],
    sign: str = "auto",
    notes: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Path:
    figure = compare_figure(
        [image],
        {title_of(name): values[None] for name, values in maps.items()},
        texts,
        notes={title_of(name): lines for name, lines in (notes or {}).items()},
        text_notes=[cosines],
        sign=sign,
    )
    return save_figure(figure, path)


def _trust_notes(
    clip: ZeroShotClassifier, methods: Mapping[str, Method], batch: Tensor
) -> dict[str, list[list[str]]]:
    """Return for each method a line per text on how much its map depends on the text."""
    values, undefined = specificity_of_maps(clip, methods, batch, clip.texts)
    report_left_out({f"text specificity of {name}": why for name, why in undefined.items()})
    return {
        name: [[describe_specificity(value) for value in row] for row in rows.tolist()]
        for name, rows in values.items()
    }


def _write_maps(path: Path, maps: Mapping[str, Tensor], texts: Sequence[str]) -> None:
    """Write one array (K, h, w) per method, and the texts."""
    arrays = {name: values.numpy() for name, values in maps.items()}
    np.savez_compressed(path, texts=np.array(texts), **arrays)  # type: ignore[arg-type]
