"""What is refused at the door: images, features, targets and models that would mislead."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from captum_clip_surgery.functional import has_direction
from captum_clip_surgery.models.image import Tower

Target = int | Tensor | Sequence[int] | None
PIXELS = "images hold NaN or infinite pixels"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_images(images: Tensor, tower: Tower, device: torch.device, finite: bool = True) -> None:
    """A floating-point batch (N, 3, H, W) on the model's device, `finite` if that is asked for.

    Raises:
        TypeError: no tensor, or not of floating point.
        ValueError: another shape, an empty batch, another device, NaN or infinity.
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images are a {type(images).__name__}, not a tensor; clip.preprocess makes one"
        )
    shape = tuple(images.shape)
    if images.ndim != 4:
        hint = "; add the batch: images[None]" if images.ndim == 3 else ""
        raise ValueError(f"images have shape {shape}, expected (N, 3, H, W){hint}")
    if images.shape[1] != 3:
        raise ValueError(f"images have {images.shape[1]} channels, expected 3: shape {shape}")
    if images.dtype not in FLOATS:
        raise TypeError(f"images are {images.dtype}, expected floating point as preprocess gives")
    if images.layout != torch.strided:
        raise TypeError(f"images are {images.layout}, expected a dense tensor: images.to_dense()")
    if not len(images):
        raise ValueError(f"the batch is empty: shape {shape}")
    tower.grid(*images.shape[-2:])
    if images.device != device:
        raise ValueError(f"images are on {images.device}, the model on {device}")
    if finite and not _is_finite(images):
        raise ValueError(PIXELS)


def check_finite(images: Tensor, results: Tensor, what: str) -> Tensor:
    """What a model made of images, as it is; a GPU is waited for once.

    Raises:
        ValueError: NaN or infinity in the images, or in what was made of them.
    """
    if _is_finite(images, results):
        return results
    if not _is_finite(images):
        raise ValueError(PIXELS)
    raise ValueError(
        f"{what} hold NaN or infinity, though the images do not: are the model's weights "
        "whole, and pixels normalised (clip.preprocess)? Half precision may be too narrow"
    )


def _is_finite(*tensors: Tensor) -> bool:
    # In one pass of each and without a copy; NaN shows in both ends.
    ends = [torch.stack(values.detach().aminmax()).isfinite().all() for values in tensors]
    return bool(torch.stack(ends).all())


def check_modes(model: nn.Module) -> None:
    """No module that acts by chance or learns from what it sees.

    Raises:
        ValueError: such a module is in train mode.
    """
    for name, module in model.named_modules():
        if module.training and _depends_on_mode(module):
            raise ValueError(
                f"{name} ({type(module).__name__}) is in train mode, which changes its results; "
                "call model.eval() first"
            )


def _depends_on_mode(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    if isinstance(module, nn.MultiheadAttention):
        return module.dropout > 0
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    # timm's DropPath and open_clip's PatchDropout name their probability so.
    for name in ("drop_prob", "prob"):
        probability: Any = getattr(module, name, 0)
        if isinstance(probability, float) and probability > 0:
            return True
    return False


def check_features(
    features: Tensor, width: int, what: str, device: torch.device, rows: int | None = None
) -> None:
    """Finite rows (K, width) on a device, none of them zero; K is `rows` where that is given.

    Raises:
        TypeError: no floating-point tensor.
        ValueError: another shape or device, NaN or infinity, or rows that are zero or cannot be
            normalised.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"{what} are {kind}, expected a floating-point tensor")
    shape = tuple(features.shape)
    if features.ndim != 2 or not len(features) or shape[1] != width or rows not in (None, shape[0]):
        expected = f"({'K' if rows is None else rows}, {width})"
        raise ValueError(f"{what} have shape {shape}, expected {expected}")
    if features.device != device:
        raise ValueError(f"{what} are on {features.device}, the model on {device}")
    if not torch.isfinite(features).all():
        raise ValueError(f"{what} hold NaN or infinity")
    zero = (features == 0).all(-1).nonzero().flatten().tolist()
    if zero:
        raise ValueError(f"{what} {zero[0]} is zero, which has no direction")
    lost = (~has_direction(features)).nonzero().flatten().tolist()
    if lost:
        raise ValueError(
            f"{what} {lost[0]} is too small or too large to be measured in {features.dtype}; bring "
            "it to a length around 1"
        )


def resolve_target(target: Target, batch: int, count: int, device: torch.device) -> Tensor:
    """Captum's target as indices of texts: (1,) for all images, or (N, 1).

    Args:
        target: an int (negative counts from the end), a 0-d tensor or one of one element, a 1-D
            tensor or list of one int for each image; None where there is one text.
        batch: number of images, N.
        count: number of texts.
        device: where the indices go.

    Raises:
        TypeError: another kind.
        ValueError: None with several texts, or a length that is not the batch's.
        IndexError: an index past the texts.
    """
    if target is None:
        if count != 1:
            raise ValueError(f"target is None, but there are {count} texts; name one by its index")
        target = 0
    if isinstance(target, str):
        raise TypeError(f"target is the string {target!r}; clip.index({target!r}) gives its index")
    if isinstance(target, Tensor):
        if target.is_floating_point() or target.dtype == torch.bool or target.ndim > 1:
            raise TypeError(
                f"target is a {target.ndim}-d tensor of {target.dtype}, "
                "expected integers, 0-d or one for each image"
            )
        target = target.item() if target.numel() == 1 else target.tolist()  # type: ignore
    if _is_index(target):
        return resolve_indices([target], count, device)  # type: ignore[list-item]
    if not isinstance(target, list):
        raise TypeError(
            f"target is a {type(target).__name__} ({target!r}), expected an int, a tensor of ints "
            "or a list of one int for each image"
        )
    if len(target) != batch:
        raise ValueError(f"target has {len(target)} entries for {batch} images")
    return resolve_indices(target, count, device)[:, None]


def resolve_indices(indices: Sequence[int], count: int, device: torch.device) -> Tensor:
    """Indices of texts, negative ones counted from the end: (K,).

    Raises:
        TypeError: no sequence, or an entry that is no int.
        ValueError: no entry.
        IndexError: one past the texts.
    """
    if not isinstance(indices, Sequence) or isinstance(indices, (str, bytes)):
        raise TypeError(
            f"targets is a {type(indices).__name__} ({indices!r}), expected a list of ints; "
            "attribute takes a single target"
        )
    if not indices:
        raise ValueError("targets are empty; None returns every text")
    for index in indices:
        if not _is_index(index):
            raise TypeError(f"target {index!r} is a {type(index).__name__}, expected an int")
        if not -count <= index < count:
            raise IndexError(f"target {index} is past the {count} texts")
    return torch.tensor([int(index) % count for index in indices], device=device)


def _is_index(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # numpy's ints are Integral
