"""Folders of models that describe more than they hold, loaded under a limit of memory."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests._helpers.model_folders import CONFIG, DEMO, edit, write_hugging_face
from tests._helpers.text_towers import HUGGING_FACE

#: Data that loading may take beside what the imports took: weights of 17 MB in float32, several
#: times, and no more.
LIMIT = 600 * 2**20
CHILD = """
import json, re, resource, sys
import torch, transformers
from transformers import AutoModel
from captum_clip_surgery import ZeroShotClassifier

torch.set_num_threads(1)
folders, limit = sys.argv[2:], int(sys.argv[1])
ZeroShotClassifier.demo(["a dog"])  # what is imported or allocated once
data = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (data + limit,) * 2)
try:
    torch.zeros(2 * limit, dtype=torch.uint8)
except RuntimeError:
    pass
else:
    sys.exit("the limit does not hold")
told, before = {}, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in folders:
    try:
        ZeroShotClassifier.from_pretrained(f"local-dir:{folder}", None, ["dog"], templates=())
    except Exception as error:
        told[folder] = f"{type(error).__name__}: {error}"
    else:
        told[folder] = "loaded"
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"told": told, "kilobytes": peak - before}))
"""


def embedded(folder: Path, changes: dict[str, Any]) -> None:
    """The embedded model's weights, and its configuration changed."""
    folder.mkdir()
    (folder / CONFIG).write_bytes((DEMO / CONFIG).read_bytes())
    edit(folder / CONFIG, **{f"model_cfg__{key}": value for key, value in changes.items()})
    shutil.copy(DEMO / "open_clip_model.safetensors", folder)


def hugging_face(folder: Path, changes: dict[str, Any]) -> None:
    """A small text tower of Hugging Face, whose own configuration is changed."""
    folder.mkdir()
    kind = "t5, mean" if any("decoder" in key for key in changes) else "roberta, mean"
    write_hugging_face(folder, *HUGGING_FACE[kind])
    for key, value in changes.items():
        edit(folder / (CONFIG if "__" in key else "text/config.json"), **{key: value})


def timm(folder: Path, changes: dict[str, Any]) -> None:
    """A tower of timm, whose weights do not grow with its images."""
    embedded(folder, {"vision_cfg": {"timm_model_name": "resnet10t", **changes}})


def decoy(folder: Path, changes: dict[str, Any]) -> None:
    """A file of terabytes that takes no disk, beside the weights that are read."""
    embedded(folder, changes)
    with (folder / "zzz.bin").open("wb") as file:
        file.truncate(2**42)


def stretched(folder: Path, changes: dict[str, Any]) -> None:
    """Places for an enormous grid by one number, which open_clip resizes to the model's."""
    embedded(folder, changes)
    state = load_file(DEMO / "open_clip_model.safetensors")
    state["visual.positional_embedding"] = torch.zeros(1, 1).expand(1 + 2**22, 128)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(state, folder / "open_clip_model.bin")


META = {"vision_cfg__width": 8192, "vision_cfg__head_width": 64}
UNLIKE = "or more, and the weights next to it have"
CASES: dict[str, tuple[Callable[[Path, dict[str, Any]], None], dict[str, Any], str]] = {
    "meta in an option": (embedded, META | {"text_cfg__pool_type": "meta"}, "expected one of"),
    "meta in a timm name": (embedded, META | {"vision_cfg__timm_model_name": "meta"}, "timm's own"),
    "meta in a key": (embedded, META | {"text_cfg__meta": 1}, "text_cfg.meta is not an option"),
    "wide": (embedded, META | {"vision_cfg__ls_init_value": 1e-4}, UNLIKE),
    "decoy": (decoy, {"vision_cfg__width": 8192}, UNLIKE),
    "wide text tower": (hugging_face, {"hidden_size": 2**13, "num_attention_heads": 8}, UNLIKE),
    "deep text tower": (
        hugging_face,
        {"num_hidden_layers": 1000, "intermediate_size": 2**16},
        UNLIKE,
    ),
    "vocabulary": (hugging_face, {"vocab_size": 2**25}, UNLIKE),
    "places": (hugging_face, {"max_position_embeddings": 2**19, "hidden_size": 1024}, UNLIKE),
    "decoder that is dropped": (hugging_face, {"num_decoder_layers": 500, "d_ff": 2**16}, UNLIKE),
    "labels": (hugging_face, {"num_labels": 10**9}, "num_labels is not an option"),
    "long texts": (
        hugging_face,
        {"model_cfg__text_cfg__context_length": 2**20},
        "texts of 1,048,576 tokens",
    ),
    "large images": (timm, {"image_size": 2**14}, "images of 268,435,456 pixels|not of one model"),
    "large timm": (timm, {"timm_model_name": "eva_giant_patch14_224"}, UNLIKE),
    "stretched places": (stretched, {}, "has shape .* and 4 bytes of values"),
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
def test_folders_that_would_fill_the_memory(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folders = {kind: tmp_path / kind.replace(" ", "-") for kind in CASES}
    for kind, (make, changes, _) in CASES.items():
        make(folders[kind], copy.deepcopy(changes))
    command = [sys.executable, "-c", CHILD, str(LIMIT), *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    told = {kind: result["told"][str(folders[kind])] for kind in CASES}
    wrong = {
        kind: told[kind]
        for kind, (_, _, message) in CASES.items()
        if not re.match(f"ValueError: .*(?:{message})", told[kind])
    }
    assert not wrong
    assert result["kilobytes"] * 1024 < LIMIT
