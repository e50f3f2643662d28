"""Check tables of options read from files against the keys and types that are allowed in them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from captum_clip_surgery._utils.files import read_text
from captum_clip_surgery.models._file_kinds import describe_stand_in

MAX_TEXT = 10_000
TEMPLATES = "additional_chat_templates"  # a folder that transformers reads beside a tokenizer

#: The allowed values of an option, as data: `bool`, `float` (any finite number), `str` (of at most
#: `MAX_TEXT` characters), a `range` of integers, a tuple of choices, a `ListOf`, a table, or a list
#: of alternatives.
Spec: TypeAlias = Any
#: Allowed keys and their values; a key that ends in "?" may be null. "*" stands for any other key.
Table: TypeAlias = Mapping[str, Spec]


@dataclass(frozen=True)
class ListOf:
    """A list whose elements match `spec`, as long as `lengths` allows."""

    spec: Spec
    lengths: range


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: If the file is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        stand_in = describe_stand_in(path.read_bytes()[:512])
        raise ValueError(f"{path} is {stand_in or f'not JSON: {error}'}") from None


def check_table(where: str, table: Any, allowed: Table, prefix: str = "") -> None:
    """Check that a table has only allowed keys, with allowed values.

    Args:
        where: Name of the file, for the message.
        table: The table.
        allowed: Allowed keys and specifications of their values.
        prefix: Path of the table within the file, such as "model_cfg.text_cfg.".

    Raises:
        ValueError: If a key is not allowed, or a value does not match its specification.
    """
    if not isinstance(table, dict):
        what = f"{where}: {prefix.rstrip('.')}" if prefix else where
        raise ValueError(f"{what} is {table!r:.100}, expected a table")
    for key, value in table.items():
        name = f"{prefix}{key:.100}"
        spec = allowed.get(key, allowed.get("*"))
        if f"{key}?" in allowed:
            if value is None:
                continue
            spec = allowed[f"{key}?"]
        if spec is None or key == "*" or key.endswith("?"):
            raise ValueError(
                f"{where}: {name} is not an option that a file may set; remove it. "
                f"Allowed: {_keys(allowed)}"
            )
        if isinstance(spec, Mapping):
            check_table(where, value, spec, f"{name}.")
        elif not _matches(value, spec):
            raise ValueError(f"{where}: {name} is {value!r:.100}, expected {_describe(spec)}")


def check_links(folder: Path) -> None:
    """Check that no file in a folder, or in its folder of chat templates, is a link out of it.

    In a snapshot of the hub's cache, links into the `blobs` of the same repository are allowed.

    Raises:
        ValueError: If a link leads out of the folder.
    """
    real = folder.resolve()
    allowed = [real]
    if real.parent.name == "snapshots":
        allowed.append(real.parent.parent / "blobs")
    for path in (*folder.iterdir(), *folder.glob(f"{TEMPLATES}/*")):
        target = Path(os.path.realpath(path))
        if path.is_symlink() and not any(target.is_relative_to(root) for root in allowed):
            raise ValueError(f"{path} is a link that leads out of its folder; copy its file there")


def _matches(value: Any, spec: Spec) -> bool:
    match spec:
        case range():
            return type(value) is int and value in spec
        case tuple():
            return any(value == choice and type(value) is type(choice) for choice in spec)
        case list():
            return any(_matches(value, each) for each in spec)
        case ListOf():
            return (
                isinstance(value, list)
                and len(value) in spec.lengths
                and all(_matches(each, spec.spec) for each in value)
            )
        case Mapping():
            try:
                check_table("", value, spec)
            except ValueError:
                return False
            return True
    if spec is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is spec and (spec is not str or len(value) <= MAX_TEXT)


_NAMES = {bool: "true or false", float: "a finite number", str: "a string"}


def _describe(spec: Spec) -> str:
    match spec:
        case range():
            return f"a whole number from {spec[0]:,} to {spec[-1]:,}"
        case tuple():
            return f"one of {', '.join(map(json.dumps, spec))}" if spec else "null"
        case list():
            return ", or ".join(_describe(each) for each in spec)
        case ListOf():
            counts = spec.lengths
            count = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]:,}"
            return f"a list of {count} elements, each {_describe(spec.spec)}"
        case Mapping():
            return f"a table of {_keys(spec)}"
    return _NAMES[spec]


def _keys(allowed: Table) -> str:
    return ", ".join(key.rstrip("?") for key in allowed if key != "*") or "none"
