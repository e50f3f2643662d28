"""The notebooks in tutorials/ are executed, complete, and run from a fresh kernel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests._helpers.cases import each

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

TUTORIALS = Path(__file__).parents[2] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
MEGABYTE = 1 << 20
REAL = "# clip = ZeroShotClassifier.from_pretrained("  # commented out in the cell to edit

#: A user's version of the cell to edit: no masks, nothing of the embedded model.
OTHERS = {
    "1_getting_started": """
picture, texts, masks = "street.png", ["a bench", "a person"], None
candidates = ["a bench", "a person", "a dog", "a car", "a tree", "a house", "the sky", "a lamp"]
""",
    "2_beside_captum": """
picture, texts, masks = "street.png", ["a bench", "a person"], None
""",
    "3_why_clips_maps_are_wrong": """
pictures, drawn = ["street.png", "home.png"], [0, 1]
shown, masks = [["a bench", "a dog"], ["a sofa", "a cat"]], None
texts = ["a bench", "a dog", "a sofa", "a cat", "a person"]
""",
    "4_your_own_model": """
picture = "street.png"
texts, others = ["a bench", "a person"], ["a dog", "a car", "the sky", "a tree", "a house", "water"]
more_pictures = [picture, "home.png"]
""",
    "5_tasks": """
picture, texts, masks = "street.png", ["bench", "person"], {}
caption, classes = "a person on a bench.", ["bench", "person", "dog", "car"]
other, others = "home.png", ["sofa", "cat"]
collection = [(picture, ["bench", "person"]), ("home.png", ["dog"])]
""",
    "6_judging_explanations": """
scenes = Scenes("test", 500, size=256, objects=[2, 3])[:10]
names = ["CLIP", "CLIPSurgery", "GradECLIP"]
texts, model_options = ["dog"], []
""",
    "7_the_ledger": """
picture, right = "street.png", "a bench"
texts = ["a bench", "a person", "a dog", "a car"]
captions = ["a dog on a bench", "a person on a bench"]
collection = [("street.png", ["a bench", "a person"]), ("home.png", ["a dog"])]
""",
    "8_ask_with_anything": """
query_picture, picture, box = "street.png", "home.png", (10, 10, 90, 70)
texts = ["a bench", "a dog"]
""",
}
OTHER_MODEL = """
import open_clip
model = open_clip.model.CLIP(
    embed_dim=48,
    vision_cfg=dict(image_size=96, layers=3, width=64, head_width=32, patch_size=12),
    text_cfg=dict(context_length=77, vocab_size=49408, width=32, heads=1, layers=1),
).eval()
config = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
open_clip.model.set_model_preprocess_cfg(
    model, config | {"size": 96, "interpolation": "bicubic", "resize_mode": "squash"}
)
clip = ZeroShotClassifier(model, texts)
"""
#: Further lines on the model, for notebooks that save it and load it again.
ABOUT_THE_MODEL = {
    "4_your_own_model": """
config = dict(
    embed_dim=48,
    vision_cfg=dict(image_size=96, layers=3, width=64, head_width=32, patch_size=12),
    text_cfg=dict(context_length=77, vocab_size=49408, width=32, heads=1, layers=1),
)
templates = None
"""
}


def stem(notebook: Path) -> str:
    return notebook.stem


def read(notebook: Path) -> Any:
    return nbformat.read(notebook, as_version=4)


def code_cells(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def to_edit(book: Any) -> list[Any]:
    return [cell for cell in code_cells(book) if f"\n{REAL}" in f"\n{cell.source}"]


def run(book: Any, folder: Path) -> None:
    """Execute a notebook in a folder; an error in a cell is raised with the cell's source."""
    for cell in code_cells(book):
        cell.outputs, cell.execution_count = [], None
    place = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=place).execute()


def warned(book: Any) -> list[str]:
    return [
        output.text
        for cell in code_cells(book)
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]


def kinds(cell: Any) -> set[tuple[str, str]]:
    """Return the types of a cell's outputs; one stream may come in several pieces."""
    return {(o.output_type, ",".join(sorted(o.get("data", {})))) for o in cell.outputs}


def test_there_are_tutorials() -> None:
    assert set(OTHERS) == {notebook.stem for notebook in NOTEBOOKS}
    assert sum(notebook.stat().st_size for notebook in NOTEBOOKS) < 8 * MEGABYTE


@each("notebook", NOTEBOOKS)
def test_outputs_are_complete(notebook: Path) -> None:
    book = read(notebook)
    nbformat.validate(book)
    cells = code_cells(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert book.metadata.kernelspec.name == "python3"
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not warned(book)
    figures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) >= 2
    assert notebook.stat().st_size < 1.4 * MEGABYTE


@each("notebook", NOTEBOOKS)
def test_nothing_of_a_machine_is_kept(notebook: Path) -> None:
    book = read(notebook)
    assert not [cell.id for cell in book.cells if "execution" in cell.metadata]
    for cell in code_cells(book):
        for output in cell.outputs:
            shown = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
            text = output.get("text", "") + str(shown)
            paths = r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|var|Users)\b|[A-Z]:\\|site-packages"
            assert not re.search(paths, text), text


@each("notebook", NOTEBOOKS)
def test_one_cell_chooses_the_model(notebook: Path) -> None:
    book = read(notebook)
    (cell,) = to_edit(book)
    before = book.cells[book.cells.index(cell) - 1]
    assert before.cell_type == "markdown"
    assert "one cell to edit" in before.source
    embedded = [other for other in code_cells(book) if "ZeroShotClassifier.demo(" in other.source]
    assert embedded == [cell]


@each("notebook", NOTEBOOKS)
def test_it_checks_itself_and_links_lead_somewhere(notebook: Path) -> None:
    book = read(notebook)
    assert sum(cell.source.count("assert ") for cell in code_cells(book)) >= 3
    texts = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\((?!http)([^)#]+)", text)]
    assert all((TUTORIALS / link).exists() for link in links)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=stem)
def test_it_runs_from_nothing(notebook: Path, tmp_path: Path) -> None:
    book = read(notebook)
    run(book, tmp_path)
    assert not warned(book)
    for again, kept in zip(code_cells(book), code_cells(read(notebook)), strict=True):
        assert kinds(again) == kinds(kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_it_runs_on_another_model_by_one_cell(name: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for picture in ("street.png", "home.png"):
        pixels = generator.integers(0, 255, (90, 140, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / picture)
    book = read(TUTORIALS / f"{name}.ipynb")
    (cell,) = to_edit(book)
    cell.source = OTHERS[name] + OTHER_MODEL + ABOUT_THE_MODEL.get(name, "")
    run(book, tmp_path)
