"""What a model sees in a picture: an image passes its tower once, whatever texts are asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captum_clip_surgery.app.pictures import Shown
from captum_clip_surgery.app.remembering import Remembered
from captum_clip_surgery.app.settings import MAX_SIDE, Settings
from captum_clip_surgery.attr._engine import (
    Explain,
    Outputs,
    attribute_many,
    explain_of,
    forward_pass,
    path_of,
)
from captum_clip_surgery.attr._engine import Explainer as Method
from captum_clip_surgery.attr.clip_surgery import LayerCLIPSurgery, LayerFeatureCLIPSurgery
from captum_clip_surgery.attr.registry import METHODS, choose
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models import validation
from captum_clip_surgery.models.image import nearest_multiple

MAX_TOKENS = 4096  # of an image
PASSES = 16  # images whose tower outputs are cached
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
        self._passes: Remembered[tuple[str, int | None], Outputs] = Remembered(PASSES)
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

    @torch.no_grad()  # methods that need gradients enable them themselves
    def explain(self, picture: Shown, settings: Settings) -> Iterator[Explanation]:
        """Yield the maps of every text by every method, as they are computed.

        Methods that share the tower's pass come first and together, the others one by one. Between
        the texts of a method the same explanation is yielded again, so that the computation can be
        abandoned when the visitor leaves.

        Raises:
            ValueError: If the model does not accept the resolution, or a text is too long.
        """
        clip = self.classifier(settings)
        images = self._images(picture, settings.side)
        methods, left_out = self._methods(clip, settings)
        sharing = {name: m for name, m in methods.items() if path_of(m) is not None}
        found = self._explain_together(clip, images, sharing, self._outputs(picture, settings.side))
        found.left_out |= left_out
        yield found
        for name in (name for name in methods if name not in sharing):
            explain = explain_of(methods[name])
            yield from self._one_by_one(found, name, explain, picture, settings, images)

    def _explain_together(
        self,
        clip: ZeroShotClassifier,
        images: Tensor,
        methods: Mapping[str, Method],
        outputs: Outputs,
    ) -> Explanation:
        """Compute logits, and the maps of methods that share one pass."""
        base = LayerCLIPSurgery(clip, feature_surgery=None).path_config
        configs = [config for config in map(path_of, methods.values()) if config is not None]
        with forward_pass(clip, images, [base, *configs], outputs) as forward:
            forward.output(base)
            logits = clip.logits(forward.image_features())[0].float().cpu()
            found = Explanation(clip.texts, logits, logits.softmax(-1))
            for name, method in methods.items():
                try:
                    maps = attribute_many({name: method}, images)[name]
                except ValueError as error:
                    found.left_out[name] = str(error)
                else:
                    found.maps[name] = maps[0].cpu()
        return found

    def _outputs(self, picture: Shown, side: int | None) -> Outputs:
        """Return the cached tower outputs of a picture; `explain` adds to them."""
        key = (picture.digest, side)
        outputs = self._passes.get(key)
        if outputs is None:
            outputs = {}
            self._passes.put(key, outputs)
        return outputs

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
        validation.check_images(images, self.clip.tower, self.clip.device)
        return images

    def _methods(
        self, clip: ZeroShotClassifier, settings: Settings
    ) -> tuple[dict[str, Method], dict[str, str]]:
        """Create the requested methods, and say why others are not defined here."""
        methods: dict[str, Method] = {}
        left_out: dict[str, str] = {}
        for name in settings.methods:
            try:
                methods[name] = _method(name, clip, settings)
            except (TypeError, ImportError) as error:
                left_out[name] = str(error)
        return methods, left_out


def _method(name: str, clip: ZeroShotClassifier, settings: Settings) -> Method:
    if name in WITH_FORM:
        return WITH_FORM[name](clip, feature_surgery=settings.feature_surgery)
    return METHODS[name](clip)
