"""ADE20K: the offset of its labels, and that 0 counts for nothing."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_clip_surgery.datasets import IGNORE_INDEX, Ade20k, Classes, Labels
from tests._helpers.written_ade import write_ade

FIRST, SECOND = "ADE_val_00000001", "ADE_val_00000002"
ALL = np.arange(151).reshape(1, 151)
#: Of objectInfo150.txt: some numbers in the files, and the first name there.
OFFICIAL = {
    1: "wall",
    3: "sky",
    13: "person",
    21: "car",
    84: "truck",
    116: "bag",
    128: "bicycle",
    131: "screen",
    150: "flag",
}


def labels_of(data: Ade20k, index: int = 0) -> np.ndarray:
    target = data[index].target
    assert isinstance(target, Labels)
    return target.labels


def test_classes() -> None:
    classes = Classes.named("ade150")
    assert len(classes) == 150
    assert {number: classes.first[number - 1] for number in OFFICIAL} == OFFICIAL
    assert "CSAILVision/sceneparsing" in classes.source


def test_no_name_is_two_classes() -> None:
    """`tasks.segment` refuses such names, for their pixels would belong to both."""
    names = [name for names in Classes.named("ade150").synonyms for name in names]
    assert len(set(names)) == len(names)


def test_labels_are_one_less_and_0_is_ignored(tmp_path: Path) -> None:
    write_ade(tmp_path, FIRST, ALL)
    found = labels_of(Ade20k(tmp_path))
    assert found.tolist() == [[IGNORE_INDEX, *range(150)]]
    # As the challenge's tools have it: labels of 8 bits less one, of which 255 counts for nothing.
    path = tmp_path / "ADEChallengeData2016/annotations/validation" / f"{FIRST}.png"
    reduced = np.asarray(Image.open(path)) - np.uint8(1)
    np.testing.assert_array_equal(
        found, np.where(reduced == 255, IGNORE_INDEX, reduced.astype(int))
    )


def test_out_of_range(tmp_path: Path) -> None:
    write_ade(tmp_path, FIRST, np.array([[1, 151]]))
    with pytest.raises(ValueError, match=rf"{FIRST}.png holds 151, expected only 0..150"):
        Ade20k(tmp_path)[0]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_image_is_rgb(tmp_path: Path, mode: str) -> None:
    write_ade(tmp_path, FIRST, ALL, mode)
    with Image.open(tmp_path / "ADEChallengeData2016/images/validation" / f"{FIRST}.jpg") as stored:
        assert stored.mode == mode
        expected = stored.convert("RGB")
    sample = Ade20k(tmp_path)[0]
    assert sample.image.mode == "RGB"
    np.testing.assert_array_equal(sample.image, expected)


def test_rotation_is_not_followed(tmp_path: Path) -> None:
    write_ade(tmp_path, FIRST, np.ones((4, 6)), exif_rotation=6)
    assert Ade20k(tmp_path)[0].image.size == (6, 4)


def test_names_and_order(tmp_path: Path) -> None:
    write_ade(tmp_path, SECOND, np.array([[2]]))
    write_ade(tmp_path, FIRST, np.array([[1]]))
    write_ade(tmp_path, "ADE_train_00000001", np.array([[5]]), split="training")
    data = Ade20k(tmp_path)
    assert data.names == (FIRST, SECOND)
    assert [labels_of(data, i).item() for i in range(2)] == [0, 1]
    assert data.background is None
    assert Ade20k(tmp_path, "training").names == ("ADE_train_00000001",)


def test_its_own_folder_is_the_root_too(tmp_path: Path) -> None:
    write_ade(tmp_path, FIRST, np.array([[7]]))
    assert labels_of(Ade20k(tmp_path / "ADEChallengeData2016")).item() == 6


def test_other_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"split of ADE20K must be one of .*, got 'val'"):
        Ade20k(tmp_path, "val")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ADEChallengeData2016\.zip"):
        Ade20k(tmp_path)


@pytest.mark.parametrize("lost", ["images", "annotations"])
def test_half_unpacked(tmp_path: Path, lost: str) -> None:
    for name in (FIRST, SECOND):
        write_ade(tmp_path, name, np.array([[1]]))
    next((tmp_path / "ADEChallengeData2016" / lost).rglob(f"{SECOND}.*")).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 2 have no \w+, such as .*{SECOND}"):
        Ade20k(tmp_path)


def test_labels_of_another_size(tmp_path: Path) -> None:
    write_ade(tmp_path, FIRST, np.ones((4, 6)))
    path = tmp_path / "ADEChallengeData2016/annotations/validation" / f"{FIRST}.png"
    Image.new("L", (4, 6)).save(path)
    with pytest.raises(ValueError, match=r"is 4 x 6 pixels, its image .* is 6 x 4"):
        Ade20k(tmp_path)[0]


def test_labels_in_colour(tmp_path: Path) -> None:
    """As the full data set ADE20K has them: not the challenge's."""
    write_ade(tmp_path, FIRST, np.ones((4, 6)))
    path = tmp_path / "ADEChallengeData2016/annotations/validation" / f"{FIRST}.png"
    Image.new("RGB", (6, 4)).save(path)
    with pytest.raises(ValueError, match=rf"{FIRST}.png cannot be read as labels: .* mode RGB"):
        Ade20k(tmp_path)[0]


def test_damaged_image(tmp_path: Path) -> None:
    write_ade(tmp_path, FIRST, np.ones((64, 64)))
    path = tmp_path / "ADEChallengeData2016/images/validation" / f"{FIRST}.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{FIRST}.jpg cannot be read"):
        Ade20k(tmp_path)[0]


def test_goes_to_workers(tmp_path: Path) -> None:
    write_ade(tmp_path, FIRST, ALL)
    data = Ade20k(tmp_path)
    np.testing.assert_array_equal(labels_of(pickle.loads(pickle.dumps(data))), labels_of(data))
