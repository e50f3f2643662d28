"""Which of open_clip's configurations work, asked of the adapters themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import open_clip
import torch
from open_clip.model import _build_vision_tower
from open_clip.timm_model import TimmModel
from torch import nn
from tqdm import tqdm

from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.models.image import Tower, family_of
from captum_clip_surgery.models.loading import text_needs


@dataclass(frozen=True)
class ModelEntry:
    """What is known of a configuration without its weights.

    Args:
        name: as open_clip names it.
        family: of the image tower, as the adapters name it.
        supported: whether surgery is defined on the image tower.
        reason: why not; empty if it is.
        pooling: what makes one embedding of the tokens; empty if not supported, as what follows.
        blocks: how many surgery can run beside: the largest depth.
        patch_size, native_size: (height, width) in pixels.
        grid: (rows, columns) of patches at the native size.
        text: what the text side needs: "open_clip" alone, a Hugging Face "tokenizer", or a Hugging
            Face "tower" and tokenizer.
    """

    name: str
    family: str
    supported: bool
    reason: str
    pooling: str = ""
    blocks: int = 0
    patch_size: tuple[int, int] | None = None
    native_size: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None
    text: str = "open_clip"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def list_models(names: Iterable[str] | None = None, progress: bool = False) -> list[ModelEntry]:
    """Every configuration of the installed open_clip, or those named, and whether it works.

    Image towers are built on the meta device: nothing is downloaded and no weights are made. All
    take about 10 s.

    Args:
        names: of configurations; None is all that open_clip lists.
        progress: whether to draw a progress bar.

    Raises:
        ValueError: a name open_clip does not list.

    Example::

        >>> entry, = list_models(["ViT-B-16"])
        >>> entry.supported, entry.patch_size, entry.grid
        (True, (16, 16), (14, 14))
    """
    known = open_clip.list_models()
    chosen = known if names is None else list(names)
    for name in chosen:
        if name not in known:
            raise ValueError(f"open_clip has no model {name!r}; open_clip.list_models() lists them")
    return [_entry(name) for name in tqdm(chosen, disable=not progress, leave=False, unit="model")]


def _entry(name: str) -> ModelEntry:
    tower, tokenizer = text_needs(name)
    text = "tower" if tower else "tokenizer" if tokenizer else "open_clip"
    if "vision_cfg" not in (open_clip.get_model_config(name) or {}):
        return ModelEntry(name, "none", False, "it has no image tower", text=text)
    try:
        visual = _build_on_meta(name)
    except Exception as error:  # whatever a user's own configuration brings
        return ModelEntry(name, "unknown", False, f"open_clip cannot build it: {error}", text=text)
    family = family_of(visual)
    if isinstance(family, str):
        return ModelEntry(name, _family(visual), False, family, text=text)
    return _describe(name, family(visual), text)


def _build_on_meta(name: str) -> nn.Module:
    config = open_clip.get_model_config(name)
    with torch.device("meta"), _quiet():
        return _build_vision_tower(
            config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False)
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """timm warns of pretrained configurations that nobody asked it for."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _family(visual: nn.Module) -> str:
    if isinstance(visual, TimmModel):
        return f"timm {type(visual.trunk).__name__}"
    return f"open_clip {type(visual).__name__}"


def _describe(name: str, tower: Tower, text: str) -> ModelEntry:
    return ModelEntry(
        name,
        tower.family,
        True,
        "",
        tower.pooling,
        len(tower.blocks),
        tower.patch_size,
        tower.native_size,
        tower.grid(*tower.native_size),
        text,
    )


def to_markdown(entries: Sequence[ModelEntry]) -> str:
    """A table of what works, aligned for the terminal as well, and what does not by its reason."""
    header = ("model", "image tower", "pooled by", "blocks", "patch", "native", "grid", "text")
    works = [entry for entry in entries if entry.supported]
    lines = [markdown(header, [_row(entry) for entry in works], left=len(header))]
    lines += ["", f"{len(works)} of {len(entries)} configurations work."]
    if any(entry.text != "open_clip" for entry in works):
        lines[-1] += (
            " Where the text side has a Hugging Face tokenizer or tower, it needs "
            "`pip install 'captum_clip_surgery[transformers]'`."
        )
    refused: dict[str, list[str]] = {}
    for entry in entries:
        if not entry.supported:
            refused.setdefault(entry.reason, []).append(entry.name)
    for reason, names in refused.items():
        lines += ["", f"Not {', '.join(names)}: {reason}."]
    return "\n".join(lines)


def _row(entry: ModelEntry) -> tuple[str, ...]:
    sizes = (entry.patch_size, entry.native_size, entry.grid)
    return (
        entry.name,
        entry.family,
        entry.pooling,
        str(entry.blocks),
        *("" if size is None else f"{size[0]} x {size[1]}" for size in sizes),
        entry.text,
    )
