"""One's own pictures: what is written is read, and what is amiss is told."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from captum_clip_surgery.datasets import IGNORE_INDEX, Folder, Labels, Masks, Sample
from tests._helpers.cases import each
from tests._helpers.written_folder import write_few_bits, write_folder, write_numbers
from tests._helpers.written_voc import write_jpeg, write_palette

CLASSES = "# source: me\nbackground\nperson, man, woman\npotted plant\n"


def labels_of(sample: Sample) -> np.ndarray:
    assert isinstance(sample.target, Labels)
    assert sample.target.labels.dtype == np.int32
    return sample.target.labels


def masks_of(sample: Sample) -> Masks:
    assert isinstance(sample.target, Masks)
    return sample.target


def as_is(samples: list[Sample]) -> Sample:
    return samples[0]


def labelled(name: str, labels: list[list[int]]) -> Sample:
    height, width = np.shape(labels)
    values = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    return Sample(name, Image.fromarray(values), Labels(np.array(labels, np.int32)))


def masked(name: str, masks: dict[int, list[list[bool]]]) -> Sample:
    image = Image.new("RGB", (3, 2), "teal")
    return Sample(name, image, Masks({label: np.array(mask) for label, mask in masks.items()}))


SAMPLES = (
    labelled("bench", [[0, 1, 2], [IGNORE_INDEX, 1, 1]]),
    labelled("park/a.b/tree", [[2, 2]]),
)
OVERLAPPING = (
    masked("a", {1: [[True, True, False]] * 2, 2: [[False, True, True]] * 2}),
    masked("deep/b", {0: [[True, False, False]] * 2}),
    masked("deep/none", {}),
)


def test_labels_come_back(tmp_path: Path) -> None:
    dataset = Folder(write_folder(SAMPLES, tmp_path / "mine", CLASSES))
    assert (dataset.name, dataset.names) == ("folder mine", ("bench", "park/a.b/tree"))
    assert dataset.classes.synonyms[1] == ("person", "man", "woman")
    assert dataset.background == 0
    for wrote, read in zip(SAMPLES, dataset, strict=True):
        np.testing.assert_array_equal(labels_of(read), labels_of(wrote))
        np.testing.assert_array_equal(np.asarray(read.image), np.asarray(wrote.image))


def test_overlapping_masks_come_back(tmp_path: Path) -> None:
    dataset = Folder(write_folder(OVERLAPPING, tmp_path, CLASSES))
    assert dataset.names == ("a", "deep/b", "deep/none")
    for wrote, read in zip(OVERLAPPING, dataset, strict=True):
        found, expected = masks_of(read), masks_of(wrote)
        assert list(found.masks) == list(expected.masks)
        assert not found.ignored
        for label, mask in found.masks.items():
            assert mask.dtype == bool
            np.testing.assert_array_equal(mask, expected.masks[label])


def test_goes_to_workers(tmp_path: Path) -> None:
    dataset = Folder(write_folder(SAMPLES, tmp_path, CLASSES))
    assert len(pickle.dumps(dataset)) < 5_000
    loaded = list(DataLoader(dataset, num_workers=1, collate_fn=as_is))
    for ours, theirs in zip(dataset, loaded, strict=True):
        np.testing.assert_array_equal(labels_of(ours), labels_of(theirs))


@each("first", ["Background", "BACKGROUND", "_background_", "__background__", "\ufeffbackground"])
def test_spellings_of_the_background(tmp_path: Path, first: str) -> None:
    root = write_folder(SAMPLES, tmp_path, CLASSES)
    lines = [first, "person", "potted plant"]
    (root / "classes.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    dataset = Folder(root)
    assert dataset.background == 0
    assert dataset.classes.first[1:] == ("person", "potted plant")


@each("kind", [np.uint8, np.uint16])
@each("classes", ["background\nperson", "person", CLASSES])
def test_masks_of_0_and_255_are_refused(
    tmp_path: Path, kind: type[np.unsignedinteger[Any]], classes: str
) -> None:
    write_folder(SAMPLES[:1], tmp_path, classes)
    path, highest = tmp_path / "masks" / "bench.png", np.iinfo(kind).max
    values = np.array([[0, 1, 1], [1, 0, 0]], kind)
    Image.fromarray(values * highest).save(path)
    with pytest.raises(ValueError, match=r"never occurs .* the ignored value .* write 1 for 255"):
        Folder(tmp_path)
    if "\n" in classes:
        Image.fromarray(values).save(path)
        assert labels_of(Folder(tmp_path)[0]).tolist() == values.tolist()


def test_masks_are_looked_through_until_two_classes_occur(tmp_path: Path) -> None:
    """Pictures of nothing but background and its border are sound where another has an object."""
    empty = labelled("a", [[0, IGNORE_INDEX]])
    sound = labelled("c", [[1, 0]])
    root = write_folder([empty, labelled("b", [[0, 0]]), sound], tmp_path, "background\nperson")
    (root / "masks" / "b.png").write_bytes(b"unreadable")
    assert len(Folder(root)) == 3
    write_numbers(root / "masks" / "c.png", np.zeros((1, 2), int))
    with pytest.raises(ValueError, match="'person' never occurs"):
        Folder(root)
    (root / "classes.txt").write_text(CLASSES)
    write_numbers(root / "masks" / "c.png", np.array([[0, 1]]))
    with pytest.raises(ValueError, match=r"'potted plant' never occurs.* from the end of classes"):
        Folder(root)
    (root / "classes.txt").write_text(CLASSES + "a class of a larger data set\n")
    assert len(Folder(root)) == 3


def test_a_mask_that_may_match_the_stored_pixels_is_told(tmp_path: Path) -> None:
    """An orientation of 180 degrees leaves the size as it is."""
    write_folder([], tmp_path, CLASSES)
    for name, rotation, size in (("down", 3, (16, 8)), ("square", 6, (8, 8))):
        write_jpeg(tmp_path / "images" / f"{name}.jpg", *size, rotation=rotation)
        labels = np.zeros(size[::-1], int)
        labels[: size[1] // 2] = 1
        write_numbers(tmp_path / "masks" / f"{name}.png", labels)
    dataset = Folder(tmp_path)
    for index, rotation in enumerate((3, 6)):
        with pytest.warns(UserWarning, match=rf"EXIF orientation {rotation}, and .* has none; it"):
            sample = dataset[index]
        assert labels_of(sample)[0].tolist() == [1] * sample.image.width
    # A mask that is noted to be turned is turned with its image.
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(labels_of(sample).astype(np.uint8)[:, ::-1]).save(
        tmp_path / "masks" / "square.png", exif=exif
    )
    (tmp_path / "images" / "square.jpg").unlink()
    write_jpeg(tmp_path / "images" / "square.jpg", 8, 8, rotation=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labels_of(dataset[1])[-1].tolist() == [1] * 8


def test_a_first_class_of_another_name_is_no_background(tmp_path: Path) -> None:
    assert Folder(write_folder(SAMPLES, tmp_path, "sky\nbackground\nplant")).background is None


def test_palette_indices_are_the_labels(tmp_path: Path) -> None:
    write_folder(SAMPLES[:1], tmp_path, CLASSES)
    write_palette(tmp_path / "masks" / "bench.png", np.array([[2, 1, 0], [255, 0, 0]]))
    assert labels_of(Folder(tmp_path)[0]).tolist() == [[2, 1, 0], [IGNORE_INDEX, 0, 0]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_spread(tmp_path: Path, bits: int) -> None:
    write_folder(SAMPLES[:1], tmp_path, "\n".join(f"class {i}" for i in range(256)))
    values = np.array([[0, 1, 2**bits - 1], [1, 0, 1]])
    write_few_bits(tmp_path / "masks" / "bench.png", values, bits)
    assert labels_of(Folder(tmp_path)[0]).tolist() == values.tolist()


def test_255_is_ignored_unless_a_class_has_it(tmp_path: Path) -> None:
    path = tmp_path / "masks" / "bench.png"
    for count, expected in ((255, IGNORE_INDEX), (256, 255)):
        write_folder(SAMPLES[:1], tmp_path, "\n".join(f"class {i}" for i in range(count)))
        Image.fromarray(np.array([[0, 254, 255], [0, 0, 0]], np.uint8)).save(path)
        assert labels_of(Folder(tmp_path)[0]).tolist() == [[0, 254, expected], [0, 0, 0]]


def test_of_16_bits_65535_is_ignored_and_255_is_not(tmp_path: Path) -> None:
    write_folder(SAMPLES[:1], tmp_path, "\n".join(f"class {i}" for i in range(300)))
    path = tmp_path / "masks" / "bench.png"
    Image.fromarray(np.array([[255, 256, 299], [65_535, 0, 0]], np.uint16)).save(path)
    assert labels_of(Folder(tmp_path)[0]).tolist() == [[255, 256, 299], [IGNORE_INDEX, 0, 0]]
    (tmp_path / "classes.txt").write_text(CLASSES)
    with pytest.raises(ValueError, match=r"bench\.png holds 255, expected only 0\.\.2, 65535"):
        Folder(tmp_path)[0]


def test_images_lie_as_they_are_shown(tmp_path: Path) -> None:
    write_folder([], tmp_path, CLASSES)
    write_jpeg(tmp_path / "images" / "turned.JPG", 16, 8, rotation=6)
    write_numbers(tmp_path / "masks" / "turned.png", np.ones((16, 8), int))
    sample = Folder(tmp_path)[0]
    assert sample.image.size == (8, 16)
    assert labels_of(sample).shape == (16, 8)
    # Stored with its right half bright; turned clockwise that is the lower half.
    shown = np.asarray(sample.image)[..., 0]
    assert shown[:6].max() < 100 < 150 < shown[10:].min()


def test_a_mask_of_the_pixels_as_stored_is_explained(tmp_path: Path) -> None:
    write_folder([], tmp_path, CLASSES)
    write_jpeg(tmp_path / "images" / "turned.jpg", 16, 8, rotation=6)
    path = tmp_path / "masks" / "turned.png"
    write_numbers(path, np.ones((8, 16), int))
    with pytest.raises(
        ValueError, match=r"is 16 x 8 .* is 8 x 16 as shown.*turned by its EXIF rotation"
    ):
        Folder(tmp_path)[0]
    write_numbers(path, np.ones((8, 15), int))
    with pytest.raises(ValueError, match=r"turned\.png is 15 x 8 pixels.*turned\.jpg is 8 x 16$"):
        Folder(tmp_path)[0]


def test_many_kinds_of_images(tmp_path: Path) -> None:
    write_folder([], tmp_path, CLASSES)
    endings = ("jpg", "JPEG", "png", "webp", "bmp", "tif", "TIFF", "mpo", "gif", "tga")
    for number, ending in enumerate(endings):
        Image.new("RGB", (3, 2), "teal").save(tmp_path / "images" / f"{number}.{ending}")
        write_numbers(tmp_path / "masks" / f"{number}.png", np.ones((2, 3), int))
    (tmp_path / "masks" / "0.png").rename(tmp_path / "masks" / "0.PNG")
    (tmp_path / "images" / ".DS_Store").write_bytes(b"")
    (tmp_path / "masks" / ".DS_Store").write_bytes(b"")
    dataset = Folder(tmp_path)
    assert len(dataset) == len(endings)
    assert {sample.image.getpixel((1, 1))[2] // 16 for sample in dataset} == {8}
    assert all((labels_of(sample) == 1).all() for sample in dataset)


def test_links_are_followed(tmp_path: Path) -> None:
    root = write_folder(SAMPLES, tmp_path / "real", CLASSES)
    linked = write_folder([], tmp_path / "linked", CLASSES)
    for part, ending in (("images", ".png"), ("masks", ".png")):
        (linked / part / "far").symlink_to(root / part / "park", target_is_directory=True)
        (linked / part / f"near{ending}").symlink_to(root / part / f"bench{ending}")
    dataset = Folder(linked)
    assert dataset.names == ("far/a.b/tree", "near")
    assert labels_of(dataset[0]).tolist() == [[2, 2]]
    (linked / "images" / "loop").symlink_to(linked / "images", target_is_directory=True)
    with pytest.raises(ValueError, match="is a link to a folder that contains it"):
        Folder(linked)


@pytest.mark.parametrize("part", ["images", "masks", "classes.txt"])
def test_a_part_is_missing(tmp_path: Path, part: str) -> None:
    root = write_folder(SAMPLES, tmp_path / "mine", CLASSES)
    (root / part).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"missing: {part}\).*images/NAME\.jpg"):
        Folder(root)


def test_images_and_masks_alone(tmp_path: Path) -> None:
    write_folder(SAMPLES, tmp_path, CLASSES)
    mask = tmp_path / "masks" / "park" / "a.b" / "tree.png"
    mask.rename(mask.with_name("bush.png"))
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no mask, .*tree\.png.*masks"):
        Folder(tmp_path)
    (tmp_path / "images" / "park" / "a.b" / "tree.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 masks have no image, .*bush\.png"):
        Folder(tmp_path)


def test_overlapping_masks_alone(tmp_path: Path) -> None:
    write_folder(OVERLAPPING, tmp_path, CLASSES)
    (tmp_path / "images" / "deep" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 masks .*deep/b/background\.png"):
        Folder(tmp_path)
    (tmp_path / "masks" / "deep" / "b" / "background.png").unlink()
    (tmp_path / "masks" / "deep" / "none").rmdir()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images have no mask, .*none\.png"):
        Folder(tmp_path)


def test_both_kinds_of_masks(tmp_path: Path) -> None:
    write_folder((SAMPLES[0], OVERLAPPING[0]), tmp_path, CLASSES)
    with pytest.raises(ValueError, match=r"both bench\.png, numbers .* a folder a/"):
        Folder(tmp_path)


def test_two_images_of_one_name(tmp_path: Path) -> None:
    write_folder(SAMPLES, tmp_path, CLASSES)
    write_jpeg(tmp_path / "images" / "bench.jpg", 3, 2)
    with pytest.raises(ValueError, match=r"two files of one name: .*bench\.jpg and .*bench\.png"):
        Folder(tmp_path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    write_folder(SAMPLES, tmp_path, CLASSES)
    (tmp_path / "images" / "photo.svg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"one of \.jpg.* got .*photo\.svg"):
        Folder(tmp_path)


def test_no_images(tmp_path: Path) -> None:
    write_folder([], tmp_path, CLASSES)
    with pytest.raises(ValueError, match="holds no images"):
        Folder(tmp_path)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    write_folder(SAMPLES, tmp_path, CLASSES)
    path = tmp_path / "masks" / "bench.png"
    dataset = Folder(tmp_path)
    write_numbers(path, np.full((2, 3), 3))
    with pytest.raises(ValueError, match=r"bench\.png holds 3, expected only 0\.\.2, 255"):
        dataset[0]
    Image.new("RGB", (3, 2)).save(path)
    with pytest.raises(ValueError, match=r"bench\.png cannot be read .* mode RGB"):
        dataset[0]
    (tmp_path / "images" / "bench.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"images/bench\.png cannot be read"):
        dataset[0]
    (tmp_path / "classes.txt").write_text("sky\nsky\n")
    with pytest.raises(
        ValueError, match=r"classes\.txt: the first name 'sky' belongs to 2 classes"
    ):
        Folder(tmp_path)


def test_wrong_masks_of_classes_are_named(tmp_path: Path) -> None:
    write_folder(OVERLAPPING, tmp_path, CLASSES)
    own = tmp_path / "masks" / "a"
    dataset = Folder(tmp_path)
    for values in ([[0, 255, 0]] * 2, [[0, 1, 0]] * 2):
        Image.fromarray(np.array(values, np.uint8)).save(own / "person.png")
        assert masks_of(dataset[0]).masks[1].tolist() == [[False, True, False]] * 2
    Image.fromarray(np.array([[0, 65_535, 0]] * 2, np.uint16)).save(own / "person.png")
    assert masks_of(dataset[0]).masks[1].tolist() == [[False, True, False]] * 2
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(own / "person.png")
    assert list(masks_of(dataset[0]).masks) == [2]
    Image.fromarray(np.array([[0, 1, 255]] * 2, np.uint8)).save(own / "person.png")
    with pytest.raises(ValueError, match=r"person\.png holds 0, 1, 255, expected 0 for outside"):
        dataset[0]
    Image.fromarray(np.ones((3, 2), np.uint8)).save(own / "person.png")
    with pytest.raises(ValueError, match=r"person\.png is 2 x 3 pixels.*is 3 x 2"):
        dataset[0]
    (own / "person.png").rename(own / "man.png")
    with pytest.raises(
        ValueError, match=r"man\.png is not the mask of a class.*background, person"
    ):
        dataset[0]
