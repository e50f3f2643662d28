"""Open Images V7's points: answers, classes and images."""

from __future__ import annotations

import pickle
from pathlib import Path

import pandas
import pytest

from captum_clip_surgery.datasets import OpenImagesPoints, Point, Points
from tests._helpers.written_open_images import write_open_images

DESCRIBED = {
    "/m/0zzz": "Never asked",
    "/m/01yrx": "Cat",
    "/m/0bt9lr": "Dog",
    "/m/0abc": "Salt, pepper",
}
#: Images and classes out of order, and of one image apart.
ROWS = [
    ("bb22", 0.6298828, 0.3652344, "/m/0bt9lr", "no"),
    ("aa11", 0.25, 1.0, "/m/0abc", "yes"),
    ("bb22", 0.0, 0.5, "/m/01yrx", "yes"),
    ("aa11", 0.75, 0.5, "/m/01yrx", "unsure"),
    ("cc33", 0.5, 0.5, "/m/01yrx", "unsure"),
    ("aa11", 0.1, 0.2, "/m/0bt9lr", "yes"),
    ("dd44", 0.3, 0.4, "/m/0gone", "no", "steam train"),
]
ANNOTATIONS = "oidv7-val-annotations-point-labels.csv"


def points_of(data: OpenImagesPoints, index: int) -> tuple[Point, ...]:
    target = data[index].target
    assert isinstance(target, Points)
    return target.points


def test_points(tmp_path: Path) -> None:
    write_open_images(tmp_path, ROWS, DESCRIBED)
    data = OpenImagesPoints(tmp_path)
    assert data.names == ("aa11", "bb22", "dd44")
    assert data.ids == ("/m/01yrx", "/m/0bt9lr", "/m/0abc", "/m/0gone")
    assert data.classes.first == ("Cat", "Dog", "Salt, pepper", "steam train")
    assert points_of(data, 0) == (Point(2, 0.25, 1.0, True), Point(1, 0.1, 0.2, True))
    assert points_of(data, 1) == (
        Point(1, 0.6298828, 0.3652344, False),
        Point(0, 0.0, 0.5, True),
    )
    assert points_of(data, 2) == (Point(3, 0.3, 0.4, False),)
    assert data[0].image.size == (16, 12)


def test_against_pandas(tmp_path: Path) -> None:
    write_open_images(tmp_path, ROWS, DESCRIBED)
    table = pandas.read_csv(tmp_path / ANNOTATIONS)
    table = table[table.EstimatedYesNo != "unsure"]
    data = OpenImagesPoints(tmp_path)
    for index, name in enumerate(data.names):
        rows = table[table.ImageId == name]
        expected = list(zip(rows.Label, rows.X, rows.Y, rows.EstimatedYesNo == "yes", strict=True))
        found = [(data.ids[p.label], p.x, p.y, p.positive) for p in points_of(data, index)]
        assert found == expected
    assert sum(len(points_of(data, i)) for i in range(len(data))) == len(table)


def test_a_label_without_id_goes_by_its_text(tmp_path: Path) -> None:
    write_open_images(tmp_path, [("aa11", 0.5, 0.5, "", "yes", "red kite")], DESCRIBED)
    data = OpenImagesPoints(tmp_path)
    assert (data.ids, data.classes.first) == (("red kite",), ("red kite",))


def test_a_description_goes_before_the_text(tmp_path: Path) -> None:
    write_open_images(tmp_path, [("aa11", 0.5, 0.5, "/m/01yrx", "yes", "kitty")], DESCRIBED)
    assert OpenImagesPoints(tmp_path).classes.first == ("Cat",)


def test_classes_of_one_name_stay_apart(tmp_path: Path) -> None:
    rows = [("aa11", 0.5, 0.5, "/m/1", "yes"), ("aa11", 0.5, 0.5, "/m/2", "no")]
    write_open_images(tmp_path, rows, {"/m/2": "Bat", "/m/1": "Bat"})
    data = OpenImagesPoints(tmp_path)
    assert (data.ids, data.classes.first) == (("/m/2", "/m/1"), ("Bat", "Bat"))
    assert [p.label for p in points_of(data, 0)] == [1, 0]


def test_descriptions_without_a_header(tmp_path: Path) -> None:
    write_open_images(tmp_path, ROWS[:1], DESCRIBED)
    path = tmp_path / "oidv7-class-descriptions.csv"
    path.write_text(path.read_text().removeprefix("LabelName,DisplayName\n"))
    assert OpenImagesPoints(tmp_path).classes.first == ("Dog",)


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_splits_have_files_of_their_own(tmp_path: Path, split: str) -> None:
    write_open_images(tmp_path, ROWS, DESCRIBED)
    write_open_images(tmp_path, [("ee55", 0.5, 0.5, "/m/01yrx", "yes")], DESCRIBED, split)
    assert OpenImagesPoints(tmp_path, split).names == ("ee55",)
    assert len(OpenImagesPoints(tmp_path)) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", 0.5, 0.5, "/m/01yrx", "maybe"), "line 2: EstimatedYesNo is 'maybe'"),
        (("a", 1.5, 0.5, "/m/01yrx", "yes"), "line 2: coordinate '1.5'"),
        (("a", 0.5, -0.1, "/m/01yrx", "yes"), "line 2: coordinate '-0.1'"),
        (("a", 0.5, "left", "/m/01yrx", "yes"), "line 2: coordinate 'left'"),
        (("a", 0.5, "nan", "/m/01yrx", "yes"), "line 2: coordinate 'nan'"),
        (("a", 0.5, 0.5, "/m/0gone", "yes"), "line 2: class '/m/0gone' is not in"),
        (("a", 0.5, 0.5, "/m/01yrx", "unsure"), "holds no point with the answer"),
        (("a", 0.5, 0.5, "/m/01yrx", "yes", "x", "y"), "line 2 has 11 cells, expected 10"),
    ],
)
def test_rows_that_mean_nothing(tmp_path: Path, row: tuple[object, ...], message: str) -> None:
    write_open_images(tmp_path, [row], DESCRIBED)
    with pytest.raises(ValueError, match=rf"{ANNOTATIONS}.* ?{message}"):
        OpenImagesPoints(tmp_path)


def test_another_table(tmp_path: Path) -> None:
    write_open_images(tmp_path, ROWS, DESCRIBED)
    (tmp_path / ANNOTATIONS).write_text("ImageID,Source,LabelName,Confidence\n")
    with pytest.raises(ValueError, match="has no column ImageId, X, Y, Label"):
        OpenImagesPoints(tmp_path)


def test_other_descriptions(tmp_path: Path) -> None:
    write_open_images(tmp_path, ROWS, DESCRIBED)
    (tmp_path / "oidv7-class-descriptions.csv").write_text("/m/01yrx\n")
    with pytest.raises(
        ValueError, match=r"oidv7-class-descriptions\.csv, line 1 does not have two columns"
    ):
        OpenImagesPoints(tmp_path)


def test_images_missing(tmp_path: Path) -> None:
    write_open_images(tmp_path, ROWS, DESCRIBED)
    (tmp_path / "validation" / "bb22.jpg").unlink()
    (tmp_path / "validation" / "cc33.jpg").unlink()  # of which nothing is known
    with pytest.raises(FileNotFoundError, match=r"1 of 3 files .* such as .*bb22\.jpg"):
        OpenImagesPoints(tmp_path)


@pytest.mark.parametrize("lost", [ANNOTATIONS, "oidv7-class-descriptions.csv"])
def test_a_file_missing(tmp_path: Path, lost: str) -> None:
    write_open_images(tmp_path, ROWS, DESCRIBED)
    (tmp_path / lost).unlink()
    with pytest.raises(FileNotFoundError, match=rf"missing: {lost}\)"):
        OpenImagesPoints(tmp_path)


def test_other_split(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match="split of Open Images V7 must be one of 'train', 'validation', 'test', got 'val'",
    ):
        OpenImagesPoints(tmp_path, "val")


def test_goes_to_workers(tmp_path: Path) -> None:
    write_open_images(tmp_path, ROWS, DESCRIBED)
    data = OpenImagesPoints(tmp_path)
    again = pickle.loads(pickle.dumps(data))
    assert [s.target for s in again] == [s.target for s in data]
