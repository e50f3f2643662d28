"""Cost of explaining as a function of texts, tokens, batch size and images, with a figure.

    python benchmarks/scaling.py [--model ViT-B-16] [--sweeps texts,side,batch,images]
        [--rounds 3] [--device cuda] [--dtype bf16] [--output FOLDER]

Each point compares `LayerCLIPSurgery.attribute_all` with the model's own pass over the same images,
alternating between both. Weights are random, which does not affect the time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from speed import PRECISIONS, at_size, classifier
from tqdm import tqdm

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery._utils.profiling import profile_call
from captum_clip_surgery._utils.provenance import environment_info
from captum_clip_surgery._utils.tables import markdown


@dataclass(frozen=True)
class Setting:
    """One point: number of texts, side in pixels, batch size, and total number of images."""

    texts: int = 59
    side: int = 224
    batch: int = 1
    images: int = 1


#: Values of each sweep; the rest is as in `Setting`.
SWEEPS: dict[str, tuple[int, ...]] = {
    "texts": (1, 10, 100, 1_000, 10_000),
    "side": (224, 336, 512, 768, 1024),
    "batch": (1, 2, 4, 8, 16, 32),
    "images": (1, 4, 16, 64),
}
LABELS = {
    "texts": "texts",
    "side": "side of the image in pixels",
    "batch": "images in a batch",
    "images": "images, 8 at a time",
}


CURVES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("plain", "encode_image", {"color": "#999999", "marker": "s", "linewidth": 4}),
    ("surgery", "CLIP Surgery, all texts", {"color": "#0072b2", "marker": "o", "markersize": 4}),
)


@dataclass(frozen=True)
class Found:
    """Seconds per image of encode_image and of surgery, ratio, and peak bytes of surgery."""

    plain: float
    surgery: float
    ratio: float
    peak_bytes: int | None


def settings(sweep: str) -> Iterator[Setting]:
    for value in SWEEPS[sweep]:
        setting = replace(Setting(), **{sweep: value})
        if sweep == "batch":
            setting = replace(setting, images=value)
        if sweep == "images":
            setting = replace(setting, batch=min(8, value))
        yield setting


@torch.inference_mode()
def run(clip: ZeroShotClassifier, setting: Setting, rounds: int) -> Found:
    """Measure one point: memory in a call of its own, then both cases in turn."""
    batch = torch.randn(setting.batch, 3, setting.side, setting.side, device=clip.device)
    count = setting.images // setting.batch
    plain, surgery = at_size(clip, batch), LayerCLIPSurgery(clip)

    def repeated(call: Callable[[torch.Tensor], Any]) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call(batch)
        if clip.device.type == "cuda":
            torch.cuda.synchronize(clip.device)
        return (time.perf_counter() - start) / setting.images

    plain(batch)
    peak = profile_call(lambda: repeated(surgery.attribute_all), clip.device)[1].peak_bytes
    pairs = [(repeated(plain), repeated(surgery.attribute_all)) for _ in range(rounds)]
    seconds = [median(taken) for taken in zip(*pairs, strict=True)]
    return Found(seconds[0], seconds[1], median(b / a for a, b in pairs), peak)


def figure(found: dict[str, dict[int, Found]]) -> Figure:
    """Draw a panel per sweep: time per image on logarithmic axes, and the ratio above."""
    drawing = Figure(figsize=(4 * len(found), 3.6), layout="constrained")
    for axes, (sweep, points) in zip(
        drawing.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        values = list(points)
        for name, label, style in CURVES:
            milliseconds = [1000 * getattr(point, name) for point in points.values()]
            axes.plot(values, milliseconds, label=label, **style)
        for value, point in points.items():
            axes.annotate(
                f"{point.ratio:.2f}",
                (value, 1000 * max(point.surgery, point.plain)),
                textcoords="offset points",
                xytext=(0, 6),
                ha="center",
                fontsize=8,
            )
        axes.set(xscale="log", yscale="log", xlabel=LABELS[sweep])
        axes.set_xticks(values, [f"{value:,}" for value in values])
        axes.minorticks_off()
        taken = [t for point in points.values() for t in (point.plain, point.surgery)]
        axes.set_ylim(1000 * min(taken) / 4, 1000 * max(taken) * 4)
        axes.grid(alpha=0.3)
    drawing.axes[0].set_ylabel("ms an image")
    drawing.axes[0].legend(frameon=False, fontsize=8)
    return drawing


def table(sweep: str, points: dict[int, Found]) -> str:
    rows = [
        [
            f"{value:,}",
            f"{1000 * point.plain:.1f}",
            f"{1000 * point.surgery:.1f}",
            f"{point.ratio:.3f}",
            "-" if point.peak_bytes is None else f"{point.peak_bytes / 2**20:.0f}",
        ]
        for value, point in points.items()
    ]
    return markdown([LABELS[sweep], "encode_image ms", "surgery ms", "ratio", "MiB"], rows)


def main(
    model: Annotated[str, typer.Option(help="open_clip configuration.")] = "ViT-B-16",
    sweeps: Annotated[str, typer.Option(help="Comma-separated parts to run.")] = ",".join(SWEEPS),
    rounds: Annotated[int, typer.Option(help="Number of rounds; each runs both cases.")] = 3,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = "cpu",
    dtype: Annotated[str, typer.Option(help=", ".join(PRECISIONS))] = "fp32",
    threads: Annotated[int | None, typer.Option(help="Number of torch threads on the CPU.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for JSON and the figure.")] = Path(
        "clip-surgery-scaling"
    ),
) -> None:
    """Print a table per sweep, and write JSON and the figure."""
    if threads is not None:
        torch.set_num_threads(threads)
    most = classifier(model, max(SWEEPS["texts"]), device, PRECISIONS[dtype])
    features = most.text_features()
    found: dict[str, dict[int, Found]] = {}
    for sweep in sweeps.split(","):
        found[sweep] = {}
        for setting in tqdm(list(settings(sweep)), desc=sweep, leave=False):
            clip = ZeroShotClassifier.from_features(
                most.model, features[: setting.texts], most.empty_features()
            )
            found[sweep][getattr(setting, sweep)] = run(clip, setting, rounds)
        print(f"\n{table(sweep, found[sweep])}")
    output.mkdir(parents=True, exist_ok=True)
    about = {**environment_info(torch.device(device)), "model": model, "dtype": dtype}
    content = {
        sweep: {value: asdict(point) for value, point in points.items()}
        for sweep, points in found.items()
    }
    (output / "scaling.json").write_text(json.dumps({**about, **content}, indent=2) + "\n")
    figure(found).savefig(output / "scaling.png", dpi=150)


if __name__ == "__main__":
    typer.run(main)
