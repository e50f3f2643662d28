"""Check-up of a method's maps: do they depend on the text, the image and the model's weights?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from captum.metrics import sensitivity_max
from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery._utils.profiling import Passes, count_passes
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.attr import METHODS, Method, TestTimeAugmentation
from captum_clip_surgery.attr._descriptions import title_of
from captum_clip_surgery.attr._engine import explain_of
from captum_clip_surgery.attr._registry import resolve_names
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.metrics import Specificity, draw_absent, randomization
from captum_clip_surgery.metrics._alone import (
    LITTLE_TEXT,
    AskedAlone,
    ask_alone,
    describe_specificity,
)
from captum_clip_surgery.models._validation import check_images
from captum_clip_surgery.queries._types import name_of
from captum_clip_surgery.visualization import compare_figure

#: Rank correlation with maps of other images from which a map hardly depends on the image.
HARDLY_IMAGE = 0.7
#: Rank correlation with the original from which a map hardly depends on the shuffled weights.
HARDLY_WEIGHTS = 0.7
#: Relative change under small noise from which a map is unstable: half of what it shows.
UNSTABLE = 0.5
#: Number of images on which stability, randomization and completeness are checked.
NUM_CHECKED = 2
#: Number of noisy images per image, each pixel within `RADIUS` of its normalized value.
NUM_NOISY, RADIUS = 4, 0.02
#: Number of stages whose weights are shuffled: the head and the last block.
NUM_STAGES = 2
#: Largest number of images in a figure.
MAX_DRAWN = 8


@dataclass(frozen=True)
class TrustReport:
    """Findings about how far maps can be trusted, as `trust` returns them.

    Args:
        method: Name of the method.
        texts: The text that was used for each of N images.
        specificity: Rank correlations with maps that should differ, (N,) each.
        stability: Largest relative change of a map under small noise, from 0.
        randomization: Rank correlation with the original map after each stage of shuffling: the
            weights of the head, then those of the last block as well.
        convergence_delta: Largest distance from completeness, in units of the explained score; None
            for methods that do not promise completeness.
        passes: Passes of images through the image tower that the check-up took.
        seconds: Wall-clock time of the check-up.
        images: The images as they are drawn, (H, W, 3).
        examples: For each image the texts and maps (h, w) to draw: its own text, an absent one, and
            nonsense.
    """

    method: str
    texts: tuple[str, ...]
    specificity: Specificity
    stability: float
    randomization: Mapping[str, float]
    convergence_delta: float | None
    passes: Passes
    seconds: float
    images: Sequence[np.ndarray]
    examples: Sequence[Mapping[str, Tensor]]

    @property
    def verdict(self) -> str:
        """The result of the checks, in words.

        It states how much the maps depend on the text, and names the other checks that fail: a rank
        correlation of 0.5 or more with maps for nonsense, of 0.7 or more with maps of other images
        or with the map after the weights of the head and the last block are shuffled, or a change
        by half of the map or more under invisible noise.
        """
        several = len(self.texts) > 1
        means, verb = self.specificity.means(), "" if several else "s"
        findings = [describe_specificity(means["absent"])]
        if several:
            findings = [findings[0].replace("depends", "depend")]
        if means["absent"] < LITTLE_TEXT <= means["nonsense"]:
            nonsense = "those" if several else "that"
            findings.append(f"resemble{verb} {nonsense} of nonsense: {means['nonsense']:.2f}")
        if means.get("image", 0) >= HARDLY_IMAGE:
            findings.append(f"hardly depend{verb} on the image: {means['image']:.2f}")
        stage, weights = list(self.randomization.items())[-1]
        if weights >= HARDLY_WEIGHTS:
            findings.append(f"hardly depend{verb} on the weights from {stage} on: {weights:.2f}")
        if self.stability >= UNSTABLE:
            findings.append(f"change{verb} by {self.stability:.0%} under small noise")
        return f"{'these maps' if several else 'this map'} {_enumerate(findings)}"

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the name, the value and the expected value of each check."""
        means = self.specificity.means()
        rows = [
            ("same image, absent texts", f"{means['absent']:.2f}", f"below {LITTLE_TEXT}"),
            ("same image, nonsense", f"{means['nonsense']:.2f}", f"below {LITTLE_TEXT}"),
        ]
        if "image" in means:
            rows.append(
                ("same text, other images", f"{means['image']:.2f}", f"below {HARDLY_IMAGE}")
            )
        for stage, value in self.randomization.items():
            rows.append(
                (f"weights shuffled from {stage} on", f"{value:.2f}", f"below {HARDLY_WEIGHTS}")
            )
        rows.append(("change under small noise", f"{self.stability:.2f}", f"below {UNSTABLE}"))
        if self.convergence_delta is not None:
            rows.append(("distance from completeness", f"{self.convergence_delta:.2g}", "near 0"))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return the values of all checks and the verdict as JSON values."""
        return {
            "method": self.method,
            "texts": list(self.texts),
            **{name: values.tolist() for name, values in vars(self.specificity).items()},
            "stability": self.stability,
            "randomization": dict(self.randomization),
            "convergence_delta": self.convergence_delta,
            "verdict": self.verdict,
            "forward": self.passes.forward,
            "backward": self.passes.backward,
            "seconds": self.seconds,
        }

    def to_markdown(self) -> str:
        """Return the verdict, a table of all checks, and their cost as Markdown."""
        table = markdown(["check", self.method, "should be"], [list(row) for row in self.rows()])
        verdict = self.verdict[0].upper() + self.verdict[1:]
        return f"{verdict}.\n\n{table}\n\n{self._cost()}."

    def __str__(self) -> str:
        width = max(len(name) for name, *_ in self.rows())
        lines = [f"{name:{width}}  {value:>6}  ({good})" for name, value, good in self.rows()]
        return "\n".join([f"{self.method}: {self.verdict}", *lines, self._cost()])

    __repr__ = __str__

    def _cost(self) -> str:
        count = len(self.texts)
        images = f"{count} images" if count > 1 else "1 image"
        return f"{images}, {self.passes}, {self.seconds:.1f} s"

    def figure(self) -> Figure:
        """Draw up to eight images, each with the maps for its text, an absent one, and nonsense.

        Returns:
            A figure that is not registered with pyplot; `visualization.save_figure` writes it.
        """
        examples, columns = self.examples[:MAX_DRAWN], ("its text", "an absent text", "nonsense")
        maps, notes = {}, {}
        for column, title in enumerate(columns):
            pairs = [list(example.items())[column] for example in examples]
            maps[title] = torch.stack([values for _, values in pairs])[:, None]
            notes[title] = [[text] for text, _ in pairs]
        return compare_figure(
            self.images[:MAX_DRAWN],
            maps,
            [title_of(self.method)],
            title=self.verdict,
            notes=notes,
            scales="figure",  # a map of an absent text must not look as strong as one of its own
        )


def trust(
    clip: ZeroShotClassifier,
    method: str | Method,
    images: Tensor,
    texts: str | Sequence[str],
    absent: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
) -> TrustReport:
    """Check how far a method's maps can be trusted on some images, without masks.

    - Text specificity: rank correlation of the map of a text with maps of the same image for texts
      that it does not show, and for nonsense, each text used alone.
    - Image specificity: the same with maps of the same text on up to three other images.
    - Stability: Captum's `sensitivity_max` with four noisy images, within 0.02 of each normalized
      value.
    - Randomization: rank correlation with the original map after the weights of the head, and then
      those of the last block as well, are shuffled.
    - Completeness: Captum's convergence delta, if the method has one.

    Cost: the last three are checked on the first two images only. A method that needs its own
    passes computes 8 maps per image, up to 3 more for the texts of other images, and 9 more for
    each of the first two: 17 maps for one image. Dense methods need one forward pass per image for
    all of its texts, and 9 more for each of the first two. Drawing absent texts takes one pass per
    image. The report states the number of passes, including those that verify the shuffled copy.

    Args:
        clip: The classifier; of its texts only those matter that name queries.
        method: Name in `attr.METHODS`, or a callable that makes a method for a classifier.
        images: Images (N, 3, H, W), preprocessed; a dozen are enough.
        texts: A text that all images show, or one per image.
        absent: For each image, texts that it does not show; None draws them from texts that the
            model finds unlikely (`metrics.draw_absent`).
        seed: Seed of absent texts, noise and shuffled weights.

    Returns:
        The report; show it with `print` or `figure`.

    Raises:
        TypeError: If `images` has another type, or the method is not defined on the classifier.
        ValueError: If the method's name is unknown, images and texts do not fit, the classifier was
            made by `from_features`, or a method's maps are not finite.

    References:
        Yeh et al.: On the (In)fidelity and Sensitivity of Explanations. NeurIPS 2019. Adebayo et
        al.: Sanity Checks for Saliency Maps. NeurIPS 2018.

    Example::

        >>> from captum_clip_surgery.demo import Scenes
        >>> scene = Scenes("test", 1)[0]
        >>> clip = ZeroShotClassifier.demo(scene.nouns)
        >>> images = clip.preprocess(scene.image)
        >>> report = trust(clip, "RawAttention", images, scene.nouns[0], [["pizza"]])
        >>> report.verdict
        'this map hardly depends on the text: 1.00'
    """
    check_images(images, clip.tower, clip.device)
    names = [texts] * len(images) if isinstance(texts, str) else list(texts)
    name, make = _resolve(clip, method)
    start = time.perf_counter()
    with count_passes() as passes, torch.no_grad():
        rows = [[text] for text in names]
        if absent is None:
            absent = draw_absent(clip, images, rows, seed=seed)
        asked = ask_alone(clip, {name: make}, images, rows, absent)
        checked, few = images[:NUM_CHECKED], names[:NUM_CHECKED]
        stability, deltas = _stability(clip, make, checked, few, seed)
        local = ZeroShotClassifier.with_texts(clip, list(dict.fromkeys(few)))
        targets = [local.index(text) for text in few]
        shuffled = randomization(local, {name: make}, checked, targets, seed, NUM_STAGES)
    result = asked.specificity(name)
    return TrustReport(
        method=name,
        texts=tuple(names),
        specificity=Specificity(*(values[:, 0] for values in vars(result).values())),
        stability=stability,
        randomization=dict(zip(shuffled.stages[1:], shuffled.correlations[name][1:], strict=True)),
        convergence_delta=max(deltas, default=None),
        passes=passes,
        seconds=time.perf_counter() - start,
        images=list(clip.unnormalize(images.detach().cpu()).permute(0, 2, 3, 1).numpy()),
        examples=[_examples(asked, name, index) for index in range(len(images))],
    )


def _resolve(clip: ZeroShotClassifier, method: str | Method) -> tuple[str, Method]:
    """Return a method's name and what makes it."""
    if isinstance(method, str):
        (name,) = resolve_names([method])
        return name, METHODS[name]
    made = method(clip)
    if isinstance(made, TestTimeAugmentation):  # `get_name` would name the wrapper alone
        return f"{_name(made.method, type(made.method))} with test-time augmentation", method
    return _name(made, method), method


def _name(explainer: Any, method: Any) -> str:
    """Return the name of an explainer, or else of what made it."""
    if hasattr(explainer, "get_name"):
        return str(explainer.get_name()).removeprefix("Layer ")
    return getattr(method, "__name__", type(explainer).__name__)


def _stability(
    clip: ZeroShotClassifier, method: Method, images: Tensor, texts: Sequence[str], seed: int
) -> tuple[float, list[float]]:
    """Return the largest change of a map under noise, and each image's convergence delta."""
    changes, deltas = [], []
    for image, text in zip(images.split(1), texts, strict=True):
        explainer: Any = method(ZeroShotClassifier.with_texts(clip, [text]))
        explain = explain_of(explainer)

        def maps(inputs: Tensor | tuple[Tensor], explain: Any = explain) -> Tensor:
            (batch,) = inputs if isinstance(inputs, tuple) else (inputs,)
            return torch.cat([explain(one, [0]).detach() for one in batch.split(1)])

        with torch.random.fork_rng(), torch.device(image.device):
            torch.manual_seed(seed)
            change = sensitivity_max(
                maps, image, perturb_radius=RADIUS, n_perturb_samples=NUM_NOISY
            )
        changes.append(float(change.max()))
        if getattr(explainer, "has_convergence_delta", lambda: False)():
            _, delta = explainer.attribute(image, target=0, return_convergence_delta=True)
            deltas.append(float(delta.abs().max()))
    return max(changes), deltas


def _examples(asked: AskedAlone, method: str, image: int) -> dict[str, Tensor]:
    """Return the maps of an image for its text, for an absent one, and for nonsense."""
    table = asked.tables[image][method]
    queries = (asked.texts[image][0], asked.absent[image][0][0], asked.nonsense[image][0][0])
    return {name_of(query, 0): table[query] for query in queries}


def _enumerate(phrases: Sequence[str]) -> str:
    """Join phrases as in a sentence."""
    return ", and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
