"""Load models by name as open_clip does, and report its silent failures."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from captum_clip_surgery._utils.errors import error_message, rust_panics_as_errors
from captum_clip_surgery.models._activations import choose_activation, note_activation
from captum_clip_surgery.models._checkpoints import check_checkpoint
from captum_clip_surgery.models._config_check import (
    LOCAL,
    TOKENIZER,
    check_folder,
    find_weights,
    read_configuration,
)
from captum_clip_surgery.models._schema import check_table
from captum_clip_surgery.models._transformers_files import tokenizer_options
from captum_clip_surgery.models._weight_files import loadable_file
from captum_clip_surgery.models.text._tokenization import Tokenizer
from captum_clip_surgery.preprocessing import INTERPOLATIONS

__all__ = ["load"]

SCHEMES = (LOCAL, "hf-hub:")


def load(
    name: str,
    pretrained: str | PathLike[str] | None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    interpolation: str | None = None,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> tuple[nn.Module, Tokenizer]:
    """Load a model in eval mode and its tokenizer.

    Args:
        name: An open_clip name, `hf-hub:org/repo` or `local-dir:folder`.
        pretrained: An open_clip tag or a checkpoint file; None if `name` has a scheme.
        mean: Mean of pixels in 0..1 per channel, instead of the model's own.
        std: Standard deviation per channel, likewise.
        interpolation: "bicubic", "bilinear" or "nearest", likewise.
        tokenizer: Tokenizer to return instead of the model's own.
        **options: For `open_clip.create_model_and_transforms`.

    Raises:
        ImportError: If the text tower or tokenizer is Hugging Face's and transformers is not
            installed.
        FileNotFoundError: If a checkpoint file or folder does not exist.
        TypeError: If `name` is not a string.
        ValueError: If open_clip does not know the model or tag, the configuration is invalid, or
            the weights do not load.
    """
    if not isinstance(name, str):
        raise TypeError(f"the model's name is a {type(name).__name__}, expected a string")
    pretrained = None if pretrained is None else str(pretrained)
    if not name.startswith(SCHEMES):
        name = name.replace("/", "-")  # as open_clip does: ViT-B/16
    _check_exists(name, pretrained)
    _check_transformers(name, tokenizer)
    local = check_folder(Path(name.removeprefix(LOCAL))) if name.startswith(LOCAL) else {}
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        raise ValueError(f"interpolation must be one of {known}, got {interpolation!r}")
    if mean is None or std is None:
        _warn_of_preprocessing(name, pretrained)
    activation = choose_activation(name, pretrained, options)
    try:
        with _weights(name, pretrained) as weights, warnings.catch_warnings():
            # The choice was made above, by more than open_clip considers.
            warnings.filterwarnings("ignore", "QuickGELU mismatch", UserWarning)
            for file in _files(name, weights, options):
                check_checkpoint(file)
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
        raise ValueError(f"{pretrained or name} does not load as {name}: {reason}") from error
    note_activation(activation, model)
    return model.eval(), tokenizer or _tokenizer(name)


def _weights(name: str, pretrained: str | None) -> AbstractContextManager[str | None]:
    """Return what open_clip loads: a tag as it is, a checkpoint file in a form that it reads."""
    if pretrained is None or name.startswith(SCHEMES):
        return nullcontext(pretrained)
    tag = open_clip.get_pretrained_cfg(name, pretrained)  # preferred to a file of that name
    return nullcontext(pretrained) if tag else loadable_file(pretrained)


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


def _check_exists(name: str, pretrained: str | None) -> None:
    if name.startswith(LOCAL):
        find_weights(Path(name.removeprefix(LOCAL)))
    elif not name.startswith(SCHEMES) and name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models(), 3)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ValueError(f"open_clip has no model {name!r}{hint}")
    if name.startswith(SCHEMES):
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"pretrained is None: {name} would keep its random start; pass a checkpoint file"
            + (f" or one of {', '.join(tags)}" if tags else "")
        )
    if Path(pretrained).is_file() or _is_tag(name, pretrained):
        return
    if "/" in pretrained or "." in pretrained:
        raise FileNotFoundError(f"no checkpoint file at {pretrained}")
    known = f"it has {', '.join(tags)}" if tags else "it has none; pass a checkpoint file"
    raise ValueError(f"{name} has no pretrained tag {pretrained!r}; {known}")


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
            stacklevel=4,
        )
