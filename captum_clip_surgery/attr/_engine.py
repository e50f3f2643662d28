"""Several methods on the same images, with one pass of the tower for all that can share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from captum_clip_surgery.attr._base import Explain, Method, PatchAttribution
from captum_clip_surgery.attr.dual_path import DualPathAttribution, maps_together
from captum_clip_surgery.classifier import ZeroShotClassifier


class Passes:
    """Methods on one classifier. Dense methods share a pass; of others each makes its own."""

    def __init__(self, clip: ZeroShotClassifier, methods: Mapping[str, Method]) -> None:
        self.clip = clip
        self.dense: dict[str, DualPathAttribution] = {}
        self.others: dict[str, Explain] = {}
        self.names = tuple(methods)
        for name, method in methods.items():
            explain = method(clip)
            owner = _shares(explain, clip)
            if owner is None:
                self.others[name] = explain
            else:
                self.dense[name] = owner

    @torch.no_grad()  # methods of gradients enable them themselves
    def __call__(self, images: Tensor, targets: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Maps (N, K, h, w) of images (N, 3, H, W) for texts, in the order of the methods."""
        found = maps_together(self.dense, images, targets) if self.dense else {}
        found |= {name: explain(images, targets) for name, explain in self.others.items()}
        return {name: found[name].detach() for name in self.names}

    def of_each(self, images: Tensor, targets: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
        """Maps (K, h, w) of each image, for the texts it is asked about."""
        wanted = sorted({target for row in targets for target in row})
        places = {target: place for place, target in enumerate(wanted)}
        shared: dict[str, Tensor] = {}
        if self.dense and wanted:
            with torch.no_grad():
                shared = maps_together(self.dense, images, wanted)
        found = []
        for index, row in enumerate(targets):
            maps: dict[str, Tensor] = {}
            if row:
                chosen = [places[target] for target in row]
                maps = {name: all_maps[index, chosen] for name, all_maps in shared.items()}
                for name, explain in self.others.items():
                    with torch.no_grad():
                        maps[name] = explain(images[index : index + 1], row)[0].detach()
            found.append({name: maps[name] for name in self.names if name in maps})
        return found


def _shares(explain: Explain, clip: ZeroShotClassifier) -> DualPathAttribution | None:
    """The dense method that this is, if `maps_together` does all that it does."""
    owner = getattr(explain, "__self__", None)
    if not isinstance(owner, DualPathAttribution) or owner.forward_func is not clip:
        return None
    kind = type(owner)
    as_here = (
        explain == owner.attribute_all
        and kind.attribute_all is PatchAttribution.attribute_all
        and kind._maps is PatchAttribution._maps
        and kind.scores is DualPathAttribution.scores
    )
    return owner if as_here else None
