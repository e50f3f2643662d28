"""Speed of reading and preparing photographs: time per step, waiting, and what `fast` changes.

    python benchmarks/reading.py [--images 64] [--width 500] [--height 375] [--size 224]
        [--parts steps,maps,waiting] [--workers 1] [--rate 250]

Photographs are JPEGs of noise with the spectrum of natural images (power falling with the square of
the frequency), of quality 90. All times are CPU seconds of one thread.
"""

from __future__ import annotations

import io
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.export._reading import Prefetcher
from captum_clip_surgery.export._sources import open_source
from captum_clip_surgery.preprocessing import Preprocess, read_image

REPEATS = 3
BATCH = 8
SHARDS = 32


def photograph(width: int, height: int, seed: int) -> bytes:
    """Return a JPEG of noise with a natural spectrum."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    channels = []
    for _ in range(3):
        phases = generator.normal(size=(2, *frequency.shape))
        values = np.fft.irfft2((phases[0] + 1j * phases[1]) / frequency, (height, width))
        channels.append((values - values.mean()) / values.std() * 50 + 128)
    gray = np.mean(channels, axis=0)
    pixels = np.stack([0.8 * gray + 0.2 * channel for channel in channels], axis=-1)
    return jpeg(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))


def jpeg(image: Image.Image) -> bytes:
    """Return an image as a JPEG."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def cpu_ms(call: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Return the CPU milliseconds of a call per item, the best of `REPEATS`."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        for item in items:
            call(item)
        times.append(time.process_time() - start)
    return min(times) / len(items) * 1e3


def steps(files: Sequence[bytes], exact: Preprocess) -> dict[str, float]:
    """Return the milliseconds of each step, and of all of them."""
    fast = replace(exact, fast=True)
    side = (exact.size[1], exact.size[0])
    enough = fast.at_least(exact.size)

    def read(content: bytes, at_least: tuple[int, int] | None = None) -> Image.Image:
        return read_image(io.BytesIO(content), "a photograph", at_least=at_least)

    images = [read(content) for content in files]
    small = [image.resize(side) for image in images]
    return {
        "decode": cpu_ms(read, files),
        "decode, fast": cpu_ms(lambda content: read(content, enough), files),
        "resize and normalize": cpu_ms(exact, images),
        "resize and normalize, fast": cpu_ms(fast, images),
        "normalize alone": cpu_ms(exact, small),
        "all": cpu_ms(lambda content: exact(read(content)), files),
        "all, fast": cpu_ms(lambda content: fast(read(content, enough)), files),
    }


def differences(count: int, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Return how far `fast` moves pixels and maps of scenes, stored at several sizes.

    Up to 6 times the size of the model's input only resizing differs; larger JPEGs are decoded at a
    half or less.
    """
    clip = ZeroShotClassifier.demo(nouns())
    method, exact = LayerCLIPSurgery(clip), clip.preprocessing
    fast = replace(exact, fast=True)
    found = {}
    for factor in (1.5, 4, 8):
        scenes = Scenes("test", count, int(factor * size[0]))
        files = [jpeg(Image.fromarray(scene.image)) for scene in scenes]
        slow, quick = (
            torch.cat([preprocess(image) for image in images])
            for preprocess, images in (
                (exact, [read_image(io.BytesIO(file), "x") for file in files]),
                (
                    fast,
                    [read_image(io.BytesIO(f), "x", at_least=fast.at_least(size)) for f in files],
                ),
            )
        )
        levels = (clip.unnormalize(slow) - clip.unnormalize(quick)).abs() * 255
        with torch.no_grad():
            before, after = method.attribute_all(slow), method.attribute_all(quick)
        shift = (before - after).flatten(2).norm(dim=2) / before.flatten(2).norm(dim=2)
        best = [maps.mean(dim=(2, 3)).argmax(1) for maps in (before, after)]
        found[f"{factor} x"] = {
            "levels, mean": levels.mean().item(),
            "levels, largest": levels.max().item(),
            "maps, relative, mean": shift.mean().item(),
            "maps, relative, largest": shift.max().item(),
            "other best text": (best[0] != best[1]).float().mean().item(),
        }
    return found


def waiting(
    files: Sequence[bytes], preprocess: Preprocess, workers: int, rate: float
) -> dict[str, float]:
    """Return the fraction of time that a model of `rate` images a second waits for images.

    The model is a stand-in that takes its time but no CPU, as a GPU does. The CPU time of workers
    per image, which other work on the machine hardly changes, says how many the model needs.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as name:
        for number in range(SHARDS * 4 * BATCH):
            (Path(name) / f"{number:04}.jpg").write_bytes(files[number % len(files)])
        pieces = open_source(name, 4 * BATCH).pieces
        numbers = range(len(pieces))
        ahead = Prefetcher(pieces, numbers, preprocess, preprocess.size, BATCH, workers)
        start, count, first = 0.0, 0, 0.0
        for batch in ahead:
            if not count:  # workers have started
                start, first = time.perf_counter(), ahead.waited
            time.sleep(len(batch) / rate)
            count += len(batch)
        seconds = time.perf_counter() - start
        waited = ahead.waited
        del ahead  # which ends the workers
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "images a second": count / seconds,
        "waiting": (waited - first) / seconds,
        "ms of workers": spent / count * 1e3,
    }


def main(
    images: Annotated[int, typer.Option(help="Number of photographs.")] = 64,
    width: Annotated[int, typer.Option(help="Their width in pixels.")] = 500,
    height: Annotated[int, typer.Option(help="Their height in pixels.")] = 375,
    size: Annotated[int, typer.Option(help="Side of the model's input in pixels.")] = 224,
    parts: Annotated[
        str, typer.Option(help="Comma-separated parts to run.")
    ] = "steps,maps,waiting",
    workers: Annotated[int, typer.Option(help="Number of loading processes, for waiting.")] = 1,
    rate: Annotated[float, typer.Option(help="Images a second of the model, for waiting.")] = 250,
) -> None:
    """Print a table per part, and everything as JSON."""
    torch.set_num_threads(1)
    files = [photograph(width, height, seed) for seed in range(images)]
    exact = Preprocess((size, size), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), "bicubic")
    results: dict[str, Any] = {}
    if "steps" in parts:
        results["steps"] = steps(files, exact)
        rows = [[n, f"{ms:.2f}", f"{1e3 / ms:.0f}"] for n, ms in results["steps"].items()]
        print(markdown([f"{width} x {height} to {size}", "ms", "images a second"], rows))
    if "maps" in parts:
        results["maps"] = differences(min(images, 32), ZeroShotClassifier.demo(["a"]).native_size)
        names = list(next(iter(results["maps"].values())))
        rows = [[n, *(f"{row[k]:.4f}" for k in names)] for n, row in results["maps"].items()]
        print("\n" + markdown(["size of the image", *names], rows))
    if "waiting" in parts:
        results["waiting"] = {
            name: waiting(files, preprocess, workers, rate)
            for name, preprocess in (("exact", exact), ("fast", replace(exact, fast=True)))
        }
        rows = [[n, *(f"{v:.3g}" for v in r.values())] for n, r in results["waiting"].items()]
        title = f"{workers} workers, a model of {rate:.0f} images a second"
        print("\n" + markdown([title, "images a second", "waiting", "ms of workers"], rows))
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    typer.run(main)
