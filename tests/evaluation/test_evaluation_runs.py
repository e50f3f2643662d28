"""Runs over data sets: however they are cut, what they cost, what stops them, what they leave."""

from __future__ import annotations

import csv
import functools
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery._utils.provenance import weights_digest
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.datasets import Folder, Labels, Masks, Point, Points, Tags
from captum_clip_surgery.demo import MODEL_FOLDER, Scenes
from captum_clip_surgery.evaluation import (
    Evaluation,
    Protocol,
    StatisticsStore,
    View,
    _predictors,
    _running,
    evaluate,
)
from captum_clip_surgery.evaluation._data import EvalDataLoader, EvalDataset, resize_policy
from captum_clip_surgery.evaluation._results import read_results
from captum_clip_surgery.evaluation._runner import draw_sample
from captum_clip_surgery.queries import ImageQuery, MeanQuery
from captum_clip_surgery.tasks import maps_of_own_texts, recognize, word_maps
from tests._helpers import command_line, written_scenes
from tests._helpers.cases import each
from tests._helpers.written_scenes import Given, names_of

SCENES = Scenes("test", 7, 96, objects=[2, 3])
scene_folder = functools.partial(written_scenes.scene_folder, names=names_of(SCENES))
BOTH = Protocol("both", "tests", {"localization": View(size=96), "segmentation": View(size=96)}, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return scene_folder(SCENES, tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    """Shared by tests that leave the model as it is, and with it its text features."""
    return ZeroShotClassifier.demo(["dog"], templates=["a {}."])


@pytest.fixture
def own_clip() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(["dog"], templates=["a {}."])


def run(
    clip: ZeroShotClassifier, data: Folder | Given, *names: str, **options: object
) -> Evaluation:
    methods = {name: METHODS[name] for name in names or ("CLIP", "CLIPSurgery", "LeGrad")}
    protocol = options.pop("protocol", BOTH)
    options = {"confidence": False} | options
    return evaluate(clip, data, methods, protocol, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_one_table_however_it_is_cut(clip: ZeroShotClassifier, folder: Folder) -> None:
    first = run(clip, folder, batch_size=1, confidence=True)
    for batch_size in (3, 8):
        other = run(clip, folder, batch_size=batch_size, confidence=True)
        for name, result in first.results.items():
            # Sums of a larger batch differ in their last bits, by which a pixel may change sides.
            assert other.results[name].measures == pytest.approx(dict(result.measures), rel=1e-4)
            assert other.results[name].intervals.keys() == result.intervals.keys()


@pytest.mark.slow
def test_workers_change_nothing(clip: ZeroShotClassifier, folder: Folder) -> None:
    alone, ahead = (run(clip, folder, batch_size=3, workers=workers) for workers in (0, 2))
    assert ahead.results == alone.results
    assert ahead.ranked_images == alone.ranked_images


def test_a_limit_draws_images_that_a_larger_one_draws_too(
    clip: ZeroShotClassifier, folder: Folder, tmp_path: Path
) -> None:
    found = run(clip, folder, "CLIP", limit=3)
    (ranked, _) = found.ranked_images.values()
    drawn = sorted(index for _, index in ranked)
    assert drawn != [0, 1, 2]
    alone = run(clip, scene_folder([SCENES[index] for index in drawn], tmp_path), "CLIP")
    assert found.images == alone.images == 3
    assert found.results == alone.results
    other = run(clip, folder, "CLIP", limit=3, seed=1, tasks=["localization"])
    assert {index for _, index in other.ranked_images["localization"]} != set(drawn)
    assert [draw_sample(7, limit, 0) for limit in (None, 7, 100)] == [range(7)] * 3
    assert set(drawn) < set(draw_sample(7, 5, 0))
    assert found.images_per_second > 0
    assert 0 < found.data_wait_fraction < 1


class Calls:
    def __init__(self, *modules: nn.Module) -> None:
        self.counts = [0] * len(modules)
        for place, module in enumerate(modules):
            module.register_forward_hook(lambda *_, place=place: self._called(place))

    def _called(self, place: int) -> None:
        self.counts[place] += 1


def test_texts_once_and_one_pass_for_all_dense_methods(folder: Folder) -> None:
    """A method more costs no pass, an image more no text."""
    dense = ("CLIP", "CLIPSurgery", "MaskCLIP", "GEM")
    texts = []
    for names, limit in ((dense[:1], 2), (dense, 5)):
        clip = ZeroShotClassifier.demo(["dog"], templates=["a {}."])
        model = clip.model
        calls = Calls(model.visual.conv1, model.transformer.resblocks[0])
        run(clip, folder, *names, limit=limit, batch_size=2)
        images, encoded = calls.counts
        assert images == 2 * -(-limit // 2)  # of two tasks
        assert encoded > 0
        texts.append(encoded)
        run(clip, folder, *names, limit=limit, batch_size=2)
        assert calls.counts == [2 * images, encoded]  # remembered
    # "CLIPSurgery" asks for the empty text as well: one more at most.
    assert texts[1] - texts[0] <= 1


# --- readers -------------------------------------------------------------------------------------


def test_what_workers_are_given_can_be_sent(clip: ZeroShotClassifier, folder: Folder) -> None:
    """To processes that are spawned and share no memory."""
    policy = resize_policy(View(size=96), clip)
    pictures = EvalDataset(folder, clip.preprocessing, policy)
    sent = pickle.loads(pickle.dumps(pictures))[0, 2]
    assert torch.equal(sent.pixels, pictures[0, 2].pixels)
    assert np.array_equal(sent.target.labels, folder[2].target.labels)


def test_pixels_are_those_that_the_reader_gave(clip: ZeroShotClassifier) -> None:
    """A rotation noted in a picture was followed by its reader, or was not for a reason."""

    class Noted(Given):
        def read(self, index: int):
            sample = super().read(index)
            sample.image.getexif()[0x0112] = 6
            sample.image.info["exif"] = sample.image.getexif().tobytes()
            return sample

    picture = SCENES[0].image[:64]
    data = Noted("dog\ncat", [picture], [Labels(np.zeros(picture.shape[:2], np.int32))])
    assert dict(data[0].image.getexif()) == {0x0112: 6}
    ((shown,),) = EvalDataLoader(clip, data, [[(0, 0)]], View(size=96, keep_aspect=True))
    assert shown.size == (64, 96)
    assert torch.equal(shown.pixels, clip.preprocess(picture, (96, 144))[0])


def test_truth_squashed_as_the_view_has_it(clip: ZeroShotClassifier) -> None:
    labels = np.arange(12, dtype=np.int32).reshape(3, 4).repeat(2, 0).repeat(2, 1) - 1
    mask = labels > 4
    truths = [Labels(labels), Masks({1: mask}, {1: ~mask})]
    data = Given("dog\ncat", [SCENES[0].image[:6, :8]] * 2, truths)
    ((first,), (second,)) = EvalDataLoader(clip, data, [[(0, 0)], [(0, 1)]], View(target_size=12))
    expected = (np.arange(12).reshape(3, 4) - 1).repeat(4, 0).repeat(3, 1)
    assert np.array_equal(first.target.labels, expected)
    assert np.array_equal(second.target.masks[1], expected > 4)
    assert np.array_equal(second.target.ignored[1], expected <= 4)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_left_out_and_listed(
    clip: ZeroShotClassifier, tmp_path: Path, workers: int
) -> None:
    readable = run(clip, scene_folder(SCENES[1:3], tmp_path / "two"), "CLIP")
    data = scene_folder(SCENES[:3], tmp_path / "three")
    path = tmp_path / "three" / "images" / "00000.png"
    path.write_bytes(path.read_bytes()[:100])
    found = run(clip, data, "CLIP", workers=workers)
    assert found.results["CLIP"].measures == pytest.approx(dict(readable.results["CLIP"].measures))
    assert list(found.unreadable) == ["00000"]
    assert "00000.png cannot be read as" in found.unreadable["00000"]
    assert found.images == 2
    for other in path.parent.iterdir():
        other.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 3 images of folder three can be read; the"):
        run(clip, data, "CLIP")


def test_a_method_that_fails_names_its_images(clip: ZeroShotClassifier, folder: Folder) -> None:
    def broken(clip: ZeroShotClassifier):
        def explain(images: Tensor, targets: Sequence[int] | None = None) -> Tensor:
            raise RuntimeError("out of luck")

        return explain

    with pytest.raises(RuntimeError, match="out of luck") as failed:
        evaluate(clip, folder, {"broken": broken}, BOTH, progress=False, batch_size=2)
    assert "images 00000, 00001 of folder" in failed.value.__notes__[0]


def test_refused(clip: ZeroShotClassifier, folder: Folder) -> None:
    with pytest.raises(ValueError, match="limit must be at least 1, or None for all images, got 0"):
        run(clip, folder, limit=0)
    with pytest.raises(
        ValueError, match=r"'points' is not measured .* choose from localization, seg"
    ):
        run(clip, folder, tasks=["points"])
    points = Protocol("p", "tests", {"points": View()}, {})
    with pytest.raises(ValueError, match=r"protocol p measures points, .* the Labels of folder"):
        run(clip, folder, protocol=points)
    aspect = View(size=96, keep_aspect=True)
    with pytest.raises(ValueError, match="maps need squashed images"):
        run(clip, folder, protocol=replace(BOTH, views={"localization": aspect}))
    tags = Given("dog\ncat", [SCENES[0].image], [Tags(frozenset({0}))])
    for view in (aspect, View(synonyms=True), View(texts="present")):
        with pytest.raises(ValueError, match="recognition scores squashed images"):
            run(clip, tags, protocol=replace(BOTH, views={"recognition": view}))


@pytest.mark.slow
def test_figures_of_each_kind_of_truth(clip: ZeroShotClassifier) -> None:
    pictures = [scene.image for scene in SCENES[:2]]
    mask = np.zeros((96, 96), bool)
    mask[20:60, 30:70] = True
    truths = {
        "localization": Masks({1: mask}),
        "recognition": Tags(frozenset({0, 2})),
        "points": Points((Point(2, 0.2, 0.3, True), Point(2, 0.7, 0.9, False))),
        "segmentation": Labels(mask.astype(np.int32)),
    }
    for task, truth in truths.items():
        data = Given("dog\ncat\ncow", pictures, [truth] * 2)
        way = Protocol("one", "tests", {task: View(size=96)}, {})
        found = run(clip, data, "CLIP", "CLIPSurgery", protocol=way, figures=True)
        (figure,) = found.figures.values()
        shown = [axes for axes in figure.axes if axes.images]
        assert len(shown) == 2 * 4  # two images; each, its truth and two methods
        assert task in figure.get_suptitle()
        if task == "points":
            for axis in shown[1::4]:  # points, at their places and within the image
                assert axis.get_xlim() == (-0.5, 95.5)
                assert axis.collections[0].get_offsets().tolist() == [
                    pytest.approx([0.2 * 96 - 0.5, 0.3 * 96 - 0.5])
                ]
        if task == "segmentation":
            legend = [text.get_text() for text in shown[3].get_legend().get_texts()]
            assert set(legend) <= {"dog", "cat", "cow"}
            assert len(legend) > 1
    assert not run(clip, data, "CLIP", protocol=way).figures


def test_a_figure_shows_the_class_whose_score_it_gives(clip: ZeroShotClassifier) -> None:
    masks = np.zeros((2, 96, 96), bool)
    masks[0, :8, :8] = masks[1, 20:60, 30:70] = True
    data = Given("dog\ncat\ncow", [SCENES[0].image], [Masks({0: masks[0], 1: masks[1]})])
    way = Protocol("one", "tests", {"localization": View()}, {})
    axes = run(clip, data, "CLIP", protocol=way, figures=True).figures["localization"].axes
    scores = {
        two.get_xlabel(): one.get_ylabel() for one, two in zip(axes[::3], axes[1::3], strict=True)
    }
    assert sorted(scores) == ["cat", "dog"]
    for name, text in scores.items():
        label = data.classes.first.index(name)
        alone = Given("dog\ncat\ncow", [SCENES[0].image], [Masks({label: masks[label]})])
        measures = run(clip, alone, "CLIP", protocol=way).results["CLIP"].measures
        assert float(text.split("\n")[1]) == pytest.approx(measures["explanation_iou"], abs=0.06)


# --- the command ---------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str:
    return command_line.run(monkeypatch, "evaluate", *arguments)


@pytest.mark.slow
def test_command(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = ZeroShotClassifier.demo(["dog"])
    scene_folder(SCENES[:3], tmp_path / "data")
    options = ["--dataset", "folder", "--root", tmp_path / "data", "--protocol", "paper"]
    options += ["--methods", "surgery,clip,maskclip", "--output", tmp_path / "out", "--limit", 2]
    assert command(monkeypatch, *options) == 0
    printed = capsys.readouterr().out
    assert "| CLIPSurgery |" in printed
    assert "2 images, " in printed
    out = tmp_path / "out"
    content = json.loads((out / "results.json").read_text())
    assert list(content["methods"]) == ["CLIPSurgery", "CLIP", "MaskCLIP"]
    assert content["images"] == 2
    assert content["protocol"]["name"] == "paper"
    assert content["protocol"]["views"]["segmentation"]["size"] == 512
    assert content["model"]["weights"] == weights_digest(clip.model)
    assert content["command"].startswith("clip-surgery evaluate --dataset folder")
    assert {"torch", "transformers", "captum_clip_surgery"} <= content["versions"].keys()
    assert len({name for names in content["ranked_images"].values() for name in names}) == 2
    expected = evaluate(
        clip, Folder(tmp_path / "data"), {"CLIP": METHODS["CLIP"]}, Protocol.load("paper"), limit=2
    ).results["CLIP"]
    assert dict(read_results(out)["CLIP"].measures) == pytest.approx(
        dict(expected.measures), rel=1e-6
    )
    with (out / "results.csv").open() as file:
        rows = {(row["method"], row["measure"]) for row in csv.DictReader(file)}
    assert {("MaskCLIP", "class_iou"), ("MaskCLIP", "msc")} <= rows
    assert "class mIoU" in (out / "results.md").read_text()
    for name in ("results", "localization", "segmentation"):
        assert np.asarray(Image.open(out / f"{name}.png").convert("L")).std() > 5
    other = [*options, "--feature-surgery", "paper"]
    assert 'holds another run: --feature-surgery was "auto"' in str(command(monkeypatch, *other))
    assert command(monkeypatch, *other, "--output", tmp_path / "other") == 0
    paper = read_results(tmp_path / "other")
    assert paper["CLIP"] == read_results(out)["CLIP"]
    assert paper["CLIPSurgery"] != read_results(out)["CLIPSurgery"]


def test_a_protocol_that_changes_with_the_data_set_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scene_folder(SCENES[:1], tmp_path / "data")
    own = tmp_path / "own.toml"
    own.write_text('source = "t"\n[segmentation]\nsize = 64\n[segmentation.folder]\nsize = 96\n')
    options = ["--dataset", "folder", "--root", tmp_path / "data", "--protocol", own]
    assert command(monkeypatch, *options, "--methods", "clip", "--output", tmp_path / "out") == 0
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["protocol"]["views"]["segmentation"]["size"] == 96


@pytest.mark.slow
@each(("options", "expected"), [([], "bicubic"), (["--positions", "bilinear"], "bilinear")])
def test_a_protocol_says_how_positions_are_resized_unless_an_option_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], expected: str
) -> None:
    scene_folder(SCENES[:1], tmp_path / "data")
    own = tmp_path / "own.toml"
    own.write_text(
        'source = "t"\ntemplates = "none"\npositions = "bicubic"\n[segmentation]\nsize = 64\n'
    )
    options = ["--model", f"local-dir:{MODEL_FOLDER}", "--protocol", str(own), *options]
    out = tmp_path / expected
    given = ["--dataset", "folder", "--root", tmp_path / "data", "--output", out]
    assert command(monkeypatch, *given, "--methods", "clip", *options) == 0
    assert json.loads((out / "results.json").read_text())["model"]["positions"] == expected


@each(
    ("options", "message"),
    [
        ("--dataset folder", "--dataset folder needs --root"),
        ("--dataset folder --root DATA --protocol nothing", "there is no protocol 'nothing'"),
        ("--dataset folder --root DATA --methods nothing", "unknown method 'nothing'"),
        ("--dataset folder --root DATA --tasks points", "'points' is not measured by protocol"),
        ("--dataset folder --root DATA --split val", "data set folder has no splits"),
        (
            "--dataset folder --root DATA --size 96",
            "--size cannot be combined with --dataset folder: on data sets, the protocol",
        ),
        ("--dataset folder --root nowhere", "is incomplete at nowhere (no such folder)"),
        ("--dataset folder --root DATA --protocol BAD", "localization has the unknown key 'sise'"),
        ("--root DATA --no-resume", "--root, --resume cannot be combined with --dataset scenes"),
    ],
)
def test_command_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: str, message: str
) -> None:
    scene_folder(SCENES[:1], tmp_path / "data")
    bad = tmp_path / "bad.toml"
    bad.write_text('source = "t"\n[localization]\nsise = 3\n')
    places = {"DATA": tmp_path / "data", "BAD": bad}
    given = [places.get(word, word) for word in options.split()]
    ended = command(monkeypatch, *given, "--output", tmp_path / "out")
    assert isinstance(ended, str)
    assert ended.startswith("error: ")
    assert message in ended
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["ln_final", "visual.ln_post"])
def test_an_evaluation_is_of_one_model(
    own_clip: ZeroShotClassifier,
    folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    weight = own_clip.model.get_submodule(part).weight
    plain, calls = _predictors.attribute_each, []

    def then_step(*args: Any) -> Any:
        found = plain(*args)
        calls.append(1)
        if len(calls) == 2:
            weight.data = -weight.data
        return found

    monkeypatch.setattr(_predictors, "attribute_each", then_step)
    store = StatisticsStore(tmp_path / "statistics", {}, {})
    monkeypatch.setattr(_running, "PIECE", 2)
    with pytest.raises(RuntimeError, match=rf"of the model was changed .*\({part}\)"):
        run(own_clip, folder, "CLIP", batch_size=2, store=store)
    # The first piece is of the model as it was, and of the second nothing is kept.
    assert len(list(tmp_path.rglob("*.parquet"))) <= 1


def test_a_task_on_many_batches_is_of_one_model(
    own_clip: ZeroShotClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, eps = [scene.image for scene in SCENES], own_clip.model.ln_final.eps
    texts = [["dog"], ["camera", "pizza"]] * 4
    calls_of: dict[str, Callable[[], object]] = {
        "recognize": lambda: recognize(
            own_clip.with_texts(["dog", "pizza"]), pictures, batch_size=2
        ),
        "own texts": lambda: maps_of_own_texts(own_clip, pictures[:6], texts[:6], batch_size=2),
        "words": lambda: word_maps(own_clip, pictures[:2], ["a dog", "a pizza"], batch_size=1),
    }
    plain = own_clip.preprocess
    for name, task in calls_of.items():
        own_clip.model.ln_final.eps = eps
        task()
        calls: list[int] = []

        def then_step(_: object, *args: Any, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            if len(calls) == 2:
                own_clip.model.ln_final.eps = 0.5
            return plain(*args)

        with monkeypatch.context() as patch:
            patch.setattr(ZeroShotClassifier, "preprocess", then_step)
            with pytest.raises(RuntimeError, match=r"a setting of the model .*ln_final\.eps"):
                task()
        assert len(calls) >= 2, name


# --- example images in place of names ------------------------------------------------------------


def examples(root: Path) -> tuple[str, list[Path]]:
    """A class of the scenes, and two images that show it beside other things."""
    noun = SCENES[0].nouns[0]
    others = [scene for scene in Scenes("validation", 400, 64) if noun in scene.nouns]
    paths = [root / f"example-{number}.png" for number in range(2)]
    for path, scene in zip(paths, others, strict=False):
        Image.fromarray(scene.image).save(path)
    return noun, paths


def test_example_images_take_the_place_of_all_names_of_a_class(
    clip: ZeroShotClassifier, folder: Folder, tmp_path: Path
) -> None:
    noun, paths = examples(tmp_path)
    asked = clip.with_queries([MeanQuery([ImageQuery(path) for path in paths], noun)])
    lines = [f"{name}, small {name}" for name in folder.classes.first]
    picture, truth = np.zeros((96, 96, 3), np.uint8), folder[0].target
    data = Given("\n".join(lines), [picture], [truth], 0)
    methods = {"CLIP": METHODS["CLIP"]}
    maps = _predictors.MapPredictor(asked, data, methods, View(size=96)).competing
    wanted = clip.with_texts(folder.classes.first[1:])
    features, place = maps.text_features(), wanted.index(noun)
    mean = clip.image_features(clip.preprocess(paths)).mean(0)
    assert (features[place] - F.normalize(mean, dim=0)).abs().max() < 1e-5
    others = [index for index in range(len(features)) if index != place]
    assert (features - wanted.text_features())[others].abs().max() < 1e-5
    view = View(size=96, synonyms=True)
    names = _predictors.SegmentationPredictor(asked, data, methods, view)._segmenter.vocabulary
    assert noun in names.clip.texts
    assert f"small {noun}" not in names.clip.texts
    assert f"small {wanted.texts[others[0]]}" in names.clip.texts
    shared = Given("\n".join([*lines[:-1], f"other, {noun}"]), [picture], [truth], 0)
    with pytest.raises(ValueError, match=f"'{noun}' names a query, and is a name of the class"):
        _predictors.MapPredictor(asked, shared, methods, view)
    asked = clip.with_queries([ImageQuery(paths[0], name="background")])
    with pytest.raises(ValueError, match="'background' of given cannot be given by an im"):
        _predictors.MapPredictor(asked, data, methods, View(size=96))


@pytest.mark.slow
def test_example_images_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = scene_folder(SCENES[:2], tmp_path / "data")
    noun, paths = examples(tmp_path)
    queries = [part for path in paths for part in ("--query-image", f"{noun}={path}")]
    options = ["--dataset", "folder", "--root", tmp_path / "data", "--methods", "CLIP"]
    options += ["--tasks", "localization", "--output", tmp_path / "out"]
    assert command(monkeypatch, *options, *queries) == 0
    clip = ZeroShotClassifier.demo(["dog"])
    asked = clip.with_queries([MeanQuery([ImageQuery(path) for path in paths], noun)])
    methods, paper = {"CLIP": METHODS["CLIP"]}, Protocol.load("paper")
    results = [
        evaluate(each, folder, methods, paper, tasks=["localization"]).results["CLIP"]
        for each in (asked, clip)
    ]
    measures = dict(read_results(tmp_path / "out")["CLIP"].measures)
    assert measures == pytest.approx(dict(results[0].measures), rel=1e-6)
    assert measures != pytest.approx(dict(results[1].measures), rel=1e-3)
    described = json.loads((tmp_path / "out/results.json").read_text())["model"]["features"]
    assert len(described["queries"][noun]["mean"]) == 2
    refused = str(command(monkeypatch, *options, *queries[:2]))
    assert f"holds another run: model.features.queries.{noun}" in refused
    for given, message in [
        ("cat.png", "--query-image 'cat.png' does not say which class the image shows"),
        (f"{noun}=gone.png", "no file at gone.png"),
        (f"gryphon={paths[0]}", "has no class 'gryphon'; its classes are background, "),
        (f"Background={paths[0]}", "; did you mean 'background'?"),
    ]:
        assert message in str(command(monkeypatch, *options, "--query-image", given))
    scenes = ["--limit", 4, "--methods", "CLIP", "--size", 96, "--output", tmp_path / "scenes"]
    assert command(monkeypatch, *scenes, *queries) == 0
    found = json.loads((tmp_path / "scenes/results.json").read_text())
    assert list(found["features"]["queries"]) == [noun]
