"""Tiny dual encoders of transformers with random weights and tokenizers made here, and conversions
of open_clip's models into them."""

from __future__ import annotations

import string
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from open_clip.model import CustomTextCLIP
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from tests._helpers.tower_kinds import TINY

SIDE, LENGTH = 32, 16
_VISION = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    image_size=SIDE, patch_size=8,
)  # fmt: skip
_TEXT = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    vocab_size=64, max_position_embeddings=LENGTH,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One class of model: its configuration, and the token ids of start, end and padding."""

    config: str
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    special: tuple[int | None, int, int] = (0, 2, 1)
    images: str = "CLIPImageProcessor"

    @property
    def eos(self) -> int:
        return self.special[1]


_IDS = dict(bos_token_id=62, eos_token_id=63, pad_token_id=63)
_PROJECTED = dict(projection_dim=24)
KINDS: dict[str, Kind] = {
    "CLIPModel": Kind("CLIPConfig", _IDS, _PROJECTED, _PROJECTED, (62, 63, 63)),
    "MetaClip2Model": Kind(
        "MetaClip2Config", dict(bos_token_id=0, eos_token_id=2, pad_token_id=1), {}, _PROJECTED
    ),
    "SiglipModel": Kind("SiglipConfig", special=(None, 2, 1), images="SiglipImageProcessor"),
    "Siglip2Model": Kind(
        "Siglip2Config",
        vision=dict(image_size=None, num_patches=16),
        special=(None, 2, 1),
        images="Siglip2ImageProcessor",
    ),
    "AltCLIPModel": Kind(
        "AltCLIPConfig",
        dict(project_dim=32, pad_token_id=1, type_vocab_size=1),
        _PROJECTED,
        _PROJECTED,
    ),
    "ChineseCLIPModel": Kind(
        "ChineseCLIPConfig", dict(pad_token_id=0), _PROJECTED, _PROJECTED, (1, 2, 0)
    ),
    "Tipsv2Model": Kind(
        "Tipsv2Config", dict(pad_token_id=0), dict(intermediate_size=None), {}, (None, 2, 0)
    ),
}
#: Those that the installed transformers has.
NAMES = [name for name in KINDS if hasattr(transformers, name)]


def build(name: str, attention: str = "eager", dtype: torch.dtype = torch.float32) -> Any:
    """A random model whose every part matters."""
    kind = KINDS[name]
    text, vision = (
        {key: value for key, value in table.items() if value is not None}
        for table in (_TEXT | kind.text, _VISION | kind.vision)
    )
    config = getattr(transformers, kind.config)(
        text_config=text, vision_config=vision, **kind.others
    )
    config._attn_implementation = attention
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for place, parameter in model.named_parameters():
            torch.manual_seed(zlib.crc32(place.encode()))
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
            elif place.startswith(("logit", "temperature")):
                parameter.fill_(1.0)
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype)


def tokenizer(name: str) -> Any:
    """A tokenizer of letters with a kind's special tokens, and CLIP's or sentencepiece's marks."""
    start, end, padding = KINDS[name].special
    names = {end: "</s>", padding: "<pad>"} | ({} if start is None else {start: "<s>"})
    names[end] = "</s>"
    free = iter(i for i in range(64) if i not in names)
    letters = string.ascii_lowercase
    metaspace = name.startswith("Siglip")
    pieces = ["▁", *letters] if metaspace else [*letters, *(f"{c}</w>" for c in letters)]
    vocabulary = {text: i for i, text in names.items()} | {piece: next(free) for piece in pieces}
    vocabulary |= {f"unused{i}": i for i in free}
    suffix = {} if metaspace else {"end_of_word_suffix": "</w>"}
    inner: Any = Tokenizer(models.BPE(vocabulary, [], **suffix))
    inner.normalizer = normalizers.Lowercase() if not metaspace else None
    inner.pre_tokenizer = (
        pre_tokenizers.Metaspace() if metaspace else pre_tokenizers.WhitespaceSplit()
    )
    inner.decoder = decoders.Metaspace() if metaspace else None
    template = "$A </s>" if start is None else "<s> $A </s>"
    inner.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(text, i) for i, text in names.items() if text != "<pad>"]
    )
    make: Any = transformers.PreTrainedTokenizerFast
    return make(
        tokenizer_object=inner,
        eos_token="</s>",
        pad_token=names[padding],
        model_max_length=LENGTH,
        **({} if start is None else {"bos_token": "<s>"}),
    )


class TinyProcessor(transformers.ProcessorMixin):
    """A processor of any tokenizer; those of the families take their own."""

    attributes = ("image_processor", "tokenizer")
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        make: Any = super().__init__
        make(image_processor, tokenizer)


def processor(name: str) -> Any:
    """The processor of a kind, of the tokenizer and of images with numbers of their own."""
    return TinyProcessor(image_processor(name), tokenizer(name))


def image_processor(name: str) -> Any:
    kind: Any = getattr(transformers, KINDS[name].images)
    side = {} if name == "Siglip2Model" else {"size": {"height": SIDE, "width": SIDE}}
    crop = {"crop_size": side["size"]} if kind.__name__.startswith("CLIP") else {}
    return kind(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4], resample=2, **side, **crop)


def save(name: str, folder: Path) -> Any:
    """Save a model, its tokenizer and its image processor in a folder; return the model."""
    model = build(name)
    for part in (model, tokenizer(name), image_processor(name)):
        part.save_pretrained(folder)
    return model


def own_features(model: Any, kind: str, **inputs: Tensor) -> Tensor:
    """What `get_image_features` or `get_text_features` gives, in versions 4 and 5."""
    output = getattr(model, f"get_{kind}_features")(**inputs)
    return output if isinstance(output, Tensor) else output.pooler_output


# --- conversions ---------------------------------------------------------------------------------


def clip_model(source: Any) -> Any:
    """A CLIPModel with the weights of open_clip's CLIP of the tiny kind "vit"."""
    text, vision = source.transformer, TINY["vit"].vision
    config = transformers.CLIPConfig(
        text_config=dict(
            hidden_size=text.width, intermediate_size=4 * text.width,
            num_hidden_layers=text.layers, num_attention_heads=text.resblocks[0].attn.num_heads,
            vocab_size=source.vocab_size, max_position_embeddings=source.context_length,
            hidden_act="gelu", eos_token_id=49407, bos_token_id=49406, pad_token_id=49407,
        ),
        vision_config=dict(
            hidden_size=vision["width"], intermediate_size=4 * vision["width"],
            num_hidden_layers=vision["layers"], image_size=vision["image_size"],
            num_attention_heads=vision["width"] // vision["head_width"],
            patch_size=vision["patch_size"], hidden_act="gelu",
        ),
        projection_dim=source.text_projection.shape[1],
    )  # fmt: skip
    model: Any = transformers.CLIPModel(config)
    visual, state = source.visual, {}
    state["logit_scale"] = source.logit_scale
    state["visual_projection.weight"] = visual.proj.T
    state["text_projection.weight"] = source.text_projection.T
    state["vision_model.embeddings.class_embedding"] = visual.class_embedding
    state["vision_model.embeddings.patch_embedding.weight"] = visual.conv1.weight
    state["vision_model.embeddings.position_embedding.weight"] = visual.positional_embedding
    state["text_model.embeddings.token_embedding.weight"] = source.token_embedding.weight
    state["text_model.embeddings.position_embedding.weight"] = source.positional_embedding
    state |= _renamed("vision_model.pre_layrnorm", visual.ln_pre)
    state |= _renamed("vision_model.post_layernorm", visual.ln_post)
    state |= _renamed("text_model.final_layer_norm", source.ln_final)
    for side, transformer in (("vision", visual.transformer), ("text", text)):
        for i, block in enumerate(transformer.resblocks):
            state |= _layer(f"{side}_model.encoder.layers.{i}", block)
    model.load_state_dict(state)
    return model.eval()


def tiny_siglip() -> Any:
    """open_clip's SigLIP with both of its own towers, tiny."""
    text = dict(
        context_length=LENGTH, vocab_size=64, width=32, heads=4, layers=2, no_causal_mask=True,
        proj_bias=True, pool_type="last", norm_kwargs=dict(eps=1e-6),
        act_kwargs=dict(approximate="tanh"), mlp_ratio=2.0,
    )  # fmt: skip
    model = CustomTextCLIP(32, TINY["siglip"].vision, text, init_logit_bias=-2.0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.manual_seed(zlib.crc32(name.encode()))
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def siglip_model(source: Any) -> Any:
    """A SiglipModel with the weights of `tiny_siglip`."""
    trunk, text = source.visual.trunk, source.text
    config = transformers.SiglipConfig(
        text_config=_TEXT,
        # timm's trunk has the exact GELU, Google's weights its approximation.
        vision_config=_VISION
        | dict(intermediate_size=trunk.blocks[0].mlp.fc1.out_features, hidden_act="gelu"),
    )
    model: Any = transformers.SiglipModel(config)
    pool, head = trunk.attn_pool, "vision_model.head"
    state = {
        "logit_scale": source.logit_scale[None],
        "logit_bias": source.logit_bias[None],
        "vision_model.embeddings.position_embedding.weight": trunk.pos_embed[0],
        "text_model.embeddings.position_embedding.weight": text.positional_embedding,
        f"{head}.probe": pool.latent,
        f"{head}.attention.in_proj_weight": torch.cat([pool.q.weight, pool.kv.weight]),
        f"{head}.attention.in_proj_bias": torch.cat([pool.q.bias, pool.kv.bias]),
        "text_model.embeddings.token_embedding.weight": text.token_embedding.weight,
    }
    for name, module in (
        ("vision_model.embeddings.patch_embedding", trunk.patch_embed.proj),
        ("vision_model.post_layernorm", trunk.norm),
        ("text_model.final_layer_norm", text.ln_final),
        ("text_model.head", text.text_projection),
        (f"{head}.attention.out_proj", pool.proj),
        (f"{head}.layernorm", pool.norm),
        (f"{head}.mlp.fc1", pool.mlp.fc1),
        (f"{head}.mlp.fc2", pool.mlp.fc2),
    ):
        state |= _renamed(name, module)
    for i, block in enumerate(trunk.blocks):
        place = f"vision_model.encoder.layers.{i}"
        names = {"layer_norm1": "norm1", "layer_norm2": "norm2", "mlp": "mlp"}
        for new, old in (*names.items(), ("self_attn.out_proj", "attn.proj")):
            state |= _renamed(f"{place}.{new}", block.get_submodule(old))
        state |= _split(place, block.attn.qkv.weight, block.attn.qkv.bias)
    for i, block in enumerate(text.transformer.resblocks):
        state |= _layer(f"text_model.encoder.layers.{i}", block)
    model.load_state_dict(state)
    return model.eval()


def _renamed(name: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def _split(place: str, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    rows = zip("qkv", weight.chunk(3), bias.chunk(3), strict=True)
    names = ("weight", "bias")
    return {
        f"{place}.self_attn.{letter}_proj.{name}": part
        for letter, *parts in rows
        for name, part in zip(names, parts, strict=True)
    }


def _layer(place: str, block: Any) -> dict[str, Tensor]:
    state = _split(place, block.attn.in_proj_weight, block.attn.in_proj_bias)
    for new, old in (
        ("self_attn.out_proj", block.attn.out_proj),
        ("layer_norm1", block.ln_1),
        ("layer_norm2", block.ln_2),
        ("mlp.fc1", block.mlp.c_fc),
        ("mlp.fc2", block.mlp.c_proj),
    ):
        state |= _renamed(f"{place}.{new}", old)
    return state
