"""All that is on the screen but the picture, as data; its limits, each with its words."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from captum_clip_surgery.attr.registry import METHODS
from captum_clip_surgery.functional import VARIANTS
from captum_clip_surgery.tasks import INSTANCES
from captum_clip_surgery.visualization import SIGNS

MAX_TEXTS = 24
MAX_RIVALS = 200
MAX_CHARACTERS = 200  # of a text, a distractor or a caption
MAX_PANELS = 96  # texts times methods
MAX_SIDE = 1024
MAX_JSON = 200_000  # characters of settings: of all texts at their longest and some

AUTO_FORM = "auto"
NO_FORM = "none"
FORM_NAMES = (AUTO_FORM, *VARIANTS, NO_FORM)
TABS = ("maps", "segmentation", "points", "words")
#: Of Matplotlib; "auto" is chosen by the sign.
AUTO_COLOURS = "auto"
COLOUR_MAPS = (AUTO_COLOURS, "inferno", "viridis", "magma", "cividis", "Greens", "RdBu_r", "PiYG")


@dataclass(frozen=True)
class Settings:
    """What a visitor has set.

    Args:
        texts: each gets a map; from 1 to `MAX_TEXTS`.
        methods: names of `registry.METHODS`.
        distractors: texts that compete in feature surgery and get no map.
        form: of feature surgery, one of `FORM_NAMES`.
        side: of the image in pixels that the model sees; None is native.
        opacity: of maps over the picture, in 0..1.
        colours: one of `COLOUR_MAPS`.
        sign: of the values that are drawn, one of `visualization.SIGNS`.
        point: (x, y) of the picture in 0..1, whose scores are shown; None is none.
        background: texts for what is no class in segmentation.
        instances: prompts for SAM, one of `tasks.INSTANCES`.
        boxes: whether prompts have boxes.
        caption: whose words get maps.
        example: number of the example that is shown; None is a picture of the visitor's own.
        tab: one of `TABS`.

    Raises:
        ValueError: a value of another kind or beyond its limit; the message says how to mend it.

    Example::

        >>> settings = Settings(texts=("a dog",), point=(0.25, 0.5))
        >>> Settings.from_json(settings.to_json()) == settings
        True
    """

    texts: tuple[str, ...]
    methods: tuple[str, ...] = ("CLIP", "CLIPSurgery")
    distractors: tuple[str, ...] = ()
    form: str = AUTO_FORM
    side: int | None = None
    opacity: float = 0.7
    colours: str = AUTO_COLOURS
    sign: str = "range"
    point: tuple[float, float] | None = None
    background: tuple[str, ...] = ("a background",)
    instances: str = "one"
    boxes: bool = True
    caption: str = ""
    example: int | None = None
    tab: str = "maps"

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(getattr(self, name)))
        panels = len(self.texts) * len(self.methods)
        if panels > MAX_PANELS:
            raise ValueError(
                f"{len(self.texts)} texts by {len(self.methods)} methods make {panels} maps, at "
                f"most {MAX_PANELS} are drawn; take fewer texts or methods"
            )

    @property
    def feature_surgery(self) -> str | None:
        """The form as methods take it."""
        return None if self.form == NO_FORM else self.form

    @property
    def cmap(self) -> str | None:
        """The colour map as `visualize_attribution` takes it."""
        return None if self.colours == AUTO_COLOURS else self.colours

    def to_json(self) -> str:
        """All settings, as `from_json` reads them."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Settings that `to_json` wrote, or some of them.

        Raises:
            ValueError: no JSON object of settings, an unknown one, or a value that is refused.
        """
        if len(text) > MAX_JSON:
            raise ValueError(f"settings of {len(text)} characters, at most {MAX_JSON} are read")
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the settings are no JSON: {error}") from None
        return cls.of(given)

    @classmethod
    def of(cls, given: object) -> Self:
        """Settings from a mapping that may hold anything.

        Raises:
            ValueError: as for `from_json`.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f"settings are a JSON object, not {type(given).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(
                f"there is no setting {unknown[0]!r:.80}; there are {', '.join(known)}"
            )
        if "texts" not in given:
            raise ValueError("the settings name no texts")
        return cls(**given)


def lines_of(text: str | None) -> tuple[str, ...]:
    """The lines of a text box that are not empty.

    Example::

        >>> lines_of(" a dog  \\n\\n a cat")
        ('a dog', 'a cat')
    """
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())


# --- what a value must be ------------------------------------------------------------------------


def number(value: Any, what: str, low: float, high: float) -> float:
    """A number in its limits, as it is.

    Raises:
        ValueError: another one, or none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{what} {value!r:.80} is no number from {low:g} to {high:g}")
    return value


def flag(value: Any, what: str) -> bool:
    """True or false, as it is.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{what} is true or false, not {value!r:.80}")
    return value


def _texts(value: Any, what: str, most: int, least: int = 0) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{what}s are a list, not {value!r:.80}")
    if len(value) > most:
        raise ValueError(f"{len(value)} {what}s, at most {most} are taken; leave some out")
    if len(value) < least:
        raise ValueError(f"no {what}: write at least one, one a line")
    texts = tuple(_text(text, what) for text in value)
    if not all(texts):
        raise ValueError(f"a {what} is empty")
    twice = [text for text in texts if texts.count(text) > 1]
    if twice:
        raise ValueError(f"the {what} {twice[0]!r} stands twice; leave one out")
    return texts


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {what} is {value!r:.80}, no string")
    if len(value) > MAX_CHARACTERS:
        raise ValueError(
            f"a {what} has {len(value)} characters, at most {MAX_CHARACTERS} are read; shorten "
            f"{value[:20]!r}..."
        )
    value = value.strip()
    unfit = next((sign for sign in value if _unfit(sign)), None)
    if unfit is not None:
        raise ValueError(f"the {what} {value!r} holds the control character {unfit!r}; remove it")
    return value


def _unfit(sign: str) -> bool:
    """Whether XML holds no such character (SVG is XML), or a text box breaks the line at it."""
    return unicodedata.category(sign) in ("Cc", "Cs") or sign in "\ufffe\uffff"


def _methods(value: Any) -> tuple[str, ...]:
    names = _texts(value, "method", len(METHODS), 1)
    for name in names:
        _one_of(METHODS, "method")(name)
    return names


def _one_of(allowed: Any, what: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{what} {value!r:.80} is none of {', '.join(allowed)}")
        return value

    return check


def _whole(value: Any, what: str, low: int, high: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} {value!r:.80} is no whole number from {low} to {high}")
    return value


def _point(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"a point is [x, y], each from 0 to 1, not {value!r:.80}")
    x, y = (float(number(part, "a point's coordinate", 0, 1)) for part in value)
    return x, y


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "texts": lambda value: _texts(value, "text", MAX_TEXTS, 1),
    "methods": _methods,
    "distractors": lambda value: _texts(value, "distractor", MAX_RIVALS),
    "form": _one_of(FORM_NAMES, "form of feature surgery"),
    "side": lambda value: _whole(value, "resolution", 1, MAX_SIDE),
    "opacity": lambda value: float(number(value, "opacity", 0, 1)),
    "colours": _one_of(COLOUR_MAPS, "colour map"),
    "sign": _one_of(SIGNS, "sign"),
    "point": _point,
    "background": lambda value: _texts(value, "background text", MAX_TEXTS),
    "instances": _one_of(INSTANCES, "kind of prompts"),
    "boxes": lambda value: flag(value, "boxes"),
    "caption": lambda value: _text(value, "caption"),
    "example": lambda value: _whole(value, "example", 0, 10_000),
    "tab": _one_of(TABS, "tab"),
}
