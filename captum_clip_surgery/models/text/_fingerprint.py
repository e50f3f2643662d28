"""A digest of everything that determines a text tower's features, the same in every process."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from captum_clip_surgery.models._contents import ModuleContents, ProcessLocalError
from captum_clip_surgery.models._internals import BPE_TOKENIZER, has_global_hooks
from captum_clip_surgery.models._state import precision
from captum_clip_surgery.models.text._towers import NOT_TEXT

PIECE_BYTES = 2**23  # hashed by one thread at a time


def fingerprint(tower: nn.Module) -> bytes:
    """Return a digest of everything that determines a text tower's features.

    It covers the names, dtypes, shapes and bytes of parameters, buffers and other tensors; the
    classes of modules with the sources or versions that define them, and their attributes by
    content; the type of device and the precision of matrix products; and versions of packages.

    Args:
        tower: The text tower, or a model that is its own text tower.

    Raises:
        ProcessLocalError: If there are hooks, replaced methods, or objects that mean nothing in
            another process.
    """
    if has_global_hooks():
        raise ProcessLocalError("hooks are registered on all modules of the process")
    parts = [(name, part) for name, part in tower.named_children() if name not in NOT_TEXT]
    weights = list(_weights(tower, parts))
    contents = ModuleContents()
    structure = [contents.describe("the text tower", tower)]
    for name, part in parts:
        structure += [
            contents.describe(f"{name}.{inner}".rstrip("."), module)
            for inner, module in part.named_modules()
        ]
    for name, tensor in weights:
        if tensor.layout is not torch.strided or type(tensor) not in (Tensor, nn.Parameter):
            raise ProcessLocalError(f"{name} is a {type(tensor).__name__} of {tensor.layout}")
    about = [
        structure,
        [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in weights],
        weights[0][1].device.type,
        precision(),
        package_versions(contents.packages),
    ]
    tensors = [tensor for _, tensor in weights] + contents.tensors
    return hashlib.sha256(json.dumps(about).encode() + _digest_of_bytes(tensors)).digest()


def package_versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of the packages that turn texts into features, and of others."""
    names = ("captum_clip_surgery", "open_clip", "torch", "transformers", "ftfy", *packages)
    loaded = {name: sys.modules[name] for name in sorted(set(names)) if name in sys.modules}
    return {name: str(getattr(module, "__version__", "")) for name, module in loaded.items()}


def is_open_clip_bpe(tokenizer: Any) -> bool:
    """Return whether a tokenizer is open_clip's own, so that texts determine token ids."""
    if tokenizer is open_clip.tokenize:
        return True
    return (
        type(tokenizer) is SimpleTokenizer
        and tokenizer.reduction_fn is None
        and tokenizer.clean_fn is BPE_TOKENIZER.clean_fn
        and tokenizer.pat == BPE_TOKENIZER.pat
        and tokenizer.encoder == BPE_TOKENIZER.encoder
        and tokenizer.bpe_ranks == BPE_TOKENIZER.bpe_ranks
    )


def _weights(tower: nn.Module, parts: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, except those of the image tower and the logit scale."""
    for name, tensor in (
        *tower.named_parameters(recurse=False),
        *tower.named_buffers(recurse=False),
    ):
        if name not in NOT_TEXT:
            yield name, tensor
    for name, part in parts:
        yield from part.named_parameters(name)
        yield from part.named_buffers(name)


def _digest_of_bytes(tensors: Sequence[Tensor]) -> bytes:
    """Return a digest of tensors' bytes; threads hash pieces of them at the same time."""

    def pieces() -> Iterator[memoryview]:
        for tensor in tensors:
            data = tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data
            for start in range(0, len(data), PIECE_BYTES):
                yield data[start : start + PIECE_BYTES]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces())
        return hashlib.sha256(b"".join(digests)).digest()
