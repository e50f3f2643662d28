"""The audit on synthetic evidence with known answers, on small models, and as a command."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip_surgery import ZeroShotClassifier, audit, decompose
from captum_clip_surgery.cli import main
from captum_clip_surgery.collection._audit import judge
from captum_clip_surgery.collection._cues import locate_cue
from captum_clip_surgery.collection._evidence import Evidence, Pair, collect
from captum_clip_surgery.collection._judging import critical_value, robust_z
from captum_clip_surgery.collection._report import describe, describe_cue, rows_of
from captum_clip_surgery.collection._result import Cue, Rise
from captum_clip_surgery.datasets import (
    Boxes,
    Classes,
    ImageDataset,
    Masks,
    PlainImages,
    Points,
    Sample,
    Tags,
)
from captum_clip_surgery.demo import SceneCollection
from captum_clip_surgery.demo._collection import any_background
from captum_clip_surgery.demo._scenes import render_scene

NAMES = ["dog", "pizza", "moon", "truck", "owl", "leaf"]
GRID = (4, 4)
#: Patches outside the objects of synthetic evidence.
FREE = [patch for patch in range(16) if patch not in (5, 6)]


class Blank(ImageDataset):
    """Blank images, one class each."""

    def __init__(self, targets):
        names = [f"image-{index}" for index in range(len(targets))]
        super().__init__("blank", Classes(tuple((name,) for name in NAMES)), names)
        self.targets = targets

    def read(self, index):
        if self.targets[index] is None:
            raise ValueError("damaged")
        return Sample(self.names[index], Image.new("RGB", (32, 32), "gray"), self.targets[index])


def synthetic(lean=0.0, per_class=8, seed=0):
    """Evidence of noise, in which head (1, 0) reads `lean` per patch of class 2's background."""
    generator = torch.Generator().manual_seed(seed)
    count, classes = per_class * len(NAMES), len(NAMES)
    parts = 0.01 * torch.randn(count, classes, 2, 3, 16, generator=generator).double()
    inside = torch.zeros(16, dtype=torch.bool)
    inside[[5, 6]] = True
    labels = torch.arange(count) // per_class
    parts[labels == 2, 2, 1, 0] += lean * ~inside
    parts[torch.arange(count), labels] += 0.05 * inside
    shown = (labels[:, None] == torch.arange(classes)).int()
    pairs = []
    for image, text in enumerate(labels.tolist()):
        own = parts[image, text]
        heads = (own * ~inside).sum(-1)
        pairs.append(Pair(image, text, inside, ~inside, own.sum((0, 1)), heads))
    return parts, Evidence(
        names=tuple(f"image-{index}" for index in range(count)),
        texts=tuple(NAMES),
        grid=GRID,
        size=(64, 64),
        covered=(64, 64),
        scores=parts.sum((2, 3, 4)),
        heads=parts.sum(-1),
        background=parts[..., ~inside].mean(-1),
        shown=shown,
        pairs=tuple(pairs),
    )


def judged(evidence, min_images=5, false_alarms=0.05):
    return judge(evidence, Blank([None] * 48), min_images, false_alarms, "masks")


def test_planted_evidence_is_named_with_its_head_place_and_share():
    parts, evidence = synthetic(0.05)
    (entry,) = judged(evidence).leaning
    assert entry.name == "moon"
    assert [(head.block, head.head) for head in entry.heads] == [(1, 0)]
    # The same lift, restated: outside patches of class 2 against those of the other images.
    own = parts[16:24, 2][..., FREE]
    others = torch.cat([parts[:16, 2], parts[24:, 2]])[
        ..., [i for i in range(16) if i not in (5, 6)]
    ]
    expected = own.sum((1, 2, 3)).quantile(0.5) - 14 * others.sum((1, 2)).mean()
    assert entry.lift == pytest.approx(float(expected), abs=1e-6)
    assert entry.area == 14 / 16
    patches = parts[16:24, 2].sum((1, 2)) - others.sum((1, 2)).mean()
    positive = patches.clamp(min=0)
    share = 1 - positive[:, [5, 6]].sum() / positive.sum()
    assert entry.share == pytest.approx(float(share), abs=1e-5)
    assert entry.strongest[0][1] == pytest.approx(max(value for _, value in entry.strongest))
    assert entry.maps.shape == (5, *GRID)


def test_one_image_does_not_name_its_class():
    _, evidence = synthetic()
    evidence.pairs[16].heads[1, 0] += 10  # the first of 8 images of class 2
    result = judged(evidence, false_alarms=0.01)
    (entry,) = (entry for entry in result.classes if entry.name == "moon")
    assert entry.strongest[0][1] > 9
    assert entry.lift < 1
    assert result.leaning == ()


class Framed(Blank):
    """Gray images, each with a white object in its middle; those of class 2 are white elsewhere."""

    def __init__(self, place):
        super().__init__([None] * 24)
        self.place = place

    def read(self, index):
        white, mask = np.zeros((2, 128, 128), bool)
        mask[48:80, 48:80] = True
        if index // 4 == 2:
            inner = np.zeros_like(white)
            inner[16:-16, 16:-16] = True
            white = {"border": ~inner, "background": inner, None: white}[self.place]
        pixels = np.where(white | mask, 255, 128).astype(np.uint8)
        image = Image.fromarray(pixels).convert("RGB")
        return Sample(self.names[index], image, Masks({index // 4: mask}))


@pytest.mark.parametrize("place", ["border", "background", None])
def test_the_cue_is_the_part_whose_pasting_raises_the_evidence(place, monkeypatch):
    clip = ZeroShotClassifier.demo(NAMES)
    data = Framed(place)
    evidence = collect(clip, data, range(24), 128, 8, progress=False)
    features = clip.text_features().detach()

    def bright(self, images):  # a model that sees nothing but the mean brightness as "moon"
        return images.mean((1, 2, 3))[:, None] * features[2]

    monkeypatch.setattr(ZeroShotClassifier, "image_features", bright)
    cue = locate_cue(clip, data, evidence, "moon", clip, 5)
    assert cue.place == place
    white, gray = clip.preprocess([Image.new("RGB", (8, 8), c) for c in ((255,) * 3, (128,) * 3)])
    unit = float((white.mean() - gray.mean()) * features[2] @ (features[2] - features.mean(0)))
    shares = {"border": 28 / 64, "background": 32 / 64, None: 0}
    for part in ("border", "background"):
        expected = unit * shares[part] if part == place else 0  # objects, 4 patches, are not pasted
        assert getattr(cue, part).mean == pytest.approx(expected, abs=1e-5)
    assert (cue.texts[0][0] if place else cue.texts) == ("moon" if place else ())


@pytest.mark.slow
def test_a_second_object_in_the_background_is_located_and_described():
    def background(rng, noun, size):
        canvas = np.array(any_background(rng, noun, size), np.float32)
        return render_scene(rng, canvas, [noun]).image / 255 if noun == "pizza" else canvas

    clip = ZeroShotClassifier.demo(NAMES)
    data = SceneCollection(NAMES, per_noun=8, size=128, background=background)
    evidence = collect(clip, data, range(48), 128, 8, progress=False)
    cue = locate_cue(clip, data, evidence, "pizza", clip, 16)
    assert cue.place == "background"
    assert cue.texts[0][0] == "pizza"
    assert locate_cue(clip, data, evidence, "dog", None, 16).place is None


def test_cues_in_words_and_as_json():
    _, evidence = synthetic(0.05)
    result = judged(evidence)
    for place, words in (("border", "the border of the image"), ("background", "the background")):
        cue = Cue(place, Rise(0.3, 0.01), Rise(-0.02, math.nan), (("grass", 0.25),))
        (entry,) = (replace(entry, cue=cue) for entry in result.leaning)
        assert f"The cue is **{words}**." in describe(entry)
        assert "changed by +0.300 (standard error 0.010) with the border and by -0.020" in describe(
            entry
        )
        assert "grass (+0.250)" in describe(entry)
        assert rows_of([entry])[0].endswith(f"moon  leans on {words}")
        (values,) = replace(result, classes=(entry,)).to_dict()["classes"]
        assert values["cue"]["place"] == place
        assert values["cue"]["background"] == {"mean": -0.02, "error": None}
    unknown = Cue(None, Rise(0.0, 0.1), Rise(0.0, 0.1))
    assert "The cue could not be located." in describe_cue("moon", unknown)
    missing = describe_cue("moon", Cue(None, Rise(math.nan, math.nan), Rise(0.3, math.nan)))
    assert "by an unknown amount (no image has a patch of it) with the border" in missing
    assert "by +0.300 (a single image, so no standard error) with the rest of it" in missing


def test_removing_heads_changes_only_the_named_class():
    _, evidence = synthetic(0.05)
    result = judged(evidence)
    (entry,) = result.leaning
    corrected = evidence.scores.clone()
    for head in entry.heads:
        absent = evidence.shown[:, 2] == 0
        values = evidence.heads[:, 2, head.block, head.head]
        corrected[:, 2] -= values - values[absent].mean()
    present = evidence.shown[:, 2] == 1
    others = corrected[:, [0, 1, 3, 4, 5]].amax(1)
    recall = (corrected[present, 2] > others[present]).double().mean()
    called = (corrected[~present, 2] > others[~present]).double().mean()
    assert entry.after.recall == pytest.approx(float(recall))
    assert entry.after.false_calls == pytest.approx(float(called))
    assert entry.before.recall == 1.0


@pytest.mark.slow
def test_without_leaning_the_stated_share_of_audits_names_a_class():
    named = [bool(judged(synthetic(seed=seed)[1], false_alarms=0.2).leaning) for seed in range(40)]
    assert 1 <= sum(named) <= 16  # 8 are expected; both limits have probabilities below 0.3 %


def test_critical_values():
    rng = np.random.default_rng(7)
    for count, rate in ((6, 0.05), (25, 0.01)):
        largest = robust_z(rng.standard_normal((20_000, count))).max(-1)
        assert (largest > critical_value(count, rate)).mean() == pytest.approx(rate, rel=0.3)
    assert robust_z(np.array([0.0, 0.0, 0.0, 1.0])).tolist() == [0, 0, 0, math.inf]
    with pytest.raises(ValueError, match="at least 4 classes are needed, got 3"):
        critical_value(3, 0.05)
    with pytest.raises(ValueError, match=r"false_alarms must be from 0\.001 to 0\.5, got 0\.7"):
        critical_value(6, 0.7)


def test_classes_that_cannot_be_audited_are_left_out_with_the_reason():
    _, evidence = synthetic()
    few = judged(evidence, min_images=9)
    assert (few.classes, few.critical) == ((), None)
    assert few.left_out["dog"] == "shown by 8 images, fewer than 9"
    evidence.shown[:, 1] = 1
    assert judged(evidence).left_out == {
        "pizza": "no image without it has patches outside all objects"
    }


def test_evidence_is_that_of_the_decomposition():
    clip = ZeroShotClassifier.demo(NAMES)
    data = SceneCollection(NAMES, per_noun=1, size=64)
    evidence = collect(clip, data, range(6), 64, 4, progress=False)
    parts = decompose(clip, clip.preprocess([data[i].image for i in range(6)], 64))
    cosines = parts.cosines
    expected = cosines - cosines.mean(1, keepdim=True)
    assert torch.allclose(evidence.scores, expected, atol=1e-5)
    for pair in evidence.pairs:
        mask = data[pair.image].target.masks[pair.text]
        blocks = mask.reshape(4, 16, 4, 16).any((1, 3)).flatten()
        assert np.array_equal(pair.inside.numpy(), blocks)
        maps = parts.map()[pair.image].flatten(1)
        own = (maps - maps.mean(0))[pair.text]
        assert torch.allclose(pair.patches, own, atol=1e-6)
        assert float(pair.heads.sum()) == pytest.approx(float(own[pair.outside].sum()), abs=1e-6)


def test_ignored_pixels_are_neither_inside_nor_outside():
    clip = ZeroShotClassifier.demo(NAMES)
    mask, void = np.zeros((2, 32, 32), bool)
    mask[:8, :8], void[24:] = True, True
    data = Blank([Masks({0: mask}, {0: void})])
    (pair,) = collect(clip, data, [0], 64, 1, progress=False).pairs
    assert pair.inside.nonzero().flatten().tolist() == [0]
    assert pair.outside.nonzero().flatten().tolist() == list(range(1, 12))


def test_tags_unknown_classes_and_unreadable_images():
    clip = ZeroShotClassifier.demo(NAMES)
    unknown = Tags(frozenset(), frozenset(range(6)))
    data = Blank([Tags(frozenset([1]), frozenset([2])), None, unknown])
    result = audit(clip, data, size=64, min_images=1)
    assert (result.images, result.source) == (2, "surgery")
    assert result.unreadable == {"image-1": "damaged"}
    evidence = collect(clip, data, [0, 2], 64, 2, progress=False)
    assert evidence.shown[0].tolist() == [0, 1, -1, 0, 0, 0]
    assert evidence.shown[1].tolist().count(1) == 1
    assert int(evidence.shown[1].argmax()) == int(evidence.scores[1].argmax())
    with pytest.raises(ValueError, match="none of 1 images can be read; image-0: damaged"):
        audit(clip, Blank([None]))
    with pytest.raises(TypeError, match="must be labels, masks or tags, got Points"):
        audit(clip, Blank([Points(())]), size=64)
    with pytest.raises(
        ValueError, match="an audit needs at least 2 classes to compare, got 1 from images"
    ):
        audit(clip, PlainImages(["x.png"], ["dog"]))
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 4"):
        audit(clip, data, min_images=0)


def test_report_and_scores_without_heads(tmp_path):
    clip = ZeroShotClassifier.demo(NAMES)
    data = SceneCollection(NAMES, per_noun=2, size=64)
    result = audit(clip, data, size=64, min_images=2, false_alarms=0.5)
    parts = decompose(clip, data[0].image, NAMES, size=64)
    scores = parts.cosines - parts.cosines.mean(1, keepdim=True)
    expected = scores.clone()
    for entry in result.leaning:
        text = NAMES.index(entry.name)
        for head in entry.heads:
            by_head = parts.by_head()[:, :, head.block, head.head]
            own = by_head[:, text] - by_head.mean(1)
            expected[:, text] -= own - result.means[text, head.block, head.head]
    assert torch.allclose(result.scores_without(parts), expected, atol=1e-5)
    with pytest.raises(ValueError, match="expected those of the audit"):
        result.scores_without(decompose(clip, data[0].image, NAMES[:2], size=64))
    report = result.write(tmp_path / "report").read_text()
    content = json.loads((tmp_path / "report" / "audit.json").read_text())
    assert [entry["name"] for entry in content["classes"]] == [e.name for e in result.classes]
    drawn = {entry.name for entry in result.leaning or result.classes[:3]}
    pictures = {f"class-{NAMES.index(name)}.png" for name in drawn}  # names may be of any letters
    assert {path.name for path in (tmp_path / "report").glob("class-*")} == pictures
    for picture in {line.split("(")[-1][:-1] for line in report.splitlines() if line[:2] == "!["}:
        Image.open(tmp_path / "report" / picture).verify()


def test_boxes_are_read_and_audited(tmp_path, monkeypatch, capsys):
    data = SceneCollection(NAMES[:4], per_noun=2, size=64)
    lines = []
    for sample in data:
        sample.image.save(tmp_path / f"{sample.name}.png")
        ((label, mask),) = sample.target.masks.items()
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        objects = {"bbox": [list(map(int, box))], "categories": [NAMES[label]]}
        lines.append(json.dumps({"file_name": f"{sample.name}.png", "objects": objects}))
    path = tmp_path / "metadata.jsonl"
    path.write_text("\n".join(lines))
    boxes = Boxes(path)
    assert boxes.classes.first == tuple(sorted(NAMES[:4]))
    for sample, own in zip(boxes, data, strict=True):
        ((label, box),), (mask,) = sample.target.masks.items(), own.target.masks.values()
        assert boxes.classes.first[label] == sample.name.split("-")[0]
        assert box[mask].all()
        assert box.sum() == mask.any(1).sum() * mask.any(0).sum()
    out = tmp_path / "out"
    command = f"clip-surgery audit --boxes {path} --size 64 --min-images 2 --output {out} --json"
    monkeypatch.setattr("sys.argv", command.split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    content = json.loads(capsys.readouterr().out)
    assert content["images"] == 8
    assert content["objects"] == "masks"
    assert content == json.loads((out / "audit.json").read_text())
    path.write_text(
        '{"file_name": "a.png", "objects": {"bbox": [[0, 0, 1, 1]], "categories": [3]}}'
    )
    with pytest.raises(ValueError, match=r"line 1 of .*, expected"):
        Boxes(path)
    path.write_text(lines[0].replace('"bbox": [[', '"bbox": [[9'))
    with pytest.raises(ValueError, match=r"holds no pixel of dog-0\.png, 64 x 64"):
        Boxes(path)[0]


def test_command_refuses_what_does_not_go_together(monkeypatch, tmp_path):
    for arguments, message in (
        ("photos --boxes x.jsonl", "not both"),
        ("--boxes x.jsonl --dataset voc21", "--dataset cannot be combined"),
        ("--dataset voc21", "needs --root"),
        ("--text dog", "need image files"),
        ("--boxes x.jsonl --text dog", "need image files"),
        ("--split val", "belong to a data set on disk"),
    ):
        monkeypatch.setattr("sys.argv", ["clip-surgery", "audit", *arguments.split()])
        with pytest.raises(SystemExit, match=message):
            main()
