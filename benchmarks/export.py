"""Speed of `export` with 1 and 2 processes, cost of resuming, and memory.

    python benchmarks/export.py [--images 20000] [--side 128] [--pool 500] [--format webdataset]
        [--parts speed,resume,memory] [--workers 1]

Images are links to a small pool of scenes. Each process has one thread and loads images by
`--workers` processes of its own.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery._utils.distributed import processes
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.export import _run, export_maps

EVERY = 1.0  # seconds between samples of memory


def write_images(root: Path, count: int, side: int, pool: int) -> Path:
    """Write a folder of `count` links to `pool` scenes."""
    (root / "pool").mkdir()
    for index, scene in enumerate(Scenes("test", min(pool, count), side)):
        Image.fromarray(scene.image).save(root / f"pool/{index:06d}.png")
    (root / "in").mkdir()
    for index in range(count):
        os.link(root / f"pool/{index % pool:06d}.png", root / f"in/{index:06d}.png")
    return root / "in"


def resident(process: int) -> int:
    """Return the resident bytes of a process and its children, shared memory repeatedly."""
    total = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            total += resident(int(child))
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            total += 1024 * int(line.split()[1])
    return total


class Looking:
    """Samples (seconds, bytes) of memory while a `with` block runs."""

    def __enter__(self) -> Looking:
        self.seen: list[tuple[float, int]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        start = time.perf_counter()
        while not self._end.wait(EVERY):
            try:
                self.seen.append((time.perf_counter() - start, resident(os.getpid())))
            except OSError:  # a child that has just ended
                continue

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def exported(options: Mapping[str, Any], environment: Mapping[str, str], answers: Any) -> None:
    """Run an export in a process of its own."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    # Loaders of a spawned process would be spawned, too, which takes seconds.
    multiprocessing.set_start_method("fork", force=True)
    options = dict(options)
    stop_at = options.pop("stop_at", None)
    if stop_at is not None:
        _stop_at(stop_at)
    with processes() as dist:
        surgery = LayerCLIPSurgery(ZeroShotClassifier.demo(nouns()))
        start = time.perf_counter()
        with Looking() as looking:  # its cost is negligible
            try:
                found = export_maps(surgery, dist=dist, **options)
            except KeyboardInterrupt:
                answers.put({"wall": time.perf_counter() - start})
                return
        answers.put(
            {
                "wall": time.perf_counter() - start,
                "made": found.made,
                "seconds": found.seconds,
                "waiting": found.waiting,
                "memory": looking.seen,
            }
        )


def _stop_at(batches: int) -> None:
    original, counter = _run.explain_batch, itertools.count(1)

    def stopping(*arguments: Any) -> Any:
        if next(counter) > batches:
            raise KeyboardInterrupt
        return original(*arguments)

    _run.explain_batch = stopping


def start(world: int, **options: Any) -> list[dict[str, Any]]:
    """Run an export by `world` processes, and return the result of each."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    os.environ["OMP_NUM_THREADS"] = "1"
    for rank in range(world):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        process = context.Process(target=exported, args=(options, environment, answers))
        process.start()
        started.append(process)
    found = [answers.get() for _ in started]
    for process in started:
        process.join()
    return found


def main(
    images: Annotated[int, typer.Option(help="Number of images.")] = 20_000,
    side: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 128,
    pool: Annotated[int, typer.Option(help="Number of different images.")] = 500,
    format: Annotated[str, typer.Option(help="'webdataset' or 'zarr'.")] = "webdataset",
    parts: Annotated[
        str, typer.Option(help="Comma-separated parts to run.")
    ] = "speed,resume,memory",
    speed_images: Annotated[
        int, typer.Option(help="Number of images for speed and resume.")
    ] = 2_000,
    shard_size: Annotated[int, typer.Option(help="Images per shard.")] = 100,
    batch: Annotated[int, typer.Option(help="Images per forward pass.")] = 8,
    workers: Annotated[int, typer.Option(help="Number of loading processes per process.")] = 1,
) -> None:
    """Print a table per part, and everything as JSON."""
    told: dict[str, Any] = {}
    options = dict(format=format, shard_size=shard_size, batch_size=batch, workers=workers)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "few").mkdir()
        few = write_images(root / "few", min(speed_images, images), side, pool)
        options["source"] = few
        if "speed" in parts or "resume" in parts:
            alone = start(1, output=root / "one", **options)
            told["speed"] = [speed(alone)]
        if "speed" in parts:
            two = speed(start(2, output=root / "two", **options))
            rates = [told["speed"][0]["rate"], two["rate"]]
            told["speed"].append(two | {"efficiency": rates[1] / (2 * rates[0])})
            rows = [
                [str(i), f"{one['rate']:.1f}", f"{one.get('efficiency', 1):.2f}", one["waiting"]]
                for i, one in enumerate(told["speed"], 1)
            ]
            print(markdown(["processes", "images a second", "efficiency", "waiting"], rows))
        if "resume" in parts:
            half = min(speed_images, images) // batch // 2
            first = start(1, output=root / "halves", stop_at=half, **options)
            second = start(1, output=root / "halves", resume=True, **options)
            again = start(1, output=root / "one", resume=True, **options)
            whole = alone[0]["wall"]
            told["resume"] = {
                "whole": whole,
                "in halves": first[0]["wall"] + second[0]["wall"],
                "made again": second[0]["made"] + half * batch - min(speed_images, images),
                "nothing left": again[0]["wall"],
            }
            rows = [[name, f"{value:.2f}"] for name, value in told["resume"].items()]
            print("\n" + markdown(["going on", "seconds (images)"], rows))
        if "memory" in parts:
            (root / "many").mkdir()
            options["source"] = write_images(root / "many", images, side, pool)
            (found,) = start(1, output=root / "all", **options)
            memory = [size / 2**20 for _, size in found["memory"]]
            # After loading, when the first shard is written.
            early = memory[max(1, len(memory) // 10)]
            late = memory[-max(2, len(memory) // 10)]
            told["memory"] = {"early": early, "late": late, "peak": max(memory)}
            rows = [[f"{name} MiB", f"{value:.0f}"] for name, value in told["memory"].items()]
            rows.append(["images a second", f"{found['made'] / found['seconds']:.1f}"])
            rows.append(["waiting", f"{found['waiting']:.1%}"])
            print("\n" + markdown([f"memory over {images} images", ""], rows))
    print("\n" + json.dumps(told))


def speed(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the images per second of processes that ran together."""
    seconds = max(one["seconds"] for one in found)
    waiting = max(one["waiting"] for one in found)
    return {"rate": sum(one["made"] for one in found) / seconds, "waiting": f"{waiting:.1%}"}


if __name__ == "__main__":
    typer.run(main)
