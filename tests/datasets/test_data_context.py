"""PASCAL Context: both layouts, held to each other and to mmsegmentation's table of ids."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import io
from torch.utils.data import DataLoader

from captum_clip_surgery.datasets import IGNORE_INDEX, Classes, Labels, PascalContext, Sample
from tests._helpers.written_context import (
    CONTEXT_NAMES,
    converted,
    label_lines,
    write_context,
    write_context_converted,
)
from tests._helpers.written_voc import write_jpeg, write_list, write_palette

#: Every id of the release, and one image of other sides: aeroplane, a nameless one, none, wood.
IDS = {
    "2008_000002": np.arange(460).reshape(20, 23),
    "2010_006086": np.array([[2, 1, 0, 458], [284, 284, 459, 2]]),
}
LAYOUTS = pytest.mark.parametrize("write", [write_context, write_context_converted])
Write = Callable[..., Path]


def labels_of(sample: Sample) -> np.ndarray:
    assert isinstance(sample.target, Labels)
    assert sample.target.labels.dtype == np.int32
    return sample.target.labels


def as_is(samples: list[Sample]) -> Sample:
    return samples[0]


def test_names_of_classes_are_the_releases() -> None:
    plain = [name.replace(" ", "") for name in Classes.named("context59").first]
    assert plain == CONTEXT_NAMES
    with_background = Classes.named("context60").synonyms
    assert with_background == (("background",), *Classes.named("context59").synonyms)


@LAYOUTS
def test_with_background_it_is_class_0(tmp_path: Path, write: Write) -> None:
    write(tmp_path, IDS)
    dataset = PascalContext(tmp_path)
    assert (dataset.names, dataset.background, len(dataset.classes)) == (tuple(IDS), 0, 60)
    for sample in dataset:
        np.testing.assert_array_equal(labels_of(sample), converted(IDS[sample.name]))
    assert labels_of(dataset[1]).tolist() == [[1, 0, 0, 59], [37, 37, 0, 1]]
    assert dataset.classes.first[37] == "person"


@LAYOUTS
def test_without_background_classes_shift_by_one_and_it_is_ignored(
    tmp_path: Path, write: Write
) -> None:
    write(tmp_path, IDS)
    dataset = PascalContext(tmp_path, background=False)
    assert (dataset.background, len(dataset.classes)) == (None, 59)
    for sample in dataset:
        expected = converted(IDS[sample.name]) - 1
        np.testing.assert_array_equal(
            labels_of(sample), np.where(expected < 0, IGNORE_INDEX, expected)
        )
    assert labels_of(dataset[1]).tolist() == [
        [0, IGNORE_INDEX, IGNORE_INDEX, 58],
        [36, 36, IGNORE_INDEX, 0],
    ]
    assert dataset.classes.first[36] == "person"


def test_ids_go_by_name(tmp_path: Path) -> None:
    """The ids are those that `labels.txt` gives, its words joined or apart."""
    folder = write_context(tmp_path, {"a": np.array([[284, 7, 308]])})
    lines = [line.replace("pottedplant", "potted plant") for line in label_lines()]
    lines[283], lines[6] = "284: other thing", "7: person"
    write_list(folder / "labels.txt", lines[::-1])
    labels = labels_of(PascalContext(tmp_path, background=False)[0])
    assert labels.tolist() == [[IGNORE_INDEX, 36, 39]]


def test_converted_files_go_before(tmp_path: Path) -> None:
    write_context(tmp_path, {"a": np.array([[2]])})
    assert labels_of(PascalContext(tmp_path)[0]).tolist() == [[1]]
    write_context_converted(tmp_path, {"b": np.array([[9]])})
    assert PascalContext(tmp_path).names == ("b",)


def test_released_files_may_lie_in_the_root(tmp_path: Path) -> None:
    folder = write_context(tmp_path, IDS)
    for name in ("trainval", "labels.txt"):
        (folder / name).rename(tmp_path / name)
    np.testing.assert_array_equal(
        labels_of(PascalContext(tmp_path)[0]), converted(IDS["2008_000002"])
    )


@LAYOUTS
def test_splits_are_of_their_own_lists(tmp_path: Path, write: Write) -> None:
    write(tmp_path, IDS)
    write(tmp_path, {"2008_000003": np.array([[2]])}, split="train")
    assert PascalContext(tmp_path, "train").names == ("2008_000003",)
    assert PascalContext(tmp_path, "val").names == tuple(IDS)
    with pytest.raises(
        ValueError, match=r"split of PASCAL Context must be one of .*, got 'trainval'"
    ):
        PascalContext(tmp_path, "trainval")


@LAYOUTS
def test_goes_to_workers(tmp_path: Path, write: Write) -> None:
    write(tmp_path, IDS)
    dataset = PascalContext(tmp_path / "VOCdevkit" / "VOC2010")
    assert len(pickle.dumps(dataset)) < 12_000
    loaded = list(DataLoader(dataset, num_workers=1, collate_fn=as_is))
    for ours, theirs in zip(dataset, loaded, strict=True):
        np.testing.assert_array_equal(labels_of(ours), labels_of(theirs))


def test_images_are_the_pixels_stored(tmp_path: Path) -> None:
    folder = write_context(tmp_path, {"a": np.zeros((4, 6)), "b": np.zeros((4, 6))})
    write_jpeg(folder / "JPEGImages" / "a.jpg", 6, 4, rotation=8)
    write_jpeg(folder / "JPEGImages" / "b.jpg", 6, 4, "L")
    for sample in PascalContext(tmp_path):
        assert (sample.image.mode, sample.image.size) == ("RGB", (6, 4))


def test_neither_layout(tmp_path: Path) -> None:
    folder = write_context(tmp_path, IDS)
    (folder / "trainval").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"trainval.*SegmentationClassContext/\*\.png"):
        PascalContext(tmp_path)
    (folder / "JPEGImages").rename(folder / "images")
    with pytest.raises(FileNotFoundError, match=r"missing: JPEGImages.*VOCtrainval_03-May-2010"):
        PascalContext(tmp_path)


@pytest.mark.parametrize(
    ("write", "missing", "match"),
    [
        (write_context, "labels.txt", "missing: labels.txt"),
        (write_context, "ImageSets/Main/val.txt", "missing: ImageSets/Main/val.txt"),
        (write_context, "trainval/2010_006086.mat", r"1 of 2 .*2010_006086\.mat"),
        (write_context, "JPEGImages/2010_006086.jpg", r"1 of 2 .*2010_006086\.jpg"),
        (
            write_context_converted,
            "ImageSets/SegmentationContext/val.txt",
            "missing: ImageSets/SegmentationContext/val.txt",
        ),
        (
            write_context_converted,
            "SegmentationClassContext/2010_006086.png",
            r"1 of 2 .*2010_006086\.png",
        ),
    ],
)
def test_half_unpacked(tmp_path: Path, write: Write, missing: str, match: str) -> None:
    (write(tmp_path, IDS) / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"{match}.*Expected: VOCtrainval_03-May-2010"):
        PascalContext(tmp_path)


def test_labels_txt_lacks_a_class(tmp_path: Path) -> None:
    folder = write_context(tmp_path, IDS)
    # The spelling of 59_labels.txt, which a wrong file would have.
    lines = [line.replace("bedclothes", "bedcloth") for line in label_lines()]
    write_list(folder / "labels.txt", lines)
    with pytest.raises(ValueError, match=r"labels\.txt has no 'bedclothes'"):
        PascalContext(tmp_path)


def test_wrong_matlab_files_are_named(tmp_path: Path) -> None:
    path = write_context(tmp_path, IDS) / "trainval" / "2010_006086.mat"
    dataset = PascalContext(tmp_path)
    io.savemat(path, {"LabelMap": np.array([[1, 2, 3, 460]] * 2, np.uint16)})
    with pytest.raises(ValueError, match=r"2010_006086\.mat holds 460, expected only 0\.\.459"):
        dataset[1]
    io.savemat(path, {"LabelMap": np.ones((4, 2), np.uint16)})
    with pytest.raises(ValueError, match=r"2010_006086\.mat is 2 x 4 pixels.*is 4 x 2"):
        dataset[1]
    io.savemat(path, {"LabelMap": np.ones((4, 2, 2), np.uint16)})
    with pytest.raises(ValueError, match=r"2010_006086\.mat has a LabelMap of shape"):
        dataset[1]
    io.savemat(path, {"labels": np.ones((4, 2), np.uint16)})
    with pytest.raises(ValueError, match=r"2010_006086\.mat cannot be read.*LabelMap"):
        dataset[1]
    for content in (b"", b"no matlab file", path.read_bytes()[:150]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"2010_006086\.mat cannot be read as a LabelMap"):
            dataset[1]


def test_wrong_converted_files_are_named(tmp_path: Path) -> None:
    path = write_context_converted(tmp_path, IDS) / "SegmentationClassContext" / "2010_006086.png"
    dataset = PascalContext(tmp_path)
    write_palette(path, np.full((2, 4), 60))
    with pytest.raises(ValueError, match=r"2010_006086\.png holds 60, expected only 0\.\.59"):
        dataset[1]
    write_palette(path, np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"2010_006086\.png is 2 x 4 pixels"):
        dataset[1]


def test_scipy_is_needed_for_released_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_context(tmp_path / "released", IDS)
    write_context_converted(tmp_path / "converted", IDS)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"pip install 'captum_clip_surgery\[datasets\]'"):
        PascalContext(tmp_path / "released")
    assert len(PascalContext(tmp_path / "converted")) == 2
