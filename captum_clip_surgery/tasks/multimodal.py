"""Images with texts of their own: where each word of a caption shows, and maps of own texts.

Source: Li, Wang, Duan, Zhang, Li, "A Closer Look at the Explainability of Contrastive
Language-Image Pre-training" (arXiv 2304.05653), multimodal visualization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from captum_clip_surgery.attr._base import check_classifier
from captum_clip_surgery.attr._engine import attribute_many, tower_output
from captum_clip_surgery.attr.clip_surgery import LayerCLIPSurgery
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import full_precision, normalized
from captum_clip_surgery.models import assert_parameters_unchanged, validation
from captum_clip_surgery.models.image import TowerOutput
from captum_clip_surgery.models.text import END, START, PromptEncoder, check_texts, word_positions
from captum_clip_surgery.tasks.pictures import Images, as_list, batches


@dataclass(frozen=True)
class WordMaps:
    """Where an image shows each word of its caption, and how much the word matters.

    `maps` (words, h, w) are raw and signed, on the patch grid, in float32 or wider on the model's
    device. `size` is the image's (height, width) in pixels. `importance` (words,) is how far the
    cosine of image and caption falls where the word is left out: above zero the word makes the
    caption fit the image, below it the caption fits better without. Of "<start>" and "<end>",
    without which there is no caption, it is 0.
    """

    words: tuple[str, ...]
    maps: Tensor
    size: tuple[int, int]
    importance: Tensor

    def shared(self, k: int = 5) -> list[tuple[str, float]]:
        """The words that image and caption share most, with their importance, highest first.

        Args:
            k: how many at most, from 1; "<start>" and "<end>" are left out.

        Raises:
            ValueError: k below 1.

        Example::

            >>> maps, importance = torch.zeros(3, 4, 4), torch.tensor([0.0, 0.5, 0.25])
            >>> WordMaps(("a", "dog", "runs"), maps, (64, 64), importance).shared(2)
            [('dog', 0.5), ('runs', 0.25)]
        """
        if k < 1:
            raise ValueError(f"k {k!r} must be at least 1")
        scored = zip(self.words, self.importance.tolist(), strict=True)
        found = [(word, score) for word, score in scored if word not in (START, END)]
        return sorted(found, key=lambda pair: -pair[1])[:k]

    def to_dict(self) -> dict[str, Any]:
        """What `json.dumps` takes: words, their importance, maps as nested lists, and the size.

        Example::

            >>> found = WordMaps(("dog",), torch.zeros(1, 1, 2), (8, 16), torch.tensor([0.5]))
            >>> found.to_dict()
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
    size: int | tuple[int, int] | None = None,
    batch_size: int = 8,
) -> list[WordMaps]:
    """Where each image shows each word of its own caption.

    The patches of architecture surgery are compared with the text tower's tokens before pooling,
    after its final LayerNorm and its projection. From a token's scores the mean over the caption's
    tokens, start and end included, is taken: what they have in common is no word's. A token has
    read those it may attend to, so its map is that of the word in its context.
    Each word's importance takes one more pass of the caption through the text tower.

    Args:
        clip: a classifier with open_clip's own text tower; its texts and templates do not matter.
        images: N pictures (PIL images, arrays, paths), or a batch (N, 3, H, W), preprocessed.
        captions: N captions, each taken as it is; one string for one image.
        special: also give the start of the text, where there is one, and its end, as "<start>" and
            "<end>".
        common: leave in the scores what the caption's tokens have in common: plain cosines, in
            -1..1. On scenes of two or three objects the embedded model's maps then point to 62 %
            of the objects instead of 78 %.
        num_blocks: of surgery, see `LayerCLIPSurgery`.
        size: of pictures, the side or (height, width) in pixels that the model sees; None is
            native.
        batch_size: images, and captions, that pass the towers together.

    Returns:
        For each image a `WordMaps`. A word of several tokens has the mean of their maps.

    Raises:
        TypeError: a classifier made from features, a text tower or tokenizer of another kind,
            captions that are no strings.
        ValueError: another number of captions than of images, an empty caption, one longer than
            the context unless the classifier was made with `truncate=True`; see `batches`.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> (found,) = word_maps(clip, torch.zeros(1, 3, 64, 64), "a dog and a pizza")
        >>> found.words, found.maps.shape
        (('a', 'dog', 'and', 'a', 'pizza'), torch.Size([5, 4, 4]))
    """
    encoder = check_classifier(clip).text_encoder
    captions = check_texts([captions] if isinstance(captions, str) else captions, "caption")
    _check_count(clip, images, len(captions), "captions")
    path_config = LayerCLIPSurgery(clip, num_blocks=num_blocks).path_config
    validation.check_modes(clip.model)
    read = _read(encoder, captions)
    found: list[WordMaps] = []
    with torch.no_grad():
        for pixels, sizes in batches(clip, images, size, batch_size):
            part = read[len(found) : len(found) + len(pixels)]
            with assert_parameters_unchanged(clip.model, whole=True):
                with full_precision(pixels):
                    features, without = _encode(encoder, part)
                encoded = tower_output(clip, pixels, path_config)
            with full_precision(pixels):
                patches, image = normalized(encoded.patches), normalized(encoded.pooled)
                scores = (features.to(patches.dtype) @ patches.mT).unflatten(-1, encoded.grid)
                for i, caption in enumerate(part):
                    cosines = without[i].to(image.dtype) @ image[i]
                    maps = _by_word(scores[i], caption, common)
                    importance = _importance(cosines, caption)
                    found.append(_result(caption, maps, sizes[i], importance, special))
    return found


def maps_of_own_texts(
    clip: ZeroShotClassifier,
    images: Images,
    texts: Sequence[Sequence[str]],
    *,
    feature_surgery: str | None = "auto",
    num_blocks: int | None = None,
    size: int | tuple[int, int] | None = None,
    batch_size: int = 8,
) -> list[Tensor]:
    """Maps of CLIP Surgery where each image has texts of its own, such as captioned data.

    Equal, image by image, to `LayerCLIPSurgery` on `clip.with_texts` of its texts, but images pass
    the tower in batches.

    Args:
        clip: a classifier with a text tower; its templates fill the texts, its own texts and
            distractors do not matter.
        images: N pictures (PIL images, arrays, paths), or a batch (N, 3, H, W), preprocessed.
        texts: for each image its texts, at least one and as many as it likes.
        feature_surgery: see `LayerCLIPSurgery`. The texts of an image compete with each other
            alone, and "auto" counts them for each image.
        num_blocks: of surgery, see `LayerCLIPSurgery`.
        size: of pictures, the side or (height, width) in pixels that the model sees; None is
            native.
        batch_size: images that pass the tower together.

    Returns:
        For each image the maps (K, h, w) of its K texts, raw and signed, on the model's device.

    Raises:
        TypeError: a classifier made from features, texts that are no lists of strings.
        ValueError: another number of lists than of images, a list without texts, one text where
            the form of feature surgery contrasts texts; see `batches`.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> images = torch.zeros(2, 3, 64, 64)
        >>> maps = maps_of_own_texts(clip, images, [["dog"], ["camera", "pizza"]])
        >>> [tuple(own.shape) for own in maps]
        [(1, 4, 4), (2, 4, 4)]
    """
    encoder = check_classifier(clip).text_encoder
    lists = _check_own(texts)
    _check_count(clip, images, len(lists), "lists of texts")
    path_config = LayerCLIPSurgery(clip, num_blocks=num_blocks).path_config
    # All pass the text tower at once and are remembered for the classifiers below.
    encoder(list(dict.fromkeys(text for own in lists for text in own)))
    found: list[Tensor] = []
    with torch.no_grad():
        for pixels, _ in batches(clip, images, size, batch_size):
            with assert_parameters_unchanged(clip.model):
                encoded = tower_output(clip, pixels, path_config)
                for i, own in enumerate(lists[len(found) : len(found) + len(pixels)]):
                    method = LayerCLIPSurgery(
                        clip.with_texts(own), None, num_blocks, feature_surgery
                    )
                    part = slice(i, i + 1)
                    output = TowerOutput(encoded.patches[part], encoded.pooled[part], encoded.grid)
                    outputs = {path_config: output}
                    maps = attribute_many({"own": method}, pixels[part], outputs=outputs)["own"]
                    found.append(maps[0])
    return found


def _check_own(texts: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(
            f"texts is a {type(texts).__name__}, expected a list with a list of texts per image"
        )
    lists = [check_texts(own, f"image {i}'s text") for i, own in enumerate(texts)]
    bare = [i for i, own in enumerate(lists) if not own]
    if bare:
        raise ValueError(f"image {bare[0]} has no texts; leave it out, or give it one")
    return lists


def _check_count(clip: ZeroShotClassifier, images: Images, count: int, what: str) -> None:
    if isinstance(images, Tensor):
        validation.check_images(images, clip.tower, clip.device)
        number = len(images)
    else:
        number = len(as_list(images))
    if count != number:
        raise ValueError(f"there are {count} {what} for {number} images; give one for each image")


@dataclass(frozen=True)
class _Caption:
    """A caption's token ids (context,), and its words with the places of their tokens.

    The start and the end are among the words.
    """

    tokens: Tensor
    words: tuple[str, ...]
    places: tuple[list[int], ...]

    @property
    def special(self) -> list[bool]:
        return [word in (START, END) for word in self.words]


def _read(encoder: PromptEncoder, captions: Sequence[str]) -> list[_Caption]:
    found = []
    for text, tokens in zip(captions, encoder.tokenize(list(captions)), strict=True):
        words, places = zip(
            *word_positions(encoder.tokenizer, tokens.tolist(), special=True), strict=True
        )
        caption = _Caption(tokens, words, places)
        if all(caption.special):
            raise ValueError(f"caption {text!r} holds no words for the model's tokenizer")
        found.append(caption)
    return found


def _encode(encoder: PromptEncoder, captions: Sequence[_Caption]) -> tuple[Tensor, list[Tensor]]:
    """The text side of captions, L2-normalised.

    Returns:
        (N, L, C), the features of their tokens, and for each caption (1 + words, C), the features
        of itself and of it without each of its words.
    """
    features = encoder.token_features(torch.stack([caption.tokens for caption in captions]))
    padding = encoder.padding()
    rows = [_without_each_word(caption, padding) for caption in captions]
    pooled = normalized(encoder.encode_tokens(torch.cat(rows)))
    return features, list(pooled.split([len(part) for part in rows]))


def _without_each_word(caption: _Caption, padding: int) -> Tensor:
    """Token ids (1 + words, context): the caption, and it without each word, which closes up."""
    rows = [caption.tokens]
    for places, special in zip(caption.places, caption.special, strict=True):
        if not special:
            kept = torch.ones(len(caption.tokens), dtype=torch.bool)
            kept[places] = False
            filled = caption.tokens.new_full((len(places),), padding)
            rows.append(torch.cat([caption.tokens[kept], filled]))
    return torch.stack(rows)


def _by_word(scores: Tensor, caption: _Caption, common: bool) -> Tensor:
    """Maps of tokens (L, h, w) as maps of words (words, h, w)."""
    if not common:
        span = [place for places in caption.places for place in places]
        scores = scores - scores[span].mean(0)
    return torch.stack([scores[places].mean(0) for places in caption.places])


def _importance(cosines: Tensor, caption: _Caption) -> Tensor:
    """From cosines (1 + words,) of an image with the caption, and with it without each word."""
    importance = cosines.new_zeros(len(caption.words))
    words = torch.tensor(caption.special, device=cosines.device).logical_not()
    importance[words] = cosines[0] - cosines[1:]
    return importance


def _result(
    caption: _Caption, maps: Tensor, size: tuple[int, int], importance: Tensor, special: bool
) -> WordMaps:
    kept = [special or not is_special for is_special in caption.special]
    return WordMaps(tuple(compress(caption.words, kept)), maps[kept], size, importance[kept])
