"""The model-parameter randomization test: do maps depend on the model's weights?"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from captum_clip_surgery.attr import Method
from captum_clip_surgery.attr._engine import explain_of
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics.functional._maps import check_maps
from captum_clip_surgery.metrics.functional._ranking import spearman
from captum_clip_surgery.models._validation import Target, check_images, resolve_target


@dataclass(frozen=True)
class Randomization:
    """Result of `randomization`.

    Args:
        stages: "original", "head", the blocks from the last to the first, and "embeddings". At each
            stage, its weights and those of all stages before are shuffled.
        correlations: For each method its rank correlation with the original map at each stage, in
            -1..1.
    """

    stages: tuple[str, ...]
    correlations: Mapping[str, list[float]]


def randomization(
    clip: ZeroShotClassifier,
    methods: Mapping[str, Method],
    images: Tensor,
    targets: Target,
    seed: int = 0,
    num_stages: int | None = None,
) -> Randomization:
    """Measure how similar maps stay to the original while the image tower is randomized.

    Cascading randomization: on a copy of the model, the weights after the blocks, of the last block
    to the first, and before the blocks are shuffled one stage after another. Entries are shuffled
    within each parameter, which keeps its scale. Text features stay, because they come from the
    text tower. Similarity is Spearman's rank correlation with the original map, mean over images.

    Args:
        clip: The classifier; it and its model are not changed.
        methods: Methods by name, from `METHODS` or your own: callables that take a classifier and
            return an attribution, or a function of images and text indices to maps (N, K, h, w).
        images: Images (N, 3, H, W), preprocessed.
        targets: Index of a text, or one per image.
        seed: Seed of the shuffling.
        num_stages: Number of stages to shuffle, from the output backwards; None means all.

    Raises:
        TypeError: If `images` or `targets` have another type.
        ValueError: If `images` or `targets` do not fit the classifier, a method's maps have another
            shape or are not finite, or `num_stages` is less than 1.
        IndexError: If a target is out of range.

    References:
        Adebayo et al.: Sanity Checks for Saliency Maps. NeurIPS 2018. There weights are drawn
        again; here they are shuffled.

    Example::

        >>> from captum_clip_surgery import METHODS
        >>> center = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
        >>> methods = {
        ...     "surgery": METHODS["CLIPSurgery"],
        ...     "center": lambda clip: lambda images, targets: center.expand(1, 1, 3, 3),
        ... }
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> result = randomization(clip, methods, torch.rand(1, 3, *clip.native_size), 0)
        >>> result.stages[:3], flag_insensitive(result)
        (('original', 'head', 'block 7'), ['center'])
    """
    check_images(images, clip.tower, clip.device)
    if num_stages is not None and num_stages < 1:
        raise ValueError(f"num_stages must be at least 1, or None for all, got {num_stages}")
    indices = resolve_target(targets, len(images), len(clip.texts), images.device)
    indices = indices.flatten().expand(len(images))
    with torch.inference_mode(False):  # the head's parameters are found by autograd
        return _randomize(clip, methods, images.clone(), indices, seed, num_stages)


def _randomize(
    clip: ZeroShotClassifier,
    methods: Mapping[str, Method],
    images: Tensor,
    targets: Tensor,
    seed: int,
    num_stages: int | None,
) -> Randomization:
    originals = {
        name: _explain(name, method, clip, images, targets) for name, method in methods.items()
    }
    shuffled = clip.with_model(copy.deepcopy(clip.model))
    stages = []
    correlations: dict[str, list[float]] = {name: [] for name in methods}
    count = None if num_stages is None else num_stages + 1  # the first is the original
    for stage in islice(_shuffle_stages(shuffled, images, seed), count):
        stages.append(stage)
        for name, method in methods.items():
            maps = _explain(f"{name} ({stage})", method, shuffled, images, targets)
            correlations[name].append(float(spearman(maps, originals[name]).mean()))
    return Randomization(tuple(stages), correlations)


def flag_insensitive(results: Randomization, limit: float = 0.5) -> list[str]:
    """Return the methods whose maps still correlate with the original when all weights are lost.

    Args:
        results: Result of `randomization`.
        limit: Correlation at the last stage above which a method is returned.

    Example::

        >>> stages = ("original", "head")
        >>> flag_insensitive(Randomization(stages, {"a": [1.0, 0.9], "b": [1.0, 0.1]}))
        ['a']
    """
    return [name for name, values in results.correlations.items() if values[-1] > limit]


def _explain(
    name: str, method: Method, clip: ZeroShotClassifier, images: Tensor, targets: Tensor
) -> Tensor:
    """Return each image's map of its own target, (N, h, w)."""
    explain = explain_of(method(clip))
    results = []
    for image, target in zip(images.split(1), targets.tolist(), strict=True):
        with torch.no_grad():  # gradient methods enable gradients themselves
            maps = explain(image, [target])
        if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[:2] != (1, 1):
            shape = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(
                f"maps of {name} for one image and one text are {shape}, expected (1, 1, h, w)"
            )
        check_maps(maps[0], 1, f"maps of {name}")
        results.append(maps[0].detach().cpu())
    return torch.cat(results)


def _shuffle_stages(clip: ZeroShotClassifier, images: Tensor, seed: int) -> Iterator[str]:
    """Shuffle the tower's parameters in place, and yield the name of each stage when done."""
    generator = torch.Generator().manual_seed(seed)
    stages = _stages(clip, images[:1])
    yield "original"
    for label, parameters in stages.items():
        for parameter in parameters:
            _shuffle(parameter, generator)
        yield label


@torch.no_grad()
def _shuffle(parameter: nn.Parameter, generator: torch.Generator) -> None:
    order = torch.randperm(parameter.numel(), generator=generator, device="cpu").to(
        parameter.device
    )
    parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _stages(clip: ZeroShotClassifier, image: Tensor) -> dict[str, list[nn.Parameter]]:
    """Return the image tower's parameters by stage, from the output backwards.

    Stages without parameters are left out.
    """
    blocks = list(enumerate(clip.tower.blocks))
    stages = {f"block {i}": list(block.parameters()) for i, block in reversed(blocks)}
    placed = {id(parameter) for stage in stages.values() for parameter in stage}
    rest = [value for value in clip.model.visual.parameters() if id(value) not in placed]
    head = _used_after_blocks(clip, image, rest)
    in_head = {id(parameter) for parameter in head}
    embeddings = [parameter for parameter in rest if id(parameter) not in in_head]
    stages = {"head": head, **stages, "embeddings": embeddings}
    return {label: parameters for label, parameters in stages.items() if parameters}


def _used_after_blocks(
    clip: ZeroShotClassifier, image: Tensor, parameters: list[nn.Parameter]
) -> list[nn.Parameter]:
    """Return the parameters on which the embedding depends given the tokens after the last block.

    They are found by autograd. Hooks on modules would miss the parameters of the tower itself, such
    as CLIP's projection and its class token.
    """
    tower = clip.tower
    with torch.no_grad():
        tokens, _ = tower.enter(image.to(tower.dtype), len(tower.blocks))
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    used = [False] * len(parameters)
    with torch.enable_grad():
        pooled = tower.pool(tokens).sum()
        if pooled.requires_grad:
            gradients = torch.autograd.grad(pooled, parameters, allow_unused=True)
            used = [gradient is not None for gradient in gradients]
    for parameter, required in zip(parameters, before, strict=True):
        parameter.requires_grad_(required)
    return [parameter for parameter, is_used in zip(parameters, used, strict=True) if is_used]
