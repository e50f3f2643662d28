"""Image towers, and the forward pass that all dual-path methods share.

An adapter computes outside of the model and never changes it: it holds the tower's modules, calls
them and reads their parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_clip_surgery._utils.profiling import add_pass
from captum_clip_surgery.models._blocks import AttentionInputs, Grid
from captum_clip_surgery.models._internals import has_hooks, warn_of_hooks
from captum_clip_surgery.models.image._contract import TowerFamily
from captum_clip_surgery.models.image._data import (
    BlockTrace,
    GridSpec,
    PathConfig,
    PathTrace,
    TowerOutput,
    nearest_multiple,
)


class Tower(TowerFamily):
    """Adapter for one family of image towers.

    Args:
        visual: The model's image tower, of a class that `check_supported` accepts.
        positions: How positional embeddings are resized: "bilinear" as in CLIP Surgery, or
            "bicubic" with antialiasing as in open_clip.

    Raises:
        ValueError: If `positions` is neither of them.
    """

    def grid(self, height: int, width: int) -> Grid:
        """Return the rows and columns of patches of an image.

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.

        Raises:
            ValueError: If the patch size does not divide a side.
        """
        rows, columns = self.patch_size
        if height % rows or width % columns or not height or not width:
            raise ValueError(
                f"images of {height} x {width} pixels (height x width) do not divide into patches "
                f"of {rows} x {columns}; choose a multiple as their size, such as "
                f"{nearest_multiple(height, rows)} x {nearest_multiple(width, columns)}"
            )
        return height // rows, width // columns

    def run_block(self, index: int, x: Tensor, grid_spec: GridSpec) -> Tensor:
        """Return the stream (N, L, D) after block `index`, by calling the model's own module."""
        output: Tensor = self.blocks[index](x)
        return output

    def encode(self, images: Tensor, taps: Mapping[int, nn.Module] | None = None) -> Tensor:
        """Return the model's own embedding (N, C) of images, at any size the patches divide.

        Args:
            images: Images (N, 3, H, W).
            taps: Modules by index of a block; the patch tokens entering that block pass through
                the module as (N, D, h, w).
        """
        self.grid(*images.shape[-2:])
        self._warn_of_hooks(len(self.blocks))
        add_pass(images)
        x, grid_spec = self.embed(images)
        for index in range(len(self.blocks)):
            if taps and index in taps:
                x = self._tap(taps[index], x, grid_spec.grid)
            x = self.run_block(index, x, grid_spec)
        return self.pool(x)

    def describe(self) -> str:
        """Return family, pooling, blocks, size and patches in one line."""
        (height, width), (rows, columns) = self.native_size, self.patch_size
        grid, count = self.grid(height, width), len(self.blocks)
        return (
            f"{self.family}, pooled by {self.pooling}, {count} block{'s' * (count > 1)}, "
            f"{height} x {width} pixels in {grid[0]} x {grid[1]} patches of {rows} x {columns}"
        )

    def enter(
        self, images: Tensor, index: int, trace: PathTrace | None = None
    ) -> tuple[Tensor, GridSpec]:
        """Return the tokens (N, L, D) entering block `index`, and their positions.

        Args:
            images: Images (N, 3, H, W).
            index: Index of the block; the number of blocks stands for the end of the last.
            trace: Keeps the streams that enter earlier blocks, of those that it was made for.

        Raises:
            TypeError: If the number of tokens is not that of prefix tokens and patches.
            ValueError: If the patch size does not divide the images.
        """
        self.grid(*images.shape[-2:])
        self._warn_of_hooks(index)
        add_pass(images)
        x, grid_spec = self.embed(images)
        rows, columns = grid_spec.grid
        if x.shape[1] != self.num_prefix_tokens + rows * columns:
            raise TypeError(
                f"the image tower {type(self.visual).__name__} makes {x.shape[1]} tokens of an "
                f"image, expected {self.num_prefix_tokens} and {rows} x {columns} patches; remove "
                "the hook or part that adds or drops tokens, or register a tower for it"
            )
        for previous in range(index):
            if trace is not None:
                trace.add_stream(previous, x)
            x = self.run_block(previous, x, grid_spec)
        return x, grid_spec

    def iter_blocks_with_attention(
        self, x: Tensor, grid_spec: GridSpec, first: int, pooled_only: bool = False
    ) -> Iterator[BlockTrace]:
        """Run the blocks from `first` on, and yield each with its attention exposed.

        If gradients are enabled, results can be differentiated with respect to the probabilities.

        Args:
            x: The stream (N, L, D) that enters block `first`.
            grid_spec: The positions of the tokens.
            first: Index of the first block to run.
            pooled_only: Whether the last block computes only the P leading tokens that the pooled
                embedding needs: probabilities (N, heads, P, L) and stream (N, P, D).
        """
        last = len(self.blocks) - 1
        for index in range(first, last + 1):
            count = self.num_pooled_tokens if pooled_only and index == last else None
            heads = self.attention_inputs(index, x, grid_spec, count)
            if count is not None:
                heads, x = heads.first_queries(count), x[:, :count]
            probabilities = heads.probabilities()
            if torch.is_grad_enabled() and not probabilities.requires_grad:
                probabilities.requires_grad_()
            x = self._add_attention(index, x, probabilities @ heads.v, heads)
            yield BlockTrace(heads, probabilities, x)

    def dual_path(self, images: Tensor, path_config: PathConfig) -> TowerOutput:
        """Run one second path parallel to the model's own one.

        Args:
            images: Images (N, 3, H, W).
            path_config: The second path.

        Returns:
            The second path's patches and the model's own pooled embedding.
        """
        (output,) = self.paths(images, [path_config])
        return output

    def paths(self, images: Tensor, path_configs: Sequence[PathConfig]) -> list[TowerOutput]:
        """Run any number of second paths parallel to the model's own one, in one forward pass.

        Args:
            images: Images (N, 3, H, W).
            path_configs: The second paths.

        Returns:
            For each path, its patches and the model's own pooled embedding.

        Raises:
            ValueError: If a path asks for the trace of a block that the tower does not have, or
                the attention of the last one.
        """
        spans = [span for config in path_configs for span in config.spans()]
        trace, first = self._trace_for(images, spans)
        x, grid_spec = self.enter(images, first, trace)
        beside = {i: span for i, span in enumerate(spans) if span.before is None}
        tokens, x = self._run_paths(x, grid_spec, first, beside, trace)
        for source in dict.fromkeys(span.source for span in spans):
            if source is not None:
                num_blocks, before = source
                start = len(self.blocks) - num_blocks
                changed = before(trace.streams[start], trace)
                sharing = {i: span for i, span in enumerate(spans) if span.source == source}
                tokens |= self._run_paths(changed, grid_spec, start, sharing, trace, own=False)[0]
        pooled, prefix = self.pool(x), self.num_prefix_tokens
        patches = iter([tokens.get(i, x)[:, prefix:] for i in range(len(spans))])
        return [
            TowerOutput(self.project(_combine(config, patches, trace)), pooled, grid_spec.grid)
            for config in path_configs
        ]

    def bypassed(self, first: int = 0) -> dict[str, nn.Module]:
        """Return the modules that are not called if blocks from `first` on are rebuilt, by name."""
        modules: dict[str, Any] = dict(self.containers)
        for index in range(first, len(self.blocks)):
            block = self.blocks[index]
            attention = getattr(block, "attn", None)
            modules[f"block {index}"] = block
            modules[f"the attention of block {index}"] = attention
            # Not part of the result, but where attention maps are usually recorded.
            modules[f"the attention dropout of block {index}"] = getattr(
                attention, "attn_drop", None
            )
        return {name: part for name, part in modules.items() if isinstance(part, nn.Module)}

    def _warn_of_hooks(self, first: int) -> None:
        silent = [name for name, part in self.bypassed(first).items() if has_hooks([part])]
        warn_of_hooks(silent, stacklevel=4)

    def _tap(self, module: nn.Module, x: Tensor, grid: Grid) -> Tensor:
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        output = module(patches.mT.unflatten(-1, grid).contiguous())
        return torch.cat([prefix, output.flatten(-2).mT], dim=1)

    def _add_attention(
        self, index: int, x: Tensor, values: Tensor, heads: AttentionInputs
    ) -> Tensor:
        update = self.merge(index, values, heads.x)
        return self.feed_forward(index, x + update if self.has_residual else update)

    def _trace_for(self, images: Tensor, spans: Sequence[PathConfig]) -> tuple[PathTrace, int]:
        """Return an empty trace for paths, and the first block that runs with its parts exposed."""
        count = len(self.blocks)
        streams = {index for span in spans for index in span.streams}
        attentions = {index for span in spans for index in span.attentions}
        for name, indices, limit in (
            ("streams", streams, count),
            ("attentions", attentions, count - 1),
        ):
            if wrong := [index for index in sorted(indices) if not 0 <= index < limit]:
                raise ValueError(
                    f"the path's {name}= names block {wrong[0]}, and of the tower's {count} blocks "
                    f"the first {limit} can be traced (indices below {limit})"
                )
        streams |= {count - span.num_blocks for span in spans if span.before is not None}
        trace = self._make_trace(self.grid(*images.shape[-2:]), streams, attentions)
        return trace, min([*(count - span.num_blocks for span in spans), *attentions])

    def _make_trace(
        self, grid: Grid, streams: Collection[int], attentions: Collection[int]
    ) -> PathTrace:
        return PathTrace(grid, streams, attentions)

    def _run_paths(
        self,
        x: Tensor,
        grid_spec: GridSpec,
        first: int,
        spans: Mapping[int, PathConfig],
        trace: PathTrace,
        own: bool = True,
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Run the blocks from `first` on, and paths parallel to them.

        Args:
            x: The stream (N, L, D) that enters block `first`.
            grid_spec: The positions of the tokens.
            first: Index of the first block to run.
            spans: Paths by number.
            trace: What the paths may read; the model's own pass adds to it.
            own: Whether this is the model's own pass, whose last block gives the pooled tokens.

        Returns:
            By number of a path that spans any blocks, its tokens (N, L, D), and the stream after
            the last block: all tokens if a path of no blocks needs them, else the pooled ones.
        """
        last = len(self.blocks) - 1
        all_tokens = not own or any(span.num_blocks == 0 for span in spans.values())
        num_pooled = None if all_tokens else self.num_pooled_tokens
        tokens: dict[int, Tensor] = {}
        for index in range(first, last + 1):
            active = {i: span for i, span in spans.items() if last + 1 - span.num_blocks <= index}
            count = num_pooled if index == last else None
            values_only = all(span.values_only for span in active.values())
            heads = self.attention_inputs(index, x, grid_spec, count if values_only else None)
            if own:
                trace.add_stream(index, x)
                trace.add_attention(index, heads)
            for i, span in active.items():
                tokens[i] = self._path_step(index, tokens.get(i, x), heads, span, trace)
            if not own and index == last:
                break  # nothing reads what the model's own attention would make of it
            if count is not None:
                heads, x = heads.first_queries(count), x[:, :count]
            x = self._add_attention(index, x, heads.attend(), heads)
        return tokens, x

    def _path_step(
        self,
        index: int,
        stream: Tensor,
        heads: AttentionInputs,
        config: PathConfig,
        trace: PathTrace,
    ) -> Tensor:
        attended = config.attention(heads, trace) if config.reads_trace else config.attention(heads)
        update = self.merge(index, attended, heads.x)
        if config.residual and self.has_residual:
            update = stream + update
        return self.feed_forward(index, update) if config.mlp else update


def _combine(config: PathConfig, patches: Iterator[Tensor], trace: PathTrace) -> Tensor:
    """Return a path's patch tokens with those of the paths added to it, in the order of `spans`."""
    tokens = next(patches)
    for path in config.plus:
        tokens = tokens + _combine(path, patches, trace)
    return tokens if config.after is None else config.after(tokens, trace)
