"""The command line, as a user meets it."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

import captum_clip_surgery
from captum_clip_surgery import LayerCLIPSurgery, TestTimeAugmentation, ZeroShotClassifier, cli
from captum_clip_surgery.attr import _registry
from captum_clip_surgery.attr._engine import Explain
from captum_clip_surgery.demo import MODEL_FOLDER, Scenes
from tests._helpers.command_line import run

SCENE = Scenes("test", 1, size=160, objects=[2])[0]
METHOD_NAMES = ["CLIP", "CLIPSurgery", "IntegratedGradients", "GradCam"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(SCENE.image).save(path)
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integrated Gradients with its 50 passes is not what is tested here."""
    monkeypatch.setitem(_registry.METHODS, "IntegratedGradients", _registry.METHODS["CLIP"])


def explain(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str:
    texts = [option for noun in SCENE.nouns for option in ("--text", noun)]
    return run(monkeypatch, "explain", *arguments, *texts)


def test_demo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "demo", "--scenes", 2, "--output", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "embedded model" in printed
    assert all(name in printed for name in METHOD_NAMES)
    assert str(tmp_path / "demo.png") in printed
    pixels = np.asarray(Image.open(tmp_path / "demo.png").convert("RGB"))
    assert pixels.std() > 30  # a drawing, not a blank page


def test_explain_writes_figure_and_raw_maps(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--methods", "CLIP,CLIPSurgery", "-o", tmp_path / "out"]
    assert explain(monkeypatch, photo, "--npz", *options) == 0
    printed = capsys.readouterr().out
    assert "No --model given" in printed
    for noun in SCENE.nouns:
        assert re.search(rf"  {noun}: cosine -?\d\.\d{{3}}, share among your texts ", printed)
    assert Image.open(tmp_path / "out" / "photo-maps.png").size[0] > 500

    arrays = np.load(tmp_path / "out" / "photo-maps.npz")
    assert set(arrays) == {"texts", "CLIP", "CLIPSurgery"}
    assert tuple(arrays["texts"]) == SCENE.nouns
    clip = ZeroShotClassifier.demo(SCENE.nouns)
    with torch.no_grad():
        expected = LayerCLIPSurgery(clip).attribute_all(clip.preprocess(photo))[0]
    np.testing.assert_allclose(arrays["CLIPSurgery"], expected.numpy(), atol=1e-6)


@pytest.mark.slow
def test_trust_writes_a_report_and_a_line_under_each_map(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert explain(monkeypatch, photo, "--trust", "--size", 64, "--output", tmp_path) == 0
    printed = capsys.readouterr().out
    verdict = r"this map .* on the text: -?\d\.\d\d(, and [^()]*)? \(.* passes"
    assert re.search(rf"CLIP Surgery, '\w+': {verdict}", printed)
    report = (tmp_path / "photo-trust.md").read_text()
    assert "absent texts" in report
    assert "forward and 0 backward passes" in report
    assert Image.open(tmp_path / "photo-trust.png").size[0] > 500
    contrasting = ["--trust", "--feature-surgery", "release"]
    message = explain(monkeypatch, photo, *contrasting, "--output", tmp_path)
    assert "--trust asks for each text alone" in str(message)


def test_compare_with_trust_has_a_column_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path
) -> None:
    methods = ["--methods", "CLIP,RawAttention", "--trust", "--size", 64]
    code = run(monkeypatch, "compare", photo, "--text", "dog", *methods, "--output", tmp_path)
    assert code == 0
    assert "hardly depends on the text: 1.00" in (tmp_path / "compare.md").read_text()


def test_options_reach_the_method(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path
) -> None:
    distractors = tmp_path / "distractors.txt"
    distractors.write_text("dog\n\n  pizza  \n")
    options = ["--size", 160, "--fine", "--feature-surgery", "release"]
    options += ["--distractors", distractors]
    model = ["--model", f"local-dir:{MODEL_FOLDER}"]
    code = explain(monkeypatch, photo, "--npz", "--output", tmp_path, *options, *model)
    assert code == 0
    clip = ZeroShotClassifier.from_pretrained(
        f"local-dir:{MODEL_FOLDER}", None, SCENE.nouns, ["dog", "pizza"]
    )
    method = TestTimeAugmentation(LayerCLIPSurgery(clip, feature_surgery="release"))
    with torch.no_grad():
        expected = method.attribute_all(clip.preprocess(photo, 160))[0]
    found = np.load(tmp_path / "photo-maps.npz")["CLIPSurgery"]
    assert found.shape == (2, 24, 24)  # 1.25 * 160 pixels are 12 patches, at two positions each
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_an_image_is_never_overwritten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path
) -> None:
    before = photo.read_bytes()
    assert explain(monkeypatch, photo, "--output", tmp_path) == 0
    assert photo.read_bytes() == before


def test_goes_on_past_what_it_cannot_read(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo.read_bytes()[:100])
    missing = tmp_path / "missing.png"
    out = tmp_path / "out"
    ended = explain(monkeypatch, broken, photo, "--output", out)
    assert ended == "error: 1 of 2 images were skipped"
    assert (out / "photo-maps.png").exists()
    assert capsys.readouterr().err.count("broken.png cannot be read as an image") == 1
    ended = explain(monkeypatch, photo, missing, "--model", "none", "--output", out)
    assert ended == f"error: no image file at {missing}"  # found before the model is


def test_images_of_one_name_do_not_overwrite_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path
) -> None:
    (tmp_path / "more").mkdir()
    second = tmp_path / "more" / "photo.png"
    second.write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    assert explain(monkeypatch, photo, second, "--output", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["photo-2-maps.png", "photo-maps.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pretrained", "openai"], "error: --pretrained needs --model"),
        (["--model", "ViT-B-61", "--pretrained", "x"], "error: open_clip has no model 'ViT-B-61'"),
        (["--model", "ViT-B-16", "--pretrained", "a/b.pt"], "error: no checkpoint file at a/b.pt"),
        (["--size", "100"], "error: images of 100 x 100 pixels"),
        (["--model", "RN50", "--pretrained", __file__], "error: " + __file__),
    ],
)
def test_mistakes_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photo: Path,
    options: list[str],
    message: str,
) -> None:
    ended = explain(monkeypatch, photo, "--output", tmp_path / "out", *options)
    assert str(ended).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "work"),
    [
        (["demo"], "demo"),
        (["segment", "photo.png"], "segment"),
        (["evaluate", "--limit", 4], "evaluate --dataset scenes"),
    ],
)
def test_what_processes_do_not_share_is_refused_to_several(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[object], work: str
) -> None:
    """Each would do all of it, and all would write the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = run(monkeypatch, *arguments, "--output", tmp_path / "out")
    assert f"error: {work} runs in a single process, but WORLD_SIZE is 2" in str(ended)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_a_text_is_required(monkeypatch: pytest.MonkeyPatch, photo: Path, command: str) -> None:
    message = run(monkeypatch, command, photo, "--model", "none")
    assert message == "error: no texts: give --text, once per text, or --texts FILE"


def test_one_text_has_no_share(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its softmax is 100 % for any image."""
    assert run(monkeypatch, "explain", photo, "--text", "dog", "--output", tmp_path) == 0
    printed = capsys.readouterr().out
    assert re.search(r"  dog: cosine -?\d\.\d{3}\n", printed)
    assert "%" not in printed
    options = ["--json", "--methods", "GradCam", "--precision", "bf16", "--device", "cpu"]
    texts = tmp_path / "texts.txt"
    texts.write_text("dog\npizza\n")
    assert run(monkeypatch, "explain", photo, "--texts", texts, *options, "-o", tmp_path) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert sum(entry["share"] for entry in image["texts"]) == pytest.approx(1, abs=1e-5)
    assert image["texts"][0]["cosine"] >= image["texts"][1]["cosine"]
    assert Path(image["figure"]).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, photo: Path) -> None:
    message = explain(monkeypatch, photo, "--device", "cuda")
    assert message == "error: --device cuda is not available on this machine; choose cpu"


def test_verbose_shows_where_an_error_comes_from(
    monkeypatch: pytest.MonkeyPatch, photo: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["clip-surgery", "explain", str(photo), "--verbose"])
    with pytest.raises(ValueError, match="no texts"):
        cli.main()


@pytest.mark.slow
def test_as_a_process() -> None:
    command = [sys.executable, "-m", "captum_clip_surgery", "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == captum_clip_surgery.__version__


def test_models_lists_what_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["ViT-B-16", "ViT-B-16-SigLIP", "convnext_base"]
    monkeypatch.setattr(open_clip, "list_models", lambda: names)
    assert run(monkeypatch, "models") == 0
    printed = capsys.readouterr().out
    for part in (
        "| ViT-B-16        | open_clip VisionTransformer | class token | 12 ",
        "| 14 x 14 | tokenizer |",
        "2 of 3 configurations work.",
        "| transformers CLIP     | class token |",
        "Not AlignModel: its image tower is an EfficientNet",
        "pip install 'captum_clip_surgery[transformers]'",
        "Not convnext_base: its trunk is timm's ConvNeXt: it convolves",
    ):
        assert part in printed

    assert run(monkeypatch, "models", "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries[:3]] == names
    supported = {entry["name"] for entry in entries[3:] if entry["supported"]}
    assert {"CLIPModel", "SiglipModel"} <= supported
    assert [entry["supported"] for entry in entries[:3]] == [True, True, False]
    assert entries[0]["grid"] == [14, 14]


def test_check_reports_and_draws(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "check", "--output", tmp_path) == 0
    printed = capsys.readouterr().out
    for part in (
        "embedded model",
        "images                 12",
        "suggested num_blocks",
        "check.png",
    ):
        assert part in printed
    assert np.asarray(Image.open(tmp_path / "check.png").convert("RGB")).std() > 30

    options = ("--model", f"local-dir:{MODEL_FOLDER}", "--size", 96, "--json", "--text", "dog")
    assert run(monkeypatch, "check", photo, photo, *options, "--output", tmp_path) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["grid"]) == (2, [6, 6])
    assert report["agreement"] is report["common_energy"] is None
    assert report["outliers"] == [0] * 9


def test_check_of_a_missing_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = run(monkeypatch, "check", tmp_path / "none.png")
    assert message == f"error: no image file at {tmp_path / 'none.png'}"


def test_compare_draws_and_says_what_it_left_out(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = [option for noun in SCENE.nouns for option in ("--text", noun)]
    options = (
        "--methods",
        "CLIP,GuidedGradCam,LeGrad",
        "--output",
        tmp_path,
        "--scales",
        "map",
        "--fine",
    )
    assert run(monkeypatch, "compare", photo, *texts, *options) == 0
    captured = capsys.readouterr()
    assert "left out: GuidedGradCam: GuidedGradCam is not defined on" in captured.err
    table = (tmp_path / "compare.md").read_text()
    assert table in captured.out
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["CLIP", "LeGrad"]
    assert Image.open(tmp_path / "compare.png").size[0] > 500
    message = run(monkeypatch, "compare", photo, *texts, "--methods", "LeGrat")
    assert str(message).startswith("error: unknown method 'LeGrat'; known: CLIP, CLIPS")
    assert str(message).endswith("or all; did you mean 'LeGrad'?")


@pytest.mark.slow
def test_compare_goes_on_past_what_it_cannot_read_and_passes_options_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path
) -> None:
    seen = []

    def spy(clip: ZeroShotClassifier) -> Explain:
        seen.append(clip.distractors)
        return _registry.METHODS["CLIPSurgery"](clip)

    monkeypatch.setitem(_registry.METHODS, "Spy", spy)
    distractors = tmp_path / "distractors.txt"
    distractors.write_text("pizza\n")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    options = (
        "--text",
        "dog",
        "--methods",
        "Spy",
        "--output",
        tmp_path,
        "--distractors",
        distractors,
    )
    ended = run(monkeypatch, "compare", broken, photo, *options, "--size", 96)
    assert ended == "error: 1 of 2 images were skipped"
    assert (tmp_path / "compare.png").exists()
    assert seen[-1] == ("pizza",)
    ended = run(monkeypatch, "compare", photo, *options, "--size", 100)
    assert str(ended).startswith("error: images of 100 x 100 pixels")
    ended = run(monkeypatch, "compare", broken, *options)
    assert ended == "error: 1 of 1 images were skipped"


def test_evaluate_writes_figures_for_people_and_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--limit", 4, "--methods", "CLIP,CLIPSurgery", "--size", 96, "--output", tmp_path)
    assert run(monkeypatch, "evaluate", *options, "--measures", "all") == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["images"] == 4
    command = "clip-surgery evaluate --limit 4 --methods CLIP,CLIPSurgery "
    assert results["command"].startswith(command)
    assert torch.__version__.startswith(results["versions"]["torch"])
    assert {"insertion", "grid_pointing", "auroc"} <= set(results["methods"]["CLIP"]["measures"])
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    for name in ("CLIP", "CLIPSurgery"):
        found = results["methods"][name]
        assert f"{found['measures']['explanation_iou']:.1f}" in printed
        (low, high), value = found["intervals"]["msc"], found["measures"]["msc"]
        assert low <= value <= high
        assert 0 < found["seconds"] < 60
        (row,) = (r for r in rows if (r["method"], r["measure"]) == (name, "msc"))
        assert (float(row["value"]), float(row["low"])) == (value, low)
        assert f"| {name} " in (tmp_path / "results.md").read_text()
    assert Image.open(tmp_path / "results.png").size[0] > 500
    assert run(monkeypatch, "evaluate", "--measures", "speed") == (
        "error: measures must be one of localization, faithfulness, grid, specificity, "
        "got ['speed']"
    )
    pair = ("--methods", "CLIPSurgery,ArchitectureSurgery", "--feature-surgery", "none")
    assert run(monkeypatch, "evaluate", *options, *pair) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    surgery, plain = (each["measures"] for each in results["methods"].values())
    assert surgery == plain
    assert run(monkeypatch, "evaluate", "--methods", "clip", *pair[2:]) == (
        "error: --feature-surgery none has no effect on CLIP; add one of CLIPSurgery, "
        "FeatureSurgery, CLIPSurgeryFine to --methods, or leave it out"
    )
    assert run(monkeypatch, "evaluate", "--dataset", "voc") == 2
    assert "'voc' is not one of 'scenes', 'voc21', " in capsys.readouterr().err
