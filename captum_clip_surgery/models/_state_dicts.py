"""Find a CLIP's state dict in the checkpoint of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

SCALE = "logit_scale"  # in the state dict of every CLIP, once
COMPILED = "_orig_mod."  # of `torch.compile`, at any place of a name


class AmbiguousCheckpointError(ValueError):
    """A checkpoint with the weights of more than one model, or of another library's."""


class StateDict(NamedTuple):
    """The weights of a CLIP by open_clip's names.

    Attributes:
        tensors: The weights.
        is_native: Whether open_clip reads the file as it is.
    """

    tensors: dict[str, Tensor]
    is_native: bool


def find_state_dict(content: Any, path: Path) -> StateDict:
    """Find the state dict in a checkpoint's content and strip the prefix of its names.

    Args:
        content: What a file of weights holds: tensors by name, at most two tables deep.
        path: The file, for messages.

    Raises:
        AmbiguousCheckpointError: If there are weights of several models, or of a model of
            transformers.
    """
    if not isinstance(content, Mapping):
        return StateDict({}, True)
    found = {
        (place, prefix): state
        for place, state in _tables(content)
        for prefix in _prefixes(state, "visual.")
    }
    if not found:
        if any(set(_prefixes(state, "vision_model.")) for _, state in _tables(content)):
            raise AmbiguousCheckpointError(
                f"{path} holds the weights of a model of transformers, without its configuration: "
                "save the model by save_pretrained, and name that folder instead"
            )
        state = content.get("state_dict", content)
        return StateDict(dict(state) if isinstance(state, Mapping) else {}, True)
    if len(found) > 1:
        names = " and ".join(f"{place}{prefix}*" for place, prefix in found)
        raise AmbiguousCheckpointError(
            f"{path} holds the weights of {len(found)} models, {names}: save the one to explain "
            "alone (its state dict)"
        )
    ((place, prefix), state), *_ = found.items()
    tensors = {
        name.replace(COMPILED, "").removeprefix(prefix): value
        for name, value in state.items()
        if name.replace(COMPILED, "").startswith(prefix) and isinstance(value, Tensor)
    }
    native = place in ("", "state_dict.") and not any(COMPILED in name for name in state)
    return StateDict(tensors, native and prefix == "")


def _tables(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the tables of tensors in a checkpoint, with the names that lead to them."""
    queue: list[tuple[str, Mapping[str, Any]]] = [("", content)]
    for place, table in queue:  # the list grows in this loop
        tensors = {n: v for n, v in table.items() if isinstance(v, Tensor) and isinstance(n, str)}
        if tensors:
            yield place, tensors
        if place.count(".") < 2:
            queue += [
                (f"{place}{name}.", value)
                for name, value in table.items()
                if isinstance(value, Mapping)
            ]


def _prefixes(state: Mapping[str, Any], part: str) -> list[str]:
    """Return the prefixes of the names of each CLIP's logit scale and image tower."""
    names = [name.replace(COMPILED, "") for name in state]
    prefixes = (n.removesuffix(SCALE) for n in names if n == SCALE or n.endswith(f".{SCALE}"))
    return [each for each in prefixes if any(name.startswith(each + part) for name in names)]
