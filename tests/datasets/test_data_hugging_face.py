"""The reader of Hugging Face data sets, on what the library itself saves."""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_clip_surgery.datasets import IGNORE_INDEX, Labels, Tags, open_dataset
from captum_clip_surgery.preprocessing import load_image
from tests._helpers.written_folder import write_few_bits

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")

COLOURS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
MASK = np.array([[0, 1, 2, 255, 0, 1]] * 4, np.uint8)
CLASSES = "background\nperson, man\ndog\n"


def saved(root: Path, columns: dict[str, Any], kinds: dict[str, Any]) -> Path:
    features = datasets.Features({"image": datasets.Image(), **kinds})
    count = len(next(iter(columns.values())))
    images = [Image.fromarray(COLOURS + number) for number in range(count)]
    table = datasets.Dataset.from_dict({"image": images, **columns}, features=features)
    table.save_to_disk(str(root))
    return root


def test_masks(tmp_path):
    masks = [Image.fromarray(MASK), Image.fromarray(MASK[::-1].copy())]
    root = saved(tmp_path / "masks", {"mask": masks}, {"mask": datasets.Image()})
    with pytest.raises(FileNotFoundError, match=r"classes\.txt"):
        open_dataset("huggingface", root)
    (root / "classes.txt").write_text(CLASSES)
    data = open_dataset("huggingface", root)
    assert len(data) == 2
    assert data.background == 0
    assert data.classes.synonyms[1] == ("person", "man")
    for number, sample in enumerate(pickle.loads(pickle.dumps(data))):
        assert np.array_equal(np.asarray(sample.image), COLOURS + number)
        assert isinstance(sample.target, Labels)
        assert sample.target.labels[0].tolist() == [0, 1, 2, IGNORE_INDEX, 0, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.full((4, 6), 7, np.uint8), r"mask of row 0 holds 7, expected only 0\.\.2, 255"),
        (np.zeros((3, 6), np.uint8), "6 x 3 pixels"),
        (COLOURS, "holds colors"),
    ],
)
def test_masks_that_cannot_be(tmp_path, wrong, message):
    columns = {"mask": [Image.fromarray(wrong)]}
    root = saved(tmp_path / "masks", columns, {"mask": datasets.Image()})
    (root / "classes.txt").write_text(CLASSES)
    with pytest.raises(ValueError, match=message):
        open_dataset("huggingface", root)[0]


def test_tags(tmp_path):
    kind = datasets.ClassLabel(names=["cat", "dog", "tree"])
    several = saved(
        tmp_path / "several", {"labels": [[0, 2], [], [1]]}, {"labels": datasets.List(kind)}
    )
    data = open_dataset("huggingface", several)
    assert data.classes.first == ("cat", "dog", "tree")
    assert [sample.target for sample in data] == [
        Tags(frozenset(found)) for found in ({0, 2}, set(), {1})
    ]
    one = saved(tmp_path / "one", {"labels": [2, 0]}, {"labels": kind})
    truths = [sample.target for sample in open_dataset("huggingface", one)]
    assert truths == [Tags(frozenset({2})), Tags(frozenset({0}))]


def test_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"incomplete .*no such folder.*save_to_disk"):
        open_dataset("huggingface", tmp_path / "nowhere")
    nothing = saved(tmp_path / "nothing", {"text": ["a"]}, {"text": datasets.Value("string")})
    with pytest.raises(ValueError, match=r"has the columns image, text\. Expected"):
        open_dataset("huggingface", nothing)
    numbers = saved(
        tmp_path / "numbers",
        {"labels": [[1]]},
        {"labels": datasets.List(datasets.Value("int64"))},
    )
    with pytest.raises(ValueError, match=r"labels are .*ClassLabel"):
        open_dataset("huggingface", numbers)


def stored(root: Path, rows: list[dict[str, Any]], kinds: dict[str, Any]) -> Path:
    """Rows as they are in the file, pictures as {"bytes": ..., "path": ...}."""
    raw = {
        name: datasets.Image(decode=False) if name != "labels" else kinds[name] for name in kinds
    }
    table = datasets.Dataset.from_list(rows, features=datasets.Features(raw))
    for name in kinds:
        if name != "labels":
            table = table.cast_column(name, kinds[name])
    table.save_to_disk(str(root))
    return root


def png(image: Image.Image, **options: Any) -> dict[str, Any]:
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return {"bytes": stream.getvalue(), "path": None}


def test_images_are_those_that_datasets_decodes(tmp_path):
    """Which this reader does not let it: turned as EXIF notes, in the mode of the column."""
    exif = Image.Exif()
    exif[0x0112] = 6
    row = {
        "image": png(Image.fromarray(COLOURS), exif=exif),
        "mask": png(Image.fromarray(MASK).convert("RGB"), exif=exif),
    }
    kinds = {"image": datasets.Image(), "mask": datasets.Image(mode="L")}
    root = stored(tmp_path / "x", [row], kinds)
    (root / "classes.txt").write_text(CLASSES)
    sample = open_dataset("huggingface", root)[0]
    theirs = datasets.load_from_disk(str(root))[0]
    assert sample.image.size == (4, 6)
    assert np.array_equal(np.asarray(sample.image), np.asarray(theirs["image"].convert("RGB")))
    found = np.where(sample.target.labels == IGNORE_INDEX, 255, sample.target.labels)
    assert np.array_equal(found, np.asarray(theirs["mask"]))


DATA = Path(__file__).parents[1] / "data" / "images"


def held(content: bytes) -> dict[str, Any]:
    return {"bytes": content, "path": None}


def read_back(root: Path, image: bytes, mask: bytes, classes: str = CLASSES) -> Any:
    kinds = {"image": datasets.Image(), "mask": datasets.Image()}
    stored(root, [{"image": held(image), "mask": held(mask)}], kinds)
    (root / "classes.txt").write_text(classes)
    return open_dataset("huggingface", root)


@pytest.mark.parametrize(
    "file", ["t12.tif", "grey16_trns.png", "grey4_trns.png", "bmp32_rgb_a0.bmp", "exif3.jpg"]
)
@pytest.mark.filterwarnings("ignore:.*EXIF orientation")
def test_images_are_read_as_everywhere(tmp_path, file):
    image = load_image(DATA / file)
    mask = png(
        Image.fromarray(
            np.arange(image.width, dtype=np.uint8) % 3 * np.ones((image.height, 1), np.uint8)
        )
    )["bytes"]
    sample = read_back(tmp_path / "x", (DATA / file).read_bytes(), mask)[0]
    assert np.array_equal(np.asarray(sample.image), np.asarray(image))
    if file == "exif3.jpg":
        with pytest.warns(UserWarning, match="row 0 is turned upright by its EXIF orientation 3"):
            read_back(tmp_path / "y", (DATA / file).read_bytes(), mask)[0]


@pytest.mark.parametrize("bits", [2, 4])
def test_masks_of_few_bits_keep_their_classes(tmp_path, bits):
    write_few_bits(tmp_path / "mask.png", np.array([[0, 1, 2, 2**bits - 1, 0, 1]] * 4), bits)
    classes = "\n".join(f"class {number}" for number in range(16))
    image = png(Image.fromarray(COLOURS))["bytes"]
    data = read_back(tmp_path / "x", image, (tmp_path / "mask.png").read_bytes(), classes)
    assert data[0].target.labels[0].tolist() == [0, 1, 2, 2**bits - 1, 0, 1]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_masks_of_0_and_255_are_refused(tmp_path, kind):
    values = np.array([[0, 1, 1, 0, 0, 0]] * 4, kind)
    image = png(Image.fromarray(COLOURS))["bytes"]
    masks = [png(Image.fromarray(m))["bytes"] for m in (values * np.iinfo(kind).max, values)]
    with pytest.raises(ValueError, match=r"'person' never occurs .*write 1 for 255"):
        read_back(tmp_path / "wrong", image, masks[0], "_Background_\nperson")
    data = read_back(tmp_path / "right", image, masks[1], "_Background_\nperson")
    assert data.background == 0
    assert data[0].target.labels.tolist() == values.tolist()


@pytest.mark.parametrize(
    "picture",
    [
        None,
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": None, "path": "https://example.org/x.png"},
        {"bytes": b"", "path": None},
        {"bytes": b"no picture", "path": "x.png"},
    ],
)
def test_paths_in_rows_are_not_followed(tmp_path, picture):
    sound = [{"image": png(Image.fromarray(COLOURS)), "labels": 0}]
    kinds = {"image": datasets.Image(), "labels": datasets.ClassLabel(names=["cat"])}
    root = stored(tmp_path / "x", sound, kinds)
    (path,) = root.glob("*.arrow")
    table = datasets.Dataset.from_file(str(path)).data.table
    place, field = table.schema.get_field_index("image"), table.schema.field("image")
    # `save_to_disk` would read what the paths lead to.
    table = table.set_column(place, field, pa.array([picture], field.type))
    with pa.OSFile(str(root / "y"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (root / "y").replace(path)
    with pytest.raises(ValueError, match=r"x, row 0 (has no bytes|cannot be read as an image)"):
        open_dataset("huggingface", root)[0]


@pytest.mark.parametrize("label", [-1, 1, 2**40, None])
def test_labels_of_no_class(tmp_path, label):
    kind = datasets.ClassLabel(names=["cat"])
    kinds = {"image": datasets.Image(), "labels": datasets.List(kind)}
    row = {"image": png(Image.fromarray(COLOURS)), "labels": [0, 0]}
    root = stored(tmp_path / "x", [row], kinds)
    data = open_dataset("huggingface", root)
    data._rows = [row | {"labels": [0, label]}]
    with pytest.raises(ValueError, match=rf"row 0 has the label {label}, expected 0\.\.0"):
        data[0]


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("state.json", "[" * 100_000, "nested too deeply"),
        ("dataset_info.json", "[" * 100_000, "cannot be read as a Hugging Face data set"),
        ("state.json", "{", "cannot be read as JSON"),
        ("state.json", "{}", "cannot be read as a Hugging Face data set"),
        ("state.json", {"_data_files": [{"filename": "../x.arrow"}]}, "not in its folder"),
        ("state.json", {"_data_files": [{"filename": "/x.arrow"}]}, "not in its folder"),
        ("dataset_info.json", {"features": {"image": {"_type": "Nothing"}}}, "cannot be read as"),
        ("data-00000-of-00001.arrow", "no arrow", "cannot be read as a Hugging Face data set"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content, why):
    root = saved(tmp_path / "x", {"labels": [0]}, {"labels": datasets.ClassLabel(names=["cat"])})
    if isinstance(content, dict):
        content = json.dumps(json.loads((root / file).read_text()) | content)
    (root / file).write_text(content)
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        open_dataset("huggingface", root)
    assert str(root) in str(caught.value)


def test_images_of_another_kind_of_column(tmp_path):
    kinds = {"image": datasets.Value("string"), "labels": datasets.ClassLabel(names=["cat"])}
    table = datasets.Dataset.from_dict({"image": ["x"], "labels": [0]}, datasets.Features(kinds))
    table.save_to_disk(str(tmp_path / "x"))
    with pytest.raises(ValueError, match=r"the column image is Value.*cast it to datasets\.Image"):
        open_dataset("huggingface", tmp_path / "x")
