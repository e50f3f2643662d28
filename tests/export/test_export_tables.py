"""Images in tables: Parquet files and data sets that Hugging Face's library saved."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip_surgery.export import load_maps
from captum_clip_surgery.export._sources import Source, open_source
from captum_clip_surgery.export._tables import load_shards
from tests._helpers.decoded import samples
from tests._helpers.written_export import encoded, export, scene, surgery

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

COLOURS = [(10 * number, 255 - 10 * number, 100) for number in range(8)]
FILES = [encoded(Image.new("RGB", (6, 4), colour)) for colour in COLOURS]


def read(source: Source) -> dict[str, Any]:
    """Names of a collection's images, each with the color of its first pixel or the reason."""
    found: dict[str, Any] = {}
    for number, piece in enumerate(source.pieces):
        assert piece.number == number
        assert pickle.loads(pickle.dumps(piece)) == piece
        for sample in samples(piece):
            assert sample.name not in found
            picture = sample.picture
            found[sample.name] = picture.getpixel((0, 0)) if picture else sample.reason
    return found


def structs(files: list[bytes | None]) -> Any:
    """As Hugging Face writes images."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.array([{"bytes": content, "path": "x.png"} for content in files], kind)


def write(path: Path, columns: dict[str, Any], rows: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


@pytest.mark.parametrize("kind", ["structs", "bytes", "large bytes"])
@pytest.mark.parametrize("given", ["folder", "stars", "braces"])
def test_parquet_files(tmp_path: Path, kind: str, given: str) -> None:
    columns = {
        "structs": structs,
        "bytes": lambda files: pa.array(files, pa.binary()),
        "large bytes": lambda files: pa.array(files, pa.large_binary()),
    }
    labels = {"label": list(range(5)), "text": ["a"] * 5}
    write(tmp_path / "in/train-0.parquet", {"image": columns[kind](FILES[:5])} | labels)
    write(tmp_path / "in/train-1.parquet", {"image": columns[kind](FILES[5:])})
    end = {"folder": "", "stars": "/*.parquet", "braces": "/train-{0..1}.parquet"}[given]
    source = open_source(f"{tmp_path}/in{end}", shard_size=3)
    # Row groups of 2, 2 and 1 rows, and of 2 and 1, are not divided.
    assert [piece.images for piece in source.pieces] == [4, 1, 3]
    names = [f"train-0/{row:06}" for row in range(5)] + [f"train-1/{row:06}" for row in range(3)]
    assert read(source) == dict(zip(names, COLOURS, strict=True))


def test_columns_of_paths(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(FILES[number])
    write(tmp_path / "table.parquet", {"path": ["0.png", "2.png", "gone.png"], "text": list("abc")})
    found = read(open_source(tmp_path / "table.parquet"))
    assert list(found) == ["0.png", "2.png", "gone.png"]
    assert (found["0.png"], found["2.png"]) == (COLOURS[0], COLOURS[2])
    assert "no image file at" in found["gone.png"]


def test_which_column_holds_the_images(tmp_path: Path) -> None:
    both = {"left": structs(FILES[:2]), "right": structs(FILES[2:4])}
    path = write(tmp_path / "a.parquet", both)
    with pytest.raises(ValueError, match=r"columns left, right; expected one of images.*column="):
        open_source(path)
    assert list(read(open_source(path, column="right")).values()) == COLOURS[2:4]
    with pytest.raises(ValueError, match="got 'middle'"):
        open_source(path, column="middle")
    write(path, both | {"image": structs(FILES[4:6])})
    assert list(read(open_source(path)).values()) == COLOURS[4:6]
    write(path, {"url": ["https://example.org/x.png"], "n": [1]})
    with pytest.raises(ValueError, match="columns url, n; expected one of images"):
        open_source(path)


def test_rows_without_a_readable_image_are_listed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(FILES[0])
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [{"bytes": None, "path": str(secret)}, None, {"bytes": b"no picture", "path": ""}]
    write(tmp_path / "in/a.parquet", {"image": pa.array([*cells, {"bytes": FILES[1]}], kind)})
    found = list(read(open_source(tmp_path / "in")).values())
    assert ["no bytes" in found[0], "no bytes" in found[1]] == [True, True]
    assert "a/000002 cannot be read as an image" in found[2]
    assert found[3] == COLOURS[1]


def test_a_damaged_file_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    files = [encoded(Image.fromarray(image)) for image in noise]
    path = tmp_path / "in/a.parquet"
    path.parent.mkdir()
    table = pa.table({"image": structs(files)})
    # Checksums are of data pages, not of dictionaries or statistics.
    options = {"write_page_checksum": True, "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, path, row_group_size=2, compression="none", **options)
    content = bytearray(path.read_bytes())
    content[content.index(files[3]) + 100] ^= 255
    path.write_bytes(content)
    first, second, third = open_source(path, 2).pieces
    assert [sample.reason for sample in samples(first)] == ["", ""]
    (sample,) = samples(second)
    assert (sample.name, sample.picture) == ("a.parquet", None)
    assert "read no further than row 2" in sample.reason
    assert [sample.reason for sample in samples(third)] == ["", ""]
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        open_source(path)


def test_saved_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.open(io.BytesIO(content)) for content in FILES[:5]]
    table = datasets.Dataset.from_dict(
        {"image": images, "label": [0] * 5},
        datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(
        str(tmp_path / "all"), num_shards={"train": 2, "test": 1}
    )
    with pytest.raises(ValueError, match=r"several splits; .*/all/test, .*/all/train"):
        open_source(tmp_path / "all")
    source = open_source(tmp_path / "all/train", shard_size=2)
    assert [piece.images for piece in source.pieces] == [2, 1, 2]
    assert read(source) == {f"{row:06}": COLOURS[row] for row in range(5)}
    assert source.kind == "saved data set"
    assert len(source.states) == 2
    state = tmp_path / "all/train/state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps(content | {"_data_files": [{"filename": "../x.arrow"}]}))
    with pytest.raises(ValueError, match=r"names '\.\./x\.arrow', not in its folder"):
        open_source(tmp_path / "all/train")


def test_folders_of_several_kinds(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": structs(FILES[:1])})
    (tmp_path / "photo.MPO").write_bytes(FILES[0])
    with pytest.raises(ValueError, match=r"both pictures and Parquet files; give .*\*\.parquet"):
        open_source(tmp_path)
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "b.jxl").write_bytes(b"\xff\x0a")
    found = read(open_source(tmp_path))
    assert found["photo.MPO"] == COLOURS[0]
    assert "JPEG XL is not read" in found["b.jxl"]
    with pytest.raises(FileNotFoundError, match="no Parquet file at"):
        open_source(tmp_path / "gone-*.parquet")
    (tmp_path / "list.txt").write_bytes("a.png\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"list\.txt is not UTF-8 text but UTF-16"):
        open_source(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"b.jxl\ncaf\xe9.png\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 2 is not UTF-8 text"):
        open_source(tmp_path / "list.txt")
    (tmp_path / b"caf\xe9.png".decode(errors="surrogateescape")).write_bytes(FILES[0])
    assert list(read(open_source(tmp_path / "list.txt")).values())[1] == COLOURS[0]


def test_maps_of_a_table_are_those_of_its_files(tmp_path: Path) -> None:
    """Also where reading is fast, up to rounding."""
    scenes = [scene(index) for index in range(3)]
    columns = {"left": structs(FILES[:3]), "right": structs([encoded(image) for image in scenes])}
    write(tmp_path / "in/a.parquet", columns)
    clip = surgery().forward_func
    with torch.no_grad():
        wanted = surgery().attribute_all(clip.preprocess(scenes, 32)).numpy()
    both = []
    for fast in (False, True):
        output = tmp_path / f"out {fast}"
        export(tmp_path / "in", output, workers=1, column="right", fast=fast, size=32)
        maps = load_maps(output)
        assert list(maps) == ["a/000000", "a/000001", "a/000002"]
        assert maps.size("a/000000") == (64, 64)
        found = np.stack([maps[name] for name in maps]).astype(float)
        both.append(found)
        pieces = open_source(tmp_path / "in", column="right", shard_size=4).pieces
        assert load_shards(output / "tables.json") == pieces
        moved = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert moved < (0.01 if fast else 1e-3)
    assert not np.array_equal(*both)
