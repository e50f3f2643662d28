"""Images of a shard decoded as the export decodes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from captum_clip_surgery.export._entries import Shard, attempt, decode


class Decoded(NamedTuple):
    """An image, or the reason why it cannot be read."""

    name: str
    picture: Image.Image | None
    reason: str


def samples(shard: Shard) -> Iterator[Decoded]:
    """Yield the images of a shard in order."""
    for entry in shard.entries():
        found = attempt(entry, decode)
        if isinstance(found, str):
            yield Decoded(entry.name, None, found)
        else:
            yield Decoded(entry.name, found, "")
