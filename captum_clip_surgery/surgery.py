"""CLIP Surgery, and what it repairs, as Captum attributions.

Three methods of two shapes each. `ClipSurgery` repairs both the tower (architecture surgery) and
the scores (feature surgery), `FeatureClipSurgery` the scores alone, and `ClipSimilarity` is CLIP's
own patch scores, the thing to be repaired. `Layer...` gives maps on the patch grid.

Source: Li, Wang, Duan, Zhang, Li, "A Closer Look at the Explainability of Contrastive
Language-Image Pre-training" (arXiv 2304.05653).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

from torch import Tensor, nn

from captum_clip_surgery import checks, functional
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.methods.base import GridMaps, ImageMaps, MapAttribution
from captum_clip_surgery.models import steady
from captum_clip_surgery.towers import Encoded, Heads, Recipe

#: Blocks the new path spans in the published code.
RELEASED_DEPTH = 6
#: From so many texts on, rivals included, "auto" is the release form.
AUTO_TEXTS = 8


def vv(heads: Heads) -> Tensor:
    return functional.vv_attention(heads.v)


def normalized_vv(heads: Heads) -> Tensor:
    return functional.normalized_vv_attention(heads.v)


class DualPathMaps(MapAttribution):
    """Cosines of a recipe's patch tokens with the texts, with or without feature surgery."""

    recipe: Recipe
    feature_surgery: str | None
    tau: float

    def _configure(self, recipe: Recipe, feature_surgery: str | None, tau: float) -> None:
        if feature_surgery not in ("auto", *functional.FORMS, None):
            forms = ", ".join(map(repr, ("auto", *functional.FORMS)))
            raise ValueError(f"feature_surgery {feature_surgery!r} is none of {forms} and None")
        check_tau(tau)
        self.recipe = recipe
        self.feature_surgery = feature_surgery
        self.tau = tau

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

    def scores_of(self, encoded: Encoded, targets: Tensor | None = None) -> Tensor:
        """Scores (N, K, h, w) of images that have passed the tower by this recipe.

        Args:
            encoded: of `clip.tower.dual_path`.
            targets: indices of texts, (K,) for all images or (N, K); None is all, rivals included.
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
                self.tau,
                None if empty is None else empty.to(tokens.dtype),
                targets,
            )
        return scores.unflatten(-1, encoded.grid)

    def __repr__(self) -> str:
        rule = ""
        if self.feature_surgery == "auto":
            rule = f' ("empty" below {AUTO_TEXTS} texts and rivals, "release" from there)'
        return (
            f"{type(self).__name__}(depth={self.recipe.depth}, "
            f"feature_surgery={self.feature_surgery!r}{rule}, tau={self.tau})"
        )


def maps_together(
    methods: Mapping[str, DualPathMaps], images: Tensor, targets: Sequence[int] | None = None
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
    checks.check_images(images, clip.tower, clip.device, finite=False)
    checks.check_modes(clip.model)
    count, size = len(clip.texts), (images.shape[-2], images.shape[-1])
    indices = checks.resolve_indices(
        range(count) if targets is None else targets, count, clip.device
    )
    recipes = list(dict.fromkeys(method.recipe for method in methods.values()))
    found = {}
    with steady(clip.model):
        encoded = dict(
            zip(recipes, clip.tower.paths(images.to(clip.tower.dtype), recipes), strict=True)
        )
        for name, method in methods.items():
            scores = method.scores_of(encoded[method.recipe], indices)
            checks.check_finite(images, scores, f"maps of {name}")
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
            'zero. Choose "empty" or None, or give rivals'
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
    return len(clip.texts) + len(clip.rivals)


def check_tau(tau: float) -> None:
    """Raises ValueError for a tau that is no finite number."""
    if isinstance(tau, bool) or not isinstance(tau, Real) or not abs(tau) < math.inf:
        raise ValueError(f"tau {tau!r} must be a finite number")


def resolve_depth(
    clip: ZeroShotClassifier, depth: int | None, layer: nn.Module | None = None
) -> int:
    """How many of the last blocks a path spans.

    Args:
        clip: the classifier.
        depth: that number; None is 6 as released, or all where the tower has fewer.
        layer: the first of those blocks instead.

    Raises:
        ValueError: more blocks than there are, a negative number, both arguments, or a layer that
            is none of the tower's blocks.
    """
    blocks = clip.tower.blocks
    if layer is not None:
        if depth is not None:
            raise ValueError("depth and layer both name where surgery begins; pass one")
        found = [i for i, block in enumerate(blocks) if block is layer]
        if not found:
            raise ValueError(
                f"layer {type(layer).__name__} is none of the tower's {len(blocks)} blocks; "
                "pass one of clip.tower.blocks, or depth="
            )
        return len(blocks) - found[0]
    if depth is None:
        return min(RELEASED_DEPTH, len(blocks))
    if isinstance(depth, bool) or not isinstance(depth, int) or not 0 <= depth <= len(blocks):
        raise ValueError(f"depth {depth!r} must be an int from 0 to the tower's {len(blocks)}")
    return depth


class LayerClipSurgery(DualPathMaps, GridMaps):
    """CLIP Surgery on the patch grid: (N, 1, h, w) for a text.

    Beside the last `depth` blocks a second path adds v-v self-attention of the original path and
    runs no feed-forward; the model itself stays as it is (paper, Sec. 3.2). Feature surgery then
    takes from the patch scores what all texts share (Sec. 3.3).

    Args:
        forward_func: the classifier.
        layer: the first block the new path spans, instead of `depth`.
        depth: how many of the last blocks it spans. None is 6 as released, or all where the tower
            has fewer; a ResNet has one, its attention pooling. 0 gives CLIP's own tokens. Towers
            pooled by attention may want few or none (docs/models.md).
        feature_surgery: "release", "paper" or "empty" (see `functional.feature_surgery`), None for
            plain cosines, or "auto": "empty" below 8 texts, rivals included, "release" from 8 on.
            With few texts the release form only contrasts the texts given; with two, one map is
            the negative of the other.
        tau: inverse temperature of the weights of the texts.
        normalize_values: weigh values by direction alone, as the paper states for ResNets; the
            published code does not.

    Raises:
        TypeError: a forward_func that is no ZeroShotClassifier.
        ValueError: a depth the tower does not have, a layer that is none of its blocks, an unknown
            form of feature surgery.

    Example::

        >>> import torch
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> surgery = LayerClipSurgery(clip)
        >>> images = torch.zeros(2, 3, 128, 160)
        >>> surgery.attribute(images, target=1).shape, surgery.attribute_all(images).shape
        (torch.Size([2, 1, 8, 10]), torch.Size([2, 2, 8, 10]))
    """

    def __init__(
        self,
        forward_func: ZeroShotClassifier,
        layer: nn.Module | None = None,
        depth: int | None = None,
        feature_surgery: str | None = "auto",
        tau: float = functional.TAU,
        normalize_values: bool = False,
    ) -> None:
        super().__init__(forward_func, layer)
        attention = normalized_vv if normalize_values else vv
        recipe = Recipe(resolve_depth(forward_func, depth, layer), attention, values_only=True)
        self.begin_at(-max(1, recipe.depth))
        self._configure(recipe, feature_surgery, tau)


class ClipSurgery(DualPathMaps, ImageMaps):
    """CLIP Surgery shaped like the images: (N, 3, H, W) for a text.

    See `LayerClipSurgery` for the method and the arguments. The patch map is enlarged bilinearly
    and stands in equal thirds on the channels.

    Example::

        >>> import torch
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> ClipSurgery(clip).attribute(torch.zeros(1, 3, 128, 128), target=0).shape
        torch.Size([1, 3, 128, 128])
    """

    def __init__(
        self,
        forward_func: ZeroShotClassifier,
        depth: int | None = None,
        feature_surgery: str | None = "auto",
        tau: float = functional.TAU,
        normalize_values: bool = False,
    ) -> None:
        super().__init__(forward_func)
        attention = normalized_vv if normalize_values else vv
        recipe = Recipe(resolve_depth(forward_func, depth), attention, values_only=True)
        self._configure(recipe, feature_surgery, tau)


OWN_TOKENS = Recipe(0, vv)  # at depth 0 no attention is replaced


class OwnTokenMaps(DualPathMaps):
    """Feature surgery on CLIP's own patch tokens."""

    def __init__(
        self,
        forward_func: ZeroShotClassifier,
        feature_surgery: str | None = "auto",
        tau: float = functional.TAU,
    ) -> None:
        super().__init__(forward_func)
        self._configure(OWN_TOKENS, feature_surgery, tau)


class LayerFeatureClipSurgery(OwnTokenMaps, GridMaps):
    """Feature surgery on CLIP's own patch tokens, on the patch grid: (N, 1, h, w) for a text.

    Arguments and forms as for `LayerClipSurgery`.
    """


class FeatureClipSurgery(OwnTokenMaps, ImageMaps):
    """Feature surgery on CLIP's own patch tokens, shaped like the images.

    Arguments and forms as for `LayerClipSurgery`.
    """


class LayerClipSimilarity(DualPathMaps, GridMaps):
    """CLIP's own patch scores on the patch grid: cosines of its last tokens with a text."""

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func)
        self._configure(OWN_TOKENS, None, functional.TAU)


class ClipSimilarity(DualPathMaps, ImageMaps):
    """CLIP's own patch scores, shaped like the images."""

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func)
        self._configure(OWN_TOKENS, None, functional.TAU)
