"""A cache of text features that cannot be used costs time and one warning, never a result."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from captum_clip_surgery.models.text import _cache as cache
from captum_clip_surgery.models.text._cache import FILE, TextCache
from captum_clip_surgery.models.text._encoder import PromptEncoder
from tests._helpers.text_towers import text_model

TEXTS = ["dog", "a remote control"]


def write_another_database(path: Path, statement: str = "CREATE TABLE notes (id INTEGER)") -> None:
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_folder_by_file(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.touch()


def link_into_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "no folder" / "file")


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def overwrite_pages(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def add_trigger(path: Path) -> None:
    """Its statements would run at every write."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TRIGGER swap AFTER INSERT ON features BEGIN DELETE FROM features; END"
        )


UNUSABLE_FILES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_text("no database at all" * 99),
    "overwritten pages": overwrite_pages,
    "half": lambda path: truncate(path, path.stat().st_size // 2),
    "header": lambda path: truncate(path, 100),
    "database of another program": write_another_database,
    "table of other columns": partial(
        write_another_database, statement="CREATE TABLE features (id INTEGER)"
    ),
    "view": partial(
        write_another_database,
        statement="CREATE VIEW features AS SELECT x'00' key, 'float32' dtype, x'' data, 0 checksum",
    ),
    "trigger": add_trigger,
    "directory": replace_by_directory,
    "link into nowhere": link_into_nowhere,
    "pipe": replace_by_pipe,
    "file in place of the folder": replace_folder_by_file,
}
STARTED_ANEW: dict[str, Callable[[Path], object]] = {
    "file deleted": Path.unlink,
    "folder deleted": lambda path: shutil.rmtree(path.parent),
    "file emptied": lambda path: truncate(path, 0),
}


@contextlib.contextmanager
def caught() -> Iterator[list[str]]:
    """Collect the warnings of a block."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield messages
    messages += [str(warning.message) for warning in found]


def encoder(folder: Path | None) -> PromptEncoder:
    return PromptEncoder(text_model(), templates=["my {}"], cache=folder)


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return encoder(None)([*TEXTS, "new"])


@pytest.mark.parametrize("case", UNUSABLE_FILES)
def test_an_unusable_file_is_named_once_and_left_alone(tmp_path, expected, case):
    folder = tmp_path / "cache"
    path = folder / FILE
    in_use = encoder(folder)
    in_use(TEXTS)
    UNUSABLE_FILES[case](path)
    before = path.read_bytes() if path.is_file() else None
    for used in (in_use, None):
        with caught() as messages:
            used = used or encoder(folder)
            assert_close(used([*TEXTS, "new"]), expected)
            used(["another"])
        assert len(messages) == 1
        assert str(path) in messages[0]
        assert "Delete the file if it is damaged" in messages[0]
    if before is not None:
        assert path.read_bytes() == before
    # What the warning says to do.
    shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    with caught() as messages:
        in_use(["yet another"])
        assert_close(encoder(folder)([*TEXTS, "new"]), expected)
    assert not messages
    assert path.is_file()


@pytest.mark.parametrize("case", STARTED_ANEW)
def test_a_cache_deleted_while_in_use_is_started_anew(tmp_path, expected, case):
    path = tmp_path / "cache" / FILE
    in_use = encoder(path.parent)
    in_use(TEXTS)
    STARTED_ANEW[case](path)
    with caught() as messages:
        assert_close(in_use([*TEXTS, "new"]), expected)
    assert not messages
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM features").fetchone() == (1,)


HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_of_another_process_is_waited_for_once(tmp_path, monkeypatch, expected):
    monkeypatch.setattr(cache, "TIMEOUT_S", 0.05)
    in_use = encoder(tmp_path)
    in_use(TEXTS)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / FILE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"held\n"
    timeouts = []
    connect = sqlite3.connect

    def recorded(path: Path, timeout: float = 5.0) -> sqlite3.Connection:
        timeouts.append(timeout)
        return connect(path, timeout)

    monkeypatch.setattr(sqlite3, "connect", recorded)
    with pytest.warns(UserWarning, match="database is locked") as found:
        assert_close(in_use(["new"]), expected[2:])
    assert len(found) == 1
    assert timeouts[0] == 0.05
    assert set(timeouts[1:]) == {0.0}
    holder.communicate()
    with caught() as messages:  # and used again once the lock is gone
        in_use(["later"])
        in_use(["last"])
    assert not messages
    assert timeouts[-1] == 0.05
    assert len(rows(tmp_path)) == 4


def rows(folder: Path) -> list[bytes]:
    with contextlib.closing(sqlite3.connect(folder / FILE)) as database:
        return [key for (key,) in database.execute("SELECT key FROM features ORDER BY rowid")]


def limited(statement: str) -> Callable[..., sqlite3.Connection]:
    connect = sqlite3.connect

    def opened(path: Path, timeout: float) -> sqlite3.Connection:
        database = connect(path, timeout)
        database.execute(statement)
        return database

    return opened


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("PRAGMA max_page_count = 4", "database or disk is full"),
        ("PRAGMA query_only = 1", "attempt to write a readonly database"),
    ],
)
def test_what_is_stored_is_read_where_nothing_can_be_written(
    tmp_path, monkeypatch, statement, reason
):
    known = torch.randn(3)
    TextCache(tmp_path).put({b"known": known})
    monkeypatch.setattr(sqlite3, "connect", limited(statement))
    cache = TextCache(tmp_path)
    new = {bytes([i]): torch.randn(512) for i in range(40)}
    with caught() as messages:
        for key, feature in new.items():
            cache.put({key: feature})
            assert torch.equal(cache.get([b"known"])[b"known"], known)
    assert len(messages) == 1
    assert reason in messages[0]
    found = cache.get(new)
    assert all(torch.equal(found[key], new[key]) for key in found)
    assert len(found) < len(new)


# --- in a process of its own ---------------------------------------------------------------------


def in_child(work: Callable[[], None]) -> None:
    """Run a check in a fork, whose limits and user may change."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def check_limited_size(cache: TextCache) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    with caught() as messages:
        for i in range(40):
            cache.put({b"%d" % i: torch.full((512,), float(i))})
    assert len(messages) == 1
    assert str(cache.path) in messages[0]
    found = cache.get([b"%d" % i for i in range(40)])
    assert 0 < len(found) < 40
    assert all(int(key) == value.unique().item() for key, value in found.items())


def check_read_only(cache: TextCache) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    for used in (cache, None):
        with caught() as messages:
            used = used or TextCache(cache.path.parent)
            used.put({b"new": torch.ones(3)})
            used.put({b"newer": torch.ones(3)})
            assert set(used.get([b"known", b"new"])) == {b"known"}
        assert len(messages) == 1
        assert "readonly" in messages[0]


def check_no_access(folder: Path) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    with caught() as messages:
        cache = TextCache(folder)
        cache.put({b"new": torch.ones(3)})
        assert cache.get([b"new"]) == {}
    assert len(messages) == 1
    assert "ermission denied" in messages[0] or "unable to open" in messages[0]


def test_a_full_disk(tmp_path):
    in_child(partial(check_limited_size, TextCache(tmp_path)))
    cache = TextCache(tmp_path)  # whole, and used again
    cache.put({b"new": torch.ones(3)})
    assert b"new" in cache.get([b"new"])


def test_folders_without_permissions():
    with tempfile.TemporaryDirectory() as made:  # pytest's own is closed to other users
        folder = Path(made)
        cache = TextCache(folder)
        cache.put({b"known": torch.ones(3)})
        cache.path.chmod(0o444)
        folder.chmod(0o555)
        in_child(partial(check_read_only, cache))
        in_child(partial(check_no_access, folder / "new"))
        folder.chmod(0o700)
        if os.getuid() == 0:
            in_child(partial(check_no_access, folder))


def test_forks_pickles_and_other_working_directories_share_the_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = TextCache("here")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    in_child(lambda: cache.put({b"child": torch.ones(3)}))
    pickle.loads(pickle.dumps(cache)).put({b"pickled": torch.ones(3)})
    assert rows(tmp_path / "here") == [b"child", b"pickled"]
    assert not list((tmp_path / "elsewhere").iterdir())


# --- its size ------------------------------------------------------------------------------------


def test_the_oldest_features_make_room(tmp_path):
    bound = 300_000
    cache = TextCache(tmp_path, max_bytes=bound)
    features = {b"%d" % i: torch.full((512,), float(i)) for i in range(400)}
    keys = list(features)
    for start in range(0, 400, 20):
        cache.put({key: features[key] for key in keys[start : start + 20]})
        cache.put({keys[0]: features[keys[0]]})  # computed and written again, so never the oldest
        assert (tmp_path / FILE).stat().st_size < bound + 20 * 6000
        assert keys[0] in cache.get([keys[0]])
    kept = rows(tmp_path)
    assert kept == [*keys[-len(kept) + 1 :], keys[0]]
    assert len(kept) > 0.5 * bound / 4200
    assert all(torch.equal(found, features[key]) for key, found in cache.get(keys).items())


def test_a_smaller_bound_holds_for_what_is_there(tmp_path):
    TextCache(tmp_path).put({b"%d" % i: torch.zeros(512) for i in range(400)})
    cache = TextCache(tmp_path, max_bytes=100_000)
    cache.put({b"new": torch.ones(512)})
    assert len(rows(tmp_path)) < 30
    assert b"new" in cache.get([b"new"])
    TextCache(tmp_path, max_bytes=1).put({b"more": torch.ones(512)})  # nothing fits
    assert rows(tmp_path) == []


def test_threads_that_read_write_and_delete_at_once(tmp_path):
    cache = TextCache(tmp_path, max_bytes=200_000)
    wrong = []

    def work(first: int) -> None:
        for i in range(first, first + 40):
            cache.put({b"%d" % i: torch.full((512,), float(i))})
            for key, found in cache.get([b"%d" % j for j in range(i - 5, i + 5)]).items():
                wrong.extend([key] if int(key) != found.unique().item() else [])

    threads = [threading.Thread(target=work, args=(20 * i,)) for i in range(4)]
    with caught() as messages:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert not messages
    assert rows(tmp_path)
