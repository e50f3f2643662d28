"""Check folders before transformers reads them, so that none leads to code, a hub or other files.

transformers runs Python code that a folder names (`auto_map`), fetches attention kernels, backbones
and adapters by name, opens vocabulary files by path, and asks for permission on standard input.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captum_clip_surgery.models._schema import check_links, check_table, read_json
from captum_clip_surgery.models._transformers_tables import (
    OTHER_TOKENIZERS,
    SAM,
    SAM2,
    SAM_FILES,
    TEXT_TOWERS,
    TOKENIZER_FILES,
    TOKENIZERS,
)

CONFIG = "config.json"
#: Files that make up a vocabulary, besides those of sentencepiece.
VOCABULARIES = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"vocab.txt"})
#: Parts of a `tokenizer.json` that rewrite a text.
STEPS = ("normalizer", "pre_tokenizer")
#: How many times longer a tokenizer may make a text before it splits it; known ones, 3 times.
MAX_GROWTH = 1_000
#: The model that segments an image, by the `model_type` of a folder. The hub's SAM 2 name videos.
SAM_KINDS = {"sam": "sam", "sam2": "sam2", "sam2_video": "sam2"}


def check_text_tower(folder: Path, name: str) -> Path:
    """Find the configuration of a text tower within a model's folder, and check it.

    Args:
        folder: Folder of the model.
        name: `hf_model_name` of its configuration: a folder in it, by relative or absolute path.

    Returns:
        The folder of the text tower.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If there is no configuration, or an option is not allowed.
    """
    tower = (folder / name).resolve()
    if not tower.is_relative_to(folder.resolve()) or not (tower / CONFIG).is_file():
        raise ValueError(
            f"{folder}: the text tower is hf_model_name {name!r:.100}, which is not a folder with "
            f"a {CONFIG} inside {folder}; a folder's model is built only from the folder. "
            "Save the tower's configuration there: transformers.AutoConfig.from_pretrained(...)"
            ".save_pretrained(...)"
        )
    check_links(tower)
    config = read_json(tower / CONFIG)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in TEXT_TOWERS:
        raise ValueError(
            f"{tower / CONFIG}: model_type is {kind!r:.100}, expected one of "
            f"{', '.join(TEXT_TOWERS)}"
        )
    check_table(str(tower / CONFIG), config, TEXT_TOWERS[kind])
    return tower


def build_text_tower(tower: Path) -> nn.Module:
    """Build a checked text tower as transformers does, including a decoder, with random weights."""
    import transformers

    kinds: Any = transformers.AutoModel
    model: nn.Module = kinds.from_config(transformers.AutoConfig.from_pretrained(tower))
    return model


def tokenizer_options(folder: Path) -> dict[str, Any]:
    """Check a folder's tokenizer, and return the options with which transformers may read it.

    `config.json` can be that of any model; only the type of tokenizer is read from it.

    Raises:
        FileNotFoundError: If there is no vocabulary.
        ImportError: If transformers is not installed.
        ValueError: If an option is not allowed.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    _check_vocabulary(folder)
    for name, allowed in TOKENIZER_FILES.items():
        if (folder / name).is_file():
            check_table(str(folder / name), read_json(folder / name), allowed)
    if (folder / "tokenizer.json").is_file():
        _check_growth(folder / "tokenizer.json")
    config: Any = PretrainedConfig()
    if (folder / CONFIG).is_file():
        content = read_json(folder / CONFIG)
        if not isinstance(content, dict):
            raise ValueError(f"{folder / CONFIG} is {content!r:.100}, expected a table")
        about = {key: content[key] for key in ("tokenizer_class", "auto_map") if key in content}
        check_table(str(folder / CONFIG), about, {"tokenizer_class?": TOKENIZERS})
        if content.get("model_type") in (*TEXT_TOWERS, *OTHER_TOKENIZERS):
            config = CONFIG_MAPPING[content["model_type"]]()
        config.tokenizer_class = content.get("tokenizer_class")
    return {"config": config, "trust_remote_code": False, "local_files_only": True}


def _check_vocabulary(folder: Path) -> None:
    """Check that a folder has a vocabulary: transformers would make a tokenizer of no words.

    Raises:
        FileNotFoundError: If it has none.
    """
    names = {path.name for path in folder.iterdir()}
    sentencepiece = any(name.endswith(".model") for name in names)
    if sentencepiece or any(files <= names for files in VOCABULARIES):
        return
    raise FileNotFoundError(
        f"{folder} has no tokenizer (tokenizer.json, vocab.json with merges.txt, vocab.txt, or a "
        ".model of sentencepiece); save the model's tokenizer there by save_pretrained, or pass "
        "tokenizer="
    )


def _check_growth(path: Path) -> None:
    """Check that replacements in a `tokenizer.json`, one after another, do not inflate a text.

    Raises:
        ValueError: If they make it more than `MAX_GROWTH` times longer.
    """
    content = read_json(path)
    growth = 1
    parts = [content.get(part) for part in STEPS] if isinstance(content, dict) else []
    for part in parts:  # the list grows in this loop
        if isinstance(part, list):
            parts += part
        elif isinstance(part, dict):
            parts += [value for value in part.values() if isinstance(value, (dict, list))]
            inserted = part.get("content", part.get("prepend", part.get("replacement")))
            growth *= max(1, len(inserted)) if isinstance(inserted, str) else 1
    if growth > MAX_GROWTH:
        raise ValueError(
            f"{path} can make a text {growth:.0e} times longer before it is split, expected at "
            f"most {MAX_GROWTH:,} times"
        )


def check_sam(folder: Path) -> str:
    """Check a folder with a SAM or SAM 2 written by `save_pretrained`.

    Args:
        folder: The folder.

    Returns:
        "sam" or "sam2".

    Raises:
        FileNotFoundError: If there is no configuration, or no weights in safetensors.
        ValueError: If the model is another one, an option is not allowed, or the configuration has
            more parameters than the file of weights.
    """
    for name in (CONFIG, "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; expected a SAM by save_pretrained")
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} has an adapter (adapter_config.json); merge it into the model")
    check_links(folder)
    content = read_json(folder / CONFIG)
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(model_type, str) or model_type not in SAM_KINDS:
        raise ValueError(
            f"{folder / CONFIG}: model_type is {model_type!r:.100}, expected one of "
            f"{', '.join(SAM_KINDS)}"
        )
    kind = SAM_KINDS[model_type]
    if kind == "sam2":
        check_table(str(folder / CONFIG), sam2_parts(content), SAM2)
    else:
        check_table(str(folder / CONFIG), content, SAM)
    for name, allowed in SAM_FILES.items():
        if (folder / name).is_file():
            check_table(str(folder / name), read_json(folder / name), allowed)
    weights = (folder / "model.safetensors").stat().st_size
    with torch.device("meta"):
        model = _build_sam2(content) if kind == "sam2" else _build_sam(folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > weights:  # each takes at least a byte
        raise ValueError(
            f"{folder / CONFIG} describes {count:,} parameters, and the weights next to it have "
            f"{weights:,} bytes: they are not of one model"
        )
    return kind


def sam2_parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a configuration of SAM 2 that segment one image."""
    return {key: config[key] for key in SAM2 if key in config}


def _build_sam(folder: Path) -> nn.Module:
    from transformers import SamConfig, SamModel

    return SamModel(SamConfig.from_pretrained(folder))


def _build_sam2(config: Mapping[str, Any]) -> nn.Module:
    try:
        from transformers import Sam2Config, Sam2Model
    except ImportError as error:
        raise ImportError("SAM 2 needs transformers 4.56 or later: upgrade it") from error
    return Sam2Model(Sam2Config(**sam2_parts(config)))
