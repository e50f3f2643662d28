"""`from_pretrained` on everything that people type, and the errors on what is nearly right."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.demo import MODEL_FOLDER
from captum_clip_surgery.models import _loading, _sources
from captum_clip_surgery.models._shapes import matching_configurations
from tests._helpers.cases import each
from tests._helpers.model_folders import edit
from tests._helpers.tiny import relative_error, tiny_model
from tests._helpers.tower_kinds import TINY
from tests._helpers.transformers_models import NAMES, build, own_features, processor, save

TEXTS = ["a dog", "tree"]


def load(name: Any, pretrained: Any = None, **options: Any) -> ZeroShotClassifier:
    return ZeroShotClassifier.from_pretrained(name, pretrained, TEXTS, templates=[], **options)


def refused(kind: type[Exception], message: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(kind, match=message) as caught:
        load(*arguments, **options)
    assert len(str(caught.value).splitlines()) <= 3


def images(clip: ZeroShotClassifier) -> Tensor:
    return torch.randn(2, 3, *clip.native_size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save("CLIPModel", folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


# --- folders in transformers' form ---------------------------------------------------------------


@pytest.mark.slow
@each("name", NAMES)
def test_folders_of_every_family(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("family") / "model"
    model = save(name, folder)
    clip = load(folder)
    own = transformers.AutoTokenizer.from_pretrained(folder)
    given = ZeroShotClassifier(model, TEXTS, tokenizer=own, processor=processor(name), templates=[])
    assert relative_error(clip.text_features(), given.text_features()) < 1e-6
    assert relative_error(clip(images(clip)), given(images(clip))) < 1e-5
    assert clip.preprocessing == given.preprocessing
    assert f"loaded from={folder}, {name} of transformers" in repr(clip)
    assert not clip.training


def test_options_and_what_is_chosen(folder):
    clip = load(folder, precision="bf16", mean=(0.1, 0.2, 0.3), interpolation="nearest")
    assert clip.tower.dtype == torch.bfloat16
    assert clip.preprocessing.mean == (0.1, 0.2, 0.3)
    assert clip.preprocessing.interpolation == "nearest"
    refused(TypeError, "take no option 'quick_gelu'; expected device,", folder, quick_gelu=True)
    refused(ValueError, "precision must be one of fp32", folder, precision="int8")
    refused(ValueError, "has weights of its own, so pretrained=", folder, "openai")


def test_weights_in_other_files(folder):
    state = load_file(folder / "model.safetensors")
    expected = load(folder).text_features()
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[:20]}
    shards["model-00002-of-00002.safetensors"] = names[20:]
    for file, part in shards.items():
        save_file({name: state[name] for name in part}, folder / file, {"format": "pt"})
    table = {name: file for file, part in shards.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    assert torch.equal(load(folder).text_features(), expected)
    index.write_text(json.dumps({"weight_map": {"logit_scale": "../other.safetensors"}}))
    refused(ValueError, "expected files of safetensors next to it", folder)
    index.unlink()
    refused(FileNotFoundError, "no weights", folder)
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(load(folder).text_features(), expected)


def test_a_folder_of_sentence_transformers(folder):
    top = folder.parent / "sentence"
    shutil.copytree(folder, top / "0_CLIPModel")
    rows = [{"idx": 0, "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (top / "modules.json").write_text(json.dumps(rows))
    assert torch.equal(load(top).text_features(), load(folder).text_features())
    rows.append({"idx": 1, "path": "1_Dense", "type": "sentence_transformers.models.Dense"})
    (top / "modules.json").write_text(json.dumps(rows))
    refused(ValueError, "lists CLIPModel, Dense, expected only a CLIPModel", top)
    rows[:] = [{"path": "../model", "type": "sentence_transformers.models.CLIPModel"}]
    (top / "modules.json").write_text(json.dumps(rows))
    refused(ValueError, "expected a folder next to the file", top)


def test_two_forms_in_one_folder(folder):
    for file in Path(MODEL_FOLDER).iterdir():
        if file.is_file() and not (folder / file.name).exists():
            shutil.copy(file, folder)
    refused(ValueError, "write local-dir:.* for the first or hf:.* for the second", folder)
    assert "transformers CLIP" in repr(load(f"hf:{folder}"))
    only = folder.parent / "only"
    shutil.copytree(MODEL_FOLDER, only)
    assert "in open_clip's form" in repr(load(only))


@each(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map is not an option that a file may set"),
        ({"attn_implementation": "kernels/x"}, "attn_implementation is not an option"),
        ({"quantization_config": {"quant_method": "x"}}, "quantization_config is not an option"),
        ({"vision_config__hidden_size": 2**19}, "describes .* parameters, and the weights next to"),
        ({"vision_config__image_size": 64}, "not of one model: vision_model.embeddings.position"),
        ({"text_config__max_position_embeddings": 20}, "not of one model: text_model.embed"),
        ({"vision_config__num_hidden_layers": 4}, "lacks 16 weights of CLIPModel, which would"),
        ({"text_config__hidden_act": "nonsense"}, "describes no model"),
        ({"model_type": "bert"}, "model_type is 'bert', expected one of clip,"),
    ],
)
def test_configurations_that_are_refused(saved, tmp_path_factory, changes, message):
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("bad") / "model"))
    edit(folder / "config.json", **changes)
    refused(ValueError, message, f"hf:{folder}")


@each(
    ("kind", "message"),
    [
        ("align", "AlignModel of transformers is not supported: .* EfficientNet"),
        ("videoprism", "encodes videos"),
        ("clip_vision_model", "one tower of a dual encoder; load CLIPModel"),
    ],
)
def test_unsupported_models_are_refused_before_anything_is_downloaded(
    saved, tmp_path_factory, monkeypatch, kind, message
):
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("other") / "model"))
    edit(folder / "config.json", model_type=kind)
    refused(ValueError, message, folder)
    read: list[str] = []

    def download(name: str, file: str, **_: Any) -> str:
        read.append(file)
        return str(folder / file)

    monkeypatch.setattr(_sources, "_list_files", lambda *_: ["config.json", "model.safetensors"])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    refused(ValueError, message, "someone/model")
    assert read == ["config.json"]


def test_adapters_links_and_missing_preprocessing(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match="records no preprocessing"):
        load(folder)
    (folder / "adapter_config.json").write_text("{}")
    refused(ValueError, "has an adapter .* merge it", folder)
    (folder / "config.json").unlink()
    refused(ValueError, "holds only an adapter of peft", folder)
    (folder / "adapter_config.json").unlink()
    refused(FileNotFoundError, "holds no model: no open_clip_config.json", folder)


def test_links_lead_nowhere(folder):
    shutil.move(folder / "tokenizer.json", folder.parent / "elsewhere.json")
    (folder / "tokenizer.json").symlink_to(folder.parent / "elsewhere.json")
    refused(ValueError, "is a link that leads out of its folder", folder)


@each("left", [(), ("vocab.json",), ("merges.txt", "tokenizer_config.json")])
def test_a_folder_without_a_vocabulary_is_refused(saved, tmp_path_factory, left):
    """transformers would make a tokenizer to which all words are the same."""
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("words") / "model"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    for name in left:
        (folder / name).write_text("{}")
    refused(FileNotFoundError, "has no tokenizer .* or pass tokenizer=", folder)
    own = transformers.AutoTokenizer.from_pretrained(saved)
    assert torch.equal(load(folder, tokenizer=own).text_features(), load(saved).text_features())


@each(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS .* git lfs pull"),
        ("<!doctype html>", r"is a web page \(HTML\)"),
        ("", "is not JSON"),
    ],
)
def test_configurations_and_tokenizers_that_were_not_downloaded(
    saved, tmp_path_factory, content, message
):
    for name in ("tokenizer.json", "preprocessor_config.json", "config.json"):
        folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("cut") / "model"))
        (folder / name).write_text(content)
        refused(ValueError, f"{name} {message}", folder)


def test_another_size_of_preprocessing_is_told(folder):
    edit(folder / "preprocessor_config.json", crop_size={"height": 64, "width": 64})
    with pytest.warns(UserWarning, match=r"prepares images of \[64\] pixels, .* built for 32"):
        load(folder)


# --- repositories --------------------------------------------------------------------------------


@pytest.fixture
def cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the hub that holds one repository, without a network."""
    root = tmp_path / "cache" / "models--someone--clip"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("a" * 40)
    shutil.copytree(folder, root / "snapshots" / ("a" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_a_repository_in_the_cache(cache, folder):
    clip = load("someone/clip", cache_dir=cache)
    assert torch.equal(clip.text_features(), load(folder).text_features())
    assert "loaded from=someone/clip of the hub, CLIPModel of transformers" in repr(clip)
    snapshot = cache / "models--someone--clip" / "snapshots" / ("a" * 40)
    (snapshot / "open_clip_config.json").write_text("{}")
    message = "write hf-hub:someone/clip for the first or hf:someone/clip for the second"
    refused(ValueError, message, "someone/clip", cache_dir=cache)
    assert "transformers CLIP" in repr(load("hf:someone/clip", cache_dir=cache))
    refused(OSError, "neither a folder nor .* cannot be loaded", "someone/other", cache_dir=cache)


def test_one_form_of_weights_is_fetched(folder, monkeypatch):
    files = [*(path.name for path in folder.iterdir()), "pytorch_model.bin", "flax_model.msgpack"]
    asked: list[list[str]] = []

    def snapshot(name: str, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(_sources, "_list_files", lambda *_: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda n, f, **_: str(folder / f))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    load("someone/clip")
    assert asked == [["*.json", "*.txt", "*.model", "model.safetensors"]]


def test_an_unsupported_tower_of_open_clip_is_refused_before_a_download(monkeypatch):
    monkeypatch.setattr(open_clip, "create_model_and_transforms", None)
    with pytest.raises(TypeError, match="ConvNeXt: it convolves"):
        load("convnext_base", "laion400m_s13b_b51k")


# --- checkpoint files ----------------------------------------------------------------------------


SMALL, LARGE = "tiny-32-of-the-door", "tiny-48-of-the-door"


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[None]:
    """Two configurations that differ in the size of images alone."""
    for name, side in ((SMALL, 32), (LARGE, 48)):
        config = TINY["vit"].config
        config["vision_cfg"]["image_size"] = side
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    yield
    for name in (SMALL, LARGE):
        del open_clip.factory._MODEL_CONFIGS[name]


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def checkpoint(kind: str) -> Any:
    state = tiny_model("vit").state_dict()
    loss = {"loss.weight": torch.ones(3)}
    compiled = {name.replace("visual.", "visual._orig_mod."): v for name, v in state.items()}
    return {
        "plain": state,
        "lightning": {"state_dict": prefixed(state, "model.") | loss, "epoch": 3},
        "compiled": {"state_dict": prefixed(state, "_orig_mod.")},
        "one compiled part": compiled,
        "both": {"state_dict": prefixed(state, "_orig_mod.module.")},
        "data-parallel": prefixed(state, "module."),
        "in a table": {"model": state, "optimizer": {"state": {}}},
        "a deeper table": {"checkpoint": {"net": prefixed(state, "clip.")}},
        "two": {"state_dict": prefixed(state, "student.") | prefixed(state, "teacher.")},
        "two tables": {"model": state, "ema": state},
    }[kind]


@pytest.mark.slow
@each(
    "kind",
    ["plain", "lightning", "compiled", "one compiled part", "both", "data-parallel", "in a table",
     "a deeper table"],
)  # fmt: skip
def test_checkpoints_of_training_runs(registered, tmp_path, kind):
    expected = tiny_model("vit").state_dict()
    content = checkpoint(kind)
    paths = [tmp_path / "weights.pt"]
    torch.save(content, paths[0])
    if all(isinstance(value, Tensor) for value in content.values()):
        paths.append(tmp_path / "weights.safetensors")
        save_file({name: value.clone() for name, value in content.items()}, paths[1])
    for path in paths:
        clip = load(SMALL, path, quick_gelu=False)
        actual = clip.model.state_dict()
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
        assert f"loaded from={SMALL} of open_clip, file {path}" in repr(clip)


@each(
    ("kind", "message"),
    [
        ("two", r"of 2 models, state_dict\.student\.\* and state_dict\.teacher\.\*: save the one"),
        ("two tables", r"of 2 models, model\.\* and ema\.\*"),
    ],
)
def test_checkpoints_with_two_models(registered, tmp_path, kind, message):
    torch.save(checkpoint(kind), tmp_path / "weights.pt")
    refused(ValueError, message, SMALL, tmp_path / "weights.pt")


def test_checkpoints_with_other_objects(registered, tmp_path):
    content = checkpoint("lightning") | {"hyper_parameters": argparse.Namespace(rate=1)}
    torch.save(content, tmp_path / "weights.ckpt")
    message = "holds objects of argparse.Namespace; save only the state dict"
    refused(ValueError, message, SMALL, tmp_path / "weights.ckpt")


def test_weights_of_transformers_under_a_name_of_open_clip(registered, tmp_path):
    torch.save(build("CLIPModel").state_dict(), tmp_path / "weights.pt")
    message = "weights of a model of transformers, without its configuration"
    refused(ValueError, message, SMALL, tmp_path / "weights.pt")


def test_weights_of_another_configuration(registered, tmp_path):
    """open_clip would resize the positions without a word."""
    state = TINY["vit"].build(vision_cfg=TINY["vit"].vision | dict(image_size=48)).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    message = rf"not those of {SMALL}: visual.positional_embedding is \(37, 32\), .*\n.* {LARGE}$"
    refused(ValueError, message, SMALL, tmp_path / "weights.pt")
    assert load(LARGE, tmp_path / "weights.pt", quick_gelu=False).native_size == (48, 48)
    chosen = load(SMALL, tmp_path / "weights.pt", force_image_size=48, quick_gelu=False)
    assert chosen.native_size == (48, 48)
    torch.save({"odd": torch.zeros(2)} | state | {"visual.proj": torch.zeros(3, 3)}, tmp_path / "x")
    refused(ValueError, "no configuration of open_clip fits", SMALL, tmp_path / "x")


def test_weights_of_another_configuration_in_a_folder(tmp_path):
    config = TINY["vit"].config
    config["vision_cfg"]["image_size"] = 48
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    state = {name: value.clone() for name, value in tiny_model("vit").state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    message = r"in open_clip_model.safetensors are not those of open_clip_config.json: visual\.pos"
    refused(ValueError, message, tmp_path)


@pytest.mark.slow
def test_published_shapes_are_told_apart():
    """Among all configurations, from OpenAI's shapes alone."""
    for name in ("ViT-L-14-336", "RN50x4", "ViT-B-16-SigLIP-384"):
        config = open_clip.get_model_config(name)
        from captum_clip_surgery.models._config_check import build_on_meta

        shapes = {k: tuple(v.shape) for k, v in build_on_meta(config).state_dict().items()}
        assert name in matching_configurations(shapes)
        assert "ViT-L-14" not in matching_configurations(shapes)


@each(
    ("file", "content", "message"),
    [
        ("a.pt", b"", "is empty; download or save it again"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS .* pull"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("a.pt", b"<!DOCTYPE html><html>", r"a web page \(HTML\)"),
        ("a.pt", b"PK\x03\x04" + bytes(50), "cut off: an archive of 54 bytes"),
        ("a.safetensors", (99).to_bytes(8, "little") + b"{", "cut off: its header has 99 bytes"),
        ("a.pt", b'{"model_cfg": {}}', "JSON, perhaps a configuration"),
        ("a.safetensors", b"PK\x03\x04", "not in the form of safetensors but of torch.save"),
        ("a.pt", b"\x1f\x8b" + bytes(9), "compressed; unpack it first"),
    ],
)
def test_files_that_hold_no_weights(registered, tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    refused(ValueError, f"does not load as {SMALL}: .* {message}", SMALL, tmp_path / file)


def test_safetensors_that_were_cut_off(registered, tmp_path, folder):
    path = tmp_path / "a.safetensors"
    save_file({n: v.clone() for n, v in tiny_model("vit").state_dict().items()}, path)
    path.write_bytes(path.read_bytes()[:-100])
    refused(ValueError, r"cut off: it has [\d,]+ of [\d,]+ bytes", SMALL, path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(ValueError, r"cut off: it has [\d,]+ of [\d,]+ bytes", folder)


# --- names ---------------------------------------------------------------------------------------


def test_names_that_are_nearly_right(registered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(ValueError, "no model 'vit-b-16'; did you mean 'ViT-B-16'", "vit-b-16", "openai")
    refused(ValueError, "write sentence-transformers/clip-ViT-B-32", "clip-ViT-B-32")
    Path("weights.pt").write_bytes(b"x")
    refused(ValueError, "is a file of weights; the name is that of its conf", "weights.pt")
    Path("openai").write_bytes(b"x")
    refused(ValueError, "'openai' is a tag of ViT-B-16 and a file here", "ViT-B-16", "openai")
    refused(ValueError, "is a folder, expected a tag or file", "ViT-B-16", tmp_path)
    refused(TypeError, "the model's name is a int", 3)
    refused(TypeError, "pretrained is a list, .* pass them by name: texts=", "ViT-B-16", TEXTS)
    refused(ValueError, "hub without a pretrained tag", "openai/clip-vit-x", "openai")
    for path in ("./nothing", "/nothing/here", "hf:/nothing"):
        refused(FileNotFoundError, f"no folder at {path.removeprefix('hf:')}", path)
    shutil.copytree(MODEL_FOLDER, "folder")
    message = r"is a file, and a model is named by its folder: from_pretrained\('folder'"
    refused(ValueError, message, "folder/open_clip_config.json")
    shutil.copytree(MODEL_FOLDER, SMALL)
    message = f"a configuration of open_clip and a folder with a model: write local-dir:{SMALL}"
    refused(ValueError, message, SMALL)


def test_an_unreachable_hub_is_said_in_a_line(monkeypatch):
    def unreachable(*_: Any) -> list[str]:
        raise OSError("Name or service not known\nand\nmany\nmore\nlines")

    monkeypatch.setattr(_sources, "_list_files", unreachable)
    refused(OSError, "someone/clip is neither a folder nor .* cannot be loaded", "someone/clip")


def test_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    refused(ImportError, r"pip install 'captum_clip_surgery\[transformers\]'", folder)
    assert _loading.Loaded._fields == ("model", "tokenizer", "origin")


def test_trust_is_never_passed_on(folder, monkeypatch):
    given: list[dict[str, Any]] = []
    for kind in (transformers.CLIPModel, transformers.AutoTokenizer):
        original = kind.from_pretrained
        monkeypatch.setattr(
            kind,
            "from_pretrained",
            lambda *a, _original=original, **options: (
                given.append(options),
                _original(*a, **options),
            )[1],
        )
    clip = load(folder)
    assert not any(options.get("trust_remote_code") for options in given)
    assert all(options["local_files_only"] for options in given)
    with torch.no_grad():
        pixels = images(clip)
        expected = own_features(clip.model.source, "image", pixel_values=pixels)
    assert relative_error(clip.tower.encode(pixels), expected) < 1e-5
