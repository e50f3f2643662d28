"""Dual encoders of transformers under the names that open_clip gives a CLIP's parts.

Nothing of transformers is imported: its classes are recognized by the modules that define them, and
those are loaded if there is a model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_clip_surgery.models._internals import children_of

LIBRARY = "transformers.models."
#: Attributes in which the two sides are kept, named so that digests of settings leave them out.
VISUAL, TEXT = "__visual", "__text"


@dataclass(frozen=True)
class Family:
    """One kind of dual encoder in transformers.

    Attributes:
        package: Its package below `transformers.models`.
        prefix: What the names of its classes begin with.
        text: The tokens that determine a text's feature: those until its end ("end", behind a
            causal mask), those that are not padding ("masked"), or all of them ("last").
        mean: Mean of pixels that its processor uses by default; the standard deviation likewise.
        std: Standard deviation of pixels.
    """

    package: str
    prefix: str
    text: str
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def module(self) -> str:
        """Name of the module that defines the family's classes."""
        return f"{LIBRARY}{self.package}.modeling_{self.package}"

    def classes(self, *names: str) -> tuple[type[nn.Module], ...]:
        """Return those of the family's classes that the installed transformers has.

        Args:
            *names: Names without the family's prefix.
        """
        module = sys.modules.get(self.module)
        found = (getattr(module, self.prefix + name, None) for name in names)
        return tuple(kind for kind in found if isinstance(kind, type))


_HALF = (0.5, 0.5, 0.5)
#: The supported classes of models, by name.
FAMILIES: Mapping[str, Family] = {
    "CLIPModel": Family("clip", "CLIP", "end"),
    "MetaClip2Model": Family("metaclip_2", "MetaClip2", "end"),
    "SiglipModel": Family("siglip", "Siglip", "last", _HALF, _HALF),
    "Siglip2Model": Family("siglip2", "Siglip2", "last", _HALF, _HALF),
    "AltCLIPModel": Family("altclip", "AltCLIP", "masked"),
    "ChineseCLIPModel": Family("chinese_clip", "ChineseCLIP", "masked"),
    "Tipsv2Model": Family("tipsv2", "Tipsv2", "masked", (0.0,) * 3, (1.0,) * 3),
}
#: Reasons why other models of transformers are not supported, by the start of their class name.
REFUSED: Mapping[str, str] = {
    "Align": "its image tower is an EfficientNet, which has no self-attention to repair",
    "Blip2": "queries of a Q-Former pool its patches, so that no patch has an embedding of its own",
    "Blip": "its text tower is trained to attend to the image",
    "CLIPSeg": "it is a decoder on top of a CLIP; load the CLIP itself",
    "VideoPrism": "it encodes videos, not images",
    "XCLIP": "it encodes videos, not images",
    "Owl": "it detects objects: its text features are queries for boxes",
    "Owlv2": "it detects objects: its text features are queries for boxes",
    "GroupViT": "it merges patches into groups between its blocks",
    "Flava": "its embeddings are those of single tokens before a multimodal encoder",
    "VisionTextDualEncoder": "its two towers can be of any kind",
}


def family_of(model: nn.Module) -> Family | None:
    """Return the family of a transformers model, or of the class it derives from; None of others.

    Raises:
        TypeError: If it is a model of transformers of another kind.
    """
    for kind in type(model).__mro__:
        family = FAMILIES.get(kind.__name__)
        if family is not None and kind.__module__ == family.module:
            return family
    if any(kind.__module__ == "transformers.modeling_utils" for kind in type(model).__mro__):
        raise TypeError(describe_refused(type(model).__name__))
    return None


def describe_refused(name: str, short: bool = False) -> str:
    """Describe why a class of transformers is not supported.

    Args:
        name: Name of the class.
        short: Whether to return the reason alone.
    """
    reason = next((why for start, why in REFUSED.items() if name.startswith(start)), "")
    for end in ("VisionModel", "TextModel"):
        if end in name and not reason:
            reason = f"it is one tower of a dual encoder; load {name.partition(end)[0]}Model"
    reason = reason or "no adapter covers it"
    if short:
        return reason
    return f"{name} of transformers is not supported: {reason}. Supported: {', '.join(FAMILIES)}"


class TransformersVisual(nn.Module):
    """The image side of a transformers model: its own modules, under their own names."""

    vision_model: Any

    def __init__(self, parts: Mapping[str, Any], family: Family, preprocess: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.family = family
        self.preprocess_cfg = preprocess
        self.training = self.vision_model.training


class TransformersText(nn.Module):
    """The text side of a transformers model: its own modules, under their own names.

    The other attributes have the names of open_clip's text towers.
    """

    text_model: Any

    def __init__(self, parts: Mapping[str, Any], family: Family) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        config = self.text_model.config
        self.family = family
        self.pad_id: Any = getattr(config, "pad_token_id", None)
        self.vocab_size = config.vocab_size
        self.context_length = int(config.max_position_embeddings)
        if family.prefix == "AltCLIP":  # positions are counted from the id of padding
            self.context_length -= int(config.pad_token_id) + 1
        # As CLIPTextModel decides: before version 4.31, configurations had a wrong id.
        self.eos_id = config.eos_token_id
        self.pool_type = "argmax" if family.prefix == "CLIP" and self.eos_id == 2 else "eos"
        self.training = self.text_model.training

    @property
    def token_embedding(self) -> nn.Embedding:
        """The embeddings of tokens."""
        embeddings = getattr(self.text_model, "roberta", self.text_model).embeddings
        found = getattr(embeddings, "token_embedding", None)
        return embeddings.word_embeddings if found is None else found

    def masks(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the attention mask for token ids (P, L) by name, if padding is masked."""
        if self.family.text != "masked":
            return {}
        return {"attention_mask": tokens.ne(self.pad_id).long()}

    def token_features(self, tokens: Tensor) -> Tensor:
        """Return the unnormalized feature (P, L, C) of every token, before pooling."""
        x = self.text_model(input_ids=tokens, **self.masks(tokens)).last_hidden_state
        project = getattr(self, "text_projection", getattr(self.text_model, "head", None))
        return x if project is None else project(x)


class TransformersCLIP(nn.Module):
    """A dual encoder of transformers, with the interface of an open_clip model.

    Args:
        source: The model, which stays as it is.
        preprocess: Mean, standard deviation and interpolation of its processor, as open_clip
            records them; None means those of the family.

    Raises:
        TypeError: If the model is of another kind.
    """

    source: Any

    def __init__(self, source: nn.Module, preprocess: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        family = family_of(source)
        if family is None:
            raise TypeError(f"{type(source).__name__} is not a model of transformers")
        self.source = source
        self.family = family
        self.preprocess_cfg = preprocess or {"mean": family.mean, "std": family.std}
        self.training = source.training

    # The source's parts can be replaced at any time, so that they are looked up at each use.
    @property
    def visual(self) -> TransformersVisual:
        """The image side."""
        parts = self._parts("vision_model", "visual_projection")
        cached = self.__dict__.get(VISUAL)
        if (
            cached is None
            or dict(children_of(cached)) != parts
            or cached.preprocess_cfg is not self.preprocess_cfg
        ):
            cached = TransformersVisual(parts, self.family, self.preprocess_cfg)
            self.__dict__[VISUAL] = cached
        return cached

    @property
    def text(self) -> TransformersText:
        """The text side."""
        parts = self._parts("text_model", "text_projection")
        cached = self.__dict__.get(TEXT)
        if cached is None or dict(children_of(cached)) != parts:
            cached = self.__dict__[TEXT] = TransformersText(parts, self.family)
        return cached

    def _parts(self, *names: str) -> dict[str, Any]:
        children = children_of(self.source)
        return {name: children[name] for name in names if children.get(name) is not None}

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of the factor between cosines and logits."""
        if self.family.prefix == "Tipsv2":
            return -self.source.temperature.log()
        return self.source.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to the logits, or None."""
        return getattr(self.source, "logit_bias", None)

    def encode_image(self, images: Tensor) -> Tensor:
        """Return the source's embeddings (N, C) of images (N, 3, H, W) of the native size."""
        if self.family.prefix != "Siglip2":
            return _features(self.source.get_image_features(pixel_values=images))
        size = self.visual.vision_model.embeddings.patch_size
        rows, columns = images.shape[-2] // size, images.shape[-1] // size
        patches = to_patches(images, size)
        inputs = {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(patches.shape[:2], device=images.device).long(),
            "spatial_shapes": torch.tensor([[rows, columns]], device=images.device).expand(
                len(images), 2
            ),
        }
        return _features(self.source.get_image_features(**inputs))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return the source's features (P, C) of texts, for token ids (P, L) padded at the end."""
        inputs = {"input_ids": tokens, **self.text.masks(tokens)}
        return _features(self.source.get_text_features(**inputs))


def to_patches(images: Tensor, size: int) -> Tensor:
    """Reshape images (N, 3, H, W) to patches (N, h*w, size*size*3), as SigLIP 2 reads them."""
    cells = images.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # (N, 3, h, s, w, s)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def _features(output: Any) -> Tensor:
    """Return the pooled feature of what transformers 4 and 5 return."""
    if isinstance(output, Tensor):
        return output
    return output[1] if isinstance(output, tuple) else output.pooler_output
