"""Compiled models are unwrapped; scripted ones, whose hooks never fire, are refused."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from captum_clip_surgery import LayerCLIPSimilarity, LayerCLIPSurgery, ZeroShotClassifier
from tests._helpers.cases import each
from tests._helpers.tiny import ONE_MODEL, TOWERS, quick_on, tiny_model
from tests._helpers.tower_kinds import TINY

TEXTS = ["dog", "cat"]
TEMPLATES = ["a photo of a {}."]
each_family = pytest.mark.parametrize("family", TOWERS)
each_slowly = pytest.mark.parametrize("family", quick_on(("vit",), TINY))


@pytest.mark.slow
@each_slowly
@each("called", [False, True])
@each("what", ["model", "tower"])
def test_compiled_models_are_unwrapped(family, what, called):
    plain = ZeroShotClassifier(tiny_model(family), TEXTS, templates=TEMPLATES)
    model = tiny_model(family)
    given: Any = model
    if what == "model":
        given = torch.compile(model, backend="eager")
    else:
        model.visual = torch.compile(model.visual, backend="eager")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *plain.native_size, generator=generator)
    if called:
        with torch.no_grad():
            given.encode_image(images) if what == "tower" else given(images)
    clip = ZeroShotClassifier(given, TEXTS, templates=TEMPLATES)
    assert clip.model is model
    larger = torch.randn(1, 3, *[2 * side for side in plain.native_size], generator=generator)
    for batch in (images, larger):
        assert torch.equal(clip(batch), plain(batch))
        for method in (LayerCLIPSurgery, LayerCLIPSimilarity):
            actual, expected = (method(c).attribute_all(batch) for c in (clip, plain))
            assert torch.equal(actual, expected)
    fired: list[nn.Module] = []
    handles = [
        block.register_forward_hook(lambda module, *_: fired.append(module))
        for block in clip.tower.blocks
    ]
    clip(images)
    assert fired == [*clip.tower.blocks]
    for handle in handles:
        handle.remove()
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
def test_explaining_compiles_to_one_graph(family):
    """With ready features; remembered ones of texts are looked up outside of the graphs."""
    torch.compiler.reset()
    model = tiny_model(family)
    clip = ZeroShotClassifier(model, TEXTS, templates=TEMPLATES)
    features = clip.text_features().clone()
    ready = ZeroShotClassifier.from_features(model, features, clip.empty_features())
    images = torch.randn(2, 3, *clip.native_size, generator=torch.Generator().manual_seed(0))
    for given, whole in ((ready, True), (clip, False)):
        surgery = LayerCLIPSurgery(given)
        expected = surgery.attribute_all(images)
        explain = partial(surgery.attribute_all, check_finite=False)
        compiled = torch.compile(explain, backend="eager", fullgraph=whole)
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), expected)
    torch.compiler.reset()


def _script(module: nn.Module, *inputs: Tensor) -> nn.Module:
    return torch.jit.script(module)


def _trace(module: nn.Module, *inputs: Tensor) -> nn.Module:
    return torch.jit.trace(module, inputs, check_trace=False, strict=False)


@pytest.mark.parametrize("family", ONE_MODEL)
@each("convert", [_script, _trace])
@each("what", ["model", "tower"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_scripted_models_are_refused(family, what, convert):
    model = tiny_model(family)
    size = ZeroShotClassifier(model, TEXTS, templates=TEMPLATES).native_size
    images = torch.zeros(len(TEXTS), 3, *size)
    given: Any = model
    if what == "model":
        given = convert(model, images, open_clip.tokenize(TEXTS, model.context_length))
    else:
        model.visual = convert(model.visual, images)
    with pytest.raises(TypeError, match="ScriptModule"):
        ZeroShotClassifier(given, TEXTS, templates=TEMPLATES)


@pytest.mark.parametrize("family", ONE_MODEL)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_open_clip_scripts_is_refused(family, tmp_path):
    config = {"model_cfg": TINY[family].config, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(tiny_model(family).state_dict(), tmp_path / "open_clip_model.safetensors")
    with pytest.raises(TypeError, match="ScriptModule, whose hooks never fire; load the model"):
        ZeroShotClassifier.from_pretrained(f"local-dir:{tmp_path}", None, TEXTS, jit=True)


@pytest.mark.slow
def test_wrapped_classifiers_and_compiled_text_towers_are_named():
    clip = ZeroShotClassifier(tiny_model("vit"), TEXTS, templates=TEMPLATES)
    for wrapped in (torch.compile(clip), nn.DataParallel(clip)):
        with pytest.raises(TypeError, match=r"one inside .*; pass the classifier itself"):
            LayerCLIPSurgery(wrapped)
    model = tiny_model("vit")
    model.transformer = torch.compile(model.transformer, backend="eager")
    with pytest.raises(TypeError, match="the text tower CLIP is compiled or has compiled parts"):
        ZeroShotClassifier(model, TEXTS, templates=TEMPLATES)


@pytest.mark.slow
def test_maps_of_fixed_text_features_are_exported():
    clip = ZeroShotClassifier(tiny_model("vit"), TEXTS, templates=())
    fixed = ZeroShotClassifier.from_features(
        clip.model, clip.text_features(), clip.empty_features()
    )
    images = torch.randn(3, 3, *clip.native_size, generator=torch.Generator().manual_seed(0))

    class Explained(nn.Module):
        def __init__(self, given: ZeroShotClassifier) -> None:
            super().__init__()
            self.clip, self.surgery = given, LayerCLIPSurgery(given)

        def forward(self, images: Tensor) -> Tensor:
            return self.surgery.attribute_all(images)

    batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(Explained(fixed).eval(), (images,), dynamic_shapes=batch)
    expected = LayerCLIPSurgery(clip).attribute_all(images)
    for size in (1, 3):
        torch.testing.assert_close(program.module()(images[:size]), expected[:size])
    with pytest.raises(TypeError, match=r"needs fixed text features.*from_features"):
        torch.export.export(Explained(clip).eval(), (images,))
