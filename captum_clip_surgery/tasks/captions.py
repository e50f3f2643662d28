"""Maps of the words of captions, and maps for images with texts of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery.attr import LayerCLIPSurgery, attribute_many
from captum_clip_surgery.attr._base import check_classifier
from captum_clip_surgery.attr._coverage import cover_image
from captum_clip_surgery.attr._engine import tower_output
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import full_precision, normalized
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models._validation import check_images, check_modes
from captum_clip_surgery.models.image import TowerOutput
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._words import END, START, word_positions
from captum_clip_surgery.models.text.templates import check_texts
from captum_clip_surgery.tasks._images import Images, Size, as_list, batches

__all__ = ["WordMaps", "maps_of_own_texts", "word_maps"]


@dataclass(frozen=True)
class WordMaps:
    """The map and the importance of every word of an image's caption.

    Attributes:
        words: The words.
        maps: Maps (words, h, w), raw and signed, in float32 or wider, on the model's device. They
            are on the patch grid, or of the size that the model sees if its last pixels are in no
            patch.
        size: (height, width) of the image in pixels.
        importance: Importance (words,): the drop of the cosine of image and caption when the word
            is left out. Negative values mean that the caption fits better without the word. It is 0
            for "<start>" and "<end>", without which there is no caption.
    """

    words: tuple[str, ...]
    maps: Tensor
    size: Size
    importance: Tensor

    def shared(self, k: int = 5) -> list[tuple[str, float]]:
        """Return the most important words with their importance, highest first.

        Args:
            k: Maximum number of words, at least 1; "<start>" and "<end>" are left out.

        Raises:
            ValueError: If `k` is below 1.

        Example::

            >>> maps, importance = torch.zeros(3, 4, 4), torch.tensor([0.0, 0.5, 0.25])
            >>> WordMaps(("a", "dog", "runs"), maps, (64, 64), importance).shared(2)
            [('dog', 0.5), ('runs', 0.25)]
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k!r}")
        pairs = zip(self.words, self.importance.tolist(), strict=True)
        inner = [(word, score) for word, score in pairs if word not in (START, END)]
        return sorted(inner, key=lambda pair: -pair[1])[:k]

    def to_dict(self) -> dict[str, Any]:
        """Return words, importance, maps as nested lists, and size, for `json.dumps`.

        Example::

            >>> WordMaps(("dog",), torch.zeros(1, 1, 2), (8, 16), torch.tensor([0.5])).to_dict()
            {'words': ['dog'], 'importance': [0.5], 'maps': [[[0.0, 0.0]]], 'size': [8, 16]}
        """
        return {
            "words": list(self.words),
            "importance": self.importance.tolist(),
            "maps": self.maps.tolist(),
            "size": list(self.size),
        }


def word_maps(
    clip: ZeroShotClassifier,
    images: Images,
    captions: str | Sequence[str],
    *,
    special: bool = False,
    common: bool = False,
    num_blocks: int | None = None,
    size: int | Size | None = None,
    batch_size: int = 8,
) -> list[WordMaps]:
    """Return the map and the importance of every word of each image's caption.

    Patch tokens of architecture surgery are compared with the text tower's tokens before pooling,
    after its final LayerNorm and projection. The mean over the caption's tokens, start and end
    included, is subtracted from the scores of a token. A token depends on those it attends to, so
    its map is that of the word in its context. The importance of words takes one more pass of the
    caption per word through the text tower.

    Args:
        clip: A classifier with open_clip's own text tower; its texts and templates do not matter.
        images: N images (PIL images, arrays, paths), or a preprocessed batch (N, 3, H, W).
        captions: N captions, used without templates; a string for one image.
        special: Whether to include the start of the text, if there is one, and its end, as
            "<start>" and "<end>".
        common: Whether to skip the subtraction of the mean, which gives plain cosines in -1..1. On
            scenes of two or three objects, the embedded model's maps then point to 62 % of the
            objects instead of 78 %.
        num_blocks: Number of last blocks that surgery spans, see `LayerCLIPSurgery`.
        size: Side or (height, width) in pixels that the model sees; None stands for the native
            size.
        batch_size: Number of images and captions that pass the towers together.

    Returns:
        For each image a `WordMaps`. A word with several tokens has the mean of their maps.

    Raises:
        TypeError: If the classifier was made from features, its text tower or tokenizer is of
            another kind, or captions are not strings.
        ValueError: If there are not as many captions as images, a caption is empty, or one is
            longer than the context and the classifier was not made with `truncate=True`.

    References:
        Li, Wang, Duan, Zhang, Li: A closer look at the explainability of Contrastive
        Language-Image Pre-training. Pattern Recognition 162, 2025 (arXiv 2304.05653), multimodal
        visualization.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> (result,) = word_maps(clip, torch.zeros(1, 3, 64, 64), "a dog and a pizza")
        >>> result.words, result.maps.shape
        (('a', 'dog', 'and', 'a', 'pizza'), torch.Size([5, 4, 4]))
    """
    encoder = check_classifier(clip).text_encoder
    texts = check_texts([captions] if isinstance(captions, str) else captions, "caption")
    _check_count(clip, images, len(texts), "captions")
    path_config = LayerCLIPSurgery(clip, num_blocks=num_blocks).path_config
    check_modes(clip.model)
    tokenized = _tokenize(encoder, texts)
    results: list[WordMaps] = []
    with torch.no_grad():
        for pixels, sizes in batches(clip, images, size, batch_size):
            batch = tokenized[len(results) : len(results) + len(pixels)]
            with assert_parameters_unchanged(clip.model, whole=True):
                with full_precision(pixels):
                    token_features, text_features = _encode(encoder, batch)
                output = tower_output(clip, pixels, path_config)
            with full_precision(pixels):
                patches, pooled = normalized(output.patches), normalized(output.pooled)
                scores = (token_features.to(patches.dtype) @ patches.mT).unflatten(-1, output.grid)
                for i, caption in enumerate(batch):
                    cosines = text_features[i].to(pooled.dtype) @ pooled[i]
                    maps = _by_word(scores[i], caption, common)
                    maps = cover_image(clip, maps[None], pixels[i : i + 1])[0]
                    importance = _importance(cosines, caption)
                    shown = [special or word not in (START, END) for word in caption.words]
                    words = tuple(compress(caption.words, shown))
                    results.append(WordMaps(words, maps[shown], sizes[i], importance[shown]))
    return results


def maps_of_own_texts(
    clip: ZeroShotClassifier,
    images: Images,
    texts: Sequence[Sequence[str]],
    *,
    feature_surgery: str | None = "auto",
    num_blocks: int | None = None,
    size: int | Size | None = None,
    batch_size: int = 8,
) -> list[Tensor]:
    """Return maps of CLIP Surgery for images with texts of their own, such as captioned data.

    The result equals `LayerCLIPSurgery` on `clip.with_texts(...)` image by image, but images pass
    the tower in batches.

    Args:
        clip: A classifier with a text tower. Its templates apply; its own texts and distractors do
            not matter.
        images: N images (PIL images, arrays, paths), or a preprocessed batch (N, 3, H, W).
        texts: For each image any number of texts, at least one.
        feature_surgery: Variant of feature surgery, see `LayerCLIPSurgery`. Only the texts of the
            same image compete, and "auto" counts them per image.
        num_blocks: Number of last blocks that surgery spans, see `LayerCLIPSurgery`.
        size: Side or (height, width) in pixels that the model sees; None stands for the native
            size.
        batch_size: Number of images in one pass.

    Returns:
        For each image the maps (K, h, w) of its K texts, raw and signed, on the model's device.

    Raises:
        TypeError: If the classifier was made from features, or the texts are not lists of strings.
        ValueError: If there are not as many lists as images, a list is empty, or the variant of
            feature surgery contrasts texts and an image has only one.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> images = torch.zeros(2, 3, 64, 64)
        >>> maps = maps_of_own_texts(clip, images, [["dog"], ["camera", "pizza"]])
        >>> [tuple(image_maps.shape) for image_maps in maps]
        [(1, 4, 4), (2, 4, 4)]
    """
    encoder = check_classifier(clip).text_encoder
    lists = _check_lists(texts)
    _check_count(clip, images, len(lists), "lists of texts")
    path_config = LayerCLIPSurgery(clip, num_blocks=num_blocks).path_config
    # All texts pass the text tower at once and are cached for the classifiers below.
    encoder(list(dict.fromkeys(text for row in lists for text in row)))
    results: list[Tensor] = []
    with torch.no_grad():
        for pixels, _ in batches(clip, images, size, batch_size):
            with assert_parameters_unchanged(clip.model):
                output = tower_output(clip, pixels, path_config)
                for i, row in enumerate(lists[len(results) : len(results) + len(pixels)]):
                    method = LayerCLIPSurgery(
                        clip.with_texts(row), None, num_blocks, feature_surgery
                    )
                    one = slice(i, i + 1)
                    outputs = {
                        path_config: TowerOutput(
                            output.patches[one], output.pooled[one], output.grid
                        )
                    }
                    maps = attribute_many({"": method}, pixels[one], outputs=outputs)[""]
                    results.append(maps[0])
    return results


def _check_lists(texts: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(
            f"texts must be a list with a list of texts per image, got {type(texts).__name__}"
        )
    lists = [check_texts(row, f"image {i}'s text") for i, row in enumerate(texts)]
    empty = [i for i, row in enumerate(lists) if not row]
    if empty:
        raise ValueError(f"image {empty[0]} has no texts; leave it out, or give it one")
    return lists


def _check_count(clip: ZeroShotClassifier, images: Images, count: int, what: str) -> None:
    if isinstance(images, Tensor):
        check_images(images, clip.tower, clip.device)
        number = len(images)
    else:
        number = len(as_list(images))
    if count != number:
        raise ValueError(f"there are {count} {what} for {number} images; pass one per image")


@dataclass(frozen=True)
class _Caption:
    """A tokenized caption.

    Args:
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


def _tokenize(encoder: PromptEncoder, captions: Sequence[str]) -> list[_Caption]:
    tokenized = []
    for text, tokens in zip(captions, encoder.tokenize(list(captions)), strict=True):
        pairs = word_positions(encoder.tokenizer, tokens.tolist(), True, text)
        words, positions = zip(*pairs, strict=True)
        caption = _Caption(tokens, words, positions)
        if not any(caption.inner):
            raise ValueError(f"caption {text!r} has no words for the model's tokenizer")
        tokenized.append(caption)
    return tokenized


def _encode(encoder: PromptEncoder, captions: Sequence[_Caption]) -> tuple[Tensor, list[Tensor]]:
    """Return L2-normalized features of captions.

    Returns:
        Features (N, L, C) of their tokens, and for each caption features (1 + words, C) of itself
        and of the caption without each of its words.
    """
    features = encoder.token_features(torch.stack([caption.tokens for caption in captions]))
    padding = encoder.padding()
    rows = [_leave_out_words(caption, padding) for caption in captions]
    pooled = normalized(encoder.encode_tokens(torch.cat(rows)))
    return features, list(pooled.split([len(row) for row in rows]))


def _leave_out_words(caption: _Caption, padding: int) -> Tensor:
    """Return token ids (1 + words, context) of a caption and of it without each of its words."""
    rows = [caption.tokens]
    for positions in compress(caption.positions, caption.inner):
        keep = torch.ones(len(caption.tokens), dtype=torch.bool, device="cpu")
        keep[positions] = False
        tail = caption.tokens.new_full((len(positions),), padding)
        rows.append(torch.cat([caption.tokens[keep], tail]))
    return torch.stack(rows)


def _by_word(scores: Tensor, caption: _Caption, common: bool) -> Tensor:
    """Return maps of words (words, h, w) from maps of tokens (L, h, w)."""
    if not common:
        span = [position for positions in caption.positions for position in positions]
        scores = scores - scores[span].mean(0)
    return torch.stack([scores[positions].mean(0) for positions in caption.positions])


def _importance(cosines: Tensor, caption: _Caption) -> Tensor:
    """Return the importance (words,) of words.

    Args:
        cosines: Cosines (1 + words,) of an image with the caption, and with it without each word.
        caption: The caption.
    """
    importance = cosines.new_zeros(len(caption.words))
    importance[torch.tensor(caption.inner, device=cosines.device)] = cosines[0] - cosines[1:]
    return importance
