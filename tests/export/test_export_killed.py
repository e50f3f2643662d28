"""Exports killed at any moment, and damaged afterwards: what goes on from there."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from captum_clip_surgery._utils.checkpoint import CheckpointStore
from captum_clip_surgery.export import _shards as shards_module
from captum_clip_surgery.export import load_maps
from captum_clip_surgery.export._manifest import JOURNAL
from captum_clip_surgery.export._shards import FORMATS
from tests._helpers.written_export import (
    IMAGES,
    assert_same,
    export,
    export_whole,
    fail_at,
    finished,
    forked,
    shards,
    states,
    write_broken_folder,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_broken_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What an export comes to that nothing befalls, by format."""
    return export_whole(folder, tmp_path_factory.mktemp("whole"))


def killed(
    folder: Path, output: Path, format: str, choice: random.Random, most: float
) -> tuple[bool, set[str]]:
    """Go on with an export and kill it at a random moment; whether it had ended, what was done."""

    def going_on() -> None:
        export(folder, output, format=format, resume=True, workers=choice.choice([0, 2]))
        os._exit(0)

    process = forked(going_on)
    process.join(choice.uniform(0.0, most))
    alive = process.is_alive()
    if alive:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return not alive, finished(output)


def kill_again_and_again(
    folder: Path, output: Path, format: str, whole: Path, seed: int, times: int
) -> None:
    choice, wanted = random.Random(seed), shards(whole)
    before: dict[str, tuple[int, int]] = {}
    for _ in range(times):
        ended, done = killed(folder, output, format, choice, 0.5)
        # What has its name is whole, and what was finished was not made again.
        for name, content in (shards(output) if (output / "shards").exists() else {}).items():
            if ".part" not in name:
                assert content == wanted[name]
        assert before.keys() <= done
        assert states(output, list(before)) == before
        before = states(output, sorted(done))
        if ended:
            break
    export(folder, output, format=format, resume=True)
    assert states(output, list(before)) == before
    assert not list((output / "shards").glob("*.part"))
    assert_same(output, whole)


KILLS = [("webdataset", 0), ("webdataset", 1), ("zarr", 2)]
MORE = [
    pytest.param(format, seed, marks=pytest.mark.slow)
    for format in FORMATS
    for seed in range(10, 20)
]


@pytest.mark.filterwarnings("ignore:.*holds no run to go on with")
@pytest.mark.parametrize(("format", "seed"), KILLS + MORE)
def test_killed_at_random_moments(
    folder: Path, whole: dict[str, Path], tmp_path: Path, format: str, seed: int
) -> None:
    kill_again_and_again(folder, tmp_path / "out", format, whole[format], seed, times=5)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("owner", "name"), [(CheckpointStore, "add"), (shards_module, "sync")])
def test_killed_between_a_shards_name_and_the_journal(
    folder: Path,
    whole: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    owner: Any,
    name: str,
) -> None:
    def last_moment() -> None:
        fail_at(monkeypatch, owner, name, 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
        export(folder, tmp_path / "out", format=format)

    process = forked(last_moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(finished(tmp_path / "out")) <= 3
    export(folder, tmp_path / "out", format=format, resume=True)
    assert_same(tmp_path / "out", whole[format])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_shards_are_found_and_made_again(
    folder: Path, whole: dict[str, Path], tmp_path: Path, format: str, damage: str
) -> None:
    output = tmp_path / "out"
    export(folder, output, format=format)
    shard = next(path for path in sorted((output / "shards").iterdir()) if "2" in path.name)
    file = next(path for path in [shard, *shard.rglob("c/0/0/0/0")] if path.is_file())
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 3])
    else:
        content[1700 if format == "webdataset" else 30] ^= 1
        file.write_bytes(content)
    maps = load_maps(output)
    with pytest.raises(ValueError, match=shard.name):
        maps.verify()
    unreadable = 0
    for name, right in load_maps(whole[format]).items():
        try:
            assert (maps[name] == right).all()
        except (ValueError, FileNotFoundError) as error:
            assert shard.name in str(error)  # noqa: PT017
            unreadable += 1
    assert 1 <= unreadable <= 4
    with pytest.warns(UserWarning, match=f"{shard.name} is missing or fails"):
        result = export(folder, output, format=format, resume=True)
    assert result.made == 4
    assert_same(output, whole[format])


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_journal_is_done_again(
    folder: Path, whole: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    output = tmp_path / "out"
    export(folder, output)
    (path,) = (output / JOURNAL).glob("*.sqlite")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        database = sqlite3.connect(path)
        with database:
            database.execute("UPDATE pieces SET content = substr(content, 2) WHERE rowid = 3")
        database.close()
    with pytest.warns(UserWarning, match="computed again"):
        result = export(folder, output, resume=True)
    assert result.made == (IMAGES - 1 if damage == "cut" else 4)
    with pytest.warns(UserWarning, match="computed again"):
        assert_same_after_warning(output, whole["webdataset"])


def assert_same_after_warning(output: Path, whole: Path) -> None:
    assert len(finished(output)) == 9
    assert_same(output, whole)


def test_a_manifest_that_is_none(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out")
    (tmp_path / "out/manifest.json").write_text('{"images": 3')
    with pytest.raises(ValueError, match="no manifest of an export"):
        load_maps(tmp_path / "out")
    (tmp_path / "out/index.sqlite").write_bytes(b"x" * 8192)
    export(folder, tmp_path / "out", resume=True)
    load_maps(tmp_path / "out").verify()
    (tmp_path / "out/index.sqlite").write_bytes(b"x" * 8192)
    with pytest.raises(ValueError, match=r"index\.sqlite"):
        load_maps(tmp_path / "out")["a/s000.png"]
