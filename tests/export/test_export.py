"""Exports: maps are those of `attribute_all`, whoever computes and reads them."""

from __future__ import annotations

import json
import pickle
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from captum_clip_surgery import CLIPSurgery, LayerCLIPSurgery
from captum_clip_surgery._utils import pieces
from captum_clip_surgery.demo import nouns
from captum_clip_surgery.export import MapStore, Plan, _maps, explain_batch, load_maps, plan
from captum_clip_surgery.queries import DifferenceQuery, ImageQuery
from tests._helpers import command_line
from tests._helpers.written_export import (
    TEXTS,
    assert_same,
    close,
    encoded,
    expected,
    export,
    files,
    planned,
    scene,
    states,
    surgery,
    write_folder,
    write_tar,
)

COUNT = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven scenes, and a file that is not an image."""
    root = tmp_path_factory.mktemp("pictures")
    write_folder(root, COUNT)
    (root / "b/broken.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "out"
    export(folder, output, workers=2)
    return output


def readable(folder: Path) -> list[str]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    return [name for name in names if "broken" not in name]


def test_maps_are_those_of_attribute_all(folder: Path, exported: Path) -> None:
    maps, names = load_maps(exported), readable(folder)
    assert list(maps) == names
    assert len(maps) == COUNT
    assert maps.texts == tuple(TEXTS)
    wanted = expected([folder / name for name in names])
    assert all(close(maps[name], row) for name, row in zip(names, wanted, strict=True))
    assert np.ptp(wanted.astype(float)) > 0.1  # no constant maps
    assert maps.size(names[0]) == (64, 64)
    assert list(maps.unreadable) == ["b/broken.png"]
    with pytest.raises(KeyError, match=r"b/broken\.png: .*cannot be read"):
        maps["b/broken.png"]
    batches = list(maps.batches())
    assert [name for names, _ in batches for name in names] == names
    assert (np.concatenate([array for _, array in batches]) == [maps[name] for name in names]).all()
    maps.verify()


def test_texts_and_embeddings_are_clips_own(folder: Path, exported: Path) -> None:
    maps, clip = load_maps(exported), surgery().forward_func
    for name in maps:
        with torch.no_grad():
            images = clip.preprocess(folder / name, 64)
            embedding = clip.image_features(images)[0].numpy()
            logits = clip(images)[0] / clip.model.logit_scale.detach().exp()
        values, order = logits.topk(2)
        assert [text for text, _ in maps.top(name)] == [TEXTS[index] for index in order]
        assert [score for _, score in maps.top(name)] == pytest.approx(values.tolist(), abs=1e-5)
        np.testing.assert_allclose(maps.embedding(name), embedding, atol=1e-5)


def test_other_libraries_read_the_files_as_they_are(exported: Path, tmp_path: Path) -> None:
    maps = load_maps(exported)
    pattern = str(exported / "data" / "*.parquet")
    tables = [
        pd.read_parquet(exported / "data").to_dict("records"),
        duckdb.sql(f"SELECT * FROM '{pattern}' ORDER BY name").df().to_dict("records"),
        list(
            datasets.load_dataset(
                "parquet", data_files=pattern, split="train", cache_dir=str(tmp_path)
            )
        ),
    ]
    for rows in tables:
        rows = sorted((row for row in rows if row["maps"] is not None), key=lambda r: r["name"])
        assert [row["name"] for row in rows] == list(maps)
        for row in rows:
            read = np.frombuffer(row["maps"], np.float16).reshape(tuple(row["maps_shape"]))
            assert (read == maps[row["name"]]).all()
            assert (np.array(row["embedding"], np.float32) == maps.embedding(row["name"])).all()
            assert list(row["top_texts"]) == [text for text, _ in maps.top(row["name"])]


def test_reading_is_lazy_and_may_be_shared(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out")
    maps = load_maps(tmp_path / "out")
    assert "nothing.png" not in maps
    assert "b/broken.png" not in maps
    assert 3 not in maps
    with pytest.raises(KeyError, match=r"nothing\.png"):
        maps["nothing.png"]
    again = pickle.loads(pickle.dumps(maps))
    assert isinstance(again, MapStore)
    loader = torch.utils.data.DataLoader(
        [(again, name) for name in maps],  # type: ignore[arg-type]
        batch_size=None,
        num_workers=2,
        collate_fn=lambda pair: pair[0][pair[1]],
    )
    assert all((a == maps[name]).all() for a, name in zip(loader, maps, strict=True))
    # Without the other files, the first one is read all the same.
    first = maps["a/s000.png"]
    for path in sorted((tmp_path / "out/data").iterdir())[1:]:
        path.unlink()
    again = load_maps(tmp_path / "out")
    assert (again["a/s000.png"] == first).all()
    with pytest.raises(FileNotFoundError, match=r"000002\.parquet"):
        again["b/s009.png"]


def test_many_lookups_read_names_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of tars come in any order, so that each may be in any file by its first and last."""
    for number in range(3):
        some = {f"{7 * index % 12:02}{number}.png": encoded(scene(index)) for index in range(12)}
        write_tar(tmp_path / f"{number}.tar", some)
    export(f"{tmp_path}/*.tar", tmp_path / "out")
    reads: list[Path] = []
    plain = pieces.Pieces.read

    def read(self: pieces.Pieces, number: int, *columns: Any) -> Any:
        reads.append(self.path(number))
        return plain(self, number, *columns)

    maps = load_maps(tmp_path / "out")
    _maps._names.cache_clear()
    monkeypatch.setattr(pieces.Pieces, "read", read)
    monkeypatch.setattr(_maps, "read_summary", None)
    with ThreadPoolExecutor(4) as pool:
        names = [f"{index:02}{number}" for number in range(3) for index in range(12)]
        found = list(pool.map(maps.__getitem__, names * 5))
    assert "000 " not in maps
    # Four threads may each build the index; what they build is the same.
    assert len(reads) <= 4 * 2 * 3
    again = pickle.loads(pickle.dumps(maps))
    assert "_index" in vars(maps)
    assert "_index" not in vars(again)  # hashes are of this process alone
    assert all((again[name] == array).all() for name, array in zip(names, found, strict=False))
    assert close(maps["072"], expected([scene(1)])[0])


@pytest.mark.slow
def test_a_plan_is_small_and_may_be_sent(folder: Path, exported: Path, tmp_path: Path) -> None:
    made = planned(folder, tmp_path / "out")
    content = pickle.dumps(made)
    assert len(content) < 4000
    again: Plan = pickle.loads(content)
    assert again.left() == [0, 1, 2]
    again.explain(surgery(), [2, 0])
    assert again.left() == [1]
    with pytest.warns(UserWarning, match="has not ended: 1 of its files are not there"):
        assert len(load_maps(tmp_path / "out")) == 8
    assert not again.finish()
    assert again.explain(surgery(), [0, 1, 2], workers=1).images == 3  # 0 and 2 are passed over
    assert again.finish()
    assert_same(tmp_path / "out", exported)


def test_without_maps(folder: Path, exported: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", maps=False)
    maps, whole = load_maps(tmp_path / "out"), load_maps(exported)
    assert list(maps) == list(whole)
    assert maps.top("a/s000.png") == whole.top("a/s000.png")
    assert (maps.embedding("a/s000.png") == whole.embedding("a/s000.png")).all()
    with pytest.raises(KeyError, match="stores no maps"):
        maps["a/s000.png"]
    assert list(maps.batches()) == []


@pytest.mark.slow
def test_compiled(folder: Path, exported: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", compile=True)
    maps, whole = load_maps(tmp_path / "out"), load_maps(exported)
    for name in whole:
        np.testing.assert_allclose(
            maps[name].astype(float), whole[name].astype(float), rtol=1e-2, atol=1e-3
        )
    with pytest.raises(ValueError, match=r"options\.compile was true, is false"):
        planned(folder, tmp_path / "out")


# --- what determines an export -------------------------------------------------------------------


def test_another_export_is_refused_by_what_differs(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    export(folder, output)
    before = states(output)
    assert export(folder, output).images == 0
    for options, changed in [
        ({"size": 96}, r"options\.size was"),
        ({"batch_size": 3}, r"options\.batch_size was 2, is 3"),
        ({"shard_size": 5}, "shard_size was"),
        ({"top": 1}, "top was"),
        ({"maps": False}, "maps was"),
        ({"about": {"code": "x"}}, "code was"),
    ]:
        with pytest.raises(ValueError, match=rf"another run: .*{changed}"):
            planned(folder, output, **options)
    made, clip = planned(folder, output), surgery().forward_func
    for other, changed in [
        (LayerCLIPSurgery(clip.with_texts(["dog", "pizza"])), r"texts was"),
        (LayerCLIPSurgery(clip, num_blocks=1), r"method was"),
        (LayerCLIPSurgery(_with_tanh(clip)), r'activation was "GELU", is "GELU\(tanh\)"'),
    ]:
        with pytest.raises(ValueError, match=f"another run: .*{changed}"):
            plan(other, folder, output, 2, size=64, batch_size=2, shard_size=4)
        with pytest.raises(ValueError, match=f"not that of the plan: .*{changed}"):
            made.explain(other, [0])
    write_folder(tmp_path / "more", 3)
    with pytest.raises(ValueError, match=r"source\.place was"):
        planned(tmp_path / "more", output)
    (tmp_path / "mine/data").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"exists without a run\.json"):
        planned(folder, tmp_path / "mine")
    assert states(output) == before


def _with_tanh(clip: Any) -> Any:
    clip = pickle.loads(pickle.dumps(clip))  # `surgery` is shared with other tests
    for module in clip.model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
    return clip


def test_changed_files_are_computed_again_and_no_others(tmp_path: Path) -> None:
    names = write_folder(tmp_path / "in", 10)
    (tmp_path / "in" / names[5]).write_bytes(b"broken")
    export(tmp_path / "in", tmp_path / "out")
    before = states(tmp_path / "out")
    (tmp_path / "in" / names[5]).write_bytes(encoded(scene(30)))  # mended
    (tmp_path / "in/notes.txt").write_text("not an image")
    (tmp_path / "in/a/more.png").write_bytes(encoded(scene(31)))
    assert planned(tmp_path / "in", tmp_path / "out", look=False).left() == []
    with pytest.warns(UserWarning, match=rf"1 files .* changed .* 1 were added .*{names[5]}"):
        done = export(tmp_path / "in", tmp_path / "out")
    assert done.images == 5
    after = states(tmp_path / "out")
    assert {name for name in after if after[name] != before.get(name)} == {
        "000001.parquet",
        "000003.parquet",
    }
    maps = load_maps(tmp_path / "out")
    assert list(maps) == [*names, "a/more.png"]
    assert close(maps[names[5]], expected([scene(30)])[0])
    (tmp_path / "in" / names[0]).unlink()
    with pytest.warns(UserWarning, match="1 files have changed or gone and 0 were added"):
        export(tmp_path / "in", tmp_path / "out")
    assert "no image file" in load_maps(tmp_path / "out").unreadable[names[0]]


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_files_are_found_and_made_again(
    folder: Path, exported: Path, tmp_path: Path, damage: str
) -> None:
    output = tmp_path / "out"
    export(folder, output)
    path = output / "data/000001.parquet"
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 3])
    else:
        maps = load_maps(exported)
        place = bytes(content).index(maps[list(maps)[5]].tobytes())
        content[place + 9] ^= 1
        path.write_bytes(content)
    maps = load_maps(output)
    with pytest.raises(ValueError, match=r"000001\.parquet \((missing|damaged)\); export again"):
        maps.verify()
    lost = 0
    for name, right in load_maps(exported).items():
        try:
            assert (maps[name] == right).all()
        except (ValueError, FileNotFoundError) as error:
            assert path.name in str(error)  # noqa: PT017
            lost += 1
    assert lost == 3
    made = planned(folder, output)
    assert list(made.verify()) == ([] if damage == "gone" else [1])
    assert made.left() == [1]
    made.explain(surgery(), made.left())
    made.finish()
    assert_same(output, exported)


def test_an_error_in_the_midst_leaves_whole_files_only(
    folder: Path, exported: Path, tmp_path: Path
) -> None:
    class Failing(LayerCLIPSurgery):
        calls = 0

        def attribute_all(self, *arguments: Any) -> Tensor:
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().attribute_all(*arguments)

    made = planned(folder, tmp_path / "out")
    method = Failing(surgery().forward_func)
    Failing.__name__ = LayerCLIPSurgery.__name__
    with pytest.raises(KeyboardInterrupt):
        made.explain(method, made.left())
    assert [path.name for path in (tmp_path / "out/data").iterdir()] == ["000000.parquet"]
    made.explain(surgery(), made.left())
    made.finish()
    assert_same(tmp_path / "out", exported)


def test_errors_come_with_the_images_and_from_whoever_gives_numbers(
    folder: Path, tmp_path: Path
) -> None:
    made = planned(folder, tmp_path / "out")

    def numbers() -> Any:
        yield 0
        raise ConnectionError("torchrun has ended")

    for workers in (0, 2):
        with pytest.raises(ConnectionError, match="torchrun has ended"):
            made.explain(surgery(), numbers(), workers)
    assert made.left() == [1, 2]
    with pytest.raises(IndexError, match="no shard 7: the collection has 3"):
        made.explain(surgery(), [7])
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        made.explain(surgery(), [1], workers=-1)


# --- the command, and a loop of one's own ---------------------------------------------------------

OPTIONS = ["--size", "64", "--shard-size", "4", "--batch-size", "2", "--top", "2", "--workers", "0"]
FOR_TEXTS = [option for text in TEXTS for option in ("--text", text)]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str:
    """Run `clip-surgery export`, and return its exit code or its error message."""
    return command_line.run(monkeypatch, "export", *arguments)


def test_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    exported: Path,
    tmp_path: Path,
) -> None:
    arguments = [folder, "--output", tmp_path / "out", *FOR_TEXTS, *OPTIONS]
    assert run(monkeypatch, *arguments, "--plan") == 0
    assert "3 of 3 files are left" in capsys.readouterr().out
    assert run(monkeypatch, *arguments, "--array", "1/2") == 0
    printed = capsys.readouterr()
    assert "3 images explained" in printed.out
    assert "3 files" not in printed.out  # as others are not there
    assert run(monkeypatch, *arguments, "--array", "0/2") == 0
    printed = capsys.readouterr()
    assert "8 images explained" in printed.out
    assert "11 images in 3 files are in" in printed.out
    assert "warning: 1 images are unreadable; the first is 'b/broken.png'" in printed.err
    assert_same(tmp_path / "out", exported)
    described = json.loads((tmp_path / "out/run.json").read_text())
    assert len(described["code"]) == 64

    path = tmp_path / "out/data/000001.parquet"
    path.write_bytes(path.read_bytes().replace(b"pizza", b"pizzz"))
    for stale in ("data/.000001", ".run"):  # of a process that has ended
        (tmp_path / f"out/{stale}~{platform.node().replace(' ', '-')}~{2**22 + 1}~0.part").touch()
    assert run(monkeypatch, *arguments, "--verify") == 0
    printed = capsys.readouterr()
    assert "3 images explained" in printed.out
    assert "000001.parquet is damaged" in printed.err
    assert files(tmp_path / "out") == files(exported)
    assert not list((tmp_path / "out").rglob("*.part"))
    assert "texts was" in str(run(monkeypatch, *arguments, "--text", "duck"))
    assert "must be i/n" in str(run(monkeypatch, *arguments, "--array", "2/2"))


@pytest.mark.slow
def test_options_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 2)
    (tmp_path / "texts.txt").write_text("dog\n\nduck\n")
    (tmp_path / "distractors.txt").write_text("pizza\n")
    texts = ["--texts", tmp_path / "texts.txt", "--distractors", tmp_path / "distractors.txt"]
    options = ["--num-blocks", 1, "--size", 96, "--feature-surgery", "paper", *texts]
    assert run(monkeypatch, tmp_path / "in", "--output", tmp_path / "out", *options) == 0
    maps = load_maps(tmp_path / "out")
    clip = surgery().forward_func.with_texts(["dog", "duck"], ["pizza"])
    method = LayerCLIPSurgery(clip, num_blocks=1, feature_surgery="paper")
    pixels = clip.preprocess([tmp_path / "in" / name for name in maps], 96)
    with torch.no_grad():
        wanted = method.attribute_all(pixels).half().numpy()
    assert maps.texts == ("dog", "duck")
    assert all(close(maps[name], row) for name, row in zip(maps, wanted, strict=True))
    # In half precision, and without texts: those of the embedded model.
    half = [tmp_path / "in", "--output", tmp_path / "half", "--precision", "bf16", "--size", 64]
    assert run(monkeypatch, *half) == 0
    maps = load_maps(tmp_path / "half")
    assert maps.texts == nouns()
    with torch.no_grad():
        method = LayerCLIPSurgery(clip.with_texts(nouns()))
        wanted = method.attribute_all(clip.preprocess(tmp_path / "in/a/s000.png", 64))[0].numpy()
    assert np.corrcoef(maps["a/s000.png"].ravel().astype(float), wanted.ravel())[0, 1] > 0.99
    assert not close(maps["a/s000.png"], wanted.astype(np.float16))
    (tmp_path / "none").mkdir()
    ended = run(monkeypatch, tmp_path / "none", "--output", tmp_path / "x", "--text", "dog")
    assert "no pictures in the folder" in str(ended)


def test_a_loop_of_ones_own() -> None:
    clip = surgery().forward_func
    images = clip.preprocess([scene(0), scene(1)], 64)
    found = explain_batch(surgery(), images, top=2)
    assert close(found.maps, expected([scene(0), scene(1)]))
    assert found.top_indices.shape == found.top_scores.shape == (2, 2)
    assert explain_batch(surgery(), images, top=9).top_indices.shape == (2, 3)
    assert explain_batch(surgery(), images, top=0).top_scores.shape == (2, 0)
    whole = CLIPSurgery(clip)
    with torch.no_grad():
        wanted = whole.attribute_all(images).half().numpy()
    assert close(explain_batch(whole, images).maps, wanted)
    with pytest.raises(ValueError, match="NaN"):
        explain_batch(surgery(), images * float("nan"))
    with pytest.raises(ValueError, match="top -1"):
        explain_batch(surgery(), images, top=-1)


def test_what_the_docs_show() -> None:
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    *_, loop = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    seen: dict[str, Any] = {}
    exec(loop, seen)
    assert seen["batch"].maps.shape == (2, 3, 14, 14)
    assert seen["batch"].top_indices.shape == (2, 2)


@pytest.mark.slow
def test_queries_beside_texts(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    """An image as a query: maps, the record, and what another image of the same name does."""
    query, output = tmp_path / "query.png", tmp_path / "out"
    query.write_bytes(encoded(scene(3)))
    given = folder, "--output", output, "--text", "dog", "--query-image", query, "--minus", "duck"
    arguments = (*given, "--size", 64, "--shard-size", 4)
    assert run(monkeypatch, *arguments, "--array", "0/2") == 0
    monkeypatch.chdir(tmp_path)  # the same image by another path goes on
    relative = [Path("query.png") if each == query else each for each in arguments]
    assert run(monkeypatch, *relative, "--workers", 2) == 0
    maps = load_maps(output)
    assert maps.texts == ("dog rather than duck", "query.png rather than duck")
    clip = surgery().forward_func
    queries = [DifferenceQuery(side, "duck") for side in ("dog", ImageQuery(query))]
    asked = clip.with_queries(queries)
    with torch.no_grad():
        pixels = clip.preprocess([folder / name for name in maps], 64)
        wanted = LayerCLIPSurgery(asked).attribute_all(pixels).half().numpy()
    assert all(close(maps[name], row) for name, row in zip(maps, wanted, strict=True))
    described = json.loads((output / "run.json").read_text())["model"]["features"]
    sides = described["queries"]["query.png rather than duck"]["difference"]
    assert sides[1] == "duck"
    assert len(sides[0]["image"]) == 64
    assert described["templates"] == list(map(str, clip.templates))
    query.write_bytes(encoded(scene(4)))
    message = str(run(monkeypatch, *arguments))
    assert "holds another run: model.features.queries.query.png rather than duck" in message
    assert "no file at gone.png" in str(run(monkeypatch, *arguments, "--query-image", "gone.png"))
