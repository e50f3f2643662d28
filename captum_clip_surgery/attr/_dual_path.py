"""Methods that run a second path parallel to the last blocks of the image tower.

Derive from `DualPathAttribution` to write a dense method: a `PathConfig` says how the path runs.
"""

from __future__ import annotations

import math
from numbers import Real

from torch import Tensor, nn
from typing_extensions import override

from captum_clip_surgery import functional
from captum_clip_surgery.attr._base import (
    PatchAttribution,
    check_classifier,
)
from captum_clip_surgery.attr._engine import tower_output
from captum_clip_surgery.attr._repair import repaired_path
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models.image import PathConfig, TowerOutput
from captum_clip_surgery.models.image._surgery import released_num_blocks

#: The number of texts, distractors included, from which "auto" stands for the release variant.
AUTO_TEXTS = 8


class DualPathAttribution(PatchAttribution):
    """Cosines of a second path's patch tokens with the texts, with or without feature surgery.

    Args:
        forward_func: The classifier.
        path_config: How the path runs parallel to the last blocks.
        feature_surgery: "release", "paper" or "empty" (see `functional.feature_surgery`), None for
            plain cosines, or "auto": "empty" below 8 texts, distractors included, "release" from 8
            on.
        inverse_temperature: Inverse temperature of the softmax that weights the texts.
        repair: What is done about outlier tokens, which spoil maps on some checkpoints: "auto"
            replaces patches of extreme norm by the mean of their sound neighbors before the path,
            and changes nothing where there are none; "neighbors" also replaces the 5 % with the
            largest local outlier factor; "likeness" aggregates the path's tokens by the cosines of
            a middle block; None does nothing. Another remedy is a classifier with a register, see
            `ZeroShotClassifier.with_registers`.

    Raises:
        TypeError: If `forward_func` is not a `ZeroShotClassifier`.
        ValueError: If `feature_surgery` or `repair` is unknown, or `inverse_temperature` is not a
            finite number.
    """

    def __init__(
        self,
        forward_func: ZeroShotClassifier,
        path_config: PathConfig,
        feature_surgery: str | None = None,
        inverse_temperature: float = functional.INVERSE_TEMPERATURE,
        repair: str | None = None,
    ) -> None:
        super().__init__(forward_func)
        check_variant(feature_surgery)
        check_inverse_temperature(inverse_temperature)
        self._path_config = repaired_path(path_config, repair, forward_func.tower)
        self.repair = repair
        self.feature_surgery = feature_surgery
        self.inverse_temperature = inverse_temperature
        self._set_layer(-max(1, path_config.num_blocks))

    @property
    def path_config(self) -> PathConfig:
        """The path whose patch tokens are scored."""
        return self._path_config

    @property
    def variant(self) -> str | None:
        """The variant of feature surgery that "auto" stands for with the classifier's texts.

        Raises:
            ValueError: If the variant is not defined for them, see `check_feature_surgery`.
        """
        return resolve_variant(self.forward_func, self.feature_surgery)

    @override
    def scores(self, images: Tensor, targets: Tensor) -> Tensor:
        output = tower_output(self.forward_func, images, self.path_config)
        return self.scores_from_output(output, targets)

    def scores_from_output(self, output: TowerOutput, targets: Tensor | None = None) -> Tensor:
        """Return the scores (N, K, h, w) of images that have passed the tower.

        Args:
            output: The tower's output by `path_config`.
            targets: Indices of texts, (K,) for all images or (N, K); None means all,
                distractors included.
        """
        clip, variant = self.forward_func, self.variant
        with functional.full_precision(output.patches):
            tokens = functional.normalized(output.patches)
            empty = clip.empty_features() if variant == "empty" else None
            scores = functional.feature_surgery(
                tokens,
                clip.text_features().to(tokens.dtype),
                functional.normalized(output.pooled),
                variant,
                self.inverse_temperature,
                None if empty is None else empty.to(tokens.dtype),
                targets,
            )
        return scores.unflatten(-1, output.grid)

    #: Why the path spans its number of blocks, for `repr`, if that is not what was released.
    _chosen_because = ""

    @property
    def _repair_option(self) -> str:
        return "" if self.repair is None else f", repair={self.repair!r}"

    def __repr__(self) -> str:
        rule = ""
        if self.feature_surgery == "auto":
            rule = f' ("empty" below {AUTO_TEXTS} texts and distractors, "release" from there)'
        num_blocks = f"{self.path_config.num_blocks}{self._chosen_because}"
        return (
            f"{type(self).__name__}(num_blocks={num_blocks}, "
            f"feature_surgery={self.feature_surgery!r}{rule}, "
            f"inverse_temperature={self.inverse_temperature}{self._repair_option})"
        )


def check_variant(feature_surgery: str | None) -> None:
    """Check the option `feature_surgery` of a method.

    Raises:
        ValueError: If it is neither "auto", nor one of `functional.VARIANTS`, nor None.
    """
    if feature_surgery not in ("auto", *functional.VARIANTS, None):
        variants = ", ".join(map(repr, ("auto", *functional.VARIANTS)))
        raise ValueError(
            f"feature_surgery must be one of {variants} or None, got {feature_surgery!r}"
        )


def resolve_variant(clip: ZeroShotClassifier, feature_surgery: str | None) -> str | None:
    """Return the variant of feature surgery that an option stands for with a classifier's texts.

    Raises:
        ValueError: If the variant is not defined for them, see `check_feature_surgery`.
    """
    variant = feature_surgery
    if variant == "auto":
        variant = "empty" if _num_competing(clip) < AUTO_TEXTS else "release"
    check_feature_surgery(clip, variant, feature_surgery)
    return variant


def check_feature_surgery(
    clip: ZeroShotClassifier, variant: str | None, requested: str | None = None
) -> None:
    """Check that a variant of feature surgery is defined for a classifier's texts.

    Args:
        clip: The classifier.
        variant: One of `functional.VARIANTS`, or None for plain cosines.
        requested: The option that the variant came from, for the message.

    Raises:
        ValueError: If the variant is unknown, contrasts texts where there is one, or is "empty" for
            a classifier made from features without `empty_features`.
    """
    count = _num_competing(clip)
    if variant not in (*functional.VARIANTS, None):
        raise ValueError(
            f"feature_surgery must be one of {', '.join(functional.VARIANTS)} or None, "
            f"got {variant!r}"
        )
    if variant in functional.CONTRASTING and count == 1:
        raise ValueError(
            f"feature_surgery={variant!r} contrasts texts, and there is only one: its map would be "
            'zero. Use "empty" or None, or pass distractors'
        )
    if variant == "empty" and not clip.has_empty_features:
        other = "feature_surgery=None for plain cosines"
        if count > 1:
            other = 'feature_surgery="release", which contrasts the features given'
        raise ValueError(
            f"feature_surgery={requested or variant!r} with {count} features needs the feature "
            f"of the empty text: pass empty_features= to from_features, or use {other}"
        )


def _num_competing(clip: ZeroShotClassifier) -> int:
    return len(clip.texts) + len(clip.distractors)


def check_inverse_temperature(inverse_temperature: float) -> None:
    """Check an inverse temperature.

    Raises:
        ValueError: If it is not a finite number.
    """
    number = isinstance(inverse_temperature, Real) and not isinstance(inverse_temperature, bool)
    if not number or not abs(inverse_temperature) < math.inf:
        raise ValueError(
            f"inverse_temperature must be a finite number, got {inverse_temperature!r}"
        )


def resolve_num_blocks(
    clip: ZeroShotClassifier, num_blocks: int | None, layer: nn.Module | None = None
) -> int:
    """Return the number of last blocks that a path spans.

    Args:
        clip: The classifier.
        num_blocks: That number; None means 6 as released, or all where the tower has fewer.
        layer: The first of those blocks, instead of `num_blocks`.

    Raises:
        TypeError: If `clip` is not a `ZeroShotClassifier`.
        ValueError: If `num_blocks` is negative or exceeds the tower's blocks, both arguments are
            given, or `layer` is not one of the tower's blocks.
    """
    blocks = check_classifier(clip).tower.blocks
    if layer is not None:
        if num_blocks is not None:
            raise ValueError("num_blocks and layer both say where surgery starts; pass one of them")
        index = next((i for i, block in enumerate(blocks) if block is layer), None)
        if index is None:
            raise ValueError(
                f"layer must be one of the tower's {len(blocks)} blocks, got "
                f"{type(layer).__name__}; pass one of clip.tower.blocks, or num_blocks="
            )
        return len(blocks) - index
    if num_blocks is None:
        return released_num_blocks(clip.tower)
    whole = isinstance(num_blocks, int) and not isinstance(num_blocks, bool)
    if not whole or not 0 <= num_blocks <= len(blocks):
        raise ValueError(
            f"num_blocks must be an int from 0 to the tower's {len(blocks)}, got {num_blocks!r}"
        )
    return num_blocks
