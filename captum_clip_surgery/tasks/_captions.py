"""Captions of images, as token ids and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models._validation import check_images
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._templates import check_texts
from captum_clip_surgery.models.text._words import END, START, word_positions
from captum_clip_surgery.tasks._images import Images, as_list


@dataclass(frozen=True)
class Caption:
    """A tokenized caption.

    Attributes:
        tokens: Token ids (context,).
        words: Its words, the start and the end included.
        positions: Positions of the tokens of each word.
    """

    tokens: Tensor
    words: tuple[str, ...]
    positions: tuple[list[int], ...]

    @property
    def inner(self) -> list[bool]:
        """Return whether each word is neither the start nor the end."""
        return [word not in (START, END) for word in self.words]


def tokenize_captions(
    clip: ZeroShotClassifier,
    encoder: PromptEncoder,
    images: Images,
    captions: str | Sequence[str],
) -> list[Caption]:
    """Return the tokenized captions of images.

    Args:
        clip: The classifier.
        encoder: Its text side.
        images: N images, or a preprocessed batch (N, 3, H, W).
        captions: N captions; a string for one image.

    Raises:
        TypeError: If captions are not strings, or the tokenizer does not allow separating words.
        ValueError: If there are not as many captions as images, a caption is empty, or one is
            longer than the context.
    """
    texts = check_texts([captions] if isinstance(captions, str) else captions, "caption")
    check_count(clip, images, len(texts), "captions")
    tokenized = []
    for text, tokens in zip(texts, encoder.tokenize(list(texts)), strict=True):
        pairs = word_positions(encoder.tokenizer, tokens.tolist(), True, text)
        words, positions = zip(*pairs, strict=True)
        caption = Caption(tokens, words, positions)
        if not any(caption.inner):
            raise ValueError(f"caption {text!r} has no words for the model's tokenizer")
        tokenized.append(caption)
    return tokenized


def check_count(clip: ZeroShotClassifier, images: Images, count: int, what: str) -> None:
    """Check that there are as many texts as images.

    Args:
        clip: The classifier.
        images: Images, or a preprocessed batch (N, 3, H, W).
        count: The number of texts.
        what: What they are, for the message.

    Raises:
        TypeError: If the batch is not a floating-point tensor.
        ValueError: If there are not, or the batch does not fit the model.
    """
    if isinstance(images, Tensor):
        check_images(images, clip.tower, clip.device)
        number = len(images)
    else:
        number = len(as_list(images))
    if count != number:
        raise ValueError(f"there are {count} {what} for {number} images; pass one per image")
