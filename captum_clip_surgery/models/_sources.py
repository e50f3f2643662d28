"""Resolve a model's name: a configuration of open_clip, a folder, or a repository.

The form of a folder or repository is determined from its files, of which only configurations are
downloaded for this. If two forms fit, an error names both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from captum_clip_surgery._utils.errors import error_message
from captum_clip_surgery._utils.text import did_you_mean
from captum_clip_surgery.models._config_check import FILE, LOCAL
from captum_clip_surgery.models._schema import check_links, read_json
from captum_clip_surgery.models._transformers_files import CONFIG
from captum_clip_surgery.models._transformers_folder import (
    ADAPTER,
    INDEX,
    PICKLED,
    SAFE,
    class_of,
    is_dual_encoder,
)

HUB, TRANSFORMERS = "hf-hub:", "hf:"
SCHEMES = (LOCAL, HUB, TRANSFORMERS)
MODULES = "modules.json"  # of sentence-transformers
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
PLACES = (".", "/", "~")  # with which paths begin, and no repository
TIMEOUT_S = 20
#: Files of a repository in transformers' form that may be fetched, besides one form of weights.
TEXT_FILES = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class Source:
    """Resolved name of a model.

    Attributes:
        library: The library that builds the model, "open_clip" or "transformers".
        name: Name for open_clip, with a scheme unless it is that of a configuration; or the folder
            or repository for transformers.
        what: Description for `repr`.
        prefix: Of a repository for transformers, where in it the model's files are.
        patterns: Patterns of these files, which are to be fetched; empty for what is here.
    """

    library: str
    name: str
    what: str
    prefix: str = ""
    patterns: tuple[str, ...] = ()


def find_source(name: str, has_weights: bool, options: dict[str, Any]) -> Source:
    """Resolve the name of a model.

    Args:
        name: As the user wrote it.
        has_weights: Whether the user also named a tag or a file of weights.
        options: The user's options; `cache_dir`, `revision` and `token` are for the hub.

    Raises:
        FileNotFoundError: If a folder does not exist or holds no model.
        OSError: If the hub cannot be reached.
        ValueError: If nothing or more than one thing fits, or the model is not supported.
    """
    if name.startswith(LOCAL):
        return _of_folder(Path(name.removeprefix(LOCAL)), prefer="open_clip")
    if name.startswith(HUB):
        return Source(
            "open_clip", name, f"{name.removeprefix(HUB)} of the hub, in open_clip's form"
        )
    if name.startswith(TRANSFORMERS):
        place = name.removeprefix(TRANSFORMERS)
        if Path(place).is_dir():
            return _of_folder(Path(place), prefer="transformers")
        return _of_repository(place, options, prefer="transformers")
    configuration = name.replace("/", "-")  # as open_clip does: ViT-B/16
    known = configuration in open_clip.list_models()
    if known and Path(name).is_dir() and not has_weights and _forms(Path(name)):
        raise ValueError(
            f"{name!r} is a configuration of open_clip and a folder with a model: write "
            f"{LOCAL}{name} for the folder, or name a tag or file of weights for open_clip's"
        )
    if known:
        return Source("open_clip", configuration, configuration)
    if Path(name).is_dir():
        return _of_folder(Path(name))
    if Path(name).is_file():
        folder = Path(name).parent
        if (folder / CONFIG).is_file() or (folder / FILE).is_file():
            raise ValueError(
                f"{name} is a file, and a model is named by its folder: "
                f"from_pretrained({str(folder)!r}, ...)"
            )
        raise ValueError(
            f"{name} is a file of weights; the name is that of its configuration: "
            f"from_pretrained('ViT-B-16', {name!r}, ...), or the folder of a model"
        )
    if name.startswith(PLACES) or (REPOSITORY.fullmatch(name) and not has_weights):
        return _of_repository(name, options)
    raise ValueError(_unknown(name, has_weights))


def _unknown(name: str, has_weights: bool) -> str:
    if name.lower().startswith("clip-vit"):
        return (
            f"{name!r} is not a folder here; if the model of sentence-transformers is meant, write "
            f"sentence-transformers/{name}"
        )
    hint = did_you_mean(name.replace("/", "-"), open_clip.list_models(), 3)
    message = f"open_clip has no model {name!r}"
    if has_weights and REPOSITORY.fullmatch(name) and not hint:
        return f"{message}; name a repository of the hub without a pretrained tag"
    if has_weights:
        return f"{message}{hint}"
    return (
        f"{message}, and it is not a folder here or a repository of the hub (ORGANIZATION/NAME)"
        f"{hint}"
    )


# --- folders -------------------------------------------------------------------------------------


def _of_folder(folder: Path, prefer: str | None = None) -> Source:
    forms = _forms(folder)
    if prefer in forms:
        forms = {prefer: forms[prefer]}
    if len(forms) > 1:
        raise ValueError(
            f"{folder} holds a model in open_clip's form ({FILE}) and one in transformers' "
            f"({CONFIG}): write {LOCAL}{folder} for the first or {TRANSFORMERS}{folder} for the "
            "second"
        )
    if "transformers" in forms or prefer == "transformers":
        return Source("transformers", str(forms.get("transformers", folder)), str(folder))
    if not forms and prefer is None:
        raise FileNotFoundError(
            f"{folder} holds no model: no {FILE} (open_clip), {CONFIG} of a dual encoder "
            f"(transformers) or {MODULES} (sentence-transformers)"
        )
    # open_clip's door reports what it misses.
    return Source("open_clip", f"{LOCAL}{folder}", str(folder))


def _forms(folder: Path) -> dict[str, Path]:
    """Return the libraries in whose form a folder holds a model, with the model's folder."""
    forms: dict[str, Path] = {}
    if (folder / FILE).is_file():
        forms["open_clip"] = folder
    inner = folder
    if (folder / MODULES).is_file():
        check_links(folder)
        inner = folder / path_of_model(read_json(folder / MODULES), str(folder / MODULES))
    if (inner / CONFIG).is_file() and is_dual_encoder(read_json(inner / CONFIG)):
        forms["transformers"] = inner
    elif (inner / ADAPTER).is_file() and not forms:
        raise ValueError(
            f"{folder} holds only an adapter of peft; load its model, add the adapter "
            "(PeftModel.from_pretrained), and pass merge_and_unload() to ZeroShotClassifier"
        )
    return forms


def path_of_model(modules: Any, where: str) -> str:
    """Return where a folder of sentence-transformers has its CLIP, relative to it.

    Args:
        modules: Content of `modules.json`.
        where: Name of the file, for messages.

    Raises:
        ValueError: If it lists something other than a CLIP, perhaps followed by a normalization.
    """
    rows = modules if isinstance(modules, list) else []
    kinds = [str(row.get("type", "")).rpartition(".")[2] for row in rows if isinstance(row, dict)]
    first = kinds[0] if kinds else ""
    if first not in ("CLIPModel", "Transformer") or set(kinds[1:]) - {"Normalize"}:
        raise ValueError(
            f"{where} lists {', '.join(kinds)[:200] or 'no modules'}, expected only a CLIPModel, "
            "or with Normalize"
        )
    path = rows[0].get("path", "")
    if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"{where}: path is {path!r:.100}, expected a folder next to the file")
    return path


# --- repositories --------------------------------------------------------------------------------


def _of_repository(name: str, options: dict[str, Any], prefer: str | None = None) -> Source:
    """Tell the form of a repository from its list of files and its configuration only."""
    if name.startswith(PLACES):
        raise FileNotFoundError(f"no folder at {name}")
    files = _reached(name, lambda: set(_list_files(name, options)))
    forms = ["open_clip"] if FILE in files and prefer != "transformers" else []
    prefix = ""
    if MODULES in files:
        prefix = path_of_model(_read(name, MODULES, options), f"{name}/{MODULES}")
        prefix += "/" if prefix else ""
    if prefix + CONFIG in files:
        config = _read(name, prefix + CONFIG, options)
        if is_dual_encoder(config) or not forms:
            class_of(config, f"{name}/{prefix}{CONFIG}")  # refuses what is not supported
            forms.append("transformers")
    if len(forms) > 1:
        raise ValueError(
            f"the repository {name} holds a model in open_clip's form and one in transformers': "
            f"write {HUB}{name} for the first or {TRANSFORMERS}{name} for the second"
        )
    if not forms:
        raise ValueError(
            f"the repository {name} holds no model: no {FILE} (open_clip) and no {CONFIG} of a dual"
            " encoder (transformers)"
        )
    if forms == ["open_clip"]:
        return Source("open_clip", f"{HUB}{name}", f"{name} of the hub")
    # Of several forms of weights one is fetched: safetensors if there are any.
    weights = PICKLED
    if prefix + SAFE in files:
        weights = SAFE
    elif prefix + INDEX in files:
        weights = "model-*.safetensors"
    patterns = tuple(prefix + each for each in (*TEXT_FILES, weights))
    return Source("transformers", name, f"{name} of the hub", prefix, patterns)


def fetch_repository(source: Source, options: dict[str, Any]) -> Path:
    """Fetch the files of a repository in transformers' form, and return the model's folder."""
    import huggingface_hub

    folder = _reached(
        source.name,
        lambda: huggingface_hub.snapshot_download(
            source.name, allow_patterns=list(source.patterns), **_hub_options(options)
        ),
    )
    return Path(folder) / source.prefix


def _list_files(name: str, options: dict[str, Any]) -> Iterable[str]:
    """List a repository's files; without a hub, those in its cache."""
    import huggingface_hub

    hub = _hub_options(options)
    cached = huggingface_hub.constants.HF_HUB_OFFLINE
    if not cached:
        try:
            asked = {key: hub[key] for key in ("revision", "token") if key in hub}
            # In one request: the list of files alone is asked for six times without a network.
            about = huggingface_hub.HfApi().model_info(name, timeout=TIMEOUT_S, **asked)
            return [file.rfilename for file in about.siblings or ()]
        except (OSError, RuntimeError) as error:
            if getattr(getattr(error, "response", None), "status_code", None) is not None:
                raise  # the hub has answered
    folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True, **hub))
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _read(name: str, file: str, options: dict[str, Any]) -> Any:
    import huggingface_hub

    hub = _hub_options(options)
    return read_json(
        Path(_reached(name, lambda: huggingface_hub.hf_hub_download(name, file, **hub)))
    )


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("cache_dir", "revision", "token") if key in options}


def _reached(name: str, call: Callable[[], Any]) -> Any:
    """Call the hub; an error becomes one of at most three lines.

    Raises:
        OSError: If the hub cannot be reached, or has no such repository.
        ImportError: If huggingface_hub is not installed.
    """
    try:
        return call()
    except ImportError as error:
        raise ImportError(
            f"{name} is read as a repository of the hub: pip install "
            "'captum_clip_surgery[transformers]'"
        ) from error
    except Exception as error:  # the hub's client raises many types
        reason = error_message(error).strip().splitlines()[0][:300]
        hint = did_you_mean(name.replace("/", "-"), open_clip.list_models(), 3)
        raise OSError(
            f"{name} is neither a folder nor a configuration of open_clip, and as a repository of "
            f"the hub it cannot be loaded: {reason}{hint}"
        ) from error
