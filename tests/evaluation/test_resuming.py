"""`evaluate --resume` from the command line: what it refuses, and damage to its journal."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import captum_clip_surgery
from captum_clip_surgery.demo import MODEL_FOLDER, Scenes
from tests._helpers.command_line import run
from tests._helpers.written_scenes import scene_folder

IMAGES, BATCH = 5, 2


class Evaluated:
    """A finished run on copies of a model and of a data set, to be gone on with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.monkeypatch = pytest.MonkeyPatch()
        self.options = {
            "--dataset": "folder",
            "--root": str(folder / "data"),
            "--model": f"local-dir:{folder / 'model'}",
            "--protocol": str(folder / "own.toml"),
            "--methods": "CLIP,CLIPSurgery",
            "--workers": "0",
            "--batch-size": str(BATCH),
            "--output": str(folder / "out"),
        }
        shutil.copytree(MODEL_FOLDER, folder / "model")
        scene_folder(Scenes("test", IMAGES, 96, objects=[2]), folder / "data")
        (folder / "own.toml").write_text('source = "tests"\n[localization]\nsize = 96\n')
        assert self() == 0
        self.table = self.found()
        self._options = dict(self.options)
        shutil.copytree(folder, folder.with_name("as it was"))

    def restore(self) -> None:
        """All as after the run, times of files among it."""
        self.monkeypatch.undo()
        self.options = dict(self._options)
        shutil.rmtree(self.folder)
        shutil.copytree(self.folder.with_name("as it was"), self.folder)

    def __call__(self, *more: str) -> int | str:
        given = [word for pair in self.options.items() for word in pair]
        return run(self.monkeypatch, "evaluate", *given, *more)

    def found(self) -> bytes:
        return (self.folder / "out" / "results.csv").read_bytes()

    @property
    def pieces(self) -> Path:
        (path,) = (self.folder / "out" / "journal").glob("*.sqlite")
        return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return Evaluated(tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture
def evaluated(finished: Evaluated) -> Iterator[Evaluated]:
    yield finished
    finished.restore()


def train(run: Evaluated) -> None:
    """The least step there is: one weight, by one bit."""
    path = run.folder / "model" / "open_clip_model.safetensors"
    weights = load_file(path)
    weights["logit_scale"] = torch.nextafter(weights["logit_scale"], torch.tensor(9.0))
    save_file(weights, path)


def other_activation(run: Evaluated) -> None:
    """The same weights, computed with differently."""
    path = run.folder / "model" / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["quick_gelu"] = True
    path.write_text(json.dumps(content))


def edit_code(run: Evaluated) -> None:
    source = Path(captum_clip_surgery.__file__).parent
    edited = shutil.copytree(source, run.folder / "edited")
    with (edited / "functional.py").open("a") as file:
        file.write("# changed\n")
    run.monkeypatch.setattr(captum_clip_surgery, "__file__", str(edited / "__init__.py"))


def draw_over(run: Evaluated) -> None:
    Image.new("RGB", (96, 96)).save(run.folder / "data" / "images" / "00001.png")


def other_size(run: Evaluated) -> None:
    (run.folder / "own.toml").write_text('source = "tests"\n[localization]\nsize = 128\n')


def option(name: str, value: str) -> Callable[[Evaluated], None]:
    return lambda run: run.options.update({name: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (train, "model.weights was"),
        (other_activation, 'model.activation was "GELU", is "QuickGELU"'),
        (edit_code, "code was"),
        (draw_over, "dataset.files was"),
        (other_size, "protocol.views.localization.size was 96, is 128"),
        (option("--methods", "CLIP"), 'methods was ["CLIP", "CLIPSurgery"], is ["CLIP"]'),
        (option("--limit", "3"), "limit was null, is 3"),
        (option("--batch-size", "3"), "batch_size was 2, is 3"),
    ],
    ids=["weights", "activation", "code", "picture", "protocol", "methods", "limit", "batch"],
)
def test_what_has_changed_is_said(
    evaluated: Evaluated, change: Callable[[Evaluated], None], said: str
) -> None:
    before = evaluated.pieces.read_bytes()
    change(evaluated)
    ended = evaluated("--resume")
    assert isinstance(ended, str)
    journal = evaluated.folder / "out" / "journal"
    assert ended.startswith(f"error: the run in {journal} cannot be resumed, because its settings")
    differences = ended.partition("settings differ: ")[2].split("; ")
    assert differences[0].startswith(said)
    # And nothing else, but for the class of the activation, which is among the model's settings.
    assert len(differences) == 1 + (change is other_activation)
    assert all(text.startswith("model.settings was") for text in differences[1:])
    assert evaluated.found() == evaluated.table
    assert evaluated.pieces.read_bytes() == before


def test_nothing_changed_goes_on(evaluated: Evaluated) -> None:
    (evaluated.folder / "out" / "results.csv").unlink()
    before = evaluated.pieces.read_bytes()
    assert evaluated("--resume") == 0
    assert evaluated.found() == evaluated.table
    assert evaluated.pieces.read_bytes() == before  # and no other file has come


def test_without_resume_nothing_is_written_over(evaluated: Evaluated) -> None:
    assert "--resume to continue it" in str(evaluated())
    assert evaluated.found() == evaluated.table


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :]


@pytest.mark.parametrize(
    "cut", [0.6, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (0.3, 0.95))]
)
def test_a_truncated_journal_is_done_again(evaluated: Evaluated, cut: float) -> None:
    content = evaluated.pieces.read_bytes()
    evaluated.pieces.write_bytes(content[: int(cut * len(content))])
    with pytest.warns(UserWarning, match="computed again"):
        assert evaluated("--resume") == 0
    assert evaluated.found() == evaluated.table


def test_a_flipped_bit_is_found_by_its_checksum_and_done_again(evaluated: Evaluated) -> None:
    with closing(sqlite3.connect(evaluated.pieces)) as connection, connection:
        (content,) = connection.execute(
            "SELECT content FROM pieces WHERE key = 'localization 2'"
        ).fetchone()
        connection.execute(
            "UPDATE pieces SET content = ? WHERE key = 'localization 2'",
            (flip(content, len(content) - 9),),
        )
    with pytest.warns(UserWarning, match="'localization 2' in .* fails its checksum"):
        assert evaluated("--resume") == 0
    assert evaluated.found() == evaluated.table


def test_a_journal_that_does_not_say_what_it_is_of(evaluated: Evaluated) -> None:
    about = evaluated.folder / "out" / "journal" / "run.json"
    about.write_bytes(about.read_bytes()[:-20])
    assert "is damaged" in str(evaluated("--resume"))
    about.unlink()
    assert "holds pieces of a run, but no run.json" in str(evaluated("--resume"))
    assert evaluated.found() == evaluated.table
