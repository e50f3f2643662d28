"""Annotations made to harm the programs that read them: COCO's outlines, MATLAB's matrices, lists,
tables. Each is refused by its name and place, in little memory, in a process that goes on."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coder
from scipy import io

from captum_clip_surgery._utils.files import read_csv, read_json
from captum_clip_surgery.cli._model import read_lines
from captum_clip_surgery.datasets import (
    Classes,
    Coco,
    CocoObject,
    CocoTags,
    Labels,
    Masks,
    PascalContext,
    PascalVocTags,
    open_dataset,
    open_labels,
)
from captum_clip_surgery.datasets._outlines import decode_outlines, encode_outline
from tests._helpers.limited import outcome
from tests._helpers.written_coco import (
    HEIGHT,
    ID,
    PICTURES,
    WIDTH,
    box,
    compressed,
    runs,
    write_coco,
)
from tests._helpers.written_context import CONTEXT_IDS, label_lines, write_context
from tests._helpers.written_nus import write_nus
from tests._helpers.written_open_images import write_open_images
from tests._helpers.written_voc import write_jpeg, write_list, write_voc_tags

DEEP = "[" * 100_000
NAN, INF = float("nan"), float("inf")
TRIANGLE = [1, 1, 8, 1, 8, 9]


def instances(root: Path, **changes: Any) -> Path:
    """One dog, with values of its annotation changed."""
    return write_coco(root, {1: [{"category_id": ID["dog"], "segmentation": [TRIANGLE]} | changes]})


def rle(counts: Any) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": counts}


# --- COCO ----------------------------------------------------------------------------------------

FAR = "annotation 1 has no readable outline: a polygon has the point"
KIND = "annotation 1 has no readable outline: a polygon is"
RUNS = "annotation 1 has no readable outline: its runs are"
ZIGZAG = [float(v) for i in range(1000) for v in ((i % 2) * WIDTH, (i % 2) * HEIGHT)]
OUTLINES: dict[str, tuple[Any, str]] = {
    "NaN": ([[*TRIANGLE, NAN, 3]], FAR),
    "infinity": ([[*TRIANGLE, 3, INF]], FAR),
    "-infinity": ([[-INF, *TRIANGLE, 3]], FAR),
    "1e7": ([[*TRIANGLE, 1e7, 3]], FAR),
    "1e9": ([[*TRIANGLE, 3, 1e9]], FAR),
    "-1e9": ([[*TRIANGLE, 3, -1e9]], FAR),
    "1e308": ([[*TRIANGLE, 1e308, -1e308]], FAR),
    "10^400": ([[*TRIANGLE, 10**400, 3]], FAR),
    "in the second polygon": ([TRIANGLE, [*TRIANGLE, 1e9, 3]], FAR),
    "text": ([[*TRIANGLE, "1e9", "3"]], KIND),
    "points": ([[[1, 1], [8, 1], [8, 9], [1, 9], [1, 8], [1, 7]]], KIND),
    "truth values": ([[True] * 6], KIND),
    "a flat list": (TRIANGLE, KIND),
    "runs in a list": ([rle([384])], KIND),
    "to and fro": ([ZIGZAG], "pixels long, expected at most 100 times the border"),
    "odd": ([[*TRIANGLE, 9]], "a polygon of 7 numbers, expected x, y of 3 points"),
    "number": (3, "it is 3, expected polygons"),
    "nothing": (None, "it is None, expected polygons"),
    "no size": ({"counts": [384]}, "expected polygons, or a size and counts"),
    "another size": ({"size": [2**16, 2**16], "counts": [2**32]}, r"has size \[65536, 65536\]"),
    "size of text": ({"size": "xx", "counts": [384]}, "it has size 'xx'"),
    "too short": (rle([383]), "its runs have 383 pixels, expected 16 x 24"),
    "too long": (rle([384, 1]), "its runs have 385 pixels, expected 16 x 24"),
    "10^30": (rle([384, 10**30]), "its runs have 1000"),
    "negative": (rle([400, -16]), RUNS),
    "fractions": (rle([383.5, 0.5]), RUNS),
    "NaN runs": (rle([NAN]), RUNS),
    "nested runs": (rle([[384]]), RUNS),
    "table of runs": (rle({"0": 384}), RUNS),
    "odd byte": (rle("\x00P<"), RUNS),
    "another alphabet": (rle("écran"), RUNS),
    "beyond the alphabet": (rle("p" * 9), RUNS),
    "open end": (rle("P<P"), "which ends within a number"),
    "no end": (rle("o" * 10_000), RUNS),
    "compressed, too long": (rle("P<1"), "its runs have 385 pixels"),
    "compressed, negative": (rle("`=P`O"), RUNS),
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTLINES)
def test_outlines_that_do_not_fit(tmp_path: Path, kind: str) -> None:
    segmentation, why = OUTLINES[kind]
    path = instances(tmp_path, segmentation=segmentation)
    for reader in (Coco, CocoObject):
        told = outcome(lambda reader=reader: reader(tmp_path))  # type: ignore[misc]
        assert re.match(f"ValueError: {re.escape(str(path))}: .*{why}", told), told
        assert "annotation 1 has no readable outline" in told
        assert len(told) < 600


@pytest.mark.parametrize("reader", [Coco, CocoObject])
@pytest.mark.parametrize("side", [200_000, 2**31, 10**30])
@pytest.mark.parametrize("kind", ["polygon", "runs"])
def test_stated_sizes_are_held_to_the_image(
    tmp_path: Path, kind: str, side: int, reader: Callable[[Path], Any]
) -> None:
    path = instances(tmp_path)
    content = json.loads(path.read_text())
    content["images"][0] |= {"width": side, "height": side}
    if kind == "runs":
        whole = {"size": [side, side], "counts": [0, side**2]}
        content["annotations"][0]["segmentation"] = whole
    path.write_text(json.dumps(content))
    told = outcome(lambda: reader(tmp_path)[0])
    assert told.startswith("ValueError: ")
    assert f"000000000001.jpg is 24 x 16 pixels, its annotations are for {side} x {side}" in told


def test_outlines_of_an_image_of_one_long_line() -> None:
    """A picture of 350 KB can be 178 million pixels high; a triangle there took 13 GB to draw."""
    high = 178_000_000
    with pytest.raises(ValueError, match=r"its outline is .* pixels long, expected .* 4,194,304"):
        encode_outline([[0, 0, 0, high - 1, 1, high - 1]], high, 1)
    assert encode_outline([[0, 0, 0, 1000, 1, 1000]], high, 1)[0]


@pytest.mark.parametrize("side", [0, -1, 24.0, NAN, "24", None, [24], True])
def test_stated_sizes_that_are_none(tmp_path: Path, side: Any) -> None:
    path = instances(tmp_path)
    content = json.loads(path.read_text())
    content["images"][0]["width"] = side
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"json: image 1 has the size .* x 16, expected whole num"):
        CocoTags(tmp_path, year=2017)


def test_outlines_of_nothing_are_skipped_and_counted(tmp_path: Path) -> None:
    """The rest of the file is read: an annotator's slip costs its own outline."""
    empty = [[], [[]], [[1, 1]], [[1, 1, 2, 2]], rle([]), rle(""), [TRIANGLE, [1, 1, 2, 2]]]
    slips = [{"category_id": ID["cat"], "segmentation": one} for one in empty]
    write_coco(tmp_path, {**PICTURES, 1: slips, 2: slips[:6]})
    with pytest.warns(
        UserWarning, match=r"json: outlines skipped .*: 13, the first of annotation \d"
    ):
        data = Coco(tmp_path)
    assert [int(name) for name in data.names] == [1, 139, 285, 776]
    truth = data[0].target
    assert isinstance(truth, Masks)
    (found,) = truth.masks.values()
    theirs = coder.frPyObjects([TRIANGLE], HEIGHT, WIDTH)
    np.testing.assert_array_equal(found, coder.decode(theirs)[..., 0].astype(bool))


def test_runs_are_pycocotools_own() -> None:
    generator = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 300), (90, 65)):
        for share in (0.01, 0.5, 1.0):
            mask = generator.random((height, width)) < share
            mask[0, 0] = True
            theirs = compressed("dog", mask)["segmentation"]
            for segmentation in (theirs, runs("dog", mask)["segmentation"]):
                outline, skipped = encode_outline(segmentation, height, width)
                assert outline.decode() == theirs["counts"]
                assert not skipped
                np.testing.assert_array_equal(decode_outlines([outline] * 2, height, width), mask)


@pytest.mark.parametrize(
    "counts", [[0, 0, 0, 384], [0, 100, 0, 284], [384, 0, 0], [100, 0, 0, 0, 0, 284, 0], "0P<0"]
)
def test_empty_runs_inside_are_joined(counts: Any) -> None:
    """pycocotools, which merges outlines with such, reads past the end of its memory."""
    numbers = [0, 384, 0] if isinstance(counts, str) else counts
    values = np.repeat(np.arange(len(numbers)) % 2, numbers).reshape(WIDTH, HEIGHT).T.astype(bool)
    outline, _ = encode_outline(rle(counts), HEIGHT, WIDTH)
    other, _ = encode_outline(
        runs("dog", box(HEIGHT, WIDTH, 0, 0, 1, 1))["segmentation"], HEIGHT, WIDTH
    )
    expected = values | box(HEIGHT, WIDTH, 0, 0, 1, 1)
    found = decode_outlines([one for one in (outline, outline, other) if one], HEIGHT, WIDTH)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [2, -1, "0", None, NAN, [], 1.0])
def test_crowds_are_0_or_1(tmp_path: Path, value: Any) -> None:
    instances(tmp_path, iscrowd=value)
    with pytest.raises(ValueError, match=r"annotation 1 has iscrowd .*, expected 0 or 1"):
        CocoTags(tmp_path, year=2017)


LISTED: dict[str, tuple[str, Any, str]] = {
    "an image twice": ("images", lambda image: [image, image], "lists the image id 1 2 times"),
    "a file twice": ("images", lambda image: [image, image | {"id": 2}], "lists the file_name '0"),
    "a file that is a number": ("images", lambda image: [image | {"file_name": 3}], "file_name 3"),
    "a file above": ("images", lambda image: [image | {"file_name": "../x.jpg"}], "/../x.jpg"),
    "an id that is a list": ("images", lambda image: [image | {"id": [1]}], "not in COCO's format"),
    "a category of no kind": (
        "annotations", lambda one: [one | {"category_id": [1]}], "not in COCO's format"),
    "a category NaN": ("annotations", lambda one: [one | {"category_id": NAN}], "has category nan"),
    "an image of no kind": ("annotations", lambda one: [one | {"image_id": {}}], "not in COCO's"),
    "no annotations": ("annotations", lambda one: None, "not in COCO's format"),
    "a text": ("annotations", lambda one: "xyz", "not in COCO's format"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LISTED)
def test_what_a_file_lists(tmp_path: Path, kind: str) -> None:
    key, change, why = LISTED[kind]
    path = instances(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: change(content[key][0])}))
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(why)) as caught:
        CocoTags(tmp_path, year=2017)
    assert str(tmp_path) in str(caught.value)


def test_categories_of_one_id(tmp_path: Path) -> None:
    path = instances(tmp_path)
    content = json.loads(path.read_text())
    content["categories"].sort(key=lambda category: category["id"])
    content["categories"][1]["id"] = content["categories"][0]["id"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lists the category id 1 2 times"):
        CocoTags(tmp_path, year=2017)


JSON = {
    "deep": (DEEP, "nested too deeply"), "deep table": ('{"a":' * 100_000, "nested too deeply"),
    "cut": ('{\n"images": [', "line 2 column 12"), "empty": ("", "line 1 column 1"),
    "long number": ("9" * 5000, "Exceeds the limit"), "Latin-1": ('{\n"é"', "line 2 is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("kind", JSON)
def test_json_that_is_none(tmp_path: Path, kind: str) -> None:
    content, why = JSON[kind]
    path = instances(tmp_path)
    path.write_bytes(content.encode("latin-1"))
    for reader in (Coco, lambda root: CocoTags(root, year=2017), lambda _: read_json(path)):
        with pytest.raises(ValueError, match=f"{path.name}.* .*{why}"):
            reader(tmp_path)


# --- MATLAB --------------------------------------------------------------------------------------


@pytest.fixture
def context(tmp_path: Path) -> tuple[PascalContext, Path]:
    folder = write_context(tmp_path, {"a": np.ones((2, 4), np.uint16)})
    return PascalContext(tmp_path), folder / "trainval" / "a.mat"


def matrix_of_zeros(path: Path, stated: tuple[int, int], megabytes: int) -> None:
    """A compressed LabelMap of so many megabytes, that says it is of another size."""
    io.savemat(path, {"LabelMap": np.zeros((3, 5), np.uint16)})
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<ii", 3, 5))
    content[at : at + 8] = struct.pack("<ii", *stated)
    size = megabytes * 2**20
    content[132:136] = struct.pack("<I", len(content) - 136 + size)
    place = content.index(struct.pack("<II", 4, 30))  # uint16, bytes
    content[place + 4 : place + 8] = struct.pack("<I", size)
    stream = zlib.compressobj(9)
    parts = [stream.compress(bytes(content[128 : place + 8]))]
    parts += [stream.compress(bytes(2**20)) for _ in range(megabytes)]
    packed = b"".join([*parts, stream.flush()])
    path.write_bytes(bytes(content[:128]) + struct.pack("<II", 15, len(packed)) + packed)


@pytest.mark.parametrize(
    ("stated", "why"),
    [((2**12, 2**15), "a.mat is 32768 x 4096 pixels, its image"), ((2, 4), "holds more bytes")],
)
def test_matrices_are_held_to_the_image_before_they_are_decompressed(
    context: tuple[PascalContext, Path], stated: tuple[int, int], why: str
) -> None:
    data, path = context
    matrix_of_zeros(path, stated, 256)
    assert path.stat().st_size < 300_000
    told = outcome(lambda: data[0], megabytes=64)
    assert told.startswith("ValueError: ")
    assert why in told


def nested(num_blocks: int) -> np.ndarray:
    cell = np.zeros((1, 1), np.uint16)
    for _ in range(num_blocks):
        outer = np.empty((1, 1), object)
        outer[0, 0] = cell
        cell = outer
    return cell


MATRICES: dict[str, tuple[Any, str]] = {
    "cells in cells": (nested(300), "found cell"),
    "structure": ({"LabelMap": np.ones((2, 4))}, "found struct"),
    "text": ("labels", "found char"),
    "NaN": (np.full((2, 4), NAN), "values other than 32-bit integers"),
    "infinity": (np.full((2, 4), INF), "values other than 32-bit integers"),
    "fractions": (np.full((2, 4), 1.5), "values other than 32-bit integers"),
    "complex": (np.full((2, 4), 1 + 1j), "values other than 32-bit integers"),
    "10^12": (np.full((2, 4), 1e12), "values other than 32-bit integers"),
    "negative": (np.full((2, 4), -1), "a.mat holds -1, expected only 0..459"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast", "ignore:Casting complex")
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("compress", [False, True])
def test_matrices_of_something_else(
    context: tuple[PascalContext, Path], kind: str, compress: bool
) -> None:
    content, why = MATRICES[kind]
    data, path = context
    io.savemat(path, {"LabelMap": content}, do_compression=compress)
    with pytest.raises(ValueError, match=re.escape(why)):
        data[0]


@pytest.mark.parametrize("form", ["4", "5"])
@pytest.mark.parametrize("kind", [np.uint8, np.float64])
def test_matrices_in_other_forms_are_read(
    context: tuple[PascalContext, Path], form: str, kind: type
) -> None:
    data, path = context
    stored = np.array([[0, 2, 2, 0], [2, 0, 0, 2]]).astype(kind)
    io.savemat(path, {"other": np.ones((3, 3)), "LabelMap": stored}, format=form)
    truth = data[0].target
    assert isinstance(truth, Labels)
    assert (truth.labels == np.where(stored, 1 + CONTEXT_IDS.index(2), 0)).all()


@pytest.mark.parametrize("seed", range(4))
def test_damaged_matrices_are_read_or_refused(
    context: tuple[PascalContext, Path], seed: int
) -> None:
    data, path = context
    io.savemat(path, {"LabelMap": np.ones((2, 4), np.uint16)}, do_compression=bool(seed % 2))
    sound = path.read_bytes()
    generator = np.random.default_rng(seed)

    def read_damaged() -> set[bool]:
        told = set()
        for _ in range(150):
            content = bytearray(sound)
            for place in generator.integers(120, len(content), 3):
                content[place] = generator.integers(256)
            path.write_bytes(content)
            try:
                data[0]
            except ValueError as error:
                told.add("a.mat" in str(error))
        return told

    assert outcome(read_damaged).splitlines()[0] == "returned {True}"


# --- lists and tables ----------------------------------------------------------------------------

LINES: dict[str, tuple[str, str]] = {
    "word": ("x: person", "line 1 is 'x: person', expected an id of 0 to 65535 and a name"),
    "no id": (": person", "line 1 is ': person', expected an id"),
    "negative": ("-5: person", "line 1 is '-5: person', expected an id"),
    "fraction": ("1.5: person", "line 1 is '1.5: person', expected an id"),
    "10^12": (f"{10**12}: person", "line 1 is '1000000000000: person', expected an id"),
    "99999": ("99999: person", "line 1 is '99999: person', expected an id"),
    "5,000 digits": ("9" * 5000 + ": person", "line 1 is '999.*, expected an id"),
    "another script": ("²: person", "line 1 is '²: person', expected an id"),
    "a name twice": ("460: person", "person', but another line has the same id or name"),
    "an id twice": (f"{ID['dog']}: x\n1: dog", "line .*, but another line has the same id or name"),
}


@pytest.mark.parametrize("kind", LINES)
def test_odd_lines_of_labels(tmp_path: Path, kind: str) -> None:
    folder = write_context(tmp_path, {"a": np.ones((2, 4), np.uint16)})
    line, why = LINES[kind]
    write_list(folder / "labels.txt", [*line.split("\n"), *label_lines()])
    with pytest.raises(ValueError, match=rf"labels\.txt, .*{why}") as caught:
        PascalContext(tmp_path)
    assert len(str(caught.value)) < 400


def test_long_fields_of_tables(tmp_path: Path) -> None:
    row = ("a", 0.5, 0.5, "/m/01yrx", "yes", "x" * 200_000)
    write_open_images(tmp_path, [row], {"/m/01yrx": "Cat"})
    with pytest.raises(
        ValueError, match=r"point-labels\.csv, line 2: field larger than field limit"
    ):
        open_dataset("open-images", tmp_path)
    path = tmp_path / "oidv7-class-descriptions.csv"
    path.write_text('/m/01yrx,Cat\n"' + "x" * 200_000)
    with pytest.raises(ValueError, match=r"descriptions\.csv, line 2: field larger than field lim"):
        open_dataset("open-images", tmp_path)


@pytest.mark.parametrize("content", [b"a,b\n\xe9,c\n", b"a,b\n" * 5000 + b"\xe9"])
def test_tables_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.csv, at or after line \d+, is not UTF-8 text: "):
        list(read_csv(path))


def nus(root: Path) -> Path:
    write_nus(root, {"a\\1.jpg": ["sky"]})
    return root


#: A data set, one of its text files, and how to make it.
TEXTS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "voc list": ("voc2007", "VOCdevkit/VOC2007/ImageSets/Main/test.txt", write_voc_tags),
    "context labels": (
        "context60", "VOCdevkit/VOC2010/labels.txt",
        lambda root: write_context(root, {"a": np.ones((2, 4), np.uint16)})),
    "context list": (
        "context60", "VOCdevkit/VOC2010/ImageSets/Main/val.txt",
        lambda root: write_context(root, {"a": np.ones((2, 4), np.uint16)})),
    "coco": ("coco", "annotations/instances_val2017.json", write_coco),
    "nus list": ("nus-wide", "ImageList/TestImagelist.txt", nus),
    "nus concepts": ("nus-wide", "ConceptsList/Concepts81.txt", nus),
    "nus labels": ("nus-wide", "Groundtruth/TrainTestLabels/Labels_sky_Test.txt", nus),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_lists_that_are_no_text(tmp_path: Path, kind: str) -> None:
    name, file, write = TEXTS[kind]
    write(tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes() + b"\n\xe9\n")
    line = path.read_bytes()[:-1].count(b"\n") + 1
    with pytest.raises(ValueError, match=rf"{path.name}, line {line} is not UTF-8 text: "):
        open_dataset(name, tmp_path)


def test_lists_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    write_voc_tags(tmp_path)
    path = tmp_path / TEXTS["voc list"][1]
    before = open_dataset("voc2007", tmp_path).names
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert open_dataset("voc2007", tmp_path).names == before
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbfa dog\r\n")
    assert read_lines(tmp_path / "texts.txt") == ["a dog"]
    # As programs of Windows end lines, and from two files put together; a name holds U+2028.
    content = "\ufeffdog, hound\r\n\ufeffcat\u2028s\rbird\n"
    (tmp_path / "classes.txt").write_bytes(content.encode())
    for classes in (Classes.read(tmp_path / "classes.txt"), Classes.parse(content)):
        assert classes.first == ("dog", "cat\u2028s", "bird")
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n")
    assert list(read_csv(tmp_path / "x.csv")) == [(1, ["a", "b"])]


def test_lines_of_the_command_line_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes(b"a dog\na caf\xe9\n")
    with pytest.raises(ValueError, match=r"texts\.txt, line 2 is not UTF-8 text"):
        read_lines(tmp_path / "texts.txt")
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / "texts.txt").write_bytes("a dog\n".encode(encoding))
        with pytest.raises(ValueError, match=r"texts\.txt is not UTF-8 text but UTF-16 or binary"):
            read_lines(tmp_path / "texts.txt")


def test_100_000_classes_are_read_in_time(tmp_path: Path) -> None:
    """Comparing each name with each would take minutes, which the limit of the processor ends."""
    (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(100_000)))
    assert len(Classes.read(tmp_path / "classes.txt")) == 100_000


XML: dict[str, tuple[bytes, str]] = {
    "entities": (
        b'<!DOCTYPE a [<!ENTITY a0 "' + b"x" * 10_000 + b'">' + b"".join(
            b'<!ENTITY a%d "%s">' % (i, b"&a%d;" % (i - 1) * 10) for i in range(1, 9)
        ) + b"]><annotation><object><name>&a8;</name></object></annotation>",
        "cannot be read as an annotation: limit on input amplification"),
    "another file": (
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        b"<annotation><object><name>&x;</name></object></annotation>", "undefined entity"),
    "unknown encoding": (b'<?xml version="1.0" encoding="x-none"?><a/>', "encoding"),
    "wide encoding": (b'<?xml version="1.0" encoding="gb2312"?><a/>', "encoding"),
    "other bytes": (b"<a>\xe9</a>", "line 1, column 3"),
    "empty": (b"", "no element found"),
    "long name": (
        b"<annotation><object><name>" + b"x" * 10**6 + b"</name></object></annotation>",
        "has an object 'xxx"),
}  # fmt: skip


@pytest.mark.parametrize("kind", XML)
def test_annotations_in_xml(tmp_path: Path, kind: str) -> None:
    content, why = XML[kind]
    write_voc_tags(tmp_path)
    (tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml").write_bytes(content)
    told = outcome(lambda: PascalVocTags(tmp_path)[0])
    assert re.match(rf"ValueError: .*000001\.xml .*{why}", told), told
    assert len(told) < 800


def test_xml_of_100_000_elements_in_each_other(tmp_path: Path) -> None:
    write_voc_tags(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    path.write_bytes(b"<a>" * 100_000 + b"</a>" * 100_000)
    told = outcome(lambda: PascalVocTags(tmp_path)[0].target)
    assert told.startswith(("returned Tags", "ValueError: "))


# --- pictures of labels --------------------------------------------------------------------------


def test_labels_of_another_size_are_not_decoded(tmp_path: Path) -> None:
    """Twelve thousand pixels a side would take a gigabyte."""
    rows = zlib.compress(bytes(1501) * 12_000)

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    head = struct.pack(">IIBBBBB", 12_000, 12_000, 1, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    )
    write_jpeg(tmp_path / "VOCdevkit/VOC2012/JPEGImages/a.jpg", 4, 2)
    folder = tmp_path / "VOCdevkit/VOC2012/SegmentationClass"
    folder.mkdir()
    (folder / "a.png").write_bytes(content)
    write_list(tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", ["a"])
    (tmp_path / "own/images").mkdir(parents=True)
    (tmp_path / "own/masks/a").mkdir(parents=True)
    Image.new("RGB", (4, 2)).save(tmp_path / "own/images/a.png")
    (tmp_path / "own/masks/a/dog.png").write_bytes(content)
    (tmp_path / "own/classes.txt").write_text("dog")
    for name, root in (("voc21", tmp_path), ("folder", tmp_path / "own")):
        data = open_dataset(name, root)
        told = outcome(lambda data=data: data[0], megabytes=64)  # type: ignore[misc]
        assert told.startswith("ValueError: ")
        assert "is 12000 x 12000 pixels, its image" in told
    whole = outcome(lambda: open_labels(folder / "a.png"), megabytes=64)
    assert whole.startswith(("ValueError: ", "MemoryError"))  # which shows that 64 are too few
