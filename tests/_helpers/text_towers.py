"""Tiny text towers of every kind open_clip configures and of Hugging Face's, with tokenizers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

from tests._helpers.tiny import with_preprocessing
from tests._helpers.tower_kinds import TINY

CONTEXT = 16  # of the tiny models
TEXTS = ["a", "a remote control on a table", "dog", "potted plant", "one two three four five six"]
VOCABULARY = 300
WIDTH = 16
VISION = TINY["vit"].vision


class Words:
    """A tokenizer of whole words, in the manner of one of those that open_clip configures.

    bpe: `<start> words <end>`, end the highest id, padded with 0 (CLIP).
    t5: `words <end>`, padded with the end (SigLIP).
    bert: `<start> words`, the separator stripped to the padding (CLIPA).
    roberta: `<start> words <end>`, end 2, padded with 1 (worldwide).
    """

    def __init__(self, manner: str) -> None:
        self.manner = manner

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        start, end, padding = {
            "bpe": ([VOCABULARY - 2], VOCABULARY - 1, 0),
            "t5": ([], 1, 1),
            "bert": ([3], 0, 0),
            "roberta": ([0], 2, 1),
        }[self.manner]
        rows = []
        for text in texts:
            words = [4 + sum(word.encode()) % (VOCABULARY - 6) for word in text.split()]
            row = [*start, *words][: context_length - 1]
            row.append(end)
            rows.append(row + [padding] * (context_length - len(row)))
        return torch.tensor(rows)


def manner(text_cfg: dict[str, Any]) -> str:
    """Of the tokenizer a configuration names."""
    if text_cfg.get("pool_type") == "eos":
        return "roberta"
    if text_cfg.get("tokenizer_kwargs", {}).get("strip_sep_token"):
        return "bert"
    return "t5" if text_cfg.get("pool_type") == "last" else "bpe"


def kinds_of_text_towers() -> dict[str, dict[str, Any]]:
    """open_clip's configurations, one for each kind of its own text towers."""
    kinds: dict[str, dict[str, Any]] = {}
    shape = ("width", "heads", "layers", "vocab_size", "hf_tokenizer_name", "mlp_ratio")
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        if "hf_model_name" in config["text_cfg"]:
            continue
        what = {key: value for key, value in config["text_cfg"].items() if key not in shape}
        what |= {
            "custom": config.get("custom_text", False),
            "coca": "multimodal_cfg" in config,
            "bias": "init_logit_bias" in config,
        }
        kinds.setdefault(json.dumps(what, sort_keys=True), {"name": name, **config})
    return {config["name"]: config for config in kinds.values()}


KINDS = kinds_of_text_towers()


def shrunk(config: dict[str, Any]) -> nn.Module:
    """A configuration's own text tower, fewer and narrower blocks, beside a tiny image tower."""
    torch.manual_seed(0)
    small = dict(width=WIDTH, heads=2, layers=2, vocab_size=VOCABULARY)
    joint = WIDTH if config["text_cfg"].get("proj_type") == "none" else 24
    arguments = dict(embed_dim=joint, vision_cfg=dict(VISION), text_cfg=config["text_cfg"] | small)
    if "multimodal_cfg" in config:
        arguments["vision_cfg"] |= dict(output_tokens=True)
        context = config["text_cfg"]["context_length"]
        return CoCa(**arguments, multimodal_cfg=dict(small, context_length=context)).eval()
    arguments["init_logit_bias"] = config.get("init_logit_bias")
    model = (CustomTextCLIP if config.get("custom_text") else CLIP)(**arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_bias" and ("embedding" in name or "bias" in name):
                parameter.normal_(0, 0.5)
    return model.eval()


def text_model(family: type[CLIP] | type[CustomTextCLIP] = CLIP, **text_cfg: Any) -> nn.Module:
    """A random model with a tiny text tower in which place, token and padding all matter."""
    torch.manual_seed(0)
    config = TINY["vit"].config
    config["text_cfg"] |= text_cfg
    model = family(**config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding" in name or "bias" in name:
                parameter.normal_(0, 0.5)
    return with_preprocessing(model.eval())


def text_tower(model: nn.Module) -> nn.Module:
    return getattr(model, "text", model)


HUGGING_FACE = {
    "roberta, mean": ("RobertaConfig", "mean_pooler", "mlp"),
    "roberta, first": ("XLMRobertaConfig", "cls_pooler", "linear"),
    "bert, last state of first": ("BertConfig", "cls_last_hidden_state_pooler", "linear"),
    "t5, mean": ("MT5Config", "mean_pooler", "linear"),
}
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words, saved as Hugging Face's are."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = dict.fromkeys(" ".join([*TEXTS, "photo of"]).split())
    table = {token: index for index, token in enumerate([*SPECIAL, *words])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)


def save_text_tower(folder: Path, config_class: str) -> None:
    transformers = pytest.importorskip("transformers")
    if config_class == "MT5Config":
        config = transformers.MT5Config(
            vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=1
        )
    else:
        config = getattr(transformers, config_class)(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=60,
            pad_token_id=1,
        )
    transformers.AutoModel.from_config(config).save_pretrained(folder)
