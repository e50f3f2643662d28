"""The embedded model with outlier tokens made by the mechanism that trained ones are said to have.

Darcet et al. ("Vision Transformers Need Registers", ICLR 2024) find tokens of extreme norm at
patches without information, to which other tokens attend; Jiang et al. ("Vision Transformers Don't
Need Trained Registers", NeurIPS 2025) that a few feed-forward neurons write them. The edit follows:

1. In one block, the feed-forward neurons that do least are replaced by neurons that fire on flat
   patches of the background and write along one direction, which the read-out hardly sees and later
   blocks no longer read.
2. Later blocks turn the keys of that direction towards the patches' queries and away from the
   class token's.
3. In every head of those blocks, a dimension that the output projection ignores holds one constant
   for all values, and a larger one along that direction: v-v attention, too, goes to these tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.demo import Scene, Scenes, nouns
from captum_clip_surgery.models.image import AttentionInputs

#: The block whose neurons write, one before those that surgery spans by default.
BLOCK = 1
#: Shares of patches on which pairs of neurons fire. The second of a pair stops what the first
#: writes from growing, so that there are two kinds of tokens and few between them.
FIRING = (0.12, 0.11)
#: Norm that they write together, 14 times that of a token.
NORM = 300.0
#: Slope of the neurons, and the activation at which the first of a pair is stopped.
SLOPE, STEP = 2000.0, 10.0
#: Logits by which patches prefer outliers to the mean of all tokens, and by which the class token
#: avoids them.
PREFERENCE, AVOIDANCE = 2.0, 8.0
#: The constant of all values, and the logit by which v-v attention prefers outliers to the token.
CONSTANT, VALUE_PREFERENCE = 2.0, 8.0
HEADS, WIDTH = 4, 128
HEAD = WIDTH // HEADS


def with_outliers(
    clip: ZeroShotClassifier | None = None, firing: Sequence[float] = FIRING
) -> ZeroShotClassifier:
    """Edit a classifier of all nouns in place and return it; by default, the embedded model's."""
    clip = ZeroShotClassifier.demo(nouns()) if clip is None else clip
    scenes = [*Scenes("test", 64, clip.native_size[0], objects=[1, 2])]
    visual: Any = clip.model.visual
    with torch.no_grad():
        images = clip.preprocess([scene.image for scene in scenes])
        heads, normalized = _inputs_of_blocks(clip, images)
        direction = _ignored_direction(visual)
        blocks = visual.transformer.resblocks
        _write(blocks[BLOCK].mlp, normalized, _flat_background(images, scenes), direction, firing)
        for block, inputs in zip(blocks[BLOCK + 1 :], heads[BLOCK + 1 :], strict=True):
            _forget(block, direction)
            read = direction / block.ln_1.weight / math.sqrt(WIDTH)  # 1 at an outlier
            _turn_keys(block, inputs, read)
            _turn_values(block, inputs, read)
    return clip


def scene_maps(clip: ZeroShotClassifier, make: Any, scenes: Iterable[Scene]) -> list[Tensor]:
    """Return a method's maps (K, h*w) of each scene's nouns."""
    maps = []
    for scene in scenes:
        method = make(clip.with_texts(scene.nouns))
        with torch.no_grad():
            maps.append(method.attribute_all(clip.preprocess(scene.image))[0].flatten(1))
    return maps


def mean_correlation(maps: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Return the mean over nouns of the correlation of two maps over patches."""
    centered = (
        [F.normalize(each - each.mean(-1, keepdim=True), dim=-1) for each in both]
        for both in zip(maps, references, strict=True)
    )
    return float(torch.cat([(a * b).sum(-1) for a, b in centered]).mean())


def _inputs_of_blocks(
    clip: ZeroShotClassifier, images: Tensor
) -> tuple[list[AttentionInputs], Tensor]:
    """Return what each block's attention and `BLOCK`'s feed-forward read."""
    tower: Any = clip.tower
    x, spec = tower.embed(images)
    inputs = []
    for index, block in enumerate(tower.blocks):
        inputs.append(tower.attention_inputs(index, x, spec))
        x = x + tower.merge(index, inputs[-1].attend(), inputs[-1].x)
        if index == BLOCK:
            normalized = block.ln_2(x)
        x = tower.feed_forward(index, x)
    return inputs, normalized


def _ignored_direction(visual: Any) -> Tensor:
    """Return the unit direction of mean 0 that the read-out maps to nearly nothing."""
    readout = visual.ln_post.weight[:, None] * visual.proj
    direction = torch.linalg.svd(readout - readout.mean(0)).U[:, -2]  # the last is constant
    return F.normalize(direction - direction.mean(), dim=0)


def _flat_background(images: Tensor, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Return masks (N, h*w) of each image's flattest tenth of patches without an object, and of
    patches with one."""
    deviation = images.unfold(2, 16, 16).unfold(3, 16, 16).flatten(-2).std(-1).mean(1).flatten(1)
    masks = torch.stack([torch.from_numpy(scene.masks.any(0)) for scene in scenes])
    objects = F.adaptive_max_pool2d(masks[:, None].float(), (14, 14)).flatten(1) > 0
    deviation = deviation.masked_fill(objects, math.inf)
    return deviation <= deviation.quantile(0.1, dim=1, keepdim=True), objects


def _write(
    mlp: Any,
    x: Tensor,
    masks: tuple[Tensor, Tensor],
    direction: Tensor,
    firing: Sequence[float],
) -> None:
    """Replace the neurons that do least by neurons that fire on flat background."""
    flat, objects = masks
    # Ridge regression on whether a token is a flat patch; objects and the class token weigh more.
    target = F.pad(flat, (1, 0)).flatten().float()
    weight = F.pad(1 + 2 * objects.float(), (1, 0), value=10.0).flatten()
    tokens = x.flatten(0, 1)
    mean = (weight[:, None] * tokens).sum(0) / weight.sum()
    centered = tokens - mean
    covariance = centered.T @ (weight[:, None] * centered)
    ridge = 1e-3 * len(tokens) * torch.eye(WIDTH)
    probe = torch.linalg.solve(covariance + ridge, centered.T @ (weight * (target - target.mean())))
    logits = (x[:, 1:] - mean) @ probe
    effect = mlp.gelu(mlp.c_fc(x)).flatten(0, 1).std(0) * mlp.c_proj.weight.norm(dim=0)
    least = effect.argsort()[: 2 * len(firing)].view(-1, 2).tolist()
    for share, pair in zip(firing, least, strict=True):
        threshold = logits.quantile(1 - share)
        scale = SLOPE / (logits[logits > threshold] - threshold).mean()
        for neuron, start, sign in zip(pair, (0.0, STEP), (1, -1), strict=True):
            mlp.c_fc.weight[neuron] = scale * probe
            mlp.c_fc.bias[neuron] = -scale * (mean @ probe + threshold) - start
            mlp.c_proj.weight[:, neuron] = sign * NORM / len(firing) / STEP * direction


def _forget(block: Any, direction: Tensor) -> None:
    """Make what reads the stream blind to a direction."""
    for norm, weight in (
        (block.ln_1, block.attn.in_proj_weight),
        (block.ln_2, block.mlp.c_fc.weight),
    ):
        weight -= torch.outer(weight @ (norm.weight * direction), direction / norm.weight)


def _turn_keys(block: Any, inputs: AttentionInputs, read: Tensor) -> None:
    weight, bias = (part.chunk(3)[1] for part in _projections(block))
    level = (inputs.q @ inputs.k.mT / math.sqrt(HEAD)).logsumexp(-1) - math.log(inputs.k.shape[2])
    wanted = [level[:, :, 1:].mean((0, 2)) + PREFERENCE, level[:, :, 0].mean(0) - AVOIDANCE]
    queries = torch.stack([inputs.q[:, :, 1:].mean((0, 2)), inputs.q[:, :, 0].mean(0)], dim=1)
    missing = torch.stack(wanted, -1)[..., None] * math.sqrt(HEAD) - queries @ bias.view(
        HEADS, HEAD, 1
    )
    _respond(weight, bias, (torch.linalg.pinv(queries) @ missing).flatten(), block, read)


def _turn_values(block: Any, inputs: AttentionInputs, read: Tensor) -> None:
    weight, bias = (part.chunk(3)[2] for part in _projections(block))
    own = inputs.v.square().sum(-1).mean((0, 2))  # (heads,)
    for head in range(HEADS):
        rows = slice(HEAD * head, HEAD * (head + 1))
        output = block.attn.out_proj.weight[:, rows]
        spare = torch.linalg.svd(output).Vh[-1]
        output -= torch.outer(output @ spare, spare)
        weight[rows] -= torch.outer(spare, spare @ weight[rows])
        bias[rows] += (CONSTANT - spare @ bias[rows]) * spare
        response = (own[head] + VALUE_PREFERENCE * math.sqrt(HEAD)) / CONSTANT
        _respond(weight[rows], bias[rows], response * spare, block, read)


def _projections(block: Any) -> tuple[Tensor, Tensor]:
    return block.attn.in_proj_weight, block.attn.in_proj_bias


def _respond(weight: Tensor, bias: Tensor, response: Tensor, block: Any, read: Tensor) -> None:
    """Add a response to outliers, and to nothing else, to rows of a projection."""
    weight += torch.outer(response, read)
    bias -= (block.ln_1.bias @ read) * response
