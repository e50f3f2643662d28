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
from captum_clip_surgery.models._validation import check_modes
from captum_clip_surgery.models.image import PathConfig, TowerOutput
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._templates import check_texts
from captum_clip_surgery.models.text._words import END, START
from captum_clip_surgery.tasks._captions import Caption, check_count, tokenize_captions
from captum_clip_surgery.tasks._images import Images, Size, batches
from captum_clip_surgery.tasks._interactions import interactions_of_batch

#: The methods of maps of words; the first one is the default.
METHODS = ("interactions", "surgery")


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
    method: str = "interactions",
    special: bool = False,
    common: bool = False,
    num_blocks: int | None = None,
    size: int | Size | None = None,
    batch_size: int = 8,
) -> list[WordMaps]:
    """Return the map and the importance of every word of each image's caption.

    With "interactions", the map of a word holds what it and each patch together add to the cosine
    of image and caption: both embeddings are split into contributions of words and patches, see
    `interactions`. With "surgery", patch tokens of architecture surgery are compared with the text
    tower's tokens before pooling, after its final LayerNorm and projection. What the words of a
    caption have in common is subtracted from their maps: the mean over words or, with "surgery",
    over all tokens, including start and end. A token depends on those it attends to, so a map shows
    the word in its context. On scenes of the embedded model, maps point to more objects with
    "interactions" than with "surgery" (docs/tasks.md).

    Importance takes one more pass through the text tower per word.

    Args:
        clip: A classifier of a model with a text tower; its texts and templates do not matter.
        images: N images (PIL images, arrays, paths), or a preprocessed batch (N, 3, H, W).
        captions: N captions, used without templates; a string for one image.
        method: "interactions" or "surgery". The former needs a text tower whose feature comes from
            one token (CLIP, SigLIP, CoCa, AltCLIP, ChineseCLIP) and an image tower that can be
            split; the latter one of open_clip's own or transformers' text towers.
        special: Whether to include the start of the text, if there is one, and its end, as
            "<start>" and "<end>".
        common: Whether to skip the subtraction of the mean. With "surgery" this gives plain cosines
            in -1..1, with which the embedded model points to fewer objects.
        num_blocks: Number of last blocks that surgery spans, see `LayerCLIPSurgery`; only for
            "surgery".
        size: Side or (height, width) in pixels that the model sees; None means the native
            size.
        batch_size: Number of images and captions that pass the towers together.

    Returns:
        For each image a `WordMaps`. A word with several tokens has the sum of their maps with
        "interactions", and their mean with "surgery".

    Raises:
        TypeError: If the classifier was made from features, captions are not strings, or the method
            is not defined on the model.
        ValueError: If the method is unknown, `num_blocks` is given with "interactions", there are
            not as many captions as images, a caption is empty, or one is longer than the context
            and the classifier was not made with `truncate=True`.

    References:
        Gandelsman, Efros, Steinhardt: Interpreting CLIP's Image Representation via Text-Based
        Decomposition. ICLR 2024 (arXiv 2310.05916), for the decomposition, there of images only.
        Li, Wang, Duan, Zhang, Li: A closer look at the explainability of Contrastive
        Language-Image Pre-training. Pattern Recognition 162, 2025 (arXiv 2304.05653), multimodal
        visualization, with "surgery".

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> (result,) = word_maps(clip, torch.zeros(1, 3, 64, 64), "a dog and a pizza")
        >>> result.words, result.maps.shape
        (('a', 'dog', 'and', 'a', 'pizza'), torch.Size([5, 4, 4]))
    """
    encoder = check_classifier(clip).text_encoder
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "interactions" and num_blocks is not None:
        raise ValueError(
            f'num_blocks={num_blocks} is an option of surgery; pass method="surgery" as well'
        )
    path_config = None
    if method == "surgery":
        path_config = LayerCLIPSurgery(clip, num_blocks=num_blocks).path_config
    tokenized = tokenize_captions(clip, encoder, images, captions)
    check_modes(clip.model)
    results: list[WordMaps] = []
    with torch.no_grad():
        for pixels, sizes in batches(clip, images, size, batch_size):
            batch = tokenized[len(results) : len(results) + len(pixels)]
            with assert_parameters_unchanged(clip.model, whole=True):
                if path_config is None:
                    maps, pooled = _by_interactions(clip, pixels, sizes, batch, common)
                else:
                    maps, pooled = _by_surgery(clip, pixels, path_config, batch, common)
                with full_precision(pixels):
                    features = _encode_without_words(encoder, batch)
            for i, caption in enumerate(batch):
                covering = cover_image(clip, maps[i][None], pixels[i : i + 1])[0]
                cosines = features[i].to(pooled.dtype) @ pooled[i]
                importance = _importance(cosines, caption)
                shown = [special or inner for inner in caption.inner]
                words = tuple(compress(caption.words, shown))
                results.append(WordMaps(words, covering[shown], sizes[i], importance[shown]))
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
        size: Side or (height, width) in pixels that the model sees; None means the native
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
    check_count(clip, images, len(lists), "lists of texts")
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


def _by_interactions(
    clip: ZeroShotClassifier,
    images: Tensor,
    sizes: Sequence[Size],
    captions: Sequence[Caption],
    common: bool,
) -> tuple[list[Tensor], Tensor]:
    """Return maps (words, h, w) of each caption, and L2-normalized embeddings (N, C) of images."""
    try:
        results, embeddings = interactions_of_batch(clip, images, sizes, captions, special=True)
    except TypeError as error:
        raise TypeError(f'{error}. method="surgery" compares tokens instead') from error
    return [r.maps if common else r.centered() for r in results], normalized(embeddings)


def _by_surgery(
    clip: ZeroShotClassifier,
    images: Tensor,
    path_config: PathConfig,
    captions: Sequence[Caption],
    common: bool,
) -> tuple[list[Tensor], Tensor]:
    """Return maps (words, h, w) of each caption, and L2-normalized embeddings (N, C) of images."""
    with full_precision(images):
        tokens = torch.stack([caption.tokens for caption in captions])
        token_features = clip.text_encoder.token_features(tokens)
    output = tower_output(clip, images, path_config)
    with full_precision(images):
        patches, pooled = normalized(output.patches), normalized(output.pooled)
        scores = (token_features.to(patches.dtype) @ patches.mT).unflatten(-1, output.grid)
        maps = [_by_word(scores[i], caption, common) for i, caption in enumerate(captions)]
    return maps, pooled


def _encode_without_words(encoder: PromptEncoder, captions: Sequence[Caption]) -> list[Tensor]:
    """Return, for each caption, L2-normalized features (1 + words, C).

    They are those of the caption, and of the caption without each of its words.
    """
    padding = encoder.padding()
    rows = [_leave_out_words(caption, padding) for caption in captions]
    pooled = normalized(encoder.encode_tokens(torch.cat(rows)))
    return list(pooled.split([len(row) for row in rows]))


def _leave_out_words(caption: Caption, padding: int) -> Tensor:
    """Return token ids (1 + words, context) of a caption and of it without each of its words."""
    rows = [caption.tokens]
    for positions in compress(caption.positions, caption.inner):
        keep = torch.ones(len(caption.tokens), dtype=torch.bool, device="cpu")
        keep[positions] = False
        tail = caption.tokens.new_full((len(positions),), padding)
        rows.append(torch.cat([caption.tokens[keep], tail]))
    return torch.stack(rows)


def _by_word(scores: Tensor, caption: Caption, common: bool) -> Tensor:
    """Return maps of words (words, h, w) from maps of tokens (L, h, w)."""
    if not common:
        span = [position for positions in caption.positions for position in positions]
        scores = scores - scores[span].mean(0)
    return torch.stack([scores[positions].mean(0) for positions in caption.positions])


def _importance(cosines: Tensor, caption: Caption) -> Tensor:
    """Return the importance (words,) of words.

    Args:
        cosines: Cosines (1 + words,) of an image with the caption, and with it without each word.
        caption: The caption.
    """
    importance = cosines.new_zeros(len(caption.words))
    importance[torch.tensor(caption.inner, device=cosines.device)] = cosines[0] - cosines[1:]
    return importance
