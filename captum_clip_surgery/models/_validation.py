"""Checks of images, features, targets and modes, each with a message that says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from captum_clip_surgery.functional import has_direction
from captum_clip_surgery.models._internals import is_exporting
from captum_clip_surgery.models.image import Tower

#: Captum's targets: an index for all images, or one per image.
Target = int | Tensor | Sequence[int] | None
NOT_FINITE = "images hold NaN or infinite pixels"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
#: Names of the probability in timm's DropPath, open_clip's PatchDropout, torch's attention, and the
#: attention of transformers.
PROBABILITIES = ("drop_prob", "prob", "dropout", "attention_dropout")


def check_images(images: Tensor, tower: Tower, device: torch.device, finite: bool = True) -> None:
    """Check a batch of images.

    Args:
        images: Images, expected to be a dense floating-point tensor (N, 3, H, W) with N > 0.
        tower: The image tower, whose patches must divide the images.
        device: The model's device.
        finite: Whether to check for NaN and infinity; on a GPU this waits for the images.

    Raises:
        TypeError: If `images` is not a dense floating-point tensor.
        ValueError: If the shape does not fit, the batch is empty, the images are on another device
            than the model, or they contain NaN or infinity.
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images must be a tensor, got {type(images).__name__}; clip.preprocess(...) makes one"
        )
    shape = tuple(images.shape)
    if images.ndim != 4:
        hint = "; add the batch: images[None]" if images.ndim == 3 else ""
        raise ValueError(f"images have shape {shape}, expected (N, 3, H, W){hint}")
    if images.shape[1] != 3:
        raise ValueError(f"images have {images.shape[1]} channels, expected 3: shape {shape}")
    if images.dtype not in FLOATS:
        raise TypeError(
            f"images are {images.dtype}, expected floating point; clip.preprocess(...) makes them"
        )
    if images.layout != torch.strided:
        raise TypeError(f"images are {images.layout}, expected a dense tensor: images.to_dense()")
    if images.shape[0] == 0:  # `len` would fix the batch size of an exported program
        raise ValueError(f"the batch is empty: shape {shape}")
    tower.grid(*images.shape[-2:])
    if images.device != device:
        raise ValueError(f"images are on {images.device}, the model on {device}")
    if finite and not _is_finite(images):
        raise ValueError(NOT_FINITE)


def check_finite(images: Tensor, results: Tensor, what: str) -> Tensor:
    """Check that results computed from images are finite; on a GPU this waits once.

    Args:
        images: The images.
        results: What was computed from them.
        what: Name of the results in the plural, for the message.

    Returns:
        The results.

    Raises:
        ValueError: If images or results contain NaN or infinity.
    """
    # An exported program cannot raise.
    if is_exporting() or _is_finite(images, results):
        return results
    if not _is_finite(images):
        raise ValueError(NOT_FINITE)
    raise ValueError(
        f"{what} hold NaN or infinity, though the images do not: are the model's weights "
        "intact, and pixels normalized (clip.preprocess)? Half precision may be too narrow"
    )


def _is_finite(*tensors: Tensor) -> bool:
    # One pass per tensor and no copy; NaN shows in both extremes.
    extremes = [torch.stack(values.detach().aminmax()).isfinite().all() for values in tensors]
    return bool(torch.stack(extremes).all())


def check_modes(model: nn.Module) -> None:
    """Check that no module is random or updates statistics.

    Raises:
        ValueError: If such a module is in train mode.
    """
    for name, module in model.named_modules():
        if module.training and _depends_on_mode(module):
            raise ValueError(
                f"{name} ({type(module).__name__}) is in train mode, which changes its results; "
                "call model.eval() first"
            )


def _depends_on_mode(module: nn.Module) -> bool:
    if isinstance(module, BATCH_NORMS):
        return True
    if isinstance(module, DROPOUTS):
        return module.p > 0
    for name in PROBABILITIES:
        probability: Any = getattr(module, name, 0)
        if isinstance(probability, float) and probability > 0:
            return True
    return False


def check_features(
    features: Tensor, width: int, what: str, device: torch.device, rows: int | None = None
) -> None:
    """Check text features passed by the user.

    Args:
        features: Features, expected to be a floating-point tensor (K, width) with finite rows that
            can be L2-normalized.
        width: Width of the joint space.
        what: Name of the argument, for the message.
        device: The model's device.
        rows: Expected number of rows K; None allows any from 1 on.

    Raises:
        TypeError: If `features` is not a floating-point tensor.
        ValueError: If shape or device do not fit, or a row is zero, contains NaN or infinity, or
            under- or overflows when it is normalized.
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
            f"{what} {lost[0]} is too small or too large to be measured in {features.dtype}; scale "
            "it to a length around 1"
        )


def resolve_target(target: Target, batch: int, count: int, device: torch.device) -> Tensor:
    """Convert Captum's target to indices of texts.

    Args:
        target: An int, where negative values count from the end; a tensor of one element; a 1-D
            tensor or list of one int per image; or None if there is one text.
        batch: Number of images N.
        count: Number of texts.
        device: Device of the indices.

    Returns:
        Indices (1,) for all images, or (N, 1).

    Raises:
        TypeError: If `target` has another type.
        ValueError: If it is None and there are several texts, or its length is not the batch's.
        IndexError: If an index is out of range.
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
    """Convert indices of texts to a tensor (K,), with negative ones counted from the end.

    Args:
        indices: Indices of texts.
        count: Number of texts.
        device: Device of the result.

    Raises:
        TypeError: If `indices` is not a sequence of ints.
        ValueError: If it is empty.
        IndexError: If an index is out of range.
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
            raise IndexError(f"target {index} is out of range for {count} texts")
    return torch.tensor([int(index) % count for index in indices], device=device)


def _is_index(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # also numpy's integers
