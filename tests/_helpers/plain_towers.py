"""Image towers restated plainly, for the adapters to be held against.

The original path is the model itself, run as a whole under hooks; another size is a copy of the
model made for it by timm's functions; the second path is methods.md read aloud, with loops over
heads and the raw parameters. Nothing here comes from the package.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva, EvaBlockPostNorm
from torch import Tensor, nn

Grid = tuple[int, int]


def blocks_of(visual: Any) -> Sequence[Any]:
    if isinstance(visual, ModifiedResNet):
        return [visual.attnpool]
    return visual.trunk.blocks if isinstance(visual, TimmModel) else visual.transformer.resblocks


@dataclass
class Trace:
    """What enters and leaves each block, what its attention adds, and the pooled embedding."""

    inputs: list[Tensor] = field(default_factory=list)
    updates: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    pooled: Tensor = field(default_factory=lambda: torch.empty(0))


def trace(visual: Any, images: Tensor) -> Trace:
    """One pass of the model's own."""
    run, handles = Trace(), []
    for block in blocks_of(visual):
        handles += [
            block.register_forward_pre_hook(lambda _, args: run.inputs.append(args[0])),
            block.register_forward_hook(lambda _, args, out: run.outputs.append(out)),
        ]
        for name in ("ls_1", "drop_path1"):  # the last that touches what attention adds
            if hasattr(block, name):
                hook = getattr(block, name).register_forward_hook
                handles.append(hook(lambda _, args, out: run.updates.append(out)))
    out = visual(images)
    run.pooled = out[0] if isinstance(out, tuple) else out
    for handle in handles:
        handle.remove()
    if isinstance(visual, ModifiedResNet):
        run.inputs = [_with_mean(visual.attnpool, run.inputs[0])]
    return run


def _with_mean(pool: Any, features: Tensor) -> Tensor:
    """The tokens of a ResNet's attention pooling, from its input (N, D, h, w)."""
    patches = features.flatten(2).transpose(1, 2)
    return torch.cat([patches.mean(1, keepdim=True), patches], 1) + pool.positional_embedding


def at_size(visual: Any, grid: Grid, size: Grid, mode: str) -> Any:
    """A copy of a tower made for images of another size."""
    other = copy.deepcopy(visual)
    if isinstance(visual, TimmModel):
        trunk = other.trunk
        native, prefix = trunk.patch_embed.grid_size, trunk.num_prefix_tokens
        trunk.set_input_size(size)
        if mode == "bilinear" and trunk.pos_embed is not None:  # timm itself goes bicubic
            prefix = 0 if trunk.no_embed_class else prefix
            trunk.pos_embed = _resized(visual.trunk.pos_embed, native, grid, prefix, mode)
        return other
    holder = other.attnpool if isinstance(visual, ModifiedResNet) else other
    side = math.isqrt(len(holder.positional_embedding) - 1)
    native = getattr(visual, "grid_size", (side, side))
    positions = _resized(holder.positional_embedding[None], native, grid, 1, mode)
    holder.positional_embedding = nn.Parameter(positions[0])
    return other


def _resized(positions: Tensor, native: Grid, grid: Grid, prefix: int, mode: str) -> nn.Parameter:
    antialias = mode == "bicubic"
    return nn.Parameter(
        resample_abs_pos_embed(positions, list(grid), list(native), prefix, mode, antialias)
    )


# --- the second path -----------------------------------------------------------------------------


def new_path(visual: Any, run: Trace, num_blocks: int) -> Tensor:
    """All tokens after the second path beside the last blocks; num_blocks 0 is the model's own."""
    if isinstance(visual, ModifiedResNet):
        pool, x = visual.attnpool, run.inputs[0]
        q, k, v = (p(x) for p in (pool.q_proj, pool.k_proj, pool.v_proj))
        q, k = (v, v) if num_blocks else (q, k)
        return pool.c_proj(_attend(q, k, v, pool.num_heads))
    if not num_blocks:
        return run.outputs[-1]
    path = run.inputs[-num_blocks]
    for block, stream in zip(
        blocks_of(visual)[-num_blocks:], run.inputs[-num_blocks:], strict=True
    ):
        path = path + vv_update(block, stream)
    return path


def vv_update(block: Any, x: Tensor) -> Tensor:
    """O(softmax(v v^T / sqrt(d)) v): what v-v attention of a block adds, from its input stream."""
    attention = block.attn
    post_norm = isinstance(block, EvaBlockPostNorm)
    if not post_norm:
        x = (block.ln_1 if hasattr(block, "ln_1") else block.norm1)(x)
    v = _values(attention, x)
    out = _attend(v, v, v, attention.num_heads, _of(attention, "head_scale"))
    for name in ("ln_inner", "norm"):
        out = _of(attention, name, nn.Identity())(out)
    if _of(attention, "gate") is not None:
        out = out / (1 + torch.exp(-attention.gate(x)))
    # nn.MultiheadAttention knows its projection as a module of weights alone.
    project = attention.out_proj if hasattr(attention, "out_proj") else attention.proj
    out = out @ project.weight.T + (0 if project.bias is None else project.bias)
    for name in ("ln_attn", "norm1" if post_norm else "", "ls_1", "ls1"):
        out = _of(block, name, nn.Identity())(out)
    return out if _of(block, "gamma_1") is None else out * block.gamma_1


def _of(module: Any, name: str, default: Any = None) -> Any:
    found = getattr(module, name, None)
    return default if found is None else found


def _values(attention: Any, x: Tensor) -> Tensor:
    bias = _of(attention, "v_bias")
    if _of(attention, "in_proj_weight") is not None:
        weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
    elif _of(attention, "v_proj") is not None:
        weight, bias = attention.v_proj.weight, attention.v_proj.bias
    else:
        weight = attention.qkv.weight.chunk(3)[2]
        if attention.qkv.bias is not None:
            bias = attention.qkv.bias.chunk(3)[2]
    return x @ weight.T + (0 if bias is None else bias)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scales: Tensor | None = None) -> Tensor:
    """Attention head by head, softmax written out."""
    joined = []
    for head, parts in enumerate(zip(*(x.chunk(heads, -1) for x in (q, k, v)), strict=True)):
        one_q, one_k, one_v = parts
        logits = one_q @ one_k.transpose(1, 2) / math.sqrt(one_q.shape[-1])
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        out = weights @ one_v / weights.sum(-1, keepdim=True)
        joined.append(out if scales is None else out * scales[head])
    return torch.cat(joined, -1)


def alone(visual: Any, tokens: Tensor) -> Tensor:
    """Tokens (N, L, D) in the joint space (N, L, C), each pooled by the model as its only patch."""
    if isinstance(visual, ModifiedResNet):
        return tokens
    one = tokens.flatten(0, 1)[:, None]
    if isinstance(visual, TimmModel):
        trunk = visual.trunk
        if trunk.global_pool != "token" and _strips_prefix(trunk):
            one = torch.cat([torch.ones_like(one)] * trunk.num_prefix_tokens + [one], 1)
        pooled = visual.head(trunk.forward_head(trunk.norm(one)))
    else:
        if visual.pool_type == "avg" and visual.attn_pool is None:
            one = torch.cat([torch.ones_like(one), one], 1)
        pooled = visual._pool(one)[0] @ visual.proj
    return pooled.unflatten(0, tokens.shape[:2])


def _strips_prefix(trunk: Any) -> bool:
    if isinstance(trunk, Eva):
        return trunk.attn_pool is None
    return not trunk.pool_include_prefix


def enliven(module: nn.Module, seed: int = 0) -> None:
    """Random vectors (norms, biases, layer and head scales), so that each shows when forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1 or name.endswith("head_scale"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
