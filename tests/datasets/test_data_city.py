"""Cityscapes: labels are those of its own scripts, and torchvision's files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from captum_clip_surgery.datasets import IGNORE_INDEX, Cityscapes, Classes, Labels
from tests._helpers.written_city import write_city

NAMES = ["frankfurt_000000_000294", "munster_000001_000019", "aachen_000000_000001"]
ALL_IDS = np.arange(34).reshape(2, 17)  # each id that files hold


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in NAMES:
        write_city(tmp_path, name, generator.integers(0, 34, (6, 9)))
    return tmp_path


def labels_of(sample_truth: object) -> np.ndarray:
    assert isinstance(sample_truth, Labels)
    return sample_truth.labels


def test_classes_are_the_official_ones() -> None:
    scripts = pytest.importorskip("cityscapesscripts.helpers.labels")
    official = [scripts.trainId2label[i].name for i in range(19)]
    assert list(Classes.named("cityscapes19").first) == official


def test_every_id_becomes_what_the_official_table_says(tmp_path: Path) -> None:
    scripts = pytest.importorskip("cityscapesscripts.helpers.labels")
    write_city(tmp_path, NAMES[0], ALL_IDS)
    found = labels_of(Cityscapes(tmp_path)[0].target)
    for number, label in zip(ALL_IDS.flat, found.flat, strict=True):
        official = scripts.id2label[int(number)]
        assert (label == IGNORE_INDEX) == official.ignoreInEval, official.name
        if label != IGNORE_INDEX:
            assert label == official.trainId, official.name
    assert found.dtype == np.int32
    assert sorted(set(found.flat)) == [IGNORE_INDEX, *range(19)]


def test_samples_are_torchvisions(root: Path) -> None:
    official = torchvision.datasets.Cityscapes(str(root), split="val", target_type="semantic")
    table = {c.id: IGNORE_INDEX if c.train_id == 255 else c.train_id for c in official.classes}
    by_name = {
        Path(path).name.removesuffix("_leftImg8bit.png"): official[i]
        for i, path in enumerate(official.images)
    }
    data = Cityscapes(root)
    assert list(data.names) == sorted(by_name) == sorted(NAMES)
    for sample in data:
        image, stored = by_name[sample.name]
        np.testing.assert_array_equal(sample.image, image)
        expected = np.vectorize(table.get)(np.asarray(stored))
        np.testing.assert_array_equal(labels_of(sample.target), expected)


def test_train_ids_are_read_where_there_are_no_label_ids(tmp_path: Path) -> None:
    stored = np.array([[0, 18, 255]])
    write_city(tmp_path, NAMES[0], train_ids=stored)
    assert labels_of(Cityscapes(tmp_path)[0].target).tolist() == [[0, 18, IGNORE_INDEX]]


def test_label_ids_go_before_train_ids(tmp_path: Path) -> None:
    write_city(tmp_path, NAMES[0], np.array([[7, 26]]), np.array([[3, 4]]))
    assert labels_of(Cityscapes(tmp_path)[0].target).tolist() == [[0, 13]]


@pytest.mark.parametrize("bad", [34, 255])
def test_unknown_label_id(tmp_path: Path, bad: int) -> None:
    write_city(tmp_path, NAMES[0], np.array([[7, bad]]))
    with pytest.raises(ValueError, match=rf"labelIds.png holds {bad}, expected only 0..33"):
        Cityscapes(tmp_path)[0]


def test_unknown_train_id(tmp_path: Path) -> None:
    write_city(tmp_path, NAMES[0], train_ids=np.array([[0, 19]]))
    with pytest.raises(ValueError, match=r"labelTrainIds.png holds 19, expected only 0..18, 255"):
        Cityscapes(tmp_path)[0]


def test_train_split_is_another(root: Path) -> None:
    write_city(root, "ulm_000000_000019", np.array([[7]]), split="train")
    assert Cityscapes(root, "train").names == ("ulm_000000_000019",)
    assert "ulm_000000_000019" not in Cityscapes(root).names


def test_test_labels_are_not_published(root: Path) -> None:
    with pytest.raises(ValueError, match=r"split of Cityscapes must be one of .*, got 'test'"):
        Cityscapes(root, "test")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gtFine_trainvaltest\.zip"):
        Cityscapes(tmp_path)


def test_labels_missing(root: Path) -> None:
    next((root / "gtFine").rglob(f"{NAMES[0]}*labelIds.png")).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 3 have no labels, such as .*{NAMES[0]}"):
        Cityscapes(root)


def test_image_missing(root: Path) -> None:
    next((root / "leftImg8bit").rglob(f"{NAMES[1]}*")).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 3 have no image, such as .*{NAMES[1]}"):
        Cityscapes(root)


def test_empty_folders(tmp_path: Path) -> None:
    for folder in ("leftImg8bit/val", "gtFine/val"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no images"):
        Cityscapes(tmp_path)


def test_labels_of_another_size(root: Path) -> None:
    path = next((root / "gtFine").rglob(f"{NAMES[0]}*labelIds.png"))
    Image.new("L", (6, 9)).save(path)
    with pytest.raises(ValueError, match=r"labelIds.png is 6 x 9 pixels, its image .* is 9 x 6"):
        Cityscapes(root)[sorted(NAMES).index(NAMES[0])]


def test_damaged_labels(root: Path) -> None:
    path = next((root / "gtFine").rglob(f"{NAMES[0]}*labelIds.png"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"labelIds\.png cannot be read"):
        Cityscapes(root)[sorted(NAMES).index(NAMES[0])]


def test_goes_to_workers(root: Path) -> None:
    data = Cityscapes(root)
    again = pickle.loads(pickle.dumps(data))[0]
    np.testing.assert_array_equal(labels_of(again.target), labels_of(data[0].target))
