"""Compare the shapes of weights with configurations of open_clip, on the meta device.

open_clip resizes positions that do not fit, without a word: the weights of ViT-L-14-336 load as
ViT-L-14, and give other embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import open_clip

from captum_clip_surgery.models._config_check import build_on_meta

Shapes = Mapping[str, tuple[int, ...]]
MAX_NAMED = 3  # configurations in a message
QUICK = "-quickgelu"  # twins of other configurations, by shapes


def check_shapes(name: str, shapes: Shapes, where: str) -> None:
    """Check that weights have the shapes of a configuration.

    Args:
        name: Name of the configuration.
        shapes: Shapes of the weights by name.
        where: Name of the file, for the message.

    Raises:
        ValueError: If they do not; the message names the configurations they fit.
    """
    config = open_clip.get_model_config(name)
    if not config or not shapes:
        return
    expected = _shapes_of(config)
    if expected is None:
        return
    differing = {key: shape for key, shape in _aligned(shapes, expected).items()
                 if key in expected and expected[key] != shape}  # fmt: skip
    if not differing:
        return
    key, shape = min(differing.items(), key=lambda item: "positional" not in item[0])
    fits = matching_configurations(shapes)
    hint = (
        f"they are the weights of {', '.join(fits[:MAX_NAMED])}"
        if fits
        else ("no configuration of open_clip fits them")
    )
    raise ValueError(
        f"the weights in {where} are not those of {name}: {key} is {shape}, expected "
        f"{expected[key]}.\nBy their shapes {hint}"
    )


def matching_configurations(shapes: Shapes) -> list[str]:
    """Return the configurations of open_clip whose weights have these names and shapes."""
    matches = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name) or {}
        if name.endswith(QUICK) or not _may_fit(config, shapes):
            continue
        expected = _shapes_of(config)
        if expected is None:
            continue
        aligned = _aligned(shapes, expected)
        common = aligned.keys() & expected.keys()
        if len(common) >= len(expected) - 1 and all(aligned[k] == expected[k] for k in common):
            matches.append(name)
    return matches


def _shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of a model's weights; None if it cannot be built without a hub."""
    if config.get("text_cfg", {}).get("hf_model_name") or "vision_cfg" not in config:
        return None
    try:
        model = build_on_meta(config)
    except Exception:  # a user's own configuration can fail in any way; open_clip reports it
        return None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _aligned(shapes: Shapes, expected: Shapes) -> dict[str, tuple[int, ...]]:
    """Return shapes by the names of a model with a text tower of its own, where it has one."""
    own_text = "text.positional_embedding" in expected and "positional_embedding" in shapes
    renamed = {}
    for name, shape in shapes.items():
        if own_text and f"text.{name}" in expected:
            name = f"text.{name}"
        # Scalars may be saved as vectors of one.
        renamed[name] = () if expected.get(name) == () and shape == (1,) else shape
    return renamed


def _may_fit(config: Mapping[str, Any], shapes: Shapes) -> bool:
    """Return whether the plain numbers of a configuration agree, before it is built."""
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    is_timm = any(name.startswith("visual.trunk.") for name in shapes)
    if is_timm != bool(vision.get("timm_model_name")):
        return False
    conv = shapes.get("visual.conv1.weight")
    if not is_timm and conv and "visual.layer1.0.conv1.weight" not in shapes:
        patch = vision.get("patch_size", 16)
        if conv[0] != vision.get("width", 768) or patch not in (conv[-1], [conv[-1]] * 2):
            return False
    rows = shapes.get("text.token_embedding.weight", shapes.get("token_embedding.weight"))
    size = (text.get("vocab_size", 49408), text.get("width", 512))
    return rows is None or tuple(rows) == size
