"""SC-CLIP, SFP, ResCLIP and CLIPtrase against plain loops over the formulas, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor

from captum_clip_surgery import (
    CLIPtrase,
    LayerResCLIP,
    LayerSCCLIP,
    LayerSFP,
    ZeroShotClassifier,
)
from captum_clip_surgery.attr._clip_surgery import vv_attention
from captum_clip_surgery.attr._dense import (
    NACLIP_PATH,
)
from captum_clip_surgery.attr._token_steps import (
    Aggregate,
    Likeness,
    LocalOutliers,
    ReplaceOutliers,
)
from captum_clip_surgery.models.image import AttentionInputs, PathConfig, Tower
from tests._helpers.tiny import random_images, relative_error, tiny_model

TOLERANCE = 1e-10
SIZE = (48, 40)  # not native, not square: 6 x 5 patches


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    """Six blocks, so that the middle ones differ, with peaked attention, in double precision."""
    torch.manual_seed(0)
    vision = dict(image_size=32, layers=6, width=32, head_width=8, patch_size=8)
    text = dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=2)
    model = open_clip.model.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).double().eval()
    with torch.no_grad():
        for block in model.visual.transformer.resblocks:
            block.attn.in_proj_weight[:64] *= 8
    return ZeroShotClassifier(model, ["a dog", "a cat"], templates=["{}."])


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, *SIZE, generator=generator, dtype=torch.double)


class Plain:
    """One image's pass, written out token by token."""

    def __init__(self, tower: Tower, image: Tensor) -> None:
        self.tower = tower
        self.count = len(tower.blocks)
        self.rows, self.columns = tower.grid(*image.shape[-2:])
        self.streams = []
        self.heads: list[AttentionInputs] = []
        for index in range(self.count):
            x, grid_spec = tower.enter(image[None], index)
            self.grid_spec = grid_spec
            self.streams.append(x)
            self.heads.append(tower.attention_inputs(index, x, grid_spec))

    def neighbors_mean(self, tokens: Tensor, outliers: set[int]) -> Tensor:
        while outliers:
            result, replaced = tokens.clone(), set()
            for patch in outliers:
                row, column = divmod(patch, self.columns)
                sound = [
                    r * self.columns + c
                    for r in range(max(0, row - 1), min(self.rows, row + 2))
                    for c in range(max(0, column - 1), min(self.columns, column + 2))
                    if r * self.columns + c not in outliers
                ]
                if sound:
                    result[0, 1 + patch] = sum(tokens[0, 1 + s] for s in sound) / len(sound)
                    replaced.add(patch)
            tokens, outliers = result, outliers - replaced
        return tokens

    def cosines(self, index: int, outliers: set[int]) -> Tensor:
        patches = self.neighbors_mean(self.streams[index], outliers)[0, 1:]
        n = len(patches)
        return torch.stack(
            [
                torch.stack(
                    [
                        patches[i] @ patches[j] / (patches[i].norm() * patches[j].norm())
                        for j in range(n)
                    ]
                )
                for i in range(n)
            ]
        )

    def aggregated(self, patches: Tensor, cosines: Tensor) -> Tensor:
        rows = []
        for weights in cosines:
            kept = [float(w) if w >= 0.4 else 0.0 for w in weights]
            rows.append(sum(w * p for w, p in zip(kept, patches, strict=True)) / sum(kept))
        return torch.stack(rows)

    def last_block(self, x: Tensor, weigh: Callable[[AttentionInputs, int], Tensor]) -> Tensor:
        """The last block's attention alone, with weights (L, L) for each head."""
        heads = self.tower.attention_inputs(self.count - 1, x, self.grid_spec)
        values = [weigh(heads, h) @ heads.v[0, h] for h in range(heads.v.shape[1])]
        return self.tower.merge(self.count - 1, torch.stack(values)[None], heads.x)[0]

    def finish(self, patches: Tensor) -> Tensor:
        return self.tower.project(patches[None])[0]


def softmax(z: Tensor) -> Tensor:
    exponentials = z.exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def self_attention(z: Tensor) -> Tensor:
    return softmax(z @ z.T / math.sqrt(z.shape[-1]))


def likeness_weights(cosines: Tensor) -> Tensor:
    centered = cosines - cosines.mean()
    exponentials = torch.where(centered < 0, 0.0, (3 * centered).exp())
    weights = torch.zeros(len(cosines) + 1, len(cosines) + 1, dtype=cosines.dtype)
    weights[1:, 1:] = exponentials / exponentials.sum(-1, keepdim=True)
    return weights


def calibrated(cosines: Tensor) -> Callable[[AttentionInputs, int], Tensor]:
    def weigh(heads: AttentionInputs, h: int) -> Tensor:
        both = self_attention(heads.q[0, h]) + self_attention(heads.k[0, h])
        return (both + likeness_weights(cosines)) / 3

    return weigh


def sc_clip(plain: Plain) -> Tensor:
    patches = plain.streams[5][0, 1:]
    finder = LocalOutlierFactor(n_neighbors=min(30, len(patches) - 1)).fit(patches.numpy())
    count = math.floor(0.05 * len(patches))
    assert count
    outliers = {int(i) for i in np.argsort(finder.negative_outlier_factor_)[:count]}
    x = plain.neighbors_mean(plain.streams[5], outliers)
    cosines = plain.cosines(4, outliers)  # block 9 of 12
    x = torch.cat([x[0, :1], plain.aggregated(x[0, 1:], cosines)])[None]
    main = plain.last_block(x, calibrated(cosines))
    summed = sum(plain.streams[2:6])  # blocks 4 to 10 of 12
    branch = plain.last_block(summed, lambda heads, h: likeness_weights(cosines))
    return plain.finish(plain.aggregated((main + branch)[1:], plain.cosines(2, outliers)))


def sfp(plain: Plain) -> Tensor:
    heads = plain.heads[4]
    attention = torch.stack(
        [
            softmax(heads.q[0, h] @ heads.k[0, h].T / math.sqrt(heads.q.shape[-1]))
            for h in range(heads.q.shape[1])
        ]
    ).mean(0)
    n = len(attention) - 1
    outliers = {i for i in range(n) if 1.5 * attention[0, 1 + i] > attention[1 + i, 1 + i]}
    assert 0 < len(outliers) < n
    x = plain.neighbors_mean(plain.streams[5], outliers)
    cosines = plain.cosines(4, outliers)
    x = torch.cat([x[0, :1], plain.aggregated(x[0, 1:], cosines)])[None]
    patches = plain.last_block(x, calibrated(cosines))[1:]
    return plain.finish(patches + 0.3 * plain.streams[5][0, 0])


def res_clip(plain: Plain) -> Tensor:
    def weigh(heads: AttentionInputs, h: int) -> Tensor:
        middle = [plain.heads[index] for index in (2, 3)]  # blocks 6 to 9 of 12: 3 and 4 of 6
        earlier = [softmax(m.q[0, h] @ m.k[0, h].T / math.sqrt(m.q.shape[-1])) for m in middle]
        return 0.7 * self_attention(heads.q[0, h]) + 0.3 * sum(earlier) / len(earlier)

    return plain.finish(plain.last_block(plain.streams[5], weigh)[1:])


def cliptrase(plain: Plain) -> Tensor:
    def weigh(heads: AttentionInputs, h: int) -> Tensor:
        return sum(self_attention(z[0, h]) for z in (heads.q, heads.k, heads.v))  # type: ignore[return-value]

    x = plain.streams[5][0] + plain.last_block(plain.streams[5], weigh)
    return plain.finish(plain.tower.feed_forward(5, x[None])[0, 1:])


CASES: dict[str, tuple[Callable[[ZeroShotClassifier], PathConfig], Callable[[Plain], Tensor]]] = {
    "SC-CLIP": (lambda clip: LayerSCCLIP(clip).path_config, sc_clip),
    "SFP": (lambda clip: LayerSFP(clip).path_config, sfp),
    "ResCLIP": (lambda clip: LayerResCLIP(clip, "ClearCLIP", 0.3).path_config, res_clip),
    "CLIPtrase": (lambda clip: CLIPtrase(clip).path_config, cliptrase),
}


def test_as_restated(clip: ZeroShotClassifier, images: Tensor) -> None:
    configs = [configure(clip) for configure, _ in CASES.values()]
    with torch.no_grad():
        found = clip.tower.paths(images, configs)
        restated = [Plain(clip.tower, image) for image in images]
        for (_, expect), config, output in zip(CASES.values(), configs, found, strict=True):
            expected = torch.stack([expect(plain) for plain in restated])
            assert relative_error(output.patches, expected) < TOLERANCE
            assert relative_error(output.pooled, clip.tower.encode(images)) < TOLERANCE
            # Alone, and image by image, as together.
            alone = [clip.tower.dual_path(image[None], config).patches for image in images]
            assert relative_error(torch.cat(alone), expected) < TOLERANCE


def test_limits_in_which_nothing_changes(clip: ZeroShotClassifier, images: Tensor) -> None:
    with torch.no_grad():
        mixed = LayerResCLIP(clip, weight=0).path_config
        assert mixed != NACLIP_PATH
        expected, found = clip.tower.paths(images, [NACLIP_PATH, mixed])
        assert torch.equal(found.patches, expected.patches)

        # No outliers, and patches that resemble themselves alone.
        plain = PathConfig(2, vv_attention, streams=(4,))
        likeness = Likeness(4)
        for config in (
            replace(plain, before=ReplaceOutliers(LocalOutliers(4, share=0.0))),
            replace(plain, after=Aggregate(likeness, threshold=1 - 1e-9)),
        ):
            expected, found = clip.tower.paths(images, [plain, config])
            assert relative_error(found.patches, expected.patches) < TOLERANCE


def test_equal_patches_attend_to_themselves(clip: ZeroShotClassifier) -> None:
    """A flat image with flat positions: rounding must not mask a patch for itself."""
    model = tiny_model("vit")
    with torch.no_grad():
        model.visual.positional_embedding.zero_()
    flat = ZeroShotClassifier(model, ["a dog", "a cat"], templates=["{}."])
    for size in (flat.native_size, flat.tower.patch_size):
        images = torch.ones(1, 3, *size)
        for method in (LayerSCCLIP(flat), LayerSFP(flat)):
            maps = method.attribute_all(images)
            assert maps.isfinite().all()
            assert maps.std((-2, -1), correction=0).max() < 1e-4


def test_gradients_reach_images_through_every_step() -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=["{}."])
    images = random_images(clip).requires_grad_()
    for method in (LayerSCCLIP(clip), LayerSFP(clip), LayerResCLIP(clip)):
        (gradient,) = torch.autograd.grad(method.attribute_all(images).sum(), images)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_towers_on_which_they_are_not_defined() -> None:
    resnet, siglip = (
        ZeroShotClassifier(tiny_model(kind), ["a dog"], templates=["{}."])
        for kind in ("resnet", "siglip")
    )
    for method in (LayerSCCLIP, LayerSFP, LayerResCLIP):
        with pytest.raises(
            TypeError, match=r"not defined on .*ResNet with 1 block: .*takes 3 blocks"
        ):
            method(resnet)
    with pytest.raises(TypeError, match=r"pooled by attention: .*use LayerSCCLIP"):
        LayerSFP(siglip)
    with pytest.raises(ValueError, match="baseline must be one of SCLIP, ClearCLIP, NACLIP"):
        LayerResCLIP(siglip, "CLIP")
    for weight in (-0.1, 1.5, float("nan"), True, "half"):
        with pytest.raises(ValueError, match="weight must be a number from 0 to 1"):
            LayerResCLIP(siglip, weight=weight)  # type: ignore[arg-type]
