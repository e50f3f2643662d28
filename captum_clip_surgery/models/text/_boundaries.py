"""Words of a text by Unicode's rules (UAX 29), which tokens of the same text are assigned to."""

from __future__ import annotations

from collections.abc import Sequence

import regex

_BREAK = regex.compile(r"(?V1w)\b")
#: Scripts without spaces, whose words only dictionaries tell apart: a run of them is one word.
_UNSPACED = regex.compile(r"[\p{Line_Break=Complex_Context}\p{Ideographic}\p{Hiragana}]")
#: Marks and signs that are invisible on their own, such as the zero-width space.
_INVISIBLE = regex.compile(r"[\p{M}\p{Cf}\p{Cc}]+")
_INVISIBLE_ENDS = regex.compile(r"^[\s\p{Cf}\p{Cc}]+|[\s\p{Cf}\p{Cc}]+$")

#: Start and end of a word in a text.
Span = tuple[int, int]


def word_spans(text: str) -> list[Span]:
    """Return the spans of a text's words and punctuation marks, in order.

    Args:
        text: The text.

    Example::

        >>> text = "the 12th dog can't"
        >>> [text[start:end] for start, end in word_spans(text)]
        ['the', '12th', 'dog', "can't"]
    """
    spans: list[Span] = []
    leading = None  # start of invisible signs before the first word
    place = 0
    for part in _BREAK.split(text):
        start, place = place, place + len(part)
        if not part or part.isspace():
            continue
        joined = bool(spans) and spans[-1][1] == start
        if _INVISIBLE.fullmatch(part):
            if spans:
                spans[-1] = (spans[-1][0], place)
            elif leading is None:
                leading = start
        elif joined and _UNSPACED.match(part) and _UNSPACED.match(text, start - 1):
            spans[-1] = (spans[-1][0], place)
        else:
            spans.append((start if leading is None else leading, place))
            leading = None
    return spans


def assign_tokens(text: str, tokens: Sequence[Span]) -> list[tuple[str, list[int]]]:
    """Return the words of a text, each with the indices of its tokens.

    Words that share a token are one: of three full stops, for example.

    Args:
        text: The text as the tokenizer splits it.
        tokens: Span of each token in the text, in order, without the spaces around it.
    """
    spans = word_spans(text)
    words: list[tuple[Span, list[int]]] = []
    current = 0
    for index, (start, end) in enumerate(tokens):
        while current < len(spans) - 1 and spans[current][1] <= start:
            current += 1
        if not spans:
            break
        span = spans[current]
        while current < len(spans) - 1 and spans[current][1] < end:
            current += 1
            span = (span[0], spans[current][1])
        if words and span[0] < words[-1][0][1]:
            (first, last), members = words[-1]
            words[-1] = (first, max(last, span[1])), [*members, index]
        else:
            words.append((span, [index]))
    return [(_INVISIBLE_ENDS.sub("", text[start:end]), members) for (start, end), members in words]
