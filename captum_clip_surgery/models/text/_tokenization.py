"""Tokenize prompts: check tokenizers' output, and never cut a prompt silently."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery._utils.errors import rust_panics_as_errors
from captum_clip_surgery.models._dual_encoders import TransformersText
from captum_clip_surgery.models.text._templates import truncate_repr
from captum_clip_surgery.models.text._towers import (
    end_of_text,
    pooled_at_end_of_text,
    vocabulary_size,
)

#: Maps a list of texts and `context_length` to token ids (texts, context_length).
Tokenizer = Callable[..., Any]

EXPECTED = (
    "pass a tokenizer that returns integers of shape (texts, context_length), padded at the end: "
    "open_clip.get_tokenizer(name), open_clip.tokenizer.HFTokenizer(folder), or a function that "
    "calls one of transformers with padding='max_length', truncation=True, "
    "max_length=context_length"
)


def check_tokenizer(tokenizer: Any) -> None:
    """Check that a tokenizer can be called with texts and `context_length`.

    Raises:
        TypeError: If it is not callable, or does not take `context_length`.
    """
    if not callable(tokenizer):
        raise TypeError(f"the tokenizer must be callable, got {tokenizer!r:.200}; {EXPECTED}")
    try:
        signature = inspect.signature(tokenizer)
    except ValueError:  # some builtins have none
        return
    try:
        signature.bind(["text"], context_length=1)
    except TypeError:
        raise TypeError(
            "the tokenizer must take (texts, context_length=...), but its signature is "
            f"{signature!s:.200}; {EXPECTED}"
        ) from None


def tokenize(
    tokenizer: Tokenizer, prompts: Sequence[str], context: int, truncate: bool
) -> tuple[Tensor, int]:
    """Tokenize prompts to the context length and check that none was cut.

    Tokenizers cut silently. One that follows `context_length` is called with one position more than
    the context has; a prompt that was cut then differs. One that ignores `context_length` must
    leave padding at the end of each prompt, because nothing else tells that it cut nothing.

    Args:
        tokenizer: Maps texts and `context_length` to token ids.
        prompts: P texts.
        context: Number of positions of the text tower.
        truncate: Whether to cut prompts that are too long, as the tokenizer cuts them.

    Returns:
        Token ids (P, context) on the CPU, and the id of padding.

    Raises:
        TypeError: If the tokenizer returns something other than integers.
        ValueError: If the tokenizer returns another number of rows or columns or does not pad at
            the end, or a prompt is too long.
    """
    padding, width = _probe(tokenizer, context)
    ids = _token_ids(tokenizer, prompts, context + 1, width or context + 1)
    tokens = ids[:, :context].clone()
    # A prompt whose last two columns are padding was not cut: the end of a cut one takes one column
    # at most, and may look like padding.
    ends = ids[:, min(context - 1, ids.shape[1] - 2) :]
    full = (ends != padding).any(1).nonzero().flatten().tolist()
    if not full:
        return tokens, padding
    if width is not None:
        _check_fixed_width(truncate_repr(prompts[full[0]]), context, width, truncate)
        return tokens, padding
    fitted = _token_ids(tokenizer, [prompts[i] for i in full], context, context)
    cut = ((fitted != tokens[full]).any(1) | (ids[full, -1] != padding)).nonzero().flatten()
    if len(cut) and not truncate:
        raise ValueError(
            f"the prompt {truncate_repr(prompts[full[int(cut[0])]])} is longer than the model's "
            f"context of {context} tokens; shorten it or pass truncate=True"
        )
    tokens[full] = fitted
    return tokens, padding


def _check_fixed_width(prompt: str, context: int, width: int, truncate: bool) -> None:
    """Refuse a prompt that fills the context if its tokenizer ignores `context_length`.

    Only a tokenizer whose width is the context cuts as the model expects.
    """
    if width > context:
        raise ValueError(
            f"the prompt {prompt} fills or exceeds the model's context of {context} tokens, and "
            f"the tokenizer cannot truncate it, because it returns {width} columns for any "
            f"context_length; shorten it or {EXPECTED}"
        )
    if not truncate:
        raise ValueError(
            f"the prompt {prompt} may be longer than the model's context of {context} tokens: it "
            "fills the context, and the tokenizer ignores context_length, so whether it was cut "
            f"cannot be checked; shorten it, pass truncate=True, or {EXPECTED}"
        )


def padding_id(tokenizer: Tokenizer, context: int) -> int:
    """Return the token id that a tokenizer pads texts with.

    Args:
        tokenizer: Maps texts and `context_length` to token ids.
        context: Number of positions of the text tower.

    Raises:
        TypeError: If the tokenizer returns something other than integers.
        ValueError: If it returns another number of columns, or does not pad at the end.
    """
    return _probe(tokenizer, context)[0]


def _probe(tokenizer: Tokenizer, context: int) -> tuple[int, int | None]:
    """Return a tokenizer's padding, and the width of its output if it ignores `context_length`."""
    row = _token_ids(tokenizer, ["a"], context)[0]
    longer = _token_ids(tokenizer, ["a"], context + 1)[0]
    columns = len(row), len(longer)
    if columns == (context, context + 1):
        width, at_end = None, torch.equal(longer[:-1], row)
    elif columns[0] == columns[1] >= context:
        width, at_end = columns[0], bool(row[-1] == row[-2])
    else:
        raise ValueError(
            f"the tokenizer returned {columns[0]} and {columns[1]} columns of token ids for the "
            f"text 'a' with context_length={context} and {context + 1}, and the model's context is "
            f"{context}; {EXPECTED}"
        )
    if not at_end:
        raise ValueError(
            f"the tokenizer returned {longer.tolist()!s:.80} for the text 'a', which is "
            f"not padded at the end; {EXPECTED}"
        )
    return int(longer[-1]), width


def _token_ids(
    tokenizer: Tokenizer, texts: Sequence[str], length: int, width: int | None = None
) -> Tensor:
    """Call a tokenizer with a context length and check its output.

    Returns:
        Token ids (P, L), int64 on the CPU. L is `width` unless that is None.
    """
    with rust_panics_as_errors(), torch.device("cpu"):  # whatever the default device is
        output = tokenizer(list(texts), context_length=length)
    if isinstance(output, Mapping) and "input_ids" in output:  # Hugging Face's BatchEncoding
        output = output["input_ids"]
    try:
        ids = output if isinstance(output, Tensor) else torch.as_tensor(output, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"the tokenizer returned {output!r:.80} of type {type(output).__name__}, "
            f"which is not an array of token ids ({error}); {EXPECTED}"
        ) from None
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"the tokenizer returned {ids.dtype}, expected integers; {EXPECTED}")
    if ids.ndim != 2 or len(ids) != len(texts) or ids.shape[1] < 2:
        raise ValueError(
            f"the tokenizer returned shape {tuple(ids.shape)} for {len(texts)} texts; {EXPECTED}"
        )
    if width is not None and ids.shape[1] != width:
        raise ValueError(
            f"the tokenizer returned {width} columns for one text and {ids.shape[1]} for "
            f"others; {EXPECTED}"
        )
    return ids.detach().to("cpu", torch.long)


def check_vocabulary(tower: Any, tokens: Tensor, prompts: Sequence[str]) -> None:
    """Check that the text tower has an embedding for each token id.

    torch would raise an `IndexError` without naming the cause; on a GPU, every later call too.

    Args:
        tower: The text tower.
        tokens: Token ids (P, L).
        prompts: The P texts, for the message.

    Raises:
        ValueError: If an id is negative or beyond the vocabulary.
    """
    size = vocabulary_size(tower)
    if size is None:
        return
    unknown = ((tokens < 0) | (tokens >= size)).nonzero()
    if len(unknown):
        row, column = unknown[0].tolist()
        raise ValueError(
            f"the tokenizer gives the prompt {truncate_repr(prompts[row])} the token id "
            f"{int(tokens[row, column])}, and the text tower's vocabulary has ids from 0 to "
            f"{size - 1}; pass the tokenizer that the model was trained with"
        )


def check_padding(tower: Any, padding: int) -> None:
    """Check that a tower which masks padding and its tokenizer agree on the token id of padding.

    Raises:
        ValueError: If they do not.
    """
    masked = isinstance(tower, TransformersText) and tower.family.text == "masked"
    if masked and padding != tower.pad_id:
        raise ValueError(
            f"the tokenizer pads texts with token id {padding}, and the text tower's configuration "
            f"says {tower.pad_id}; pass the tokenizer that the model was trained with"
        )


def check_ends(tower: Any, tokens: Tensor, padding: int, prompts: Sequence[str]) -> None:
    """Check that no words follow the token that ends a text, because the tower ignores them.

    A text can spell out that token.

    Args:
        tower: The text tower.
        tokens: Token ids (P, L).
        padding: Token id of padding.
        prompts: The P texts, for the message.

    Raises:
        ValueError: If a prompt contains the token before its own end.
    """
    if not pooled_at_end_of_text(tower):
        return
    ends = end_of_text(tower, tokens)[:, None]
    behind = (torch.arange(tokens.shape[1], device=tokens.device) > ends) & (
        ends > 0
    )  # 0: there is no end
    words = (tokens != padding) & (tokens != tokens.gather(1, ends))
    unread = (behind & words).any(1).nonzero().flatten()
    if len(unread):
        raise ValueError(
            f"the prompt {truncate_repr(prompts[int(unread[0])])} contains the tokenizer's own end "
            "of a text, and the tower would ignore what follows; reword it"
        )
