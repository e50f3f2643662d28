"""Speed, CPU time and memory of `export` with one and two processes, and with a straggler.

    python benchmarks/export.py [--images 2000] [--side 128] [--rounds 3] [--package OTHER]

Runs `torchrun ... export` with the embedded model, one thread a process. With `--package`, a folder
with another version of the package, both versions run in turn. Images per second count from the
first image to the last file of the slowest process; CPU seconds include Python's imports; memory is
the largest sum of the processes' proportional shares (PSS).
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from PIL import Image

from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.demo import Scenes, nouns

INTERVAL_S = 0.5  # between samples of memory
#: The command, whose second process takes three times as long for each batch if SLOW is set.
COMMAND = """
import os, time
from captum_clip_surgery import cli, export
module = getattr(export, "_plan", None) or export._run
explain_batch = module.explain_batch

def slowly(*arguments):
    start = time.perf_counter()
    result = explain_batch(*arguments)
    time.sleep(2 * (time.perf_counter() - start))
    return result

if os.environ.get("SLOW") and os.environ.get("RANK") == "1":
    module.explain_batch = slowly
if __name__ == "__main__":
    cli.main()
"""


def write_images(root: Path, count: int, side: int, pool: int) -> Path:
    """Write a folder of `count` links to `pool` scenes."""
    for folder in ("pool", "in"):
        (root / folder).mkdir()
    for index, scene in enumerate(Scenes("test", min(pool, count), side)):
        Image.fromarray(scene.image).save(root / f"pool/{index:06d}.png")
    for index in range(count):
        os.link(root / f"pool/{index % pool:06d}.png", root / f"in/{index:06d}.png")
    return root / "in"


def memory(process: int) -> int:
    """Return the proportional bytes of a process and its children."""
    total = 0
    with suppress(OSError):  # of those that have just ended
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += memory(int(child))
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += 1024 * int(re.findall(r"^Pss: +(\d+)", rollup, re.MULTILINE)[0])
    return total


def run(package: Path, source: Path, world: int, slow: bool) -> tuple[float, float, float, float]:
    """Export; return images per second, seconds in all, CPU seconds and MiB at most."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    if slow:
        environment["SLOW"] = "1"
    with tempfile.TemporaryDirectory() as work:
        script, texts = Path(work) / "export.py", Path(work) / "texts.txt"
        script.write_text(COMMAND)
        texts.write_text("\n".join(nouns()))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={world}", str(script), "export", str(source)]
        command += ["--output", f"{work}/out", "--texts", str(texts)]
        command += ["--shard-size", "100", "--size", "128"]
        start, most = time.perf_counter(), 0
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.append(process.communicate()[0]))
        reader.start()
        while reader.is_alive():
            most = max(most, memory(process.pid))
            reader.join(INTERVAL_S)
        seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(printed[0])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    pairs = re.findall(r"(\d+) images explained.*?, ([\d.]+) per second", printed[0])
    spent = [int(images) / float(speed) for images, speed in pairs if float(speed)]
    images = sum(int(count) for count, _ in pairs)
    return images / max(spent), seconds, cpu, most / 2**20


def main(
    images: Annotated[int, typer.Option(help="Number of images.")] = 2000,
    side: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 128,
    pool: Annotated[int, typer.Option(help="Number of different images.")] = 200,
    rounds: Annotated[int, typer.Option(help="Number of rounds; each runs every case once.")] = 3,
    package: Annotated[
        Path | None, typer.Option(help="Folder with another version of the package.")
    ] = None,
) -> None:
    """Print the table."""
    versions = {"this version": Path(__file__).parents[1]}
    if package is not None:
        versions["the other version"] = package
    cases = {"1 process": (1, False), "2 processes": (2, False), "2, one slow": (2, True)}
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    with tempfile.TemporaryDirectory() as work:
        source = write_images(Path(work), images, side, pool)
        for _, (case, (world, slow)), (version, path) in itertools.product(
            range(rounds), cases.items(), versions.items()
        ):
            result = run(path, source, world, slow)
            found.setdefault((case, version), []).append(result)
            print(f"{case}, {version}: {', '.join(f'{value:.1f}' for value in result)}", flush=True)
    rows = [
        [case, version, *(f"{median(column):.1f}" for column in zip(*results, strict=True))]
        for (case, version), results in found.items()
    ]
    header = ["case", "version", "images/s", "seconds in all", "CPU seconds", "MiB"]
    print(f"\n{markdown(header, rows)}\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    typer.run(main)
