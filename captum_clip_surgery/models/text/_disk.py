"""Text features on disk, under a key of everything that determines them."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from captum_clip_surgery.models._contents import ProcessLocalError
from captum_clip_surgery.models.text._cache import TextCache
from captum_clip_surgery.models.text._fingerprint import fingerprint


class DiskFeatures:
    """The features of one text tower in a `TextCache`.

    Args:
        folder: Folder of the cache.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self._cache = TextCache(folder)
        self._digest: tuple[object, bytes | None] = (None, None)
        self._warned = False

    def digest(self, generation: object, tower: nn.Module) -> bytes | None:
        """Return a digest of the text tower, or None, with a warning, if there is none.

        Args:
            generation: An object that is replaced whenever the text tower changes.
            tower: The text tower.
        """
        if self._digest[0] is not generation:
            digest = None
            try:
                digest = fingerprint(tower)
            except ProcessLocalError as error:
                if not self._warned:
                    warnings.warn(
                        f"text features are not stored in {self._cache.path.parent}: {error}, "
                        "whose effect on them cannot be part of a key for other processes",
                        stacklevel=5,
                    )
                    self._warned = True
            self._digest = generation, digest
        return self._digest[1]

    def keys(self, settings: list[Any], content: Mapping[str, Any]) -> dict[str, bytes]:
        """Return a key for each text.

        Args:
            settings: What determines the features apart from the text, as JSON.
            content: What is encoded for each text, as JSON.
        """
        return {
            text: hashlib.sha256(json.dumps([settings, encoded]).encode()).digest()
            for text, encoded in content.items()
        }

    def get(self, keys: Mapping[str, bytes], device: torch.device) -> dict[str, Tensor]:
        """Return the features (C,) that are stored, by text."""
        stored = self._cache.get(keys.values())
        return {text: stored[key].to(device) for text, key in keys.items() if key in stored}

    def put(self, features: Mapping[bytes, Tensor]) -> None:
        """Store features (C,) by key."""
        if features:
            self._cache.put(features)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the digest, which belongs to this process's text tower."""
        return {**self.__dict__, "_digest": (None, None)}
