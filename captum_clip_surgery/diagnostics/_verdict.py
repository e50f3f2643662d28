"""Verdict on a checkpoint, in one sentence with its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

#: Smallest cosine of the rebuilt with the model's own embedding that rounding explains, also in
#: half precision.
AGREEMENT = 0.99
#: Smallest number of outlier tokens per image that is called a finding.
FINDING = 0.5

#: Kinds of verdicts.
UNTRAINED, MISMATCH, OUTLIERS, SOUND = "untrained", "mismatch", "outliers", "sound"


def untrained_parts(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the towers, "image tower" and "text tower", that have random weights.

    Training changes the gains and offsets of normalization layers. In a tower with random weights
    all of them still have the values that they are built with.

    Args:
        model: The CLIP, with its image tower as `visual`.
    """
    image = set(model.visual.modules()) if isinstance(model.visual, nn.Module) else set()
    towers = {
        "image tower": list(_norms(image)),
        "text tower": list(_norms(set(model.modules()) - image)),
    }
    return tuple(name for name, norms in towers.items() if norms and all(map(_is_initial, norms)))


def _norms(modules: set[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        has_gain = isinstance(getattr(module, "weight", None), Tensor)
        if "Norm" in type(module).__name__ and has_gain:
            yield module


def _is_initial(norm: nn.Module) -> bool:
    """Check for gains that are all 1, or all 0 as in a ResNet's last ones, and no offsets."""
    weight: Any = norm.weight
    bias = getattr(norm, "bias", None)
    has_offsets = isinstance(bias, Tensor) and bool(bias.any())
    return bool((weight == weight.flatten()[0]).all()) and not has_offsets


def describe_verdict(
    untrained: tuple[str, ...], agreement: float | None, outliers: Tensor
) -> tuple[str, str]:
    """Return the kind of a verdict, and its sentence.

    Args:
        untrained: Towers with random weights, as `untrained_parts` returns them.
        agreement: Cosine of the rebuilt with the model's own embedding; None if not measured.
        outliers: Mean number of outlier tokens per image entering each block, and leaving the last.
    """
    if untrained:
        return UNTRAINED, (
            f"Not a trained model: all normalization layers of the {' and the '.join(untrained)} "
            "have their initial values, so the weights are random and maps mean nothing."
        )
    if agreement is not None and not agreement >= AGREEMENT:  # NaN included
        return MISMATCH, (
            "Mismatch: the embedding that is rebuilt from the blocks has a cosine of only "
            f"{agreement:.3f} with the model's own, so maps would mislead. Please report it."
        )
    most, block = float(outliers.max()), int(outliers.argmax())
    if most >= FINDING:
        place = f"entering block {block}" if block < len(outliers) - 1 else "after the last block"
        return OUTLIERS, (
            f"Outliers: up to {most:.1f} patch tokens per image ({place}) have "
            "norms far above the others. Maps may light up at them, where nothing is. Remedies: "
            'repair="auto" of the methods, or clip.with_registers(images) for all methods.'
        )
    agrees = "" if agreement is None else f", and a rebuilt embedding that agrees ({agreement:.4f})"
    return SOUND, f"Sound: {most:.1f} outlier tokens per image{agrees}."
