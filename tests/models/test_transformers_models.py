"""Models of transformers: embeddings, the second path, and open_clip's maps on the same weights."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from captum_clip_surgery import (
    LayerCLIPSurgery,
    LayerLeGrad,
    ZeroShotClassifier,
    tasks,
    tower_report,
)
from captum_clip_surgery.attr._registry import METHODS, choose
from captum_clip_surgery.functional import vv_attention
from captum_clip_surgery.models._contents import settings_digest
from captum_clip_surgery.models._dual_encoders import to_patches
from captum_clip_surgery.models.image import PathConfig
from tests._helpers.cases import each
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.tiny import quick_on, relative_error, tiny_model, with_preprocessing
from tests._helpers.transformers_models import (
    KINDS,
    NAMES,
    build,
    clip_model,
    own_features,
    processor,
    siglip_model,
    tiny_siglip,
    tokenizer,
)

TEXTS = ["a dog", "cats and birds", "tree"]
TOLERANCE = 1e-5


def make_clip(model: Any, name: str, texts: list[str] = TEXTS) -> ZeroShotClassifier:
    return ZeroShotClassifier(model, texts, processor=processor(name), templates=[])


def random_images(clip: ZeroShotClassifier, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *clip.native_size, generator=generator)


def image_inputs(name: str, images: Tensor) -> dict[str, Tensor]:
    if name != "Siglip2Model":
        return {"pixel_values": images}
    patches, count = to_patches(images, 8), len(images)
    grid = torch.tensor([[images.shape[2] // 8, images.shape[3] // 8]])
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long),
        "spatial_shapes": grid.expand(count, 2),
    }


def text_inputs(name: str, texts: list[str]) -> dict[str, Tensor]:
    padding = "max_length" if name.startswith("Siglip") else True
    if name.startswith("Siglip"):
        texts = [text.lower() for text in texts]
    inputs = tokenizer(name)(texts, padding=padding, return_tensors="pt")
    keep = ["input_ids"] if name.startswith("Siglip") else ["input_ids", "attention_mask"]
    return {key: inputs[key] for key in keep}


@each("name", NAMES)
def test_embeddings_and_logits_are_the_models_own(name):
    sdpa = getattr(transformers, name)._supports_sdpa
    backs = ("eager", "sdpa") if sdpa else ("eager",)
    for attention in backs:
        halves = ((torch.bfloat16, 0.02),) if attention == "eager" else ()
        for dtype, tolerance in ((torch.float32, TOLERANCE), *halves):
            model = build(name, attention, dtype)
            clip = make_clip(model, name, ["A Dog", *TEXTS[1:]])
            images = random_images(clip).to(dtype)
            with torch.no_grad():
                image = own_features(model, "image", **image_inputs(name, images))
                text = own_features(model, "text", **text_inputs(name, ["A Dog", *TEXTS[1:]]))
                image, text = F.normalize(image, dim=-1), F.normalize(text.float(), dim=-1)
            assert relative_error(clip.image_features(images).float(), image.float()) < tolerance
            assert relative_error(clip.text_features(), text) < tolerance
            if dtype == torch.float32:
                inputs = image_inputs(name, images) | text_inputs(name, ["A Dog", *TEXTS[1:]])
                with torch.no_grad():
                    logits = model(**inputs).logits_per_image
                assert relative_error(clip(images), logits) < TOLERANCE


@each("name", NAMES)
def test_second_path_restated(name):
    """Depth 0 gives the model's own tokens; the path is written out with the raw parameters."""
    clip = make_clip(build(name), name)
    tower, images = clip.tower, random_images(clip)
    inputs: list[Tensor] = []
    outputs: list[Any] = []
    handles = [
        handle
        for block in tower.blocks
        for handle in (
            block.register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
            block.register_forward_hook(lambda _, args, out: outputs.append(out)),
        )
    ]
    with torch.no_grad():
        own_features(clip.model.source, "image", **image_inputs(name, images))
    for handle in handles:
        handle.remove()
    last = outputs[-1][0] if isinstance(outputs[-1], tuple) else outputs[-1]
    path = inputs[0]
    for block, stream in zip(tower.blocks, inputs, strict=True):
        path = path + vv_update(block, stream)
    with torch.no_grad():
        for num_blocks, tokens in ((0, last), (len(inputs), path)):
            config = PathConfig(num_blocks, lambda heads: vv_attention(heads.v))
            output = tower.dual_path(images, config)
            patches = tokens[:, tower.num_prefix_tokens :]
            assert relative_error(output.patches, alone(name, clip.model.source, patches)) < 1e-4
            pooled = own_features(clip.model.source, "image", **image_inputs(name, images))
            assert relative_error(output.pooled, pooled) < TOLERANCE


def vv_update(block: Any, x: Tensor) -> Tensor:
    """O(softmax(v v^T / sqrt(d)) v) from the raw parameters, head by head."""
    tips = not hasattr(block, "self_attn")
    attention = block.attention if tips else block.self_attn
    project = attention.o_proj if tips else attention.out_proj
    v = attention.v_proj((block.norm1 if tips else block.layer_norm1)(x))
    heads = v.split(attention.head_dim, dim=-1)
    joined = [((h @ h.mT) / attention.head_dim**0.5).softmax(-1) @ h for h in heads]
    out = torch.cat(joined, -1) @ project.weight.T + project.bias
    return out * block.layer_scale1.lambda1 if tips else out


def alone(name: str, model: Any, patches: Tensor) -> Tensor:
    """Each patch in the joint space, pooled by the model as its only token."""
    vision = model.vision_model
    if name == "Tipsv2Model":
        return vision.layernorm(patches)
    if name.startswith("Siglip"):
        one = vision.post_layernorm(patches).flatten(0, 1)[:, None]
        return vision.head(one).unflatten(0, patches.shape[:2])
    return model.visual_projection(vision.post_layernorm(patches))


@pytest.mark.slow
@each("name", NAMES)
def test_any_size_and_gradients_and_the_model_is_left_alone(name):
    model = build(name)
    clip = make_clip(model, name)
    before = snapshot(model)
    images = torch.randn(1, 3, 24, 48, requires_grad=True)
    clip(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(p.grad is not None for p in model.vision_model.encoder.parameters())
    model.zero_grad()
    maps = LayerCLIPSurgery(clip).attribute_all(images.detach())
    assert maps.shape == (1, 3, 3, 6)
    with pytest.raises(ValueError, match="do not divide into patches"):
        clip(torch.randn(1, 3, 24, 44))
    with pytest.raises(ValueError, match="NaN"):
        clip(torch.full((1, 3, 24, 48), torch.nan))
    results: list[Tensor] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(LayerCLIPSurgery(clip).attribute_all(images.detach()))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert all(torch.equal(result, maps) for result in results)
    assert differences(before, snapshot(model)) == []


def test_larger_images_are_embedded_as_siglip2_does():
    """Its own bilinear resizing of positions equals ours wherever the grid grows."""
    model = build("Siglip2Model")
    clip = make_clip(model, "Siglip2Model")
    images = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        expected = own_features(model, "image", **image_inputs("Siglip2Model", images))
    assert relative_error(clip.tower.encode(images), expected) < TOLERANCE


# --- across libraries ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "siglip"])
def test_every_method_gives_the_maps_of_open_clip(kind):
    if kind == "vit":
        source = tiny_model("vit")
        pair = [source, clip_model(source)]
        options: dict[str, Any] = {"templates": ["a photo of {}."]}
    else:
        source = with_preprocessing(tiny_siglip())
        pair = [source, siglip_model(source)]
        options = {"tokenizer": tokenizer("SiglipModel"), "templates": []}
    with pytest.warns(UserWarning, match="preprocessing of .* is not known"):
        theirs, ours = (ZeroShotClassifier(m, TEXTS, ["bus"], **options) for m in pair)
    images = random_images(theirs)
    assert relative_error(ours.text_features(), theirs.text_features()) < TOLERANCE
    assert relative_error(ours(images), theirs(images)) < TOLERANCE
    for size in (None, (24, 48)):
        batch = images if size is None else torch.randn(1, 3, *size)
        expected_methods, expected_refusals = choose(theirs, list(METHODS))
        methods, refusals = choose(ours, list(METHODS))
        assert list(methods) == list(expected_methods)
        assert set(refusals) == set(expected_refusals)
        for name in methods:
            passes = name in ("KernelShap", "Occlusion", "IntegratedGradients")
            if passes and (kind, size) != ("vit", None):
                continue  # of the logits, which are compared above
            actual = methods[name](ours).attribute_all(batch)
            expected = expected_methods[name](theirs).attribute_all(batch)
            assert relative_error(actual, expected) < TOLERANCE, name


@each("name", NAMES)
def test_features_of_tokens_pool_to_the_texts(name):
    """At the pooled position they are the text's feature; TIPS v2 takes their mean."""
    clip = make_clip(build(name), name)
    encoder = clip.text_encoder
    tokens = encoder.tokenize(TEXTS)
    with torch.no_grad():
        features = encoder.token_features(tokens)
        assert features.shape[:2] == (3, int(encoder_length(name, tokens)))
        first, last = features[:, 0], features[:, -1]
        ends = (tokens == KINDS[name].eos).int().argmax(1)
        pooled = {"end": features[range(3), ends], "last": last, "masked": first}
    if name != "Tipsv2Model":
        kind = clip.model.family.text
        assert relative_error(pooled[kind], clip.text_features()) < TOLERANCE


def encoder_length(name: str, tokens: Tensor) -> int:
    """The longest text, or the whole context of SigLIP."""
    if name.startswith("Siglip"):
        return tokens.shape[1]
    return int((tokens == KINDS[name].eos).int().argmax(1).max()) + 1


# --- what else takes a classifier ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", quick_on(("CLIPModel",), ("CLIPModel", "SiglipModel", "AltCLIPModel"))
)
def test_tasks_check_up_copies_and_the_cache(tmp_path_factory, name):
    model = build(name)
    clip = make_clip(model, name)
    images = random_images(clip)
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    (labels,) = tasks.segment(clip, [picture])
    assert labels.labels.shape == (40, 60)
    assert len(tasks.recognize(clip, [picture])) == 1
    assert tower_report(clip, images).agreement > 0.9999
    expected = LayerCLIPSurgery(clip).attribute_all(images)
    for twin in (copy.deepcopy(clip), pickle.loads(pickle.dumps(clip))):
        assert torch.equal(LayerCLIPSurgery(twin).attribute_all(images), expected)
    folder = tmp_path_factory.mktemp("cache")
    options: dict[str, Any] = {"processor": processor(name), "templates": [], "cache": folder}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = ZeroShotClassifier(model, TEXTS, **options)
        assert settings_digest(clip.model) == settings_digest(first.model)
        again = ZeroShotClassifier(model, TEXTS, **options)
    assert torch.equal(first.text_features(), again.text_features())
    assert list(folder.iterdir())


# --- texts ---------------------------------------------------------------------------------------


@each("name", NAMES)
def test_texts_that_are_too_long_are_refused(name):
    with pytest.raises(ValueError, match="longer than the model's context of"):
        make_clip(build(name), name, ["a very long text that has many letters"])


def test_end_of_text_inside_a_prompt_is_refused():
    with pytest.raises(ValueError, match="the tokenizer's own end of a text"):
        make_clip(build("CLIPModel"), "CLIPModel", ["dog </s> cat"])


def test_padding_that_the_model_does_not_mask_is_refused():
    model = build("ChineseCLIPModel")
    with pytest.raises(ValueError, match=r"pads texts with token id 1, .* says 0"):
        make_clip(model, "AltCLIPModel")


def test_text_features_follow_the_model():
    model = build("SiglipModel")
    clip = make_clip(model, "SiglipModel")
    before = clip.text_features()
    with torch.no_grad():
        model.vision_model.post_layernorm.bias.add_(1)
    assert clip.text_features() is before
    with torch.no_grad():
        model.text_model.head.bias.add_(1)
    assert not torch.equal(clip.text_features(), before)


# --- what is given -------------------------------------------------------------------------------


def test_processor_gives_preprocessing_and_tokenizer():
    name = "CLIPModel"
    clip = make_clip(build(name), name)
    assert clip.preprocessing.mean == (0.4, 0.5, 0.6)
    assert clip.preprocessing.interpolation == "bilinear"
    alone = ZeroShotClassifier(build(name), TEXTS, tokenizer=processor(name), templates=[])
    assert torch.equal(alone.text_features(), clip.text_features())
    with pytest.raises(TypeError, match="processor= is for models of transformers"):
        ZeroShotClassifier(tiny_model("vit"), TEXTS, processor=processor(name))
    with pytest.raises(ValueError, match=r"pass processor=transformers\.AutoProcessor"):
        ZeroShotClassifier(build(name), TEXTS)


def test_what_is_refused_says_why():
    tower = build("CLIPModel").vision_model
    vision = transformers.CLIPVisionModel(tower.config)
    with pytest.raises(TypeError, match="one tower of a dual encoder; load CLIPModel"):
        ZeroShotClassifier(vision, TEXTS)
    model = build("SiglipModel")
    model.vision_model.use_head = False
    with pytest.raises(TypeError, match="no pooling head"):
        make_clip(model, "SiglipModel")

    class Doubled(type(model.vision_model.encoder.layers[0])):
        def forward(self, *args, **options):
            return super().forward(*args, **options)

    model = build("SiglipModel")
    model.vision_model.encoder.layers[1].__class__ = Doubled
    with pytest.raises(TypeError, match="block 1 is a Doubled"):
        make_clip(model, "SiglipModel")


def test_dropout_of_attention_in_train_mode_is_refused():
    model = build("CLIPModel")
    clip = make_clip(model, "CLIPModel")
    images = random_images(clip)
    clip(images)
    model.vision_model.encoder.layers[1].self_attn.dropout = 0.5
    clip(images)
    clip.train()
    with pytest.raises(ValueError, match=r"1\.self_attn \(CLIPAttention\) is in train mode"):
        clip(images)


def test_own_method_of_a_model_is_compared():
    model = build("CLIPModel")
    model.get_image_features = lambda pixel_values: torch.ones(len(pixel_values), 24)
    with pytest.raises(TypeError, match=r"get_image_features replaced on the instance"):
        make_clip(model, "CLIPModel")


def test_lora_of_peft_is_part_of_the_model():
    peft = pytest.importorskip("peft")
    model = build("CLIPModel")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    clip = make_clip(adapted, "CLIPModel")
    images = random_images(clip)
    maps = LayerLeGrad(clip).attribute_all(images)
    merged = make_clip(adapted.merge_and_unload(), "CLIPModel")
    assert relative_error(maps, LayerLeGrad(merged).attribute_all(images)) < 1e-4


def test_hooks_that_record_outputs_are_no_hooks_of_the_user(recwarn):
    """transformers leaves hooks behind once `output_attentions=True` was asked for."""
    model = build("CLIPModel")
    inputs = text_inputs("CLIPModel", TEXTS) | {"pixel_values": torch.zeros(1, 3, 32, 32)}
    model(**inputs, output_attentions=True)
    clip = make_clip(model, "CLIPModel")
    LayerCLIPSurgery(clip).attribute_all(random_images(clip))
    assert not [w for w in recwarn if "do not fire" in str(w.message)]
    model.vision_model.encoder.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="its encoder do not fire"):
        LayerCLIPSurgery(clip).attribute_all(random_images(clip))
