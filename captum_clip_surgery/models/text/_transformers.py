"""Tokenizers of transformers, as classifiers take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TransformersTokenizer:
    """A tokenizer of transformers as a function of texts and `context_length`.

    Texts are cut to the context and padded at the end to its full length.

    Args:
        tokenizer: The tokenizer.
        lower: Whether to convert texts to lower case first, as SigLIP was trained.
    """

    def __init__(self, tokenizer: Any, lower: bool = False) -> None:
        self.tokenizer = tokenizer
        self.lower = lower

    def __call__(self, texts: Sequence[str], context_length: int) -> Any:
        """Return token ids (texts, context_length)."""
        texts = [text.lower() for text in texts] if self.lower else list(texts)
        return self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=context_length,
            padding_side="right",
            return_tensors="pt",
        )["input_ids"]

    @property
    def context_length(self) -> int | None:
        """The number of tokens that the tokenizer was set up for, or None."""
        length = self.tokenizer.model_max_length
        return int(length) if length < 10**6 else None  # transformers writes 1e30 for "unknown"
