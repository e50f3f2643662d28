"""The activation a model is built with is the one its weights were trained with, by any way in."""

from __future__ import annotations

import copy
import functools
import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED, list_pretrained
from safetensors.torch import save_file
from torch import Tensor, nn

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.models._activations import describe_activation
from tests._helpers.cases import each
from tests._helpers.tiny import quick_on, relative_error, with_preprocessing
from tests._helpers.tower_kinds import TINY

TEXTS = ["a dog", "a cat"]
#: Read once; it takes longer than a tiny model.
TOKENIZER = open_clip.tokenizer.SimpleTokenizer(context_length=16)
from_pretrained = functools.partial(
    ZeroShotClassifier.from_pretrained, templates=(), tokenizer=TOKENIZER
)
#: Built with the other activation by open_clip 3.3, by name and tag alone.
OPENAI = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14")
MISBUILT = [
    *((name, "openai") for name in (*OPENAI, "ViT-L-14-336")),
    *(("RN50", tag) for tag in ("yfcc15m", "cc12m")),
    ("RN101", "yfcc15m"),
    *(("ViT-B-32", tag) for tag in ("laion400m_e31", "laion400m_e32")),
    *((f"ViT-{size}", "metaclip_400m") for size in ("B-32", "B-16", "L-14")),
    *((f"ViT-{size}", "metaclip_fullcc") for size in ("B-32", "B-16", "L-14", "H-14", "bigG-14")),
    *((f"ViT-{size}", "dfn2b") for size in ("B-16", "L-14")),
    *((f"ViT-{size}", "dfn5b") for size in ("H-14", "H-14-378")),
    ("ViT-H-14-worldwide", "metaclip2_worldwide"),
]


def kind_of(name: str) -> str:
    return "resnet" if name.startswith("RN") else "vit"


def build(kind: str, quick: bool) -> Any:
    """A tiny model of one set of weights under either activation."""
    return copy.deepcopy(built(kind, quick))


@functools.cache
def built(kind: str, quick: bool) -> Any:
    torch.manual_seed(0)
    model = TINY[kind].build(quick_gelu=quick)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # towards where the activations differ
    return with_preprocessing(model.eval())


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, bool], Tensor]:
    """Logits of the tiny models by kind and activation; far apart where weights are the same."""
    found = {(kind, quick): logits(classifier(build(kind, quick))) for kind in ("vit", "resnet")
             for quick in (True, False)}  # fmt: skip
    for kind in ("vit", "resnet"):
        assert relative_error(found[kind, True], found[kind, False]) > 1e-3
    return found


def classifier(model: nn.Module) -> ZeroShotClassifier:
    return ZeroShotClassifier(model, TEXTS, templates=())


def logits(clip: ZeroShotClassifier) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return clip(torch.randn(2, 3, *clip.native_size, generator=generator)).detach()


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """A file of weights for each kind of tower."""
    folder = tmp_path_factory.mktemp("downloaded")
    files = {kind: folder / f"{kind}.safetensors" for kind in ("vit", "resnet")}
    for kind, file in files.items():
        save_file(build(kind, False).state_dict(), file)
    return files


@pytest.fixture(scope="module")
def configs() -> dict[str, Any]:
    """A tiny model's configuration for every published name, with the name's own activation."""
    made = {}
    for name in {name for name, _ in list_pretrained()} | set(open_clip.list_models()):
        own = (open_clip.get_model_config(name) or {}).get("quick_gelu")
        made[name] = TINY[kind_of(name)].config | ({} if own is None else {"quick_gelu": own})
    return made


@pytest.fixture
def tiny(monkeypatch, downloaded, configs):
    """Every published name is a tiny model with the activation of its own configuration.

    Downloads are stood in for by a file of these weights.
    """
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", copy.deepcopy(configs))
    hubs = {record["hf_hub"]: name for name in _PRETRAINED for record in _PRETRAINED[name].values()}

    def download(record: dict[str, Any], **_: Any) -> str:
        return str(downloaded[kind_of(hubs[record["hf_hub"]])])

    monkeypatch.setattr(open_clip.factory, "download_pretrained", download)


def load(name: str, pretrained: Any, **options: Any) -> ZeroShotClassifier:
    """Load without the warnings of open_clip or of this package becoming any less than errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return from_pretrained(name, pretrained, TEXTS, **options)


def check(clip: ZeroShotClassifier, expected: Any, quick: bool, *said: str) -> None:
    kind = "resnet" if "ResNet" in clip.tower.family else "vit"
    assert relative_error(logits(clip), expected[kind, quick]) < 1e-6
    name = "QuickGELU" if quick else "GELU"
    told = f"activation=image ReLU, text {name}" if kind == "resnet" else f"activation={name}"
    for part in (f"{told} (", *said):
        assert part in repr(clip)


# --- tags ----------------------------------------------------------------------------------------


def test_these_tags_differ_from_their_names_configuration():
    """The list below is complete: every other tag records what its name's configuration says."""
    found = [
        (name, tag)
        for name, tag in list_pretrained()
        if open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
        and not open_clip.get_model_config(name).get("quick_gelu", False)
    ]
    assert sorted(found) == sorted(MISBUILT)


@pytest.mark.slow
@each(("name", "tag"), MISBUILT)
def test_the_tags_record_is_built(tiny, expected, name, tag):
    check(load(name, tag), expected, True, f"(recorded for the tag {tag!r})")


@pytest.mark.parametrize(
    ("name", "tag"),
    [("ViT-B/32", "OpenAI"), ("ViT-B-32-quickgelu", "metaclip-400m"), ("RN50-quickgelu", "CC12M")],
)
def test_names_and_tags_as_open_clip_takes_them(tiny, expected, name, tag):
    check(load(name, tag), expected, True, f"(recorded for the tag {tag!r})")


@each(
    ("name", "tag"),
    [
        ("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-B-16", "laion400m_e32"),
        ("ViT-L-14", "dfn2b_s39b"), ("ViT-H-14", "metaclip_altogether"),
        ("ViT-B-32-256", "datacomp_s34b_b86k"), ("ViT-H-14-worldwide-378", "metaclip2_worldwide"),
    ],
)  # fmt: skip
def test_other_tags_stay_gelu(tiny, expected, name, tag):
    clip = load(name.replace("ViT-B-", "ViT-B/"), tag)
    check(clip, expected, False, f"in the configuration of {name}; the tag {tag!r} records none")


def test_a_silent_record_leaves_the_configuration(tiny, expected):
    """RoBERTa's was trained with the QuickGELU of its configuration, before there were records."""
    clip = load("roberta-ViT-B-32", "laion2b_s12b_b32k")
    check(clip, expected, True, "in the configuration of roberta-ViT-B-32; the tag 'laion2b_s12b")


@pytest.mark.parametrize("record", [{"quick_gelu": False}, {}])
def test_a_tag_without_quickgelu_under_a_name_with_it(tiny, expected, monkeypatch, record):
    own = dict(_PRETRAINED["ViT-B-32"]["openai"])
    del own["quick_gelu"]
    monkeypatch.setitem(_PRETRAINED, "ViT-B-32-quickgelu", {"mine": own | record})
    check(load("ViT-B-32-quickgelu", "mine"), expected, False, "the tag 'mine'")


@pytest.mark.slow
def test_the_readmes_own_model_at_full_size(monkeypatch, tmp_path):
    model = with_preprocessing(open_clip.create_model("ViT-B-32-quickgelu").eval())
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    monkeypatch.setattr(
        open_clip.factory, "download_pretrained", lambda *_, **__: str(tmp_path / "weights.bin")
    )
    clip = load("ViT-B-32", "openai")
    assert "activation=QuickGELU (recorded for the tag 'openai')" in repr(clip)
    torch.testing.assert_close(logits(clip), logits(classifier(model)))


@pytest.mark.parametrize(
    ("name", "tag", "mean", "interpolation"),
    [
        ("ViT-L-14", "laion2b_s32b_b82k", 0.5, "bicubic"),
        ("ViT-H-14", "dfn5b", 0.48145466, "bicubic"),
        ("ViT-L-14-CLIPA", "datacomp1b", 0.485, "bilinear"),
        ("MobileCLIP-B", "datacompdr", 0.0, "bilinear"),
    ],
)
def test_the_rest_of_the_record(tiny, name, tag, mean, interpolation):
    preprocessing = load(name, tag).preprocessing
    assert (preprocessing.mean[0], preprocessing.interpolation) == (mean, interpolation)


# --- the user's choice ---------------------------------------------------------------------------


@each("option", ["quick_gelu", "force_quick_gelu"])
@pytest.mark.parametrize(
    ("name", "tag", "recorded"),
    [
        ("ViT-B-32", "openai", True), ("ViT-B-32-quickgelu", "openai", True),
        ("RN50", "cc12m", True), ("ViT-B-32", "laion2b_s34b_b79k", False),
    ],
)  # fmt: skip
def test_the_users_choice_wins_and_is_said(tiny, expected, option, name, tag, recorded):
    check(load(name, tag, **{option: None}), expected, recorded)
    check(
        load(name, tag, **{option: recorded}),
        expected,
        recorded,
        f"(chosen by {option}={recorded})",
    )
    with pytest.warns(UserWarning, match="is built with") as caught:
        clip = from_pretrained(name, tag, TEXTS, **{option: not recorded})
    (message,) = (str(each.message) for each in caught)
    other = "QuickGELU" if recorded else "GELU"
    assert f"{name} is built with " in message
    assert f"chosen by {option}={not recorded}; {other} " in message
    assert caught[0].filename == __file__
    check(clip, expected, not recorded, f"(chosen by {option}={not recorded}; {other} ")


def test_what_is_no_choice(tiny):
    with pytest.raises(ValueError, match=r"quick_gelu=True and force_quick_gelu=False contradict"):
        load("ViT-B-32", "openai", quick_gelu=True, force_quick_gelu=False)
    with pytest.raises(TypeError, match="quick_gelu must be True, False or None, got 'no'"):
        load("ViT-B-32", "openai", quick_gelu="no")


def test_a_tower_that_keeps_its_own_activation_is_named(tmp_path, monkeypatch):
    """timm's are built without regard to the option, which then is the text tower's alone."""
    config = TINY["siglip"].config
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-timm", config)
    torch.save(TINY["siglip"].build().state_dict(), tmp_path / "weights.bin")
    with pytest.warns(UserWarning, match="the image tower keeps GELU") as caught:
        clip = from_pretrained("tiny-timm", tmp_path / "weights.bin", TEXTS, quick_gelu=True)
    assert len(caught) == 1
    assert "activation=image GELU, text QuickGELU (chosen by quick_gelu=True" in repr(clip)


# --- folders and repositories --------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False, None])
def test_a_folders_configuration(tmp_path, expected, own):
    config = TINY["vit"].config | ({} if own is None else {"quick_gelu": own})
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(build("vit", False).state_dict(), tmp_path / "model.safetensors")
    name = f"local-dir:{tmp_path}"
    check(load(name, None), expected, bool(own), f"(in the configuration of {name})")
    with pytest.warns(
        UserWarning, match=f"chosen by quick_gelu={not own}; .* in the configuration"
    ):
        clip = from_pretrained(name, None, TEXTS, quick_gelu=not own)
    check(clip, expected, not own, f"(chosen by quick_gelu={not own}; ")


OPENAIS = "timm/vit_base_patch32_clip_224.openai"
REPOSITORIES = [
    (OPENAIS, True, True, "(in the configuration of hf-hub:"),
    (OPENAIS, None, True, "(recorded for the tag 'openai' of ViT-B-32, whose weights hf-hub:"),
    ("apple/DFN5B-CLIP-ViT-H-14", None, True, "(recorded for the tag 'dfn5b' of ViT-H-14, "),
    ("laion/CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k", True, True, "(in the configuration of"),
    ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None, False, "(in the configuration of hf-hub:"),
    ("somebody/finetuned", True, True, "(in the configuration of hf-hub:"),
    ("somebody/finetuned", None, False, "(in the configuration of hf-hub:"),
]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has every repository, with one configuration and one file of weights."""
    save_file(build("vit", False).state_dict(), tmp_path / "weights.safetensors")
    asked = []

    def download(repository: str, filename: str | None = None, **options: Any) -> str:
        asked.append((repository, options.get("cache_dir")))
        return str(tmp_path / (filename or "weights.safetensors"))

    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", download)

    def says(own: bool | None) -> list[tuple[str, Any]]:
        config = TINY["vit"].config | ({} if own is None else {"quick_gelu": own})
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
        return asked

    return says


@pytest.mark.parametrize(("repository", "own", "quick", "said"), REPOSITORIES)
def test_a_repositorys_configuration(hub, expected, repository, own, quick, said):
    asked = hub(own)
    check(load(f"hf-hub:{repository}", None, cache_dir="there"), expected, quick, said)
    assert {each[0] for each in asked} == {repository}
    assert (repository, "there") in asked


def test_a_repository_against_its_record(hub, expected):
    hub(False)
    with pytest.warns(UserWarning, match="GELU, as its configuration says, but open_clip records"):
        clip = from_pretrained(f"hf-hub:{OPENAIS}", None, TEXTS)
    check(clip, expected, False, "(in the configuration of hf-hub:")
    check(load(f"hf-hub:{OPENAIS}", None, quick_gelu=False), expected, False, "(chosen by ")


# --- files ---------------------------------------------------------------------------------------


def traced(kind: str, quick: bool, path: Path) -> Path:
    """A TorchScript archive as OpenAI released them: a program and its weights."""
    model = build(kind, quick)
    images, tokens = torch.randn(1, 3, *TINY_SIZE[kind]), torch.randint(0, 99, (1, 16))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, (images, tokens), check_trace=False).save(path)
    return path


TINY_SIZE = {"vit": (32, 32), "resnet": (64, 64)}


def marked(kind: str, **changed: int) -> dict[str, Tensor]:
    """A state dict as an archive of OpenAI's gives it, with its three numbers."""
    model = build(kind, True)
    marks = dict(input_resolution=TINY_SIZE[kind][0], context_length=16, vocab_size=49408)
    numbers = {name: torch.tensor(value) for name, value in (marks | changed).items()}
    return model.state_dict() | numbers


class Holder(nn.Module):
    """A module that a state dict is attached to, and that computes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def held(state: dict[str, Tensor]) -> torch.jit.ScriptModule:
    root = Holder()
    for name, tensor in state.items():
        *above, last = name.split(".")
        module = root
        for part in above:
            if not hasattr(module, part):
                module.add_module(part, Holder())
            module = getattr(module, part)
        module.register_buffer(last, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(root)


ARCHIVES = ["ViT-B-32", "ViT-B-32-quickgelu", "RN50", "RN50-quickgelu"]


@pytest.mark.parametrize("name", quick_on(("ViT-B-32", "RN50-quickgelu"), ARCHIVES))
@pytest.mark.parametrize("quick", [True, False])
def test_an_archive_is_built_as_its_program_computes(tiny, expected, tmp_path, name, quick):
    path = traced(kind_of(name), quick, tmp_path / "ViT.pt")
    check(load(name, path), expected, quick, "(computed by the program in ViT.pt)")


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50"])
@pytest.mark.parametrize("form", ["archive", "state dict", "nested", "safetensors"])
def test_openais_numbers_among_the_weights(tiny, expected, tmp_path, name, form):
    state = marked(kind_of(name))
    path = tmp_path / ("openai.safetensors" if form == "safetensors" else "openai.pt")
    if form == "archive":
        held(state).save(path)
    elif form == "safetensors":
        save_file(state, path)
    elif form == "nested":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        torch.save(state, path)
    said = f"(of OpenAI's release, recognized in {path.name})"
    check(load(name, path), expected, True, said)
    assert list(tmp_path.glob("*.pt")) in ([path], [])  # nothing is left beside it
    with pytest.warns(UserWarning, match=r"chosen by quick_gelu=False; QuickGELU of OpenAI's rele"):
        clip = from_pretrained(name, path, TEXTS, quick_gelu=False)
    check(clip, expected, False, "(chosen by quick_gelu=False; QuickGELU of OpenAI's release")


@pytest.mark.parametrize("mark", ["input_resolution", "context_length", "vocab_size"])
def test_numbers_that_do_not_fit_the_weights_are_not_openais(tiny, tmp_path, mark):
    torch.save(marked("vit", **{mark: 64}), tmp_path / "odd.pt")
    refused(tmp_path / "odd.pt", rf"does not load as ViT-B-32: (.|\n)*{mark}")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_state_dict_that_could_be_either(tiny, expected, tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    state = build("vit", False).state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.warns(UserWarning, match="does not record its activation") as caught:
        clip = from_pretrained("ViT-B-16", path, TEXTS)
    message = str(caught[0].message)
    assert "ViT-B-16 is built with GELU; published weights of this name use QuickGELU" in message
    assert "(openai, dfn2b, metaclip_400m, metaclip_fullcc)" in message
    assert "pass quick_gelu=True or the name ViT-B-16-quickgelu; quick_gelu=False con" in message
    assert (len(caught), caught[0].filename) == (1, __file__)
    check(clip, expected, False, f"configuration of ViT-B-16; mine{suffix} records none")
    # Both answers are taken without another word, and so are names without a doubt.
    check(load("ViT-B-16", path, quick_gelu=False), expected, False, "(chosen by quick_gelu=False")
    check(load("ViT-B-16-quickgelu", path), expected, True, "configuration of ViT-B-16-quickgelu; ")
    check(load("ViT-g-14", path), expected, False, "configuration of ViT-g-14; ")
    check(load("roberta-ViT-B-32", path), expected, True, "configuration of roberta-ViT-B-32; ")


def test_a_choice_against_an_unrecognized_name_is_no_contradiction(tiny, expected, tmp_path):
    """The file records nothing, so there is nothing to contradict but the name's default."""
    torch.save(build("vit", True).state_dict(), tmp_path / "mine.pt")
    clip = load("ViT-B-16", tmp_path / "mine.pt", quick_gelu=True)
    check(clip, expected, True, "(chosen by quick_gelu=True")


# --- archives made to harm -----------------------------------------------------------------------


def rewritten(path: Path, change: dict[str, bytes], compress: bool = False) -> Path:
    """An archive with some records replaced."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in records.items():
            archive.writestr(name, change.get(name.partition("/")[2], content))
    return path


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def refused(path: Path, message: str, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            from_pretrained("ViT-B-32", path, TEXTS, **options)


@pytest.fixture
def archive(tmp_path):
    return traced("vit", True, tmp_path / "harm.pt")


@pytest.mark.parametrize("options", [{}, {"weights_only": False}])
def test_nothing_in_an_archive_runs(tiny, archive, tmp_path, options):
    harm = pickle.dumps(Touch(tmp_path / "ran"), 2)
    rewritten(archive, {"data.pkl": harm})
    refused(
        archive, "an archive of weights must not name (pathlib.Path.touch|__builtin__)", **options
    )
    assert not (tmp_path / "ran").exists()


def test_archives_that_would_fill_the_memory(tiny, archive, tmp_path):
    huge = pickle.PROTO + b"\x02N" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f."
    refused(rewritten(archive, {"data.pkl": huge}), "a pickle of 9 bytes cannot hold 2,147,483,647")
    compressed = rewritten(archive, {"data/0": bytes(10**7)}, compress=True)
    refused(compressed, "unpacks to more than its size")


def test_modules_within_modules_without_end(tiny, archive):
    """Thirty modules that each hold the next one twice."""
    levels = b"c__torch__.Level\nM\n)\x81}(X\x01\x00\x00\x00aNub"
    for _ in range(30):
        levels = (
            b"0c__torch__.Level\nM\n)\x81}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00ub".join(
                [levels + b"q\x00", b""]
            )
        )
    refused(
        rewritten(archive, {"data.pkl": b"\x80\x02" + levels + b"."}), "more than 100,000 modul"
    )


# --- models of the user's own --------------------------------------------------------------------


def test_a_models_own_activations_are_said_without_a_reason(expected):
    """`repr` looks at the modules, not at what was asked for."""
    clip = classifier(build("vit", True))
    assert repr(clip).count("activation=QuickGELU\n") == 1
    model = copy.deepcopy(clip.model)
    for block in model.visual.transformer.resblocks[1:]:
        block.mlp.gelu = nn.GELU()
    model.transformer.resblocks[0].mlp.gelu = nn.GELU("tanh")
    assert describe_activation(model) == "image GELU/QuickGELU, text GELU(tanh)/QuickGELU"


def test_other_texts_and_copies_keep_the_reason(tiny):
    clip = load("ViT-B-32", "openai")
    said = "activation=QuickGELU (recorded for the tag 'openai')"
    buffer = io.BytesIO()
    pickle.dump(clip, buffer)
    for twin in (clip.with_texts(["a tree"]), copy.deepcopy(clip), pickle.loads(buffer.getvalue())):
        assert said in repr(twin)
