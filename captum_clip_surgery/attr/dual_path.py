"""Second paths beside the last blocks of a tower, as Captum attributions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

from torch import Tensor, nn

from captum_clip_surgery import functional
from captum_clip_surgery.attr._base import PatchAttribution
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models import _validation
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models.image import PathConfig, TowerOutput

#: Blocks the new path spans in the published code.
RELEASED_NUM_BLOCKS = 6


#: From so many texts on, distractors included, "auto" is the release form.
AUTO_TEXTS = 8


class DualPathAttribution(PatchAttribution):
    """Cosines of a recipe's patch tokens with the texts, with or without feature surgery."""

    recipe: PathConfig
    feature_surgery: str | None
    inverse_temperature: float

    def _configure(
        self, recipe: PathConfig, feature_surgery: str | None, inverse_temperature: float
    ) -> None:
        if feature_surgery not in ("auto", *functional.FORMS, None):
            forms = ", ".join(map(repr, ("auto", *functional.FORMS)))
            raise ValueError(f"feature_surgery {feature_surgery!r} is none of {forms} and None")
        check_inverse_temperature(inverse_temperature)
        self.recipe = recipe
        self.feature_surgery = feature_surgery
        self.inverse_temperature = inverse_temperature

    def form(self) -> str | None:
        """The form of feature surgery that "auto" comes to with the classifier's texts.

        Raises:
            ValueError: "empty" for a classifier made from features without `empty_features`, or a
                form that contrasts texts where there is one.
        """
        form = self.feature_surgery
        if form == "auto":
            form = "empty" if _competing(self.forward_func) < AUTO_TEXTS else "release"
        check_form(self.forward_func, form, self.feature_surgery)
        return form

    def scores(self, images: Tensor, targets: Tensor) -> Tensor:
        tower = self.forward_func.tower
        return self.scores_of(tower.dual_path(images.to(tower.dtype), self.recipe), targets)

    def scores_of(self, encoded: TowerOutput, targets: Tensor | None = None) -> Tensor:
        """Scores (N, K, h, w) of images that have passed the tower by this recipe.

        Args:
            encoded: of `clip.tower.dual_path`.
            targets: indices of texts, (K,) for all images or (N, K); None is all, distractors included.
        """
        clip, form = self.forward_func, self.form()
        with functional.full_precision(encoded.patches):
            tokens = functional.normalized(encoded.patches)
            empty = clip.empty_features() if form == "empty" else None
            scores = functional.feature_surgery(
                tokens,
                clip.text_features().to(tokens.dtype),
                functional.normalized(encoded.pooled),
                form,
                self.inverse_temperature,
                None if empty is None else empty.to(tokens.dtype),
                targets,
            )
        return scores.unflatten(-1, encoded.grid)

    def __repr__(self) -> str:
        rule = ""
        if self.feature_surgery == "auto":
            rule = f' ("empty" below {AUTO_TEXTS} texts and distractors, "release" from there)'
        return (
            f"{type(self).__name__}(num_blocks={self.recipe.num_blocks}, "
            f"feature_surgery={self.feature_surgery!r}{rule}, inverse_temperature={self.inverse_temperature})"
        )


def maps_together(
    methods: Mapping[str, DualPathAttribution], images: Tensor, targets: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Maps of several methods of one classifier from one pass of its tower.

    Args:
        methods: by name, at least one; each `attribute_all` gives the same maps.
        images: (N, 3, H, W).
        targets: indices of texts; None is all of the classifier's.

    Returns:
        Maps (N, K, h, w) or (N, K, H, W) by name, as each method shapes them.

    Raises:
        TypeError, ValueError, IndexError: as `attribute_all` does; methods of two classifiers.
    """
    first = next(iter(methods.values()))
    clip = first.forward_func
    if any(method.forward_func is not clip for method in methods.values()):
        raise ValueError("methods of two classifiers share no pass; make them on the same one")
    _validation.check_images(images, clip.tower, clip.device, finite=False)
    _validation.check_modes(clip.model)
    count, size = len(clip.texts), (images.shape[-2], images.shape[-1])
    indices = _validation.resolve_indices(
        range(count) if targets is None else targets, count, clip.device
    )
    recipes = list(dict.fromkeys(method.recipe for method in methods.values()))
    found = {}
    with assert_parameters_unchanged(clip.model):
        encoded = dict(
            zip(recipes, clip.tower.paths(images.to(clip.tower.dtype), recipes), strict=True)
        )
        for name, method in methods.items():
            scores = method.scores_of(encoded[method.recipe], indices)
            _validation.check_finite(images, scores, f"maps of {name}")
            found[name] = method.finish(scores, size).to(images)
    return found


def check_form(clip: ZeroShotClassifier, form: str | None, asked: str | None = None) -> None:
    """Whether a form of feature surgery is defined for a classifier's texts.

    Args:
        clip: the classifier.
        form: one of `functional.FORMS`, or None.
        asked: what the user asked for where it came to that form.

    Raises:
        ValueError: no form there is, one that contrasts texts where there is one, or "empty" for a
            classifier made from features without `empty_features`.
    """
    count = _competing(clip)
    if form not in (*functional.FORMS, None):
        raise ValueError(f"form {form!r} is none of {', '.join(functional.FORMS)} and None")
    if form in ("release", "paper") and count == 1:
        raise ValueError(
            f"feature_surgery {form!r} contrasts texts, and there is one: its map would be "
            'zero. Choose "empty" or None, or give distractors'
        )
    if form == "empty" and not clip.has_empty_features:
        other = "feature_surgery=None, plain cosines"
        if count > 1:
            other = 'feature_surgery="release", which contrasts the features given'
        raise ValueError(
            f"feature_surgery {asked or form!r} with {count} features needs the feature "
            f"of the empty text: pass empty_features= to from_features, or choose {other}"
        )


def _competing(clip: ZeroShotClassifier) -> int:
    return len(clip.texts) + len(clip.distractors)


def check_inverse_temperature(inverse_temperature: float) -> None:
    """Raises ValueError for a inverse_temperature that is no finite number."""
    if (
        isinstance(inverse_temperature, bool)
        or not isinstance(inverse_temperature, Real)
        or not abs(inverse_temperature) < math.inf
    ):
        raise ValueError(f"inverse_temperature {inverse_temperature!r} must be a finite number")


def resolve_num_blocks(
    clip: ZeroShotClassifier, num_blocks: int | None, layer: nn.Module | None = None
) -> int:
    """How many of the last blocks a path spans.

    Args:
        clip: the classifier.
        num_blocks: that number; None is 6 as released, or all where the tower has fewer.
        layer: the first of those blocks instead.

    Raises:
        ValueError: more blocks than there are, a negative number, both arguments, or a layer that
            is none of the tower's blocks.
    """
    blocks = clip.tower.blocks
    if layer is not None:
        if num_blocks is not None:
            raise ValueError("num_blocks and layer both name where surgery begins; pass one")
        found = [i for i, block in enumerate(blocks) if block is layer]
        if not found:
            raise ValueError(
                f"layer {type(layer).__name__} is none of the tower's {len(blocks)} blocks; "
                "pass one of clip.tower.blocks, or num_blocks="
            )
        return len(blocks) - found[0]
    if num_blocks is None:
        return min(RELEASED_NUM_BLOCKS, len(blocks))
    if (
        isinstance(num_blocks, bool)
        or not isinstance(num_blocks, int)
        or not 0 <= num_blocks <= len(blocks)
    ):
        raise ValueError(
            f"num_blocks {num_blocks!r} must be an int from 0 to the tower's {len(blocks)}"
        )
    return num_blocks
