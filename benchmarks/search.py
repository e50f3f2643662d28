"""Recall, speed and memory of exact search and of the faiss index.

    python benchmarks/search.py [--scenes 20000] [--copies 10] [--random 200000]

Test scenes are embedded with the embedded model; the queries are its 156 nouns, and 100 further
scenes as images. With `--copies`, the collection holds perturbed copies of each embedding instead,
whose mean cosine with it is 0.9. With `--random`, random unit vectors take the place of embeddings
and of queries, which is the worst case for a graph: no vector has near neighbors. Recall is the
mean share of the 20 best images of exact search that the index finds. Each case runs in its own
process with one thread. Queries run singly; their number per second and the seconds to build are of
CPU time. Memory is what the index adds to the resident set of the process: when it is built, and at
most.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.collection import ImageIndex
from captum_clip_surgery.demo import Scenes, nouns

TOP = 20
BATCH_SIZE = 50
NUM_IMAGE_QUERIES = 100
NUM_RANDOM_QUERIES = 200
#: Mean cosine of a perturbed copy with the embedding that it was made from.
COPY_COSINE = 0.9
HEADER = ["vectors", "search", "recall@20", "queries/s", "seconds to build", "MiB", "peak MiB"]


@dataclass(frozen=True)
class Result:
    """What one kind of search found and cost: indices (queries, TOP), speed, seconds and MiB."""

    found: np.ndarray
    queries_per_s: float
    build_s: float
    index_mib: float
    peak_mib: float

    def row(self, vectors: str, search: str, recall: str) -> list[str]:
        """Return the row of the table."""
        costs = (self.queries_per_s, self.build_s, self.index_mib, self.peak_mib)
        return [vectors, search, recall, *(f"{cost:,.{0 if cost >= 10 else 1}f}" for cost in costs)]


def resident_mib(field: str) -> float:
    """Return the process's resident memory now (VmRSS) or at most (VmHWM)."""
    (kib,) = re.findall(rf"^{field}:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kib) / 2**10


def measure(vectors: Path, queries: np.ndarray, exact: bool) -> Result:
    """Build an index of stored vectors and search it for each query."""
    if not exact:
        import faiss  # noqa: F401 - the library's own memory is not the index's

    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before = resident_mib("VmRSS")
    embeddings = np.load(vectors)
    names = [str(number) for number in range(len(embeddings))]
    start = time.process_time()
    index = ImageIndex(names, embeddings, exact)
    build_s = time.process_time() - start
    index_mib = resident_mib("VmRSS") - before
    index.search(queries[0], TOP)
    found, seconds = [], []
    for query in queries:
        start = time.process_time()
        hits = index.search(query, TOP)
        seconds.append(time.process_time() - start)
        found.append([int(hit.name) for hit in hits])
    peak_mib = resident_mib("VmHWM") - before
    return Result(np.array(found), 1 / median(seconds), build_s, index_mib, peak_mib)


def compare(embeddings: np.ndarray, queries: np.ndarray) -> tuple[Result, Result]:
    """Measure exact search and the index, each in a new process."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "vectors.npy"
        np.save(path, embeddings)
        results = []
        for exact in (True, False):
            with ProcessPoolExecutor(1, context) as pool:
                results.append(pool.submit(measure, path, queries, exact).result())
    return results[0], results[1]


def recall(result: Result, exact: Result, chosen: slice) -> float:
    """Return the mean share of the best images of exact search that were found."""
    pairs = zip(result.found[chosen], exact.found[chosen], strict=True)
    return float(np.mean([len(np.intersect1d(one, other)) / len(other) for one, other in pairs]))


def embed(clip: ZeroShotClassifier, scenes: Scenes) -> tuple[np.ndarray, list[set[str]]]:
    """Return the embeddings (N, C) of scenes, at their own size, and the nouns of each."""
    features, shown = [], []
    with torch.inference_mode():
        for first in range(0, len(scenes), BATCH_SIZE):
            batch = scenes[first : first + BATCH_SIZE]
            images = clip.preprocess([scene.image for scene in batch], size=scenes.size)
            features.append(clip.image_features(images).numpy())
            shown += [set(scene.nouns) for scene in batch]
    return np.concatenate(features), shown


def perturbed(embeddings: np.ndarray, copies: int) -> np.ndarray:
    """Return copies (N * copies, C) of embeddings with noise; one copy has none."""
    if copies == 1:
        return embeddings
    rng = np.random.default_rng(0)
    near = embeddings.repeat(copies, 0)
    noise = rng.standard_normal(near.shape, dtype=np.float32) / near.shape[1] ** 0.5
    near += (COPY_COSINE**-2 - 1) ** 0.5 * noise
    return near / np.linalg.norm(near, axis=1, keepdims=True)


def compare_scenes(count: int, side: int, copies: int) -> list[list[str]]:
    """Print how often the best image fits, and return the rows of embedded scenes."""
    clip = ZeroShotClassifier.demo(["dog"])
    scenes = Scenes("test", count + NUM_IMAGE_QUERIES, side)
    start = time.process_time()
    embeddings, shown = embed(clip, scenes)
    speed = len(scenes) / (time.process_time() - start)
    print(f"{speed:.0f} scenes of {side} px rendered and embedded per second of CPU time")
    asked = clip.with_queries(nouns()).text_features().detach().numpy()
    vectors = perturbed(embeddings[:count], copies)
    results = compare(vectors, np.concatenate([asked, embeddings[count:]]))
    of_nouns, of_images = slice(len(nouns())), slice(len(nouns()), None)
    rows = []
    for search, result in zip(("exact", "faiss"), results, strict=True):
        best = [shown[row[0] // copies] for row in result.found]
        right = [noun in best[place] for place, noun in enumerate(nouns())]
        alike = [bool(a & b) for a, b in zip(best[of_images], shown[count:], strict=True)]
        print(
            f"{search}: the best image shows the noun for {sum(right)} of {len(right)}, and "
            f"shares an object with {sum(alike)} of {len(alike)} images"
        )
        recalls = (recall(result, results[0], chosen) for chosen in (of_nouns, of_images))
        shares = " / ".join(f"{100 * share:.1f} %" for share in recalls)
        kind = "scenes" if copies == 1 else "copies of scenes"
        title = f"{len(vectors):,} {kind}, width {vectors.shape[1]}"
        rows.append(result.row(title, search, shares))
    return rows


def compare_random(count: int, width: int) -> list[list[str]]:
    """Return the rows of random unit vectors."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((count + NUM_RANDOM_QUERIES, width), dtype=np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    results = compare(drawn[:count], drawn[count:])
    return [
        result.row(
            f"{count:,} random, width {width}",
            search,
            f"{100 * recall(result, results[0], slice(None)):.1f} %",
        )
        for search, result in zip(("exact", "faiss"), results, strict=True)
    ]


def main(
    scenes: Annotated[int, typer.Option(help="Number of scenes; 0 leaves them out.")] = 20_000,
    side: Annotated[int, typer.Option(help="Side of the scenes in pixels.")] = 128,
    copies: Annotated[int, typer.Option(min=1, help="Number of copies of each scene.")] = 1,
    random: Annotated[int, typer.Option(help="Number of random vectors; 0 leaves them out.")] = 0,
    width: Annotated[list[int] | None, typer.Option(help="Widths of the random vectors.")] = None,
) -> None:
    """Print the table."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the measured processes
    rows = compare_scenes(scenes, side, copies) if scenes else []
    for each in width or (128, 512) if random else ():
        rows += compare_random(random, each)
    print(f"\n{markdown(HEADER, rows)}\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    typer.run(main)
