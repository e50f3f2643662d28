"""Settings of the page except the image, as data with limits."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from captum_clip_surgery.app._images import example_texts
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.functional import VARIANTS
from captum_clip_surgery.tasks._sam import INSTANCES
from captum_clip_surgery.visualization._scales import AUTO, SIGNS

MAX_TEXTS = 24
MAX_DISTRACTORS = 200
#: Characters of a text, a distractor or a caption.
MAX_CHARACTERS = 200
#: Maps on the page: texts times methods.
MAX_PANELS = 96
#: Side in pixels to which images are resized.
MAX_SIDE = 1024
#: Characters of settings as JSON: more than all texts at their longest.
MAX_JSON = 200_000

FEATURE_SURGERY = ("auto", *VARIANTS, None)
TABS = ("maps", "segmentation", "points", "words", "pair")
#: What tabs that leave the text to subtract aside say about it.
WITHOUT_MINUS = {
    "segmentation": "Segmentation leaves the text to subtract aside: it would not change which "
    "class is largest.",
    "words": "Words leaves the text to subtract aside: it looks for the words of the sentence.",
    "pair": "Two images leaves the text to subtract aside: it compares the images with each other.",
}
#: Color maps of Matplotlib to choose from; None chooses one by the sign.
COLOR_MAPS = (None, "inferno", "viridis", "magma", "cividis", "Greens", "RdBu_r", "PiYG")


@dataclass(frozen=True)
class Settings:
    """Settings that a user has chosen.

    Args:
        texts: Texts to explain, at most 24, and at least one if there is no query image.
        methods: Names in `attr.METHODS`.
        query: Name of the query image, which is explained like a text, or "" without one.
        minus: Text that is subtracted from each text and from the query image, or "".
        distractors: Texts that compete in feature surgery but get no map.
        feature_surgery: Variant of feature surgery, one of `FEATURE_SURGERY`.
        side: Side in pixels to which the image is resized; None means the native size.
        opacity: Opacity of maps over the image, 0..1.
        cmap: Color map, one of `COLOR_MAPS`.
        sign: Values to draw, "auto" or one of `visualization.SIGNS`.
        trust: Whether to say below each map how much it depends on its text.
        point: Point (x, y) of the image in 0..1 whose scores are shown, or None.
        background: Texts that describe the background in segmentation.
        instances: Prompts for SAM, one of `tasks.sam.INSTANCES`.
        boxes: Whether prompts have boxes.
        caption: Sentence whose words get maps.
        example: Number of the example image, or None for the user's own image.
        tab: Selected tab, one of `TABS`.
        model: Title of the model, or "" for the page's first one.

    Raises:
        ValueError: If a value has the wrong type or exceeds its limit.

    Example::

        >>> settings = Settings(texts=("a dog",), point=(0.25, 0.5))
        >>> Settings.from_json(settings.to_json()) == settings
        True
    """

    texts: tuple[str, ...]
    methods: tuple[str, ...] = ("CLIP", "CLIPSurgery")
    query: str = ""
    minus: str = ""
    distractors: tuple[str, ...] = ()
    feature_surgery: str | None = "auto"
    side: int | None = None
    opacity: float = 0.7
    cmap: str | None = None
    sign: str = AUTO
    trust: bool = False
    point: tuple[float, float] | None = None
    background: tuple[str, ...] = ("a background",)
    instances: str = "one"
    boxes: bool = True
    caption: str = ""
    example: int | None = None
    tab: str = "maps"
    model: str = ""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(getattr(self, name)))
        count = len(self.asked)
        if not count:
            raise ValueError(
                "no text given; write what to look for, one text per line, or choose a query image"
            )
        if self.query in self.texts:
            raise ValueError(
                f"the text {self.query!r} is also the name of the query image; change the text"
            )
        panels = count * len(self.methods)
        if panels > MAX_PANELS:
            raise ValueError(
                f"{count} texts and {len(self.methods)} methods make {panels} maps; the "
                f"limit is {MAX_PANELS}. Choose fewer texts or methods"
            )

    @property
    def asked(self) -> tuple[str, ...]:
        """The texts, and the name of the query image if there is one."""
        return (*self.texts, self.query) if self.query else self.texts

    def on_tab(self) -> Self:
        """Return the settings without a text to subtract if the tab leaves it aside."""
        return replace(self, minus="") if self.tab in WITHOUT_MINUS else self

    def to_json(self) -> str:
        """Return all settings as JSON that `from_json` reads."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read settings that `to_json` wrote, or some of them.

        Raises:
            ValueError: If the text is not a JSON object of known settings within their limits.
        """
        if len(text) > MAX_JSON:
            raise ValueError(f"settings have {len(text)} characters; the limit is {MAX_JSON}")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"settings are not valid JSON: {error}") from None
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Read settings from untrusted values.

        Raises:
            ValueError: If the values are not a mapping of known settings within their limits.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"settings must be a JSON object, got {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(f"unknown setting {unknown[0]!r:.80}; expected {', '.join(known)}")
        if "texts" not in values:
            raise ValueError("settings have no texts")
        return cls(**values)


def default_settings(example: int) -> Settings:
    """Return the first view of an example."""
    texts, caption = example_texts(example)
    return Settings(texts=texts, caption=caption, example=example)


def split_lines(text: str | None) -> tuple[str, ...]:
    r"""Return the non-empty lines of a text box.

    Example::

        >>> split_lines(" a dog  \n\n a cat")
        ('a dog', 'a cat')
    """
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())


def check_number(value: Any, what: str, low: float, high: float) -> float:
    """Return a number.

    Raises:
        ValueError: If it is not a number from `low` to `high`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{what} must be a number from {low:g} to {high:g}, got {value!r:.80}")
    return value


def check_flag(value: Any, what: str) -> bool:
    """Return a bool.

    Raises:
        ValueError: If it is not a bool.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{what} must be true or false, got {value!r:.80}")
    return value


def _check_texts(value: Any, what: str, most: int) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{what}s must be a list, got {value!r:.80}")
    if len(value) > most:
        raise ValueError(f"{len(value)} {what}s given; the limit is {most}")
    texts = tuple(_check_text(text, what) for text in value)
    if not all(texts):
        raise ValueError(f"a {what} is empty")
    repeated = [text for text in texts if texts.count(text) > 1]
    if repeated:
        raise ValueError(f"the {what} {repeated[0]!r} is listed twice")
    return texts


def _check_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {what} must be a string, got {value!r:.80}")
    if len(value) > MAX_CHARACTERS:
        raise ValueError(
            f"a {what} has {len(value)} characters; the limit is {MAX_CHARACTERS}. Shorten "
            f"{value[:20]!r}..."
        )
    value = value.strip()
    control = next((sign for sign in value if _is_control(sign)), None)
    if control is not None:
        raise ValueError(f"the {what} {value!r} contains the control character {control!r}")
    return value


def printable(name: str) -> str:
    """Return a file's name without what texts of the page cannot hold."""
    return "".join("_" if _is_control(sign) else sign for sign in name).strip() or "image"


def _is_control(sign: str) -> bool:
    """Return whether XML, and so SVG, lacks a character, or a text box breaks lines at it."""
    return unicodedata.category(sign) in ("Cc", "Cs") or sign in "\ufffe\uffff"


def _check_methods(value: Any) -> tuple[str, ...]:
    names = _check_texts(value, "method", len(METHODS))
    if not names:
        raise ValueError("no method is ticked; tick at least one under “Methods and model”")
    for name in names:
        _one_of(METHODS, "method")(name)
    return names


def _one_of(allowed: Iterable[Any], what: str) -> Callable[[Any], Any]:
    choices: Container[Any] = list(allowed)
    names = ", ".join("none" if choice is None else str(choice) for choice in allowed)

    def check(value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"{what} must be one of {names}, got {value!r:.80}")
        return value

    return check


def _check_integer(value: Any, what: str, low: int, high: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} must be a whole number from {low} to {high}, got {value!r:.80}")
    return value


def _check_point(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"a point must be [x, y], each from 0 to 1, got {value!r:.80}")
    x, y = (float(check_number(part, "a coordinate of a point", 0, 1)) for part in value)
    return x, y


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "texts": lambda value: _check_texts(value, "text", MAX_TEXTS),
    "query": lambda value: _check_text(value, "name of the query image"),
    "minus": lambda value: _check_text(value, "text to subtract"),
    "methods": _check_methods,
    "distractors": lambda value: _check_texts(value, "distractor", MAX_DISTRACTORS),
    "feature_surgery": _one_of(FEATURE_SURGERY, "feature surgery"),
    "side": lambda value: _check_integer(value, "resolution", 1, MAX_SIDE),
    "opacity": lambda value: float(check_number(value, "opacity", 0, 1)),
    "cmap": _one_of(COLOR_MAPS, "color map"),
    "sign": _one_of((AUTO, *SIGNS), "sign"),
    "trust": lambda value: check_flag(value, "whether to measure text specificity"),
    "point": _check_point,
    "background": lambda value: _check_texts(value, "background text", MAX_TEXTS),
    "instances": _one_of(INSTANCES, "kind of prompts"),
    "boxes": lambda value: check_flag(value, "boxes"),
    "caption": lambda value: _check_text(value, "caption"),
    "example": lambda value: _check_integer(value, "example", 0, 10_000),
    "tab": _one_of(TABS, "tab"),
    "model": lambda value: _check_text(value, "model"),
}
