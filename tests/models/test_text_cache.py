"""Text features on disk: what they are found under, other processes, damaged rows."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor, nn

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.models.text import _encoder as encoder
from captum_clip_surgery.models.text import _fingerprint
from captum_clip_surgery.models.text._cache import FILE, TextCache
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._fingerprint import fingerprint, is_open_clip_bpe
from tests._helpers.text_towers import text_model
from tests._helpers.tiny import relative_error

TEXTS = ["dog", "a remote control", "cat"]
TWO = ["a photo of the {} here.", "{}"]


class Passes:
    """How often texts pass through a tower, without hooks, which keep features off the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        plain = PromptEncoder._encode

        def counted(encoder: PromptEncoder, texts: list[str]) -> Tensor:
            self.count += len(texts)
            return plain(encoder, texts)

        monkeypatch.setattr(PromptEncoder, "_encode", counted)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    return Passes(monkeypatch)


def encode(folder: Path | None, model: nn.Module | None = None, **options) -> Tensor:
    """By an encoder of its own, as a new process would have."""
    options = {"templates": TWO, **options}
    return PromptEncoder(model or text_model(), cache=folder, **options)(TEXTS)


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ZeroShotClassifier(text_model(), TEXTS)
    assert not list(tmp_path.iterdir())


def test_features_are_computed_once_for_all_encoders(tmp_path, passes):
    folder = tmp_path / "new" / "folder"
    expected = encode(None)
    assert torch.equal(encode(folder), expected)
    passes.count = 0
    assert torch.equal(encode(folder), expected)
    assert passes.count == 0
    clip = ZeroShotClassifier(text_model(), [*TEXTS, "car"], templates=TWO, cache=folder)
    assert passes.count == 1  # the one that is new
    assert torch.equal(clip.text_features()[:3], expected)
    clip.with_texts(["car"])
    assert passes.count == 1
    assert [path.name for path in folder.iterdir()] == [FILE]


def scaled(name: str) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        parameter = model.get_parameter(name)
        with torch.no_grad():
            parameter.view(-1)[-1].mul_(1.01)

    return change


def negated(model: nn.Module) -> None:
    with torch.no_grad():
        model.token_embedding.weight.neg_()


def swapped(model: nn.Module) -> None:
    with torch.no_grad():
        model.token_embedding.weight.copy_(model.token_embedding.weight.flip(0))


def other_eps(model: nn.Module) -> None:
    model.ln_final.eps = 0.1


def other_mask(model: nn.Module) -> None:
    model.attn_mask[2, 1] = -1.0


CHANGES = {
    "projection": scaled("text_projection"),
    "bias": scaled("transformer.resblocks.1.mlp.c_fc.bias"),
    "embedding": scaled("token_embedding.weight"),
    "signs": negated,
    "order": swapped,
    "setting": other_eps,
    "buffer": other_mask,
    "double": nn.Module.double,
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_tower_has_other_features(tmp_path, passes, change):
    encode(tmp_path)
    model = text_model()
    CHANGES[change](model)
    passes.count = 0
    features = encode(tmp_path, model)
    assert passes.count == len(TEXTS)
    assert torch.equal(features, encode(None, model))
    passes.count = 0
    assert torch.equal(encode(tmp_path, model), features)
    assert passes.count == 0


def test_a_change_while_in_use_asks_for_another_tower(tmp_path):
    model = text_model()
    encoder = PromptEncoder(model, templates=TWO, cache=tmp_path)
    before = encoder(TEXTS)
    scaled("text_projection")(model)
    assert torch.equal(encoder(TEXTS), encode(None, model))
    assert not torch.equal(encoder(TEXTS), before)


@pytest.mark.parametrize("size", [1, 1000, 2**17, 10**6 + 3])
def test_every_bit_counts(size):
    """Large weights are condensed before they are digested; none of their bits may be lost."""
    tower = nn.Module()
    tower.weight = nn.Parameter(torch.randn(size))
    values = tower.weight.data
    seen: dict[bytes, bytes] = {}

    def look() -> None:
        seen[values.numpy().tobytes()] = fingerprint(tower)

    look()
    for place in {0, size // 3, size // 2, size - 1}:
        for bit in (0, 15, 30):
            values.view(torch.int32)[place] ^= 1 << bit
            look()
    values.neg_()
    look()
    values.copy_(values.flip(0))
    look()
    assert len(seen) > 4
    assert len(set(seen.values())) == len(seen)


def test_the_image_tower_does_not_matter(tmp_path, passes):
    model = text_model()
    encode(tmp_path, model)
    passes.count = 0
    with torch.no_grad():
        model.visual.proj.mul_(2)
    encode(tmp_path, model)
    assert passes.count == 0


def test_templates_and_tokenizers_have_features_of_their_own(tmp_path, passes):
    def shouting(texts: list[str], context_length: int) -> Tensor:
        return open_clip.tokenize([f"{text} now" for text in texts], context_length=context_length)

    def quoted(text: str) -> str:
        return f"'{text}'"

    for options in ({}, dict(templates=["my {}"]), dict(templates=[quoted]), dict(truncate=True)):
        passes.count = 0
        assert torch.equal(encode(tmp_path, **options), encode(None, **options))
        assert passes.count == 2 * len(TEXTS)
    passes.count = 0
    called = encode(tmp_path, tokenizer=shouting)
    assert torch.equal(encode(tmp_path, tokenizer=shouting), called)
    assert passes.count == len(TEXTS)
    assert relative_error(called, encode(None)) > 1e-2
    # The same words in another object, as every get_tokenizer makes.
    passes.count = 0
    own = open_clip.tokenizer.SimpleTokenizer()
    assert is_open_clip_bpe(own)
    assert not is_open_clip_bpe(shouting)
    encode(tmp_path, tokenizer=own)
    assert passes.count == 0
    own.encoder["dog</w>"] = own.encoder["cat</w>"]
    features = encode(tmp_path, tokenizer=own)
    assert torch.equal(features[0], features[2])


def test_other_versions_have_other_features(tmp_path, passes, monkeypatch):
    encode(tmp_path)
    monkeypatch.setattr(open_clip, "__version__", "99")
    assert _fingerprint.package_versions()["open_clip"] == "99"
    passes.count = 0
    encode(tmp_path)
    assert passes.count == len(TEXTS)


def test_too_long_texts_are_refused_though_cut_ones_are_known(tmp_path):
    texts = ["dog " * 40]
    PromptEncoder(text_model(), templates=(), truncate=True, cache=tmp_path)(texts)
    with pytest.raises(ValueError, match="longer than the model's context"):
        PromptEncoder(text_model(), templates=(), cache=tmp_path)(texts)


def test_what_hooks_make_is_not_kept(tmp_path, passes):
    model = text_model(CustomTextCLIP)
    expected = encode(None, model)
    handle = model.text.ln_final.register_forward_hook(lambda module, args, out: out.flip(-1))
    with pytest.warns(UserWarning, match="ln_final has hooks"):
        encode(tmp_path, model)
    handle.remove()
    assert torch.equal(encode(tmp_path, model), expected)


# --- what no parameter tells ---------------------------------------------------------------------


class Adapter(nn.Module):
    """Around a feed-forward; its settings stand in attributes of every kind."""

    sign = 1.0

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.lora_alpha, self.enabled = inner, 16, True
        self.scaling = {"default": 1.0}
        self.options = SimpleNamespace(gain=1.0, kinds={"a", "b"}, mask=torch.ones(16))
        self.act: Callable[[Tensor], Tensor] = torch.relu

    def forward(self, x: Tensor) -> Tensor:
        scale = self.lora_alpha / 16 * self.scaling["default"] * self.options.gain * self.enabled
        return self.sign * self.act(self.inner(x)) * scale * self.options.mask


def adapted() -> Any:
    model = text_model()
    model.transformer.resblocks[1].mlp = Adapter(model.transformer.resblocks[1].mlp)
    return model


UNCOUNTED: dict[str, Callable[[Adapter], object]] = {
    "alpha": lambda own: setattr(own, "lora_alpha", 32),
    "flag": lambda own: setattr(own, "enabled", False),
    "entry": lambda own: own.scaling.update(default=2.0),
    "object's attribute": lambda own: setattr(own.options, "gain", 3.0),
    "tensor attribute": lambda own: own.options.mask[3].fill_(-1.0),
    "function": lambda own: setattr(own, "act", torch.sigmoid),
    "class": lambda own: setattr(own, "__class__", Negated),
}


class Negated(Adapter):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


@pytest.mark.parametrize("name", UNCOUNTED)
def test_settings_are_part_of_the_key(tmp_path, passes, name):
    encode(tmp_path, adapted())
    model = adapted()
    UNCOUNTED[name](model.transformer.resblocks[1].mlp)
    passes.count = 0
    found = encode(tmp_path, model)
    assert passes.count == len(TEXTS)
    assert torch.equal(found, encode(None, model))
    passes.count = 0
    # Another model of the same kind, as another process would have it.
    model = adapted()
    UNCOUNTED[name](model.transformer.resblocks[1].mlp)
    assert torch.equal(encode(tmp_path, model), found)
    assert passes.count == 0


UNTELLABLE: dict[str, Callable[[Any], object]] = {
    "hook": lambda model: model.ln_final.register_forward_hook(lambda m, a, out: -out),
    "forward": lambda model: setattr(model.ln_final, "forward", lambda x: -x),
    "function of its own": lambda model: setattr(
        model.transformer.resblocks[1].mlp, "act", lambda x: x * 3
    ),
    "object": lambda model: setattr(
        model.transformer.resblocks[1].mlp, "other", (i for i in range(3))
    ),
    "quantization": lambda model: torch.ao.quantization.quantize_dynamic(
        model, {nn.Linear}, inplace=True
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", UNTELLABLE)
def test_what_cannot_be_told_is_not_stored_and_warned_of_once(tmp_path, passes, name):
    encode(tmp_path, adapted())
    before = (tmp_path / FILE).read_bytes()
    model = adapted()
    UNTELLABLE[name](model)
    encoder = PromptEncoder(model, templates=TWO, cache=tmp_path)
    with pytest.warns(UserWarning, match="text features are not stored in .* other processes"):
        found = encoder(TEXTS)
    assert torch.equal(found, encode(None, model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(["another text"])
    assert (tmp_path / FILE).read_bytes() == before


def test_a_setting_of_a_class_is_part_of_the_key(tmp_path, monkeypatch):
    encode(tmp_path, adapted())
    monkeypatch.setattr(Adapter, "sign", -1.0)
    assert torch.equal(encode(tmp_path, adapted()), encode(None, adapted()))


def test_a_replaced_method_of_a_class_is_not_kept(tmp_path, monkeypatch):
    model = text_model()
    plain = type(model.ln_final).forward
    monkeypatch.setattr(type(model.ln_final), "forward", lambda self, x: -plain(self, x))
    with pytest.warns(UserWarning, match=r"LayerNorm\.forward was replaced"):
        changed = encode(tmp_path, model)
    monkeypatch.undo()
    assert not torch.equal(changed, encode(tmp_path, model))
    assert torch.equal(encode(tmp_path, model), encode(None, model))


def test_a_template_that_changes_its_mind_does_not_poison(tmp_path):
    said = iter(f"{word} {{}}" for word in ["one", "a", "a", "one", "some", "one"] * 20)

    def fickle(text: str) -> str:
        return next(said).format(text)

    for _ in range(5):
        encode(tmp_path, templates=[fickle])
    for word in ("one", "a", "some"):
        options = {"templates": [f"{word} {{}}"]}
        assert relative_error(encode(tmp_path, **options), encode(None, **options)) < 1e-5


def test_a_tokenizer_that_changes_its_mind_does_not_poison(tmp_path):
    turns = iter(["", "", "red ", "", "red "] * 100)

    def fickle(texts: list[str], context_length: int) -> Tensor:
        added = next(turns)  # as dropout of merges does
        written = [added + text if "here" in text else text for text in texts]
        return open_clip.tokenize(written, context_length=context_length)

    def steady(texts: list[str], context_length: int) -> Tensor:
        return open_clip.tokenize(texts, context_length=context_length)

    for _ in range(5):
        encode(tmp_path, tokenizer=fickle)
    found = encode(tmp_path, tokenizer=steady)
    assert relative_error(found, encode(None, tokenizer=steady)) < 1e-5


# --- processes -----------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests._helpers.text_towers import text_model
from captum_clip_surgery.models.text._encoder import PromptEncoder
import torch
if {known}:
    PromptEncoder._encode = None  # whoever calls it fails
texts = [f"text {{i}}" for i in range({start}, {start} + 40)]
features = PromptEncoder(text_model(), templates=["my {{}}"], cache={folder!r})
found = torch.cat([features([text]) for text in texts])
torch.save(found, Path({folder!r}) / "{name}.pt")
"""


def start(folder: Path, name: str, first: int, known: bool = False) -> subprocess.Popen[bytes]:
    tests = str(Path(__file__).parent)
    script = SCRIPT.format(tests=tests, folder=str(folder), name=name, start=first, known=known)
    return subprocess.Popen([sys.executable, "-W", "error::UserWarning", "-c", script])


@pytest.mark.slow
def test_processes_share_a_folder_and_write_at_once(tmp_path):
    both = [start(tmp_path, "one", 0), start(tmp_path, "two", 20)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert start(tmp_path, "three", 20, known=True).wait(120) == 0
    one, two, three = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two", "three"))
    assert torch.equal(two, three)
    torch.testing.assert_close(one[20:], two[:20])
    here = PromptEncoder(text_model(), templates=["my {}"])([f"text {i}" for i in range(20, 60)])
    torch.testing.assert_close(here, three)
    with sqlite3.connect(tmp_path / FILE) as database:
        assert database.execute("SELECT count(*) FROM features").fetchone() == (60,)


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["data", "dtype", "checksum"])
def test_a_damaged_row_is_computed_anew(tmp_path, passes, column):
    expected = encode(tmp_path)
    damage = {"data": "zeroblob(64)", "dtype": "'float64'", "checksum": "NULL"}[column]
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute(f"UPDATE features SET {column} = {damage}")
    database.close()
    passes.count = 0
    with pytest.warns(UserWarning, match=f"a text feature in .*{FILE} is damaged and computed"):
        assert torch.equal(encode(tmp_path), expected)
    assert passes.count == len(TEXTS)
    passes.count = 0
    assert torch.equal(encode(tmp_path), expected)  # written anew
    assert passes.count == 0


def test_a_row_under_anothers_key_is_not_taken(tmp_path):
    cache = TextCache(tmp_path)
    cache.put({b"a": torch.ones(3), b"b": torch.zeros(3)})
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("DELETE FROM features WHERE key = ?", (b"b",))
        database.execute("UPDATE features SET key = ?", (b"b",))
    database.close()
    with pytest.warns(UserWarning, match="damaged"):
        assert cache.get([b"a", b"b"]) == {}


# --- the store alone -----------------------------------------------------------------------------


def test_many_features_of_both_widths(tmp_path):
    cache = TextCache(tmp_path)
    keys = [hashlib.sha256(str(i).encode()).digest() for i in range(1200)]
    features = {key: torch.randn(8, dtype=torch.float64) for key in keys}
    features[keys[0]] = torch.randn(8)
    cache.put(features)
    found = cache.get([*keys, b"unknown"])
    assert set(found) == set(keys)
    for key in keys:
        assert found[key].dtype == features[key].dtype
        assert torch.equal(found[key], features[key])
    assert len(keys) > encoder.TEXTS_PER_BATCH
