"""Test-time registers: on the model that writes outliers, and that nothing of a model changes."""

from __future__ import annotations

import copy
from unittest.mock import patch

import pytest
import torch
from open_clip.model import CLIP

from captum_clip_surgery import LayerCLIPSurgery, LayerLeGrad, ZeroShotClassifier
from captum_clip_surgery._utils.outliers import norm_outliers
from captum_clip_surgery.attr._engine import attribute_many, forward_pass
from captum_clip_surgery.demo import Scenes, nouns
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.outliers import BLOCK, with_outliers
from tests._helpers.tiny import TOWERS, random_images, tiny_model, with_preprocessing


@pytest.fixture(scope="module")
def edited() -> ZeroShotClassifier:
    return with_outliers()


@pytest.fixture(scope="module")
def scenes(edited) -> torch.Tensor:
    return edited.preprocess([scene.image for scene in Scenes("test", 8, objects=[2])])


@pytest.mark.slow
def test_neurons_that_write_outliers_are_found(edited, scenes):
    clip = edited.with_registers(scenes, count=4)
    fires = edited.model.visual.transformer.resblocks[BLOCK].mlp.c_fc.weight.norm(dim=1)
    assert clip.registers == tuple((BLOCK, n) for n in fires.topk(4).indices.sort().values.tolist())
    tokens = []
    for tower in (edited.tower, clip.tower):
        with torch.no_grad():
            x, spec = tower.embed(scenes)
            for index in range(4):
                x = tower.run_block(index, x, spec)
        tokens.append(x)
    assert len(edited.with_registers(scenes, count=1).registers) == 1
    assert norm_outliers(tokens[0][:, 1:]).any()
    assert not norm_outliers(tokens[1][:, 2:]).any()
    register, largest = tokens[1][:, 1].norm(dim=-1), tokens[0][:, 1:].norm(dim=-1).amax(1)
    assert torch.allclose(register, largest, rtol=0.1)  # in every image, whatever fires in it
    with patch("captum_clip_surgery.models.image._registers.BATCH_SIZE", 3):
        assert edited.with_registers(scenes, count=4).registers == clip.registers
    sound = ZeroShotClassifier.demo(["dog"])
    with pytest.raises(ValueError, match="none of the 8 images has outlier tokens"):
        sound.with_registers(scenes)
    with pytest.raises(ValueError, match="count must be at least 1"):
        edited.with_registers(scenes, count=0)


def with_registers(clip, neurons):
    clip = clip.share()
    clip.registers = neurons
    return clip


def test_tower_with_register_is_that_of_hooks_on_a_copy():
    """Hooks that change what the last layers read, and a token that is inserted by hand."""
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=())
    images = random_images(clip)
    neurons = ((0, 3), (0, 5), (2, 1))
    model = copy.deepcopy(clip.model)

    def move(chosen):
        def hook(module, arguments):
            (activations,) = arguments
            activations = activations.clone()
            for neuron in chosen:
                activations[:, 1, neuron] = activations[:, 2:, neuron].max(1).values
                activations[:, 2:, neuron] = 0
            return (activations,)

        return hook

    for index, block in enumerate(model.visual.transformer.resblocks):
        chosen = [neuron for block_index, neuron in neurons if block_index == index]
        block.mlp.c_proj.register_forward_pre_hook(move(chosen))
    with torch.no_grad():
        x, _ = clip.tower.embed(images)
        x = torch.cat([x[:, :1], torch.zeros_like(x[:, :1]), x[:, 1:]], dim=1)
        for block in model.visual.transformer.resblocks:
            x = block(x)
        expected = model.visual.ln_post(x[:, 0]) @ model.visual.proj
        expected = torch.nn.functional.normalize(expected, dim=-1)
    registered = with_registers(clip, neurons)
    assert torch.allclose(registered.image_features(images), expected, atol=1e-6)
    assert not torch.allclose(clip.image_features(images), expected, atol=1e-4)
    tokens = registered.tower.project(x)[:, 2:]
    own = LayerCLIPSurgery(registered, num_blocks=0, feature_surgery=None).attribute_all(images)
    cosines = torch.nn.functional.normalize(tokens, dim=-1) @ registered.text_features().T
    assert torch.allclose(own.flatten(2).mT, cosines, atol=1e-6)


@pytest.mark.slow
def test_maps_of_any_method_are_those_of_the_register_tower(edited, scenes):
    texts = nouns()[:2]
    clip = edited.with_texts(texts)
    registered = edited.with_registers(scenes).with_texts(texts)
    methods = {"surgery": LayerCLIPSurgery(registered), "legrad": LayerLeGrad(registered)}
    maps = attribute_many(methods, scenes[:2])
    assert {found.shape for found in maps.values()} == {(2, 2, 14, 14)}
    alone = LayerCLIPSurgery(clip).attribute_all(scenes[:2])
    with forward_pass(clip, scenes[:2]):  # a pass of the tower without a register
        assert torch.equal(LayerCLIPSurgery(clip).attribute_all(scenes[:2]), alone)
        beside = LayerCLIPSurgery(registered).attribute_all(scenes[:2])
    assert torch.allclose(beside, maps["surgery"], atol=1e-6)
    assert not torch.allclose(beside, alone, atol=1e-2)
    with pytest.raises(ValueError, match="different models or registers"):
        attribute_many({"a": LayerCLIPSurgery(clip), "b": methods["surgery"]}, scenes[:2])


@pytest.mark.parametrize("kind", TOWERS)
def test_every_tower_takes_a_register_or_says_why_not(kind):
    clip = ZeroShotClassifier(tiny_model(kind), ["a dog", "a cat"], templates=())
    images = random_images(clip)
    neurons = ((0, 1), (len(clip.tower.blocks) - 1, 2))
    before = snapshot(clip.model)
    registered = with_registers(clip, neurons)
    if kind == "resnet" or clip.tower.embed(images)[1].rope is not None:
        with pytest.raises(TypeError, match="use repair='auto'"):
            registered(images)
        return
    assert registered(images).shape == (2, 2)
    maps = LayerCLIPSurgery(registered).attribute_all(images)
    assert maps.shape == LayerCLIPSurgery(clip).attribute_all(images).shape
    assert not torch.allclose(registered(images), clip(images), atol=1e-6)
    assert "moved to a register" in repr(registered)
    assert not differences(before, snapshot(clip.model))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vit_little_patch16_reg4_gap_256", "vit_base_patch16_reg4_gap_256"]
)
def test_trained_registers_are_no_patches(name):
    """timm's real configurations with registers, random weights, in open_clip's CLIP."""
    vision = dict(timm_model_name=name, timm_pool="avg", timm_proj="linear", image_size=256)
    text = dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1)
    model = with_preprocessing(CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text).eval())
    clip = ZeroShotClassifier(model, ["a dog", "a cat"], templates=())
    tower, images = clip.tower, torch.randn(1, 3, 256, 192)
    assert tower.num_prefix_tokens == model.visual.trunk.num_prefix_tokens >= 4
    assert model.visual.trunk.num_reg_tokens == 4
    with torch.no_grad():
        x, spec = tower.enter(images, len(tower.blocks) - 2)
        tokens = x
        for index in (-2, -1):
            heads = tower.attention_inputs(index, x, spec)
            attention = (heads.v @ heads.v.mT * heads.v.shape[-1] ** -0.5).softmax(-1)
            tokens = tokens + tower.merge(index, attention @ heads.v, heads.x)
            x = tower.blocks[index](x)
        patches = tower.project(tokens[:, tower.num_prefix_tokens :])
    assert patches.shape == (1, 16 * 12, 32)
    maps = LayerCLIPSurgery(clip, num_blocks=2, feature_surgery=None).attribute_all(images)
    cosines = torch.nn.functional.normalize(patches, dim=-1) @ clip.text_features().T
    assert torch.allclose(maps.flatten(2).mT, cosines, atol=1e-5)
