"""Words of a text and the positions of their tokens, for tokenizers that can tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from captum_clip_surgery.models._internals import BPE_TOKENIZER
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
    tokenizer: Any, tokens: Sequence[int], special: bool = False
) -> list[tuple[str, list[int]]]:
    """Return the words of a text, each with the positions of its tokens.

    Args:
        tokenizer: open_clip's own tokenizer, or one of transformers.
        tokens: Token ids of one text, padded or not.
        special: Also return the start, if there is one, and the end, as "<start>" and "<end>".

    Returns:
        Pairs (word, positions) in the order of the text; empty if the tokenizer left nothing of it.

    Raises:
        TypeError: If the tokenizer is of another kind, whose tokens cannot be read.

    Example::

        >>> word_positions(open_clip.tokenize, open_clip.tokenize("a xylophonist")[0].tolist())
        [('a', [1]), ('xylophonist', [2, 3, 4, 5])]
    """
    spelling = _spelling(tokenizer)
    start = int(tokens[0] in spelling.special)
    inner = range(start, len(tokens))
    end = next((i for i in inner if tokens[i] in spelling.special), len(tokens))
    groups: list[list[int]] = []
    for position, starts in zip(range(start, end), spelling.starts(tokens[start:end]), strict=True):
        if starts or not groups:
            groups.append([])
        groups[-1].append(position)
    words = [(spelling.decode([tokens[i] for i in group]), group) for group in groups]
    if not special:
        return words
    ends = [(END, [end])] if end < len(tokens) else []
    return [(START, [position]) for position in range(start)] + words + ends


@dataclass(frozen=True)
class _Spelling:
    """How a tokenizer spells words.

    Args:
        special: Token ids of start, end and padding.
        starts: Tells for each token id whether it starts a word.
        decode: Returns the text of token ids.
    """

    special: frozenset[int]
    starts: Callable[[Sequence[int]], list[bool]]
    decode: Callable[[Sequence[int]], str]


def _spelling(tokenizer: Any) -> _Spelling:
    if tokenizer is open_clip.tokenize:
        tokenizer = BPE_TOKENIZER
    if isinstance(tokenizer, SimpleTokenizer):
        return _spelling_of_open_clip(tokenizer)
    if isinstance(tokenizer, HFTokenizer):
        others = {0} if tokenizer.strip_sep_token else set()  # in the separator's place
        return _spelling_of_hugging_face(tokenizer.tokenizer, others)
    if isinstance(tokenizer, TransformersTokenizer):
        return _spelling_of_hugging_face(tokenizer.tokenizer, set())
    raise TypeError(
        f"words cannot be told apart with a tokenizer of type {type(tokenizer).__name__}; use the "
        "one that open_clip.get_tokenizer(name) returns"
    )


def _spelling_of_open_clip(tokenizer: SimpleTokenizer) -> _Spelling:
    def starts(ids: Sequence[int]) -> list[bool]:
        # The last token of a word ends with a space.
        ends = [tokenizer.decode([number]).endswith(" ") for number in ids]
        return [True, *ends[:-1]] if ids else []

    special = frozenset({tokenizer.sot_token_id, tokenizer.eot_token_id})
    return _Spelling(special, starts, lambda ids: tokenizer.decode(ids).strip())


def _spelling_of_hugging_face(inner: Any, others: set[int]) -> _Spelling:
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

    special = {*inner.all_special_ids, inner.pad_token_id} - {inner.unk_token_id}
    return _Spelling(frozenset(special | others), starts, decode)
