"""Models that others have moved, hooked, wrapped, quantised: as they are, or refused by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from captum_clip_surgery import (
    METHODS,
    LayerCLIPSurgery,
    LayerLeGrad,
    ZeroShotClassifier,
    tower_report,
    word_scores,
)
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.tiny import random_images, relative_error, tiny_model

TEXTS = ["a dog", "a cat", "a tree"]
FAMILIES = ("vit", "resnet", "siglip", "eva02")
each_family = pytest.mark.parametrize("family", FAMILIES)


def make(model: Any) -> ZeroShotClassifier:
    return ZeroShotClassifier(model, TEXTS, templates=["{}."])


def own_logits(model: Any, clip: ZeroShotClassifier, images: Tensor) -> Tensor:
    """As the model itself finds them, beside the classifier."""
    with torch.no_grad():
        tokens = clip.text_encoder.tokenize([f"{text}." for text in TEXTS])
        text = model.encode_text(tokens, normalize=True)
        logits = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ text.T
        bias = getattr(model, "logit_bias", None)
        return logits if bias is None else logits + bias


def assert_as_the_model(model: Any, clip: ZeroShotClassifier, made: str | None = None) -> None:
    """Logits, and the tokens of surgery's pass, are the model's own; nothing is touched.

    But for the weight of a module, by name, that a hook of its own makes anew at each call.
    """
    images = random_images(clip)
    before = snapshot(model)
    assert relative_error(clip(images), own_logits(model, clip, images)) < 1e-5
    # Every block rebuilt of its queries, keys and values, against the model's own embedding.
    assert tower_report(clip, images).agreement > 1 - 1e-5
    for method in ("CLIP", "CLIPSurgery", "SCLIP"):
        assert METHODS[method](clip).attribute_all(images, [0]).isfinite().all()
    allowed = {("attribute", made, "weight"), ("contents", made, "weight")}
    assert {*differences(before, snapshot(model))} <= allowed


# --- moved ---------------------------------------------------------------------------------------


@each_family
def test_a_model_on_meta_is_refused(family: str) -> None:
    model = tiny_model(family).to("meta")
    with pytest.raises(ValueError, match="on meta, and on meta they have no values; load"):
        make(model)
    with pytest.raises(ValueError, match="on meta they have no values"):
        ZeroShotClassifier.from_features(model, torch.eye(3, device="meta"))


HALF_MOVED = r"parameters of the image tower are on (cpu and )?meta"


def parts(family: str) -> tuple[str, ...]:
    """Some of a model's, by name."""
    return {
        "vit": ("visual", "visual.conv1", "visual.transformer.resblocks.1", "visual.ln_post"),
        "resnet": ("visual", "visual.layer1", "visual.attnpool"),
        "siglip": ("visual", "visual.trunk.blocks.1", "visual.trunk.attn_pool"),
        "eva02": ("visual", "visual.trunk.blocks.2.attn.q_proj", "visual.trunk.norm"),
    }[family]


@pytest.mark.parametrize(
    ("family", "part"), [(family, part) for family in FAMILIES for part in parts(family)]
)
def test_a_tower_that_is_half_moved_is_refused(family: str, part: str) -> None:
    moved = tiny_model(family)
    moved.get_submodule(part).to("meta")
    with pytest.raises(ValueError, match=HALF_MOVED):
        make(moved)
    # After it was made: at the next call.
    clip = make(tiny_model(family))
    images = random_images(clip)
    expected = clip(images)
    good = copy.deepcopy(clip.model.state_dict())
    surgery = LayerCLIPSurgery(clip)
    clip.model.get_submodule(part).to("meta")
    for call in (clip, clip.image_features, surgery.attribute_all):
        with pytest.raises(ValueError, match=HALF_MOVED):
            call(images)
    # Mended, it goes on.
    clip.model.get_submodule(part).to_empty(device="cpu")
    clip.model.load_state_dict(good)
    for name, buffer in tiny_model(family).named_buffers():  # those that no state has
        clip.model.get_buffer(name).copy_(buffer)
    assert torch.equal(clip(images), expected)


@each_family
def test_a_text_tower_that_is_half_moved_is_refused(family: str) -> None:
    clip = make(tiny_model(family))
    images = random_images(clip)
    tower = getattr(clip.model, "text", clip.model)
    tower.ln_final.to("meta")
    for call in (clip, LayerCLIPSurgery(clip).attribute_all, lambda i: clip.with_texts(["a"])):
        with pytest.raises(ValueError, match="parameters of the text tower are on cpu and meta"):
            call(images)
    if family == "vit":
        with pytest.raises(ValueError, match="parameters of the model are on cpu and meta"):
            word_scores(clip, images, "a dog")
    # Ready features need no text tower.
    ready = ZeroShotClassifier.from_features(clip.model, torch.eye(clip.joint_width())[:3])
    assert ready(images).isfinite().all()


# --- hooked --------------------------------------------------------------------------------------


def double(module: nn.Module, given: Any, output: Any) -> Any:
    """What some libraries' hooks do: give something else on."""
    return output * 2


HEARD = {
    "vit": ("conv1", "ln_pre", "transformer.resblocks.1.ln_1", "transformer.resblocks.2.mlp.c_fc"),
    "resnet": ("conv1", "layer2", "attnpool.v_proj"),
    "siglip": ("trunk.patch_embed", "trunk.blocks.1.norm1", "trunk.blocks.0.attn.qkv"),
    "eva02": ("trunk.patch_embed", "trunk.blocks.2.norm1", "trunk.blocks.1.mlp"),
}


@pytest.mark.parametrize(
    ("family", "place"), [(family, place) for family in HEARD for place in HEARD[family]]
)
def test_hooks_that_change_parts_count(family: str, place: str) -> None:
    """As for the model itself; surgery says nothing, for they count there as well."""
    model = tiny_model(family)
    clip = make(model)
    images = random_images(clip)
    plain = LayerCLIPSurgery(clip, feature_surgery=None).attribute_all(images)
    logits = clip(images)
    handle = model.visual.get_submodule(place).register_forward_hook(double)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if family == "resnet" and "attnpool" in place:
            assert relative_error(clip(images), logits) < 1e-6  # the model's own never calls it
        else:
            assert relative_error(clip(images), own_logits(model, clip, images)) < 1e-5
            assert relative_error(clip(images), logits) > 1e-4
        changed = LayerCLIPSurgery(clip, feature_surgery=None).attribute_all(images)
    # The last block's feed-forward is no part of surgery's path.
    assert (relative_error(changed, plain) > 1e-4) == (place != "transformer.resblocks.2.mlp.c_fc")
    handle.remove()
    assert torch.equal(clip(images), logits)


@pytest.mark.parametrize(
    ("place", "named", "calls"),
    [
        ("", "the image tower", ("logits", "surgery", "legrad")),
        ("transformer.resblocks.2", "block 2", ("surgery", "legrad")),
        ("transformer.resblocks.1.attn", "the attention of block 1", ("surgery", "legrad")),
    ],
)
@pytest.mark.parametrize("kind", ["forward", "before"])
def test_hooks_that_do_not_fire_are_named(
    place: str, named: str, calls: tuple[str, ...], kind: str
) -> None:
    model = tiny_model("vit")
    clip = make(model)
    images = random_images(clip)
    module = model.visual.get_submodule(place)
    found = {
        "logits": clip,
        "surgery": LayerCLIPSurgery(clip).attribute_all,
        "legrad": LayerLeGrad(clip).attribute_all,
    }
    expected = {name: call(images) for name, call in found.items()}
    if kind == "forward":
        handle = module.register_forward_hook(double)
    else:
        handle = module.register_forward_pre_hook(lambda m, given: (2 * given[0], *given[1:]))
    for name, call in found.items():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            value = call(images)
        words = [str(warning.message) for warning in told]
        assert (len(words) == 1) == (name in calls), (name, words)
        if words:
            assert f"hooks on {named} do not fire" in words[0]
            assert torch.equal(value, expected[name])
        else:
            assert relative_error(value, own_logits(model, clip, images)) < 1e-5
    handle.remove()


# --- wrapped -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "compiled inside": lambda model: nn.parallel.DistributedDataParallel(
        torch.compile(model, backend="eager")
    ),
    "compiled outside": lambda model: torch.compile(
        nn.parallel.DistributedDataParallel(model), backend="eager"
    ),
}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@each_family
def test_data_parallel_models_are_unwrapped(family: str, wrapper: str) -> None:
    model, plain = tiny_model(family), make(tiny_model(family))
    wrapped = WRAPPERS[wrapper](model)
    clip = make(wrapped)
    assert clip.model is model
    images = random_images(clip)
    assert torch.equal(clip(images), plain(images))
    assert torch.equal(
        LayerCLIPSurgery(clip).attribute_all(images), LayerCLIPSurgery(plain).attribute_all(images)
    )
    assert_as_the_model(model, clip)
    # What training needs of the wrapper works on: gradients of a step come out as ever.
    if wrapper == "DistributedDataParallel" and family == "vit":
        tokens = clip.text_encoder.tokenize(TEXTS)
        sum(out.sum() for out in wrapped(images[:1], tokens[:1])[:2]).backward()
        assert model.visual.conv1.weight.grad is not None
        assert make(wrapped)(images).isfinite().all()


@pytest.mark.usefixtures("group")
def test_sharded_models_are_refused() -> None:
    from torch.distributed.fsdp import fully_shard

    model = tiny_model("vit")
    fully_shard(model.visual, mesh=dist.init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match="are spread over processes; explain a model with whole"):
        make(model)


# --- weights of another make ---------------------------------------------------------------------


def trained(model: nn.Module) -> None:
    """What weights are made of changes, as by a step of an optimiser."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)


LINEARS = {
    "vit": ("transformer.resblocks.1.mlp.c_fc", "transformer.resblocks.2.attn.out_proj"),
    "resnet": ("attnpool.v_proj", "attnpool.c_proj", "layer3.0.conv1"),
    "siglip": ("trunk.blocks.1.attn.qkv", "trunk.blocks.2.attn.proj", "trunk.attn_pool.kv"),
    "eva02": (
        "trunk.blocks.1.attn.q_proj",
        "trunk.blocks.2.attn.v_proj",
        "trunk.blocks.0.mlp.fc2",
    ),
}
MAKES = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("change", MAKES)
@each_family
def test_parametrised_weights(family: str, change: str) -> None:
    model = tiny_model(family)
    for place in LINEARS[family]:
        MAKES[change](model.visual.get_submodule(place))
    clip = make(model.eval())
    assert_as_the_model(model, clip)
    first = clip(random_images(clip))
    trained(model)
    assert relative_error(clip(random_images(clip)), first) > 1e-3
    assert_as_the_model(model, clip)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("hooked", [nn.utils.weight_norm, prune.random_unstructured])
def test_weights_that_hooks_make(hooked: Any) -> None:
    """Where the module is called they are new; where it is taken apart its hooks are named."""
    options = {"amount": 0.5} if hooked is prune.random_unstructured else {}
    model = tiny_model("vit")
    place = "visual.transformer.resblocks.1.mlp.c_fc"
    hooked(model.get_submodule(place), "weight", **options)
    clip = make(model)
    assert_as_the_model(model, clip, place)
    trained(model)
    assert_as_the_model(model, clip, place)

    model = tiny_model("vit")
    hooked(model.visual.transformer.resblocks[1].attn, "in_proj_weight", **options)
    clip = make(model)
    trained(model)
    images = random_images(clip)
    with pytest.warns(UserWarning, match="the attention of block 1 do not fire"):
        LayerCLIPSurgery(clip).attribute_all(images)
    assert relative_error(clip(images), own_logits(model, clip, images)) < 1e-5


def quantised(model: nn.Module) -> Any:
    found = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert torch.ao.nn.quantized.dynamic.Linear in map(type, found.modules())
    return found


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:.*TypedStorage")
@pytest.mark.parametrize("what", ["image tower", "model"])
@pytest.mark.parametrize("family", ["vit", "siglip", "eva02"])
def test_dynamically_quantised_models(family: str, what: str) -> None:
    plain = tiny_model(family)
    model = copy.deepcopy(plain)
    if what == "image tower":
        model.visual = quantised(model.visual)
    else:
        model = quantised(model)
    clip, before = make(model), make(plain)
    images = random_images(clip)
    untouched = snapshot(model)
    with torch.no_grad():
        # Scales are of whole batches of tokens, and surgery's pass has other ones.
        own = model.encode_image(images, normalize=True)
        assert relative_error(clip.image_features(images), own) < 1e-5
        assert relative_error(own, before.image_features(images)) > 1e-4
        for method in ("CLIP", "ArchitectureSurgery", "SCLIP"):
            found, exact = (METHODS[method](c).attribute_all(images) for c in (clip, before))
            assert relative_error(found, exact) < 0.15, method
        # open_clip itself cannot read texts by such a tower; their features hardly change.
        assert relative_error(clip.text_features(), before.text_features()) < 0.05
    # Gradients do not pass quantised layers: maps would be those of the rest of the model.
    for method in ("LeGrad", "AttentionRelevance", "GradCam", "Saliency", "IntegratedGradients"):
        if family == "siglip" and method == "AttentionRelevance":
            continue
        with pytest.raises(TypeError, match=r"is quantized, and gradients do not pass torch\.ao"):
            METHODS[method](clip).attribute_all(images)
    with pytest.raises(TypeError, match="is quantized"):
        LayerGradCam(clip, clip.token_grid(1)).attribute(images, target=0)
    assert not differences(untouched, snapshot(model))


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:.*TypedStorage")
@pytest.mark.parametrize("family", ["resnet", pytest.param("eva01", marks=pytest.mark.slow)])
def test_quantised_layers_that_models_cannot_run_are_refused(family: str) -> None:
    model = quantised(tiny_model(family))
    with pytest.raises(TypeError), torch.no_grad():
        model.encode_image(torch.zeros(1, 3, *model.visual.image_size))
    with pytest.raises(
        TypeError, match=r"is quantized, but (open_clip|timm) reads its weight as a plain tensor"
    ):
        make(model)


def test_a_model_in_a_checkpoint_of_the_whole(tmp_path: Path) -> None:
    model = tiny_model("vit")
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    images = random_images(make(model))
    assert torch.equal(make(loaded)(images), make(model)(images))
