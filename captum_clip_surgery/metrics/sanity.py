"""Does the map depend on the model? Maps while the model's weights are shuffled, step by step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captum_clip_surgery.attr._base import Method
from captum_clip_surgery.attr._engine import explain_of
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics.maps import check_maps
from captum_clip_surgery.models import validation


@dataclass(frozen=True)
class Randomization:
    """What `randomization` finds.

    `correlations`, for each method one in -1..1 for each of `stages`: "original", "head", the
    blocks from the last to the first, "embeddings"; all up to a stage are shuffled there.
    """

    stages: tuple[str, ...]
    correlations: Mapping[str, list[float]]


def randomization(
    clip: ZeroShotClassifier,
    methods: Mapping[str, Method],
    images: Tensor,
    targets: validation.Target,
    seed: int = 0,
) -> Randomization:
    """How like the original maps remain as the image tower forgets, from the output backwards.

    Cascading randomisation: on a copy, the weights of what comes after the blocks, of the last
    block, ... of the first, and of what comes before are lost one after another. Lost means that
    the entries of each parameter are shuffled within it, which keeps their scale; text features
    stay, as they belong to the text tower. Likeness is Spearman's rank correlation of a map with
    the original's, the mean over images.

    Args:
        clip: the classifier; it and its model stay as they are.
        methods: by name, of `registry.METHODS` or your own: each makes a classifier a function of
            images and indices of texts to maps (N, K, h, w).
        images: (N, 3, H, W), preprocessed.
        targets: index of a text, or one for each image.
        seed: of the shuffling.

    Raises:
        TypeError, ValueError, IndexError: images and targets as in `checks`; a method whose maps
            have another shape or are not finite.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps" (NeurIPS 2018).

    Example::

        >>> from captum_clip_surgery import METHODS
        >>> centre = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
        >>> methods = {
        ...     "surgery": METHODS["CLIPSurgery"],
        ...     "centre": lambda clip: lambda images, targets: centre.expand(1, 1, 3, 3),
        ... }
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> found = randomization(clip, methods, torch.rand(1, 3, *clip.native_size), 0)
        >>> found.stages[:3], suspicious(found)
        (('original', 'head', 'block 7'), ['centre'])
    """
    validation.check_images(images, clip.tower, clip.device)
    chosen = validation.resolve_target(targets, len(images), len(clip.texts), images.device)
    chosen = chosen.flatten().expand(len(images))
    with torch.inference_mode(False):  # in which nothing tells what the head is
        return _randomization(clip, methods, images.clone(), chosen, seed)


def _randomization(
    clip: ZeroShotClassifier,
    methods: Mapping[str, Method],
    images: Tensor,
    chosen: Tensor,
    seed: int,
) -> Randomization:
    originals = {
        name: _explain(name, method, clip, images, chosen) for name, method in methods.items()
    }
    shuffled = _copy_of(clip)
    labels = []
    correlations: dict[str, list[float]] = {name: [] for name in methods}
    for label in _shuffle_stages(shuffled, images, seed):
        labels.append(label)
        for name, method in methods.items():
            maps = _explain(f"{name} ({label})", method, shuffled, images, chosen)
            correlations[name].append(float(spearman(maps, originals[name]).mean()))
    return Randomization(tuple(labels), correlations)


def suspicious(results: Randomization, limit: float = 0.5) -> list[str]:
    """Methods whose maps hardly noticed that all weights are lost: correlation above a limit.

    Args:
        results: of `randomization`.
        limit: of the correlation with the original at the last stage.
    """
    return [name for name, found in results.correlations.items() if found[-1] > limit]


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Rank correlation of maps (N, h, w) with others, ties at their average rank: (N,) in -1..1.

    With a constant map it is 0.

    Raises:
        ValueError: maps of different shapes.

    Example::

        >>> spearman(torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[[-9.0, 3.0, 0.0]]]))
        tensor([0.5000], dtype=torch.float64)
    """
    if first.shape != second.shape:
        raise ValueError(
            f"maps of {tuple(first.shape)} and {tuple(second.shape)} do not compare; expected the "
            "same shape"
        )
    ranks = [torch.stack([_centred_ranks(one) for one in maps]) for maps in (first, second)]
    norms = ranks[0].norm(dim=1) * ranks[1].norm(dim=1)
    products = (ranks[0] * ranks[1]).sum(1)
    return torch.where(norms > 0, products / norms, 0.0)


def _centred_ranks(values: Tensor) -> Tensor:
    """Average ranks of the values less their mean, flat, of float64."""
    _, level, counts = values.flatten().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts - 1) / 2)[level]
    return ranks - (len(ranks) + 1) / 2


def _explain(
    name: str, method: Method, clip: ZeroShotClassifier, images: Tensor, targets: Tensor
) -> Tensor:
    """Each image's map of its own target, (N, h, w)."""
    explain = explain_of(method(clip))
    found = []
    for image, target in zip(images.split(1), targets.tolist(), strict=True):
        with torch.no_grad():  # methods of gradients enable them themselves
            maps = explain(image, [target])
        if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[:2] != (1, 1):
            given = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(
                f"maps of {name} for one image and one text are {given}, expected (1, 1, h, w)"
            )
        check_maps(maps[0], 1, f"maps of {name}")
        found.append(maps[0].detach().cpu())
    return torch.cat(found)


def _copy_of(clip: ZeroShotClassifier) -> ZeroShotClassifier:
    """The classifier with a model of its own, whose texts no longer follow its text tower."""
    empty = clip.empty_features()
    return ZeroShotClassifier.from_features(
        copy.deepcopy(clip.model),
        clip.text_features().detach(),
        None if empty is None else empty.detach(),
        texts=(*clip.texts, *clip.distractors),
        positions=clip.tower.positions,
    )


def _shuffle_stages(clip: ZeroShotClassifier, images: Tensor, seed: int) -> Iterator[str]:
    """Shuffle the tower's parameters in place, and say after each stage which it was."""
    generator = torch.Generator().manual_seed(seed)
    stages = _stages(clip, images[:1])
    yield "original"
    for label, parameters in stages.items():
        for parameter in parameters:
            _shuffle(parameter, generator)
        yield label


@torch.no_grad()
def _shuffle(parameter: nn.Parameter, generator: torch.Generator) -> None:
    order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
    parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _stages(clip: ZeroShotClassifier, image: Tensor) -> dict[str, list[nn.Parameter]]:
    """The image tower's parameters by stage, from the output backwards; empty stages left out."""
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
    """Those on which the embedding depends when the tokens after the last block are given.

    Autograd knows them all. Hooks on modules would miss the parameters that a tower holds itself,
    such as CLIP's projection and its class token.
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
