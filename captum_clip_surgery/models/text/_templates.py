"""Texts, and templates that turn them into prompts."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import open_clip

from captum_clip_surgery._utils.text import did_you_mean

#: A format string with plain slots `{}`, or a function of the text.
Template = str | Callable[[str], str]

SCENE_TEMPLATES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
#: The 85 prompts of CLIP Surgery: OpenAI's 80 for ImageNet and five about scenes.
TEMPLATES: tuple[str, ...] = (
    tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES) + SCENE_TEMPLATES
)

#: Unicode categories of invisible characters: control, format, separators.
INVISIBLE = {"Cc", "Cf", "Zs", "Zl", "Zp"}


def format_prompt(template: Template, text: str) -> str:
    """Put a text into a template.

    Args:
        template: A format string whose every slot is a plain `{}`, or a function of the text.
        text: The text for the slots.

    Raises:
        ValueError: If a format string has no slot, or one that is not a plain `{}`.
        TypeError: If the template has another type, or a function does not return a string.

    Example::

        >>> format_prompt("a photo of a {}.", "dog")
        'a photo of a dog.'
    """
    if isinstance(template, str):
        return "".join(literal + text * slots for literal, slots in _parse(template))
    if not callable(template):
        raise TypeError(f"template {template!r:.200} must be a format string or a function")
    prompt = template(text)
    if not isinstance(prompt, str):
        raise TypeError(
            f"template {template!r:.200} must return a string, got {prompt!r:.80} for "
            f"{truncate_repr(text)}"
        )
    return prompt


def _parse(template: str) -> list[tuple[str, int]]:
    """Split a format string into literals, each with the number of slots (0 or 1) after it."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"template {truncate_repr(template)} is not a format string: {error}"
        ) from None
    for _, field, spec, conversion in parts:
        if field is not None and (field or spec or conversion):
            slot = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ValueError(
                f"template {truncate_repr(template)} has the slot {{{slot:.80}}}; "
                "only plain {} is filled"
            )
    if all(field is None for _, field, _, _ in parts):
        raise ValueError(
            f"template {truncate_repr(template)} has no slot; write {{}} where the text goes"
        )
    return [(literal, int(field is not None)) for literal, field, _, _ in parts]


def check_texts(texts: Iterable[str], what: str = "text") -> tuple[str, ...]:
    """Check texts and return them as a tuple.

    Args:
        texts: A list of strings, or another iterable with an order.
        what: Name of one text, for messages.

    Raises:
        TypeError: If `texts` is a string, a set or not iterable, or contains something other than
            strings.
        ValueError: If a text is empty, consists of invisible characters, or is not valid Unicode.

    Example::

        >>> check_texts(["a bench", "a person"])
        ('a bench', 'a person')
    """
    if isinstance(texts, str):
        shown = truncate_repr(texts)
        raise TypeError(f"{what}s is the string {shown}; pass a list: [{shown}]")
    if isinstance(texts, (set, frozenset)):
        raise TypeError(f"{what}s is a set, whose order changes; targets follow it, so pass a list")
    if not isinstance(texts, Iterable):
        raise TypeError(f"{what}s is a {type(texts).__name__}, expected a list of strings")
    texts = tuple(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise TypeError(f"{what} {index} must be a string, got {text!r:.200} of type {kind}")
        if not text.strip():
            raise ValueError(f"{what} {index} is empty")
        kinds = set(map(unicodedata.category, text))
        if "Cs" in kinds:
            raise ValueError(
                f"{what} {index} is {truncate_repr(text)}, which contains an unpaired UTF-16 "
                "surrogate"
            )
        if kinds <= INVISIBLE:
            raise ValueError(
                f"{what} {index} is {truncate_repr(text)}, which has no visible characters"
            )
    return texts


def check_names(
    texts: Iterable[str], distractors: Iterable[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a classifier's texts and distractors as tuples.

    Raises:
        TypeError: If they have no order, or one is not a string.
        ValueError: If there are no texts, or one is empty.
    """
    names = check_texts(texts)
    if not names:
        raise ValueError("no texts: a classifier needs at least one")
    return names, check_texts(() if distractors is None else distractors, "distractor")


def truncate_repr(text: str) -> str:
    """Return the `repr` of a text for a message, shortened, because texts can be long."""
    return repr(text) if len(text) <= 80 else f"{text[:60]!r}... ({len(text)} characters)"


def index_of(text: str, texts: Sequence[str]) -> int:
    """Return the index of a text among others.

    Raises:
        ValueError: If the text is not among them, or occurs more than once.
    """
    places = [index for index, name in enumerate(texts) if name == text]
    if len(places) == 1:
        return places[0]
    if places:
        raise ValueError(f"text {text!r} occurs at {places}; give one of these as an index")
    hint = did_you_mean(str(text), texts)
    raise ValueError(f"text {text!r} is not among the {len(texts)} texts{hint}")
