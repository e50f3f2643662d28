"""The commands of the tasks, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.queries import DifferenceQuery, ImageQuery
from captum_clip_surgery.tasks import explain_pair, prompts, recognize, segment, word_maps
from tests._helpers.command_line import run

SCENES = Scenes("test", 2, size=128, objects=[2])
TEXTS = [option for noun in SCENES[0].nouns for option in ("--text", noun)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, and a file that is none."""
    made = tmp_path / "pictures"
    made.mkdir()
    for number, scene in enumerate(SCENES):
        Image.fromarray(scene.image).save(made / f"{number}.png")
    (made / "notes.txt").write_text("no picture, and not taken for one")
    (made / "paper.pdf").write_text("which Pillow can only write")
    return made


@pytest.fixture
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(SCENES[0].nouns)


def test_segment_a_folder(monkeypatch, tmp_path, folder, capsys, clip) -> None:
    options = ("--output", tmp_path / "out", "--json", "--masks")
    assert run(monkeypatch, "segment", folder, *TEXTS, *options) == 0
    content = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == content
    assert content["background"] == ["a background"]
    assert [row["name"] for row in content["classes"]] == ["background", *SCENES[0].nouns]
    areas = np.zeros(3, dtype=int)
    for number, entry in enumerate(content["images"]):
        path = folder / f"{number}.png"
        (expected,) = segment(clip, path, background=["a background"])
        labels = np.asarray(Image.open(entry["labels"]))
        assert np.array_equal(labels, expected.labels.numpy())
        assert entry["shares"] == pytest.approx(expected.shares())
        palette = np.reshape(Image.open(entry["labels"]).getpalette(), (-1, 3))
        for row in content["classes"]:
            inside = labels == row["index"]
            areas[row["index"]] += inside.sum()
            assert row["color"] == palette[row["index"]].tolist()
            if inside.any():
                mask = np.asarray(Image.open(entry["masks"][row["name"]]))
                assert np.array_equal(mask, inside)
        assert Image.open(tmp_path / "out" / f"{number}-segments.png").size[0] > 500
    assert [row["area"] for row in content["classes"]] == areas.tolist()


def test_segment_with_synonyms(monkeypatch, tmp_path, folder, capsys) -> None:
    """The names of a class count as one class, and those of the background as background."""
    first, second = SCENES[0].nouns
    file = tmp_path / "classes.txt"
    file.write_text(f"background, a background\nthing, {first}, {second}\nkiwi\n")
    options = ("--synonyms", file, "--output", tmp_path, "--json")
    assert run(monkeypatch, "segment", folder / "0.png", *options) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in content["classes"]] == ["background", "thing", "kiwi"]
    assert content["background"] == ["background", "a background"]
    clip = ZeroShotClassifier.demo(["thing", first, second, "kiwi"])
    (expected,) = segment(
        clip,
        folder / "0.png",
        classes={"thing": ["thing", first, second], "kiwi": ["kiwi"]},
        background=["background", "a background"],
    )
    labels = np.asarray(Image.open(content["images"][0]["labels"]))
    assert np.array_equal(labels, expected.labels.numpy())
    message = run(monkeypatch, "segment", folder, "--synonyms", file, "--text", "dog")
    assert message == "error: --synonyms lists all classes; leave out texts and queries"


@pytest.mark.slow
def test_segment_finely_along_edges(monkeypatch, tmp_path, folder, capsys, clip) -> None:
    options = ("--size", 96, "--fine", "--refine", "pamr", "--output", tmp_path)
    options = (*options, "--no-background", "--json")
    assert run(monkeypatch, "segment", folder / "0.png", *TEXTS, *options) == 0
    (entry,) = json.loads(capsys.readouterr().out)["images"]
    (expected,) = segment(clip, folder / "0.png", size=96, fine=True, refine="pamr")
    assert np.array_equal(np.asarray(Image.open(entry["labels"])), expected.labels.numpy())
    (coarse,) = segment(clip, folder / "0.png", size=96, refine="pamr")
    assert not torch.equal(coarse.labels, expected.labels)


@pytest.mark.parametrize("background", [None, ["a background"]])
def test_segment_with_a_threshold(monkeypatch, tmp_path, folder, capsys, clip, background) -> None:
    texts = ["--no-background"] if background is None else ["--background", *background]
    options = (*texts, "--threshold", 0.9, "--output", tmp_path, "--json")
    assert run(monkeypatch, "segment", folder / "0.png", *TEXTS, *options) == 0
    (entry,) = json.loads(capsys.readouterr().out)["images"]
    both = {"background": background, "threshold": 0.9} if background else {"background": 0.9}
    (expected,) = segment(clip, folder / "0.png", **both)
    assert np.array_equal(np.asarray(Image.open(entry["labels"])), expected.labels.numpy())
    if background:  # the threshold matters beside the text
        (without,) = segment(clip, folder / "0.png", background=background)
        assert not torch.equal(without.labels, expected.labels)


def test_segment_by_windows_for_people(monkeypatch, tmp_path, folder, capsys) -> None:
    options = ("--window", 64, "--size", 96, "--feature-surgery", "release", "--output", tmp_path)
    assert run(monkeypatch, "segment", folder / "0.png", *options) == 0
    printed = capsys.readouterr().out
    assert "This is the embedded model" in printed
    shares = [line.split(maxsplit=1) for line in printed.splitlines() if "%" in line]
    assert sum(float(share.rstrip("%")) for share, _ in shares) == pytest.approx(100, abs=1)
    assert {name for _, name in shares} <= {"background", *nouns()}


@pytest.mark.slow
def test_recognize_a_pattern(monkeypatch, tmp_path, folder, capsys) -> None:
    options = ("--top", 3, "--output", tmp_path, "--json")
    assert run(monkeypatch, "recognize", folder / "*.png", *options) == 0
    content = json.loads(capsys.readouterr().out)
    expected = recognize(ZeroShotClassifier.demo(nouns()), sorted(folder.glob("*.png")))
    for entry, found in zip(content["images"], expected, strict=True):
        assert entry["scores"] == pytest.approx(found.scores.tolist(), abs=1e-5)
        assert [name for name, _ in entry["best"]] == [name for name, _ in found.top(3)]
        stem = Path(entry["image"]).stem
        assert Image.open(tmp_path / f"{stem}-classes.png").size[0] > 500
    assert json.loads((tmp_path / "recognition.json").read_text()) == content
    texts = tmp_path / "texts.txt"
    texts.write_text("dog\nkiwi\n\nduck\n")
    options = ("--texts", texts, "--threshold", 5, "--output", tmp_path)
    assert run(monkeypatch, "recognize", folder / "0.png", *options) == 0
    assert "no class scores above 5.0" in capsys.readouterr().out


def test_points(monkeypatch, tmp_path, folder, capsys, clip) -> None:
    options = ("--boxes", "--instances", "components", "--output", tmp_path)
    assert run(monkeypatch, "points", folder / "0.png", *TEXTS, *options) == 0
    assert f"{SCENES[0].nouns[0]}: " in capsys.readouterr().out
    written = json.loads((tmp_path / "0-points.json").read_text())
    (expected,) = prompts(clip, folder / "0.png", boxes=True, instances="components")
    assert written["prompts"] == [prompt.to_dict() for prompt in expected]
    assert Image.open(tmp_path / "0-points.png").size[0] > 500


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SAM of random weights in half precision, in a folder."""
    pytest.importorskip("transformers")
    from tests._helpers.sams import save_sam

    return save_sam(tmp_path_factory.mktemp("sam"), dtype=torch.float16)


def test_points_and_the_masks_of_a_sam(monkeypatch, tmp_path, folder, capsys, sam) -> None:
    options = ("--sam", sam, "--output", tmp_path, "--json")
    assert run(monkeypatch, "points", folder / "0.png", *TEXTS, *options) == 0
    (entry,) = json.loads(capsys.readouterr().out)["images"]
    assert len(entry["masks"]) == len(entry["prompts"]) == 2
    for mask in entry["masks"]:
        with Image.open(mask) as read:
            assert (read.size, read.mode) == ((128, 128), "1")
    message = run(monkeypatch, "points", folder, "--sam", tmp_path / "none", *TEXTS)
    assert message == f"error: no file at {tmp_path / 'none'}"


@pytest.mark.slow
def test_where_there_are_no_points_the_mask_is_empty(
    monkeypatch, tmp_path, folder, capsys, sam
) -> None:
    options = ("--text", "dog", "--size", 32, "--sam", sam, "--output", tmp_path, "--json")
    assert run(monkeypatch, "points", folder, *options) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert [entry["prompts"][0]["points"] for entry in images] == [[], []]
    for entry in images:
        assert not np.asarray(Image.open(entry["masks"][0])).any()
    assert run(monkeypatch, "points", folder, *options, "--down-sample", 1) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert all(entry["prompts"][0]["points"] for entry in images)


@pytest.mark.slow
def test_a_caption_may_fill_the_context(monkeypatch, tmp_path, folder) -> None:
    """No template makes it longer."""
    caption = " ".join(["dog"] * (24 - 2))
    assert (
        run(monkeypatch, "words", folder / "0.png", "--caption", caption, "--output", tmp_path) == 0
    )
    message = run(monkeypatch, "words", folder / "0.png", "--caption", caption + " dog")
    assert "is longer than the model's context of 24 tokens" in str(message)


@pytest.mark.parametrize(
    "method",
    [None, *(pytest.param(m, marks=pytest.mark.slow) for m in ("interactions", "surgery"))],
)
def test_words(monkeypatch, tmp_path, folder, capsys, method) -> None:
    caption = f"the {SCENES[0].nouns[0]} in the scene."
    options = ("--caption", caption, "--output", tmp_path, *(["--method", method] * bool(method)))
    assert run(monkeypatch, "words", folder / "0.png", *options) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "words.json").read_text())
    assert content["caption"] == caption
    assert content["method"] == (method or "interactions")
    clip = ZeroShotClassifier.demo([caption])
    arguments = {} if method is None else {"method": method}
    (expected,) = word_maps(clip, [Image.open(folder / "0.png")], caption, **arguments)
    maps = torch.tensor(content["images"][0]["maps"])
    assert torch.allclose(maps, expected.maps, atol=1e-5)
    assert content["images"][0]["words"][:2] == caption.split()[:2]
    assert SCENES[0].nouns[0] in printed
    assert Image.open(tmp_path / "0-words.png").size[0] > 500


@pytest.mark.slow
@pytest.mark.parametrize("command", ["segment", "recognize", "points", "words"])
def test_past_what_cannot_be_read(monkeypatch, tmp_path, folder, capsys, command) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    texts = ("--caption", "a dog") if command == "words" else TEXTS
    ended = run(monkeypatch, command, folder, *texts, "--output", tmp_path, "--json")
    assert ended == "error: 1 of 3 images were skipped"
    captured = capsys.readouterr()
    assert captured.err.count(f"skipped: {folder / 'broken.png'}") == 1
    assert len(json.loads(captured.out)["images"]) == 2


def test_nothing_to_look_at(monkeypatch, tmp_path) -> None:
    message = run(monkeypatch, "segment", tmp_path, *TEXTS)
    assert message == f"error: no images in the folder {tmp_path}"
    message = run(monkeypatch, "segment", tmp_path, "--text", "dog", "--no-background")
    assert str(message).startswith("error: --no-background assigns every pixel to one")
    message = run(monkeypatch, "segment", "none/*.png", *TEXTS)
    assert str(message).startswith("error: no file matches")
    message = run(monkeypatch, "segment", "a.png", "--model", "RN50", "--pretrained", "x")
    assert message == "error: no texts: give --text, once per text, or --texts FILE"


# --- queries beside texts ------------------------------------------------------------------------


@pytest.mark.slow
def test_images_are_looked_for_and_texts_subtracted(
    monkeypatch, tmp_path, folder, capsys, clip
) -> None:
    image, query = folder / "0.png", folder / "1.png"
    first, second = SCENES[0].nouns
    arguments = (image, "--query-image", query, "--text", first, "--minus", second)
    options = ("--feature-surgery", "none", "--output", tmp_path / "out", "--json")
    assert run(monkeypatch, "recognize", *arguments, *options) == 0
    content = json.loads(capsys.readouterr().out)
    names = [f"{first} rather than {second}", f"1.png rather than {second}"]
    assert content["classes"] == names
    asked = clip.with_queries(
        [DifferenceQuery(first, second), DifferenceQuery(ImageQuery(query), second)]
    )
    (expected,) = recognize(asked, image, None)
    assert content["images"][0]["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-6)
    # Without texts, the embedded model's nouns are not asked for.
    options = ("--query-image", query, "--output", tmp_path / "out")
    arguments = (image, "--query-image", image, *options, "--no-background", "--json")
    assert run(monkeypatch, "segment", *arguments) == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    assert [row["name"] for row in classes] == ["0.png", "1.png"]
    assert run(monkeypatch, "explain", image, *options) == 0
    assert "1.png: cosine" in capsys.readouterr().out
    assert run(monkeypatch, "explain", image, *options, "--minus", second) == 0
    assert f"1.png rather than {second}: difference of cosines" in capsys.readouterr().out
    message = run(monkeypatch, "segment", image, *options, "--minus", second)
    assert str(message).startswith("error: segment takes no --minus")


def test_images_of_one_name_are_named_by_path(monkeypatch, tmp_path, folder, capsys) -> None:
    image, copied = folder / "1.png", tmp_path / "1.png"
    copied.write_bytes((folder / "0.png").read_bytes())
    options = ("--query-image", folder / "0.png", "--output", tmp_path / "out", "--json")
    queries = ("--query-image", image, "--query-image", copied, "--query-image", image)
    assert run(monkeypatch, "recognize", image, *queries, *options) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["classes"] == [str(image), str(copied), "0.png"]


@pytest.mark.slow
def test_match_two_images(monkeypatch, tmp_path, folder, capsys, clip) -> None:
    paths = folder / "0.png", folder / "1.png"
    options = ("--pairs", 2, "--output", tmp_path / "out", "--json")
    assert run(monkeypatch, "match", *paths, *options) == 0
    content = json.loads(capsys.readouterr().out)
    expected = explain_pair(clip, *paths)
    assert content["cosine"] == pytest.approx(expected.cosine.item(), abs=1e-6)
    assert content["pairs"] == expected.to_dict(2)["pairs"]
    assert json.loads((tmp_path / "out" / "0-1-match.json").read_text()) == content
    assert Image.open(tmp_path / "out" / "0-1-match.png").size[0] > 500
    assert run(monkeypatch, "match", *paths, *options[:-1]) == 0
    *parts, total = (float(line.split()[0]) for line in capsys.readouterr().out.splitlines()[2:])
    assert sum(parts) == pytest.approx(total, abs=0.003)


def test_mistakes_are_named_before_a_model_is_loaded(monkeypatch, tmp_path, folder, capsys) -> None:
    monkeypatch.setattr(ZeroShotClassifier, "demo", None)
    photo, out = folder / "0.png", ("--output", tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, message in (
        (("match", photo), "match takes two images, a query and an image, got 1 file"),
        (("match", folder, photo), f"no image file at {folder}, which is a folder"),
        (("audit", folder), "no texts: give --text, once per text, or --texts FILE"),
        (("audit", photo, "--text", "dog"), "an audit needs at least 2 classes, got 1"),
        (("audit", "--boxes", "gone.jsonl"), "no file at gone.jsonl"),
        (("audit", photo, *TEXTS, "--cues", tmp_path / "empty.txt"), f"{tmp_path}/empty.txt is em"),
        (("search", folder, "--query-image", "gone.png"), "no file at gone.png"),
        (("search", folder, "--query-image", folder), f"no image file at {folder}, which is a f"),
        (("search", folder, "--query", "dog", "--minus", " "), "--minus is empty"),
        (("explain", photo, *TEXTS, "--minus", ""), "--minus is empty"),
        (("explain", photo, "--text", "0.png", "--query-image", photo), "'0.png' is a text and "),
        (("points", photo, *TEXTS, "--union", "--instances", "peaks"), "--union joins texts, and "),
        (("recognize", photo, *TEXTS, "--threshold", "nan"), "threshold must be a finite"),
        (("words", photo, "--caption", " "), "--caption is empty"),
        (("words", photo, "--caption", "a", "--query-image", photo), "words takes no --query-im"),
        (("words", photo, "--caption", "a", "--minus", "b"), "words takes no --query-image, bec"),
    ):
        assert str(run(monkeypatch, *arguments, *out)).startswith(f"error: {message}")
    assert run(monkeypatch, "segment", photo, *TEXTS, "--refine", "sharp") == 2
    assert "'--refine': 'sharp' is not one of 'guided', 'pamr'" in capsys.readouterr().err


def test_an_audit_of_too_few_images_says_what_to_change(monkeypatch, tmp_path, capsys) -> None:
    options = ("--limit", 2, "--size", 64, "--output", tmp_path)
    assert run(monkeypatch, "audit", *options) == "error: no class was audited"
    assert "24 classes left out" in capsys.readouterr().out
    assert not (tmp_path / "lifts.png").exists()


def test_recognition_of_one_text_names_the_options(monkeypatch, tmp_path, folder) -> None:
    arguments = ("recognize", folder / "0.png", "--text", "dog", "--output", tmp_path)
    message = str(run(monkeypatch, *arguments))
    assert "add texts or --distractors, or choose --feature-surgery empty" in message


def test_a_search_warns_once_and_names_its_files(
    monkeypatch, tmp_path, folder, capsys, recwarn
) -> None:
    source = tmp_path / "images"
    source.mkdir()
    (source / "0.png").write_bytes((folder / "0.png").read_bytes())
    options = ("--query", "zebu", "--output", tmp_path / "out")
    assert run(monkeypatch, "search", source, *options) == 0
    said = f"'zebu' in 1 image: {tmp_path / 'out' / 'search.json'}; pictures: "
    assert said in capsys.readouterr().out
    assert sum("zebu" in str(warning.message) for warning in recwarn) == 1
