"""ImageNet-S: tiny ones in the toolkit's layout, held to the toolkit's formula and to timm."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from captum_clip_surgery.datasets import IGNORE_INDEX, Classes, ImageNetS, Labels, Sample
from tests._helpers.cases import each
from tests._helpers.written_imagenet_s import FIRST, colours, write_imagenet_s
from tests._helpers.written_voc import write_jpeg

LABELS = {
    f"{FIRST[0]}/ILSVRC2012_val_00004677": np.array([[0, 1, 50, 1000]] * 2),
    f"{FIRST[2]}/ILSVRC2012_val_00000001": np.array([[3, 3], [1000, 0], [3, 4]]),
}


def labels_of(sample: Sample) -> np.ndarray:
    assert isinstance(sample.target, Labels)
    assert sample.target.labels.dtype == np.int32
    return sample.target.labels


def as_is(samples: list[Sample]) -> Sample:
    return samples[0]


@each("size", [50, 300, 919])
def test_names_of_classes_ascend_by_wordnet_id(size: int) -> None:
    """The toolkit's order: each name is one of ImageNet's, in the order of WordNet ids."""
    classes = Classes.named(f"imagenet_s{size}")
    assert classes.first[0] == "background"
    assert len(classes) == size + 1
    info = ImageNetInfo()
    wnids = sorted(info.label_names())
    names = [info.label_name_to_description(wnid).split(", ")[0].lower() for wnid in wnids]
    at = -1
    for name in classes.first[1:]:
        plain = "crane" if name in ("crane bird", "construction crane") else name.lower()
        at = names.index(plain, at + 1)


def test_the_two_cranes_are_told_apart() -> None:
    first = Classes.named("imagenet_s919").first
    assert first.index("crane bird") < first.index("construction crane")
    info = ImageNetInfo()
    assert "bird" in info.label_name_to_description("n02012849", detailed=True)
    assert "lifts" in info.label_name_to_description("n03126707", detailed=True)


def test_labels_are_red_and_256_green(tmp_path: Path) -> None:
    folder = write_imagenet_s(tmp_path, LABELS)
    dataset = ImageNetS(tmp_path)
    assert (dataset.names, dataset.background) == (tuple(sorted(LABELS)), 0)
    assert labels_of(dataset[0]).tolist() == [[0, 1, 50, IGNORE_INDEX]] * 2
    assert labels_of(dataset[1]).tolist() == [[3, 3], [IGNORE_INDEX, 0], [3, 4]]
    assert dataset.classes.first[1] == "goldfish"
    assert dataset.classes.first[3] == "goldfinch"
    for sample in dataset:
        path = folder / "validation-segmentation" / f"{sample.name}.png"
        values = np.array(Image.open(path)).astype(np.uint16)
        official = values[:, :, 1] * 256 + values[:, :, 0]
        found = labels_of(sample)
        np.testing.assert_array_equal(np.where(found == IGNORE_INDEX, 1000, found), official)


def test_ids_over_255(tmp_path: Path) -> None:
    write_imagenet_s(tmp_path, {"n01440764/a": np.array([[255, 256, 257, 919, 1000]])}, 919)
    dataset = ImageNetS(tmp_path, size=919)
    assert labels_of(dataset[0]).tolist() == [[255, 256, 257, 919, IGNORE_INDEX]]
    assert dataset.classes.first[919] == "toilet tissue"


def test_images_are_torchvisions(tmp_path: Path) -> None:
    folder = write_imagenet_s(tmp_path, LABELS)
    theirs = ImageFolder(str(folder / "validation"), allow_empty=True)
    assert len(theirs) == 2
    for sample, (image, _) in zip(ImageNetS(tmp_path), theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(sample.image), np.asarray(image))


def test_train_semi_and_the_folder_itself(tmp_path: Path) -> None:
    folder = write_imagenet_s(
        tmp_path, {f"{FIRST[1]}/n01491361_23292": np.ones((2, 2), int)}, split="train-semi"
    )
    dataset = ImageNetS(folder, split="train-semi")
    assert dataset.names == ("n01491361/n01491361_23292",)
    with pytest.raises(FileNotFoundError, match=r"missing: validation.*data_preparation\.sh"):
        ImageNetS(folder)


def test_other_sizes_and_splits(tmp_path: Path) -> None:
    write_imagenet_s(tmp_path, LABELS)
    with pytest.raises(ValueError, match=r"split of ImageNet-S must be one of .*, got 'test'"):
        ImageNetS(tmp_path, split="test")
    with pytest.raises(ValueError, match="size of ImageNet-S must be one of 50, 300, 919, got 100"):
        ImageNetS(tmp_path, size=100)
    with pytest.raises(FileNotFoundError, match=r"ImageNetS300 .*no such folder"):
        ImageNetS(tmp_path, size=300)


def test_goes_to_workers(tmp_path: Path) -> None:
    write_imagenet_s(tmp_path, LABELS)
    dataset = ImageNetS(tmp_path)
    assert len(pickle.dumps(dataset)) < 10_000
    loaded = list(DataLoader(dataset, num_workers=1, collate_fn=as_is))
    assert [sample.name for sample in loaded] == list(dataset.names)


def test_images_are_the_pixels_stored(tmp_path: Path) -> None:
    folder = write_imagenet_s(tmp_path, LABELS) / "validation"
    rotated, cmyk = sorted(LABELS)
    write_jpeg(folder / f"{rotated}.JPEG", 4, 2, rotation=6)
    write_jpeg(folder / f"{cmyk}.JPEG", 2, 3, "CMYK")  # ImageNet has such
    for sample, size in zip(ImageNetS(tmp_path), ((4, 2), (2, 3)), strict=True):
        assert (sample.image.mode, sample.image.size) == ("RGB", size)


def test_half_unpacked(tmp_path: Path) -> None:
    folder = write_imagenet_s(tmp_path, LABELS)
    alone = sorted(LABELS)[1]
    (folder / "validation" / f"{alone}.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of 2 have no image, such as .*{alone}\.png"):
        ImageNetS(tmp_path)
    (folder / "validation-segmentation" / f"{alone}.png").unlink()
    assert len(ImageNetS(tmp_path)) == 1
    (folder / "validation-segmentation" / f"{sorted(LABELS)[0]}.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 1 have no labels"):
        ImageNetS(tmp_path)


@pytest.mark.parametrize("part", ["validation", "validation-segmentation"])
def test_a_class_is_missing(tmp_path: Path, part: str) -> None:
    folder = write_imagenet_s(tmp_path, LABELS)
    next(p for p in (folder / part).iterdir() if not any(p.iterdir())).rmdir()
    with pytest.raises(FileNotFoundError, match=f"{part} has 49 folders of classes, expected 50"):
        ImageNetS(tmp_path)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    folder = write_imagenet_s(tmp_path, LABELS) / "validation-segmentation"
    dataset = ImageNetS(tmp_path)
    name = sorted(LABELS)[0]
    path = folder / f"{name}.png"
    Image.fromarray(colours(np.full((2, 4), 51))).save(path)
    with pytest.raises(ValueError, match=rf"{name}\.png holds 51, expected only 0\.\.50, 1000"):
        dataset[0]
    Image.fromarray(colours(np.ones((4, 2), int))).save(path)
    with pytest.raises(ValueError, match=rf"{name}\.png is 2 x 4 pixels.*is 4 x 2"):
        dataset[0]
    Image.fromarray(np.ones((2, 4), np.uint8)).save(path)
    with pytest.raises(ValueError, match=rf"{name}\.png cannot be read.*mode L, expected colors"):
        dataset[0]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=rf"{name}\.png cannot be read"):
        dataset[0]
