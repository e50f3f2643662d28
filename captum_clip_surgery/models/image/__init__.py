"""Image towers: one adapter per family of open_clip, and the way to the right one."""

from __future__ import annotations

import torch
from torch import nn

from captum_clip_surgery.models._blocks import AttentionInputs
from captum_clip_surgery.models.image._base import (
    BlockTrace,
    GridSpec,
    PathConfig,
    Tower,
    TowerOutput,
)
from captum_clip_surgery.models.image.open_clip_vit import VisionTransformerTower
from captum_clip_surgery.models.image.resnet import ModifiedResNetTower
from captum_clip_surgery.models.image.timm import (
    EvaTower,
    TimmVisionTransformerTower,
    why_not_defined,
)

__all__ = [
    "FAMILIES",
    "AttentionInputs",
    "BlockTrace",
    "GridSpec",
    "PathConfig",
    "Tower",
    "TowerOutput",
    "adapt",
    "family_of",
    "unwrap",
]

FAMILIES: tuple[type[Tower], ...] = (
    VisionTransformerTower,
    ModifiedResNetTower,
    TimmVisionTransformerTower,
    EvaTower,
)


#: PyTorch's classes of modules of which a process has parts alone.
SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def adapt(visual: nn.Module, positions: str = "bilinear") -> Tower:
    """The adapter for an image tower, beside which it computes.

    Args:
        visual: `model.visual` of an open_clip model; a compiled one is unwrapped.
        positions: see `Tower`.

    Raises:
        TypeError: a scripted module, or a tower on which surgery is not defined; the message names
            the families that work.
    """
    visual = unwrap(visual)
    found = family_of(visual)
    if not isinstance(found, str):
        return found(visual, positions)
    works = "; ".join(family.family for family in FAMILIES)
    raise TypeError(
        f"the image tower {type(visual).__name__} is not supported: {found}. What works: {works}. "
        "clip-surgery models lists open_clip's configurations"
    )


def family_of(visual: nn.Module) -> type[Tower] | str:
    """Return the first family that claims and supports an image tower, otherwise why none does.

    A family registered later may support what an earlier one claims and refuses, such as a subclass
    of a class of open_clip's.
    """
    reasons = []
    for family in FAMILIES:
        if family.claims(visual):
            reason = family.supports(visual)
            if reason is None:
                return family
            reasons.append(reason)
    if reasons:
        return reasons[0]
    return why_not_defined(visual) or "no family of towers has its class"


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside a compiled one, or one for data-parallel training, or both.

    Hooks added after a compiled call never fire, so its insides are used instead. Explaining takes
    no part in the exchange of gradients.

    Raises:
        TypeError: a ScriptModule, which takes hooks and never fires them, or one whose weights are
            spread over processes.
    """
    while True:
        inside = getattr(module, "_orig_mod", module)
        if isinstance(inside, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inside = inside.module
        if inside is module:
            break
        module = inside
    if any(kind.__name__ in SHARDED for kind in type(module).__mro__):
        raise TypeError(
            f"the weights of {type(module).__name__} are spread over processes; explain a model "
            "with whole weights: load its full state dict"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"{type(module).__name__} is a ScriptModule, whose hooks never fire; "
            "load the model with jit=False"
        )
    return module
