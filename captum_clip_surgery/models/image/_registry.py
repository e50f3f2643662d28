"""The known families of image towers, and the choice among them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from open_clip.timm_model import TimmModel
from torch import nn

from captum_clip_surgery.models._internals import unwrap_parallel
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._open_clip_vit import VisionTransformerTower
from captum_clip_surgery.models.image._resnet import ModifiedResNetTower
from captum_clip_surgery.models.image._timm import (
    EvaTower,
    TimmVisionTransformerTower,
)
from captum_clip_surgery.models.image._transformers import (
    Siglip2Tower,
    SiglipTower,
    Tipsv2Tower,
    TransformersCLIPTower,
)

TowerClass = TypeVar("TowerClass", bound=type[Tower])

TOWER_CLASSES: list[type[Tower]] = [
    VisionTransformerTower,
    ModifiedResNetTower,
    TimmVisionTransformerTower,
    EvaTower,
    TransformersCLIPTower,
    SiglipTower,
    Siglip2Tower,
    Tipsv2Tower,
]
#: Reasons why surgery is not defined on other trunks of open_clip's configurations.
UNSUPPORTED_TRUNKS = {
    "ConvNeXt": "it convolves and has no self-attention to repair",
    "FastVit": (
        "it mixes tokens by convolution, with self-attention at most in its last stage, so its "
        "blocks share no single grid"
    ),
    "NaFlexVit": "it takes images as lists of patches, each on a grid of its own (NaFlex)",
    "SwinTransformer": (
        "it attends within windows, on grids that shrink from stage to stage, not over one grid"
    ),
    "VisionTransformerRelPos": (
        "its attention is of relative positions as much as of content, and no v-v attention "
        "without them is defined"
    ),
}
#: torch's classes of modules of which each process holds only a part.
SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def register_tower(tower_class: TowerClass) -> TowerClass:
    """Register a family of image towers, so that `build_tower` finds it.

    Args:
        tower_class: A subclass of `Tower`. If several families match a tower, the one registered
            first whose `check_supported` passes is used.

    Returns:
        The same class, so that the function can decorate it.

    Raises:
        TypeError: If it is not a subclass of `Tower`.
    """
    if not (isinstance(tower_class, type) and issubclass(tower_class, Tower)):
        raise TypeError(f"a tower must be a subclass of Tower, got {tower_class!r}")
    if tower_class not in TOWER_CLASSES:
        TOWER_CLASSES.append(tower_class)
    return tower_class


def build_tower(visual: nn.Module, positions: str = "bilinear") -> Tower:
    """Build the adapter for an image tower.

    Args:
        visual: `model.visual` of an open_clip model; compiled and data-parallel modules are
            unwrapped.
        positions: How positional embeddings are resized: "bilinear" as in CLIP Surgery, or
            "bicubic" with antialiasing as in open_clip.

    Raises:
        TypeError: If the tower is a ScriptModule or sharded, or surgery is not defined on it; the
            message lists the supported families.
        ValueError: If `positions` is unknown.

    Example::

        >>> from captum_clip_surgery import ZeroShotClassifier
        >>> tower = build_tower(ZeroShotClassifier.demo(["dog"]).model.visual)
        >>> tower.family, tower.pooling, tower.patch_size
        ('open_clip VisionTransformer', 'class token', (16, 16))
    """
    visual = unwrap(visual)
    try:
        tower_class = get_tower_class(visual)
    except TypeError as error:
        families = "; ".join(each.family for each in TOWER_CLASSES)
        raise TypeError(
            f"the image tower {type(visual).__name__} is not supported: {error}. Supported "
            f"families: {families}. `clip-surgery models` lists open_clip's configurations"
        ) from error
    return tower_class(visual, positions)


def get_tower_class(visual: nn.Module) -> type[Tower]:
    """Return the first registered family that matches and supports an image tower.

    A family registered later may support what an earlier one matches and refuses, such as a
    subclass of one of open_clip's classes.

    Raises:
        TypeError: If there is none; the message is the reason given by the first family that
            matches.
    """
    refusal: TypeError | None = None
    for tower_class in TOWER_CLASSES:
        if tower_class.matches(visual):
            try:
                tower_class.check_supported(visual)
            except TypeError as error:
                refusal = refusal or error
            else:
                return tower_class
    if refusal:
        raise refusal
    raise TypeError(describe_unsupported_trunk(visual) or "no supported family has its class")


def unwrap(module: nn.Module) -> Any:
    """Return the module inside wrappers: of `torch.compile`, data-parallel, and peft's models.

    Hooks added after a compiled call never fire, so its insides are used. Data-parallel wrappers
    only exchange gradients.

    Raises:
        TypeError: If the module is a ScriptModule, whose hooks never fire, or its weights are
            spread over processes.
    """
    module = unwrap_parallel(module)
    if type(module).__module__.startswith("peft."):
        # Its layers stay within the model, whose modules are called.
        model: Any = module
        module = unwrap_parallel(model.get_base_model())
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


def describe_unsupported_trunk(visual: nn.Module) -> str | None:
    """Describe why surgery is not defined on a TimmModel's trunk; None for other towers."""
    if not isinstance(visual, TimmModel):
        return None
    trunk = type(visual.trunk).__name__
    reason = UNSUPPORTED_TRUNKS.get(trunk, "no adapter covers its blocks")
    return f"its trunk is timm's {trunk}: {reason}"
