"""Models that are not what their class says: refused by name, or explained as they are."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import (
    AttentionalPooler,
    ResidualAttentionBlock,
    TextTransformer,
    Transformer,
    VisionTransformer,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from captum_clip_surgery import CLIPSurgery, LayerCLIPSurgery, ZeroShotClassifier, word_scores
from captum_clip_surgery.models._agreement import VerifiedImageTower
from captum_clip_surgery.models.image import VisionTransformerTower, _registry, register_tower
from captum_clip_surgery.tasks import word_maps
from tests._helpers.cases import each
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.tiny import random_images, relative_error, tiny_model, with_preprocessing
from tests._helpers.tower_kinds import TINY

TEXTS = ["a dog", "a cat", "a tree"]


def make(model: Any) -> ZeroShotClassifier:
    return ZeroShotClassifier(model, TEXTS, templates=["{}."])


def own_logits(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        tokens = open_clip.tokenize([f"{text}." for text in TEXTS], model.context_length)
        text = model.encode_text(tokens, normalize=True)
        return model.logit_scale.exp() * model.encode_image(images, normalize=True) @ text.T


def as_class(module: Any, kind: type) -> Any:
    """Make a module an instance of a subclass of its class, with the same weights."""
    module.__class__ = kind
    return module


def custom_text() -> Any:
    torch.manual_seed(0)
    model = CustomTextCLIP(**TINY["vit"].config)
    with torch.no_grad():
        model.text.positional_embedding.normal_()
    return with_preprocessing(model.eval())  # type: ignore[arg-type]


# --- image towers --------------------------------------------------------------------------------


class PromptTuned(VisionTransformer):
    """Visual prompt tuning: learned tokens behind the class token."""

    def forward(self, x: Tensor) -> Tensor:
        x = self._embeds(x)
        prompts = torch.ones(len(x), 2, x.shape[-1])
        x = self.transformer(torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1))
        pooled, _ = self._pool(x)
        return pooled @ self.proj


class AdapterClip(CLIP):
    """CLIP-Adapter: a residual behind the image tower."""

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        features = super().encode_image(image, normalize=True)
        return nn.functional.normalize(0.8 * features + 0.2 * features.roll(1, -1), dim=-1)


class Doubled(ModifiedResNet):
    def stem(self, x: Tensor) -> Tensor:
        return 2 * super().stem(x)


class Flipped(TimmModel):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(-1))


class Attention(nn.MultiheadAttention):
    def forward(self, *given: Any, **options: Any) -> Any:
        values, weights = super().forward(*given, **options)
        return 2 * values, weights


class Pooler(AttentionalPooler):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class HalfTransformer(Transformer):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return super().forward(x / 2, attn_mask)


def replace(place: str, method: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Replace a method of a module on the instance by its result changed."""

    def patch(model: Any) -> None:
        module = model.get_submodule(place)
        before = getattr(module, method)
        setattr(module, method, lambda *given, **options: change(before(*given, **options)))

    return patch


def double(value: Any) -> Any:
    return 2 * value


def turn(value: Tensor) -> Tensor:
    return value.roll(1, -1)


def subclass(place: str, kind: type) -> Callable[[Any], None]:
    return lambda model: as_class(model.get_submodule(place), kind)


BLOCK = "visual.transformer.resblocks.1"
REGISTER = r"register a tower of your own with captum_clip_surgery\.models\.image\.register_tower"
IMAGE_KINDS: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "visual prompt tuning": (
        "vit",
        subclass("visual", PromptTuned),
        "PromptTuned is not supported: it is a PromptTuned, which derives from VisionTransformer "
        f"and overrides forward, and the adapter would not call it; {REGISTER}",
    ),
    "CLIP-Adapter": (
        "vit",
        subclass("", AdapterClip),
        r"AdapterClip\.encode_image of a test image differs from what its image tower "
        r"VisionTransformer computes by 0\.\d+ of the embedding's norm; AdapterClip's own "
        "encode_image would have no effect on the results; put what was added",
    ),
    "encode_image replaced": (
        "siglip",
        replace("", "encode_image", turn),
        r"CLIP\.encode_image .* by \d.* the encode_image replaced on the instance would have no",
    ),
    "encode_image of another shape": (
        "resnet",
        replace("", "encode_image", lambda value: value[:, :5]),
        r"encode_image gives a tensor of shape \(1, 5\), the image tower ModifiedResNet \(1, 24\)",
    ),
    "encode_image of several results": (
        "vit",
        replace("", "encode_image", lambda value: (value, value)),
        "encode_image gives a tuple, the image tower",
    ),
    "a subclass of ModifiedResNet": (
        "resnet",
        subclass("visual", Doubled),
        "it is a Doubled, which derives from ModifiedResNet and overrides stem, and the adapter",
    ),
    "a subclass of TimmModel": (
        "siglip",
        subclass("visual", Flipped),
        f"it is a Flipped, which derives from TimmModel and overrides forward.*{REGISTER}",
    ),
    "a subclass of TimmModel, rotary": (
        "eva02",
        subclass("visual", Flipped),
        "which derives from TimmModel and overrides forward",
    ),
    "forward of the tower": (
        "vit",
        replace("visual", "forward", turn),
        "it has forward replaced on the instance, and the adapter would not call it",
    ),
    "a method of the tower": (
        "vit",
        replace("visual", "_embeds", double),
        "it has _embeds replaced on the instance",
    ),
    "forward of the transformer": (
        "vit",
        replace("visual.transformer", "forward", double),
        "its transformer has forward replaced on the instance",
    ),
    "a subclass of the transformer": (
        "vit",
        subclass("visual.transformer", HalfTransformer),
        "its transformer is a HalfTransformer, which derives from Transformer and overrides forw",
    ),
    "forward of a block": (
        "vit",
        replace(BLOCK, "forward", double),
        "block 1 has forward replaced on the instance",
    ),
    "attention of a block": (
        "vit",
        replace(BLOCK, "attention", double),
        "block 1 has attention replaced on the instance",
    ),
    "a subclass of the attention": (
        "vit",
        subclass(f"{BLOCK}.attn", Attention),
        "block 1 attends by a module that is a Attention, which derives from MultiheadAttention",
    ),
    "a subclass of the pooling": (
        "coca",
        subclass("visual.attn_pool", Pooler),
        "its attentional pooling is a Pooler, which derives from AttentionalPooler",
    ),
    "pooling of a ResNet": (
        "resnet",
        replace("visual.attnpool", "forward", turn),
        "its attention pooling has forward replaced on the instance",
    ),
    "forward of the trunk": (
        "siglip",
        replace("visual.trunk", "forward", turn),
        "a part of its trunk has forward replaced on the instance",
    ),
    "a method of the trunk": (
        "eva02",
        replace("visual.trunk", "forward_features", double),
        "a part of its trunk has forward_features replaced on the instance",
    ),
    "forward of the trunk's pooling": (
        "siglip",
        replace("visual.trunk.attn_pool", "forward", double),
        "a part of its trunk has forward replaced on the instance",
    ),
    "forward of the trunk's blocks": (
        "siglip",
        replace("visual.trunk.blocks", "forward", double),
        "a part of its trunk has forward replaced on the instance",
    ),
    "forward of a trunk's attention": (
        "eva02",
        replace("visual.trunk.blocks.0.attn", "forward", double),
        "block 0 has the attention EvaAttention, which has forward replaced on the instance",
    ),
}


@each("kind", IMAGE_KINDS)
def test_image_towers_that_are_not_their_class(kind: str) -> None:
    family, change, message = IMAGE_KINDS[kind]
    model = tiny_model(family)
    clip = make(copy.deepcopy(model))
    images = random_images(clip, 1)
    change(model)
    with pytest.raises(TypeError, match=message):
        make(model)
    with pytest.raises(TypeError, match=message):
        ZeroShotClassifier.from_features(model, torch.randn(3, clip.text_features().shape[1]))
    # Changed after the classifier was made, from the next call on; mended, it goes on.
    expected = clip(images)
    surgery = LayerCLIPSurgery(clip)
    good = [(module, module.__class__, dict(module.__dict__)) for module in clip.model.modules()]
    change(clip.model)
    for call in (clip, clip.image_features, surgery.attribute_all):
        with pytest.raises(TypeError, match=message):
            call(images)
    for module, own_class, attributes in good:
        module.__class__ = own_class
        for name in module.__dict__.keys() - attributes.keys():
            del module.__dict__[name]
    assert torch.equal(clip(images), expected)


def test_a_method_of_a_class_patched_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("vit")
    clip = make(model)
    before = ResidualAttentionBlock.attention

    def attention(self: Any, *given: Any, **options: Any) -> Tensor:
        return 2 * before(self, *given, **options)

    monkeypatch.setattr(ResidualAttentionBlock, "attention", attention)
    message = "encode_image .* differs .*; a method of one of its modules must have been changed"
    with pytest.raises(TypeError, match=message):
        make(model)
    with pytest.raises(TypeError, match=message):
        clip(random_images(clip))
    monkeypatch.undo()
    assert clip(random_images(clip)).isfinite().all()


def test_a_block_exchanged_later() -> None:
    model = tiny_model("vit")
    clip = make(model)
    images = random_images(clip)
    blocks = model.visual.transformer.resblocks
    blocks[1] = copy.deepcopy(blocks[0])
    assert relative_error(clip(images), own_logits(model, images)) < 1e-5
    blocks[1] = nn.TransformerEncoderLayer(32, 4, batch_first=True).eval()
    with pytest.raises(TypeError, match="block 1 is a TransformerEncoderLayer, not a Residual"):
        clip(images)


# --- adapters of a user's own --------------------------------------------------------------------


class Annotated(VisionTransformer):
    """Differs by nothing that matters."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class AnnotatedTower(VisionTransformerTower):
    visual_class = Annotated


class WrongTower(VisionTransformerTower):
    visual_class = PromptTuned


def test_a_registered_adapter_takes_a_subclass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("vit")
    expected = make(copy.deepcopy(model))
    images = random_images(expected)
    as_class(model.visual, Annotated)
    with pytest.raises(TypeError, match="is a Annotated, which derives from VisionTransformer"):
        make(model)
    monkeypatch.setattr(_registry, "TOWER_CLASSES", list(_registry.TOWER_CLASSES))
    register_tower(AnnotatedTower)
    register_tower(WrongTower)
    clip = make(model)
    assert isinstance(clip.tower, AnnotatedTower)
    assert torch.equal(clip(images), expected(images))
    # An adapter of one's own is held against the model just as well.
    as_class(model.visual, PromptTuned)
    for call in (lambda: make(model), lambda: clip(images)):
        with pytest.raises(TypeError, match=r"encode_image .* image tower PromptTuned computes by"):
            call()


class GatedClip(CLIP):
    """Adds to both embeddings what a gate lets through, which is shut at first."""

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        features = super().encode_image(image, normalize)
        return features + self.gate * features.roll(1, -1)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        features = super().encode_text(text, normalize)
        return features + self.text_gate * features.roll(1, -1)


@pytest.mark.parametrize("side", ["image", "text"])
def test_what_a_model_adds_itself_is_compared_once_it_is_trained(side: str) -> None:
    model = tiny_model("vit")
    model.__class__ = GatedClip
    model.gate, model.text_gate = nn.Parameter(torch.zeros(())), 0.0
    clip = make(model)
    surgery, images = CLIPSurgery(clip), random_images(clip, 1)
    assert relative_error(clip(images), own_logits(model, images)) < 1e-5
    if side == "image":
        with torch.no_grad():
            model.gate.add_(0.5)
    else:
        model.text_gate = 0.5
    message = f"GatedClip's own encode_{side} would have no effect on the results"
    for call in (clip, surgery.attribute_all):
        with pytest.raises(TypeError, match=message):
            call(images)


# --- what is harmless ----------------------------------------------------------------------------


class Trained(CLIP):
    """A class for training: methods of its own, and a wrapped encoder."""

    def forward(self, image: Any = None, text: Any = None) -> Any:
        return {"loss": torch.zeros(())}

    @torch.autocast("cpu", enabled=False)
    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        return super().encode_image(image, normalize)


def frozen(model: Any) -> None:
    """As training code keeps BatchNorm in eval mode."""
    model.visual.train = types.MethodType(lambda self, mode=True: self, model.visual)


def parametrized(model: Any) -> None:
    model.visual.proj.data.div_(3)
    nn.utils.parametrize.register_parametrization(model.visual, "proj", Scaled())
    nn.utils.parametrize.register_parametrization(model.visual, "positional_embedding", Scaled())
    parametrizations.weight_norm(model.visual.transformer.resblocks[0].mlp.c_fc)
    nn.utils.parametrize.register_parametrization(
        model.visual.transformer.resblocks[1].attn, "in_proj_weight", Scaled()
    )


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 3 * weight


HARMLESS: dict[str, Callable[[Any], Any]] = {
    "a subclass for training": subclass("", Trained),
    "a method that has no part in it": frozen,
    "parametrized": parametrized,
    "compiled in place": lambda model: model.visual.compile(backend="eager"),
    "encode_image wrapped": replace("", "encode_image", lambda value: value),
    "dropout in train mode elsewhere": lambda model: model.train(),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_changes_that_change_nothing(kind: str) -> None:
    model = tiny_model("vit")
    HARMLESS[kind](model)
    clip = make(model)
    images = random_images(clip)
    assert relative_error(clip(images), own_logits(model, images)) < 1e-5
    twin = copy.deepcopy(clip)
    assert torch.equal(twin(images), clip(images))
    torch.compiler.reset()


# --- text towers ---------------------------------------------------------------------------------


class LongClip(CLIP):
    """Long-CLIP: other positions behind the first few."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        x = self.token_embedding(text)
        kept = (torch.arange(x.shape[1]) < 10)[:, None]
        positions = self.positional_embedding
        x = x + torch.where(kept, positions, 2 * positions.flip(0))
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask))
        x = x[torch.arange(len(x)), text.argmax(-1)] @ self.text_projection
        return nn.functional.normalize(x, dim=-1) if normalize else x


class ShortPadding(CLIP):
    """Differs where there is padding alone."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        return super().encode_text(text, normalize) + (text == 0).any(-1, keepdim=True)


class OwnText(TextTransformer):
    def forward(self, text: Tensor) -> Tensor:
        return 2 + super().forward(text)


def failing(model: Any) -> None:
    def encode_text(text: Tensor, normalize: bool = False) -> Tensor:
        raise TypeError("it takes strings")

    model.encode_text = encode_text


WAY_OUT = "pass the features of model.encode_text to ZeroShotClassifier.from_features instead"
TEXT_KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "Long-CLIP": (
        lambda: tiny_model("vit"),
        subclass("", LongClip),
        r"LongClip\.encode_text of a test text differs from what its text tower LongClip computes "
        rf"by .* norm; LongClip's own encode_text would have no effect on the results; {WAY_OUT}",
    ),
    "padding": (
        lambda: tiny_model("vit"),
        subclass("", ShortPadding),
        "ShortPadding's own encode_text would have no effect",
    ),
    "a subclass of TextTransformer": (
        custom_text,
        subclass("text", OwnText),
        "the text tower is a OwnText, which derives from TextTransformer and overrides forward, "
        f"which would not be called; {WAY_OUT}",
    ),
    "forward of the text tower": (
        custom_text,
        replace("text", "forward", turn),
        "the text tower has forward replaced on the instance",
    ),
    "encode_text replaced": (
        custom_text,
        replace("", "encode_text", turn),
        "the encode_text replaced on the instance would have no effect",
    ),
    "encode_text that takes no ids": (
        lambda: tiny_model("vit"),
        failing,
        "it takes strings",
    ),
}


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_text_towers_that_are_not_their_class(kind: str) -> None:
    build, change, message = TEXT_KINDS[kind]
    model = build()
    clip = make(copy.deepcopy(model))
    images = random_images(clip, 1)
    change(model)
    with pytest.raises(TypeError, match=message):
        make(model)
    ready = ZeroShotClassifier.from_features(model, clip.text_features())
    assert torch.allclose(ready(images), clip(images), atol=1e-6)
    change(clip.model)
    calls: list[Callable[[], Any]] = [
        lambda: clip(images),
        lambda: clip.with_texts(["a bird"]),
        lambda: word_maps(clip, images, "a dog"),
        lambda: word_scores(clip, images, "a dog"),
        clip.empty_features,
    ]
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call()


def test_a_changed_transformer_of_the_text_tower_is_called_itself() -> None:
    """Nothing is shared or cut where the transformer is not open_clip's own."""
    model = tiny_model("vit")
    plain = own_logits(model, torch.ones(1, 3, 32, 32))
    as_class(model.transformer, HalfTransformer)
    clip, images = make(model), torch.ones(1, 3, 32, 32)
    assert relative_error(clip(images), own_logits(model, images)) < 1e-5
    assert relative_error(clip(images), plain) > 1e-3


def test_words_of_a_text_block_that_cannot_be_taken_apart() -> None:
    model = tiny_model("vit")
    replace("transformer.resblocks.1", "forward", double)(model)
    clip = make(model)
    with pytest.raises(TypeError, match="words cannot be scored: block 1 of the text tower has fo"):
        word_scores(clip, random_images(clip), "a dog")


# --- hooks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "place", "named"),
    [
        ("vit", "visual.transformer", "visual.transformer"),
        ("siglip", "visual.trunk", "visual.trunk"),
        ("siglip", "visual.trunk.blocks", "visual.trunk.blocks"),
        ("eva02", "visual.trunk", "visual.trunk"),
        ("resnet", "visual", "the image tower"),
    ],
)
@each("when", ["before", "after"])
def test_hooks_on_containers_are_named(family: str, place: str, named: str, when: str) -> None:
    model = tiny_model(family)
    expected = make(copy.deepcopy(model))
    images = random_images(expected)
    if when == "after":
        clip = make(model)
    model.get_submodule(place).register_forward_hook(lambda module, given, output: 2 * output + 1)
    if when == "before":
        clip = make(model)
    for call in (lambda c: c(images), lambda c: LayerCLIPSurgery(c).attribute_all(images)):
        with pytest.warns(UserWarning, match=f"hooks on {named} do not fire"):
            value = call(clip)
        assert torch.equal(value, call(expected))


def test_hooks_on_a_text_tower_fire_or_are_named() -> None:
    model = custom_text()
    plain = make(copy.deepcopy(model)).text_features()
    model.text.register_forward_hook(lambda module, given, output: output + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = make(model)
        images = random_images(clip)
        assert relative_error(clip(images), own_logits(model, images)) < 1e-5
    assert relative_error(clip.text_features(), plain) > 1e-2
    for function in (word_maps, word_scores):
        with pytest.warns(UserWarning, match=r"hooks on model\.text do not fire"):
            function(clip, images[:1], "a dog")


def test_hooks_that_add_tokens_are_refused() -> None:
    """Prompts by a hook that fires: the embedding is right, the places of patches would not be."""
    model = tiny_model("vit")
    prompts = torch.ones(1, 2, 32)
    model.visual.ln_pre.register_forward_hook(
        lambda module, given, output: torch.cat(
            [output[:, :1], prompts.expand(len(output), -1, -1), output[:, 1:]], 1
        )
    )
    clip = make(model)
    images = random_images(clip)
    assert relative_error(clip(images), own_logits(model, images)) < 1e-5
    with pytest.raises(TypeError, match="makes 19 tokens of an image, expected 1 and 4 x 4 patch"):
        LayerCLIPSurgery(clip).attribute_all(images)


@pytest.mark.parametrize("family", ["vit", "resnet", "siglip", "eva02"])
def test_the_model_is_left_alone(family: str) -> None:
    """Neither hooks nor buffers nor the random state see the test image."""

    class Counting(nn.Identity):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            self.calls += 1
            return x + 0 * torch.rand(())

    model = tiny_model(family)
    first = "ln_post" if family == "vit" else "layer1" if family == "resnet" else "head"
    setattr(model.visual, first, nn.Sequential(getattr(model.visual, first), Counting()))
    fired: list[Any] = []
    for module in model.visual.modules():
        module.register_forward_hook(lambda *given: fired.append(given[0]))
    before, state = snapshot(model), torch.get_rng_state()
    side = VerifiedImageTower(model, "bilinear")
    assert not differences(before, snapshot(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert not fired
    assert side.tower().visual is model.visual


# --- another tower -------------------------------------------------------------------------------


def test_another_image_tower_is_the_one_in_use() -> None:
    model = tiny_model("vit")
    clip = make(model)
    sibling = clip.with_texts(TEXTS)
    surgery = LayerCLIPSurgery(clip)
    images = random_images(clip)
    model.visual = tiny_model("vit", seed=1).visual
    fresh = make(model)
    for one in (clip, sibling):
        assert relative_error(one(images), own_logits(model, images)) < 1e-5
        assert one.tower.visual is model.visual
    assert torch.equal(surgery.attribute_all(images), LayerCLIPSurgery(fresh).attribute_all(images))
    # Of another family, size, number of blocks and preprocessing.
    visual = tiny_model("mobileclip").visual
    visual.preprocess_cfg = dict(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    model.visual = visual
    fresh = make(model)
    assert clip.native_size == (64, 64)
    assert clip.preprocessing == fresh.preprocessing
    assert repr(clip) == repr(fresh)
    images = random_images(clip)
    assert relative_error(clip(images), own_logits(model, images)) < 1e-5
    assert clip.token_grid(-1) is clip.token_grid(len(clip.tower.blocks) - 1)
    model.visual = nn.Identity()
    with pytest.raises(TypeError, match="Identity is not supported: no supported family"):
        clip(images)


def test_another_text_tower_is_the_one_in_use() -> None:
    model = custom_text()
    clip = make(model)
    images = random_images(clip)
    other = custom_text()
    with torch.no_grad():
        for parameter in other.text.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.text = other.text
    assert relative_error(clip(images), own_logits(model, images)) < 1e-5
