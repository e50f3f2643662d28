"""Which words of a text make it fit an image: attention relevance and Grad-ECLIP on the text side.

Both read open_clip's own text transformers, pooled at the end of the text, beside the model, as the
methods of `attention` read image towers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

from captum_clip_surgery.attr._gradients import minmax_cosines, relevance_row, text_gradients
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import full_precision, normalized
from captum_clip_surgery.models import _validation
from captum_clip_surgery.models._blocks import (
    block_feed_forward,
    block_heads,
    block_merge,
    has_hooks,
    join_heads,
    split_heads,
    why_not_rebuilt,
)
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models.image import BlockTrace
from captum_clip_surgery.models.text.encoder import PromptEncoder
from captum_clip_surgery.models.text.towers import (
    cast_dtype,
    end_of_text,
    pool_text,
    pooled_at_end_of_text,
    silent_text_hooks,
    warn_of_hooks,
)

METHODS = ("relevance", "grad-eclip")
START, END = "<start>", "<end>"
SPACES = ("▁", "Ġ")  # in the vocabularies of sentencepiece and of byte-level BPE


@dataclass(frozen=True)
class WordScores:
    """The `words` of a text, and how much each matters to N images: `scores` (N, words) >= 0."""

    words: tuple[str, ...]
    scores: Tensor


def word_scores(
    clip: ZeroShotClassifier,
    images: Tensor,
    text: str,
    method: str = "relevance",
    num_blocks: int | None = None,
) -> WordScores:
    """Score every word of a text for images, by the cosine of both.

    Args:
        clip: a classifier with open_clip's own text tower; its texts do not matter.
        images: (N, 3, H, W), as `clip.preprocess` makes.
        text: one text, taken as it is, without templates.
        method: "relevance" (Chefer et al., ICCV 2021: the end-of-text row of the relevance of the
            last `num_blocks` blocks; the scores of an image sum to 1) or "grad-eclip" (Zhao et al.,
            ICML 2024: values weighted by gradient and similarity, summed over those blocks).
        num_blocks: The number of the text tower's last blocks to read; None stands for 1 for
            relevance, as in the authors' CLIP notebook, and for 4 for Grad-ECLIP, or all where
            there are fewer.

    Returns:
        Words in the order of the text, without the start and the end. A word of several tokens has
        the sum of their scores.

    Raises:
        TypeError: a text tower or tokenizer of another kind.
        ValueError: If `method` is unknown, `num_blocks` exceeds the tower's blocks, or the text is
            empty or too long.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> found = word_scores(clip, torch.zeros(1, 3, 64, 64), "a dog in the scene")
        >>> found.words, found.scores.shape
        (('a', 'dog', 'in', 'the', 'scene'), torch.Size([1, 5]))
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is none of {', '.join(METHODS)}")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"text {text!r} is empty or no string")
    encoder = encoder_of(clip)
    tower, tokens = encoder.tower, _tokens(encoder, text).to(clip.device)
    found = word_places(encoder.tokenizer, tokens[0].tolist())
    if not found:
        raise ValueError(f"text {text!r} holds no words for the model's tokenizer")
    blocks = tower.transformer.resblocks
    if num_blocks is None:
        num_blocks = min(len(blocks), 1 if method == "relevance" else 4)
    if not 1 <= num_blocks <= len(blocks):
        raise ValueError(
            f"num_blocks {num_blocks} must be from 1 to the text tower's {len(blocks)}"
        )
    _check_blocks(encoder, len(blocks) - num_blocks)
    _validation.check_images(images, clip.tower, clip.device)
    _validation.check_modes(clip.model)
    with assert_parameters_unchanged(clip.model, whole=True):
        with torch.no_grad():
            image = normalized(clip.tower.encode(images.to(clip.tower.dtype)))
        with torch.inference_mode(False), torch.enable_grad(), full_precision(images):
            opened, outputs, feature = _open(tower, tokens, num_blocks)
            # One text, many images: images stand where texts stand on the image side.
            cosines = normalized(feature) @ image.detach().clone().T
            of_tokens = _relevance if method == "relevance" else _grad_eclip
            scores = of_tokens(cosines, opened, outputs, blocks[-num_blocks:]).detach()
    of_words = [scores[:, places].sum(1) for _, places in found]
    return WordScores(tuple(word for word, _ in found), torch.stack(of_words, dim=1))


def _check_blocks(encoder: PromptEncoder, first: int) -> None:
    """Warn of hooks that do not fire when text blocks from `first` on are taken apart.

    Raises:
        TypeError: a block of a class that cannot be taken apart.
    """
    tower = encoder.tower
    silent = silent_text_hooks(encoder.model, tower)
    if has_hooks([tower.transformer]):
        silent.append("the text transformer")
    for index, block in enumerate(tower.transformer.resblocks):
        reason = why_not_rebuilt(block)
        if reason:
            raise TypeError(f"words cannot be scored: block {index} of the text tower {reason}")
        if index >= first and has_hooks([block]):
            silent.append(f"text block {index}")
        if index >= first and has_hooks([block.attn]):
            silent.append(f"the attention of text block {index}")
    warn_of_hooks(silent, stacklevel=4)


def encoder_of(clip: ZeroShotClassifier) -> PromptEncoder:
    """A classifier's text side.

    Raises:
        TypeError: a classifier made from features.
    """
    if clip._encoder is None:
        raise TypeError(
            "a classifier made from_features has no text tower to explain; make it of the model "
            "and texts"
        )
    clip._encoder.check()
    return clip._encoder


def _tokens(encoder: PromptEncoder, text: str) -> Tensor:
    """Token ids (1, L) from the start to the end of a text."""
    if not pooled_at_end_of_text(encoder.tower):
        raise TypeError(
            f"the text tower {type(encoder.tower).__name__} is not pooled at the end of the text "
            "behind a causal mask; words are scored for those of open_clip that are"
        )
    tokens = encoder.tokenize([text])
    return tokens[:, : int(end_of_text(encoder.tower, tokens)) + 1]


def _open(
    tower: Any, tokens: Tensor, num_blocks: int
) -> tuple[list[BlockTrace], list[Tensor], Tensor]:
    """The last blocks with attention laid open, their attended values, and the text's feature."""
    length = tokens.shape[1]
    dtype = cast_dtype(tower)
    mask = tower.attn_mask[:length, :length].to(dtype)
    blocks = tower.transformer.resblocks
    with torch.no_grad():
        x = tower.token_embedding(tokens).to(dtype)
        x = x + tower.positional_embedding[:length].to(dtype)
        for block in blocks[:-num_blocks]:
            x = block(x, attn_mask=mask)
    opened, outputs = [], []
    for block in blocks[-num_blocks:]:
        heads = block_heads(block, x, (1, length))
        scores = heads.q @ heads.k.mT * heads.q.shape[-1] ** -0.5 + mask
        probabilities = scores.softmax(-1)
        if not probabilities.requires_grad:
            probabilities.requires_grad_()
        attended = join_heads(probabilities @ heads.v)
        x = x + block_merge(block, split_heads(attended, heads.v.shape[1]))
        x = block_feed_forward(block, x)
        opened.append(BlockTrace(heads, probabilities, x))
        outputs.append(attended)
    return opened, outputs, pool_text(tower, tower.ln_final(x), tokens)


def _relevance(
    cosines: Tensor, opened: list[BlockTrace], outputs: list[Tensor], blocks: Any
) -> Tensor:
    """(N, L): the end-of-text row of the product of all (I + relevance of a block)."""
    attention = [block.probabilities for block in opened]
    rows = [relevance_row(part, attention, -1) for part in text_gradients(cosines, attention)]
    found = torch.cat(rows)[:, 0]
    total = found[:, 1:-1].sum(-1, keepdim=True)
    return found / torch.where(total > 0, total, 1)


def _grad_eclip(
    cosines: Tensor, opened: list[BlockTrace], outputs: list[Tensor], blocks: Any
) -> Tensor:
    """(N, L): values at each token weighed by the end of text's gradient and likeness."""
    rows = []
    for gradients in text_gradients(cosines, outputs):
        row = torch.zeros_like(gradients[0][:, 0, :, 0])
        for gradient, opened_block, block in zip(gradients, opened, blocks, strict=True):
            heads = opened_block.heads
            keys = block_merge(block, heads.k)
            query = block_merge(block, heads.q[:, :, -1:])
            weights = minmax_cosines(query, keys)
            values = join_heads(heads.v)
            row = row + ((gradient[:, :, -1:] * values).sum(-1) * weights).relu()[:, 0]
        rows.append(row)
    return torch.cat(rows)


def word_places(
    tokenizer: Any, tokens: Sequence[int], special: bool = False
) -> list[tuple[str, list[int]]]:
    """The words of a text, each with the places of its tokens.

    Args:
        tokenizer: open_clip's own, or its wrapper of a Hugging Face one.
        tokens: ids of one text, padded or not.
        special: also give the start, if there is one, and the end, as "<start>" and "<end>".

    Returns:
        (word, places) in the order of the text; empty where the tokenizer left nothing of it.

    Raises:
        TypeError: a tokenizer of another kind, whose tokens cannot be read.

    Example::

        >>> word_places(open_clip.tokenize, open_clip.tokenize("a xylophonist")[0].tolist())
        [('a', [1]), ('xylophonist', [2, 3, 4, 5])]
    """
    spelling = _spelling(tokenizer)
    start = int(tokens[0] in spelling.special)
    inner = range(start, len(tokens))
    end = next((place for place in inner if tokens[place] in spelling.special), len(tokens))
    places: list[list[int]] = []
    for place, begins in zip(range(start, end), spelling.begins(tokens[start:end]), strict=True):
        if begins or not places:
            places.append([])
        places[-1].append(place)
    words = [(spelling.read([tokens[place] for place in word]), word) for word in places]
    if not special:
        return words
    ends = [(END, [end])] if end < len(tokens) else []
    return [(START, [place]) for place in range(start)] + words + ends


@dataclass(frozen=True)
class _Spelling:
    """How a tokenizer writes.

    `special` are the ids of start, end and padding, `begins` says of each id whether it begins a
    word, and `read` is the text of ids.
    """

    special: frozenset[int]
    begins: Callable[[Sequence[int]], list[bool]]
    read: Callable[[Sequence[int]], str]


def _spelling(tokenizer: Any) -> _Spelling:
    if tokenizer is open_clip.tokenize:
        tokenizer = open_clip.tokenizer._tokenizer
    if isinstance(tokenizer, SimpleTokenizer):
        return _spelling_of_open_clip(tokenizer)
    if isinstance(tokenizer, HFTokenizer):
        return _spelling_of_hugging_face(tokenizer)
    raise TypeError(
        f"words are told apart by open_clip's own tokenizer, not by {type(tokenizer).__name__}; "
        "open_clip.get_tokenizer(name) gives it, or open_clip's wrapper of a Hugging Face one, "
        "which can tell them apart too"
    )


def _spelling_of_open_clip(tokenizer: SimpleTokenizer) -> _Spelling:
    def begins(ids: Sequence[int]) -> list[bool]:
        # A token that ends a word ends with a space.
        ends = [tokenizer.decode([number]).endswith(" ") for number in ids]
        return [True, *ends[:-1]] if ids else []

    special = frozenset({tokenizer.sot_token_id, tokenizer.eot_token_id})
    return _Spelling(special, begins, lambda ids: tokenizer.decode(ids).strip())


def _spelling_of_hugging_face(tokenizer: HFTokenizer) -> _Spelling:
    inner = tokenizer.tokenizer
    # Vocabularies mark where words begin, by a sign for the space before them, or else where they
    # go on.
    probe = inner.tokenize("a a")
    sign = next((s for s in SPACES if any(piece.startswith(s) for piece in probe)), None)
    if any(piece.endswith("</w>") for piece in probe):
        raise TypeError(
            f"the words of {type(inner).__name__} are told apart in open_clip's own form alone: "
            "pass tokenizer=open_clip.tokenize"
        )

    def begins(ids: Sequence[int]) -> list[bool]:
        pieces = inner.convert_ids_to_tokens(list(ids))
        return [p.startswith(sign) if sign else not p.startswith("##") for p in pieces]

    special = {*inner.all_special_ids, inner.pad_token_id} - {inner.unk_token_id}
    if tokenizer.strip_sep_token:
        special.add(0)  # in its place
    return _Spelling(frozenset(special), begins, lambda ids: inner.decode(list(ids)).strip())
