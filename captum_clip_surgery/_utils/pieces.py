"""A long run's results in pieces: piece n is one Parquet file, and is done once the file exists.

Whoever computes piece n writes it under a temporary name and renames it when it is complete and on
the disk. Processes share nothing but the folder, so any loop, cluster or scheduler can map a
function over piece numbers, at once or after a crash; a piece made twice is the same piece. Every
page of a file carries a checksum, and the mark at a file's end tells a file that was cut, as by an
object store that copies where a disk renames, from a complete one.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from captum_clip_surgery._utils.errors import error_message

RUN = "run.json"
#: First and last bytes of a Parquet file; the last ones are written when it is complete.
MARK = b"PAR1"
#: Seconds since its last change after which a temporary file of another machine is removed.
STALE_S = 86400.0
#: A function that writes a table (`pyarrow.Table`) as one row group.
Write = Callable[[Any], None]


def arrow() -> Any:
    """Import `pyarrow` and `pyarrow.parquet`.

    Raises:
        ImportError: If pyarrow is not installed.
    """
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError as error:
        raise ImportError(
            "results are stored as Parquet files, which needs pyarrow; install the extra: "
            "pip install 'captum_clip_surgery[export]'"
        ) from error


def start_run(folder: Path, settings: Mapping[str, Any], replace: bool = False) -> None:
    """Describe a new run in its folder, or check that the run in the folder is the same one.

    Args:
        folder: Folder of the run, created if needed.
        settings: Everything that determines the results, as JSON.
        replace: Whether this run replaces any in the folder, which must not have results.

    Raises:
        ValueError: If the folder holds another run, or its description is damaged; the message
            lists the differences.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN
    if replace or not path.exists():
        write_text(path, json.dumps(settings, indent=2) + "\n", replace)
    changed = list(differences("", read_run(folder), json.loads(json.dumps(settings))))
    if changed:
        raise ValueError(
            f"{folder} holds another run: {'; '.join(changed[:5])}"
            + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
            + ". Choose another folder, or the settings of that run"
        )


def read_run(folder: Path) -> Any:
    """Return the settings of the run in a folder.

    Raises:
        FileNotFoundError: If there is no run in the folder.
        ValueError: If its description is damaged.
    """
    try:
        return json.loads((folder / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} holds no {RUN}: no run was started there, or this machine does not see it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{folder / RUN} is damaged ({error}), so the settings of the run are unknown; start "
            "a new run in another folder"
        ) from None


@dataclass(frozen=True)
class Pieces:
    """Numbered Parquet files `000000.parquet`, ...; a piece is complete if its file exists.

    Small and picklable, so that it can be sent to other processes and machines.

    Args:
        folder: Folder of the files, on a disk that all processes share.
        count: Number of pieces.

    Example::

        >>> import tempfile
        >>> import pyarrow
        >>> pieces = Pieces(Path(tempfile.mkdtemp()), 3)
        >>> pieces.write(1, pyarrow.table({"score": [0.5, 0.25]}))
        >>> pieces.left(), pieces.read(1)["score"].to_pylist()
        ([0, 2], [0.5, 0.25])
    """

    folder: Path
    count: int

    def path(self, number: int) -> Path:
        """Return the file of a piece, whether it exists or not."""
        return self.folder / f"{number:06d}.parquet"

    def is_done(self, number: int) -> bool:
        """Return whether a piece's file exists and ends as a complete file does."""
        try:
            with self.path(number).open("rb") as file:
                file.seek(-len(MARK), os.SEEK_END)
                return file.read() == MARK
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.EINVAL:  # shorter than the mark
                return False
            raise

    def left(self) -> list[int]:
        """Return the numbers of the pieces that are not done."""
        return [number for number in range(self.count) if not self.is_done(number)]

    def writer(self, number: int, schema: Any, **options: Any) -> AbstractContextManager[Write]:
        """Write a piece table by table; see `write_parquet`."""
        return write_parquet(self.path(number), schema, **options)

    def write(self, number: int, table: Any, **options: Any) -> None:
        """Write a piece that is one table (`pyarrow.Table`).

        Raises:
            OSError: If the file cannot be written, as on a full disk.
        """
        with self.writer(number, table.schema, **options) as write:
            write(table)

    @contextmanager
    def open(self, number: int) -> Iterator[Any]:
        """Open a piece (`pyarrow.parquet.ParquetFile`); reading it checks its checksums.

        Raises:
            FileNotFoundError: If the piece is not done.
            ValueError: If the file is damaged.
        """
        path = self.path(number)
        with (
            damage_as_error(path),
            arrow().parquet.ParquetFile(path, page_checksum_verification=True) as file,
        ):
            yield file

    def read(self, number: int, columns: Iterable[str] | None = None) -> Any:
        """Return the rows of a piece (`pyarrow.Table`).

        Raises:
            FileNotFoundError: If the piece is not done.
            ValueError: If the file is damaged.
        """
        names = None if columns is None else list(columns)
        with self.open(number) as file:
            table = file.read(names)
            if names is not None and set(table.column_names) != set(names):
                raise ValueError(f"it has no columns {', '.join(names)}")
            return table

    def damaged(self, schema: Any = None) -> dict[int, str]:
        """Read all finished pieces and return what is wrong with each damaged one, by its number.

        Args:
            schema: Schema that all pieces must have (`pyarrow.Schema`); None accepts any.
        """
        found = {}
        for number in range(self.count):
            try:
                with self.open(number) as file:
                    for group in range(file.num_row_groups):
                        file.read_row_group(group).validate(full=True)
                    if schema is not None and not file.schema_arrow.equals(schema):
                        raise ValueError("it has other columns")
            except FileNotFoundError:
                continue
            except ValueError as error:
                found[number] = str(error)
        return found

    def verify(self, schema: Any = None) -> dict[int, str]:
        """Remove damaged pieces, which are then left to be computed; return what is wrong."""
        found = self.damaged(schema)
        for number in found:
            self.path(number).unlink(missing_ok=True)
        return found

    def clean(self, warn: bool = True) -> None:
        """Remove temporary files of processes that have ended.

        Those of another machine are removed a day after their last change.

        Args:
            warn: Whether to warn of files that another run may be writing.
        """
        active = []
        for part in self.folder.glob(".*.part"):
            with suppress(FileNotFoundError):
                if _may_be_written(part):
                    active.append(part)
                else:
                    part.unlink()
        if warn and active:
            warnings.warn(
                f"another run seems to write to {self.folder} ({active[0].name}): the results stay "
                "the same, but pieces may be computed twice",
                stacklevel=2,
            )


@contextmanager
def write_parquet(path: Path, schema: Any, **options: Any) -> Iterator[Write]:
    """Write a Parquet file table by table; the file gets its name when the block ends.

    If the block raises, nothing of the file remains.

    Args:
        path: The file; its folder is created if needed.
        schema: Schema of its rows (`pyarrow.Schema`).
        options: Further arguments of `pyarrow.parquet.ParquetWriter`.

    Yields:
        A function that writes a table as one row group.

    Raises:
        OSError: If the file cannot be written, as on a full disk.
    """
    part = _temporary(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _write_errors(path):
        try:
            with arrow().parquet.ParquetWriter(
                part, schema, write_page_checksum=True, **options
            ) as file:
                yield file.write_table
            with part.open("rb+") as written:
                os.fsync(written.fileno())
            part.replace(path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def write_text(path: Path, text: str, replace: bool = True) -> None:
    """Write a text file, which gets its name when it is complete.

    Args:
        path: The file.
        text: Its content.
        replace: Whether to replace a file of this name; otherwise the earlier one stays.

    Raises:
        OSError: If the file cannot be written, as on a full disk.
    """
    part = _temporary(path)
    with _write_errors(path):
        try:
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if replace or not _link(part, path):
                part.replace(path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _link(part: Path, path: Path) -> bool:
    """Name a file unless the name is taken; return whether the file system has links."""
    try:
        path.hardlink_to(part)
    except FileExistsError:  # another process was faster
        pass
    except OSError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of files to the disk, where the system can."""
    with suppress(OSError):  # not on every system or network disk
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def damage_as_error(path: Path) -> Iterator[None]:
    """Turn what reading a damaged Parquet file raises into one error that names the file.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError, MemoryError) as error:
        # Errors of the system have a number; pyarrow reports damage as an OSError without one.
        if (isinstance(error, OSError) and error.errno) or str(path) in str(error):
            raise
        raise ValueError(
            f"{path} is damaged ({error_message(error):.200}); remove it and run the same command "
            "again to recompute it"
        ) from error


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(
                error.errno,
                f"no space left to write {path}; finished files are complete: free some space and "
                "run the same command again to resume",
            ) from error
        raise


def _temporary(path: Path) -> Path:
    """Return a temporary name that is this writer's own, and hidden from readers of the folder."""
    host = platform.node().replace(" ", "-")
    return path.with_name(f".{path.stem}~{host}~{os.getpid()}~{uuid.uuid4().hex[:8]}.part")


def _may_be_written(part: Path) -> bool:
    """Return whether a temporary file may belong to another process that is alive."""
    _, host, process, _ = (*part.name.split("~"), "", "", "")[:4]
    if host != platform.node().replace(" ", "-") or not process.isdecimal():
        return time.time() - part.stat().st_mtime < STALE_S
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return int(process) != os.getpid()


def differences(where: str, before: Any, now: Any) -> Iterator[str]:
    """Yield the differences between two JSON values below the key `where`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            name = f"{where}.{key}" if where else key
            yield from differences(name, before.get(key), now.get(key))
    elif before != now:
        yield f"{where} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
