"""Models whose layers are wrapped or parametrised, as LoRA does it: seen as the model sees them."""

from __future__ import annotations

import copy

import open_clip
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from tests._helpers.tiny import random_images, relative_error, tiny_model

TEXTS = ["a dog", "a cat", "a tree"]


class Lora(nn.Module):
    """Around a linear layer, with its `weight` and `bias`, as adapters' libraries do."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.low = nn.Parameter(torch.randn(2, base.in_features))
        self.high = nn.Parameter(torch.randn(base.out_features, 2))
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.low.T @ self.high.T


class LowRank(nn.Module):
    """The same as a parametrisation of a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.randn(2, weight.shape[1]))
        self.high = nn.Parameter(torch.randn(weight.shape[0], 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.high @ self.low


def wrap_feed_forward(block: nn.Module) -> None:
    block.mlp.c_fc = Lora(block.mlp.c_fc)


def wrap_out_projection(block: nn.Module) -> None:
    """Which `nn.MultiheadAttention` never calls: it has no effect on the model."""
    block.attn.out_proj = Lora(block.attn.out_proj)


def parametrise_attention(block: nn.Module) -> None:
    parametrize.register_parametrization(
        block.attn, "in_proj_weight", LowRank(block.attn.in_proj_weight)
    )
    parametrize.register_parametrization(
        block.attn.out_proj, "weight", LowRank(block.attn.out_proj.weight)
    )


@pytest.mark.parametrize(
    ("wrap", "matters"),
    [(wrap_feed_forward, True), (wrap_out_projection, False), (parametrise_attention, True)],
)
def test_as_the_model_itself(wrap, matters: bool) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    plain = tiny_model("vit")
    model = copy.deepcopy(plain)
    for tower in (model.visual.transformer, model.transformer):
        for block in tower.resblocks:
            wrap(block)
    model.eval()
    clip, before = (ZeroShotClassifier(m, TEXTS, templates=["{}"]) for m in (model, plain))
    images = random_images(clip, 2)
    with torch.no_grad():
        tokens = open_clip.tokenize(TEXTS, context_length=model.context_length)
        features = model.encode_text(tokens, normalize=True)
        logits = model.logit_scale.exp() * model.encode_image(images, True) @ features.T
        assert relative_error(clip.text_features(), features) < 1e-5
        assert relative_error(clip(images), logits) < 1e-5
        # Surgery at num_blocks 0 is CLIP's own tokens; deeper it follows the weights in force.
        changed = relative_error(
            LayerCLIPSurgery(clip, feature_surgery=None).attribute_all(images),
            LayerCLIPSurgery(before, feature_surgery=None).attribute_all(images),
        )
    assert (changed > 1e-2) == matters


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_lora_on_the_first_convolution(family: str) -> None:
    """Peft's wrapper has a weight, but no `kernel_size`."""
    plain = tiny_model(family)
    model = copy.deepcopy(plain)
    settings = peft.LoraConfig(r=2, target_modules=["conv1"], init_lora_weights=False)
    peft.inject_adapter_in_model(settings, model)
    clip = ZeroShotClassifier(model.eval(), TEXTS, templates=())
    assert type(model.visual.conv1).__module__.startswith("peft")
    assert clip.tower.patch_size == ZeroShotClassifier(plain, TEXTS, templates=()).tower.patch_size
    images = random_images(clip, 2)
    with torch.no_grad():
        assert relative_error(clip.image_features(images), model.encode_image(images, True)) < 1e-5
        assert relative_error(plain.encode_image(images), model.encode_image(images)) > 1e-2
    assert LayerCLIPSurgery(clip).attribute_all(images).shape[-2:] == clip.tower.grid(
        *clip.native_size
    )


def test_attention_that_is_wrapped_says_what_to_do() -> None:
    model = copy.deepcopy(tiny_model("vit"))
    model.visual.transformer.resblocks[1].attn = nn.Sequential(
        model.visual.transformer.resblocks[1].attn
    )
    with pytest.raises(TypeError, match=r"attends by torch\.nn\..*Sequential.*merge_and_unload"):
        ZeroShotClassifier(model.eval(), TEXTS)
