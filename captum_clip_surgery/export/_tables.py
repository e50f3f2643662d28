"""Images in rows of Parquet files and of Hugging Face data sets that were saved to disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captum_clip_surgery._utils.files import read_json
from captum_clip_surgery._utils.pieces import arrow, write_text
from captum_clip_surgery.export._entries import Entry, Shard, describe, raise_passing

#: Names of columns that hold the path of an image.
PATH_COLUMNS = ("image", "path", "file", "filename", "file_name", "image_path", "file_path")
#: Names that decide between several columns of image bytes.
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "bytes")
#: Files that mark a data set saved by `save_to_disk`, and one of several splits.
STATE, SPLITS = "state.json", "dataset_dict.json"
#: List of shards in the folder of an export.
TABLES = "tables.json"
#: Number of rows that are held at a time.
ROWS = 64


@dataclass(frozen=True)
class TableShard(Shard):
    """Rows of a table.

    Attributes:
        path: File of the table.
        column: Name of the column of images.
        start: Number of the first row, in the file or in the data set.
        rows: Number of rows.
    """

    path: Path
    column: str
    start: int
    rows: int

    @property
    def images(self) -> int:
        """Number of images."""
        return self.rows


@dataclass(frozen=True)
class ParquetShard(TableShard):
    """Row groups of a Parquet file.

    Attributes:
        groups: Numbers of the row groups.
    """

    groups: tuple[int, ...]

    def entries(self) -> Iterator[Entry]:
        """Yield the images in order, not decoded yet."""

        def cells() -> Iterator[Any]:
            with arrow().parquet.ParquetFile(self.path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(ROWS, list(self.groups), [self.column]):
                    yield from batch.column(0)

        yield from _entries(cells(), self.path, f"{self.path.stem}/", self.start)


@dataclass(frozen=True)
class ArrowShard(TableShard):
    """Rows of an Arrow file of a saved data set.

    Attributes:
        skip: Number of rows before them in the file.
    """

    skip: int

    def entries(self) -> Iterator[Entry]:
        """Yield the images in order, not decoded yet."""

        def cells() -> Iterator[Any]:
            yield from _arrow_table(self.path)[self.column].slice(self.skip, self.rows)

        yield from _entries(cells(), self.path, "", self.start)


def _entries(cells: Iterator[Any], path: Path, prefix: str, start: int) -> Iterator[Entry]:
    """Yield the images in cells; damage of the file ends them with an entry that tells it."""
    row = start
    try:
        for row, cell in enumerate(cells, start):
            yield _entry(cell.as_py(), f"{prefix}{row:06}", path.parent)
    except Exception as error:  # a damaged file says so in many ways
        raise_passing(error, str(path))
        yield Entry(path.name, None, f"read no further than row {row}: {describe(error)}")


def _entry(cell: Any, name: str, folder: Path) -> Entry:
    if isinstance(cell, str):
        return Entry(cell, folder / cell)
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not content:
        why = "the cell has no bytes of an image; paths next to empty bytes are not followed"
        return Entry(name, None, why)
    return Entry(name, content)


def open_parquet(paths: Sequence[Path], shard_size: int, column: str | None) -> list[TableShard]:
    """Divide Parquet files into shards of whole row groups.

    Args:
        paths: The files.
        shard_size: Number of rows from which a shard is complete.
        column: Name of the column of images; None finds it.

    Raises:
        ValueError: If a file is not a Parquet file, or the column is missing or ambiguous.
    """
    shards: list[TableShard] = []
    for path in paths:
        try:
            with arrow().parquet.ParquetFile(path) as file:
                schema, groups = file.schema_arrow, file.metadata
                sizes = [groups.row_group(n).num_rows for n in range(groups.num_row_groups)]
        except Exception as error:
            raise_passing(error, str(path))
            raise ValueError(f"{path} cannot be read as Parquet: {describe(error)}") from None
        chosen = image_column(schema, column, path)
        start, first = 0, 0
        for last in range(len(sizes)):
            count = sum(sizes[first : last + 1])
            if count >= shard_size or last == len(sizes) - 1:
                numbers = tuple(range(first, last + 1))
                shards.append(ParquetShard(len(shards), path, chosen, start, count, numbers))
                start, first = start + count, last + 1
    return shards


def open_saved(
    root: Path, shard_size: int, column: str | None
) -> tuple[list[Path], list[TableShard]]:
    """Divide a data set saved by `save_to_disk` into shards.

    Returns:
        Its Arrow files, and its shards.

    Raises:
        ValueError: If its files cannot be read, or the column is missing or ambiguous.
    """
    paths, shards, row = [], list[TableShard](), 0
    try:
        names = [part["filename"] for part in read_json(root / STATE)["_data_files"]]
        for name in names:
            if Path(name).name != name:
                raise ValueError(f"{STATE} names {name!r:.80}, not in its folder")
            paths.append(root / name)
        tables = [_arrow_table(path) for path in paths]
    except Exception as error:
        raise_passing(error, str(root))
        raise ValueError(
            f"{root} cannot be read as a saved Hugging Face data set: {describe(error)}"
        ) from None
    for path, table in zip(paths, tables, strict=True):
        chosen = image_column(table.schema, column, path)
        for skip in range(0, table.num_rows, shard_size):
            count = min(shard_size, table.num_rows - skip)
            shards.append(ArrowShard(len(shards), path, chosen, row + skip, count, skip))
        row += table.num_rows
    return paths, shards


def save_shards(path: Path, shards: Sequence[Shard]) -> None:
    """Write which rows make which shard, so that other processes need not open every table."""
    rows = [
        [type(shard).__name__, {**vars(shard), "path": str(shard.path.absolute())}]
        for shard in shards
        if isinstance(shard, TableShard)
    ]
    write_text(path, json.dumps(rows))


def load_shards(path: Path) -> list[TableShard]:
    """Read what `save_shards` wrote."""
    kinds = {kind.__name__: kind for kind in (ParquetShard, ArrowShard)}
    shards: list[TableShard] = []
    for kind, fields in read_json(path):
        fields["path"] = Path(fields["path"])
        if "groups" in fields:
            fields["groups"] = tuple(fields["groups"])
        shards.append(kinds[kind](**fields))
    return shards


def _arrow_table(path: Path) -> Any:
    """Open an Arrow file, whose columns stay on the disk until they are used."""
    pa = arrow()
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def image_column(schema: Any, column: str | None, path: Path) -> str:
    """Return the name of the column of images.

    It holds structs with `bytes`, as Hugging Face writes images, or bytes, or paths, which are
    relative to the file's folder.

    Args:
        schema: Arrow schema of the file.
        column: Name chosen by the user, or None.
        path: The file, for the message.

    Raises:
        ValueError: If there is no such column, or several.
    """
    types = arrow().types
    columns: dict[str, list[str]] = {"struct": [], "bytes": [], "path": []}
    for field in schema:
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            columns["struct"].append(field.name)
        elif types.is_binary(field.type) or types.is_large_binary(field.type):
            columns["bytes"].append(field.name)
        elif field.name in (column, *PATH_COLUMNS) and (
            types.is_string(field.type) or types.is_large_string(field.type)
        ):
            columns["path"].append(field.name)
    if column is not None:
        found = [column] if any(column in names for names in columns.values()) else []
    else:
        found = next((names for names in columns.values() if names), [])
        found = [name for name in IMAGE_COLUMNS if name in found][:1] or found
    if len(found) != 1:
        raise ValueError(
            f"{path} has the columns {', '.join(schema.names):.300}; expected one of images"
            f"{f', got {column!r:.80}' if column else ''}: structs with bytes (as Hugging Face "
            "writes them), bytes, or paths. Choose it by column="
        )
    return found[0]
