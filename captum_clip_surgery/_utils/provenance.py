"""Provenance of a result: command, versions, device and weights."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

PACKAGES = ("captum_clip_surgery", "captum", "open_clip_torch", "timm", "torch", "numpy", "pillow")
#: Packages that results depend on where they are installed.
OPTIONAL_PACKAGES = ("transformers",)


def environment_info(device: torch.device) -> dict[str, Any]:
    """Return the command, versions, device and number of threads, as JSON."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    for package in OPTIONAL_PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions,
        "device": f"{device.type} {name or platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def precision(dtype: torch.dtype) -> str:
    """Return open_clip's name of the precision of weights: fp32, fp16 or bf16."""
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256, in hexadecimal, of a model's parameters and buffers.

    Names, dtypes and shapes are part of it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()
