"""Python code that repeats what the page shows: one template per tab."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from captum_clip_surgery.app import _templates
from captum_clip_surgery.app._images import (
    PHOTO,
    SCENE_SIDE,
    SIDE,
    PageImage,
    required_query,
)
from captum_clip_surgery.app._settings import Settings
from captum_clip_surgery.attr._registry import SURGERY_METHODS, choose
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import CONTRASTING


@dataclass(frozen=True)
class Model:
    """Origin of the model; without a name it is the embedded one.

    Args:
        name: Name that open_clip loads.
        pretrained: Tag or checkpoint file.
        undefined: Reason by method that is not defined on the model.
    """

    name: str | None = None
    pretrained: str | None = None
    undefined: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name of the model in the page's dropdown."""
        if self.name is None:
            return "embedded model"
        return self.name if self.pretrained is None else f"{self.name}, {self.pretrained}"

    @classmethod
    def of(
        cls, clip: ZeroShotClassifier, name: str | None = None, pretrained: str | None = None
    ) -> Self:
        """Return the origin of a classifier, with the methods that are not defined on it."""
        _, undefined = choose(clip, ["all"])
        return cls(name, pretrained, undefined)


def python(
    model: Model, image: PageImage, settings: Settings, query: PageImage | None = None
) -> str:
    """Return a script that repeats the selected tab and saves its figure.

    Its result is in the variable `maps`, `segmentation`, `image_prompts`, `words` or `pair`.

    Raises:
        ValueError: If the tab compares with a query image and there is none.
    """
    settings = settings.on_tab()
    if settings.tab == "pair":
        query = required_query(query)
    source = {"reduced_to": (SIDE, SIDE), "side": SCENE_SIDE, "photo": PHOTO.name}
    values = _map_values(model, settings) if settings.tab == "maps" else {}
    return _templates.code(
        settings.tab,
        model=model,
        image=image,
        query=query,
        source=source,
        settings=settings,
        **values,
    )


def _map_values(model: Model, settings: Settings) -> dict[str, Any]:
    left_out = _left_out(model, settings)
    methods = [name for name in settings.methods if name not in left_out]
    classes = [SURGERY_METHODS[name].__name__ for name in methods if name in SURGERY_METHODS]
    registry = ["METHODS"] if len(classes) < len(methods) else []
    return {
        "left_out": left_out,
        "methods": methods,
        "imports": [*registry, *sorted(classes), "ZeroShotClassifier"],
        "surgery": SURGERY_METHODS,
        "trusted": [name for name in methods if not _contrasts(name, settings)],
    }


def _contrasts(name: str, settings: Settings) -> bool:
    """Return whether a method cannot explain a single text."""
    return name in SURGERY_METHODS and settings.feature_surgery in CONTRASTING


def _left_out(model: Model, settings: Settings) -> dict[str, str]:
    """Return why the page shows no maps of some of the chosen methods."""
    names = settings.methods
    left_out = {name: model.undefined[name] for name in names if name in model.undefined}
    variant = settings.feature_surgery
    if variant in CONTRASTING and len(settings.asked) + len(settings.distractors) == 1:
        reason = f'feature_surgery="{variant}" contrasts texts, and there is only one'
        left_out |= {name: reason for name in names if name in SURGERY_METHODS}
    return left_out
