"""Journals of runs: what survives a kill, a full disk and damage, and what is refused."""

from __future__ import annotations

import multiprocessing
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from captum_clip_surgery._utils import locks
from captum_clip_surgery._utils.checkpoint import CheckpointStore

ABOUT = {"images": 3, "model": {"name": "ViT", "weights": "ab" * 32}, "methods": ["CLIP"]}
SPAWN = multiprocessing.get_context("fork")


def written(folder: Path, pieces: dict[str, bytes]) -> Path:
    """The SQLite file of a journal with these pieces."""
    with CheckpointStore(folder, ABOUT) as journal:
        for key, content in pieces.items():
            journal.add(key, content)
    (file,) = folder.glob("*.sqlite")
    return file


def resumed(folder: Path) -> dict[str, bytes]:
    with CheckpointStore(folder, ABOUT, resume=True) as journal:
        return journal.completed()


def test_pieces_of_all_processes_and_runs(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, ABOUT) as first, CheckpointStore.open(tmp_path) as second:
        first.add("0", b"a")
        second.add("1", b"b\0c")
        first.add("2", b"")
        assert second.completed() == {"0": b"a", "1": b"b\0c", "2": b""}
    with CheckpointStore(tmp_path, ABOUT, resume=True) as third:
        third.add("3", b"d")
    assert resumed(tmp_path) == {"0": b"a", "1": b"b\0c", "2": b"", "3": b"d"}
    assert len(list(tmp_path.glob("*.sqlite"))) == 3


def test_a_run_is_not_taken_for_another(tmp_path: Path) -> None:
    written(tmp_path, {"0": b"a"})
    with pytest.raises(FileExistsError, match="--resume to continue it"):
        CheckpointStore(tmp_path, ABOUT)
    for changed, said in (
        (ABOUT | {"images": 4}, "images was 3, is 4"),
        (ABOUT | {"methods": ["CLIP", "GEM"]}, r'methods was \["CLIP"\], is \["CLIP", "GEM"\]'),
        (
            ABOUT | {"model": {"name": "ViT", "weights": "cd" * 32}},
            r'model.weights was "abab.*cdcd',
        ),
        (ABOUT | {"limit": 5}, "limit was null, is 5"),
        ({"images": 3}, "methods was .* is null; model was .* is null"),
    ):
        with pytest.raises(ValueError, match=said):
            CheckpointStore(tmp_path, changed, resume=True)
    with pytest.raises(ValueError, match="n4 was null, is 4; and 1 more"):
        CheckpointStore(tmp_path, ABOUT | {f"n{i}": i for i in range(6)}, resume=True)
    assert resumed(tmp_path) == {"0": b"a"}


def test_resuming_where_nothing_lies_begins_anew_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="holds no run to resume: starting a new one"):
        journal = CheckpointStore(tmp_path / "new", ABOUT, resume=True)
    with journal:
        journal.add("0", b"a")
    assert resumed(tmp_path / "new") == {"0": b"a"}


def test_pieces_of_nobody_knows_what_are_refused(tmp_path: Path) -> None:
    written(tmp_path, {"0": b"a"})
    (tmp_path / "run.json").unlink()
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"pieces of a run, but no run\.json"):
            CheckpointStore(tmp_path, ABOUT, resume)


@pytest.mark.parametrize("content", [b"", b'{"images": 3', b"\xff\xfe", b"7"])
def test_damage_to_what_the_run_was_of(tmp_path: Path, content: bytes) -> None:
    written(tmp_path, {"0": b"a"})
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged|cannot be resumed"):
        CheckpointStore(tmp_path, ABOUT, resume=True)


def test_joining_where_the_folder_is_not_shared(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="all processes need to share the folder"):
        CheckpointStore.open(tmp_path / "elsewhere")


def _hold(folder: Path, ready: object, end: object) -> None:
    with CheckpointStore(folder, ABOUT, resume=True):
        ready.set()  # type: ignore[attr-defined]
        end.wait(20)  # type: ignore[attr-defined]


def test_a_run_that_still_goes_on_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, {"0": b"a"})
    ready, end = SPAWN.Event(), SPAWN.Event()
    holder = SPAWN.Process(target=_hold, args=(tmp_path, ready, end))
    holder.start()
    assert ready.wait(20)
    monkeypatch.setattr(locks, "TIMEOUT_S", 0.3)
    with pytest.raises(FileExistsError, match="still active"):
        CheckpointStore(tmp_path, ABOUT, resume=True)
    for _ in range(2):  # one of the same run, which leaves no lock where it ends
        CheckpointStore.open(tmp_path).close()
    monkeypatch.setattr(locks, "TIMEOUT_S", 20)
    holder.kill()  # the lock ends with it, however it ends
    assert resumed(tmp_path) == {"0": b"a"}
    holder.join()


def test_closing_one_journal_keeps_the_lock_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system unlocks a file for a process that closes it anywhere."""
    monkeypatch.setattr(locks, "TIMEOUT_S", 0.3)
    first = CheckpointStore(tmp_path, ABOUT)
    CheckpointStore.open(tmp_path).close()
    with pytest.raises(ValueError, match="images was"):
        CheckpointStore(tmp_path, ABOUT | {"images": 4}, resume=True)
    assert _refused(tmp_path)
    first.close()
    assert not _refused(tmp_path)


def _refused(folder: Path) -> bool:
    other = SPAWN.Process(target=resumed, args=(folder,))
    other.start()
    other.join(20)
    return bool(other.exitcode)


def test_a_file_without_a_table_is_of_a_process_killed_early(tmp_path: Path) -> None:
    written(tmp_path, {"0": b"a"})
    (tmp_path / "empty.sqlite").touch()
    with closing(sqlite3.connect(tmp_path / "begun.sqlite")) as connection:
        connection.execute("PRAGMA user_version = 1")
    assert resumed(tmp_path) == {"0": b"a"}


@pytest.mark.filterwarnings("ignore:.*damaged")
@pytest.mark.filterwarnings("ignore:.*checksum")
def test_no_flipped_bit_gets_through(tmp_path: Path) -> None:
    """Every byte but those of padding: what is found is what was kept, or is missing."""
    pieces = {f"task {number}": bytes([number]) * 40 for number in range(4)}
    file = written(tmp_path, pieces)
    sound = file.read_bytes()
    places = [place for place, byte in enumerate(sound) if byte]
    missed = 0
    for number, place in enumerate(places):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << number % 8
        file.write_bytes(damaged)
        found = resumed(tmp_path)
        assert found.items() <= pieces.items(), place
        missed += found != pieces
    # The content, keys and checksums of all four, at least.
    assert missed >= sum(len(key) + len(content) + 32 for key, content in pieces.items())


def test_truncated_files_lose_what_they_lose(tmp_path: Path) -> None:
    pieces = {f"task {number}": bytes([number]) * 3000 for number in range(8)}
    file = written(tmp_path, pieces)
    sound = file.read_bytes()
    for size in range(0, len(sound), 1111):
        file.write_bytes(sound[:size])
        if size:
            with pytest.warns(
                UserWarning, match=r"(is damaged|fails its checksum) .*computed again"
            ):
                found = resumed(tmp_path)
        else:
            found = resumed(tmp_path)
        assert found.items() < pieces.items()
    file.write_bytes(sound)
    assert resumed(tmp_path) == pieces


def _fill(journal: CheckpointStore, kept: dict[str, bytes]) -> None:
    for number in range(100):
        journal.add(f"task {number}", bytes(3000))
        kept[f"task {number}"] = bytes(3000)


def test_a_full_disk_is_said_and_costs_nothing_that_was_kept(tmp_path: Path) -> None:
    kept: dict[str, bytes] = {}
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with CheckpointStore(tmp_path, ABOUT) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
        try:
            with pytest.raises(OSError, match=r"piece 'task \d+' could not be stored .* disk full"):
                _fill(journal, kept)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert 10 < len(kept) < 40
        assert journal.completed() == kept
        journal.add("later", b"room again")
    assert resumed(tmp_path) == kept | {"later": b"room again"}


def _add_until_killed(folder: Path) -> None:
    journal = CheckpointStore(folder, ABOUT, resume=True)
    for number in range(100_000):
        journal.add(f"task {number}", number.to_bytes(4, "big") * 200)
        (folder / "told").write_text(str(number))


@pytest.mark.parametrize("moment", [0.01, 0.05, 0.1, 0.2])
def test_what_was_added_survives_a_kill(tmp_path: Path, moment: float) -> None:
    """What `add` returned from is there, whole, whenever the process is killed."""
    CheckpointStore(tmp_path, ABOUT).close()
    writer = SPAWN.Process(target=_add_until_killed, args=(tmp_path,))
    writer.start()
    writer.join(moment)
    writer.kill()
    writer.join()
    told = tmp_path / "told"
    added = int(told.read_text() or 0) if told.exists() else -1
    found = resumed(tmp_path)
    # One more may have been on its way; the note may have been emptied to be written anew.
    assert len(found) >= added + 1
    assert all(
        content == int(key.split()[1]).to_bytes(4, "big") * 200 for key, content in found.items()
    )
    assert sorted(int(key.split()[1]) for key in found) == list(range(len(found)))
