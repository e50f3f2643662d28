"""The one door to models: by name, from files, folders and repositories, of both libraries."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from torch import nn

from captum_clip_surgery._utils.errors import error_message, rust_panics_as_errors
from captum_clip_surgery._utils.text import did_you_mean
from captum_clip_surgery.models._activations import choose_activation, note_activation
from captum_clip_surgery.models._checkpoints import ARRAYS, check_checkpoint
from captum_clip_surgery.models._config_check import (
    FILE,
    LOCAL,
    TOKENIZER,
    build_image_tower_on_meta,
    check_folder,
    find_weights,
    read_configuration,
)
from captum_clip_surgery.models._file_kinds import check_kind
from captum_clip_surgery.models._internals import get_hub_config
from captum_clip_surgery.models._schema import check_table
from captum_clip_surgery.models._shapes import check_shapes
from captum_clip_surgery.models._sources import (
    HUB,
    SCHEMES,
    Source,
    fetch_repository,
    find_source,
)
from captum_clip_surgery.models._transformers_files import tokenizer_options
from captum_clip_surgery.models._transformers_folder import check_options, load_folder
from captum_clip_surgery.models._weight_files import loadable_file, read_shapes
from captum_clip_surgery.models.image import build_tower
from captum_clip_surgery.models.text._tokenization import Tokenizer
from captum_clip_surgery.preprocessing import INTERPOLATIONS


class Loaded(NamedTuple):
    """A model in eval mode, its tokenizer, and what it was loaded from."""

    model: nn.Module
    tokenizer: Tokenizer
    origin: str


@contextmanager
def _plain_defaults() -> Iterator[None]:
    """Build on the CPU in float32, whatever torch's defaults: `device` and `precision` choose."""
    dtype, device = torch.get_default_dtype(), torch.empty(0).device.type
    on_cpu = nullcontext() if device == "cpu" else torch.device("cpu")
    torch.set_default_dtype(torch.float32)
    try:
        with on_cpu:
            yield
    finally:
        torch.set_default_dtype(dtype)


def load(
    name: str | PathLike[str],
    pretrained: str | PathLike[str] | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    interpolation: str | None = None,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> Loaded:
    """Load a model of open_clip or transformers in eval mode.

    Args:
        name: Name of a configuration of open_clip, a folder or a repository; see `find_source`.
        pretrained: For a configuration, a tag of open_clip or a checkpoint file.
        mean: Mean of pixels in 0..1 per channel, instead of the model's own.
        std: Standard deviation per channel, likewise.
        interpolation: "bicubic", "bilinear" or "nearest", likewise.
        tokenizer: Tokenizer to return instead of the model's own.
        **options: For `open_clip.create_model_and_transforms`; for models of transformers `device`,
            `precision`, `cache_dir`, `revision` and `token`.

    Raises:
        ImportError: If transformers is needed and not installed.
        FileNotFoundError: If a checkpoint file or folder does not exist.
        OSError: If a hub cannot be reached.
        TypeError: If `name` or `pretrained` is not a string or path, an option is not known, or
            surgery is not defined on the image tower.
        ValueError: If nothing or more than one thing has the name, the configuration is invalid, or
            the weights do not load or are not of the configuration.
    """
    if not isinstance(name, (str, PathLike)):
        raise TypeError(f"the model's name is a {type(name).__name__}, expected a string or path")
    if pretrained is not None and not isinstance(pretrained, (str, PathLike)):
        raise TypeError(
            f"pretrained is a {type(pretrained).__name__}, expected a tag or the path of a file; "
            "if these are the texts, pass them by name: texts="
        )
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        raise ValueError(f"interpolation must be one of {known}, got {interpolation!r}")
    source = find_source(str(name), pretrained is not None, options)
    if source.library == "open_clip":
        named = None if pretrained is None else str(pretrained)
        with _plain_defaults():
            return _load_open_clip(source, named, mean, std, interpolation, tokenizer, **options)
    if pretrained is not None:
        raise ValueError(
            f"{name} has weights of its own, so pretrained={str(pretrained)!r} does not apply:"
            " leave it out, or save the weights in a folder of their own by save_pretrained"
        )
    check_options(options)
    folder = fetch_repository(source, options) if source.patterns else Path(source.name)
    with _plain_defaults():
        loaded = load_folder(folder, mean, std, interpolation, tokenizer, **options)
    model, tokenizer, kind = loaded
    return Loaded(model, tokenizer, f"{source.what}, {kind} of transformers")


def _load_open_clip(
    source: Source,
    pretrained: str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    interpolation: str | None,
    tokenizer: Tokenizer | None,
    **options: Any,
) -> Loaded:
    name = source.name
    _check_weights(name, pretrained)
    _check_transformers(name, tokenizer)
    local = check_folder(Path(name.removeprefix(LOCAL))) if name.startswith(LOCAL) else {}
    _check_image_tower(name, options)
    if mean is None or std is None:
        _warn_of_preprocessing(name, pretrained)
    activation = choose_activation(name, pretrained, options)
    try:
        with _weights(name, pretrained) as weights, warnings.catch_warnings():
            # The choice was made above, by more than open_clip considers.
            warnings.filterwarnings("ignore", "QuickGELU mismatch", UserWarning)
            for file in _files(name, weights, options):
                check_checkpoint(file)
            _check_shapes(name, pretrained, weights, options)
            model, _, _ = open_clip.create_model_and_transforms(
                name,
                pretrained=weights,
                require_pretrained=True,
                image_mean=mean,
                image_std=std,
                image_interpolation=interpolation,
                **(local | options | activation.options()),
            )
    except (OSError, ImportError):
        raise
    except Exception as error:  # readers of weights raise many types
        if options and isinstance(error, TypeError):
            raise  # about the options themselves
        reason = error_message(error)
        if len(reason) > 1000:  # torch lists every missing key
            reason = f"{reason[:1000]}... ({len(reason)} characters)"
        what = "does not load" if pretrained is None else f"does not load as {name}"
        raise ValueError(f"{pretrained or name} {what}: {reason}") from error
    note_activation(activation, model)
    return Loaded(model.eval(), tokenizer or _tokenizer(name), _origin(source, pretrained))


def _origin(source: Source, pretrained: str | None) -> str:
    if pretrained is None or source.name.startswith(SCHEMES):
        return f"{source.what}, in open_clip's form"
    kind = "tag" if _is_tag(source.name, pretrained) else "file"
    return f"{source.what} of open_clip, {kind} {pretrained}"


def _weights(name: str, pretrained: str | None) -> AbstractContextManager[str | None]:
    """Return a tag as it is, or a checkpoint file in a form that open_clip reads."""
    if name.startswith(LOCAL):
        check_kind(find_weights(Path(name.removeprefix(LOCAL))))
    if pretrained is None or name.startswith(SCHEMES) or _is_tag(name, pretrained):
        return nullcontext(pretrained)
    check_kind(Path(pretrained))
    return loadable_file(pretrained)


def _check_image_tower(name: str, options: Mapping[str, Any]) -> None:
    """Check that surgery is defined on the image tower, before weights are downloaded.

    Raises:
        TypeError: If it is not.
    """
    if name.startswith(LOCAL):
        return  # there is nothing to download
    try:
        if name.startswith(HUB):
            content = get_hub_config(name.removeprefix(HUB), cache_dir=options.get("cache_dir"))
            config = content["model_cfg"]
        else:
            config = open_clip.get_model_config(name)
        visual = build_image_tower_on_meta(config)
    except Exception:  # open_clip builds it next, and reports what is wrong
        return
    build_tower(visual)


def _check_shapes(
    name: str, pretrained: str | None, weights: str | None, options: Mapping[str, Any]
) -> None:
    """Check the shapes in a checkpoint file, unless an option changes those of the model."""
    if any(key.startswith("force_") or key.endswith("_cfg") for key in options):
        return
    if name.startswith(LOCAL):
        folder = Path(name.removeprefix(LOCAL))
        path, config, file = find_weights(folder), read_configuration(folder), FILE
    elif weights is None or name.startswith(HUB) or _is_tag(name, str(pretrained)):
        return
    else:
        path, config, file = Path(weights), open_clip.get_model_config(name) or {}, name
    if path.suffix not in ARRAYS:
        shown = path if name.startswith(LOCAL) else Path(str(pretrained))
        check_shapes(file, config, read_shapes(path), shown.name)


def _tokenizer(name: str) -> Tokenizer:
    options = {}
    if name.startswith(LOCAL) and text_needs(name)[1]:
        options = tokenizer_options(Path(name.removeprefix(LOCAL)))
    elif name.startswith("hf-hub:"):
        text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
        check_table(name, text.get("tokenizer_kwargs") or {}, TOKENIZER, "tokenizer_kwargs.")
    try:
        with rust_panics_as_errors():
            return open_clip.get_tokenizer(name, **options)
    except OSError as error:  # transformers raises it if its hub cannot be reached
        raise OSError(
            f"the tokenizer of {name} could not be loaded: {error}\nPass tokenizer=, a callable of "
            "texts and context_length to token ids, such as open_clip.tokenizer.HFTokenizer(folder)"
        ) from error
    except ImportError:
        raise
    except Exception as error:  # tokenizers raise many types for an invalid configuration
        raise ValueError(
            f"the tokenizer of {name} is not valid: {type(error).__name__}: {error!s:.500}"
        ) from error


def text_needs(name: str) -> tuple[bool, bool]:
    """Return whether a configuration's text tower, and its tokenizer, are Hugging Face's."""
    if name.startswith(LOCAL):
        config = read_configuration(Path(name.removeprefix(LOCAL)))
    else:
        config = open_clip.get_model_config(name) or {}
    text = config.get("text_cfg", {})
    return bool(text.get("hf_model_name")), bool(text.get("hf_tokenizer_name"))


def _check_transformers(name: str, tokenizer: Tokenizer | None) -> None:
    if name.startswith("hf-hub:") or find_spec("transformers"):
        return
    tower, tokens = text_needs(name)
    if tower or (tokens and tokenizer is None):
        part = "text tower" if tower else "tokenizer"
        raise ImportError(
            f"the {part} of {name} is Hugging Face's: pip install "
            "'captum_clip_surgery[transformers]'"
        )


def _check_weights(name: str, pretrained: str | None) -> None:
    """Check that there are weights: a folder's, or the tag or file that the user named."""
    if name.startswith(LOCAL):
        find_weights(Path(name.removeprefix(LOCAL)))
    if name.startswith(SCHEMES):
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"pretrained is missing: without it {name} has random weights; pass a checkpoint file"
            + (f" or one of {', '.join(tags)}" if tags else "")
        )
    is_file, is_tag = Path(pretrained).is_file(), _is_tag(name, pretrained)
    if is_file and is_tag:
        raise ValueError(
            f"{pretrained!r} is a tag of {name} and a file here: write ./{pretrained} for the file,"
            " or rename it for the tag"
        )
    if is_file or is_tag:
        return
    if Path(pretrained).is_dir():
        raise ValueError(
            f"{pretrained} is a folder, expected a tag or file of weights; a folder with a model is"
            f" named alone: from_pretrained({pretrained!r}, texts=...)"
        )
    if "/" in pretrained or "." in pretrained:
        raise FileNotFoundError(f"no checkpoint file at {pretrained}")
    known = f"it has {', '.join(tags)}" if tags else "it has none; pass a checkpoint file"
    hint = did_you_mean(pretrained, tags)
    raise ValueError(f"{name} has no pretrained tag {pretrained!r}; {known}{hint}")


def _files(name: str, pretrained: str | None, options: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the files of weights to check; none if the caller passed `weights_only=False`."""
    if not options.get("weights_only", True):
        return
    if name.startswith(LOCAL):
        yield find_weights(Path(name.removeprefix(LOCAL)))
    elif pretrained is not None and not name.startswith(SCHEMES) and not _is_tag(name, pretrained):
        yield Path(pretrained)
    for part in ("pretrained_image_path", "pretrained_text_path"):
        if options.get(part) and Path(options[part]).is_file():
            yield Path(options[part])


def _is_tag(name: str, pretrained: str) -> bool:
    return _tag(pretrained) in map(_tag, open_clip.list_pretrained_tags_by_model(name))


def _tag(name: str) -> str:
    """Normalize a tag: open_clip ignores case, and takes dashes for underscores."""
    return name.lower().replace("-", "_")


def _warn_of_preprocessing(name: str, pretrained: str | None) -> None:
    """Warn if a checkpoint file gets OpenAI's preprocessing but its family uses another."""
    if pretrained is None or not Path(pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    means = {tuple(open_clip.get_pretrained_cfg(name, tag).get("mean", ())) for tag in tags}
    others = means - {(), tuple(open_clip.OPENAI_DATASET_MEAN)}
    if others:
        mean = sorted(others)[0]
        warnings.warn(
            f"a checkpoint file records no preprocessing, so {name} gets OpenAI's; its published "
            f"weights use mean={mean}. Pass mean=, std= and interpolation=",
            stacklevel=5,
        )
