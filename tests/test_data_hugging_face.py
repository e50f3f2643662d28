"""The reader of Hugging Face data sets, on what the library itself saves."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_clip_surgery.data import IGNORED, Labels, Tags, open_dataset

datasets = pytest.importorskip("datasets")

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
        assert isinstance(sample.truth, Labels)
        assert sample.truth.labels[0].tolist() == [0, 1, 2, IGNORED, 0, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.full((4, 6), 7, np.uint8), r"mask of row 0 holds 7, expected only 0\.\.2, 255"),
        (np.zeros((3, 6), np.uint8), "6 x 3 pixels"),
        (COLOURS, "holds colours"),
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
    assert [sample.truth for sample in data] == [
        Tags(frozenset(found)) for found in ({0, 2}, set(), {1})
    ]
    one = saved(tmp_path / "one", {"labels": [2, 0]}, {"labels": kind})
    truths = [sample.truth for sample in open_dataset("huggingface", one)]
    assert truths == [Tags(frozenset({2})), Tags(frozenset({0}))]


def test_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not whole .*no such folder.*save_to_disk"):
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
