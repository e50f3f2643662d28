"""`evaluate` again in the same folder: what is reused, what is refused, and damage."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import captum_clip_surgery
from captum_clip_surgery import evaluation
from captum_clip_surgery.cli import _datasets
from captum_clip_surgery.demo import MODEL_FOLDER, Scenes
from captum_clip_surgery.evaluation import Evaluation, _results, _running
from captum_clip_surgery.evaluation._results import read_results
from tests._helpers.command_line import run
from tests._helpers.written_scenes import scene_folder

IMAGES, BATCH = 5, 2
#: Without templates, so that the many names of the scenes are few prompts.
PROTOCOL = 'source = "tests"\ntemplates = "none"\n[localization]\nsize = {}\n'


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
        (folder / "own.toml").write_text(PROTOCOL.format(96))
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

    def check_table(self) -> None:
        """A method alone in a pass differs in the last bits of its maps."""
        expected, found = (
            pandas.read_csv(io.BytesIO(table)) for table in (self.table, self.found())
        )
        pandas.testing.assert_frame_equal(found, expected, rtol=1e-5, atol=2e-6)

    def pieces(self) -> dict[str, bytes]:
        """The content of every file of statistics."""
        folder = self.folder / "out" / "statistics"
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.par*")}

    def measured(self, *more: str) -> dict[tuple[str, str], int]:
        """How many images a run measures, by task and method."""
        plain, counts = evaluation.evaluate, {}

        def spy(*args: Any, **options: Any) -> Evaluation:
            found = plain(*args, **options)
            counts.update(found.measured)
            return found

        with self.monkeypatch.context() as patch:
            patch.setattr(evaluation, "evaluate", spy)
            assert self(*more) == 0
        return counts


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """Figures take longer than what is measured; `test_command` looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (_datasets, _results):
            patch.setattr(module, "save_figure", lambda *_: None)
        yield


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


def other_size(run: Evaluated) -> None:
    (run.folder / "own.toml").write_text(PROTOCOL.format(128))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(train, "model.weights was", marks=pytest.mark.slow, id="weights"),
        pytest.param(
            other_activation,
            'model.activation was "GELU", is "QuickGELU"',
            marks=pytest.mark.slow,
            id="activation",
        ),
        pytest.param(edit_code, "code was", marks=pytest.mark.slow, id="code"),
        pytest.param(other_size, "view.size was 96, is 128", id="protocol"),
    ],
)
def test_what_has_changed_is_said(
    evaluated: Evaluated, change: Callable[[Evaluated], None], said: str
) -> None:
    before = evaluated.pieces()
    change(evaluated)
    ended = evaluated("--resume")
    assert isinstance(ended, str)
    folder = evaluated.folder / "out" / "statistics" / "settings" / "localization" / "CLIP"
    assert ended.startswith(f"error: {folder} holds another run: ")
    differences = ended.partition("another run: ")[2].partition(". Choose")[0].split("; ")
    assert differences[0].startswith(said)
    # And nothing else, but for the class of the activation, which is among the model's settings.
    assert len(differences) == 1 + (change is other_activation)
    assert all(text.startswith("model.settings was") for text in differences[1:])
    assert evaluated.found() == evaluated.table
    assert evaluated.pieces() == before
    if change is other_size:  # all anew
        assert list(evaluated.measured("--no-resume").values()) == [IMAGES, IMAGES]


@pytest.mark.slow
def test_nothing_changed_nothing_measured(evaluated: Evaluated) -> None:
    (evaluated.folder / "out" / "results.csv").unlink()
    before = evaluated.pieces()
    assert evaluated.measured() == {}
    assert evaluated.found() == evaluated.table
    assert evaluated.pieces() == before
    # Neither by files that are no images, nor by a new time.
    (evaluated.folder / "data" / "notes.txt").write_text("good ones")
    (evaluated.folder / "data" / "images" / "00002.png").touch()
    assert evaluated.measured("--resume", "--batch-size", "3") == {}
    assert evaluated.found() == evaluated.table


@pytest.mark.slow
def test_what_is_asked_besides_is_measured_alone(evaluated: Evaluated) -> None:
    evaluated.options["--methods"] = "CLIP,MaskCLIP"
    assert evaluated.measured() == {("localization", "MaskCLIP"): IMAGES}
    evaluated.options["--methods"] = "CLIP,CLIPSurgery"
    assert evaluated.measured("--limit", "3") == {}
    assert evaluated.found() != evaluated.table
    assert evaluated.measured() == {}
    evaluated.check_table()


def test_images_that_change_are_named_and_measured_again(
    evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    path = evaluated.folder / "data" / "images" / "00001.png"
    picture = path.read_bytes()
    one = {("localization", "CLIP"): 1, ("localization", "CLIPSurgery"): 1}
    path.write_bytes(picture[:100])
    assert evaluated.measured() == {}
    printed = capsys.readouterr().out
    assert "files of the data set that have changed since (1): images/00001.png; all" in printed
    assert "unreadable: 00001: " in printed
    assert "\n4 images, " in printed
    path.write_bytes(picture)
    assert evaluated.measured() == one
    evaluated.check_table()
    Image.new("RGB", (96, 96)).save(path)
    assert evaluated.measured() == one
    assert evaluated.found() != evaluated.table


@pytest.mark.slow
def test_a_refused_call_leaves_nothing(evaluated: Evaluated) -> None:
    evaluated.options["--output"] = str(evaluated.folder / "other")
    own = evaluated.folder / "own.toml"
    plain = own.read_text()
    own.write_text(plain + "keep_aspect = true\n")
    assert isinstance(evaluated(), str)
    assert not (evaluated.folder / "other").exists()
    own.write_text(plain)
    assert evaluated() == 0


@pytest.mark.slow
def test_parts_of_a_job_array_give_the_same_table(
    evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated.monkeypatch.setattr(_running, "PIECE", 2)
    for task in ("2/3", "0/3", "1/3"):
        assert evaluated("--array", task, *(["--no-resume"] if task == "2/3" else [])) == 0
        left = {"2/3": 4, "0/3": 2, "1/3": 0}[task]
        assert (f"{left} images are left to other tasks" in capsys.readouterr().out) == bool(left)
    evaluated.check_table()


@pytest.mark.parametrize(
    "damage",
    ["flipped", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("cut", "not Parquet"))],
)
def test_damage_is_done_again(evaluated: Evaluated, damage: str) -> None:
    path = evaluated.folder / "out" / "statistics" / "localization" / "CLIP" / "000000.parquet"
    content = path.read_bytes()
    column = pq.read_metadata(path).row_group(0).column(0)
    last = column.dictionary_page_offset + column.total_compressed_size - 1  # of its values
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "flipped": content[:last] + bytes([content[last] ^ 0x40]) + content[last + 1 :],
            "not Parquet": b"PAR1" * 9,
        }[damage]
    )
    warned = pytest.warns(UserWarning, match=r"000000\.parquet cannot be used .* measured again")
    with nullcontext() if damage == "cut" else warned:
        assert evaluated.measured() == {("localization", "CLIP"): IMAGES}
    evaluated.check_table()


def test_rows_are_what_pandas_reads(evaluated: Evaluated) -> None:
    rows = pandas.read_parquet(evaluated.folder / "out" / "statistics" / "localization" / "CLIP")
    assert set(rows["image"]) == {f"{number:05}" for number in range(IMAGES)}
    result = read_results(evaluated.folder / "out")["CLIP"].measures
    assert 100 * rows["msc"].mean() == pytest.approx(result["msc"], rel=1e-12)
    per_class = pandas.read_csv(evaluated.folder / "out" / "per_class.csv")
    asked = per_class.query("method == 'CLIP' and measure == 'msc'").set_index("class")["value"]
    expected = 100 * rows.groupby("class")["msc"].mean()
    assert asked.to_dict() == pytest.approx(expected.to_dict(), rel=1e-12)
    per_image = pandas.read_csv(evaluated.folder / "out" / "per_image.csv", dtype={"image": str})
    of_images = per_image.query("method == 'CLIP' and measure == 'msc'").set_index("image")["value"]
    assert of_images.to_dict() == pytest.approx(
        (100 * rows.groupby("image")["msc"].mean()).to_dict(), rel=1e-12
    )
