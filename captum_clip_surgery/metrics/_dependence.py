"""Text and image specificity: does a map depend on the text, and on the image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from captum_clip_surgery.attr import Method
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics._alone import (
    NONSENSE,
    Specificity,
    ask_alone,
    draw_absent,
)
from captum_clip_surgery.models._validation import check_images


def specificity(
    clip: ZeroShotClassifier,
    methods: Mapping[str, Method],
    images: Tensor,
    texts: str | Sequence[str],
    absent: Sequence[Sequence[str]] | None = None,
    nonsense: Sequence[str] = NONSENSE,
) -> dict[str, Specificity]:
    """Measure how much the maps of methods depend on the text, and on the image.

    Each text is used alone: every method is made for a classifier with that one text, so that
    contrast between texts cannot help. Feature surgery "auto" is then "empty", and the variants
    "release" and "paper" are not defined.

    Cost: dense methods share one forward pass per image for any number of texts. Every other method
    computes 1 + A + S + R maps per image: one for its text, A for absent texts (4 if they are
    drawn), S for nonsense (3), and R for the texts of other images (at most 3).

    Args:
        clip: The classifier; of its texts only those matter that name queries (`with_queries`).
        methods: Methods by name, as for `randomization`.
        images: Images (N, 3, H, W), preprocessed.
        texts: A text or the name of a query that all images show, or one per image. For a
            difference, what it subtracts is also subtracted from absent texts and nonsense.
        absent: For each image, texts that it does not show; None draws them by `draw_absent`.
        nonsense: Meaningless strings; if there are none, their correlation is NaN.

    Returns:
        Correlations (N,) by method, as the functions `text_specificity` and `image_specificity`
        define them.

    Raises:
        TypeError: If `images` has another type, or `nonsense` is a string.
        ValueError: If the images do not fit the classifier, there are not as many texts or rows of
            absent texts as images, the classifier was made by `from_features`, or a method's maps
            have another shape or are not finite.

    Example::

        >>> from captum_clip_surgery import METHODS
        >>> from captum_clip_surgery.demo import Scenes
        >>> scene = Scenes("test", 1)[0]
        >>> clip = ZeroShotClassifier.demo(scene.nouns)
        >>> methods = {name: METHODS[name] for name in ("CLIPSurgery", "RawAttention")}
        >>> images = clip.preprocess(scene.image)
        >>> result = specificity(clip, methods, images, scene.nouns[0])
        >>> result["CLIPSurgery"].means()["absent"] < 0.5
        True
        >>> round(result["RawAttention"].means()["absent"], 3)
        1.0
    """
    check_images(images, clip.tower, clip.device)
    rows = [[text] for text in ([texts] * len(images) if isinstance(texts, str) else texts)]
    if absent is None:
        absent = draw_absent(clip, images, rows)
    asked = ask_alone(clip, methods, images, rows, absent, nonsense)
    results = {name: asked.specificity(name) for name in methods}
    return {
        name: Specificity(*(values[:, 0] for values in vars(result).values()))
        for name, result in results.items()
    }
