"""Load a dual encoder from a folder in transformers' form, after its files were checked.

`trust_remote_code` is never passed on, and nothing outside the folder is read.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from captum_clip_surgery._utils.errors import error_message, rust_panics_as_errors
from captum_clip_surgery.models._checkpoints import check_checkpoint
from captum_clip_surgery.models._config_check import MAX_PIXELS, MAX_TOKENS
from captum_clip_surgery.models._dual_encoder_tables import (
    DUAL_ENCODER,
    IMAGES,
    MODEL_TYPES,
    OTHER_TYPES,
)
from captum_clip_surgery.models._dual_encoders import FAMILIES, TransformersCLIP, describe_refused
from captum_clip_surgery.models._file_kinds import check_kind
from captum_clip_surgery.models._processors import preprocess_config
from captum_clip_surgery.models._schema import check_links, check_table, read_json
from captum_clip_surgery.models._transformers_files import CONFIG, tokenizer_options
from captum_clip_surgery.models.text._transformers import TransformersTokenizer

SAFE, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
ADAPTER = "adapter_config.json"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#: Options of `from_pretrained` for models of transformers.
OPTIONS = ("device", "precision", "cache_dir", "revision", "token")


def class_of(config: Any, where: str) -> str:
    """Return the class of the model that a configuration describes.

    Args:
        config: Content of `config.json`.
        where: Name of the file or repository, for messages.

    Raises:
        ValueError: If it is not a dual encoder that is supported.
    """
    kind = config.get("model_type") if isinstance(config, dict) else None
    if isinstance(kind, str) and kind in MODEL_TYPES:
        return MODEL_TYPES[kind]
    if isinstance(kind, str) and kind in OTHER_TYPES:
        raise ValueError(f"{where}: {describe_refused(OTHER_TYPES[kind])}")
    raise ValueError(
        f"{where}: model_type is {kind!r:.100}, expected one of {', '.join(MODEL_TYPES)}"
    )


def is_dual_encoder(config: Any) -> bool:
    """Return whether a configuration is that of a dual encoder, supported or not."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    return isinstance(kind, str) and kind in {**MODEL_TYPES, **OTHER_TYPES}


def load_folder(
    folder: Path,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    interpolation: str | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> tuple[TransformersCLIP, Any, str]:
    """Load a model in eval mode and its tokenizer.

    Args:
        folder: Folder as `save_pretrained` writes it.
        mean: Mean of pixels in 0..1 per channel, instead of the processor's.
        std: Standard deviation per channel, likewise.
        interpolation: "bicubic", "bilinear" or "nearest", likewise.
        tokenizer: Tokenizer to return instead of the folder's.
        **options: `device` and `precision` ("fp32", "fp16" or "bf16").

    Returns:
        The model, its tokenizer, and the name of its class.

    Raises:
        FileNotFoundError: If there is no configuration or no weights.
        ImportError: If transformers is not installed.
        TypeError: If an option is not known.
        ValueError: If an option in a file is not allowed, the configuration and the weights are not
            of one model, or the tokenizer is not valid.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            f"{folder} is a model of transformers: pip install 'captum_clip_surgery[transformers]'"
        ) from error
    check_options(options)
    name, config = check_model_folder(folder)
    if not hasattr(transformers, name):
        raise ImportError(f"transformers {transformers.__version__} has no {name}; upgrade it")
    model = _load(getattr(transformers, name), folder, config)
    precision = options.get("precision", "fp32")
    model = model.to(options.get("device", "cpu"), DTYPES[precision]).eval()
    recorded = _preprocessing(folder, name, model)
    given = {"mean": mean, "std": std, "interpolation": interpolation}
    recorded |= {key: value for key, value in given.items() if value is not None}
    return TransformersCLIP(model, recorded), tokenizer or _tokenizer(folder, name), name


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options of a model of transformers.

    Raises:
        TypeError: If an option is not known.
        ValueError: If `precision` is not known.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise TypeError(
            f"models of transformers take no option {unknown[0]!r}; expected {', '.join(OPTIONS)}"
        )
    precision = options.get("precision", "fp32")
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")


def check_model_folder(folder: Path) -> tuple[str, dict[str, Any]]:
    """Check a folder's configuration and links; return the class of the model and its table.

    Raises:
        FileNotFoundError: If there is no configuration.
        ValueError: If it is not that of a supported model, or an option is not allowed.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}")
    check_links(folder)
    config = read_json(path)
    name = class_of(config, str(path))
    if (folder / ADAPTER).exists():
        raise ValueError(
            f"{folder} has an adapter ({ADAPTER}); merge it into the model (merge_and_unload), and "
            "save that"
        )
    check_table(str(path), config, DUAL_ENCODER)
    vision, text = config.get("vision_config", {}), config.get("text_config", {})
    pixels, tokens = vision.get("image_size", 1) ** 2, text.get("max_position_embeddings", 1)
    if pixels > MAX_PIXELS or tokens > MAX_TOKENS:
        raise ValueError(
            f"{path} describes images of {pixels:,} pixels and texts of {tokens:,} tokens, "
            f"expected at most {MAX_PIXELS:,} and {MAX_TOKENS:,}"
        )
    return name, config


# --- weights -------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """Return the files with a folder's weights.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If the index names files outside the folder.
    """
    if (folder / SAFE).is_file():
        return [folder / SAFE]
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        table = index.get("weight_map") if isinstance(index, dict) else None
        names = sorted(set(table.values())) if isinstance(table, dict) else []
        for name in names:
            plain = isinstance(name, str) and Path(name).name == name
            if not plain or not name.endswith(".safetensors"):
                raise ValueError(
                    f"{folder / INDEX}: weight_map names {name!r:.100}, expected files of "
                    "safetensors next to it"
                )
        missing = [name for name in names if not (folder / name).is_file()]
        if names and not missing:
            return [folder / name for name in names]
        raise FileNotFoundError(f"no {(missing or ['weights'])[0]} in {folder}, named by {INDEX}")
    if (folder / PICKLED).is_file():
        return [folder / PICKLED]
    raise FileNotFoundError(f"no weights ({SAFE}, {INDEX} or {PICKLED}) in {folder}")


def _shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Read the shapes of all weights without their values."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = file.keys()
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
        else:
            content = torch.load(path, map_location="meta", weights_only=True)
            shapes |= {n: tuple(t.shape) for n, t in content.items() if isinstance(t, torch.Tensor)}
    return shapes


def _load(kind: Any, folder: Path, config: dict[str, Any]) -> Any:
    """Build the model and load its weights, all of which must be there and fit."""
    path, files = folder / CONFIG, weight_files(folder)
    size = sum(file.stat().st_size for file in files)
    for file in files:
        check_kind(file)
        if file.name == PICKLED:
            check_checkpoint(file)
    try:
        settings = kind.config_class.from_dict(json.loads(json.dumps(config)))
        with torch.device("meta"):
            expected = {n: tuple(t.shape) for n, t in kind(settings).state_dict().items()}
    except Exception as error:  # transformers can raise any type
        raise ValueError(f"{path} describes no model: {error_message(error):.500}") from error
    count = sum(torch.Size(shape).numel() for shape in expected.values())
    if count > size:  # each takes at least a byte
        raise ValueError(
            f"{path} describes {count:,} parameters, and the weights next to it have {size:,} "
            "bytes: they are not of one model"
        )
    try:
        stored = _shapes(files)
    except Exception as error:  # safetensors and torch raise many types
        raise ValueError(f"{files[0]} cannot be read: {error_message(error):.500}") from error
    for name, shape in expected.items():
        if name in stored and stored[name] != shape:
            raise ValueError(
                f"{path} and the weights next to it are not of one model: {name} is {shape} by the "
                f"configuration and {stored[name]} in {files[0].name}"
            )
    safe = files[0].suffix == ".safetensors"
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=safe, output_loading_info=True
        )
    except Exception as error:  # transformers can raise any type
        raise ValueError(f"{folder} does not load: {error_message(error):.500}") from error
    missing = sorted(name for name in report["missing_keys"] if "position_ids" not in name)
    if missing and kind.__name__ != "Tipsv2Model":  # whose temperature is not published
        raise ValueError(
            f"{files[0]} lacks {len(missing)} weights of {kind.__name__}, which would stay random: "
            f"{', '.join(missing[:3])}"
        )
    return model


# --- processors ----------------------------------------------------------------------------------


def _preprocessing(folder: Path, name: str, model: Any) -> dict[str, Any]:
    """Return the preprocessing in a folder, or that of the family with a warning."""
    for file in IMAGE_FILES:
        if not (folder / file).is_file():
            continue
        content = read_json(folder / file)
        table = content.get("image_processor", content) if isinstance(content, dict) else None
        if not isinstance(table, dict):
            raise ValueError(f"{folder / file} is {content!r:.100}, expected a table")
        known = {key.rstrip("?") for key in IMAGES}
        table = {key: value for key, value in table.items() if key in known}
        check_table(str(folder / file), table, IMAGES)
        if table.get("image_mean") is not None or table.get("do_normalize") is False:
            _compare_sizes(folder / file, table, model)
            return preprocess_config(table, str(folder / file))
    family = FAMILIES[name]
    warnings.warn(
        f"{folder} records no preprocessing ({' or '.join(IMAGE_FILES)}); using the mean "
        f"{family.mean} and std {family.std} of {name}. Pass mean=, std= and interpolation=",
        stacklevel=5,
    )
    return {"mean": family.mean, "std": family.std}


def _compare_sizes(path: Path, table: Mapping[str, Any], model: Any) -> None:
    """Warn if images are prepared at another size than the model was built for."""
    built = getattr(model.config.vision_config, "image_size", None)
    size = table.get("crop_size") if table.get("do_center_crop") else None
    size = size or table.get("size")
    sides: set[Any] = set(size.values()) if isinstance(size, dict) else {size}
    if built is not None and size and sides != {built}:
        warnings.warn(
            f"{path} prepares images of {sorted(sides)} pixels, and the model was built for "
            f"{built}; images are resized to {built} unless preprocess(..., size=) says otherwise",
            stacklevel=6,
        )


def _tokenizer(folder: Path, name: str) -> TransformersTokenizer:
    """Return a folder's tokenizer, after its files were checked."""
    import transformers

    options = tokenizer_options(folder)
    kinds: Any = transformers.AutoTokenizer
    try:
        with rust_panics_as_errors():
            tokenizer = kinds.from_pretrained(folder, **options)
    except Exception as error:  # tokenizers raise many types for an invalid configuration
        raise ValueError(
            f"the tokenizer of {folder} is not valid: {error_message(error):.500}. Pass tokenizer="
        ) from error
    return TransformersTokenizer(tokenizer, FAMILIES[name].text == "last")
