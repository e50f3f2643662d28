"""Query images that commands are given, and the models that take them for texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from captum_clip_surgery._utils.text import did_you_mean
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.cli._groups import ModelOptions, QueryOptions
from captum_clip_surgery.cli._model import PLACEHOLDER, existing_image, load_model
from captum_clip_surgery.queries import DifferenceQuery, ImageQuery, MeanQuery, Query


def load_with_queries(
    options: ModelOptions,
    texts: Sequence[str],
    queries: QueryOptions,
    distractors: Sequence[str] = (),
    quiet: bool = False,
    device: str | None = None,
) -> ZeroShotClassifier:
    """Load a model for texts and query images, each rather than a subtracted text if there is one.

    Args:
        options: The model.
        texts: Texts to look for; there may be none if there are images.
        queries: Images to look for, and the text that is subtracted.
        distractors: Further texts that compete in feature surgery.
        quiet: Do not print that the embedded model is used.
        device: As for `load_model`.

    Raises:
        FileNotFoundError: If an image does not exist.
        ValueError: If an option does not fit another.
    """
    images = list(dict.fromkeys(existing_image(path) for path in queries.query_image or ()))
    if not images and queries.minus is None:
        return load_model(options, texts, distractors, quiet, device=device)
    image_queries = _image_queries(images)
    for query in image_queries:
        if query.name in (*texts, *distractors):
            raise ValueError(
                f"{query.name!r} is a text and the name of a query image; rename the file, or "
                "leave one of them out"
            )
    positive: list[str | ImageQuery] = [*texts, *image_queries]
    asked = [subtract(query, queries.minus) for query in positive]
    clip = load_model(options, PLACEHOLDER, (), quiet, device=device)
    return clip.with_queries(asked, distractors)


def subtract(query: str | ImageQuery, minus: str | None) -> Query:
    """Return a query rather than the text that `--minus` gives, if any.

    Raises:
        ValueError: If the text is empty.
    """
    if minus is None:
        return query
    if not minus.strip():
        raise ValueError("--minus is empty; give a text, or leave it out")
    return DifferenceQuery(query, minus)


def _image_queries(paths: Sequence[Path]) -> list[ImageQuery]:
    """Return images as queries, named by files, or by whole paths where files share a name."""
    counts = Counter(path.name for path in paths)
    return [ImageQuery(path, str(path) if counts[path.name] > 1 else path.name) for path in paths]


def read_class_images(given: Sequence[str] | None) -> dict[str, list[Path]]:
    """Return the example images of classes, given as CLASS=FILE.

    Raises:
        FileNotFoundError: If an image does not exist.
        ValueError: If one is not of this form.
    """
    images: dict[str, list[Path]] = {}
    for entry in given or ():
        name, _, path = (part.strip() for part in entry.partition("="))
        if not name or not path:
            raise ValueError(
                f"--query-image {entry!r} does not say which class the image shows; write "
                "CLASS=FILE, as in --query-image cat=cat.jpg"
            )
        images.setdefault(name, []).append(existing_image(Path(path)))
    return images


def absolute_class_images(given: Sequence[str] | None) -> list[str]:
    """Return the same example images for processes that run in other folders."""
    images = read_class_images(given)
    return [f"{name}={path.absolute()}" for name, paths in images.items() for path in paths]


def with_class_images(
    clip: ZeroShotClassifier, images: dict[str, list[Path]], classes: Sequence[str], data: str
) -> ZeroShotClassifier:
    """Return a classifier for which names of classes stand for the mean of their example images.

    Args:
        clip: The classifier.
        images: Example images by class.
        classes: Names of the classes of the data set.
        data: Name of the data set, for messages.

    Raises:
        ValueError: If one is not a class of the data set.
    """
    for name in images:
        if name not in classes:
            raise ValueError(
                f"--query-image {name}=...: {data} has no class {name!r}; its classes are "
                f"{', '.join(classes)}{did_you_mean(name, classes)}"
            )
    queries = [MeanQuery([ImageQuery(p) for p in paths], name) for name, paths in images.items()]
    return clip.with_queries(queries) if queries else clip
