"""Words by patches: the cosine of an image and its caption, split into what each pair adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery.attr._base import check_classifier
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import full_precision
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models._validation import check_finite, check_modes
from captum_clip_surgery.models.image._direct_effects import DirectEffects, direct_effects
from captum_clip_surgery.models.text._direct_effects import TextEffects, text_effects
from captum_clip_surgery.models.text._words import END, START
from captum_clip_surgery.preprocessing import ImageInput, load_image
from captum_clip_surgery.tasks._captions import Caption, tokenize_captions
from captum_clip_surgery.tasks._images import Images, Size, batches, covered_pixels


@dataclass(frozen=True)
class Interactions:
    """Contributions of the pairs of a caption's words and an image's patches to the cosine.

    Attributes:
        words: The words.
        maps: Contributions (words, h, w) of each word with each patch, signed, in float32 or wider,
            on the model's device.
        remainder: Contributions of the parts without a word or a place, by name: "words" (words,)
            of each word with the image's parts other than patches, "patches" (h, w) of each patch
            with the text's parts other than words, and "rest" () of these other parts.
        cosine: The model's own cosine () of image and caption, which all contributions sum to.
        size: (height, width) of the image in pixels.
        pixels: The part (H, W, 3) of the image that the patches cover, as the model sees it, in
            0..1.
    """

    words: tuple[str, ...]
    maps: Tensor
    remainder: Mapping[str, Tensor]
    cosine: Tensor
    size: Size
    pixels: np.ndarray

    def sum(self) -> Tensor:
        """Return the sum () of all contributions, which is the cosine up to rounding."""
        return self.maps.sum() + sum(part.sum() for part in self.remainder.values())

    def centered(self) -> Tensor:
        """Return maps (words, h, w) without what the caption's words have in common.

        The mean over the words, without "<start>" and "<end>", is subtracted for each patch. The
        map of a single word stays as it is.

        Example::

            >>> (result,) = interactions(
            ...     ZeroShotClassifier.demo(["dog"]), torch.zeros(1, 3, 64, 64), "a dog"
            ... )
            >>> result.centered().sum(0).abs().max() < 1e-6
            tensor(True)
        """
        inner = [word not in (START, END) for word in self.words]
        if sum(inner) < 2:  # a single word has nothing in common with others
            return self.maps
        return self.maps - self.maps[inner].mean(0)

    def by_word(self) -> Tensor:
        """Return the contribution (words,) of each word to the cosine, over all patches."""
        return self.maps.sum((1, 2)) + self.remainder["words"]

    def figure(
        self,
        image: ImageInput | None = None,
        *,
        regions: bool = False,
        centered: bool = True,
        columns: int = 6,
        width: float | str | None = None,
    ) -> Figure:
        """Draw the map of each word over the image, with what the word adds to the cosine.

        Args:
            image: The image to draw, such as the original in its own size; None means the
                part of it that the model saw.
            regions: Whether to draw the regions of words instead: each pixel has the color of the
                word with the highest map, or none where no map reaches a tenth of the highest
                value.
            centered: Whether to draw the maps without what the words have in common.
            columns: Number of panels in a row, at least 1.
            width: Width of the figure in inches, or "column", "page", "notebook" or "slide".

        Returns:
            A figure that is not registered with pyplot; `visualization.save_figure` writes it.

        Raises:
            ValueError: If `columns` is below 1, a map is not finite, or the width does not hold the
                columns.
        """
        from captum_clip_surgery.tasks import figures

        pixels = self.pixels if image is None else np.asarray(load_image(image))
        return figures.interactions_figure(
            pixels, self, regions=regions, centered=centered, columns=columns, width=width
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pixels, with tensors as nested lists, for `json.dumps`."""
        return {
            "words": list(self.words),
            "maps": self.maps.tolist(),
            "remainder": {name: part.tolist() for name, part in self.remainder.items()},
            "cosine": self.cosine.item(),
            "size": list(self.size),
        }


def interactions(
    clip: ZeroShotClassifier,
    images: Images,
    captions: str | Sequence[str],
    *,
    special: bool = False,
    size: int | Size | None = None,
    batch_size: int = 8,
) -> list[Interactions]:
    """Split the cosine of each image and its caption into pairs of words and patches.

    The image's embedding is the sum of what each patch contributed to it through attention, and a
    remainder; likewise, the caption's embedding is a sum over its tokens. The contribution of word
    j and patch i is the product of their parts, c_i . u_j / (|e| |f|), where e and f are the
    embeddings. Each tower runs once, without gradients of the image or the weights, and nothing is
    approximated: contributions and remainders sum to the cosine.

    A token's part is what the pooled token reads from it, so it includes what the token itself has
    read from its context.

    Args:
        clip: A classifier of a model with a text tower; its texts and templates are ignored.
        images: N images (PIL images, arrays, paths), or a preprocessed batch (N, 3, H, W).
        captions: N captions, used without templates; a string for one image.
        special: Whether to count the start of the text, if there is one, and its end as words,
            "<start>" and "<end>". Otherwise they are in the remainder, as padding always is.
        size: Side or (height, width) in pixels that the model sees; None means the native
            size.
        batch_size: Number of images and captions that pass the towers together.

    Returns:
        For each image an `Interactions`. A word of several tokens gets their sum.

    Raises:
        TypeError: If the classifier was made from features, captions are not strings, or the
            decomposition is not defined on one of the towers.
        ValueError: If there are not as many captions as images, a caption is empty, or one is
            longer than the context and the classifier was not made with `truncate=True`.
        RuntimeError: If the model changes during the call.

    References:
        Elhage et al.: A Mathematical Framework for Transformer Circuits. 2021.
        Gandelsman, Efros, Steinhardt: Interpreting CLIP's Image Representation via Text-Based
        Decomposition. ICLR 2024 (arXiv 2310.05916), Eq. 3-5, there for images only.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog"])
        >>> (result,) = interactions(clip, torch.zeros(1, 3, 64, 64), "a dog and a pizza")
        >>> result.words, result.maps.shape
        (('a', 'dog', 'and', 'a', 'pizza'), torch.Size([5, 4, 4]))
        >>> torch.allclose(result.sum(), result.cosine, atol=1e-5)
        True
    """
    encoder = check_classifier(clip).text_encoder
    tokenized = tokenize_captions(clip, encoder, images, captions)
    check_modes(clip.model)
    results: list[Interactions] = []
    for pixels, sizes in batches(clip, images, size, batch_size):
        batch = tokenized[len(results) : len(results) + len(pixels)]
        results += interactions_of_batch(clip, pixels, sizes, batch, special)[0]
    return results


def interactions_of_batch(
    clip: ZeroShotClassifier,
    pixels: Tensor,
    sizes: Sequence[Size],
    captions: Sequence[Caption],
    special: bool,
) -> tuple[list[Interactions], Tensor]:
    """Return the interactions of N images and captions, and the images' embeddings (N, C).

    Args:
        clip: The classifier.
        pixels: Preprocessed images (N, 3, H, W).
        sizes: Their (height, width) before that.
        captions: Their captions.
        special: Whether the start and the end of the text are words.

    Raises:
        TypeError: If the decomposition is not defined on one of the towers.
        RuntimeError: If the model changes during the call.
    """
    shown = [[special or inner for inner in caption.inner] for caption in captions]
    with (
        torch.no_grad(),
        assert_parameters_unchanged(clip.model, whole=True),
        full_precision(pixels),
    ):
        tokens = torch.stack([caption.tokens for caption in captions])
        text = text_effects(clip.text_encoder, tokens)
        parts = _parts(text, captions, shown)
        image = direct_effects(clip.tower, pixels.to(clip.tower.dtype), parts)
        check_finite(pixels, image.sum(), "contributions")
        seen = covered_pixels(clip, pixels, image.grid)
        results = []
        for i, caption in enumerate(captions):
            words = tuple(compress(caption.words, shown[i]))
            results.append(_of_pair(image, text, i, words, sizes[i], seen[i]))
    return results, image.embedding


def _parts(text: TextEffects, captions: Sequence[Caption], shown: list[list[bool]]) -> Tensor:
    """Return the parts (N, 1 + words, C) of captions: the remainder, then words.

    Captions of fewer words have parts of zeros at the end.
    """
    rest = text.tokens.sum(1) + torch.stack(list(text.remainder.values())).sum(0)
    parts = text.tokens.new_zeros(len(captions), 1 + max(map(sum, shown)), rest.shape[-1])
    for i, caption in enumerate(captions):
        for number, positions in enumerate(compress(caption.positions, shown[i]), 1):
            parts[i, number] = text.tokens[i, positions].sum(0)
    parts[:, 0] = rest - parts[:, 1:].sum(1)
    return parts


def _of_pair(
    image: DirectEffects,
    text: TextEffects,
    index: int,
    words: tuple[str, ...],
    size: Size,
    pixels: np.ndarray,
) -> Interactions:
    """Return the interactions of one image and its caption."""
    embedding = image.embedding[index].to(image.patches.dtype)
    feature = text.feature[index].to(image.patches.dtype)
    lengths = embedding.norm() * feature.norm()
    count = 1 + len(words)
    maps = (image.patches[index, :count] / lengths).unflatten(-1, image.grid)
    rest = torch.stack([part[index, :count] for part in image.remainder.values()]).sum(0) / lengths
    remainder = {"words": rest[1:], "patches": maps[0], "rest": rest[0]}
    cosine = embedding @ feature / lengths
    return Interactions(words, maps[1:], remainder, cosine, size, pixels)
