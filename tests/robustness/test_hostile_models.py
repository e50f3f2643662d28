"""Folders of models and checkpoints made to harm: nothing in them runs or fills the memory."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.profiling import profile_call
from captum_clip_surgery.demo import MODEL_FOLDER
from tests._helpers.tiny import peak_where_told

CONFIG = json.loads((Path(MODEL_FOLDER) / "open_clip_config.json").read_text())
WEIGHTS = (Path(MODEL_FOLDER) / "open_clip_model.safetensors").read_bytes()
DEEP = "[" * 100_000


# --- models --------------------------------------------------------------------------------------


def refused(folder: Path, config: str, weights: bytes, message: str, name: str = "m.safetensors"):
    (folder / "open_clip_config.json").write_text(config)
    (folder / name).write_bytes(weights)
    with pytest.raises(ValueError, match=message) as caught:
        ZeroShotClassifier.from_pretrained(f"local-dir:{folder}", None, ["a dog"], templates=())
    assert len(str(caught.value)) < 1500


def changed(path: str, value: Any) -> str:
    config = copy.deepcopy(CONFIG)
    *above, last = f"model_cfg.{path}".split(".")
    table = config
    for name in above:
        table = table[name]
    table[last] = value
    return json.dumps(config)


WHOLE = "expected a whole number from 1 to "
UNLIKE = "describes [0-9,]+ parameters or more, and the weights next to it have"
SIZES: list[tuple[str, Any, str]] = [
    ("vision_cfg.width", 10**9, WHOLE), ("vision_cfg.width", 10**6, UNLIKE),
    ("vision_cfg.width", -1, WHOLE), ("vision_cfg.width", 0, WHOLE),
    ("vision_cfg.width", "wide", WHOLE), ("vision_cfg.width", None, WHOLE),
    ("vision_cfg.width", 1.5, WHOLE), ("vision_cfg.width", True, WHOLE),
    ("vision_cfg.layers", 10**9, WHOLE), ("vision_cfg.layers", -1, WHOLE),
    ("vision_cfg.layers", [], WHOLE), ("vision_cfg.layers", [1, 10**9], WHOLE),
    ("vision_cfg.layers", 1000, "Missing key|describes"), ("vision_cfg.image_size", 10**9, WHOLE),
    ("vision_cfg.image_size", 0, WHOLE), ("vision_cfg.patch_size", 0, WHOLE),
    ("vision_cfg.patch_size", 10**9, WHOLE), ("vision_cfg.patch_size", 16_000, UNLIKE),
    ("vision_cfg.head_width", 0, WHOLE), ("embed_dim", 10**12, WHOLE), ("embed_dim", -5, WHOLE),
    ("embed_dim", 10**6, UNLIKE), ("text_cfg.vocab_size", 10**10, WHOLE),
    ("text_cfg.vocab_size", 10**7, UNLIKE), ("text_cfg.context_length", 10**9, WHOLE),
    ("text_cfg.context_length", 10**6, UNLIKE), ("text_cfg.context_length", 0, WHOLE),
    ("text_cfg.layers", 10**8, WHOLE), ("text_cfg.heads", 0, WHOLE), ("text_cfg.heads", 7, "divis"),
    ("text_cfg.width", 10**6, UNLIKE), ("vision_cfg", [], "no model_cfg.vision_cfg, a table"),
    ("vision_cfg", None, "no model_cfg.vision_cfg, a table"), ("text_cfg", 3, "model_cfg.text_cfg"),
    ("evil", 1, "model_cfg.evil is not an option that"),
    ("vision_cfg.evil", 1, "model_cfg.vision_cfg.evil is not an option that"),
    ("vision_cfg.timm_model_name", "os.system", "'os.system', which is not one of timm's own"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), SIZES)
def test_absurd_configurations(tmp_path: Path, path: str, value: Any, message: str) -> None:
    """Refused before anything is built: widths of 10^6 would take terabytes."""
    refused(tmp_path, changed(path, value), WEIGHTS, message)


CUSTOM = {"custom_text": True}
PARTS: dict[str, dict[str, Any]] = {
    "places of an image": {"vision_cfg.image_size": 2**14, "vision_cfg.patch_size": 1},
    "places that sines make": {"vision_cfg.image_size": 2**14, "vision_cfg.patch_size": 1,
                               "vision_cfg.pos_embed_type": "sin_cos_2d"},
    "mask of a context": {"text_cfg.context_length": 40_000, "text_cfg.width": 4},
    "queries": {"vision_cfg.attentional_pool": True, "vision_cfg.attn_pooler_queries": 10**9},
    "layers that widen": {"vision_cfg.mlp_ratio": 10**6},
    "text layers that widen": {"text_cfg.mlp_ratio": 10**6},
    "a third tower": CUSTOM | {"multimodal_cfg": {"width": 2**15, "heads": 1, "layers": 1}},
    "timm's largest": {"vision_cfg.timm_model_name": "vit_giant_patch14_clip_224"},
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_parts_that_fill_the_memory(tmp_path: Path, kind: str) -> None:
    """Counted as open_clip would build them, which takes no memory: these would take gigabytes."""
    config = copy.deepcopy(CONFIG)
    for path, value in PARTS[kind].items():
        *above, last = path.split(".")
        table = config["model_cfg"]
        for name in above:
            table = table[name]
        table[last] = value
    assert_little_memory(lambda: refused(tmp_path, json.dumps(config), WEIGHTS, UNLIKE))


def test_parts_that_fail_behind_what_fills_the_memory(tmp_path: Path) -> None:
    """A ResNet of a ViT's usual width has filled gigabytes when its side turns out to be a list."""
    config = copy.deepcopy(CONFIG)
    vision = {"image_size": [1], "layers": [1, 1, 1, 1], "patch_size": None}
    config["model_cfg"]["vision_cfg"] = vision
    told = "open_clip_config.json describes no model: "
    assert_little_memory(lambda: refused(tmp_path, json.dumps(config), WEIGHTS, told))


def assert_little_memory(call: Callable[[], None]) -> None:
    peak = peak_where_told(profile_call(call, torch.device("cpu"))[1])
    assert peak is None or peak < 2**30


TOKENIZERS: list[tuple[str, Any, str]] = [
    ("text_cfg.tokenizer_kwargs", {"evil": 1}, "tokenizer_kwargs.evil is not an option that"),
    ("text_cfg.tokenizer_kwargs", 3, "tokenizer_kwargs is 3, expected a table"),
    ("text_cfg.tokenizer_kwargs", {"clean": "x" * 9000}, "kwargs.clean is 'xxx.* expected one of"),
    ("text_cfg.hf_tokenizer_name", 3, "hf_tokenizer_name is 3, expected a string"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), TOKENIZERS)
def test_absurd_tokenizers(tmp_path: Path, path: str, value: Any, message: str) -> None:
    refused(tmp_path, changed(path, value), WEIGHTS, f"open_clip_config.json: .*{message}")


def test_weights_that_are_missing_in_hundreds_make_no_book(tmp_path: Path) -> None:
    refused(tmp_path, changed("vision_cfg.layers", 40), WEIGHTS, "Missing key")


CONFIGS = {
    "empty": "", "zero byte": "\0", "open": "{", "deep": DEEP, "deep tables": '{"a":' * 100_000,
    "long number": '{"model_cfg": ' + "9" * 5000 + "}",
}  # fmt: skip
TABLES = {"list": "[]", "null": "null", "number": "3", "text": '"x"', "NaN": '{"model_cfg": NaN}',
          "nothing": "{}", "mark": "\ufeff{}", "text inside": '{"model_cfg": "x"}'}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_configurations_that_are_no_json(tmp_path: Path, kind: str) -> None:
    refused(tmp_path, CONFIGS[kind], WEIGHTS, "open_clip_config.json is not JSON: ")


@pytest.mark.parametrize("kind", TABLES)
def test_configurations_without_a_model(tmp_path: Path, kind: str) -> None:
    refused(tmp_path, TABLES[kind], WEIGHTS, "open_clip_config.json has no model_cfg, the table")


class Evil:
    """Runs at unpickling."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def poisoned(path: Path) -> dict[str, bytes]:
    stream = io.BytesIO()
    torch.save({"state_dict": Evil(path), "padding": torch.zeros(2_500_000)}, stream)
    # Long enough to be weights of the configuration.
    return {"pickle": pickle.dumps([Evil(path), bytes(10_000_000)]), "torch": stream.getvalue()}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["pickle", "torch"])
@pytest.mark.parametrize("name", ["open_clip_model.bin", "open_clip_model.pth", "m.safetensors"])
def test_pickled_code_in_a_folder_does_not_run(tmp_path: Path, name: str, kind: str) -> None:
    bait = tmp_path / "ran"
    pickle.loads(pickle.dumps(Evil(bait)))
    assert bait.is_dir()  # so it would
    bait.rmdir()
    message = "is not a checkpoint of weights only|not in the form of safetensors"
    refused(tmp_path, json.dumps(CONFIG), poisoned(bait)[kind], message, name)
    assert not bait.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["pickle", "torch"])
@pytest.mark.parametrize("end", ["pt", "bin", "jit", "npz", "safetensors"])
def test_pickled_code_in_a_checkpoint_does_not_run(tmp_path: Path, end: str, kind: str) -> None:
    bait, file = tmp_path / "ran", tmp_path / f"x.{end}"
    file.write_bytes(poisoned(bait)[kind])
    with pytest.raises(ValueError, match=f"x.{end} does not load as RN50: "):
        ZeroShotClassifier.from_pretrained("RN50", str(file), ["a dog"], templates=())
    assert not bait.exists()


HEAD = int.from_bytes(WEIGHTS[:8], "little")


def reheaded(**entry: Any) -> bytes:
    header = json.loads(WEIGHTS[8 : 8 + HEAD])
    header["ln_final.bias"] |= entry
    content = json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + WEIGHTS[8 + HEAD :]


def rewritten(**tensors: Any) -> bytes:
    state = load_file(Path(MODEL_FOLDER) / "open_clip_model.safetensors")
    state |= {name.replace("__", "."): value for name, value in tensors.items()}
    return save({name: value for name, value in state.items() if value is not None})


FILES: dict[str, tuple[Any, str]] = {
    "nothing": (lambda: b"", UNLIKE),
    "cut in the length": (lambda: WEIGHTS[:4], UNLIKE),
    "cut in the header": (lambda: WEIGHTS[:100], UNLIKE),
    "cut in the middle": (lambda: WEIGHTS[: len(WEIGHTS) // 2], "is cut off: it has "),
    "cut at the end": (lambda: WEIGHTS[:-1], "is cut off: it has "),
    "longer": (lambda: WEIGHTS + b"abc", "not fully covered"),
    "header of 2^63": (
        lambda: (2**63 - 1).to_bytes(8, "little") + WEIGHTS[8:],
        "not in the form of",
    ),
    "offsets beyond": (lambda: reheaded(data_offsets=[0, 10**12]), "is cut off: it has "),
    "absurd shape": (lambda: reheaded(shape=[10**9, 10**9]), "invalid shape, data type, or"),
    "negative shape": (lambda: reheaded(shape=[-1]), "invalid value"),
    "overlap": (lambda: reheaded(data_offsets=[4, 8]), "invalid offset"),
    "no type": (lambda: reheaded(dtype="EVIL"), "unknown variant"),
    "missing": (lambda: rewritten(ln_final__bias=None), "Missing key"),
    "further": (lambda: rewritten(evil=torch.zeros(2)), "Unexpected key"),
    "wrong shape": (
        lambda: rewritten(ln_final__bias=torch.zeros(3)),
        r"is \(3,\), expected \(128,\)",
    ),
    "wrong rank": (lambda: rewritten(logit_scale=torch.zeros(2)), r"is \(2,\), expected \(\)"),
    "NaN": (lambda: rewritten(ln_final__bias=torch.full((128,), torch.nan)), "is zero, NaN or"),
}


@pytest.mark.parametrize("kind", FILES)
def test_damaged_weights(tmp_path: Path, kind: str) -> None:
    make, message = FILES[kind]
    refused(tmp_path, json.dumps(CONFIG), make(), message)
