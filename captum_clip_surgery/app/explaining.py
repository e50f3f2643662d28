"""What a model sees in a picture: an image passes its tower once, whatever texts are asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_clip_surgery.app.pictures import Shown
from captum_clip_surgery.app.remembering import Remembered
from captum_clip_surgery.app.settings import MAX_SIDE, Settings
from captum_clip_surgery.attr._base import Explain
from captum_clip_surgery.attr.clip_surgery import LayerCLIPSurgery, LayerFeatureCLIPSurgery
from captum_clip_surgery.attr.dual_path import DualPathAttribution
from captum_clip_surgery.attr.registry import METHODS, choose
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import full_precision, normalized
from captum_clip_surgery.models import _validation
from captum_clip_surgery.models.image import PathConfig, TowerOutput
from captum_clip_surgery.models.image._base import nearest_multiple

MAX_TOKENS = 4096  # of an image
PASSES = 64  # of images through the tower that are remembered
MAPS = 512  # of texts by methods that pass the tower for each
#: Methods whose form of feature surgery the visitor chooses.
WITH_FORM = {"CLIPSurgery": LayerCLIPSurgery, "FeatureSurgery": LayerFeatureCLIPSurgery}


@dataclass
class Explanation:
    """What is found of a picture so far.

    `logits` and `probabilities` (K,) are of the texts for the whole picture, `maps` (K, h, w) by
    method, raw and signed, and `left_out` says why methods have none.
    """

    texts: tuple[str, ...]
    logits: Tensor
    probabilities: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def ranking(self) -> list[int]:
        """Indices of the texts, likeliest first."""
        return self.logits.argsort(descending=True, stable=True).tolist()

    def at(self, point: tuple[float, float]) -> dict[str, list[float]]:
        """Each method's raw scores of the texts at the patch under a point (x, y) in 0..1."""
        x, y = point
        found = {}
        for name, maps in self.maps.items():
            rows, columns = maps.shape[-2:]
            row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
            found[name] = maps[:, row, column].tolist()
        return found


class Explainer:
    """One model for all visitors, who are served one after another.

    Args:
        clip: its texts do not matter.
    """

    def __init__(self, clip: ZeroShotClassifier) -> None:
        self.clip = clip
        self.methods, _ = choose(clip, ["all"])
        self._passes: Remembered[tuple[str, int | None, PathConfig], TowerOutput] = Remembered(
            PASSES
        )
        self._maps: Remembered[tuple[str, int | None, str, str], Tensor] = Remembered(MAPS)

    def sides(self) -> list[int]:
        """Sides in pixels to choose from: the native one, and larger multiples of the patch."""
        height, width = self.clip.native_size
        step = max(self.clip.tower.patch_size)
        larger = [nearest_multiple(int(height * factor), step) for factor in (1.5, 2, 3)]
        return [height, *(side for side in larger if self._fits(side))] if height == width else []

    def _fits(self, side: int) -> bool:
        rows, columns = self.clip.tower.grid(side, side)
        return side <= MAX_SIDE and rows * columns <= MAX_TOKENS

    def classifier(self, settings: Settings) -> ZeroShotClassifier:
        """The model under the visitor's texts, whose features are remembered."""
        return self.clip.with_texts(settings.texts, settings.distractors)

    def forget(self, digest: str) -> None:
        """Forget all that is remembered of a picture."""
        self._passes.forget(lambda key: key[0] == digest)
        self._maps.forget(lambda key: key[0] == digest)

    @torch.no_grad()  # methods of gradients enable them themselves
    def explain(self, picture: Shown, settings: Settings) -> Iterator[Explanation]:
        """Maps of every text by every method, as they are found.

        Methods that share the tower's pass come at once, others method by method. Between texts of
        a method the same explanation is given again, so that a visitor who leaves can be left.

        Raises:
            ValueError: a resolution that the model cannot take, a text that is too long.
        """
        clip = self.classifier(settings)
        images = self._images(picture, settings.side)
        dense, others, left_out = self._methods(clip, settings)
        base = LayerCLIPSurgery(clip, feature_surgery=None).recipe
        encoded = self._encoded(picture, settings.side, images, [base, *_recipes(dense)])
        logits = _logits(clip, encoded[base].pooled)
        found = Explanation(clip.texts, logits, logits.softmax(-1), left_out=left_out)
        for name, method in dense.items():
            try:
                maps = method.scores_of(encoded[method.recipe], _all(clip))
            except ValueError as error:
                found.left_out[name] = str(error)
            else:
                found.maps[name] = maps[0].to(images.dtype).cpu()
        yield found
        for name, explain in others.items():
            yield from self._one_by_one(found, name, explain, picture, settings, images)

    def _one_by_one(
        self,
        found: Explanation,
        name: str,
        explain: Explain,
        picture: Shown,
        settings: Settings,
        images: Tensor,
    ) -> Iterator[Explanation]:
        maps = []
        for index, text in enumerate(settings.texts):
            key = (picture.digest, settings.side, name, text)
            of_text = self._maps.get(key)
            if of_text is None:
                try:
                    of_text = explain(images, [index])[0, 0].detach().cpu()
                except (TypeError, ValueError, ImportError) as error:
                    found.left_out[name] = str(error)
                    return
                self._maps.put(key, of_text)
            maps.append(of_text)
            yield found
        found.maps[name] = torch.stack(maps)
        yield found

    def _images(self, picture: Shown, side: int | None) -> Tensor:
        if side is not None and not self._fits(side):
            raise ValueError(
                f"a resolution of {side} pixels is more than this page computes: at most "
                f"{MAX_SIDE} pixels and {MAX_TOKENS} patches"
            )
        images = self.clip.preprocess(picture.image, side)
        _validation.check_images(images, self.clip.tower, self.clip.device)
        return images

    def _methods(
        self, clip: ZeroShotClassifier, settings: Settings
    ) -> tuple[dict[str, DualPathAttribution], dict[str, Explain], dict[str, str]]:
        """Methods that share a pass, those that make their own, and those not defined here."""
        dense: dict[str, DualPathAttribution] = {}
        others: dict[str, Explain] = {}
        left_out: dict[str, str] = {}
        for name in settings.methods:
            try:
                explain = _method(name, clip, settings)
            except (TypeError, ImportError) as error:
                left_out[name] = str(error)
                continue
            owner = getattr(explain, "__self__", None)
            if isinstance(owner, DualPathAttribution):
                dense[name] = owner
            else:
                others[name] = explain
        return dense, others, left_out

    def _encoded(
        self, picture: Shown, side: int | None, images: Tensor, recipes: Sequence[PathConfig]
    ) -> dict[PathConfig, TowerOutput]:
        """Passes by recipe: remembered ones, and one pass for all that are not."""
        found = {r: self._passes.get((picture.digest, side, r)) for r in recipes}
        missing = [recipe for recipe, encoded in found.items() if encoded is None]
        if missing:
            tower = self.clip.tower
            new = tower.paths(images.to(tower.dtype), missing)
            for recipe, encoded in zip(missing, new, strict=True):
                self._passes.put((picture.digest, side, recipe), encoded)
                found[recipe] = encoded
        return {recipe: encoded for recipe, encoded in found.items() if encoded is not None}


def _method(name: str, clip: ZeroShotClassifier, settings: Settings) -> Explain:
    if name in WITH_FORM:
        return WITH_FORM[name](clip, feature_surgery=settings.feature_surgery).attribute_all
    return METHODS[name](clip)


def _recipes(methods: dict[str, DualPathAttribution]) -> list[PathConfig]:
    return [method.recipe for method in methods.values()]


def _all(clip: ZeroShotClassifier) -> Tensor:
    return torch.arange(len(clip.texts), device=clip.device)


def _logits(clip: ZeroShotClassifier, pooled: Tensor) -> Tensor:
    """What the classifier's forward gives, from the image's embedding (1, C): (K,)."""
    with full_precision(pooled):
        image = normalized(pooled)
        text = clip.text_features()[: len(clip.texts)].to(image.dtype)
        logits = clip.model.logit_scale.exp() * image @ text.T
        bias = getattr(clip.model, "logit_bias", None)
        return (logits if bias is None else logits + bias)[0].float().cpu()
