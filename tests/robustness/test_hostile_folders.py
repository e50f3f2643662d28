"""Folders of models made to run code, to reach a hub, or to read files elsewhere: none does."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.coca_model import MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg
from safetensors.torch import load_file

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.models._config_check import MODEL, PREPROCESS, TEXT
from captum_clip_surgery.models._config_check import VISION as VISION_TABLE
from captum_clip_surgery.models._schema import check_table
from captum_clip_surgery.tasks import Sam
from tests._helpers.model_folders import CONFIG, DEMO, edit, write_hugging_face
from tests._helpers.sams import save_sam
from tests._helpers.text_towers import HUGGING_FACE

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that looks up a host, connects, sends a request or asks the user anything."""
    calls: list[str] = []

    def forbidden(name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(f"{name} {args[1:]!r:.200}")
            raise OSError(f"{name}: no network in this test")

        return call

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for owner, name in (
        (socket.socket, "connect"),
        (socket.socket, "connect_ex"),
        (socket, "create_connection"),
        (socket, "getaddrinfo"),
        (httpx.Client, "send"),
    ):
        monkeypatch.setattr(owner, name, forbidden(name))
    monkeypatch.setattr("builtins.input", forbidden("input"))
    assert not huggingface_hub.constants.is_offline_mode()
    yield
    assert not calls


@pytest.fixture
def bait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists if the Python of a folder ran; transformers copies it to a cache."""
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.syspath_prepend(cache)
    return tmp_path / "ran"


def write_evil(folder: Path, bait: Path) -> None:
    """Python with a class of every kind that transformers looks for in a folder."""
    (folder / "evil.py").write_text(
        f"open({str(bait)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel\n"
        "class Tokens(PreTrainedTokenizerFast): pass\n"
        "class Config(RobertaConfig): model_type = 'evil'\n"
        "class Model(RobertaModel): pass\n"
    )


AUTO_MAP = {
    "AutoTokenizer": ["evil.Tokens", "evil.Tokens"],
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
}


def load(folder: Path, **options: Any) -> ZeroShotClassifier:
    name = f"local-dir:{folder}"
    return ZeroShotClassifier.from_pretrained(name, None, ["dog"], templates=(), **options)


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert len(str(caught.value)) < 2500


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A copy of the embedded model."""
    return Path(shutil.copytree(DEMO, tmp_path / "plain"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a text tower and a tokenizer of Hugging Face, named relative to its folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_hugging_face(folder, *HUGGING_FACE["roberta, mean"])
    return folder


# --- code ----------------------------------------------------------------------------------------


def test_a_tokenizer_that_is_trusted_by_its_own_configuration(folder: Path, bait: Path) -> None:
    write_evil(folder, bait)
    edit(folder / "tokenizer_config.json", auto_map=AUTO_MAP)
    edit(folder / CONFIG, model_cfg__text_cfg__tokenizer_kwargs={"trust_remote_code": True})
    open_clip.get_tokenizer(f"local-dir:{folder}")
    assert bait.exists()  # so it would
    bait.unlink()
    refuse(folder, r"tokenizer_kwargs\.trust_remote_code is not an option")
    assert not bait.exists()


@pytest.mark.parametrize("trusting", [True, False], ids=["trusted", "asked"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json", "text/config.json"])
def test_code_that_a_folder_names(folder: Path, bait: Path, file: str, trusting: bool) -> None:
    """Refused without asking whether it may run, whatever stands on standard input."""
    for place in (folder, folder / "text"):
        write_evil(place, bait)
    edit(folder / file, auto_map=AUTO_MAP, **({"trust_remote_code": True} if trusting else {}))
    refuse(folder, rf"{file}: (auto_map|trust_remote_code) is not an option")
    assert not bait.exists()


def test_a_tokenizer_of_ones_own_makes_the_folders_irrelevant(folder: Path, bait: Path) -> None:
    write_evil(folder, bait)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    edit(folder / "tokenizer_config.json", auto_map=AUTO_MAP)
    assert load(folder, tokenizer=tokenizer).text_features().isfinite().all()
    assert not bait.exists()


# --- options of open_clip ------------------------------------------------------------------------

LOCAL = "not a folder with a config.json inside"
OPTIONS: list[tuple[str, Any, str]] = [
    ("vision_cfg__timm_model_name", "hf-hub:timm/vit_tiny_patch16_224", "not one of timm's own"),
    ("vision_cfg__timm_model_name", "hf_hub:timm/vit_tiny_patch16_224", "not one of timm's own"),
    ("vision_cfg__timm_model_name", "local-dir:/etc", "not one of timm's own"),
    ("vision_cfg__timm_model_name", "../vit_tiny_patch16_224", "not one of timm's own"),
    ("vision_cfg__timm_model_name", ["vit_tiny_patch16_224"], "model_name is .* expected a string"),
    ("vision_cfg__timm_model_pretrained", "yes", "expected true or false"),
    ("vision_cfg__timm_kwargs", {"checkpoint_path": "/etc/passwd"}, "timm_kwargs is not an option"),
    ("vision_cfg__act_kwargs", {"evil": 1}, "act_kwargs.evil is not an option"),
    ("vision_cfg__norm_kwargs", {"device": "cuda"}, "norm_kwargs.device is not an option"),
    ("vision_cfg__pos_embed_type", "os.system", 'expected one of "learnable", "sin_cos_2d"'),
    ("vision_cfg__block_type", "os.system", 'expected one of "default", "custom"'),
    ("vision_cfg__mlp_ratio", float("nan"), "expected a finite number"),
    ("vision_cfg__mlp_ratio", True, "expected a finite number"),
    ("vision_cfg__output_tokens", 1, "expected true or false"),
    ("vision_cfg__layers?", 3, "is not an option"),
    ("vision_cfg__*", 3, "is not an option"),
    ("text_cfg__hf_model_name", "roberta-base", LOCAL),
    ("text_cfg__hf_model_name", "hf-internal-testing/tiny-random-bert", LOCAL),
    ("text_cfg__hf_model_name", "..", LOCAL),
    ("text_cfg__hf_model_name", "/etc", LOCAL),
    ("text_cfg__hf_model_name", "https://example.org/model", LOCAL),
    ("text_cfg__hf_model_name", ["text"], "expected a string"),
    ("text_cfg__hf_proj_type", "os.system", 'expected one of "linear", "mlp"'),
    ("text_cfg__hf_pooler_type", "os.system", "expected one of"),
    ("text_cfg__hf_model_config", {}, "hf_model_config is not an option"),
    ("text_cfg__tokenizer_mode", "evil", "expected one of"),
    ("text_cfg__tokenizer_type", "evil", "tokenizer_type is not an option"),
    ("text_cfg__tokenizer_kwargs", {"bpe_path": "/etc/passwd"}, "kwargs.bpe_path is not an option"),
    ("text_cfg__tokenizer_kwargs", {"reduction_mask": "syntax"}, "reduction_mask is not an option"),
    ("text_cfg__tokenizer_kwargs", {"additional_special_tokens": ["(a+)+$"]}, "is not an option"),
    ("text_cfg__tokenizer_kwargs", {"cache_dir": "/tmp"}, "kwargs.cache_dir is not an option"),
    ("text_cfg__tokenizer_kwargs", {"gguf_file": "x"}, "kwargs.gguf_file is not an option"),
    ("text_cfg__tokenizer_kwargs", {"subfolder": ".."}, "kwargs.subfolder is not an option"),
    ("text_cfg__tokenizer_kwargs", {"vocab_file": "/etc/passwd"}, "vocab_file is not an opt"),
    ("multimodal_cfg", {"hf_model_name": 3}, "multimodal_cfg.hf_model_name is 3"),
    ("multimodal_cfg", [], r"multimodal_cfg is \[\], expected a table"),
    ("cast_dtype", "float16", "cast_dtype is not an option"),
    ("pretrained_image_path", "/etc/passwd", "pretrained_image_path is not an option"),
    ("cache_dir", "/tmp", "cache_dir is not an option"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "message"), OPTIONS)
def test_options_that_lead_elsewhere(plain: Path, key: str, value: Any, message: str) -> None:
    edit(plain / CONFIG, **{f"model_cfg__{key}": value})
    refuse(plain, message)


@pytest.mark.parametrize(
    ("key", "value"),
    [("mode", "CMYK"), ("evil", 1), ("mean", "/etc/passwd"), ("size", 10**9), ("fill_color", -1)],
)
def test_options_of_preprocessing(plain: Path, key: str, value: Any) -> None:
    edit(plain / CONFIG, **{f"preprocess_cfg__{key}": value})
    refuse(plain, f"{CONFIG}: preprocess_cfg.{key} is")


def test_every_option_of_open_clip_is_judged() -> None:
    """A new version's options are looked at before they are allowed."""
    fields = {
        cls: {field.name for field in dataclasses.fields(cls)}
        for cls in (CLIPVisionCfg, CLIPTextCfg, MultimodalCfg, PreprocessCfg)
    }
    tables = (VISION_TABLE, TEXT, MODEL["multimodal_cfg"], PREPROCESS)
    for (cls, names), table in zip(fields.items(), tables, strict=True):
        assert {key.rstrip("?") for key in table} == names, cls


def test_every_published_configuration_is_allowed() -> None:
    for name in open_clip.list_models():
        check_table(name, open_clip.get_model_config(name), MODEL)
    for name, tag in open_clip.list_pretrained():
        record = open_clip.get_pretrained_cfg(name, tag)
        shown = {key: record[key] for key in ("mean", "std", "interpolation", "resize_mode")
                 if key in record}  # fmt: skip
        check_table(f"{name} {tag}", json.loads(json.dumps(shown)), PREPROCESS)


# --- files of transformers -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*HUGGING_FACE, "m2m_100"])
def test_text_towers_within_the_folder(tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    """Built from the folder alone, wherever it is moved and whatever lies beside the process."""
    made, moved = tmp_path / "made", tmp_path / "moved"
    made.mkdir()
    if kind == "m2m_100":
        sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
        sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
        config = transformers.M2M100Config(vocab_size=40, d_model=16, pad_token_id=1, **sizes)
        monkeypatch.setattr(
            "tests._helpers.model_folders.save_text_tower",
            lambda folder, _: transformers.AutoModel.from_config(config).save_pretrained(folder),
        )
        write_hugging_face(made, "", "mean_pooler", "linear")
    else:
        write_hugging_face(made, *HUGGING_FACE[kind])
    made.rename(moved)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.chdir(tmp_path)
    clip = load(moved)
    state = load_file(moved / "open_clip_model.safetensors")
    assert all(torch.equal(state[name], value) for name, value in clip.model.state_dict().items())
    tokens = open_clip.get_tokenizer(f"local-dir:{moved}")(["dog"])
    with torch.no_grad():
        expected = clip.model.encode_text(tokens, normalize=True)
    assert torch.allclose(clip.text_features(), expected, atol=1e-6)


def test_a_linked_chat_template(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jinja").write_text("secret")
    templates = folder / "additional_chat_templates"
    templates.mkdir()
    (templates / "x.jinja").symlink_to(tmp_path / "secret.jinja")
    refuse(folder, r"additional_chat_templates/x\.jinja is a link that leads out of its folder")


REPLACED = {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 16}
NORMALIZERS: dict[str, tuple[dict[str, Any], str]] = {
    "damaged": (
        {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
        "the tokenizer of .* is not valid: .*precompiled_charsmap",
    ),
    "damaged further in": (
        {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="},
        "index out of bounds",
    ),
    "growth": (
        {"type": "Sequence", "normalizers": [REPLACED] * 6},
        r"tokenizer\.json can make a text 2e\+07 times longer .* expected at most 1,000 times",
    ),
    "long start": (
        {"type": "Prepend", "prepend": "y" * 10**6},
        r"tokenizer\.json can make a text 1e\+06 times longer",
    ),
}


@pytest.mark.parametrize("kind", NORMALIZERS)
def test_normalizers_of_a_tokenizer(folder: Path, kind: str) -> None:
    """They panic in Rust, which no `except Exception` catches, or take gigabytes."""
    normalizer, message = NORMALIZERS[kind]
    edit(folder / "tokenizer.json", normalizer=normalizer)
    refuse(folder, message)


TOWER: list[tuple[dict[str, Any], str]] = [
    ({"attn_implementation": "kernels-community/flash-attn"}, "attn_implementation is not an opt"),
    ({"_attn_implementation": "kernels-community/x"}, "_attn_implementation is not an option"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is not an option"),
    ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files is not an option"),
    ({"num_labels": 10**9}, "num_labels is not an option"),
    ({"model_type": "timm_wrapper"}, "model_type is 'timm_wrapper', expected one of bert, roberta"),
    ({"model_type": "encoder-decoder"}, "model_type is 'encoder-decoder', expected one of"),
    ({"model_type": None}, "model_type is None, expected one of"),
    ({"model_type": ["bert"]}, r"model_type is \['bert'\], expected one of"),
    ({"backbone": "timm/resnet18"}, "backbone is not an option"),
    ({"torchscript": True}, "torchscript is True, expected one of false"),
    ({"hidden_size": 10**9}, "hidden_size is 1000000000, expected a whole number"),
    ({"hidden_act": "os.system"}, "describes no model"),
    ({"num_attention_heads": 7}, "describes no model"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), TOWER)
def test_configurations_of_text_towers(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit(folder / "text" / "config.json", **changes)
    refuse(folder, message)


@pytest.mark.parametrize("content", ["", "[]", "null", "[" * 100_000])
@pytest.mark.parametrize("file", ["text/config.json", "config.json", "tokenizer_config.json"])
def test_files_of_transformers_that_are_no_tables(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    refuse(folder, f"{file}(: model_type)? is ")


TOKENS: list[tuple[str, dict[str, Any], str]] = [
    ("tokenizer_config", {"tokenizer_class": "AutoModel"}, "expected one of"),
    ("tokenizer_config", {"tokenizer_class": "AutoTokenizer"}, "expected one of"),
    ("tokenizer_config", {"tokenizer_class": "RagTokenizer"}, "expected one of"),
    ("tokenizer_config", {"tokenizer_class": "BertJapaneseTokenizer"}, "expected one of"),
    ("tokenizer_config", {"mecab_kwargs": {"mecab_option": "-r /x"}}, "is not an option"),
    ("tokenizer_config", {"fast_tokenizer_files": ["tokenizer./../x.json"]}, "is not an option"),
    ("tokenizer_config", {"init_inputs": ["/etc/passwd"]}, "init_inputs is"),
    ("tokenizer_config", {"vocab_file": "/etc/passwd"}, "vocab_file is .* expected null"),
    ("tokenizer_config", {"tokenizer_file": "/etc/passwd"}, "tokenizer_file is .* expected null"),
    ("tokenizer_config", {"sp_model_kwargs": {"model_file": "/x"}}, "model_file is not an option"),
    ("tokenizer_config", {"extra_ids": 10**9}, "extra_ids is 1000000000, expected a whole number"),
    ("tokenizer_config", {"chat_template": 3}, "chat_template is 3, expected"),
    ("special_tokens_map", {"vocab_file": "/etc/passwd"}, "vocab_file is not an option"),
    ("special_tokens_map", {"bos_token": 3}, "bos_token is 3, expected a string"),
    ("added_tokens", {"<x>": "y"}, "<x> is 'y', expected a whole number"),
    ("config", {"tokenizer_class": "os.system"}, "expected one of"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "changes", "message"), TOKENS)
def test_options_of_tokenizers(
    folder: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit(folder / f"{file}.json", **changes)
    refuse(folder, rf"{file}\.json: .*{message}")


def test_a_config_of_another_model_beside_a_tokenizer(folder: Path) -> None:
    """Only the kind of tokenizer is taken of it; a hub's folder holds those of whole models."""
    expected = load(folder).text_features()
    backbone = {"backbone": "hf-hub:timm/resnet18", "use_timm_backbone": True, "num_labels": 10**9}
    edit(folder / "config.json", model_type="detr", **backbone)
    assert torch.equal(load(folder).text_features(), expected)


def test_a_folder_without_its_tokenizer(folder: Path) -> None:
    """Not fetched by `hf_tokenizer_name`."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises((ValueError, OSError), match=f"{folder}"):
        load(folder)


# --- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [CONFIG, "open_clip_model.safetensors", "tokenizer.json"])
def test_links_out_of_a_folder(plain: Path, tmp_path: Path, file: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes((plain / file).read_bytes() if (plain / file).exists() else b"{}")
    (plain / file).unlink(missing_ok=True)
    (plain / file).symlink_to(outside)
    refuse(plain, f"{file} is a link that leads out of its folder")


@pytest.mark.parametrize("link", ["the folder", "its configuration"])
def test_links_to_text_towers_outside(folder: Path, tmp_path: Path, link: str) -> None:
    shutil.copytree(folder / "text", tmp_path / "elsewhere")
    name = "text" if link == "the folder" else "text/config.json"
    if link == "the folder":
        shutil.rmtree(folder / "text")
    else:
        (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "elsewhere" / Path(name).relative_to("text"))
    refuse(folder, "is a link that leads out of its folder")


def test_links_within_and_of_the_hubs_cache(plain: Path, tmp_path: Path) -> None:
    expected = load(plain).text_features()
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in (CONFIG, "open_clip_model.safetensors"):
        (plain / file).rename(repository / "blobs" / file)
        (snapshot / file).symlink_to(f"../../blobs/{file}")
    assert torch.equal(load(snapshot).text_features(), expected)
    (tmp_path / "link").symlink_to(snapshot)
    assert torch.equal(load(tmp_path / "link").text_features(), expected)


# --- checkpoints ---------------------------------------------------------------------------------


class Raises:
    """Fails in torch's restricted reader with a `TypeError`, on which open_clip tries again."""

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, ()


@pytest.fixture
def restricted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which torch reads a file by anything but its restricted reader."""
    read, calls = torch.load, []

    def loads(*args: Any, **options: Any) -> Any:
        calls.append(options.get("weights_only"))
        return read(*args, **options)

    monkeypatch.setattr(torch, "load", loads)
    monkeypatch.setattr(torch.jit, "load", lambda *args, **options: calls.append("jit"))
    yield
    assert set(calls) <= {True}


def written(kind: str) -> bytes:
    stream = io.BytesIO()
    state = load_file(DEMO / "open_clip_model.safetensors")
    if kind == "TorchScript":
        torch.jit.save(torch.jit.script(torch.nn.Linear(64, 64)), stream)
    elif kind == "TypeError":
        torch.save(state | {"ln_final.bias": Raises()}, stream)
    elif kind == "expanded":
        torch.save(state | {"positional_embedding": torch.zeros(1, 1).expand(10**6, 10**6)}, stream)
    elif kind == "sparse":
        torch.save(state | {"ln_final.bias": torch.zeros(128).to_sparse()}, stream)
    elif kind == "bomb":
        torch.save({"a": torch.zeros(10**8, dtype=torch.uint8)}, stream)
        packed = io.BytesIO()
        with (
            zipfile.ZipFile(stream) as source,
            zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
        ):
            for member in source.infolist():
                target.writestr(member.filename, source.read(member))
        return packed.getvalue()
    else:
        return pickle.dumps(state)
    return stream.getvalue()


TINY = {
    "embed_dim": 8,
    "vision_cfg": {"width": 8, "head_width": 8, "layers": 1, "patch_size": 2, "image_size": 4},
    "text_cfg": {"width": 8, "heads": 1, "layers": 1, "context_length": 8, "vocab_size": 64},
}
CHECKPOINTS = {
    "TorchScript": "is not a checkpoint of weights only: ",
    "TypeError": "is not a checkpoint of weights only: .*_rebuild_tensor_v2",
    "pickle": "is not a checkpoint of weights only: ",
    "expanded": r"positional_embedding has shape \(1000000, 1000000\) and 4 bytes of values",
    "sparse": "ln_final.bias is sparse",
    "bomb": "unpacks to 100,",
}


@pytest.mark.usefixtures("restricted")
@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:Detected pickle protocol")
@pytest.mark.filterwarnings("ignore:.*sparse tensor", "ignore:.*does not record its activation")
@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("way", ["bin", "pth", "path", "image", "text"])
def test_checkpoints_with_more_than_weights(plain: Path, kind: str, way: str) -> None:
    file = plain / "x.pt"
    if way in ("bin", "pth"):
        (plain / "open_clip_model.safetensors").unlink()
        file = plain / f"open_clip_pytorch_model.{way}"
        (plain / CONFIG).write_text(json.dumps({"model_cfg": TINY}))  # of few enough weights
    file.write_bytes(written(kind))
    name, source, options, message = f"local-dir:{plain}", None, {}, CHECKPOINTS[kind]
    if way == "path":
        name, source = "RN50", file
        if kind == "TorchScript":  # read as tensors alone, as OpenAI's are; these are of no CLIP
            message = "Missing key.*visual.conv1.weight"
    elif way in ("image", "text"):
        options = {f"pretrained_{way}_path": str(file)}
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier.from_pretrained(name, source, ["dog"], templates=(), **options)


@pytest.mark.usefixtures("restricted")
def test_sound_pickled_weights(plain: Path) -> None:
    """A slice holds fewer bytes than its storage, and is sound."""
    expected = load(plain).text_features()
    state = load_file(plain / "open_clip_model.safetensors")
    state["ln_final.bias"] = torch.cat([state["ln_final.bias"]] * 2)[:128]
    (plain / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": state, "epoch": 3}, plain / "open_clip_pytorch_model.bin")
    assert torch.equal(load(plain).text_features(), expected)


# --- SAM -----------------------------------------------------------------------------------------


@pytest.fixture
def sam(tmp_path: Path) -> Path:
    return save_sam(tmp_path / "sam")


SAMS: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"auto_map": AUTO_MAP}, "auto_map is not an option"),
    ("config.json", {"attn_implementation": "kernels-community/x"}, "is not an option"),
    ("config.json", {"quantization_config": {}}, "quantization_config is not an option"),
    ("config.json", {"model_type": "timm_wrapper"}, "model_type is 'timm_wrapper'"),
    ("config.json", {"vision_config__backbone": "x"}, "vision_config.backbone is not an option"),
    ("config.json", {"vision_config__hidden_size": 2**16}, "they are not of one model"),
    ("config.json", {"vision_config__image_size": 2**14}, "image_size is 16384, expected"),
    ("processor_config.json", {"auto_map": AUTO_MAP}, "auto_map is not an option"),
    ("processor_config.json", {"processor_class": "Evil"}, "processor_class is 'Evil', expected"),
    ("processor_config.json", {"image_processor__size": {"longest_edge": 10**6}}, "1000000, expe"),
    ("adapter_config.json", {"base_model_name_or_path": "org/name"}, "has an adapter"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "changes", "message"), SAMS)
def test_folders_of_a_sam(sam: Path, file: str, changes: dict[str, Any], message: str) -> None:
    loaded = Sam.from_pretrained(sam, torch.device("cpu"))
    assert loaded.processor.target_size == 1024
    edit(sam / file, **changes)
    with pytest.raises(ValueError, match=message):
        Sam.from_pretrained(sam, torch.device("cpu"))


def test_a_sam_of_pickled_weights_is_refused(sam: Path) -> None:
    (sam / "model.safetensors").rename(sam / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in"):
        Sam.from_pretrained(sam, torch.device("cpu"))
