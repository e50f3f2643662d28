"""Recognize OpenAI's files of weights, and read them without running the code in them.

OpenAI released TorchScript archives. torch loads these only with its own interpreter, which runs
their code, so open_clip refuses them by default. Their tensors are a pickle and raw numbers, and
are read here as such.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from captum_clip_surgery.models._checkpoints import ARRAYS
from captum_clip_surgery.models._state_dicts import (
    AmbiguousCheckpointError,
    StateDict,
    find_state_dict,
)

#: Numbers that only OpenAI's archives have among their weights; open_clip keeps them there.
OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")
#: Largest program of an archive in bytes; OpenAI's have less than 1 MB.
MAX_CODE = 2**26
CODE = (".py", ".debug_pkl")  # compressed by torch, unlike weights
MAX_MODULES = 100_000
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def recognize_activation(path: Path) -> tuple[bool, str] | None:
    """Detect from a checkpoint file whether it was trained with QuickGELU.

    A TorchScript archive contains its own program, which calls `gelu`, or `sigmoid` for QuickGELU.
    OpenAI's weights include three numbers that other state dicts lack, and that fit the shapes of
    the weights. Without them the origin is unknown, because open_clip names weights as OpenAI did.

    Args:
        path: The checkpoint file.

    Returns:
        Whether it was trained with QuickGELU and the reason, or None if that is unknown or the file
        cannot be read.
    """
    try:
        if _is_torchscript(path):
            called = set(re.findall(r"\btorch\.(gelu|sigmoid)\(", _code(path)))
            if len(called) == 1:
                return called == {"sigmoid"}, f"computed by the program in {path.name}"
        if _is_openai(_state_dict(path)):
            return True, f"of OpenAI's release, recognized in {path.name}"
    except Exception:  # loading the file reports what is wrong with it
        return None
    return None


@contextmanager
def loadable_file(path: str) -> Iterator[str]:
    """Yield a file that open_clip can load, which is a temporary one if weights are rewritten.

    They are if they are OpenAI's, or stand under other names or in a table of a checkpoint.

    Args:
        path: The checkpoint file.

    Raises:
        AmbiguousCheckpointError: If it has weights of several models, or of transformers.
        ValueError: If a TorchScript archive contains more than modules and weights.
        OSError: If temporary files cannot be written.
    """
    weights = _rewritten(Path(path))
    if weights is None:
        yield path
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save(weights, file)
        del weights
        yield str(file)


def _rewritten(path: Path) -> dict[str, Tensor] | None:
    """Return weights in the form that open_clip reads, or None if it reads the file as it is."""
    if path.suffix in ARRAYS:
        return None
    if _is_torchscript(path):
        state, is_native = _read_torchscript(path), False
    else:
        try:
            state, is_native = _read_state_dict(path)
            is_native = is_native and not _is_openai(state)
        except AmbiguousCheckpointError:
            raise
        except Exception:  # open_clip reads it next, and reports what is wrong with it
            return None
    if is_native:
        return None
    computed = (*OPENAI_KEYS, "attn_mask")  # by the model
    return {name: tensor for name, tensor in state.items() if not name.endswith(computed)}


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights in a file by name; none if it cannot be read."""
    try:
        return {name: tuple(tensor.shape) for name, tensor in _state_dict(path).items()}
    except Exception:  # open_clip reads it next, and reports what is wrong with it
        return {}


def _is_openai(state: Mapping[str, Any]) -> bool:
    """Check for OpenAI's three numbers, and that the other shapes agree."""
    if not all(isinstance(state.get(name), Tensor) for name in OPENAI_KEYS):
        return False
    resolution, context, vocabulary = (int(state[name]) for name in OPENAI_KEYS)
    pooled = state.get("visual.attnpool.positional_embedding")
    if pooled is None:
        side, positions = state["visual.conv1.weight"].shape[-1], "visual.positional_embedding"
    else:
        side, positions = 32, "visual.attnpool.positional_embedding"
    return (
        context == len(state["positional_embedding"])
        and vocabulary == len(state["token_embedding.weight"])
        and (resolution // side) ** 2 + 1 == len(state[positions])
    )


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name; values are read from disk only when they are used."""
    return _read_torchscript(path) if _is_torchscript(path) else _read_state_dict(path).tensors


def _read_state_dict(path: Path) -> StateDict:
    if path.suffix == ".safetensors":
        content = load_file(path)
    else:
        content = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    return find_state_dict(content, path)


# --- TorchScript archives ------------------------------------------------------------------------


def _is_torchscript(path: Path) -> bool:
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(re.fullmatch(r"[^/]+/constants\.pkl", name) for name in archive.namelist())


def _code(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        files = [info for info in archive.infolist() if info.filename.endswith(".py")]
        if sum(info.file_size for info in files) > MAX_CODE:
            raise ValueError(f"the program in {path} has more than {MAX_CODE:,} bytes")
        return "\n".join(archive.read(info).decode() for info in files)


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        data = [info for info in archive.infolist() if not info.filename.endswith(CODE)]
        if sum(info.file_size for info in data) > path.stat().st_size:
            raise ValueError(
                f"{path} unpacks to more than its size, and torch does not compress weights"
            )
        (record,) = (i.filename for i in data if re.fullmatch(r"[^/]+/data\.pkl", i.filename))
        content = archive.read(record)
        _check_memo(content)
        prefix = record.removesuffix("data.pkl")
        root = _TensorUnpickler(io.BytesIO(content), archive, prefix).load()
    return dict(_tensors(root))


def _check_memo(content: bytes) -> None:
    """Check the numbers a pickle gives its objects: Python allocates room up to the largest."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name.endswith("PUT") and int(argument or 0) > len(content):
            raise ValueError(f"a pickle of {len(content):,} bytes cannot hold {argument:,} objects")


def _tensors(root: object) -> Iterator[tuple[str, Tensor]]:
    queue = [("", root)]
    for prefix, module in queue:  # the list grows in this loop
        if len(queue) > MAX_MODULES:
            raise ValueError(f"an archive of weights has more than {MAX_MODULES:,} modules")
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, _Module):
                queue.append((f"{prefix}{name}.", value))


class _Module:
    """Stand-in for any class in an archive, with attributes and without code."""


class _TensorUnpickler(pickle.Unpickler):
    """Reader of tensors and modules that refuses every other name, so that no code is called."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(stream)
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) not in _READERS:
            raise pickle.UnpicklingError(f"an archive of weights must not name {module}.{name}")
        return _READERS[module, name]

    def persistent_load(self, identity: Any) -> Tensor:
        _, dtype, key, _, count = identity
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._prefix}data/{key}"))
            self._storages[key] = (
                torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0)
            )
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if math.prod(size) > storage.numel():
        raise ValueError(f"a tensor of {tuple(size)} has {storage.numel():,} numbers")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _first(value: Any, *_: Any) -> Any:
    return value


_LISTS = ("intlist", "doublelist", "boollist", "tensorlist")
_READERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("collections", "OrderedDict"): dict,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{("torch.jit._pickle", f"build_{kind}"): _first for kind in _LISTS},
}
