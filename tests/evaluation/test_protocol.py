"""Protocols as data: those that come with the package, one's own, and mistakes in them."""

from __future__ import annotations

import re
from pathlib import Path

import open_clip
import pytest

from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.datasets import DATASETS, Classes
from captum_clip_surgery.evaluation._protocol import (
    CLASSES,
    FOLDER,
    TASKS,
    TEMPLATE_SETS,
    USES,
    Protocol,
    View,
    class_files,
)
from tests._helpers.cases import each

SHIPPED = sorted(path.stem for path in FOLDER.glob("*.toml"))
PAGE = Path(__file__).parents[2] / "docs" / "reproduce.md"
TEXT = PAGE.read_text()
#: The classes of data sets whose names a protocol may change.
OWN_CLASSES = {
    "voc20": "voc20",
    "voc21": "voc21",
    "coco-object": "coco_object81",
}


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_those_that_come_with_the_package():
    known = (
        "clearclip, dense, faithfulness, imagenet-segmentation, paper, present, sclip, specificity"
    )
    assert ", ".join(SHIPPED) == known
    for name in SHIPPED:
        protocol = Protocol.load(name)
        assert protocol.name == name
        assert protocol.source
        assert protocol.views.keys() <= set(TASKS)


def test_the_papers_views():
    paper = Protocol.load("paper")
    assert paper.templates == "surgery"
    assert {task: view.size for task, view in paper.views.items()} == {
        "localization": 224,
        "segmentation": 512,
        "recognition": 224,
    }
    assert not any(view.keep_aspect or view.synonyms for view in paper.views.values())
    assert paper.changes == {}


#: slide_crop, prob_thd and the shorter side of NACLIP's configs/cfg_*.py.
NACLIP = {
    "voc21": (None, 0.1, 336),
    "voc20": (None, None, 336),
    "context60": (224, 0.1, 336),
    "context59": (224, None, 336),
    "coco-object": (224, 0.1, 336),
    "coco-stuff171": (224, None, 336),
    "cityscapes": (224, None, 560),
    "ade20k": (224, None, 336),
}


@each("dataset", NACLIP)
def test_dense_is_what_naclip_configures(dataset):
    dense = Protocol.load("dense")
    view = dense.view("segmentation", dataset)
    assert (view.window, view.background, view.size) == NACLIP[dataset]
    assert view.stride == (112 if view.window else None)
    assert (view.keep_aspect, view.longest, view.scale) == (True, 2048, 40)
    assert view.synonyms == (dataset in OWN_CLASSES)
    assert dense.templates == "imagenet"
    assert dense.positions == "bicubic"
    assert len(TEMPLATE_SETS["imagenet"]) == 80


#: Shorter side, window, stride, scale, threshold and area threshold of the papers.
SCLIP = {
    "voc21": (336, 224, 112, 65, 0.1, 0.1),
    "voc20": (336, 224, 112, 40, None, None),
    "context60": (336, 224, 112, 50, 0.1, None),
    "context59": (336, 224, 112, 40, None, None),
    "coco-object": (336, 224, 112, 50, 0.1, None),
    "coco-stuff171": (448, 224, 112, 40, None, None),
    "cityscapes": (560, 224, 112, 40, None, None),
    "ade20k": (336, 224, 112, 40, None, None),
}
CLEARCLIP = {
    dataset: (448, 448, 224, 50, threshold, None)
    for dataset, threshold in dict.fromkeys(SCLIP).items()
} | {
    "voc21": (448, 448, 224, 50, 0.5, None),
    "context60": (448, 448, 224, 50, 0.4, None),
    "coco-object": (448, 448, 224, 50, 0.15, None),
    "cityscapes": (448, 224, 224, 50, None, None),
}


@each(("name", "dataset"), [(name, d) for name in ("sclip", "clearclip") for d in SCLIP])
def test_protocols_of_other_dense_methods(name, dataset):
    view = Protocol.load(name).view("segmentation", dataset)
    values = view.size, view.window, view.stride, view.scale, view.background, view.min_area
    assert values == {"sclip": SCLIP, "clearclip": CLEARCLIP}[name][dataset]
    assert (view.keep_aspect, view.longest) == (True, 2048)
    dense = Protocol.load("dense").view("segmentation", dataset)
    names = (view.classes, view.synonyms, view.background_name)
    if name == "sclip":
        assert names == (dense.classes, dense.synonyms, dense.background_name)
        assert view.background_name == (dataset not in ("voc21", "coco-object"))
    else:
        assert names == (None, False, True)


@each("dataset", OWN_CLASSES)
def test_names_of_dense_are_of_the_data_sets_classes_in_their_order(dataset):
    view = Protocol.load("dense").view("segmentation", dataset)
    assert view.classes is not None
    assert Classes.named(view.classes).first == Classes.named(OWN_CLASSES[dataset]).first
    names = [name for names in Classes.named(view.classes).synonyms for name in names]
    assert len(names) == len(set(names))


def test_background_of_dense_is_what_its_source_says():
    voc, context = set(Classes.named("voc20").first), set(Classes.named("context59").first)
    expected = {"background"} | context - voc - {"table", "computer"}
    assert set(Classes.named("voc21_dense").synonyms[0]) == expected
    stuff = {names[-1] for names in Classes.named("coco_stuff171").synonyms[80:]}
    expected = {"background"} | stuff - {"table", "plant", "light"}
    assert set(Classes.named("coco_object81_dense").synonyms[0]) == expected
    assert Classes.named("voc21_dense").synonyms[1:] == Classes.named("voc20_dense").synonyms


def test_imagenet_segmentation_measures_at_the_size_it_shows():
    protocol = Protocol.load("imagenet-segmentation")
    assert dict(protocol.views) == {
        "localization": View(size=224, target_size=224, texts="present")
    }


def test_a_data_sets_table_changes_its_keys_alone(tmp_path):
    path = written(
        tmp_path,
        """
        source = "me"
        [segmentation]
        size = 336
        keep_aspect = true
        window = 224
        stride = 112
        background = 0.5
        [segmentation.voc21]
        size = 448
        window = "none"
        stride = "none"
        background = "none"
        [localization]
        size = 98
        """,
    )
    protocol = Protocol.load(path)
    whole = View(size=336, keep_aspect=True, window=224, stride=112, background=0.5)
    assert protocol.name == "mine"
    assert protocol.templates is None
    assert protocol.view("segmentation", "voc20") == whole
    assert protocol.view("segmentation", "voc21") == View(size=448, keep_aspect=True)
    assert protocol.view("localization", "voc21") == View(size=98)
    with pytest.raises(
        ValueError, match=r"^protocol mine has no points; it has segmentation, localization$"
    ):
        protocol.view("points", "voc21")


HEAD = 'source = "me"\n'
ALL_DATASETS = re.escape(", ".join(DATASETS))
MISTAKES = {
    "no toml": ("[segmentation", "Expected ']'"),
    "no source": ("[segmentation]", "source must be a text that is not empty$"),
    "empty source": ('source = ""\n[segmentation]', "source must be a text that is not empty$"),
    "source is no text": ("source = 1\n[segmentation]", "source must be a text that is not empty$"),
    "templates": (
        HEAD + 'templates = "eighty"\n[segmentation]',
        "templates must be one of surgery, imagenet, none, got 'eighty'$",
    ),
    "templates are a list": (
        HEAD + 'templates = ["a {}"]\n[segmentation]',
        r"templates must be one of .*, got \['a \{\}'\]$",
    ),
    "positions": (
        HEAD + 'positions = "nearest"\n[segmentation]',
        "positions must be one of bilinear, bicubic, got 'nearest'$",
    ),
    "unknown task": (
        HEAD + "[detection]",
        "the file has the unknown key 'detection'; choose from localization, segmentation, recog",
    ),
    "no task": (
        HEAD,
        "the file has no task; add one of localization, segmentation, rec",
    ),
    "no table": (
        HEAD + "segmentation = 512",
        r"segmentation must be a table, \[segmentation\], got 512",
    ),
    "unknown key": (
        HEAD + "[segmentation]\nsizes = 3",
        "segmentation has the unknown key 'sizes'; choose from size, keep_aspect, ",
    ),
    "a key that the task does not use": (
        HEAD + "[localization]\nwindow = 224\nstride = 112",
        "localization has the unknown key 'stride'; choose from size, texts, classes, target_size$",
    ),
    "unknown data set": (
        HEAD + "[segmentation.voc22]\nsize = 3",
        f"segmentation has a table for 'voc22', which must be one of {ALL_DATASETS}$",
    ),
    "unknown key of a data set": (
        HEAD + "[segmentation.voc21]\nsizes = 3",
        "segmentation.voc21 has the unknown key 'sizes'; choose from size, ",
    ),
    "a data set's mistake with the task's value": (
        HEAD + "[segmentation]\nkeep_aspect = true\nsize = 336\n[segmentation.voc21]\nwindow = 9",
        "segmentation.voc21: window and stride must be given together$",
    ),
    "size of nothing": (
        HEAD + "[recognition]\nsize = 0",
        "recognition: size must be a whole number of pixels from 1 to 16384, got 0$",
    ),
    "size is a share": (
        HEAD + "[recognition]\nsize = 0.5",
        "recognition: size must be a whole number of pixels from 1 to 16384, got 0.5$",
    ),
    "size is true": (
        HEAD + "[recognition]\nsize = true",
        "recognition: size must be a whole number of pixels from 1 to 16384, got True$",
    ),
    "target_size": (
        HEAD + "[localization]\ntarget_size = -1",
        "localization: target_size must be a whole number of pixels from 1 to 16384, got -1$",
    ),
    "synonyms": (
        HEAD + '[segmentation]\nsynonyms = "none"',
        "segmentation: synonyms must be true or false, got 'none'$",
    ),
    "texts": (
        HEAD + '[localization]\ntexts = "all"',
        'localization: texts must be "classes" or "present", got \'all\'$',
    ),
    "shape without a size": (
        HEAD + "[segmentation]\nkeep_aspect = true",
        "segmentation: keep_aspect needs a size, that of the shorter side$",
    ),
    "longest of a squashed picture": (
        HEAD + "[segmentation]\nsize = 3\nlongest = 9",
        "segmentation: longest needs keep_aspect$",
    ),
    "longest is shorter": (
        HEAD + "[segmentation]\nkeep_aspect = true\nsize = 336\nlongest = 300",
        "segmentation: longest must be at least size, 336, got 300$",
    ),
    "windows of a squashed picture": (
        HEAD + "[segmentation]\nsize = 512\nwindow = 224\nstride = 112",
        "segmentation: window needs keep_aspect; squashed images are shown whole$",
    ),
    "gaps between windows": (
        HEAD + "[segmentation]\nkeep_aspect = true\nsize = 512\nwindow = 224\nstride = 225",
        "segmentation: stride must be at most the window, 224, got 225: pixels between windows",
    ),
    "background beyond 1": (
        HEAD + "[segmentation]\nbackground = 10",
        "segmentation: background must be a number above 0 and below 1.0, got 10$",
    ),
    "background is a text": (
        HEAD + '[segmentation]\nbackground = "wall"',
        "segmentation: background must be a number above 0 and below 1.0, got 'wall'$",
    ),
    "scale is no number": (
        HEAD + "[segmentation]\nscale = nan",
        "segmentation: scale must be a number above 0 and below inf, got nan$",
    ),
    "no steps": (
        HEAD + "[faithfulness]\nsteps = 0",
        "faithfulness: steps must be a whole number from 1 to 1000, got 0$",
    ),
    "classes": (
        HEAD + '[points]\nclasses = "voc22"',
        f"points: classes must be one of {', '.join(class_files())}, got 'voc22'$",
    ),
    "classes by a path": (
        HEAD + '[points]\nclasses = "../classes/voc21"',
        "points: classes must be one of ade150, .*, got '../classes/voc21'$",
    ),
    "groups of classes": (
        HEAD + '[points]\nclasses = "coco_stuff27_members"',
        "points: classes must be one of ade150, .*, got 'coco_stuff27_members'$",
    ),
}


@each("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_file(mistake, tmp_path):
    text, message = MISTAKES[mistake]
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=f"^protocol {re.escape(str(path))}: {message}"):
        Protocol.load(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"source = '\xff'")
    with pytest.raises(ValueError, match=f"^protocol {re.escape(str(path))}: 'utf-8' codec"):
        Protocol.load(path)


@each("name", ["papers", "nowhere/mine.toml", Path("nowhere/mine.toml")])
def test_one_there_is_not(name):
    known = ", ".join(SHIPPED)
    hint = r"; did you mean 'paper'\?" if name == "papers" else ""
    expected = f"^there is no protocol '{name}'; choose from {known}, or pass a .toml file{hint}$"
    with pytest.raises(FileNotFoundError, match=expected):
        Protocol.load(name)


def test_every_field_is_of_a_task():
    assert {field for used in USES.values() for field in used} == set(View.__dataclass_fields__)


def test_files_of_classes():
    assert set(class_files()) == {p.stem for p in CLASSES.glob("*.txt")} - {"coco_stuff27_members"}
    for name in class_files():
        assert Classes.named(name).source


def test_the_pages_own_protocol_loads(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.S)
    protocol = Protocol.load(written(tmp_path, example))
    assert protocol.view("segmentation", "voc21") == View(size=448, keep_aspect=True)
    assert protocol.view("segmentation", "cityscapes") == View(
        size=560, keep_aspect=True, window=224, stride=112
    )
    assert protocol.view("localization", "voc21") == View(size=224, texts="present")


def options(command: str) -> dict[str, str]:
    words = command.split()
    assert words[:2] == ["clip-surgery", "evaluate"]
    assert len(words) % 2 == 0
    return dict(zip(words[2::2], words[3::2], strict=True))


COMMANDS = re.findall(r"^clip-surgery .*", TEXT, flags=re.M)


def test_the_pages_commands_ask_for_what_there_is():
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        given = options(command)
        assert given["--dataset"] in DATASETS
        assert given["--protocol"] in SHIPPED
        assert set(given["--methods"].split(",")) <= METHODS.keys()
        assert given["--pretrained"] == "openai"
        tags = open_clip.list_pretrained_tags_by_model(given["--model"])
        assert "openai" in tags, command


def test_the_page_lists_every_data_set():
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", TEXT.split("## Data sets")[1], flags=re.M)
    assert listed == list(DATASETS)


def test_the_pages_table_of_dense_is_the_protocol():
    rows = re.findall(r"^\| (\S+) \| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", TEXT, flags=re.M)
    assert [row[0] for row in rows] == list(NACLIP)
    for dataset, size, window, threshold, names in rows:
        view = Protocol.load("dense").view("segmentation", dataset)
        assert size == str(view.size)
        assert window == ("224 / 112" if view.window else "whole image")
        assert threshold == ("none" if view.background is None else str(view.background))
        classes = f"`{view.classes}`, all names" if view.classes else "the data set's, the first"
        assert names == classes


def test_columns_for_the_reader_are_empty():
    tables = [block for block in TEXT.split("\n\n") if "| yours |" in block.split("\n")[0]]
    assert len(tables) == 7
    for table in tables:
        header, _, *rows = table.strip().split("\n")
        place = header.split("|").index(" yours ")
        assert rows
        assert all(not row.split("|")[place].strip() for row in rows)
