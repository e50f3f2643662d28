"""Words of a text and the positions of their tokens, for tokenizers that can tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from captum_clip_surgery.models._internals import BPE_TOKENIZER
from captum_clip_surgery.models.text._boundaries import Span, assign_tokens
from captum_clip_surgery.models.text._transformers import TransformersTokenizer

#: Name of the token that starts a text.
START = "<start>"
#: Name of the token that ends a text.
END = "<end>"
#: Signs for a space in the vocabularies of sentencepiece and of byte-level BPE.
SPACES = ("▁", "Ġ")
#: CLIP's mark of the last token of a word.
END_OF_WORD = "</w>"


def word_positions(
    tokenizer: Any, tokens: Sequence[int], special: bool = False, text: str | None = None
) -> list[tuple[str, list[int]]]:
    """Return the words of a text, each with the positions of its tokens.

    Args:
        tokenizer: open_clip's own tokenizer, or one of transformers.
        tokens: Token ids of one text, padded or not.
        special: Also return the start, if there is one, and the end, as "<start>" and "<end>".
        text: The text, whose words are separated by Unicode's rules. Without it, and for
            tokenizers that do not say where in the text a token is, by those of the tokenizer.

    Returns:
        Pairs (word, positions) in the order of the text; empty if the tokenizer left nothing of it.

    Raises:
        TypeError: If the tokenizer is of another kind, whose tokens cannot be read.

    Example::

        >>> ids = open_clip.tokenize("the 12th xylophonist")[0].tolist()
        >>> word_positions(open_clip.tokenize, ids, text="the 12th xylophonist")
        [('the', [1]), ('12th', [2, 3, 4]), ('xylophonist', [5, 6, 7, 8])]
    """
    spelling = _spelling(tokenizer)
    start = int(tokens[0] in spelling.special)
    inner = range(start, len(tokens))
    end = next((i for i in inner if tokens[i] in spelling.ends), len(tokens))
    ids = tokens[start:end]
    located = None if text is None else spelling.locate(text, ids)
    words = _words_of_tokenizer(spelling, ids) if located is None else assign_tokens(*located)
    words = [(word, [start + index for index in members]) for word, members in words if word]
    if not special:
        return words
    ends = [(END, [end])] if end < len(tokens) else []
    return [(START, [position]) for position in range(start)] + words + ends


def _words_of_tokenizer(spelling: _Spelling, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    groups: list[list[int]] = []
    for index, starts in enumerate(spelling.starts(ids)):
        if starts or not groups:
            groups.append([])
        groups[-1].append(index)
    return [(spelling.decode([ids[i] for i in group]), group) for group in groups]


@dataclass(frozen=True)
class _Spelling:
    """Spelling of words by a tokenizer.

    Args:
        special: Token ids of start, end and padding.
        ends: Those of them that end a text; a text can spell out its start.
        starts: Tells for each token id whether it starts a word.
        decode: Returns the text of token ids.
        locate: Returns the text as the tokenizer splits it, and the span in it of each of the first
            tokens, or None if they do not spell it.
    """

    special: frozenset[int]
    ends: frozenset[int]
    starts: Callable[[Sequence[int]], list[bool]]
    decode: Callable[[Sequence[int]], str]
    locate: Callable[[str, Sequence[int]], tuple[str, list[Span]] | None]


def _spelling(tokenizer: Any) -> _Spelling:
    if tokenizer is open_clip.tokenize:
        tokenizer = BPE_TOKENIZER
    if isinstance(tokenizer, SimpleTokenizer):
        return _spelling_of_open_clip(tokenizer)
    if isinstance(tokenizer, HFTokenizer):
        others = {0} if tokenizer.strip_sep_token else set()  # in the separator's place
        return _spelling_of_hugging_face(tokenizer.tokenizer, others, tokenizer.clean_fn)
    if isinstance(tokenizer, TransformersTokenizer):
        return _spelling_of_hugging_face(tokenizer.tokenizer, set(), str)
    raise TypeError(
        f"words cannot be separated with a tokenizer of type {type(tokenizer).__name__}; use the "
        "one that open_clip.get_tokenizer(name) returns"
    )


def _spelling_of_open_clip(tokenizer: SimpleTokenizer) -> _Spelling:
    def starts(ids: Sequence[int]) -> list[bool]:
        # The last token of a word ends with a space.
        ends = [tokenizer.decode([number]).endswith(" ") for number in ids]
        return [True, *ends[:-1]] if ids else []

    def locate(text: str, ids: Sequence[int]) -> tuple[str, list[Span]] | None:
        cleaned = tokenizer.clean_fn(text)
        places = [place for place, sign in enumerate(cleaned) if not sign.isspace()]
        # Index of the character of each byte; tokens can end within a character.
        owners = [place for place in places for _ in cleaned[place].encode()]
        spelled = "".join(cleaned[place] for place in places).encode()
        spans, offset = [], 0
        for number in ids:
            piece = _bytes_of(tokenizer, number)
            if not piece or spelled[offset : offset + len(piece)] != piece:
                return None
            spans.append((owners[offset], owners[offset + len(piece) - 1] + 1))
            offset += len(piece)
        return cleaned, spans

    special = frozenset({tokenizer.sot_token_id, tokenizer.eot_token_id})
    ends = special - {tokenizer.sot_token_id}
    return _Spelling(special, ends, starts, lambda ids: tokenizer.decode(ids).strip(), locate)


def _bytes_of(tokenizer: SimpleTokenizer, number: int) -> bytes:
    signs = tokenizer.decoder[number].removesuffix("</w>")
    return bytes(tokenizer.byte_decoder[sign] for sign in signs)


def _spelling_of_hugging_face(
    inner: Any, others: set[int], clean: Callable[[str], str]
) -> _Spelling:
    # A vocabulary marks where words start, by a sign for the space before them, where they
    # continue, or where they end.
    probe = inner.tokenize("a a")
    sign = next((s for s in SPACES if any(piece.startswith(s) for piece in probe)), None)
    marks_ends = any(piece.endswith(END_OF_WORD) for piece in probe)

    def starts(ids: Sequence[int]) -> list[bool]:
        pieces = inner.convert_ids_to_tokens(list(ids))
        if marks_ends:
            ends = [piece.endswith(END_OF_WORD) for piece in pieces]
            return [True, *ends[:-1]] if ids else []
        return [p.startswith(sign) if sign else not p.startswith("##") for p in pieces]

    def decode(ids: Sequence[int]) -> str:
        if not marks_ends:
            return inner.decode(list(ids)).strip()
        pieces = inner.convert_ids_to_tokens(list(ids))
        return inner.convert_tokens_to_string(pieces).replace(END_OF_WORD, " ").strip()

    def locate(text: str, ids: Sequence[int]) -> tuple[str, list[Span]] | None:
        if not getattr(inner, "is_fast", False):
            return None
        cleaned = clean(text)
        found = inner(cleaned, add_special_tokens=False, return_offsets_mapping=True)
        if list(ids) != found["input_ids"][: len(ids)]:
            return None
        spans = []
        for first, last in found["offset_mapping"][: len(ids)]:
            piece = cleaned[first:last]
            first = min(first + len(piece) - len(piece.lstrip()), max(last - 1, first))
            spans.append((first, max(last, first + 1)))
        return cleaned, spans

    special = {*inner.all_special_ids, inner.pad_token_id} - {inner.unk_token_id}
    ends = frozenset(special | others)
    return _Spelling(ends, ends, starts, decode, locate)
