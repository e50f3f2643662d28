"""Small models of every supported family, and the published implementations' outputs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file
from torch import Tensor

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils import profiling
from captum_clip_surgery._utils.profiling import ProfileResult
from tests._helpers.tower_kinds import TINY, build_tiny

DATA = Path(__file__).parents[1] / "data"

torch.set_num_threads(1)

_REFERENCE_TEXT = dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=2)
REFERENCE: dict[str, dict[str, Any]] = {
    "vit": dict(
        embed_dim=64,
        quick_gelu=True,
        vision_cfg=dict(image_size=96, layers=8, width=128, head_width=64, patch_size=16),
        text_cfg=_REFERENCE_TEXT,
    ),
    "resnet": dict(
        embed_dim=64,
        quick_gelu=True,
        vision_cfg=dict(
            image_size=64, layers=(1, 1, 1, 1), width=8, head_width=64, patch_size=None
        ),
        text_cfg=_REFERENCE_TEXT,
    ),
}
REFERENCE_TEXTS = ["dog", "cat", "remote control", "potted plant", "tv monitor"]


def marks_of(kind: str) -> tuple[pytest.MarkDecorator, ...]:
    return () if TINY[kind].everywhere else (pytest.mark.slow,)


#: All kinds, most of them slow, for what adapters decide.
TOWERS = [pytest.param(kind, marks=marks_of(kind)) for kind in TINY]
#: One kind a family, for what is decided behind the adapters.
FAMILIES = [kind for kind in TINY if TINY[kind].everywhere]
#: These and CoCa, whose model is of another class, for what models decide and not image towers.
MODELS = [*FAMILIES, pytest.param("coca", marks=marks_of("coca"))]
#: The fixture `clip` on `MODELS` alone.
on_models = pytest.mark.parametrize("clip", MODELS, indirect=True)


def quick_on(quick: tuple[str, ...], kinds: Iterable[str]) -> list[Any]:
    """Parameters of a test on some kinds, slow on the others."""
    return [pytest.param(k, marks=() if k in quick else pytest.mark.slow) for k in kinds]


#: The same kinds for what takes seconds: a transformer and a ResNet, and slow the others.
TWO_MODELS = quick_on(("vit", "resnet"), (*FAMILIES, "coca"))
TWO_TOWERS = quick_on(("vit", "resnet"), TINY)
#: For what the kind of tower has no say in.
ONE_MODEL = quick_on(("vit",), (*FAMILIES, "coca"))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over largest absolute expected value."""
    return (actual - expected).abs().max().item() / expected.abs().max().item()


def load_reference_model(family: str) -> CLIP:
    """The model on whose fixed weights the published implementations were run."""
    model = CLIP(**REFERENCE[family])
    weights = load_file(DATA / f"{family}-weights.safetensors")
    table = torch.zeros(49408, 64)
    table[weights.pop("token_embedding.ids").long()] = weights.pop("token_embedding.rows").float()
    weights["token_embedding.weight"] = table
    state = {name: value.float() for name, value in weights.items()}
    model.load_state_dict(state)
    return with_preprocessing(model.eval())


_built = functools.cache(build_tiny)


def tiny_model(kind: str, seed: int = 0) -> Any:
    """A random model of a kind of tower, new for each caller."""
    model = copy.deepcopy(_built(kind, seed))
    torch.manual_seed(seed)  # for what a test draws itself, whichever tests ran before
    return with_preprocessing(model)


def with_preprocessing(model: CLIP) -> CLIP:
    """What open_clip's factory leaves on the models it makes."""
    open_clip.model.set_model_preprocess_cfg(
        model,
        {
            "size": model.visual.image_size,
            "mean": open_clip.OPENAI_DATASET_MEAN,
            "std": open_clip.OPENAI_DATASET_STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    )
    return model


def random_images(clip: ZeroShotClassifier, count: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *clip.native_size, generator=generator)


def peak_where_told(cost: ProfileResult) -> int | None:
    """Bytes at the peak of a call; None only where the system truly keeps them to itself."""
    if cost.peak_bytes is None:
        with pytest.raises(OSError, match="clear_refs"):
            (profiling.PROCESS / "clear_refs").write_text("5")
    return cost.peak_bytes
