"""Processors of transformers: the tokenizer and the preprocessing that belong to a model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from captum_clip_surgery.models._dual_encoders import TransformersCLIP, family_of
from captum_clip_surgery.models.image._registry import unwrap
from captum_clip_surgery.models.text._transformers import TransformersTokenizer
from captum_clip_surgery.preprocessing import INTERPOLATIONS


def with_processor(model: Any, tokenizer: Any, processor: Any) -> tuple[Any, Any]:
    """Return a model and a tokenizer that use what a processor of transformers holds.

    Args:
        model: A model of open_clip or transformers.
        tokenizer: A tokenizer of either library, a function, or None.
        processor: A processor of transformers or None.

    Raises:
        TypeError: If `processor` is not a processor of transformers, or the model is open_clip's.
    """
    if processor is None and is_processor(tokenizer):
        tokenizer, processor = None, tokenizer
    if not isinstance(model, nn.Module):
        return model, tokenizer  # refused by the classifier
    inner = unwrap(model)
    family = inner.family if isinstance(inner, TransformersCLIP) else family_of(inner)
    if processor is not None:
        images = getattr(processor, "image_processor", None)
        if images is None:
            raise TypeError(
                f"processor must be a processor of transformers for images and texts, got a "
                f"{type(processor).__name__}; transformers.AutoProcessor.from_pretrained makes one"
            )
        if family is None:
            raise TypeError(
                f"processor= is for models of transformers, and {type(inner).__name__} is not one; "
                "pass tokenizer=, and set model.visual.preprocess_cfg"
            )
        config = preprocess_config(images, type(images).__name__)
        model = TransformersCLIP(getattr(inner, "source", inner), config)
        tokenizer = processor.tokenizer if tokenizer is None else tokenizer
    if is_tokenizer(tokenizer):
        lower = family is not None and family.text == "last"  # SigLIP
        tokenizer = TransformersTokenizer(tokenizer, lower)
    return model, tokenizer


def is_tokenizer(value: object) -> bool:
    """Return whether an object is one of transformers' own tokenizers."""
    return _is(value, "transformers.tokenization_utils_base", "PreTrainedTokenizerBase")


def is_processor(value: object) -> bool:
    """Return whether an object is one of transformers' processors of images and texts."""
    return _is(value, "transformers.processing_utils", "ProcessorMixin")


def _is(value: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def preprocess_config(settings: Any, where: str) -> dict[str, Any]:
    """Return the preprocessing of an image processor in the form that open_clip records.

    The size is left out, because images are squashed to the tower's own.

    Args:
        settings: An image processor of transformers, or the table in its file.
        where: Name of the processor or file, for messages.

    Raises:
        ValueError: If it scales pixels by another factor than 1 / 255, or resizes by a filter that
            is not one of bicubic, bilinear and nearest.
    """

    def get(name: str, default: Any) -> Any:
        if isinstance(settings, Mapping):
            value = settings.get(name)
        else:
            value = getattr(settings, name, None)
        return default if value is None else value

    factor = get("rescale_factor", 1 / 255) if get("do_rescale", True) else 1
    if abs(factor * 255 - 1) > 1e-3:
        raise ValueError(f"{where} has rescale_factor {factor}, expected 1/255: pixels in 0..1")
    if get("do_normalize", True):
        mean, std = get("image_mean", None), get("image_std", None)
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    if mean is None or std is None:
        raise ValueError(f"{where} has no image_mean and image_std")
    known = {int(filter_): name for name, filter_ in INTERPOLATIONS.items()}
    resample = get("resample", 3)
    if int(resample) not in known:
        raise ValueError(
            f"{where} resizes by filter {resample!r} of Pillow, expected one of "
            + ", ".join(f"{number} ({name})" for number, name in known.items())
        )
    return {"mean": tuple(mean), "std": tuple(std), "interpolation": known[int(resample)]}
