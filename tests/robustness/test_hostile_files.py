"""Archives, exports, statistics and protocols made to harm: nothing outside of them is touched, and
each refusal names the file."""

from __future__ import annotations

import json
import os
import sqlite3
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from captum_clip_surgery._utils.pieces import Pieces, start_run
from captum_clip_surgery.evaluation import Protocol, _results
from captum_clip_surgery.evaluation._evaluators import SegmentationEvaluator
from captum_clip_surgery.evaluation._store import Table
from captum_clip_surgery.export import _sources, load_maps
from captum_clip_surgery.export._sources import open_source
from captum_clip_surgery.models.text._cache import FILE, TextCache
from tests._helpers import decoded
from tests._helpers.written_export import encoded, export, scene, write_tar

DEEP = "[" * 100_000


# --- collections ---------------------------------------------------------------------------------

PNG = encoded(scene(0))


def member(name: str, kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, target, size
    return found


def samples(source: Path) -> dict[str, str]:
    """Why each image cannot be read; nothing where it can."""
    return {
        s.name: s.reason for piece in open_source(source).pieces for s in decoded.samples(piece)
    }


@pytest.mark.parametrize(
    "name", ["/etc/evil", "../../up", "a/../b", "./c", "//d", "x" * 5000, "y/" * 500 + "z", "a\nb"]
)
def test_names_in_archives_lead_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in/t.tar", {f"{name}.png": PNG})
    export(tmp_path / "in", tmp_path / "out")
    maps = load_maps(tmp_path / "out")
    assert list(maps) == [name]
    assert maps[name].shape == (3, 4, 4)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    assert [path.name for path in (tmp_path / "out/data").iterdir()] == ["000000.parquet"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_archives_are_not_followed(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.addfile(member("l.png", kind, "/etc/passwd"))
    assert samples(tmp_path / "t.tar") == {"t.tar": "'l.png' is a link, which is not followed"}


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_devices_in_archives_are_no_images(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.addfile(member("d.png", kind))
    assert samples(tmp_path / "t.tar") == {}


def test_sizes_in_archives_are_not_believed(tmp_path: Path) -> None:
    header = member("big.png", tarfile.REGTYPE, size=10**10).tobuf()
    (tmp_path / "t.tar").write_bytes(header + bytes(512))
    told = samples(tmp_path / "t.tar")
    assert told == {"t.tar": "read no further: ValueError: 'big.png' says it has 10000000000 bytes"}
    assert _sources.MOST < 10**10


LISTS = {
    "absolute": ("/etc/passwd", "/etc/passwd cannot be read as an image"),
    "up": ("../gone.png", "no image file at"), "url": ("http://x/y.png", "no image file at"),
    "home": ("~/x.png", "no image file at"), "device": ("/dev/zero", "no image file at"),
    "long": ("x" * 5000 + ".png", "File name too long"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_other_things(tmp_path: Path, kind: str) -> None:
    name, why = LISTS[kind]
    (tmp_path / "list.txt").write_text(name)
    assert why in samples(tmp_path / "list.txt")[name]


def test_lists_with_a_byte_order_mark_and_returns(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfx.png\r\n")
    assert samples(tmp_path / "list.txt") == {"x.png": ""}


def test_folders_of_links(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "passwd.png").symlink_to("/etc/passwd")
    (tmp_path / "dead.png").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    found = samples(tmp_path)
    assert "cannot be read as an image" in found.pop("passwd.png")
    assert all("no image file at" in why for why in found.values())
    assert set(found) == {"dead.png", "pipe.png"}


# --- exports -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exported")
    (root / "in").mkdir()
    (root / "in/x.png").write_bytes(PNG)
    export(root / "in", root / "out")
    return root / "out"


NONE = r"run.json (does not describe an export|is damaged)"
DESCRIPTIONS: dict[str, Any] = {
    "empty": "", "null": "null", "list": "[]", "deep": DEEP, "nothing": "{}",
    "long number": '{"model":' + "9" * 5000 + "}", "model list": {"model": []},
    "texts text": {"model": {"texts": "dog"}}, "texts numbers": {"model": {"texts": [1]}},
    "no source": {"source": None},
}  # fmt: skip


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_absurd_descriptions_of_exports(exported: Path, kind: str) -> None:
    content = DESCRIPTIONS[kind]
    path = exported / "run.json"
    before = path.read_text()
    whole = content if isinstance(content, str) else json.dumps(json.loads(before) | content)
    if kind == "no source":
        (exported / "listing.parquet").rename(exported / "listing")
    try:
        path.write_text(whole)
        with pytest.raises(ValueError, match=NONE) as caught:
            load_maps(exported)
        assert len(str(caught.value)) < 600
    finally:
        path.write_text(before)
        if kind == "no source":
            (exported / "listing").rename(exported / "listing.parquet")


@pytest.mark.parametrize(
    ("column", "value"),
    [("maps", b"abc"), ("maps_shape", [3, -1, 4]), ("maps_shape", [3, 4, 5]),
     ("maps_shape", [10**9, 10**9, 4]), ("maps_shape", None), ("top_texts", ["dog"] * 9)],
)  # fmt: skip
def test_absurd_rows_of_exports(exported: Path, column: str, value: Any) -> None:
    """With checksums that are right, as only somebody can write them who means harm."""
    pieces = Pieces(exported / "data", 1)
    before = pieces.read(0)
    index = before.schema.get_field_index(column)
    field = before.schema.field(index)
    try:
        pieces.write(0, before.set_column(index, field, pa.array([value], field.type)))
        maps = load_maps(exported)
        with pytest.raises(ValueError, match=r"000000\.parquet is damaged") as caught:
            [maps["x.png"], maps.top("x.png"), maps.size("x.png"), list(maps.batches())]
        assert len(str(caught.value)) < 600
    finally:
        pieces.write(0, before)


@pytest.mark.parametrize("content", ["", "[", DEEP, "9" * 5000, "\0"], ids=lambda c: c[:5])
def test_absurd_descriptions_of_runs(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"run.json is damaged \(.*settings of the run are unknown"
    ):
        start_run(tmp_path, {"a": 1})


SOUND = {
    "image": ["a"],
    "digest": ["b"],
    "error": pa.array([None], pa.string()),
    "label": pa.array([1], pa.int32()),
    "class": ["cat"],
    "correct": [1.0],
    "predicted": [1.0],
    "labeled": [1.0],
}
STATISTICS = {
    "no image": {"image": None},
    "no statistics": {"labeled": None},
    "a class beyond all": {"label": pa.array([2], pa.int32())},
    "a class below all": {"label": pa.array([-7], pa.int32())},
    "a class that is a text": {"label": ["cat"]},
    "texts": {"correct": ["x"]},
    "lists": {"correct": [[1.0, 2.0]]},
}


@pytest.mark.parametrize("kind", STATISTICS)
def test_absurd_statistics_are_not_used(tmp_path: Path, kind: str) -> None:
    columns = {name: values for name, values in (SOUND | STATISTICS[kind]).items() if values}
    pieces = Pieces(tmp_path, 1)
    pieces.write(0, pa.table(columns))
    table = Table(SegmentationEvaluator.columns, ["dog", "cat"], pieces)
    with pytest.warns(UserWarning, match=r"000000\.parquet cannot be used .* measured again"):
        table.load()
    assert table.rows == {}
    pieces.write(0, pa.table(SOUND))
    table.load()
    assert table.rows["a"].stats.tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("value", [0, 0x80, 0xFF])
def test_damage_at_any_byte_of_a_description(tmp_path: Path, value: int) -> None:
    """SQLite tells of it in many ways, of which some are no errors of its own."""
    feature = torch.ones(3)
    TextCache(tmp_path).put({b"k": feature})
    path = tmp_path / FILE
    sound = path.read_bytes()
    told = set()
    for place in range(3900, 4096):
        path.write_bytes(sound[:place] + bytes([value]) + sound[place + 1 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = TextCache(tmp_path).get([b"k"])
        assert not found or torch.equal(found[b"k"], feature)
        told |= {str(warning.message) for warning in caught}
    assert len(told) > 10
    assert all(str(path) in message for message in told)


@pytest.mark.parametrize("error", [MemoryError(), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x")])
def test_what_sqlite_says_of_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Some damage it takes for a lack of memory."""
    TextCache(tmp_path)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(sqlite3, "connect", fail)
    with pytest.warns(UserWarning, match=f"{FILE} cannot be used .* Delete the file if it is dam"):
        assert TextCache(tmp_path).get([b"k"]) == {}


RESULT = {"measures": {}, "intervals": {}, "seconds": 1.0, "peak_bytes": None}
RESULTS: dict[str, Any] = {
    "empty": "", "deep": DEEP, "bytes": b"\xff", "list": [], "nothing": {},
    "text": {"methods": "x"},
    "number": {"methods": {"CLIP": 3}}, "no measures": {"methods": {"CLIP": {}}},
    "words": {"methods": {"CLIP": RESULT | {"measures": {"pointing": "x"}}}},
    "half": {"methods": {"CLIP": RESULT | {"intervals": {"pointing": [1]}}}},
    "long": {"methods": {"CLIP": {"x" * 9000: 1}}},
}  # fmt: skip


@pytest.mark.parametrize("kind", RESULTS)
def test_absurd_results(tmp_path: Path, kind: str) -> None:
    content = RESULTS[kind]
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"results.json holds no results: ") as caught:
        _results.read_results(tmp_path)
    assert len(str(caught.value)) < 600


# --- protocols -----------------------------------------------------------------------------------

SOURCE = 'source = "x"\n'
PROTOCOLS = {
    "empty": ("", "source must be a text"), "number": ("source = 3", "source must be a text"),
    "open": ("[", "Invalid"), "zero byte": ('source = "\0"', "Illegal character"),
    "deep": (SOURCE + "a = " + "[" * 50_000, "maximum recursion|no closing|unclosed"),
    "long number": (SOURCE + "[points]\nsize = " + "9" * 5000, "Exceeds the limit"),
    "size of 10^18": (SOURCE + "[points]\nsize = 1000000000000000000", "from 1 to 16384, got 10"),
    "size NaN": (SOURCE + "[points]\nsize = nan", "must be a whole number of pixels"),
    "size list": (SOURCE + "[points]\nsize = [1]", "must be a whole number of pixels"),
    "unknown key": (SOURCE + "[points]\nevil = 1", "points has the unknown key 'evil'"),
    "unknown task": (SOURCE + "[evil]\nsize = 1", "the file has the unknown key 'evil'"),
    "task text": (SOURCE + 'points = "x"', "points must be a table"),
    "unknown data": (SOURCE + "[points.evil]\nsize = 1", "points has a table for 'evil'"),
    "templates": (SOURCE + 'templates = ["{0.__class__}"]\n[points]', "must be one of surgery"),
    "classes above": (SOURCE + '[points]\nclasses = "../../x"', "classes must be one of"),
    "classes list": (SOURCE + '[points]\nclasses = ["x"]', "classes must be one of"),
    "background NaN": (SOURCE + "[segmentation]\nbackground = nan", "must be a number above 0"),
    "background date": (SOURCE + "[segmentation]\nbackground = 1979-05-27", "must be a num"),
    "scale infinity": (SOURCE + "[segmentation]\nscale = inf", "must be a number above 0"),
    "twice": (SOURCE + SOURCE, "Cannot overwrite a value"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_absurd_protocols(tmp_path: Path, kind: str) -> None:
    content, message = PROTOCOLS[kind]
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(ValueError, match=f"protocol .*mine.toml: .*{message}"):
        Protocol.load(tmp_path / "mine.toml")


@pytest.mark.parametrize("name", ["../../etc/passwd", "\0", "", "paper\0"])
def test_protocols_that_are_not_there(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="there is no protocol"):
        Protocol.load(name)
