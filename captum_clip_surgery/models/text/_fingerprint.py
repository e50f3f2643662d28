"""What tells one text tower from another in another process: weights, structure, versions."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from captum_clip_surgery.models._contents import Contents, UntellableError
from captum_clip_surgery.models._state import has_global_hooks, precision
from captum_clip_surgery.models.text.towers import NOT_TEXT

LANES = 2**14  # of 8 bytes, which a core's cache holds
CHAINS = 8  # of lanes, that threads may share out
FACTOR, HALF = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)
Row = np.ndarray[tuple[int], np.dtype[np.uint64]]


def fingerprint(tower: nn.Module) -> bytes:
    """A digest of everything that makes a text tower's features.

    The names, types, shapes and bytes of its parameters, buffers and other tensors; the classes of
    its modules, with the sources or versions that define them, and their attributes by content;
    its device's kind and how exactly it multiplies; the versions of what computes.

    Raises:
        UntellableError: hooks, replaced methods, and objects whose content cannot be read.
    """
    if has_global_hooks():
        raise UntellableError("hooks are registered on all modules of the process")
    parts = [(name, part) for name, part in tower.named_children() if name not in NOT_TEXT]
    weights = list(_weights(tower, parts))
    contents = Contents()
    structure = [contents.of_module("the text tower", tower)]
    for name, part in parts:
        structure += [
            contents.of_module(f"{name}.{inner}".rstrip("."), module)
            for inner, module in part.named_modules()
        ]
    about = [
        structure,
        [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in weights],
        weights[0][1].device.type,
        precision(),
        versions(contents.packages),
    ]
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in weights:
        if tensor.layout is not torch.strided or type(tensor) not in (Tensor, nn.Parameter):
            raise UntellableError(f"{name} is a {type(tensor).__name__} of {tensor.layout}")
    tensors = [tensor for _, tensor in weights] + contents.tensors
    for piece in _condensed(tensors):
        digest.update(piece)
    return digest.digest()


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the packages that turn texts into features, and of further ones."""
    names = ("captum_clip_surgery", "open_clip", "torch", "transformers", "ftfy", *packages)
    loaded = {name: sys.modules[name] for name in sorted(set(names)) if name in sys.modules}
    return {name: str(getattr(module, "__version__", "")) for name, module in loaded.items()}


def is_open_clips_bpe(tokenizer: Any) -> bool:
    """Whether a tokenizer is open_clip's own with its own words, so that texts tell its ids."""
    if tokenizer is open_clip.tokenize:
        return True
    own = open_clip.tokenizer._tokenizer
    return (
        type(tokenizer) is SimpleTokenizer
        and tokenizer.reduction_fn is None
        and tokenizer.clean_fn is own.clean_fn
        and tokenizer.pat == own.pat
        and tokenizer.encoder == own.encoder
        and tokenizer.bpe_ranks == own.bpe_ranks
    )


def _weights(tower: nn.Module, parts: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, without the image tower's and the logit scale's."""
    for name, tensor in (
        *tower.named_parameters(recurse=False),
        *tower.named_buffers(recurse=False),
    ):
        if name not in NOT_TEXT:
            yield name, tensor
    for name, part in parts:
        yield from part.named_parameters(name)
        yield from part.named_buffers(name)


def _condensed(tensors: Sequence[Tensor]) -> Iterator[bytes]:
    """The bytes of tensors: 1 MiB for all that is large of them, and the rest as it is.

    A cryptographic digest of a ViT-B's text tower takes longer than its features may from a disk.
    So bytes are dealt to lanes of 64 bits, each a chain of steps that can be undone (xor with the
    next bytes, times an odd factor, xor with the upper half): a change within 128 KiB changes a
    lane for certain, and several that cancel in every lane they meet do not come about by accident.
    """
    rows: list[Row] = []
    for tensor in tensors:
        data = tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
        whole = len(data) // (8 * LANES) * 8 * LANES
        rows += list(data[:whole].view(np.uint64).reshape(-1, LANES))
        yield data[whole:].tobytes()
    with ThreadPoolExecutor(min(CHAINS, torch.get_num_threads())) as pool:
        yield from pool.map(_chained, [rows[first::CHAINS] for first in range(CHAINS)])


def _chained(rows: Sequence[Row]) -> bytes:
    """Lanes after all rows."""
    lanes, upper = np.zeros(LANES, np.uint64), np.empty(LANES, np.uint64)
    for row in rows:
        np.bitwise_xor(lanes, row, out=lanes)
        np.multiply(lanes, FACTOR, out=lanes)
        np.right_shift(lanes, HALF, out=upper)
        np.bitwise_xor(lanes, upper, out=lanes)
    return lanes.tobytes()
