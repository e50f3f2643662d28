"""Methods side by side: the same model, images, texts and measures for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch import Tensor
from tqdm import tqdm

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.demo.scenes import Scene
from captum_clip_surgery.metrics import Localization, localization
from captum_clip_surgery.surgery import LayerClipSimilarity, LayerClipSurgery

#: One image (1, 3, H, W) to a map (K, h, w) for every text of the classifier.
Explain = Callable[[ZeroShotClassifier, Tensor], Tensor]

PATCHES_AT_ONCE = 8192  # bounds the memory of methods that take many passes


def clip_similarity(clip: ZeroShotClassifier, image: Tensor) -> Tensor:
    """CLIP's own maps."""
    with torch.no_grad():
        return LayerClipSimilarity(clip).attribute_all(image)[0]


def clip_surgery(clip: ZeroShotClassifier, image: Tensor) -> Tensor:
    """CLIP Surgery with its defaults."""
    with torch.no_grad():
        return LayerClipSurgery(clip).attribute_all(image)[0]


def integrated_gradients(clip: ZeroShotClassifier, image: Tensor) -> Tensor:
    """Captum's Integrated Gradients of the logit from a grey image, summed over channels."""
    rows, columns = clip.tower.grid(*image.shape[-2:])
    method: Any = IntegratedGradients(clip)
    at_once = max(1, PATCHES_AT_ONCE // (rows * columns))
    maps = [
        method.attribute(image, target=target, internal_batch_size=at_once).detach()[0].sum(0)
        for target in range(len(clip.texts))
    ]
    return torch.stack(maps).to(image.dtype)


def grad_cam(clip: ZeroShotClassifier, image: Tensor) -> Tensor:
    """Captum's Grad-CAM of the logit on the patch tokens that enter the last block."""
    method = LayerGradCam(clip, clip.token_grid(-1))
    maps = [
        method.attribute(image, target=target, relu_attributions=True).detach()[0, 0]
        for target in range(len(clip.texts))
    ]
    return torch.stack(maps)


METHODS: dict[str, Explain] = {
    "CLIP": clip_similarity,
    "ClipSurgery": clip_surgery,
    "IntegratedGradients": integrated_gradients,
    "LayerGradCam": grad_cam,
}


def evaluate_scenes(
    clip: ZeroShotClassifier,
    scenes: Sequence[Scene],
    methods: Mapping[str, Explain],
    rivals: Iterable[str] = (),
    size: int | None = None,
    progress: bool = True,
) -> dict[str, Localization]:
    """Localisation of every method on scenes with ground truth, one pair for each object.

    Args:
        clip: a classifier, whose texts are replaced by each scene's nouns.
        scenes: pictures with masks.
        methods: by name, image to maps.
        rivals: further texts that compete in feature surgery; a scene's own nouns among them are
            left out.
        size: side of the images shown to the model; None is the native size.
        progress: whether to draw a progress bar.
    """
    rivals = tuple(rivals)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in methods}
    for scene in tqdm(scenes, disable=not progress, desc="measuring", unit="scene"):
        image = clip.preprocess(scene.image, size)
        others = [rival for rival in rivals if rival not in scene.nouns]
        local = clip.with_texts(scene.nouns, others)
        masks = torch.from_numpy(scene.masks)
        for name, explain in methods.items():
            pairs[name] += zip(explain(local, image).cpu(), masks, strict=True)
    return {name: localization(found) for name, found in pairs.items()}


def to_markdown(measured: Mapping[str, Localization]) -> str:
    """A table with one row for each method, aligned for the terminal as well."""
    width = max(map(len, [*measured, "method"]))
    lines = [
        f"| {'method':{width}} |  mIoU |    mSC | pointing |",
        f"|{'-' * (width + 2)}|------:|-------:|---------:|",
    ]
    lines += [
        f"| {name:{width}} | {m.explanation_iou:5.1f} | {m.msc:+6.1f} | {m.pointing:8.1f} |"
        for name, m in measured.items()
    ]
    return "\n".join(lines)
