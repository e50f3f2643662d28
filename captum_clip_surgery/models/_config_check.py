"""Check the configuration in a model's folder before a model is built from it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from captum_clip_surgery._utils.errors import error_message
from captum_clip_surgery.models._internals import build_image_tower, find_checkpoint
from captum_clip_surgery.models._schema import ListOf, Table, check_links, check_table, read_json
from captum_clip_surgery.models._transformers_files import build_text_tower, check_text_tower

FILE = "open_clip_config.json"
LOCAL = "local-dir:"
WEIGHTS = (".safetensors", ".bin", ".pth")  # that open_clip looks for in a folder


def _up_to(most: int) -> range:
    return range(1, most + 1)


#: Upper bounds of sizes, far above those of any existing model.
LAYERS, SIDE, WIDTH, CONTEXT = _up_to(1_000), _up_to(2**14), _up_to(2**20), _up_to(2**20)
QUERIES, TOKEN = _up_to(2**30), range(2**31)

_BLOCKS: Table = {
    "layers": LAYERS,
    "width": WIDTH,
    "mlp_ratio": float,
    "ls_init_value?": float,
    "final_ln_after_pool": bool,
    "output_tokens": bool,
    "act_kwargs?": {"approximate": ("none", "tanh")},
    "norm_kwargs?": {"eps": float, "elementwise_affine": bool, "bias": bool},
    "block_type?": ("default", "custom"),
    "qk_norm": bool,
    "scaled_cosine_attn": bool,
    "scale_heads": bool,
    "scale_attn_inner": bool,
    "scale_attn": bool,
    "scale_fc": bool,
}
VISION: Table = {
    **_BLOCKS,
    "layers": [LAYERS, ListOf(LAYERS, range(4, 5))],
    "head_width": WIDTH,
    "patch_size?": [SIDE, ListOf(SIDE, range(1, 3))],
    "image_size": [SIDE, ListOf(SIDE, range(1, 3))],
    "patch_dropout": float,
    "attentional_pool": (False, True, "parallel", "cascade"),
    "attn_pooler_queries": QUERIES,
    "attn_pooler_heads": WIDTH,
    "no_ln_pre": bool,
    "pos_embed_type": ("learnable", "sin_cos_2d"),
    "pool_type": ("tok", "avg", "none"),
    "timm_model_name?": str,
    "timm_model_pretrained": bool,
    "timm_pool?": str,
    "timm_proj?": ("linear", "mlp", "none", ""),
    "timm_proj_bias": bool,
    "timm_drop": float,
    "timm_drop_path?": float,
}
#: Options of tokenizers, without `bpe_path` and `additional_special_tokens` (a file and a regular
#: expression) and `reduction_mask` (which draws tokens at random or downloads a tagger).
TOKENIZER: Table = {
    "clean": ("lower", "whitespace", "canonicalize"),
    "strip_sep_token": bool,
    "language?": str,
}
TEXT: Table = {
    **_BLOCKS,
    "context_length": CONTEXT,
    "vocab_size": _up_to(2**26),
    "heads": WIDTH,
    "hf_tokenizer_name?": str,
    "tokenizer_mode?": ("", "clips"),
    "tokenizer_kwargs?": TOKENIZER,
    "embed_cls": bool,
    "pad_id": TOKEN,
    "eos_id": TOKEN,
    "no_causal_mask": bool,
    "pool_type": ("first", "last", "argmax", "eos", "none"),
    "proj_bias": bool,
    "proj_type": ("linear", "none"),
    "hf_model_name?": str,
    "hf_model_pretrained": bool,
    "hf_proj_type?": ("linear", "mlp"),
    "hf_pooler_type?": (
        "mean_pooler",
        "max_pooler",
        "cls_pooler",
        "cls_last_hidden_state_pooler",
    ),
}
MODEL: Table = {
    "embed_dim": WIDTH,
    "vision_cfg": VISION,
    "text_cfg": TEXT,
    "multimodal_cfg": {
        **TEXT,
        "dim_head": WIDTH,
        "n_queries": QUERIES,
        "attn_pooler_heads": WIDTH,
    },
    "custom_text": bool,
    "quick_gelu": bool,
    "init_logit_scale": float,
    "init_logit_bias?": float,
    "nonscalar_logit_scale": bool,
    "output_dict": bool,
    "pad_id": TOKEN,
}
PREPROCESS: Table = {
    "size?": [SIDE, ListOf(SIDE, range(1, 3))],
    "mode?": ("RGB",),
    "mean?": ListOf(float, range(3, 4)),
    "std?": ListOf(float, range(3, 4)),
    "interpolation?": ("bicubic", "bilinear", "nearest"),
    "resize_mode?": ("shortest", "longest", "squash"),
    "fill_color?": range(256),
}
#: Largest number of values in buffers that a model computes: the causal mask of 8,192 tokens.
MAX_BUFFERED = 2**26
#: Largest numbers of pixels and tokens that a model reads at once; weights of timm's and Hugging
#: Face's towers need not grow with them.
MAX_PIXELS, MAX_TOKENS = 2**24, 2**13


def read_configuration(folder: Path) -> dict[str, Any]:
    """Return `model_cfg` of a folder's configuration.

    Raises:
        ValueError: If the file is not JSON, or not the configuration of a model.
    """
    path = folder / FILE
    content = read_json(path)
    config = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(config, dict):
        raise ValueError(f"{path} has no model_cfg, the table of a model's parts")
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(config.get(part), dict):
            raise ValueError(f"{path} has no model_cfg.{part}, a table")
    if content.get("preprocess_cfg") is not None:
        check_table(str(path), content["preprocess_cfg"], PREPROCESS, "preprocess_cfg.")
    return config


def find_weights(folder: Path) -> Path:
    """Return the file of weights that open_clip reads in a model's folder.

    Raises:
        FileNotFoundError: If there is no configuration, or no file of weights.
    """
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"no {FILE} in {folder}")
    weights = find_checkpoint(folder)
    if weights is None:
        raise FileNotFoundError(f"no weights ({', '.join(WEIGHTS)}) in {folder}")
    return Path(weights)


def check_folder(folder: Path) -> dict[str, Any]:
    """Check that a model can be built safely from a folder, and from nothing else.

    Every option must be in the tables above; none of them leads to code, a download or a path
    outside of the folder. A configuration of absurd sizes would take all memory before its weights
    are read, so its parameters are counted first.

    Args:
        folder: Folder of a configuration and weights.

    Returns:
        Options for open_clip in addition to the folder's name: the text configuration with the path
        of a Hugging Face tower within the folder.

    Raises:
        FileNotFoundError: If there is no configuration, or no file of weights.
        ValueError: If a link leads out of the folder, an option is not allowed, or the
            configuration has more parameters than the file of weights.
    """
    check_links(folder)
    weights = find_weights(folder).stat().st_size
    path = folder / FILE
    config = read_configuration(folder)
    check_table(str(path), config, MODEL, "model_cfg.")
    name = config["vision_cfg"].get("timm_model_name")
    if name and (":" in name or "/" in name or not timm.is_model(name)):
        raise ValueError(
            f"{path}: model_cfg.vision_cfg.timm_model_name is {name!r:.100}, which is not one of "
            "timm's own models; a folder's model is built only from the folder"
        )
    options: dict[str, Any] = {}
    if config["text_cfg"].get("hf_model_name"):
        tower = check_text_tower(folder, config["text_cfg"]["hf_model_name"])
        local = {"hf_model_name": str(tower), "hf_model_pretrained": False}
        options["text_cfg"] = config["text_cfg"] | local
    # First by the sizes: open_clip computes some parts even on the meta device.
    for count in (_least_parameters, _parameters):
        try:
            least = count(config | options)
        except Exception as error:  # open_clip can raise any type
            raise ValueError(f"{path} describes no model: {error_message(error):.500}") from error
        if least > weights:  # each takes at least a byte
            raise ValueError(
                f"{path} describes {least:,} parameters or more, and the weights next to "
                f"it have {weights:,} bytes: they are not of one model"
            )
    pixels = _pixels(config["vision_cfg"].get("image_size", 1))
    tokens = config["text_cfg"].get("context_length", 1)
    if pixels > MAX_PIXELS or tokens > MAX_TOKENS:
        raise ValueError(
            f"{path} describes images of {pixels:,} pixels and texts of {tokens:,} tokens, "
            f"expected at most {MAX_PIXELS:,} and {MAX_TOKENS:,}"
        )
    return options


def _least_parameters(config: Mapping[str, Any]) -> int:
    """Return a lower bound of the number of parameters, without parts of timm and Hugging Face."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    count = 0
    if not vision.get("timm_model_name"):
        width, embed = vision.get("width", 1), config.get("embed_dim", 1)
        count += _blocks(vision) + embed * min(width, embed)
        if vision.get("patch_size") is not None:
            count += width * _pixels(vision["patch_size"])
            count += width * _pixels(vision.get("image_size", 1)) // _pixels(vision["patch_size"])
    if not text.get("hf_model_name"):
        rows = text.get("vocab_size", 0) + text.get("context_length", 0)
        count += _blocks(text) + rows * text.get("width", 1)
    return count


def _parameters(config: Mapping[str, Any]) -> int:
    """Count the parameters of the model as open_clip builds it, on the meta device.

    Values in buffers beyond `MAX_BUFFERED` are counted as well, and so is the decoder that
    open_clip builds and drops with some of Hugging Face's text towers.

    Raises:
        Exception: If open_clip raises it.
    """
    count = 0
    if config["text_cfg"].get("hf_model_name"):
        with torch.device("meta"):
            count = _size(build_text_tower(Path(config["text_cfg"]["hf_model_name"])))
    return max(count, _size(build_on_meta(config)))


def build_on_meta(config: Mapping[str, Any]) -> nn.Module:
    """Build the model of a configuration as open_clip does, without values.

    Raises:
        Exception: If open_clip raises it.
    """
    parts = copy.deepcopy(dict(config))
    parts["vision_cfg"]["timm_model_pretrained"] = False  # as open_clip does when it loads weights
    kind: Any = CLIP
    if parts.pop("custom_text", False) or "hf_model_name" in parts["text_cfg"]:
        kind = CoCa if "multimodal_cfg" in parts else CustomTextCLIP
    with torch.device("meta"), quiet_timm():
        model: nn.Module = kind(**parts)
    return model


def build_image_tower_on_meta(config: Mapping[str, Any]) -> nn.Module:
    """Build the image tower of a configuration as open_clip does, without values.

    Raises:
        Exception: If open_clip raises it.
    """
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    with torch.device("meta"), quiet_timm():
        return build_image_tower(config["embed_dim"], vision, config.get("quick_gelu", False))


@contextmanager
def quiet_timm() -> Iterator[None]:
    """Silence timm's warnings of pretrained configurations, which are not used here."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _size(model: nn.Module) -> int:
    buffered = sum(buffer.numel() for buffer in model.buffers())
    return sum(p.numel() for p in model.parameters()) + max(0, buffered - MAX_BUFFERED)


def _pixels(side: int | list[int]) -> int:
    """Return the number of pixels of an image or a patch."""
    return side**2 if isinstance(side, int) else side[0] * side[-1]


def _blocks(table: Mapping[str, Any]) -> int:
    layers = table.get("layers", 1)
    return (sum(layers) if isinstance(layers, list) else layers) * table.get("width", 1) ** 2
