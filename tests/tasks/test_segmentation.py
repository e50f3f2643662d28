"""Open-vocabulary segmentation: every pixel, any size, many classes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier, functional
from captum_clip_surgery._utils import profiling
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.tasks import (
    Segmentation,
    _segmentation,
    _upsample,
    class_scores,
    segment,
)
from captum_clip_surgery.tasks._refinement import guided_filter
from captum_clip_surgery.tasks._segmentation import dense_size
from captum_clip_surgery.tasks._segmenter import label_colors
from captum_clip_surgery.tasks._sliding import starts
from tests._helpers.cases import each
from tests._helpers.tiny import MODELS, peak_where_told, random_images, tiny_model

TEXTS = ["a dog", "a cat", "a tree", "a car"]
SCENE = Scenes("test", 1, size=120, objects=[2])[0]


@pytest.fixture(scope="module")
def demo() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(["dog", "pizza", "kiwi", "lion"])


@pytest.fixture(scope="module")
def images(demo: ZeroShotClassifier) -> Tensor:
    return demo.preprocess([s.image for s in Scenes("test", 3, size=96, objects=[2])], (96, 128))


def plain(clip: ZeroShotClassifier, images: Tensor) -> Tensor:
    return LayerCLIPSurgery(clip, feature_surgery=None).attribute_all(images).detach()


def enlarged(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)


# --- the best class ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_the_best_class_of_architecture_surgery(kind: str) -> None:
    clip = ZeroShotClassifier(tiny_model(kind), TEXTS, templates=())
    images = random_images(clip, 2)
    scores = plain(clip, images)
    size = (images.shape[-2], images.shape[-1])
    assert torch.equal(segment(clip, images), enlarged(scores, size).argmax(1))
    torch.testing.assert_close(class_scores(clip, images), scores)


def test_images_come_back_at_their_own_size(demo: ZeroShotClassifier, tmp_path: Path) -> None:
    wide = np.hstack([SCENE.image] * 2)
    path = tmp_path / "tall.png"
    Image.fromarray(np.vstack([SCENE.image] * 2)).save(path)
    first, second, third = segment(demo, [wide, path, Image.new("RGB", (1, 1))], scores=True)
    assert first.labels.shape == (120, 240)
    assert second.labels.shape == (240, 120)
    assert third.labels.shape == (1, 1)
    scores = plain(demo, demo.preprocess(wide, dense_size(demo)))
    torch.testing.assert_close(first.scores, enlarged(scores, (120, 240))[0])
    assert torch.equal(first.labels, first.scores.argmax(0))
    assert first.classes == demo.texts
    assert first.labels.unique().numel() > 1


def test_a_blank_image_is_segmented_all_the_same(demo: ZeroShotClassifier) -> None:
    (found,) = segment(demo, Image.new("RGB", (40, 30), "white"))
    assert sum(found.shares().values()) == pytest.approx(1)


def test_chunks_of_classes_change_nothing(
    demo: ZeroShotClassifier, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [segment(demo, images, background=value) for value in (None, 0.5)]
    monkeypatch.setattr(_upsample, "CHUNK_BYTES", 1)
    parts = [segment(demo, images, background=value) for value in (None, 0.5)]
    for first, second in zip(whole, parts, strict=True):
        assert torch.equal(first, second)


def test_images_beyond_one_pass(
    demo: ZeroShotClassifier, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = segment(demo, images), class_scores(demo, images)
    monkeypatch.setattr(_segmentation, "TOKENS_PER_PASS", 50)
    assert (segment(demo, images) != expected[0]).float().mean() < 1e-3
    torch.testing.assert_close(class_scores(demo, images), expected[1], atol=1e-5, rtol=0)


def test_float16_scores_differ_little(demo: ZeroShotClassifier) -> None:
    (half,) = segment(demo, SCENE.image, scores=True, dtype=torch.float16)
    (full,) = segment(demo, SCENE.image, scores=True)
    assert half.scores.dtype == torch.float16
    torch.testing.assert_close(half.scores.float(), full.scores, atol=1e-3, rtol=0)
    assert (half.labels == full.labels).float().mean() > 0.98


def test_sizes() -> None:
    demo = ZeroShotClassifier.demo(["dog", "pizza"])
    assert dense_size(demo) == (224, 224)
    tiny = ZeroShotClassifier(tiny_model("vit"), TEXTS, templates=())
    patch = tiny.tower.patch_size[0]
    assert dense_size(tiny) == (round(512 / patch) * patch,) * 2
    with pytest.raises(ValueError, match="do not divide into patches"):
        segment(demo, SCENE.image, size=100)


def test_a_patch_of_fourteen_is_shown_518() -> None:
    class Fourteen:
        vocabulary = None
        native_size = (224, 224)

        class tower:
            patch_size = (14, 14)

    assert dense_size(Fourteen) == (518, 518)
    Fourteen.native_size = (560, 560)
    assert dense_size(Fourteen) == (560, 560)


def test_keeping_the_aspect(demo: ZeroShotClassifier) -> None:
    """Scores are upsampled to the image that the model sees, and then to the picture."""
    wide = np.hstack([SCENE.image] * 2)
    (found,) = segment(demo, wide, size=96, keep_aspect=True, scores=True)
    scores = plain(demo, demo.preprocess(wide, (96, 192)))
    expected = enlarged(enlarged(scores, (96, 192)), (120, 240))[0]
    torch.testing.assert_close(found.scores, expected)
    (limited,) = segment(demo, wide, size=96, keep_aspect=True, longest=150, scores=True)
    # 75 x 150 pixels, of which the model sees 4 x 9 whole patches.
    seen = demo.preprocessing(wide, (75, 150))[..., :64, :144]
    expected = enlarged(enlarged(plain(demo, seen), (75, 150)), (120, 240))[0]
    torch.testing.assert_close(limited.scores, expected)


def test_a_strip_kept_in_shape_is_refused_where_it_would_fill_memory(
    demo: ZeroShotClassifier,
) -> None:
    with pytest.raises(ValueError, match=r"2 x 40000 pixels, kept in shape, has 14 x 280000 pat"):
        segment(demo, Image.new("RGB", (40_000, 2)), keep_aspect=True)


def test_pixels_that_no_patch_covers_take_the_nearest(demo: ZeroShotClassifier) -> None:
    """As SigLIP SO400M-384 has them: 27 patches of 14 cover 378 of its 384 pixels."""
    grid = torch.rand(3, 27, 27)
    ((start, found),) = _upsample.upsample(
        _upsample.ImageScores((grid,), (), (384, 384), (378, 378)), (384, 384)
    )
    assert start == 0
    torch.testing.assert_close(found[:, :378, :378], enlarged(grid[None], (378, 378))[0])
    assert torch.equal(found[:, 378:, :378], found[:, 377:378, :378].expand(-1, 6, -1))
    assert torch.equal(found[:, :, 378:], found[:, :, 377:378].expand(-1, -1, 6))


def test_half_precision_batches_are_scored_in_full(
    demo: ZeroShotClassifier, images: Tensor
) -> None:
    rounded = images.to(torch.bfloat16)
    assert torch.equal(segment(demo, rounded), segment(demo, rounded.float()))


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.slow
@each("stride", [None, 32, 64, 16])
def test_windows_by_a_naive_loop(
    demo: ZeroShotClassifier, images: Tensor, stride: int | None
) -> None:
    total, seen = torch.zeros(3, 4, 96, 128), torch.zeros(96, 128)
    step = stride or 32
    rows = sorted({*range(0, 96 - 64, step), 96 - 64})
    columns = sorted({*range(0, 128 - 64, step), 128 - 64})
    for y in rows:
        for x in columns:
            part = plain(demo, images[:, :, y : y + 64, x : x + 64])
            total[:, :, y : y + 64, x : x + 64] += enlarged(part, (64, 64))
            seen[y : y + 64, x : x + 64] += 1
    assert seen.min() > 0
    found = class_scores(demo, images, window=64, stride=stride)
    torch.testing.assert_close(found, total / seen, atol=1e-5, rtol=0)
    labels = segment(demo, images, window=64, stride=stride)
    assert torch.equal(labels, found.argmax(1))


def test_a_window_larger_than_the_image_is_the_image(
    demo: ZeroShotClassifier, images: Tensor
) -> None:
    whole = enlarged(class_scores(demo, images), (96, 128))
    torch.testing.assert_close(class_scores(demo, images, window=512), whole)
    assert torch.equal(segment(demo, images, window=512), segment(demo, images))


@each("length", range(1, 14))
def test_windows_cover_all_and_stay_inside(length: int) -> None:
    for side in range(1, length + 1):
        for stride in range(1, side + 1):
            found = starts(length, side, stride)
            covered = {cell for start in found for cell in range(start, start + side)}
            assert covered == set(range(length))
            assert len(set(found)) == len(found)


# --- classes and background ----------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["max", "mean"])
def test_several_names_of_a_class(demo: ZeroShotClassifier, images: Tensor, merge: str) -> None:
    classes = {"animal": ["dog", "lion"], "food": ["kiwi", "pizza"]}
    scores = plain(demo, images)
    animal, food = scores[:, [0, 3]], scores[:, [2, 1]]
    reduce = torch.amax if merge == "max" else torch.mean
    expected = torch.stack([reduce(animal, 1), reduce(food, 1)], 1)
    found = class_scores(demo, images, classes, merge)
    torch.testing.assert_close(found, expected)
    (one,) = segment(demo, SCENE.image, classes=classes, merge=merge)
    assert one.classes == ("animal", "food")


def test_texts_of_the_background(demo: ZeroShotClassifier, images: Tensor) -> None:
    found = segment(demo, images, background=["a background", "a boat"])
    scores = plain(demo.with_texts([*demo.texts, "a background", "a boat"]), images)
    scores = enlarged(scores, (96, 128))
    ordered = torch.cat([scores[:, 4:].amax(1, keepdim=True), scores[:, :4]], 1)
    assert torch.equal(found, ordered.argmax(1))
    assert (found == 0).any()
    assert (found > 0).any()


def test_the_background_below_a_probability(demo: ZeroShotClassifier, images: Tensor) -> None:
    scores = enlarged(plain(demo, images), (96, 128))
    scale = demo.model.logit_scale.exp().detach()
    best, at = (scale * scores).softmax(1).max(1)
    for threshold in (0, 0.4, 0.7, 1):
        found = segment(demo, images, background=threshold)
        clear = (best - threshold).abs() > 1e-4
        assert torch.equal(found[clear], torch.where(best < threshold, 0, at + 1)[clear])
    assert (segment(demo, images, background=0) > 0).all()
    (named,) = segment(demo, SCENE.image, background=0.7)
    assert named.classes == ("background", *demo.texts)


def test_feature_surgery_weighs_texts(demo: ZeroShotClassifier, images: Tensor) -> None:
    scores = LayerCLIPSurgery(demo, feature_surgery="release").attribute_all(images).detach()
    found = segment(demo, images, feature_surgery="release")
    assert torch.equal(found, enlarged(scores, (96, 128)).argmax(1))
    # Of the other forms every pixel's best class is that of the plain scores.
    for form in ("paper", "empty"):
        assert (segment(demo, images, feature_surgery=form) == segment(demo, images)).all()


def test_ready_features_need_no_texts(images: Tensor, demo: ZeroShotClassifier) -> None:
    clip = ZeroShotClassifier.from_features(demo.model, demo.text_features())
    assert torch.equal(segment(clip, images), segment(demo, images))
    with pytest.raises(ValueError, match="no texts to replace"):
        segment(clip, images, background=["a background"])


@each(
    ("texts", "options", "error", "message"),
    [
        (["dog"], {}, ValueError, "one class, 'dog', and no background"),
        (["dog"], {"background": 0.5}, ValueError, "whose probability is 1 everywhere"),
        (["dog", "dog"], {}, ValueError, r"text 'dog' occurs at \[0, 1\]"),
        (["dog", "kiwi"], {"background": "sky"}, TypeError, r"pass \['sky'\]"),
        (["dog", "kiwi"], {"background": []}, ValueError, "background has no texts"),
        (["dog", "kiwi"], {"background": ["dog"]}, ValueError, "'dog' is also the text of a class"),
        (
            ["dog", "kiwi"],
            {"background": 1.5},
            ValueError,
            "must be texts or a threshold from 0 to 1, got 1.5",
        ),
        (
            ["dog", "kiwi"],
            {"background": True},
            ValueError,
            "must be texts or a threshold from 0 to 1, got True",
        ),
        (["dog", "kiwi"], {"classes": {"a": ["cat"]}}, ValueError, "'cat' is not among"),
        (["dog", "kiwi"], {"classes": {"a": []}}, ValueError, "class 'a' has no names"),
        (["dog", "kiwi"], {"classes": {"a": "dog"}}, TypeError, r"pass a list: \['dog'\]"),
        (
            ["dog", "kiwi"],
            {"classes": ["dog"]},
            TypeError,
            "classes must map names to lists of texts",
        ),
        (
            ["dog", "kiwi"],
            {"classes": {"a": ["dog"], "b": ["kiwi", "dog"]}},
            ValueError,
            "text 0 names both 'a' and 'b'",
        ),
        (["dog", "kiwi"], {"classes": {"a": ["dog", "dog"]}}, ValueError, "'a' has a name twice"),
        (["dog", "background"], {"background": 0.5}, ValueError, "is named 'background'"),
        (
            ["dog", "kiwi"],
            {"merge": "median"},
            ValueError,
            "merge must be one of max, mean, got 'median'",
        ),
        (["dog", "kiwi"], {"stride": 32}, ValueError, "stride 32 needs a window"),
        (
            ["dog", "kiwi"],
            {"window": 8},
            ValueError,
            "window 8 must be at least the patch, 16 x 16",
        ),
        (["dog", "kiwi"], {"window": 32, "stride": 48}, ValueError, "at most the window of 32"),
        (["dog", "kiwi"], {"window": 32, "stride": 0}, ValueError, "stride 0 must be at least 1"),
        (["dog", "kiwi"], {"longest": 64}, ValueError, "longest 64 needs keep_aspect"),
        (["dog", "kiwi"], {"scale": 0}, ValueError, "scale must be a positive number, got 0"),
        (["dog", "kiwi"], {"threshold": 0.5}, ValueError, "needs texts of the background"),
        (
            ["dog", "kiwi"],
            {"background": 0.5, "threshold": 0.5},
            ValueError,
            "are both thresholds; pass one",
        ),
        (
            ["dog", "kiwi"],
            {"method": LayerCLIPSurgery, "num_blocks": 1},
            ValueError,
            "are options of CLIP Surgery",
        ),
        (["dog", "kiwi"], {"size": 64}, ValueError, "size 64 is for images to be resized"),
        (["dog", "kiwi"], {"scores": True}, ValueError, "class_scores gives its scores"),
    ],
)
def test_refused(
    demo: ZeroShotClassifier,
    texts: list[str],
    options: dict,
    error: type[Exception],
    message: str,
    images: Tensor,
) -> None:
    clip = demo.with_texts(texts)
    with pytest.raises(error, match=message):
        segment(clip, images, **options)


def test_refused_images(demo: ZeroShotClassifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        segment(demo, [])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        segment(demo, [SCENE.image, broken])


# --- edges ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_refined_scores_follow_the_image() -> None:
    """On a scene, borders of classes come to lie on the object's."""
    pytest.importorskip("kornia")
    scenes = Scenes("validation", 6, size=224, objects=[1])
    overlap = dict.fromkeys([None, "guided", "pamr"], 0.0)
    for scene in scenes:
        clip = ZeroShotClassifier.demo(scene.nouns)
        mask = torch.from_numpy(scene.masks[0])
        for refine in overlap:
            (found,) = segment(clip, scene.image, background=["a background"], refine=refine)
            inside = found.labels == 1
            overlap[refine] += float((inside & mask).sum() / (inside | mask).sum()) / len(scenes)
    assert overlap["guided"] > overlap[None] + 0.02, overlap
    assert overlap["pamr"] > overlap[None] + 0.02, overlap


def test_a_guided_filter_keeps_a_constant_and_leaves_tiny_images(
    demo: ZeroShotClassifier,
) -> None:
    pytest.importorskip("kornia")
    scores = torch.full((2, 64, 64), 0.25)
    ((_, found),) = guided_filter(torch.rand(3, 32, 32), [(0, scores)], (64, 64))
    torch.testing.assert_close(found, scores)
    (small,) = segment(demo, Image.new("RGB", (5, 5)), refine="guided")
    assert small.labels.shape == (5, 5)


def test_refining_leaves_the_scores_and_knows_a_threshold(demo: ZeroShotClassifier) -> None:
    pytest.importorskip("kornia")
    (plainly,) = segment(demo, SCENE.image, scores=True)
    (refined,) = segment(demo, SCENE.image, scores=True, refine="guided")
    assert torch.equal(plainly.scores, refined.scores)
    assert (plainly.labels != refined.labels).any()
    (with_background,) = segment(demo, SCENE.image, background=0.6, refine="guided")
    labels = with_background.labels
    assert (labels == 0).any()
    assert torch.equal(labels[labels > 0] - 1, refined.labels[labels > 0])


def test_without_kornia_the_extra_is_named(
    demo: ZeroShotClassifier, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kornia.filters", None)
    with pytest.raises(ImportError, match=r"pip install 'captum_clip_surgery\[refine\]'"):
        segment(demo, images, refine="guided")


# --- other methods -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["NACLIP", "LeGrad", "Saliency"])
def test_any_method(demo: ZeroShotClassifier, name: str) -> None:
    """On the patch grid or on pixels, with and without gradients."""
    image = demo.preprocess(SCENE.image, 96)
    scores = METHODS[name](demo).attribute_all(image).detach()
    found = segment(demo, image, method=METHODS[name])
    assert torch.equal(found, enlarged(scores, (96, 96)).argmax(1))
    assert class_scores(demo, image, method=METHODS[name]).shape == scores.shape


def test_texts_of_the_background_and_a_threshold(demo: ZeroShotClassifier, images: Tensor) -> None:
    clip = demo.with_texts([*demo.texts, "a background"])
    scores = enlarged(plain(clip, images), (96, 128))[:, [4, 0, 1, 2, 3]]
    best, labels = (20 * scores).softmax(1).max(1)
    found = segment(demo, images, background=["a background"], threshold=0.5, scale=20)
    clear = (best - 0.5).abs() > 1e-4
    assert torch.equal(found[clear], labels.where(best >= 0.5, 0)[clear])
    assert ((found == 0) & (labels > 0)).any()


@pytest.mark.parametrize("variant", [None, "empty", "paper", "release"])
def test_distractors_compete_in_feature_surgery_and_are_no_classes(
    demo: ZeroShotClassifier, variant: str | None
) -> None:
    """With any background: in "release" and "paper" they change scores, otherwise nothing."""
    clip = demo.with_texts(demo.texts, ["duck", "camera"])
    pixels, image = SCENE.image, demo.preprocess(SCENE.image, 224)
    for background in (None, 0.5, ["a background"]):
        added = background if isinstance(background, list) else []
        expected, without = (
            enlarged(
                LayerCLIPSurgery(
                    demo.with_texts([*demo.texts, *added], distractors), feature_surgery=variant
                ).attribute_all(image),
                pixels.shape[:2],
            )[0].detach()
            for distractors in (clip.distractors, ())
        )
        order = [*range(len(demo.texts), len(expected)), *range(len(demo.texts))]
        (found,) = segment(
            clip, pixels, size=224, background=background, scores=True, feature_surgery=variant
        )
        assert found.scores is not None
        assert torch.allclose(found.scores, expected[order], atol=1e-5)
        changed = not torch.allclose(expected, without, atol=1e-4)
        assert changed == (variant in ("paper", "release"))
        if background != 0.5:
            assert (found.labels != expected[order].argmax(0)).float().mean() < 1e-3


# --- kept ----------------------------------------------------------------------------------------


def test_saved_labels_are_read_by_others(tmp_path: Path) -> None:
    """As PASCAL VOC's own: a palette PNG whose pixels are the labels."""
    labels, names = torch.arange(256).view(16, 16), ("background", *map(str, range(255)))
    Segmentation(labels, names).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as read:
        assert read.mode == "P"
        assert np.array_equal(np.asarray(read), labels.numpy())
        colors = np.asarray(read.convert("RGB")).reshape(256, 3)
    assert colors.tolist() == [row["color"] for row in label_colors(names)]
    assert len(np.unique(colors, axis=0)) == 256
    assert colors[1 + 128].tolist() == [0, 32, 0]  # VOC's, beyond the palette
    Segmentation(labels + 44, tuple(map(str, range(300)))).save(tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as read:
        assert np.array_equal(np.asarray(read), labels.numpy() + 44)


def test_torchvision_reads_them_as_a_voc_target(tmp_path: Path, demo: ZeroShotClassifier) -> None:
    from torchvision.datasets import VOCSegmentation

    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("scene\n")
    Image.fromarray(SCENE.image).save(root / "JPEGImages" / "scene.jpg")
    (found,) = segment(demo, SCENE.image, background=["a background"])
    found.save(root / "SegmentationClass" / "scene.png")
    ((_, target),) = VOCSegmentation(tmp_path, image_set="val")
    assert np.array_equal(np.asarray(target), found.labels.numpy())


# --- much ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_texts(demo: ZeroShotClassifier, images: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(10_000, demo.text_features().shape[1], generator=generator)
    clip = ZeroShotClassifier.from_features(demo.model, features)
    found = segment(clip, images[:1])
    tokens = functional.normalized(
        clip.tower.dual_path(images[:1], LayerCLIPSurgery(clip).path_config).patches
    )
    scores = (clip.text_features() @ tokens.mT).unflatten(-1, (6, 8)).detach()
    assert torch.equal(found[0, 40], enlarged(scores, (96, 128)).argmax(1)[0, 40])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"background": 0.1}, {"scores": True}], ids=str)
def test_171_classes_of_a_large_image_stay_within_bounds(options: dict) -> None:
    """COCO-Stuff's, on a ViT-B/16: at most 1.5 GiB beside the model."""
    model = open_clip.create_model("ViT-B-16").eval()
    clip = ZeroShotClassifier.from_features(model, torch.randn(171, 512))
    picture = Image.new("RGB", (1024, 768))
    (found,), cost = profiling.profile_call(
        lambda: segment(clip, picture, **options), torch.device("cpu")
    )
    assert found.labels.shape == (768, 1024)
    assert (peak_where_told(cost) or 0) < 1.5 * 2**30


def test_it_finds_objects_on_scenes() -> None:
    """Of the pixels of objects most get their class, among those that are in the scene."""
    right = total = 0
    for scene in Scenes("test", 12, size=224, objects=[2, 3]):
        clip = ZeroShotClassifier.demo(scene.nouns)
        (found,) = segment(clip, scene.image)
        for index, mask in enumerate(torch.from_numpy(scene.masks)):
            right += int((found.labels[mask] == index).sum())
            total += int(mask.sum())
    assert right / total > 0.7, right / total
    assert len(nouns()) == 156
