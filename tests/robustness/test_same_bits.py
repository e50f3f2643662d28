"""Same seed, same machine, same number of threads: the same bits from one process to another."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_clip_surgery import METHODS, ZeroShotClassifier, compare
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.evaluation import Protocol, evaluate, evaluate_scenes
from captum_clip_surgery.visualization import compare_figure
from tests._helpers.written_scenes import scene_folder

ROOT = Path(__file__).parents[2]
THREADS = 2
#: Without gradients, with them, by Captum, and by samples that Captum draws.
USED = ("CLIP", "CLIPSurgery", "GEM", "LeGrad", "GradECLIP", "KernelShap")
MEASURED = {name: METHODS[name] for name in ("CLIPSurgery", "GradECLIP")}


def digest(content: Tensor | Any) -> str:
    """Of a tensor's bytes, or of all digits of figures."""
    if isinstance(content, Tensor):
        return hashlib.sha256(content.detach().contiguous().numpy().tobytes()).hexdigest()
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def maps(seed: int) -> dict[str, str]:
    """Logits and maps of pixels drawn with a seed."""
    clip = ZeroShotClassifier.demo(["duck", "kiwi", "dog"])
    images = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(seed))
    return {
        "features": digest(clip.text_features()),
        "logits": digest(clip(images)),
        **{name: digest(METHODS[name](clip).attribute_all(images, [1])) for name in USED},
    }


def figures() -> dict[str, str]:
    """What evaluations and a comparison say of scenes, but for times."""
    scenes = list(Scenes("test", 3, objects=[2]))
    clip = ZeroShotClassifier.demo(["dog"])
    on_scenes = evaluate_scenes(clip, scenes, MEASURED, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        data = scene_folder(scenes, Path(folder))
        on_disk = evaluate(clip, data, MEASURED, Protocol.load("present"), progress=False)
    found = {
        f"{where} {name} {part}": digest(dict(getattr(result, part)))
        for where, results in (("scenes", on_scenes), ("disk", on_disk.results))
        for name, result in results.items()
        for part in ("measures", "intervals")
    }
    own = clip.with_texts(scenes[0].nouns)
    compared = compare(own, own.preprocess(scenes[0].image), methods=list(MEASURED))
    content = io.BytesIO()  # not the comparison's own figure, which shows times
    compare_figure(compared.images, compared.maps, own.texts).savefig(content, format="png")
    found["picture"] = hashlib.sha256(content.getvalue()).hexdigest()
    return found


def start(hash_seed: int) -> subprocess.Popen[str]:
    """This file as a process; what depends on the order of a set differs with its hash seed."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(THREADS),
        "OMP_WAIT_POLICY": "PASSIVE",  # processes share cores
        "PYTHONHASHSEED": str(hash_seed),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen([sys.executable, __file__], env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_find_the_same_bits() -> None:
    processes = [start(hash_seed) for hash_seed in (1, 2)]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    first, second = map(json.loads, said)
    assert first["threads"] == THREADS
    assert first == second
    # What is compared tells different pixels apart, and has all that was asked for.
    seeds = first["maps"]["0"], first["maps"]["1"]
    assert {name for name in seeds[0] if seeds[0][name] == seeds[1][name]} == {"features"}
    assert seeds[0].keys() == {"features", "logits", *USED}
    assert len(first["figures"]) == 2 * 2 * len(MEASURED) + 1


if __name__ == "__main__":
    # Only on standard output, which nothing else may write to.
    print(
        json.dumps(
            {
                "threads": torch.get_num_threads(),
                "maps": {seed: maps(seed) for seed in (0, 1)},
                "figures": figures(),
            }
        )
    )
