"""The configuration in a model's folder, looked at before anything is built by it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP

from captum_clip_surgery.errors import told

FILE = "open_clip_config.json"
#: What a configuration may say at most; larger models than there are fit by far.
MOST = {
    "layers": 1_000,
    "image_size": 2**14,
    "patch_size": 2**14,
    "width": 2**20,
    "heads": 2**20,
    "head_width": 2**20,
    "embed_dim": 2**20,
    "context_length": 2**20,
    "vocab_size": 2**26,
}
#: Numbers that a model computes for itself: the causal mask of 8,192 tokens.
MOST_BUFFERED = 2**26
#: What may stand as a list: stages of a ResNet, height and width.
LISTS = ("layers", "image_size", "patch_size")


def read_configuration(folder: Path) -> dict[str, Any]:
    """What a folder says of its model, `model_cfg`.

    Raises:
        ValueError: no JSON, or not of a model.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    config = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise ValueError(f"{path} has no model_cfg, the table of a model's parts")
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(config.get(part), dict):
            raise ValueError(f"{path} has no model_cfg.{part}, a table")
    return config


def check_configuration(folder: Path, weights: int) -> None:
    """Whether the model a folder describes can be the one whose weights lie there.

    A configuration of absurd numbers would take all memory before its weights are looked at.

    Args:
        folder: of a configuration.
        weights: bytes of its largest file of weights.

    Raises:
        ValueError: no configuration, a size that is none, or more parameters than weights.
    """
    config = read_configuration(folder)
    for where, table in {"": config, **_tables(config)}.items():
        for key, most in MOST.items():
            if key in table and (table[key] is not None or key != "patch_size"):
                _check_size(f"{folder / FILE}: {where}{key}", table[key], most, key in LISTS)
    # First by the numbers alone: some parts are computed even where nothing is built.
    for count in (_least_parameters, _parameters):
        try:
            least = count(config)
        except Exception as error:  # of open_clip, which may take all memory before it fails
            raise ValueError(f"{folder / FILE} describes no model: {told(error):.500}") from error
        if least > weights:  # each takes a byte at least
            raise ValueError(
                f"{folder / FILE} describes {least:,} parameters or more, and the weights beside "
                f"it have {weights:,} bytes: they are not of one model"
            )


def _tables(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {f"{name}.": part for name, part in config.items() if isinstance(part, dict)}


def _check_size(what: str, value: Any, most: int, lists: bool) -> None:
    values = value if lists and isinstance(value, list) else [value]
    if not values or not all(type(v) is int and 1 <= v <= most for v in values):
        raise ValueError(f"{what} is {value!r}, expected a whole number from 1 to {most:,}")


def _least_parameters(config: Mapping[str, Any]) -> int:
    """Fewer than any model has that is built by these numbers; others' parts count nothing."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    count = 0
    if vision.get("timm_model_name") is None:
        width, embed = vision.get("width", 1), config.get("embed_dim", 1)
        count += _blocks(vision) + embed * min(width, embed)
        if vision.get("patch_size") is not None:
            count += width * _pixels(vision["patch_size"])
            count += width * _pixels(vision.get("image_size", 1)) // _pixels(vision["patch_size"])
    if text.get("hf_model_name") is None:
        places = text.get("vocab_size", 0) + text.get("context_length", 0)
        count += _blocks(text) + places * text.get("width", 1)
    return count


def _parameters(config: Mapping[str, Any]) -> int:
    """Of the model as open_clip builds it, without memory; 0 where that does not go.

    What buffers hold beyond `MOST_BUFFERED` counts as well. Raises what open_clip does.
    """
    if config["text_cfg"].get("hf_model_name"):
        return 0  # of a configuration elsewhere
    parts = copy.deepcopy(dict(config))
    parts["vision_cfg"]["timm_model_pretrained"] = False  # as open_clip loads: nothing is fetched
    kind: Any = CLIP
    if parts.pop("custom_text", False):
        kind = CoCa if "multimodal_cfg" in parts else CustomTextCLIP
    try:
        with torch.device("meta"):
            model = kind(**parts)
    except (OSError, ImportError):  # of a hub; loading tells more
        return 0
    except Exception as error:
        if "meta" in str(error):  # it asks for values
            return 0
        raise
    buffered = sum(buffer.numel() for buffer in model.buffers())
    return sum(p.numel() for p in model.parameters()) + max(0, buffered - MOST_BUFFERED)


def _pixels(side: int | list[int]) -> int:
    """Pixels of an image or a patch."""
    return side**2 if isinstance(side, int) else side[0] * side[-1]


def _blocks(table: Mapping[str, Any]) -> int:
    layers = table.get("layers", 1)
    return (sum(layers) if isinstance(layers, list) else layers) * table.get("width", 1) ** 2
