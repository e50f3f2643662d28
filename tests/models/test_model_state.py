"""Text features are those of the model as it is, and nothing is forgotten idly."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.models.text import _encoder as encoder_module
from captum_clip_surgery.models.text._encoder import PromptEncoder
from tests._helpers.cases import each
from tests._helpers.text_towers import Words, text_model, text_tower
from tests._helpers.tiny import relative_error

TEXTS = ["dog", "a remote control", "cat"]


def features_of(model: Any) -> Tensor:
    return PromptEncoder(model, templates=["a {}"])(TEXTS)


class Lora(nn.Module):
    """An adapter as users write their own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.scaling, self.enabled = inner, 2.0, True
        self.down = nn.Parameter(torch.randn(4, inner.in_features))
        self.up = nn.Parameter(torch.randn(inner.out_features, 4) / 4)
        self.options = {"scales": [1.0, {"gain": 1.0}]}
        self.mask = torch.ones(inner.out_features)
        self.register_buffer("quantum", torch.ones(()))

    @property
    def weight(self) -> Tensor:  # as open_clip asks for its type
        return self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x) * self.quantum
        gain = self.options["scales"][1]["gain"] * self.scaling * self.enabled
        return (out + gain * x @ self.down.T @ self.up.T) * self.mask


class Doubled(nn.Module):
    factor = 2.0

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


DOUBLED = Doubled()  # referred to weakly


def own_lora(**options: Any) -> Any:
    model = text_model(**options)
    for block in text_tower(model).transformer.resblocks:
        block.mlp.c_fc = Lora(block.mlp.c_fc)
    return model


def with_peft(*names: str) -> Any:
    model = text_model()
    for name in names:
        torch.manual_seed(len(name))
        settings = peft.LoraConfig(
            r=4, target_modules=r"transformer\..*c_fc", init_lora_weights=False, lora_alpha=8
        )
        peft.inject_adapter_in_model(settings, model, adapter_name=name)
    return model.eval()


def lora_layers(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]


def each_layer(change: Callable[[Any], object]) -> Callable[[nn.Module], None]:
    def changed(model: nn.Module) -> None:
        for layer in lora_layers(model):
            change(layer)

    return changed


def parametrized() -> Any:
    model = text_model()
    parametrize.register_parametrization(model.ln_final, "weight", Doubled())
    return model


def in_inference_mode() -> Any:
    with torch.inference_mode():
        model = text_model()
        for name, parameter in list(model.named_parameters()):
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, nn.Parameter(parameter.clone(), False))
    return model


def with_hook() -> Any:
    model = text_model()
    model.strength = [0.5]
    strength = model.strength  # shared with the hook's closure alone
    model.ln_final.register_forward_hook(lambda module, args, out: out.flip(-1) * strength[0] + out)
    del model.strength
    return model


@dataclasses.dataclass(slots=True)
class Slotted:
    gain: float = 1.0


def scaled_by(place: str) -> Callable[[], Any]:
    """A model whose modules take a factor from a place that holds more than plain values."""

    def make() -> Any:
        model = text_model()
        holder, read = PLACES[place]()
        kind = type("Scaled", (type(model.ln_final),), {"table": {"gain": 1.0}})
        kind.forward = lambda self, x: nn.LayerNorm.forward(self, x) + read(self) * x.flip(-1)
        model.ln_final.__class__ = kind
        model.ln_final.holder = holder
        return model

    return make


def named_factor(*, gain: float = 1.0) -> float:
    return gain


def deep(levels: int) -> Any:
    return types.SimpleNamespace(inner=deep(levels - 1) if levels else 1.0)


#: What is held, and how the factor is read from it.
PLACES: dict[str, Callable[[], tuple[Any, Callable[[Any], float]]]] = {
    "slots": lambda: (Slotted(), lambda m: m.holder.gain),
    "class": lambda: (None, lambda m: type(m).table["gain"]),
    "array": lambda: (np.ones(4000), lambda m: m.holder.mean()),
    "bytes": lambda: (bytearray(b"\1"), lambda m: m.holder[0]),
    "weak": lambda: (weakref.ref(DOUBLED), lambda m: m.holder().factor),
    "deep": lambda: (deep(5), lambda m: m.holder.inner.inner.inner.inner.inner.inner),
    "keyword": lambda: (named_factor, lambda m: m.holder()),
}


def hooked(make_hook: Callable[[Tensor], Any]) -> Callable[[], Any]:
    """A model that a hook steers by a vector."""

    def make() -> Any:
        model = text_model()
        torch.manual_seed(1)
        model.ln_final.register_forward_hook(make_hook(torch.randn(16)))
        return model

    return make


def hook_of(model: Any) -> Any:
    (hook,) = model.ln_final._forward_hooks.values()
    return hook


class Steering:
    def __init__(self, vector: Tensor) -> None:
        self.vector, self.times, self.seen = vector, 1, list[Tensor]()

    def __call__(self, module: object, args: object, out: Tensor) -> Tensor:
        self.seen.append(out)
        return out + self.times * self.vector


def by_layer(vector: Tensor) -> Callable[..., Tensor]:
    layer = nn.Linear(16, 16)
    return lambda module, args, out: layer(out)


def turn_hook(model: Any) -> None:
    (hook,) = model.ln_final._forward_hooks.values()
    hook.__closure__[0].cell_contents[0] = 2.0


def first_mlp(model: Any) -> Any:
    return model.transformer.resblocks[0].mlp


def mutate(tensor: Callable[[Any], Tensor], change: Callable[[Tensor], object], mode: Any = None):
    def changed(model: Any) -> None:
        with (mode or torch.no_grad)():
            change(tensor(model))

    return changed


def half(values: Tensor) -> Tensor:
    return values.mul_(torch.linspace(-1, 1, values.shape[-1]))


def set_at(path: str, value: Any) -> Callable[[Any], None]:
    def changed(model: Any) -> None:
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, model)
        setattr(owner, name, value(owner) if callable(value) else value)

    return changed


def with_method(path: str, method: Callable[..., Any]) -> Callable[[Any], None]:
    def changed(model: Any) -> None:
        owner = functools.reduce(getattr, path.split("."), model)
        owner.forward = functools.partial(method, owner)

    return changed


def flipped(module: nn.Module, x: Tensor) -> Tensor:
    return type(module).forward(module, x).flip(-1)


def assign_state(model: Any) -> None:
    state = {name: value + torch.rand_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


#: A model, and how it is changed: features afterwards must be those of a new encoder.
CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "parameter in place": (text_model, mutate(lambda m: m.ln_final.weight, half)),
    "parameter in inference mode": (
        text_model,
        mutate(lambda m: m.ln_final.weight, half, torch.inference_mode),
    ),
    "parameter through data": (text_model, lambda m: half(m.ln_final.weight.data)),
    "large parameter through data": (text_model, lambda m: m.token_embedding.weight.data.neg_()),
    "inference parameter": (
        in_inference_mode,
        mutate(lambda m: m.ln_final.weight, half, torch.inference_mode),
    ),
    "data replaced": (text_model, set_at("ln_final.weight.data", lambda w: half(w.data.clone()))),
    "data transposed": (
        text_model,
        set_at("transformer.resblocks.0.attn.out_proj.weight.data", lambda w: w.data.T),
    ),
    "parameter replaced": (
        text_model,
        set_at("ln_final.weight", lambda ln: nn.Parameter(half(ln.weight.detach().clone()))),
    ),
    "state assigned": (text_model, assign_state),
    "half precision": (text_model, lambda m: m.to(torch.bfloat16)),
    "mask in place": (text_model, mutate(lambda m: m.attn_mask, lambda t: t[2:, 1].fill_(-1.0))),
    "mask replaced": (text_model, set_at("attn_mask", lambda m: m.attn_mask - torch.eye(16))),
    "buffer in place": (own_lora, mutate(lambda m: first_mlp(m).c_fc.quantum, lambda t: t.mul_(3))),
    "buffer through data": (own_lora, lambda m: first_mlp(m).c_fc.quantum.data.mul_(3)),
    "buffer replaced": (own_lora, lambda m: setattr(first_mlp(m).c_fc, "quantum", torch.tensor(3))),
    "tensor attribute": (own_lora, lambda m: half(first_mlp(m).c_fc.mask)),
    "eps": (text_model, set_at("ln_final.eps", 0.5)),
    "pool type": (text_model, set_at("text_pool_type", "last")),
    "scaling": (own_lora, lambda m: setattr(first_mlp(m).c_fc, "scaling", 0.1)),
    "enabled": (own_lora, lambda m: setattr(first_mlp(m).c_fc, "enabled", False)),
    "nested options": (
        own_lora,
        lambda m: first_mlp(m).c_fc.options["scales"][1].update(gain=0.0),
    ),
    "forward of an instance": (text_model, with_method("ln_final", flipped)),
    "module replaced": (text_model, set_at("ln_final", lambda m: nn.LayerNorm(16, 0.5))),
    "module swapped": (
        text_model,
        lambda m: m.transformer.resblocks.__setitem__(0, m.transformer.resblocks[1]),
    ),
    "hook": (
        text_model,
        lambda m: m.ln_final.register_forward_hook(lambda module, args, out: out.flip(-1)),
    ),
    "pre-hook": (
        text_model,
        lambda m: m.ln_final.register_forward_pre_hook(lambda module, args: args[0].flip(-1)),
    ),
    "hook removed": (with_hook, lambda m: m.ln_final._forward_hooks.clear()),
    "setting of a hook": (with_hook, turn_hook),
    "vector of a hook": (
        hooked(lambda vector: lambda module, args, out: out + vector),
        lambda m: hook_of(m).__closure__[0].cell_contents.mul_(-3),
    ),
    "vector of a hook's object": (
        hooked(Steering),
        lambda m: setattr(hook_of(m), "vector", -3 * hook_of(m).vector),
    ),
    "number of a hook's object": (hooked(Steering), lambda m: setattr(hook_of(m), "times", -3)),
    "layer of a hook": (
        hooked(by_layer),
        lambda m: hook_of(m).__closure__[0].cell_contents.weight.data.mul_(-3),
    ),
    "slots": (scaled_by("slots"), set_at("ln_final.holder.gain", -2.0)),
    "table of a class": (
        scaled_by("class"),
        lambda m: type(m.ln_final).table.update(gain=-2.0),
    ),
    "large array": (scaled_by("array"), lambda m: m.ln_final.holder.__imul__(-2)),
    "bytes": (scaled_by("bytes"), lambda m: m.ln_final.holder.__setitem__(0, 9)),
    "weak reference": (
        scaled_by("weak"),
        lambda m: setattr(m.ln_final.holder(), "factor", -m.ln_final.holder().factor),
    ),
    "deep within objects": (
        scaled_by("deep"),
        set_at("ln_final.holder.inner.inner.inner.inner.inner.inner", -2.0),
    ),
    "default of a keyword": (
        scaled_by("keyword"),
        lambda m: m.ln_final.holder.__kwdefaults__.update(gain=-2.0),
    ),
    "parametrization": (
        text_model,
        lambda m: parametrize.register_parametrization(m.ln_final, "bias", Doubled()),
    ),
    "parametrization's attribute": (
        parametrized,
        lambda m: setattr(m.ln_final.parametrizations.weight[0], "factor", -1.0),
    ),
    "weight norm": (
        lambda: (m := text_model(), parametrizations.weight_norm(first_mlp(m).c_fc))[0],
        mutate(lambda m: first_mlp(m).c_fc.parametrizations.weight.original0, lambda t: t.mul_(2)),
    ),
    "spectral norm": (
        text_model,
        lambda m: parametrizations.spectral_norm(first_mlp(m).c_fc).eval(),
    ),
    "pruning": (text_model, lambda m: prune.random_unstructured(first_mlp(m).c_fc, "weight", 0.5)),
    "pruning mask": (
        lambda: (m := text_model(), prune.identity(first_mlp(m).c_fc, "weight"))[0],
        mutate(lambda m: first_mlp(m).c_fc.weight_mask, lambda t: t[::2].zero_()),
    ),
    "quantization scale": (
        lambda: torch.ao.quantization.quantize_dynamic(text_model(), {nn.Linear}),
        lambda m: first_mlp(m).c_fc.set_weight_bias(
            first_mlp(m).c_fc.weight(), torch.linspace(-9, 9, 64)
        ),
    ),
    "peft disabled": (
        lambda: with_peft("one"),
        each_layer(lambda layer: layer.enable_adapters(False)),
    ),
    "peft scale": (lambda: with_peft("one"), each_layer(lambda layer: layer.set_scale("one", 4.0))),
    "peft adapter": (
        lambda: with_peft("one", "second"),
        each_layer(lambda layer: layer.set_adapter("one")),
    ),
    "peft added": (
        lambda: with_peft("one"),
        lambda m: peft.inject_adapter_in_model(
            peft.LoraConfig(r=2, target_modules=["out_proj"], init_lora_weights=False), m, "more"
        ).eval(),
    ),
    "peft merged and scaled": (
        lambda: with_peft("one"),
        each_layer(lambda layer: (layer.set_scale("one", 4.0), layer.merge())),
    ),
    "text tower replaced": (
        lambda: text_model(CustomTextCLIP),
        lambda m: setattr(m, "text", text_model(CustomTextCLIP, layers=1).text),
    ),
}


@each("name", CHANGES)
def test_features_are_those_of_the_model_as_it_is(name: str) -> None:
    make, change = CHANGES[name]
    model = make()
    clip = ZeroShotClassifier(model, TEXTS, templates=["a {}"])
    before, empty = clip.text_features(), clip.empty_features()
    change(model)
    expected = ZeroShotClassifier(model, TEXTS, templates=["a {}"])
    assert relative_error(expected.text_features(), before) > 1e-3  # the change matters
    assert torch.equal(clip.text_features(), expected.text_features())
    assert torch.equal(clip.empty_features(), expected.empty_features())
    assert not torch.equal(clip.empty_features(), empty)


def test_what_a_hook_gathers_changes_nothing() -> None:
    model = hooked(Steering)()
    clip = ZeroShotClassifier(model, TEXTS, templates=["a {}"])
    before, seen = clip.text_features(), hook_of(model).seen
    count = len(seen)
    assert clip.text_features() is before
    assert len(seen) == count
    seen.clear()
    assert clip.text_features() is before
    assert not seen
    hook_of(model).vector.mul_(-3)  # which it uses
    assert relative_error(clip.text_features(), before) > 1e-3


@each("name", ["templates", "tokenizer", "options", "truncate"])
def test_features_are_those_of_the_encoder_as_it_is(name: str) -> None:
    class Reversing:
        on = False

        def __call__(self, texts: list[str], context_length: int) -> Tensor:
            texts = [text[::-1] for text in texts] if vars(self).get("on") else texts
            return Words("bpe")(texts, context_length)

    model, tokenizer, long = text_model(), Reversing(), "one two three " * 9
    texts = [*TEXTS, long] if name == "truncate" else TEXTS
    encoder = PromptEncoder(model, tokenizer, ["a {}"], truncate=True)
    before = encoder(texts)
    if name == "truncate":
        encoder.truncate = False
        with pytest.raises(ValueError, match="is longer than the model's context"):
            encoder(texts)
        return
    if name == "templates":
        encoder.templates = ("this is {} indeed",)
    elif name == "tokenizer":
        encoder.tokenizer = lambda texts, context_length: Words("bpe")(texts[::-1], context_length)
    else:
        tokenizer.on = True
    expected = PromptEncoder(model, encoder.tokenizer, encoder.templates)(texts)
    assert relative_error(expected, before) > 1e-3
    assert torch.equal(encoder(texts), expected)


def test_a_changed_class_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = own_lora()
    clip = ZeroShotClassifier(model, TEXTS, templates=["a {}"])
    before = clip.text_features()
    plain = Lora.forward
    monkeypatch.setattr(Lora, "forward", lambda self, x: -plain(self, x))
    assert torch.equal(clip.text_features(), features_of(model))
    assert relative_error(clip.text_features(), before) > 1e-2
    monkeypatch.undo()
    assert torch.equal(clip.text_features(), before)


def test_hooks_on_all_modules_are_seen() -> None:
    model = text_model()
    clip = ZeroShotClassifier(model, TEXTS, templates=["a {}"])
    before = clip.text_features()

    def flip(module: nn.Module, args: object, out: Any) -> Any:
        return out.flip(-1) if module is model.ln_final else None

    handle = nn.modules.module.register_module_forward_hook(flip)
    try:
        assert torch.equal(clip.text_features(), features_of(model))
        assert not torch.equal(clip.text_features(), before)
    finally:
        handle.remove()
    assert torch.equal(clip.text_features(), before)


def test_functional_call_has_features_of_its_own() -> None:
    model = text_model()
    clip = ZeroShotClassifier(model, TEXTS, templates=["a {}"])
    before = clip.text_features()
    name = "model.ln_final.weight"
    other = {name: half(model.ln_final.weight.detach().clone())}
    inside = torch.func.functional_call(_TextFeatures(clip), {f"clip.{name}": other[name]}, ())
    assert torch.equal(clip.text_features(), before)
    with torch.no_grad():
        model.ln_final.weight.copy_(other[name])
    assert torch.equal(inside, features_of(model))


class _TextFeatures(nn.Module):
    def __init__(self, clip: ZeroShotClassifier) -> None:
        super().__init__()
        self.clip = clip

    def forward(self) -> Tensor:
        return self.clip.text_features()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda clip: pickle.loads(pickle.dumps(clip))])
def test_copies_follow_their_own_model(copied: Callable[[Any], Any]) -> None:
    clip = ZeroShotClassifier(own_lora(), TEXTS, templates=["a {}"])
    before = clip.text_features()
    other = copied(clip)
    first_mlp(other.model).c_fc.scaling = 0.0
    assert torch.equal(other.text_features(), features_of(other.model))
    assert not torch.equal(other.text_features(), before)
    assert torch.equal(clip.text_features(), before)


# --- nothing is forgotten idly -------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted: list[int] = []
    plain = PromptEncoder.encode_tokens

    def encode(self: PromptEncoder, tokens: Tensor) -> Tensor:
        counted.append(len(tokens))
        return plain(self, tokens)

    monkeypatch.setattr(PromptEncoder, "encode_tokens", encode)
    return counted


class Caching(nn.LayerNorm):
    """Does to itself what modules do when they run."""

    ready, calls, kept, mask, seen = False, 0, None, None, None

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.ready, self.mask = True, torch.ones(x.shape[-1])
            self.seen = {}
        self.calls += 1
        self.kept = x
        self.seen[x.shape] = [x]
        return super().forward(x) * self.mask


def caching() -> Any:
    model = text_model()
    for block in model.transformer.resblocks:
        block.ln_2.__class__ = Caching
    return model


SAME: dict[str, tuple[Callable[[], Any], Callable[[ZeroShotClassifier], object]]] = {
    "nothing": (text_model, lambda clip: None),
    "image tower": (text_model, lambda clip: half(clip.model.visual.proj.data)),
    "logit scale": (text_model, lambda clip: clip.model.logit_scale.data.add_(1)),
    "gradients": (text_model, lambda clip: clip.model.requires_grad_(False).requires_grad_(True)),
    "same value": (text_model, lambda clip: setattr(clip.model.ln_final, "eps", 1e-5)),
    "same hook": (with_hook, lambda clip: None),
    "eval": (text_model, lambda clip: clip.eval()),
    "peft": (lambda: with_peft("one"), lambda clip: None),
    "own passes": (caching, lambda clip: clip.model.encode_text(torch.ones(1, 16).long())),
    "maps": (
        text_model,
        lambda clip: LayerCLIPSurgery(clip).attribute_all(torch.zeros(1, 3, *clip.native_size)),
    ),
}


@each("name", SAME)
def test_the_same_state_is_not_encoded_again(name: str, passes: list[int]) -> None:
    make, act = SAME[name]
    clip = ZeroShotClassifier(make(), TEXTS, templates=["a {}"])
    act(clip)
    clip.text_features(), clip.empty_features()
    passes.clear()
    for _ in range(3):
        act(clip)
        clip.text_features()
        clip.with_texts(TEXTS[:2]).empty_features()
    assert not passes


def test_what_modules_do_as_they_run_is_no_change(passes: list[int]) -> None:
    model = caching()
    clip = ZeroShotClassifier(model, TEXTS, templates=["a {}"])
    assert relative_error(clip.text_features(), features_of(text_model())) < 1e-6
    clip.with_texts(["a bird"])  # which texts are encoded twice shows what each pass rewrites
    passes.clear()
    for count in range(3):
        clip.with_texts([f"text {count}"])
    assert passes == [1, 1, 1]


# --- during a call -------------------------------------------------------------------------------

STEPS: dict[str, Callable[[Any], object]] = {
    "parameter": lambda m: half(m.ln_final.weight.detach()),
    "data": lambda m: setattr(m.ln_final.weight, "data", half(m.ln_final.weight.data.clone())),
    "flag": lambda m: setattr(first_mlp(m).c_fc, "enabled", False),
    "scaling": lambda m: setattr(first_mlp(m).c_fc, "scaling", 0.1),
    "buffer": lambda m: first_mlp(m).c_fc.quantum.mul_(3),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_change_between_parts_is_refused_and_not_kept(
    name: str, place: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(encoder_module, "TEXTS_PER_BATCH", 2)
    model = own_lora()
    texts = [f"text {number}" for number in range(6)]
    encoder = PromptEncoder(model, templates=["a {}"], cache=tmp_path)
    original = features_of(model)
    encoder.generation()  # holds the features against the model's own
    plain, calls = PromptEncoder.encode_tokens, []

    def encode(self: PromptEncoder, tokens: Tensor) -> Tensor:
        calls.append(1)
        found = plain(self, tokens)
        if len(calls) == place + 1:
            STEPS[name](model)
        return found

    monkeypatch.setattr(PromptEncoder, "encode_tokens", encode)
    with pytest.raises(RuntimeError, match=r"was changed during the call .*copy\.deepcopy"):
        encoder(texts)
    monkeypatch.undo()
    assert relative_error(encoder(texts), PromptEncoder(model, templates=["a {}"])(texts)) < 1e-5
    # The disk has nothing of the old model under which the new model's features lie.
    again = own_lora()
    found = PromptEncoder(again, templates=["a {}"], cache=tmp_path)(texts)
    assert relative_error(found, PromptEncoder(again, templates=["a {}"])(texts)) < 1e-5
    assert relative_error(features_of(again), original) < 1e-5


def test_a_thread_that_turns_an_adapter_leaves_no_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "TEXTS_PER_BATCH", 2)
    model = own_lora()
    layer = first_mlp(model).c_fc
    texts = [f"text {number}" for number in range(8)]
    scales = [0.1 * number for number in range(16)]
    expected = []
    for layer.scaling in scales:
        expected.append(PromptEncoder(model, templates=["{}"])(texts))
    layer.scaling = scales[0]
    ended = threading.Event()

    def turn() -> None:
        for layer.scaling in scales:
            if ended.wait(5e-3):
                return

    thread = threading.Thread(target=turn)
    thread.start()
    refused = 0
    encoder = PromptEncoder(model, templates=["{}"])
    try:
        while thread.is_alive():
            try:
                found = encoder(texts)
            except RuntimeError as error:
                refused += "a setting of the model was changed during the call" in str(error)
                continue
            assert any(torch.equal(found, each) for each in expected)
    finally:
        ended.set()
        thread.join()
    assert refused
    assert torch.equal(encoder(texts), expected[-1])
