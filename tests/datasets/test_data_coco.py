"""COCO and COCO-Stuff: tiny ones in the real layout, held to pycocotools and torchvision."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection

from captum_clip_surgery.datasets import (
    IGNORE_INDEX,
    Classes,
    Coco,
    CocoObject,
    CocoStuff,
    CocoTags,
    Labels,
    Masks,
    Sample,
    Tags,
)
from tests._helpers.cases import each
from tests._helpers.written_coco import (
    CATEGORIES,
    HEIGHT,
    ID,
    PICTURES,
    WIDTH,
    box,
    compressed,
    image_file,
    polygons,
    runs,
    write_coco,
    write_image,
    write_maps,
)

NAMES = list(CATEGORIES.values())

#: IIC's coarse label of each pixel value 0..181 (`fine_to_coarse_dict.pickle`, MIT), the classes
#: that COCO removed among them.
IIC = (
    [9] + [11] * 8 + [8] * 6 + [7] * 10 + [6] * 8 + [10] * 10 + [5] * 8 + [2] * 10 + [3] * 10
    + [0] * 6 + [1] * 6 + [4] * 8
    + [17, 17, 22, 20, 20, 22, 15, 25, 16, 13, 12, 12, 17, 17, 23, 15, 15, 17, 15, 21, 15, 25]
    + [13, 13, 13, 13, 13, 22, 26, 14, 14, 15, 22, 21, 21, 24, 20, 22, 15, 17, 16, 15, 22, 24]
    + [21, 17, 25, 16, 21, 17, 22, 16, 21, 21, 25, 21, 26, 21, 24, 20, 17, 14, 21, 26, 15, 23]
    + [20, 21, 24, 15, 24, 22, 25, 15, 20, 17, 17, 22, 14, 18, 18, 18, 18, 18, 18, 18, 26, 26]
    + [19, 19, 24]
)  # fmt: skip
#: Values that stand for a class: of things those torchvision names, and all 91 of stuff.
USED = [key - 1 for key in CATEGORIES] + list(range(91, 182))


def masks_of(sample: Sample) -> Masks:
    assert isinstance(sample.target, Masks)
    return sample.target


def labels_of(sample: Sample) -> np.ndarray:
    assert isinstance(sample.target, Labels)
    assert sample.target.labels.dtype == np.int32
    return sample.target.labels


def named(data: Any, key: int, year: int = 2017) -> Sample:
    return data[data.names.index(Path(image_file(key, year)).stem)]


def theirs(coco: COCO, key: int, crowd: bool) -> dict[int, np.ndarray]:
    """Union of pycocotools' masks by label."""
    found: dict[int, np.ndarray] = {}
    for annotation in coco.loadAnns(coco.getAnnIds(key, iscrowd=crowd)):
        label = NAMES.index(coco.cats[annotation["category_id"]]["name"])
        mask = coco.annToMask(annotation).astype(bool)
        found[label] = found.get(label, np.zeros_like(mask)) | mask
    return {label: mask for label, mask in found.items() if mask.any()}


def same(ours: Any, expected: dict[int, np.ndarray]) -> None:
    assert sorted(ours) == sorted(expected)
    for label, mask in expected.items():
        assert ours[label].dtype == bool
        np.testing.assert_array_equal(ours[label], mask, err_msg=NAMES[label])


def test_the_classes_are_cocos_in_the_order_of_their_ids() -> None:
    assert list(Classes.named("coco80").first) == NAMES
    assert list(Classes.named("coco_object81").first) == ["background", *NAMES]
    assert list(Classes.named("coco_stuff171").first[:80]) == NAMES


@each("name", ["coco80", "coco_object81", "coco_stuff171", "coco_stuff27"])
def test_no_name_is_of_two_classes(name: str) -> None:
    """Such a name would make a text of two classes, which `segment` refuses."""
    classes = Classes.named(name)
    assert len(classes) == int("".join(filter(str.isdigit, name)))
    names = [each for row in classes.synonyms for each in row]
    assert len(set(names)) == len(names)
    assert classes.source


@pytest.mark.parametrize("unannotated", [True, False])
def test_masks_and_crowds_are_pycocotools(tmp_path: Path, unannotated: bool) -> None:
    coco = COCO(write_coco(tmp_path))
    data = Coco(tmp_path, unannotated=unannotated)
    keys = sorted(PICTURES) if unannotated else [139, 285, 776]
    assert data.names == tuple(f"{key:012}" for key in keys)
    assert data.name == "COCO val2017"
    for key, sample in zip(keys, data, strict=True):
        inside, crowd = theirs(coco, key, False), theirs(coco, key, True)
        none = np.zeros((HEIGHT, WIDTH), bool)
        outside = {label: mask & ~inside.get(label, none) for label, mask in crowd.items()}
        same(masks_of(sample).masks, inside)
        same(masks_of(sample).ignored, outside)


def test_the_rules_of_crowds(tmp_path: Path) -> None:
    write_coco(tmp_path)
    data = Coco(tmp_path)
    person, dog, book, brush = (NAMES.index(n) for n in ("person", "dog", "book", "toothbrush"))
    two = masks_of(named(data, 285))
    assert set(two.masks) == {person, dog}
    assert (two.masks[person] & two.masks[dog]).any()  # classes overlap
    assert two.ignored.keys() == {person}
    assert not (two.ignored[person] & two.masks[person]).any()  # instances win over their crowd
    assert two.ignored[person][0, 23]  # where nobody else is
    assert two.masks[person][3, 7]
    alone = masks_of(named(data, 139))
    assert set(alone.masks) == {brush}  # a crowd alone is no class that is present
    assert set(alone.ignored) == {book}
    np.testing.assert_array_equal(alone.ignored[book], box(HEIGHT, WIDTH, 9, 0, 16, 24))


def test_an_instance_without_a_pixel_is_no_mask(tmp_path: Path) -> None:
    coco = COCO(write_coco(tmp_path))
    fork = coco.loadAnns(coco.getAnnIds(776, ID["fork"]))[0]
    assert not coco.annToMask(fork).any()
    assert set(masks_of(named(Coco(tmp_path), 776)).masks) == {NAMES.index("cup")}
    write_coco(tmp_path / "alone", {1: PICTURES[776][:1], 2: PICTURES[776][1:]})
    assert Coco(tmp_path / "alone").names == ("000000000002",)
    # to tags it is an annotation like any other
    target = named(CocoTags(tmp_path, year=2017), 776).target
    assert target == Tags(frozenset(NAMES.index(name) for name in ("fork", "cup")))


@pytest.mark.parametrize("year", [2014, 2017])
def test_images_are_torchvisions(tmp_path: Path, year: int) -> None:
    path = write_coco(tmp_path, year=year)
    reader = CocoDetection(tmp_path / f"val{year}", str(path))
    data = CocoTags(tmp_path, year=year)
    assert len(data) == len(reader) == len(PICTURES)
    for sample, (image, target) in zip(data, [reader[i] for i in range(len(reader))], strict=True):
        np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(image))
        shown = {NAMES.index(CATEGORIES[a["category_id"]]) for a in target}
        assert sample.target == Tags(frozenset(shown))


def test_tags_count_crowds_and_keep_images_of_nothing(tmp_path: Path) -> None:
    write_coco(tmp_path, year=2014)
    data = CocoTags(tmp_path)
    assert data.name == "COCO val2014"
    assert named(data, 724, 2014).target == Tags(frozenset({NAMES.index("broccoli")}))
    assert named(data, 632, 2014).target == Tags(frozenset())
    fewer = CocoTags(tmp_path, unannotated=False)
    assert set(data.names) - set(fewer.names) == {"COCO_val2014_000000000632"}


def test_training_images_have_a_split_of_their_own(tmp_path: Path) -> None:
    write_coco(tmp_path, {9: PICTURES[285]}, split="train", year=2014)
    write_coco(tmp_path, {7: PICTURES[139]}, split="val", year=2014)
    assert CocoTags(tmp_path, "train").names == ("COCO_train2014_000000000009",)
    assert Coco(tmp_path, "train", 2014).names == ("COCO_train2014_000000000009",)


def test_images_may_lie_under_images(tmp_path: Path) -> None:
    write_coco(tmp_path)
    before = Coco(tmp_path)[0]
    (tmp_path / "images").mkdir()
    (tmp_path / "val2017").rename(tmp_path / "images" / "val2017")
    assert Coco(tmp_path)[0].image.tobytes() == before.image.tobytes()


def first(samples: list[Sample]) -> Sample:
    return samples[0]


def test_readers_go_to_workers(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_maps(tmp_path, {key: np.full((HEIGHT, WIDTH), 5) for key in PICTURES}, "stuffthingmaps")
    for data in (Coco(tmp_path), CocoTags(tmp_path, year=2017), CocoStuff(tmp_path)):
        again = pickle.loads(pickle.dumps(data))
        loader = DataLoader(again, batch_size=1, num_workers=1, collate_fn=first)
        assert tuple(sample.name for sample in loader) == data.names


def test_outlines_are_kept_compact(tmp_path: Path) -> None:
    """A polygon of 2,000 points, 64,000 bytes as Python's numbers, is kept as its runs."""
    turn = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    round_ = np.stack([12 + 7 * np.cos(turn), 8 + 7 * np.sin(turn)], 1).ravel().tolist()
    path = write_coco(tmp_path, {1: [polygons("pizza", round_)]})
    assert len(pickle.dumps(Coco(tmp_path))) < 0.2 * path.stat().st_size


def change(path: Path, **changes: Any) -> None:
    """Put other values into the first annotation."""
    content = json.loads(path.read_text())
    content["annotations"][0] |= changes
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"category_id": 12}, "annotation 1 has category 12, which is not listed"),
        ({"image_id": 5}, "annotation 1 belongs to image 5, which is not listed"),
        ({"segmentation": [[1, 1, 5, 1, 5, 5, 9]]}, "a polygon of 7 numbers"),
        ({"segmentation": None}, "annotation 1 has no readable outline"),
        (runs("dog", box(HEIGHT, WIDTH + 1, 0, 0, 3, 3)), r"its image \[16, 24\]"),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 7]}},
            "its runs have 12 pixels, expected 16 x 24",
        ),
        (
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "zzzz" * 40}},
            "annotation 1 has no readable outline",
        ),
    ],
)
def test_annotations_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = write_coco(tmp_path)
    change(path, **changes)
    with pytest.raises(ValueError, match=said) as refusal:
        Coco(tmp_path)
    assert str(path) in str(refusal.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    for wrong, said in (
        ("{", "cannot be read as JSON"),
        ("[]", "is not in COCO's format"),
        (json.dumps(content | {"images": [{"id": 1}]}), "is not listed"),
        (json.dumps(content | {"images": [{"id": 1}], "annotations": []}), "not in COCO's format"),
        (json.dumps(content | {"categories": content["categories"][1:]}), "79 categories.*tooth"),
    ):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=said):
            Coco(tmp_path)
    shifted = [dict(category) for category in content["categories"]]
    shifted[0]["id"], shifted[1]["id"] = shifted[1]["id"], shifted[0]["id"]
    path.write_text(json.dumps(content | {"categories": shifted}))
    with pytest.raises(ValueError, match="another order of ids"):
        CocoTags(tmp_path, year=2017)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing: annotations/instances_val2017.json"):
        Coco(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Coco(tmp_path / "nowhere")
    write_coco(tmp_path)
    (tmp_path / "val2017" / image_file(285)).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of \d+ files are missing.*000000000285"):
        Coco(tmp_path)
    for wrong in (lambda: Coco(tmp_path, "test"), lambda: CocoObject(tmp_path, "test")):
        with pytest.raises(ValueError, match=r"split .* got 'test'"):
            wrong()
    with pytest.raises(ValueError, match=r"year .* got 2015"):
        CocoTags(tmp_path, year=2015)


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for key, width in ((285, WIDTH + 1), (139, WIDTH)):
        write_image(tmp_path / "val2017" / image_file(key), width, HEIGHT)
    data = Coco(tmp_path)
    with pytest.raises(ValueError, match=r"000000000285.jpg is 25 x 16 pixels, .* 24 x 16"):
        named(data, 285)
    assert named(data, 139).image.size == (WIDTH, HEIGHT)


def test_without_pycocotools_tags_are_read_and_masks_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coco(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert len(CocoTags(tmp_path, year=2017)) == len(PICTURES)
    with pytest.raises(ImportError, match=r"pip install 'captum_clip_surgery\[datasets\]'"):
        Coco(tmp_path)


# COCO-Stuff and COCO-Object


def all_values() -> np.ndarray:
    """A map of every value that stands for a class, and of unlabelled pixels."""
    return np.array([*USED, 255, 255, 255, 255], np.int64).reshape(25, 7)


def test_stuff_has_171_labels_and_unlabelled_pixels(tmp_path: Path) -> None:
    write_maps(tmp_path, {139: all_values()}, "stuffthingmaps")
    data = CocoStuff(tmp_path)
    assert (data.name, len(data.classes), data.background) == ("COCO-Stuff171 val2017", 171, None)
    np.testing.assert_array_equal(labels_of(data[0]).ravel(), [*range(171), *[IGNORE_INDEX] * 4])
    assert data.classes.first[170] == "wood"  # value 181, of id 182
    assert data.classes.first[USED.index(105)] == "clouds"  # id 106
    assert data[0].image.size == (7, 25)


@pytest.mark.parametrize(
    ("folder", "images"), [("stuffthingmaps", ""), ("annotations", "images"), ("", "")]
)
def test_coarse_classes_are_iics(tmp_path: Path, folder: str, images: str) -> None:
    write_maps(tmp_path, {139: all_values()}, folder, images=images)
    data = CocoStuff(tmp_path, classes=27)
    expected = [*(IIC[value] for value in USED), *[IGNORE_INDEX] * 4]
    np.testing.assert_array_equal(labels_of(data[0]).ravel(), expected)
    assert len(data.classes) == 27
    suffixes = [name.split("-")[-1] for name in data.classes.first]
    assert suffixes == ["things"] * 12 + ["stuff"] * 15


def converted(values: np.ndarray) -> np.ndarray:
    """As mmsegmentation's converter: ids of the classes used, counted on."""
    return np.where(values == 255, 255, np.searchsorted(USED, values))


@pytest.mark.parametrize("classes", [171, 27])
def test_converted_maps_say_the_same(tmp_path: Path, classes: int) -> None:
    values = all_values()
    write_maps(tmp_path / "published", {139: values}, "annotations", images="images")
    write_maps(
        tmp_path / "converted", {139: converted(values)}, "annotations", "_labelTrainIds", "images"
    )
    ours, published = (
        CocoStuff(tmp_path / name, classes=classes) for name in ("converted", "published")
    )
    np.testing.assert_array_equal(labels_of(ours[0]), labels_of(published[0]))


def test_published_and_converted_maps_side_by_side_are_one_data_set(tmp_path: Path) -> None:
    values = all_values()
    write_maps(tmp_path, {139: values}, "annotations", images="images")
    things = np.where(values < 91, converted(values) + 1, 0)
    for ending, content in (("_labelTrainIds", converted(values)), ("_instanceTrainIds", things)):
        write_maps(tmp_path, {139: content}, "annotations", ending, "images")
    assert CocoStuff(tmp_path).names == CocoObject(tmp_path).names == ("000000000139",)
    assert labels_of(CocoStuff(tmp_path)[0]).max() == 170


@pytest.mark.parametrize("kind", ["", "_labelTrainIds", "_instanceTrainIds"])
def test_objects_are_things_and_all_else_is_background(tmp_path: Path, kind: str) -> None:
    values = all_values()
    # as NACLIP's converter: things count from 1, stuff and unlabelled pixels are 0
    expected = np.array([*range(1, 81), *[0] * 95]).reshape(values.shape)
    content = {"": values, "_labelTrainIds": converted(values), "_instanceTrainIds": expected}
    write_maps(tmp_path, {139: content[kind]}, "annotations", kind, "images")
    data = CocoObject(tmp_path)
    assert (data.name, len(data.classes), data.background) == ("COCO-Object val2017", 81, 0)
    np.testing.assert_array_equal(labels_of(data[0]), expected)


def test_painted_objects_have_the_first_listed_on_top(tmp_path: Path) -> None:
    """Held to pycocotools: of the annotations at a pixel, the first in the file."""
    coco = COCO(write_coco(tmp_path))
    data = CocoObject(tmp_path)
    assert data.name == "COCO-Object val2017 painted"
    assert data.names == tuple(f"{key:012}" for key in sorted(PICTURES))
    for key, sample in zip(sorted(PICTURES), data, strict=True):
        expected = np.zeros((HEIGHT, WIDTH), int)
        for annotation in coco.imgToAnns[key]:
            free = (expected == 0) & (coco.annToMask(annotation) == 1)
            expected[free] = NAMES.index(CATEGORIES[annotation["category_id"]]) + 1
        np.testing.assert_array_equal(labels_of(sample), expected)
    seen = {name: 1 + NAMES.index(name) for name in ("person", "dog", "book")}
    two = labels_of(named(data, 285))
    assert two[6, 6] == seen["person"]  # over the dog, listed later
    assert two[11, 6] == seen["dog"]
    assert two[0, 23] == seen["person"]  # their crowd
    assert labels_of(named(data, 139))[15, 0] == seen["book"]


def test_a_crowd_is_painted_under_what_was_listed_before(tmp_path: Path) -> None:
    everywhere = runs("sheep", np.ones((HEIGHT, WIDTH), bool))
    cow = compressed("cow", box(HEIGHT, WIDTH, 2, 2, 5, 5))
    write_coco(tmp_path, {1: [cow, everywhere]})
    labels = labels_of(CocoObject(tmp_path)[0])
    assert labels[3, 3] == 1 + NAMES.index("cow")
    assert (labels == 1 + NAMES.index("sheep")).sum() == HEIGHT * WIDTH - 9


def test_maps_come_before_painting(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_maps(tmp_path, {key: np.full((HEIGHT, WIDTH), 0) for key in PICTURES}, "stuffthingmaps")
    data = CocoObject(tmp_path)
    assert data.name == "COCO-Object val2017"
    assert (labels_of(data[0]) == 1).all()


@pytest.mark.parametrize(
    ("ending", "value"),
    [("", 11), ("", 182), ("", 90), ("_labelTrainIds", 171), ("_instanceTrainIds", 81)],
)
def test_values_of_no_class_are_refused(tmp_path: Path, ending: str, value: int) -> None:
    write_maps(tmp_path, {139: np.array([[0, value]])}, "annotations", ending, "images")
    readers: list[Any] = [CocoObject]
    if ending != "_instanceTrainIds":
        readers += [CocoStuff, lambda root: CocoStuff(root, classes=27)]
    for reader in readers:
        with pytest.raises(
            ValueError, match=rf"000000000139{ending}.png holds {value}, expected only 0\.\."
        ):
            reader(tmp_path)[0]


def test_maps_of_16_bits_are_checked_as_well(tmp_path: Path) -> None:
    write_maps(tmp_path, {139: np.array([[0, 1]])}, "stuffthingmaps")
    path = tmp_path / "stuffthingmaps" / "val2017" / "000000000139.png"
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(path)
    with pytest.raises(ValueError, match="holds 300, expected only"):
        CocoStuff(tmp_path)[0]


def test_a_map_of_another_size_is_refused(tmp_path: Path) -> None:
    write_maps(tmp_path, {139: np.zeros((4, 6))}, "stuffthingmaps")
    write_image(tmp_path / "val2017" / image_file(139), 4, 6)
    with pytest.raises(
        ValueError, match=r"000000000139.png is 6 x 4 pixels, its image .* is 4 x 6"
    ):
        CocoStuff(tmp_path)[0]


def test_images_and_maps_must_all_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing: val2017"):
        CocoStuff(tmp_path)
    write_image(tmp_path / "val2017" / image_file(1), 2, 2)
    with pytest.raises(FileNotFoundError, match=r"no maps of labels.*stuffthingmaps"):
        CocoStuff(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither maps of labels"):
        CocoObject(tmp_path)
    write_maps(tmp_path, {2: np.zeros((2, 2)), 3: np.zeros((2, 2))}, "stuffthingmaps")
    with pytest.raises(FileNotFoundError, match=r"1 of 3 files.*stuffthingmaps.*000000000001.png"):
        CocoStuff(tmp_path)
    (tmp_path / "val2017" / image_file(1)).unlink()
    assert CocoStuff(tmp_path).names == ("000000000002", "000000000003")
    (tmp_path / "val2017" / image_file(3)).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 files.*val2017.*000000000003.jpg"):
        CocoStuff(tmp_path)


def test_a_list_of_images_keeps_those_in_its_order(tmp_path: Path) -> None:
    write_maps(tmp_path, {key: np.full((2, 2), key) for key in (1, 2, 3)}, "stuffthingmaps")
    listed = tmp_path / "list.txt"
    listed.write_text("000000000003\n000000000001\n")
    data = CocoStuff(tmp_path, classes=27, listed=listed)
    assert data.names == ("000000000003", "000000000001")
    assert [labels_of(sample)[0, 0] for sample in data] == [IIC[3], IIC[1]]
    listed.write_text("000000000003\n000000000003\n")
    with pytest.raises(ValueError, match="lists 000000000003 2 times"):
        CocoStuff(tmp_path, listed=listed)
    listed.write_text("000000000004\n")
    with pytest.raises(FileNotFoundError, match=r"000000000004.jpg"):
        CocoStuff(tmp_path, listed=listed)
    with pytest.raises(ValueError, match="got 81"):
        CocoStuff(tmp_path, classes=81)
