"""Test-time registers: a tower whose outlier tokens are moved to a token outside of the image.

A few feed-forward neurons write the outliers. A copy of the tower that shares all weights has other
last layers in their blocks: what these neurons would write at patches, the register gets.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from captum_clip_surgery._utils.outliers import norm_outliers
from captum_clip_surgery.models._blocks import AttentionInputs, Grid
from captum_clip_surgery.models._internals import children_of, shallow_copy
from captum_clip_surgery.models.image._attention_pool import AttentionPool
from captum_clip_surgery.models.image._base import Tower
from captum_clip_surgery.models.image._data import GridSpec, PathConfig, PathTrace, TowerOutput

#: A feed-forward neuron: the index of its block, and its own within the block.
Neuron = tuple[int, int]
#: Number of neurons that are moved by default.
NUM_NEURONS = 10
#: Number of images in a pass that looks for outliers.
BATCH_SIZE = 8


class RegisterTower(Tower):
    """A tower with one register token after its prefix tokens, and otherwise the same weights.

    Second paths neither attend to the register nor return it.

    Args:
        tower: The tower of the model.
        neurons: The feed-forward neurons whose activation at patches moves to the register.

    Raises:
        TypeError: If a feed-forward layer does not end in a linear layer.

    References:
        Jiang, Dravid, Efros, Gandelsman: Vision Transformers Don't Need Trained Registers.
        NeurIPS 2025.
    """

    def __init__(self, tower: Tower, neurons: Iterable[Neuron]) -> None:
        super().__init__(tower.visual, tower.positions)
        self.neurons = tuple(neurons)
        self._start = tower.num_prefix_tokens

        def move_neurons(index: int, linear: nn.Module) -> nn.Module:
            moved = [neuron for block, neuron in self.neurons if block == index]
            return _MoveNeurons(linear, moved, self._start) if moved else linear

        self._tower = _with_last_layers(tower, move_neurons)

    @override
    @classmethod
    def matches(cls, visual: nn.Module) -> bool:
        return False

    @override
    @classmethod
    def check_supported(cls, visual: Any) -> None:
        raise TypeError("a RegisterTower is made from a tower, not from a model")

    @property
    def family(self) -> str:  # type: ignore[override]
        """The family of the model's tower."""
        return self._tower.family

    @override
    @property
    def blocks(self) -> Sequence[Any]:
        return self._tower.blocks

    @override
    @property
    def containers(self) -> dict[str, nn.Module]:
        return self._tower.containers

    @override
    @property
    def pooling(self) -> str:
        return self._tower.pooling

    @override
    @property
    def num_prefix_tokens(self) -> int:
        return self._start + 1

    @override
    @property
    def num_pooled_tokens(self) -> int | None:
        return self._tower.num_pooled_tokens

    @override
    @property
    def patch_size(self) -> tuple[int, int]:
        return self._tower.patch_size

    @override
    @property
    def native_size(self) -> tuple[int, int]:
        return self._tower.native_size

    @override
    @property
    def dtype(self) -> torch.dtype:
        return self._tower.dtype

    @override
    def grid(self, height: int, width: int) -> Grid:
        return self._tower.grid(height, width)

    @override
    def embed(self, images: Tensor) -> tuple[Tensor, GridSpec]:
        x, grid_spec = self._tower.embed(images)
        if grid_spec.rope is not None:
            raise TypeError(
                f"registers are not defined on {self.family} with rotary positions, because a "
                "register has none; use repair='auto' instead"
            )
        return _insert_zeros(x, self._start, 1), grid_spec

    @override
    def run_block(self, index: int, x: Tensor, grid_spec: GridSpec) -> Tensor:
        return self._tower.run_block(index, x, grid_spec)

    @override
    def attention_inputs(
        self, index: int, x: Tensor, grid_spec: GridSpec, queries: int | None = None
    ) -> AttentionInputs:
        return self._tower.attention_inputs(index, x, grid_spec, queries)

    @override
    def merge(self, index: int, values: Tensor, x: Tensor) -> Tensor:
        return self._tower.merge(index, values, x)

    @override
    def feed_forward(self, index: int, x: Tensor) -> Tensor:
        return self._tower.feed_forward(index, x)

    @override
    def project(self, x: Tensor) -> Tensor:
        return self._tower.project(x)

    @override
    def pool(self, x: Tensor) -> Tensor:
        return self._tower.pool(_drop(x, self._start, 1))

    @override
    def pool_attention(self, x: Tensor) -> Tensor:
        attention = self._tower.pool_attention(_drop(x, self._start, 1))
        return _insert_zeros(attention, self._start, 2)

    @override
    @property
    def attention_pool(self) -> AttentionPool | None:
        return self._tower.attention_pool

    @override
    def describe_undecomposable(self) -> str | None:
        return "a test-time register takes over what some of its neurons write"

    @override
    def describe(self) -> str:
        return f"{self._tower.describe()}, {len(self.neurons)} neurons moved to a register"

    @override
    def _make_trace(
        self, grid: Grid, streams: Collection[int], attentions: Collection[int]
    ) -> PathTrace:
        trace = _HiddenRegisterTrace(grid, streams, attentions)
        trace.start = self._start
        return trace

    @override
    def paths(self, images: Tensor, path_configs: Sequence[PathConfig]) -> list[TowerOutput]:
        return super().paths(images, [_without_register(c, self._start) for c in path_configs])


# --- which neurons -------------------------------------------------------------------------------


def find_register_neurons(
    tower: Tower, images: Tensor, count: int = NUM_NEURONS
) -> tuple[Neuron, ...]:
    """Find the feed-forward neurons that write the outlier tokens of some images.

    They are those with the largest mean activation at the outliers that leave the first block after
    which there are any, among all blocks up to that one.

    Args:
        tower: The tower.
        images: Images (N, 3, H, W); the paper takes 1,000, and some dozens with outliers will do.
        count: Number of neurons.

    Raises:
        ValueError: If no token is an outlier, or `count` is below 1.
        TypeError: If a feed-forward layer does not end in a linear layer.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count!r}")
    batches = images.split(BATCH_SIZE)
    found: list[tuple[int, Tensor]] = []  # for each batch, the first block with outliers, and these
    first = len(tower.blocks) - 1
    for batch in batches:
        block, outliers = _first_outliers(tower, batch, first)
        if outliers.any():
            first = block
        found.append((block, outliers))
    sums: list[Tensor] = []  # of the activations at outliers, by block
    for batch, (block, outliers) in zip(batches, found, strict=True):
        if block == first and outliers.any():
            own = _sum_activations(tower, batch, block, outliers)
            sums = [a + b for a, b in zip(sums, own, strict=True)] if sums else own
    if not sums:
        raise ValueError(
            f"none of the {len(images)} images has outlier tokens, so that there is nothing to "
            "move to a register; use the classifier as it is, or pass images of the kind whose "
            "maps fail"
        )
    widths = [len(each) for each in sums]
    places = [(block, neuron) for block, width in enumerate(widths) for neuron in range(width)]
    largest = torch.cat(sums).topk(min(count, sum(widths))).indices
    return tuple(sorted(places[place] for place in largest.tolist()))


def _first_outliers(tower: Tower, images: Tensor, last: int) -> tuple[int, Tensor]:
    """Return the first block up to `last` after which there are outliers, and their mask (N, L).

    Without any, it is the last block, with an empty mask.
    """
    x, grid_spec = tower.embed(images.to(tower.dtype))
    for index in range(last + 1):
        x = tower.run_block(index, x, grid_spec)
        outliers = norm_outliers(x[:, tower.num_prefix_tokens :])
        if outliers.any():
            return index, outliers
    return last, outliers


def _sum_activations(tower: Tower, images: Tensor, last: int, outliers: Tensor) -> list[Tensor]:
    """Return the sums (hidden,) of each block's activations at outliers (N, L), up to `last`."""
    sums: list[Tensor] = []
    start = tower.num_prefix_tokens
    summing = _with_last_layers(tower, lambda _, layer: _SumInputs(layer, outliers, start, sums))
    x, grid_spec = summing.embed(images.to(tower.dtype))
    for index in range(last + 1):
        x = summing.run_block(index, x, grid_spec)
    return sums


# --- paths beside the register -------------------------------------------------------------------


@dataclass(frozen=True)
class _HideRegister:
    """Attention of a path over all tokens but one, which gets nothing."""

    attention: Callable[..., Tensor]
    start: int

    def __call__(self, inputs: AttentionInputs, *trace: Any) -> Tensor:
        q, k, v = (_drop(part, self.start, 2) for part in (inputs.q, inputs.k, inputs.v))
        hidden = AttentionInputs(q, k, v, _drop(inputs.x, self.start, 1), inputs.grid)
        return _insert_zeros(self.attention(hidden, *trace), self.start, 2)


def _without_register(config: PathConfig, start: int) -> PathConfig:
    plus = tuple(_without_register(path, start) for path in config.plus)
    return replace(config, attention=_HideRegister(config.attention, start), plus=plus)


class _HiddenRegisterTrace(PathTrace):
    """A trace whose attention is that among all tokens but the register."""

    start: int

    @override
    def add_attention(self, index: int, heads: AttentionInputs) -> None:
        super().add_attention(index, heads)
        if index in self.attentions:
            queries = _drop(self.attentions[index], self.start, 2)
            self.attentions[index] = _drop(queries, self.start, 3)


def _insert_zeros(x: Tensor, start: int, dim: int) -> Tensor:
    before, after = x.tensor_split([start], dim=dim)
    return torch.cat([before, torch.zeros_like(x.narrow(dim, 0, 1)), after], dim=dim)


def _drop(x: Tensor, start: int, dim: int) -> Tensor:
    """Drop the token at `start`, if tokens reach as far: pooled tokens may be fewer."""
    if x.shape[dim] <= start:
        return x
    before, _, after = x.tensor_split([start, start + 1], dim=dim)
    return torch.cat([before, after], dim=dim)


# --- other last layers of feed-forwards, beside the model ----------------------------------------


class _MoveNeurons(nn.Module):
    """A feed-forward's last layer that reads some neurons of patches at the register instead."""

    def __init__(self, linear: nn.Module, neurons: Sequence[int], start: int) -> None:
        super().__init__()
        self.linear = linear
        self.neurons = list(neurons)
        self.start = start

    def forward(self, activations: Tensor) -> Tensor:
        """Return the layer's output (N, L, D) for activations (N, L, hidden)."""
        start = self.start
        if activations.shape[1] <= start:  # pooled tokens only
            return self.linear(activations)
        chosen = activations[..., self.neurons]  # (N, L, neurons)
        prefix, patches = chosen[:, :start], chosen[:, start + 1 :]
        register = patches.amax(1, keepdim=True)
        moved = torch.cat([prefix, register, torch.zeros_like(patches)], dim=1)
        neurons = torch.tensor(self.neurons, device=activations.device)
        return self.linear(activations.index_copy(-1, neurons, moved))


class _SumInputs(nn.Module):
    """A feed-forward's last layer that appends the sum of its inputs at some patches to a list."""

    def __init__(self, linear: nn.Module, patches: Tensor, start: int, sums: list[Tensor]) -> None:
        super().__init__()
        self.linear = linear
        self.patches = patches
        self.start = start
        self.sums = sums

    def forward(self, activations: Tensor) -> Tensor:
        """Return the layer's output (N, L, D) for activations (N, L, hidden)."""
        self.sums.append(activations[:, self.start :][self.patches].float().sum(0))
        return self.linear(activations)


def _with_last_layers(tower: Tower, change: Callable[[int, nn.Module], nn.Module]) -> Tower:
    """Return a copy of a tower with other last layers of its feed-forwards.

    All other modules and all weights are the model's own, which is not changed.

    Args:
        tower: The tower.
        change: Maps a block's index and the layer to the layer to use.

    Raises:
        TypeError: If a feed-forward does not end in a linear layer.
    """
    visual = tower.visual
    names = {module: name for name, module in visual.named_modules()}
    for index, block in enumerate(tower.blocks):
        children = list(getattr(block, "mlp", nn.Module()).named_children())
        linears = [(name, child) for name, child in children if isinstance(child, nn.Linear)]
        if not linears or block not in names:
            raise TypeError(
                f"the feed-forward of block {index} of {tower.family} has no linear layer as its "
                "last, whose inputs are the neurons; use repair='auto' instead of registers"
            )
        name, linear = linears[-1]
        changed = change(index, linear)
        if changed is not linear:
            visual = _replaced(visual, [*names[block].split("."), "mlp", name], changed)
    return type(tower)(visual, tower.positions)


def _replaced(module: nn.Module, path: Sequence[str], part: nn.Module) -> nn.Module:
    """Return a copy of a module with another part at a path; all else is shared."""
    if not path:
        return part
    clone = shallow_copy(module)
    children_of(clone)[path[0]] = _replaced(module.get_submodule(path[0]), path[1:], part)
    return clone
