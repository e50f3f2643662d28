"""A million and a billion images on many GPUs: what a run would take, simulated with failures.

    python benchmarks/simulate.py [--reading MS] [--cores 16] [--hours-between-failures 50000]

Pieces are shared out by the function that real runs share them out by; a failure ends all
processes, what they were at is lost, and a restart reads the journal, looks through the finished
shards and shares out what is left. Reading a picture is measured here, and so are, by the export's
own functions, reading a journal's entries, hashing shards and writing the index; a GPU's speed is
an estimate from counted operations (benchmarks/counted.py) at a stated utilisation. No GPU is
needed, and none was measured.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from captum_clip_surgery._utils.checkpoint import CheckpointStore
from captum_clip_surgery._utils.distributed import shard as shard_of
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.export._manifest import _write_index
from captum_clip_surgery.export._shards import ImageRecord, checksum
from captum_clip_surgery.export._writing import ShardRecord, entries, rows_of
from captum_clip_surgery.preprocessing import Preprocess

HOUR = 3600.0
#: Counted for ViT-B/16 at 224 pixels with 59 texts; a GPU's peak in bf16, and how much is reached.
OPERATIONS, PEAK, UTILISATION = 35.0e9, 989e12, 0.40
#: Bytes of an image: a picture read, maps of 59 texts on 14 x 14 in float16 and the best five.
READ, MAPS, BEST = 100_000, 59 * 14 * 14 * 2, 5 * (4 + 4)
NAMES = {10**6: "a million", 10**9: "a billion"}


@dataclass(frozen=True)
class Setting:
    """A run: how much there is, and how fast and how reliable what does it is.

    `speed` is images a second of a GPU, `kept` the seconds that a piece's entry takes in the
    journal while the next is computed, `read` those of reading it again, `check` those of hashing
    its shard, which processes share, and `begin` those from a failure until the journal is read.
    Of the GPUs a share `slow` runs at `slowness` of the speed. `between` is the mean hours of a
    GPU between failures.
    """

    images: int
    gpus: int
    shard: int
    speed: float
    kept: float
    read: float
    check: float
    begin: float = 120.0
    between: float = 50_000.0
    slow: float = 0.02
    slowness: float = 0.8


@dataclass(frozen=True)
class Outcome:
    """Hours of a run, its restarts, GPU-hours lost in pieces not finished, and shares of GPU time.

    `idle` is waiting for the slowest, `down` beginning again.
    """

    hours: float
    restarts: int
    lost: float
    idle: float
    down: float


def simulate(setting: Setting, draw: np.random.Generator) -> Outcome:
    """One run from its beginning to its end."""
    world = setting.gpus
    left = np.arange(-(-setting.images // setting.shard))
    pieces = len(left)
    speeds = np.full(world, setting.speed)
    speeds[draw.random(world) < setting.slow] *= setting.slowness
    seconds = np.maximum(setting.shard / speeds, setting.kept)  # of a piece, by process
    clock = lost = idle = down = 0.0
    restarts = 0
    while True:
        finished = pieces - len(left)
        ready = setting.begin + finished * (setting.read + setting.check / world)
        counts = np.array([len(shard_of(left, rank, world)) for rank in range(world)])
        ends = counts * seconds
        failure = draw.exponential(setting.between * HOUR / world)
        worked = min(failure - ready, ends.max())
        down += min(failure, ready) * world
        idle += np.maximum(worked - ends, 0).sum()
        clock += min(failure, ready + ends.max())
        if failure >= ready + ends.max():
            break
        restarts += 1
        if worked > 0:
            ended = np.minimum(worked // seconds, counts).astype(int)
            lost += np.where(ended < counts, worked - ended * seconds, 0).sum()
            done = np.zeros(len(left), bool)
            for rank in range(world):
                shard_of(done, rank, world)[: ended[rank]] = True
            left = left[~done]
    total = clock * world
    return Outcome(clock / HOUR, restarts, lost / HOUR, idle / total, down / total)


def mean_outcome(setting: Setting, trials: int) -> Outcome:
    """The mean of runs with fixed seeds."""
    found = [simulate(setting, np.random.default_rng(seed)) for seed in range(trials)]
    hours, restarts, lost, idle, down = (
        fmean(getattr(one, name) for one in found) for name in Outcome.__dataclass_fields__
    )
    return Outcome(hours, restarts, lost, idle, down)  # type: ignore[arg-type]


# --- measured here --------------------------------------------------------------------------------


def photograph() -> bytes:
    """A JPEG of 500 x 375 pixels and about 100 kB, as ImageNet's are in the mean."""
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
    noisy = (smooth + draw.normal(0, 14, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def time_of(call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call."""
    call()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return median(taken)


def reading(rounds: int = 200) -> float:
    """Seconds of one core to decode a JPEG and bring it to the model's size."""
    content = photograph()
    preprocess = Preprocess((224, 224), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), "bicubic")

    def read() -> object:
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        return preprocess(np.asarray(picture), (224, 224))

    return time_of(read, rounds)


def rows_of_a_piece(images: int) -> list[ImageRecord]:
    """Places, sizes and scores that compress as badly as real ones."""
    draw = np.random.default_rng(0)
    return [
        ImageRecord(
            f"folder/picture-{index:09d}.jpg",
            (index * 24_000, MAPS, int(draw.integers(2**32))),
            (int(draw.integers(200, 600)), int(draw.integers(200, 600))),
            draw.integers(0, 59, 5).tolist(),
            draw.random(5, np.float32).tolist(),
        )
        for index in range(images)
    ]


def journal_times(shard: int, pieces: int = 100) -> tuple[float, float]:
    """Seconds to keep the entry of a shard, and to read one again."""
    entry = ShardRecord(0, "shards/000000.tar", "0" * 64, MAPS * shard, shard, [])
    content = entry.packed(rows_of_a_piece(shard))
    with tempfile.TemporaryDirectory() as folder, CheckpointStore(Path(folder), {}) as journal:
        numbers = iter(range(pieces + 1))
        kept = time_of(lambda: journal.add(f"{next(numbers)}", content), pieces)
        return kept, time_of(lambda: entries(journal), 5) / pieces


def hashing(size: int = 2**26) -> float:
    """Seconds of one core to hash a byte of a shard."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(size))
        file.flush()
        return time_of(lambda: checksum(Path(file.name)), 5) / size


def indexing(images: int = 50_000) -> float:
    """Seconds of one process to write an image into the index."""
    content = ShardRecord(0, "a", "", 0, images, []).packed(rows_of_a_piece(images))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        return time_of(lambda: _write_index(path, (("a", r) for r in rows_of(content))), 3) / images


# --- tables ---------------------------------------------------------------------------------------


def needs(speed: float, seconds: float) -> str:
    """What one GPU needs around it to work all the time."""
    rows = [
        ["images a second", f"{speed:,.0f}"],
        ["cores that decode", f"{speed * seconds:.0f}"],
        ["read, GB/s", f"{speed * READ / 1e9:.2f}"],
        ["maps written, GB/s", f"{speed * MAPS / 1e9:.2f}"],
        ["best five alone written, MB/s", f"{speed * BEST / 1e6:.2f}"],
    ]
    return markdown(["one GPU", ""], rows)


def sizes() -> str:
    rows = [
        [
            name,
            f"{images * READ / 1e12:,.1f} TB",
            f"{images * MAPS / 1e12:,.3f} TB",
            f"{images * BEST / 1e9:,.2f} GB",
            *(f"{images // shard:,} of {shard * MAPS / 1e6:,.1f} MB" for shard in SHARDS),
        ]
        for images, name in NAMES.items()
    ]
    header = ["images", "pictures", "maps", "best five", *(f"shards of {n:,}" for n in SHARDS)]
    return markdown(header, rows)


SHARDS = (100, 1_000, 10_000)


def runs(setting: Setting, trials: int) -> str:
    rows = []
    for images, name in NAMES.items():
        for gpus in (8, 256):
            for shard in SHARDS:
                kept, read = journal_times(shard)
                check = shard * MAPS * setting.check
                one = replace(
                    setting,
                    images=images,
                    gpus=gpus,
                    shard=shard,
                    kept=kept,
                    read=read,
                    check=check,
                )
                found = mean_outcome(one, trials)
                rows.append(
                    [
                        name,
                        str(gpus),
                        f"{shard:,}",
                        f"{found.hours:.3f}",
                        f"{found.restarts:.2f}",
                        f"{found.lost:.4f}",
                        f"{found.idle:.1%}",
                        f"{found.down:.1%}",
                    ]
                )
    header = ["images", "GPUs", "shard", "hours", "restarts", "lost GPU-hours", "idle", "starting"]
    return markdown(header, rows, left=1)


def main(
    read_ms: Annotated[
        float | None,
        typer.Option("--reading", help="Milliseconds to read an image (default: measured)."),
    ] = None,
    cores: Annotated[int, typer.Option(help="CPU cores per GPU that decode images.")] = 16,
    between: Annotated[
        float,
        typer.Option("--hours-between-failures", help="Mean hours between failures of one GPU."),
    ] = 50_000.0,
    slow: Annotated[float, typer.Option(help="Fraction of slow GPUs.")] = 0.02,
    slowness: Annotated[
        float, typer.Option(help="Speed of slow GPUs, relative to the others.")
    ] = 0.8,
    begin: Annotated[
        float, typer.Option(help="Seconds from a failure until work resumes.")
    ] = 120.0,
    trials: Annotated[int, typer.Option(help="Simulated runs per row.")] = 20,
) -> None:
    """Print the tables."""
    seconds = reading() if read_ms is None else read_ms / 1000
    kept, read = journal_times(1_000)
    hashed, indexed = hashing(), indexing()
    gpu = UTILISATION * PEAK / OPERATIONS
    decoded = cores / seconds
    print(f"measured: {1000 * seconds:.2f} ms to read a picture of {len(photograph()):,} bytes,")
    print(
        f"{1000 * kept:.2f} ms to keep the entry of 1,000 images, {1e6 * read:.0f} us to read it,"
    )
    print(f"{1e-9 / hashed:.2f} GB/s to hash a shard, {1e6 * indexed:.1f} us an image to index\n")
    print(f"estimate: {gpu:,.0f} images a second of a GPU\n\n{needs(gpu, seconds)}\n\n{sizes()}\n")
    for title, speed in (
        (f"bound by the GPU ({gpu:,.0f} images a second of each)", gpu),
        (f"bound by {cores} decoding cores a GPU ({decoded:,.0f})", min(decoded, gpu)),
    ):
        setting = Setting(0, 0, 0, speed, kept, read, hashed, begin, between, slow, slowness)
        print(f"{title}; a failure every {between:,.0f} GPU-hours\n\n{runs(setting, trials)}\n")


if __name__ == "__main__":
    typer.run(main)
