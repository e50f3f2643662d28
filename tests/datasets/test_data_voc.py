"""PASCAL VOC: tiny ones in the real layout, held to torchvision and the kit's lists."""

from __future__ import annotations

import pickle
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import VOCDetection, VOCSegmentation

from captum_clip_surgery.datasets import (
    IGNORE_INDEX,
    Classes,
    Labels,
    PascalVoc,
    PascalVocTags,
    Sample,
    Tags,
)
from tests._helpers.written_voc import (
    VOC_LISTS,
    VOC_NAMES,
    VOC_OBJECTS,
    write_jpeg,
    write_palette,
    write_voc,
    write_voc_tags,
)

#: Every number that VOC's files hold, and one image of other sides.
LABELS = {
    "2007_000033": np.array([[*range(21), 255]] * 3),
    "2011_003256": np.array([[0, 0, 255, 15], [255, 20, 20, 1]]),
}


def labels_of(sample: Sample) -> np.ndarray:
    assert isinstance(sample.target, Labels)
    assert sample.target.labels.dtype == np.int32
    return sample.target.labels


def tags_of(sample: Sample) -> Tags:
    assert isinstance(sample.target, Tags)
    return sample.target


def as_is(samples: list[Sample]) -> Sample:
    return samples[0]


def test_names_of_classes_are_the_kits() -> None:
    plain = [name.replace(" ", "") for name in Classes.named("voc20").first]
    assert plain == VOC_NAMES
    assert Classes.named("voc21").synonyms == (("background",), *Classes.named("voc20").synonyms)
    assert "devkit" in Classes.named("voc20").source


def test_segmentation_is_torchvisions(tmp_path: Path) -> None:
    write_voc(tmp_path, LABELS)
    ours, theirs = PascalVoc(tmp_path), VOCSegmentation(tmp_path, image_set="val")
    assert len(ours) == len(theirs) == 2
    assert (ours.names, ours.background) == (tuple(LABELS), 0)
    assert ours.classes.first[15] == "person"
    for sample, (image, target) in zip(ours, theirs, strict=True):
        expected = np.asarray(target).astype(int)
        expected[expected == 255] = IGNORE_INDEX
        np.testing.assert_array_equal(labels_of(sample), expected)
        np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(image))


def test_without_background_classes_shift_by_one_and_background_is_ignored(tmp_path: Path) -> None:
    write_voc(tmp_path, LABELS)
    ours = PascalVoc(tmp_path, background=False)
    assert ours.background is None
    assert ours.classes.first[14] == "person"
    assert len(ours.classes) == 20
    assert labels_of(ours[0])[0].tolist() == [IGNORE_INDEX, *range(20), IGNORE_INDEX]
    assert labels_of(ours[1]).tolist() == [
        [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 14],
        [IGNORE_INDEX, 19, 19, 0],
    ]
    # Same as mmsegmentation's reduce_zero_label, in its own words.
    for sample, (_, target) in zip(ours, VOCSegmentation(tmp_path, image_set="val"), strict=True):
        reduced = np.asarray(target).copy()
        reduced[reduced == 0] = 255
        reduced = reduced - 1
        reduced[reduced == 254] = 255
        found = labels_of(sample)
        np.testing.assert_array_equal(np.where(found == IGNORE_INDEX, 255, found), reduced)


def test_splits_are_of_their_own_lists(tmp_path: Path) -> None:
    write_voc(tmp_path, LABELS)
    write_voc(tmp_path, {"2008_000001": np.zeros((2, 2))}, "train")
    assert PascalVoc(tmp_path, "train").names == ("2008_000001",)
    assert PascalVoc(tmp_path, "val").names == tuple(LABELS)
    with pytest.raises(ValueError, match=r"split of PASCAL VOC 2012 must be one of .*, got 'test'"):
        PascalVoc(tmp_path, "test")


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_root_may_be_any_of_three_folders(tmp_path: Path, below: str) -> None:
    write_voc(tmp_path, LABELS)
    assert PascalVoc(str(tmp_path / below)).names == tuple(LABELS)


def test_another_years_folder_is_not_taken_for_it(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, LABELS)
    other = folder.rename(folder.with_name("VOC2010"))
    with pytest.raises(FileNotFoundError, match="VOCtrainval_11-May-2012"):
        PascalVoc(other)


def test_images_are_the_pixels_stored(tmp_path: Path) -> None:
    folder = write_voc(
        tmp_path, {"a": np.zeros((4, 6)), "b": np.ones((4, 6)), "c": np.ones((4, 6))}
    )
    write_jpeg(folder / "JPEGImages" / "a.jpg", 6, 4, rotation=6)
    write_jpeg(folder / "JPEGImages" / "b.jpg", 6, 4, "L")
    write_jpeg(folder / "JPEGImages" / "c.jpg", 6, 4, "CMYK")
    for sample, (image, _) in zip(
        PascalVoc(tmp_path), VOCSegmentation(tmp_path, image_set="val"), strict=True
    ):
        assert (sample.image.mode, sample.image.size) == ("RGB", (6, 4))
        np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(image))


def test_goes_to_workers(tmp_path: Path) -> None:
    write_voc(tmp_path, LABELS)
    dataset = PascalVoc(tmp_path)
    assert len(pickle.dumps(dataset)) < 5_000
    loaded = list(DataLoader(dataset, num_workers=1, collate_fn=as_is))
    assert [sample.name for sample in loaded] == list(LABELS)
    np.testing.assert_array_equal(labels_of(loaded[1]), labels_of(dataset[1]))


@pytest.mark.parametrize(
    "missing", ["JPEGImages", "SegmentationClass", "ImageSets/Segmentation/val.txt"]
)
def test_half_unpacked(tmp_path: Path, missing: str) -> None:
    folder = write_voc(tmp_path, LABELS)
    (folder / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"missing: {missing}.*VOCtrainval_11-May-2012"):
        PascalVoc(tmp_path)


@pytest.mark.parametrize(
    "file", ["JPEGImages/2011_003256.jpg", "SegmentationClass/2011_003256.png"]
)
def test_a_listed_file_is_missing(tmp_path: Path, file: str) -> None:
    (write_voc(tmp_path, LABELS) / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of 2 files .* such as .*{file}"):
        PascalVoc(tmp_path)


def test_an_empty_list(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, LABELS)
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no images"):
        PascalVoc(tmp_path)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, LABELS) / "SegmentationClass"
    dataset = PascalVoc(tmp_path)
    write_palette(folder / "2011_003256.png", np.full((2, 4), 21))
    with pytest.raises(ValueError, match=r"2011_003256\.png holds 21, expected only 0\.\.20, 255"):
        dataset[1]
    write_palette(folder / "2011_003256.png", np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"2011_003256\.png is 2 x 4 pixels.*is 4 x 2"):
        dataset[1]
    whole = (folder / "2007_000033.png").read_bytes()
    (folder / "2011_003256.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"2011_003256\.png cannot be read"):
        dataset[1]
    # The picture of the labels, with its palette applied, is what a careless tool leaves.
    Image.new("RGB", (4, 2)).save(folder / "2011_003256.png")
    with pytest.raises(ValueError, match="mode RGB, expected a palette"):
        dataset[1]


def test_difficult_only_is_unknown(tmp_path: Path) -> None:
    write_voc_tags(tmp_path)
    dataset = PascalVocTags(tmp_path)
    names = Classes.named("voc20").first
    told = {
        sample.name: (
            sorted(names[i] for i in tags_of(sample).present),
            sorted(names[i] for i in tags_of(sample).unknown),
        )
        for sample in dataset
    }
    assert told == {
        "000001": (["dog", "person"], []),
        "000002": ([], ["train"]),
        "000003": (["chair"], ["sofa"]),
        "000004": (["car", "tv monitor"], []),
        "000006": ([], []),
    }
    assert dataset.background is None
    for sample, (label, name) in product(dataset, enumerate(VOC_NAMES)):
        tags = tags_of(sample)
        state = 1 if label in tags.present else 0 if label in tags.unknown else -1
        assert state == VOC_LISTS.get(name, {}).get(sample.name, -1)


def test_tags_are_of_torchvisions_annotations(tmp_path: Path) -> None:
    # torchvision has no rule for a file without <difficult>; 000004 is told apart above.
    objects = {name: found for name, found in VOC_OBJECTS.items() if name != "000004"}
    write_voc_tags(tmp_path, objects)
    theirs = VOCDetection(tmp_path, year="2007", image_set="test")
    for sample, (image, target) in zip(PascalVocTags(tmp_path), theirs, strict=True):
        found = target["annotation"].get("object", [])
        for label, name in enumerate(VOC_NAMES):
            difficult = [int(thing["difficult"]) for thing in found if thing["name"] == name]
            assert (label in tags_of(sample).present) == (0 in difficult)
            assert (label in tags_of(sample).unknown) == (bool(difficult) and 0 not in difficult)
        np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(image))


def test_other_years_and_splits(tmp_path: Path) -> None:
    write_voc_tags(tmp_path, {"2008_000002": [("cow", 0)]}, "2012", "trainval")
    dataset = PascalVocTags(tmp_path, "trainval", year="2012")
    assert tags_of(dataset[0]).present == {9}
    assert tags_of(pickle.loads(pickle.dumps(dataset))[0]) == tags_of(dataset[0])
    with pytest.raises(ValueError, match=r"split of PASCAL VOC 2012 .* got 'test'"):
        PascalVocTags(tmp_path, "test", year="2012")
    with pytest.raises(ValueError, match=r"year of PASCAL VOC .* got '2006'"):
        PascalVocTags(tmp_path, year="2006")
    with pytest.raises(FileNotFoundError, match="VOCtest_"):
        PascalVocTags(tmp_path)


def test_tags_of_a_half_unpacked_one(tmp_path: Path) -> None:
    folder = write_voc_tags(tmp_path)
    (folder / "Annotations" / "000004.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"such as .*000004\.xml.*VOCtest_"):
        PascalVocTags(tmp_path)
    (folder / "Annotations").rename(folder / "annotations")
    with pytest.raises(FileNotFoundError, match="missing: Annotations"):
        PascalVocTags(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("</annotation>", "", "cannot be read as an annotation"),
        ("<name>dog<", "<name>unicorn<", "an object 'unicorn', expected one of aeroplane"),
        ("<name>dog<", "<label>dog</label><name><", "an object ''"),
        ("<difficult>0<", "<difficult>maybe<", "difficult 'maybe'"),
    ],
)
def test_wrong_annotations_are_named(tmp_path: Path, old: str, new: str, match: str) -> None:
    path = write_voc_tags(tmp_path) / "Annotations" / "000001.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"000001\.xml .*{match}"):
        PascalVocTags(tmp_path)[0]
