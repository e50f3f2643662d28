"""The catalog of open_clip's configurations and transformers' classes that can be explained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import open_clip
from open_clip.timm_model import TimmModel
from torch import nn
from tqdm import tqdm

from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery._utils.text import did_you_mean
from captum_clip_surgery.models._config_check import build_image_tower_on_meta
from captum_clip_surgery.models._dual_encoder_tables import OTHER_TYPES
from captum_clip_surgery.models._dual_encoders import FAMILIES, describe_refused
from captum_clip_surgery.models._loading import text_needs
from captum_clip_surgery.models.image import Tower
from captum_clip_surgery.models.image._registry import TOWER_CLASSES, get_tower_class
from captum_clip_surgery.models.image._transformers import TransformersTower


@dataclass(frozen=True)
class ModelEntry:
    """One configuration of open_clip, as far as it is known without weights.

    Attributes:
        name: open_clip's name.
        family: Family of the image tower.
        supported: Whether surgery is defined on the image tower.
        reason: Reason why it is not; empty if it is.
        pooling: How tokens become one embedding; empty if not supported.
        blocks: Number of blocks that surgery can run parallel to; 0 if not supported.
        patch_size: Height and width of a patch in pixels; None if not supported.
        native_size: Height and width of images in pixels; None if not supported.
        grid: Rows and columns of patches at the native size; None if not supported.
        text: What the text side needs: "open_clip" only, a Hugging Face "tokenizer", or a Hugging
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
        """Return the entry as a dict for JSON."""
        return asdict(self)


def list_models(names: Iterable[str] | None = None, progress: bool = False) -> list[ModelEntry]:
    """List configurations of the installed open_clip, and whether surgery is defined on them.

    Image towers are built on the meta device: nothing is downloaded and no weights are made. All
    of them take about 10 s.

    Args:
        names: Names of configurations; None means all that open_clip lists.
        progress: Whether to draw a progress bar.

    Raises:
        ValueError: If open_clip does not list a name.

    Example::

        >>> entry, = list_models(["ViT-B-16"])
        >>> entry.supported, entry.patch_size, entry.grid
        (True, (16, 16), (14, 14))
    """
    known = open_clip.list_models()
    chosen = known if names is None else list(names)
    for name in chosen:
        if name not in known:
            raise ValueError(
                f"open_clip has no model {name!r}; open_clip.list_models() lists them"
                f"{did_you_mean(name, known, 3)}"
            )
    return [_entry(name) for name in tqdm(chosen, disable=not progress, leave=False, unit="model")]


def list_transformers_models() -> list[ModelEntry]:
    """List the classes of models of transformers that are known, and whether they are supported.

    Sizes are those of single models, so that blocks, patches and grids are left out.

    Example::

        >>> [entry.name for entry in list_transformers_models() if entry.supported][:2]
        ['CLIPModel', 'MetaClip2Model']
    """
    entries = []
    for name, family in FAMILIES.items():
        (tower,) = (
            each
            for each in TOWER_CLASSES
            if issubclass(each, TransformersTower) and family.prefix in each.prefixes
        )
        text = "tokenizer"
        entries.append(ModelEntry(name, tower.family, True, "", str(tower.pooling), text=text))
    for name in OTHER_TYPES.values():
        reason = describe_refused(name, short=True)
        entries.append(ModelEntry(name, "transformers", False, reason, text="tokenizer"))
    return entries


def _entry(name: str) -> ModelEntry:
    tower, tokenizer = text_needs(name)
    text = "tower" if tower else "tokenizer" if tokenizer else "open_clip"
    if "vision_cfg" not in (open_clip.get_model_config(name) or {}):
        return ModelEntry(name, "none", False, "it has no image tower", text=text)
    try:
        visual = build_image_tower_on_meta(open_clip.get_model_config(name))
    except Exception as error:  # a user's own configuration can fail in any way
        return ModelEntry(name, "unknown", False, f"open_clip cannot build it: {error}", text=text)
    try:
        tower_class = get_tower_class(visual)
    except TypeError as error:
        return ModelEntry(name, _family(visual), False, str(error), text=text)
    return _describe(name, tower_class(visual), text)


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
    """Return a table of the supported configurations, and the others grouped by reason.

    Args:
        entries: Entries as `list_models` returns them.
    """
    header = ("model", "image tower", "pooled by", "blocks", "patch", "native", "grid", "text")
    supported = [entry for entry in entries if entry.supported]
    lines = [markdown(header, [_row(entry) for entry in supported], left=len(header))]
    lines += ["", f"{len(supported)} of {len(entries)} configurations work."]
    if any(entry.text != "open_clip" for entry in supported):
        lines[-1] += (
            " If the text side has a Hugging Face tokenizer or tower, it needs "
            "`pip install 'captum_clip_surgery[transformers]'`."
        )
    refused: dict[str, list[str]] = {}
    for entry in entries:
        if not entry.supported:
            refused.setdefault(entry.reason, []).append(entry.name)
    for reason, names in refused.items():
        lines += ["", f"Not {', '.join(names)}: {reason}."]
    return "\n".join(lines)


def transformers_markdown(entries: Sequence[ModelEntry]) -> str:
    """Return a table of the supported classes of transformers, and the others with the reasons.

    Args:
        entries: Entries as `list_transformers_models` returns them.
    """
    supported = [(e.name, e.family, e.pooling) for e in entries if e.supported]
    lines = [markdown(("model of transformers", "image tower", "pooled by"), supported, left=3)]
    for entry in entries:
        if not entry.supported:
            lines += ["", f"Not {entry.name}: {entry.reason}."]
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
