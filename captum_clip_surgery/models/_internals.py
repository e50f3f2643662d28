"""Access to private parts of torch, timm and open_clip, gathered in one place.

No public interface lists a module's own parameters and hooks in constant time, copies a module
without its hooks, or runs only a part of a timm trunk.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from open_clip.factory import _find_checkpoint_in_dir as find_checkpoint
from open_clip.factory import _get_hf_config as get_hub_config
from open_clip.model import _build_vision_tower as build_image_tower
from open_clip.tokenizer import _tokenizer as BPE_TOKENIZER
from torch import Tensor, nn

__all__ = [
    "BPE_TOKENIZER",
    "HOOKS",
    "HOOK_OPTIONS",
    "RECORDING_HOOKS",
    "add_timm_positions",
    "are_transforms_active",
    "buffers_of",
    "build_image_tower",
    "children_of",
    "copy_without_hooks",
    "embed_masked_text",
    "find_checkpoint",
    "get_hub_config",
    "global_hooks",
    "has_forward_hooks",
    "has_global_hooks",
    "has_hooks",
    "is_exporting",
    "parameters_of",
    "pool_open_clip_tokens",
    "shallow_copy",
    "unwrap_parallel",
    "warn_of_hooks",
]

#: Registries of hooks that run when a module is called, or when gradients pass through it.
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
#: Module whose hooks transformers registers once a call asks for attention or hidden states.
RECORDING_HOOKS = "transformers.utils.output_capturing"
HOOK_OPTIONS = (
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_is_full_backward_hook",
)
REGISTRIES = ("_parameters", "_buffers", "_modules")
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


# --- modules -------------------------------------------------------------------------------------


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's children by name, without duplicates being dropped."""
    return module._modules


def parameters_of(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """Return a module's own parameters by name, not those of its children."""
    return module._parameters


def buffers_of(module: nn.Module) -> Mapping[str, Tensor | None]:
    """Return a module's own buffers by name, not those of its children."""
    return module._buffers


def shallow_copy(module: nn.Module) -> Any:
    """Copy a module: the copy shares tensors and children, but has registries of its own.

    `copy.copy` would share the registries, and refuses parametrized modules.
    """
    clone = object.__new__(type(module))
    clone.__dict__.update(module.__dict__)
    for registry in REGISTRIES:
        clone.__dict__[registry] = dict(module.__dict__[registry])
    return clone


def copy_without_hooks(module: nn.Module) -> Any:
    """Copy a module as `shallow_copy` does, without hooks and compilation."""
    clone = shallow_copy(module)
    clone.__dict__.update({registry: OrderedDict() for registry in HOOKS})
    clone.__dict__["_compiled_call_impl"] = None
    return clone


def unwrap_parallel(module: Any) -> Any:
    """Return the module inside `torch.compile` and data-parallel wrappers, in any order."""
    while True:
        if isinstance(module, PARALLEL):
            module = module.module
        elif hasattr(module, "_orig_mod"):
            module = module._orig_mod
        else:
            return module


def are_transforms_active() -> bool:
    """Return whether a transform of `torch.func` is running, whose tensors hide what they need."""
    return torch._C._are_functorch_transforms_active()


def is_exporting() -> bool:
    """Return whether `torch.export` traces; torch 2.6 cannot tell."""
    return getattr(torch.compiler, "is_exporting", bool)()


# --- hooks ---------------------------------------------------------------------------------------


def has_hooks(modules: Iterable[nn.Module]) -> bool:
    """Return whether calling one of the modules also calls a hook.

    Hooks are left out by which transformers records outputs: they stay behind and do nothing.
    """
    registries = (getattr(module, registry) for module in modules for registry in HOOKS)
    return any(
        getattr(hook, "__module__", None) != RECORDING_HOOKS
        for hooks in registries
        for hook in hooks.values()
    )


def has_forward_hooks(module: nn.Module) -> bool:
    """Return whether a module has forward hooks or forward pre-hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def global_hooks(registry: str) -> Mapping[int, Any]:
    """Return the hooks registered on all modules of the process, for one entry of `HOOKS`."""
    return getattr(nn.modules.module, f"_global{registry}", {})


def has_global_hooks() -> bool:
    """Return whether hooks are registered on all modules of the process."""
    return any(map(global_hooks, HOOKS))


def warn_of_hooks(names: list[str], stacklevel: int = 3) -> None:
    """Warn that hooks on modules of these names do not fire, because they are not called."""
    if names:
        warnings.warn(
            f"hooks on {', '.join(names)} do not fire, because only the parts of these modules are "
            "called: results lack what the hooks change. Hook the parts instead (norms, "
            "feed-forward)",
            stacklevel=stacklevel,
        )


# --- parts of forward passes ---------------------------------------------------------------------


def pool_open_clip_tokens(visual: Any, tokens: Tensor) -> Tensor:
    """Pool the tokens of open_clip's `VisionTransformer` as its forward pass does."""
    pooled, _ = visual._pool(tokens)
    return pooled


def embed_masked_text(tower: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input of the first block of open_clip's `TextTransformer`, and the mask.

    For towers whose mask depends on the text: those with a class token (CoCa), which follows the
    tokens, and those that mask the padding.

    Args:
        tower: The text tower.
        tokens: Token ids (P, context).

    Returns:
        Tokens (P, L, D), and what is added to the logits (P, heads, L, L) of attention.
    """
    x, mask = tower._embeds(tokens)
    return x, mask.unflatten(0, (len(tokens), -1))


def add_timm_positions(trunk: Any, patches: Tensor) -> Any:
    """Add prefix tokens and positions as a timm trunk does; Eva returns a rotary embedding too."""
    return trunk._pos_embed(patches)
