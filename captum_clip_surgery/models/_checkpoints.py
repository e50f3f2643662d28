"""Check checkpoint files before open_clip reads them, so that no code in them runs."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery._utils.errors import error_message

ARRAYS = (".npz", ".npy")  # which open_clip reads without pickle
UNPICKLER = re.compile(r"WeightsUnpickler error:(.*?)(?:Check the documentation|$)", re.DOTALL)
FOREIGN = re.compile(r"Unsupported global: GLOBAL (\S+)")  # in torch's message
MAX_RATIO = 10  # of an archive's content to its size; torch does not compress, numpy may


def check_checkpoint(path: Path) -> None:
    """Check that a checkpoint can be read without running code, and is as large as its file.

    open_clip retries without `weights_only` if torch's restricted reader raises a `TypeError`, so a
    file on which that reader fails must not reach it. Values are not read: tensors are made on the
    meta device.

    Args:
        path: A file of safetensors, `torch.save`, or numpy (of big_vision).

    Raises:
        ValueError: If the file contains pickled code, is a TorchScript archive or not a checkpoint,
            or its tensors take far more memory than the file.
    """
    if path.suffix == ".safetensors" or not path.stat().st_size:
        return  # neither code nor compression; a header is checked against the file as it is read
    _check_archive(path)
    if path.suffix in ARRAYS:
        return
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # torch and pickle raise many types
        reason = error_message(error)
        if found := FOREIGN.search(reason):
            reason = f"it holds objects of {found[1]}; save only the state dict"
        elif found := UNPICKLER.search(reason):
            reason = " ".join(found[1].split())
        raise ValueError(f"{path} is not a checkpoint of weights only: {reason:.800}") from error
    for name, tensor in _tensors(content):
        if tensor.layout != torch.strided:
            raise ValueError(f"{path}: {name} is sparse; save it dense")
        held = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.element_size() > held:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)} and {held:,} bytes of values; "
                "save it contiguous"
            )


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            content = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from error
    size = path.stat().st_size
    if content > MAX_RATIO * size:
        raise ValueError(f"{path} has {size:,} bytes and unpacks to {content:,}")


def _tensors(content: Any, name: str = "state_dict") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested dicts, lists and tuples."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _tensors(value, f"{key!s:.100}")
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _tensors(value, name)
