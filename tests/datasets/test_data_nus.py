"""NUS-WIDE: labels by image, and photographs that are no more."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest

from captum_clip_surgery.datasets import Classes, NusWide, Tags
from tests._helpers.written_nus import write_nus

SHOWS = {
    "actor\\0001_2124494179.jpg": ["person"],
    "zebra\\0100_77.jpg": ["zebra", "animal", "grass"],
    "albatross\\0213_10341804.jpg": [],
}
POSIX = [name.replace("\\", "/") for name in SHOWS]


def tags(data: NusWide, index: int) -> Tags:
    target = data[index].target
    assert isinstance(target, Tags)
    return target


def present(data: NusWide, index: int) -> set[str]:
    return {data.classes.first[label] for label in tags(data, index).present}


def label_file(root: Path, concept: str, part: str = "Test") -> Path:
    return root / "Groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{part}.txt"


def test_concepts() -> None:
    concepts = Classes.named("nus_wide81").first
    assert len(concepts) == 81
    assert list(concepts) == sorted(concepts)
    assert (concepts[0], concepts[42], concepts[80]) == ("airport", "person", "zebra")


def test_labels_of_each_image(tmp_path: Path) -> None:
    write_nus(tmp_path, SHOWS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = NusWide(tmp_path)
    assert list(data.names) == POSIX
    assert [present(data, i) for i in range(3)] == [set(found) for found in SHOWS.values()]
    assert all(not tags(data, i).unknown for i in range(3))
    assert (data.listed, data.missing) == (3, ())
    assert data[1].image.size == (8 + len("zebra\\0100_77.jpg"), 8)


def test_against_pandas(tmp_path: Path) -> None:
    """As readers of others have it: a column a file, in the order of the list."""
    write_nus(tmp_path, SHOWS)
    concepts = pandas.read_csv(tmp_path / "ConceptsList/Concepts81.txt", header=None)[0]
    table = np.stack(
        [pandas.read_csv(label_file(tmp_path, c), header=None)[0] for c in concepts], axis=1
    )
    data = NusWide(tmp_path)
    for index in range(3):
        found = np.isin(np.arange(81), list(tags(data, index).present))
        np.testing.assert_array_equal(found, table[index] == 1)


def test_missing_photographs_are_counted_and_labels_stay_with_theirs(tmp_path: Path) -> None:
    write_nus(tmp_path, SHOWS, photographs=list(SHOWS)[1:2])
    with pytest.warns(
        UserWarning, match=r"2 of NUS-WIDE's 3 photographs .* figures cover the"
    ) as w:
        data = NusWide(tmp_path)
    assert w[0].filename == __file__
    assert data.names == (POSIX[1],)
    assert present(data, 0) == {"zebra", "animal", "grass"}
    assert (data.listed, data.missing) == (3, (POSIX[0], POSIX[2]))


def test_no_photographs(tmp_path: Path) -> None:
    write_nus(tmp_path, SHOWS, photographs=[])
    with pytest.raises(FileNotFoundError, match="none of NUS-WIDE's 3 photographs"):
        NusWide(tmp_path)


@pytest.mark.parametrize("images", ["Flickr", "images", "Images"])
@pytest.mark.parametrize("flat", [False, True])
def test_where_copies_have_their_photographs(tmp_path: Path, images: str, flat: bool) -> None:
    write_nus(tmp_path, SHOWS, images=images, flat=flat)
    data = NusWide(tmp_path)
    assert list(data.names) == POSIX
    assert [s.image.width for s in data] == [8 + len(name) for name in SHOWS]


def test_the_damaged_line_is_unknown(tmp_path: Path) -> None:
    write_nus(tmp_path, SHOWS, part="Train")
    label_file(tmp_path, "lake", "Train").write_text("1\n-1130179\n0\n")
    data = NusWide(tmp_path, "train")
    lake = data.classes.first.index("lake")
    assert [lake in tags(data, i).present for i in range(3)] == [True, False, False]
    assert [tags(data, i).unknown for i in range(3)] == [set(), {lake}, set()]


@pytest.mark.parametrize(
    ("concept", "part", "split"), [("lake", "Test", "test"), ("sky", "Train", "train")]
)
def test_other_values_are_refused(tmp_path: Path, concept: str, part: str, split: str) -> None:
    write_nus(tmp_path, SHOWS, part=part)
    label_file(tmp_path, concept, part).write_text("1\n-1130179\n0\n")
    with pytest.raises(ValueError, match=rf"Labels_{concept}_{part}.txt: label 2 is '-1130179'"):
        NusWide(tmp_path, split)


def test_labels_of_another_number(tmp_path: Path) -> None:
    write_nus(tmp_path, SHOWS)
    label_file(tmp_path, "sky").write_text("0\n1\n")
    with pytest.raises(ValueError, match=r"Labels_sky_Test.txt has 2 labels, its list 3 images"):
        NusWide(tmp_path)


def test_other_concepts(tmp_path: Path) -> None:
    write_nus(tmp_path, SHOWS)
    (tmp_path / "ConceptsList" / "Concepts81.txt").write_text("zebra\nairport\n")
    with pytest.raises(ValueError, match="has 2 concepts, zebra, airport"):
        NusWide(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"), [("", "lists no images"), ("a\\1.jpg\na\\1.jpg\n", "an image twice")]
)
def test_lists(tmp_path: Path, lines: str, message: str) -> None:
    write_nus(tmp_path, SHOWS)
    (tmp_path / "ImageList" / "TestImagelist.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        NusWide(tmp_path)


def test_labels_missing(tmp_path: Path) -> None:
    write_nus(tmp_path, SHOWS)
    label_file(tmp_path, "sky").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: Groundtruth/.*Labels_sky_Test.txt\)"):
        NusWide(tmp_path)


def test_other_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"split of NUS-WIDE must be one of .*, got 'val'"):
        NusWide(tmp_path, "val")


def test_goes_to_workers(tmp_path: Path) -> None:
    write_nus(tmp_path, SHOWS)
    data = NusWide(tmp_path)
    assert pickle.loads(pickle.dumps(data))[1].target == data[1].target
