"""What a user writes: texts, and templates that make prompts of them."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable, Iterable

import open_clip

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

#: Categories of characters that nobody sees: control, format, separators.
UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}


def format_prompt(template: Template, text: str) -> str:
    """Put a text into a template.

    Args:
        template: a format string whose every slot is a plain `{}`, or a callable of the text.
        text: what fills the slots.

    Raises:
        ValueError: a format string without a slot, or with one that is not plain `{}`.
        TypeError: a template of another kind, or a callable that returns no string.

    Example::

        >>> format_prompt("a photo of a {}.", "dog")
        'a photo of a dog.'
    """
    if isinstance(template, str):
        return "".join(literal + text * slots for literal, slots in _parse(template))
    if not callable(template):
        raise TypeError(f"template {template!r:.200} is neither a format string nor a callable")
    prompt = template(text)
    if not isinstance(prompt, str):
        raise TypeError(
            f"template {template!r:.200} must return a string, got {prompt!r:.80} for "
            f"{truncate_repr(text)}"
        )
    return prompt


def _parse(template: str) -> list[tuple[str, int]]:
    """Literal pieces, each with the number of slots (0 or 1) that follow it."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"template {truncate_repr(template)} is no format string: {error}"
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
    """Texts as a tuple, each a string with something in it.

    Raises:
        TypeError: one string or a set where a list belongs, or something that is no string in it.
        ValueError: a text that is empty, of invisible characters alone, or not Unicode.
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
            raise TypeError(f"{what} {index} is {text!r:.200} of type {kind}, no string")
        if not text.strip():
            raise ValueError(f"{what} {index} is empty")
        kinds = set(map(unicodedata.category, text))
        if "Cs" in kinds:
            raise ValueError(f"{what} {index} is {truncate_repr(text)}: half a character of UTF-16")
        if kinds <= UNSEEN:
            raise ValueError(
                f"{what} {index} is {truncate_repr(text)}, of which nothing can be seen"
            )
    return texts


def truncate_repr(text: str) -> str:
    """How an error shows a text, which may be a book."""
    return repr(text) if len(text) <= 80 else f"{text[:60]!r}... ({len(text)} characters)"
