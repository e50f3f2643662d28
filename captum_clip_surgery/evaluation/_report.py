"""Figures of the images with the worst, median and best scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery.datasets import IGNORE_INDEX, ImageDataset, Labels, Points, Sample, Tags
from captum_clip_surgery.evaluation._data import EvalDataLoader, EvalSample
from captum_clip_surgery.evaluation._evaluators import Evaluator
from captum_clip_surgery.evaluation._predictors import Predictions, Predictor
from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._images import extent, pale_gray, panel_aspect, show_image
from captum_clip_surgery.visualization._labels import Color, add_legend, label_color, show_labels
from captum_clip_surgery.visualization._layout import fit_text, panel_grid, panel_width, title_size
from captum_clip_surgery.visualization._scales import format_limits
from captum_clip_surgery.visualization._style import MapStyle
from captum_clip_surgery.visualization._views import View

#: Maximum number of classes that are listed, and in a legend.
MAX_NAMES, MAX_LEGEND = 5, 12
#: Width of a legend in inches.
LEGEND = 1.8
#: What a row shows: a sample, the classes of its maps, predictions by method, and a score.
Row = tuple[Sample, list[int], Predictions, float]
#: Colors of positive and negative points, which also differ by their markers.
POSITIVE, NEGATIVE = "#009e73", "#d55e00"


def cases_figure(
    data: ImageDataset,
    evaluator: Evaluator,
    predictor: Predictor,
    loader: EvalDataLoader,
    cases: Sequence[tuple[float, int, int | None]],
    title: str,
) -> Figure:
    """Draw a row per image: the image, its annotation, and what each method predicts.

    Args:
        data: The data set.
        evaluator: What is measured.
        predictor: How methods are run.
        loader: The images to draw, one per batch.
        cases: For each image its score in 0..1, its index, and the class that the score is of;
            None if it is of the whole image.
        title: Title of the figure.

    Returns:
        A figure independent of pyplot; `save_figure` writes it.
    """
    rows: list[Row] = []
    for (score, index, label), (shown,) in zip(cases, loader, strict=True):
        assert isinstance(shown, EvalSample)
        labels = evaluator.labels(shown.target)
        (prediction,) = predictor.predict([shown], [labels])
        if label is not None:  # of the maps, the one that the score is of
            place = labels.index(label)
            prediction = {name: maps[place, None] for name, maps in prediction.items()}
            labels = [label]
        rows.append((data[index], labels, prediction, score))
    images = [np.asarray(sample.image) for sample, *_ in rows]
    aspect = max(map(panel_aspect, images))
    columns = ["image", "annotation", *predictor.names]
    figure, axes = panel_grid(len(rows), len(columns), aspect, titled=True, noted=True)
    side = panel_width(axes[0, 0])
    colors = _colors(rows, data.background)
    for row, image, line in zip(rows, images, axes, strict=True):
        sample, classes, prediction, score = row
        show_image(line[0], image)
        line[0].set_ylabel(f"{sample.name[-24:]}\n{100 * score:.1f}", fontsize=8)
        _show_target(line[1], image, sample, data, classes, colors)
        for axis, name in zip(line[2:], predictor.names, strict=True):
            _show_prediction(axis, image, prediction[name], sample, data, classes, colors)
    for axis, name in zip(axes[0], columns, strict=True):
        text, size = fit_text(name, side, title_size(side))
        axis.set_title(text, fontsize=size, parse_math=False)
    if colors:
        _widen(figure, LEGEND)
        names = [(data.classes.first[label], color) for label, color in colors.items()]
        more = f"{len(names) - MAX_LEGEND} more" if len(names) > MAX_LEGEND else ""
        add_legend(axes[0, -1], names[:MAX_LEGEND], more)
    figure.suptitle(title, fontsize=12)
    return figure


def _colors(rows: Sequence[Row], background: int | None) -> dict[int, Color]:
    """Return colors of the classes in labels of any panel, the largest first."""
    counts: Counter[int] = Counter()
    for sample, _, prediction, _ in rows:
        drawn = [labels.numpy() for labels in prediction.values() if _is_labels(labels)]
        if drawn and isinstance(sample.target, Labels):
            for labels in (sample.target.labels, *drawn):
                values, sizes = np.unique(labels, return_counts=True)
                counts.update(dict(zip(values.tolist(), sizes.tolist(), strict=True)))
    largest = [label for label, _ in counts.most_common()]
    shown = [label for label in largest if label not in (IGNORE_INDEX, background)]
    return {label: label_color(index) for index, label in enumerate(shown)}


def _is_labels(prediction: Tensor) -> bool:
    return prediction.ndim == 2


def _widen(figure: Figure, inches: float) -> None:
    """Add room to the right of a figure; panels keep their size."""
    width, height = figure.get_size_inches()
    scale = width / (width + inches)
    for axis in figure.axes:
        left, bottom, across, up = axis.get_position(original=True).bounds
        axis.set_position((left * scale, bottom, across * scale, up))
    figure.set_size_inches(width + inches, height)


def _show_target(
    axis: Axes,
    image: np.ndarray,
    sample: Sample,
    data: ImageDataset,
    labels: Sequence[int],
    colors: Mapping[int, Color],
) -> None:
    """Draw the annotation of an image; masks and points of the first of its classes."""
    target = sample.target
    if isinstance(target, Tags):
        names = [data.classes.first[label] for label in sorted(target.present)]
        _show_names(axis, image, names)
    elif isinstance(target, Points):
        show_image(axis, pale_gray(image), image)
        _mark_points(axis, image, target, labels)
        _name_class(axis, data, labels)
    elif isinstance(target, Labels) and not labels:
        show_labels(axis, image, target.labels, colors)
    else:
        masks = target.masks() if isinstance(target, Labels) else target
        inside = masks.masks[labels[0]] if labels else np.zeros(image.shape[:2], bool)
        show_labels(axis, image, inside.astype(int), {1: label_color(0)})
        _name_class(axis, data, labels)


def _show_prediction(
    axis: Axes,
    image: np.ndarray,
    prediction: Tensor,
    sample: Sample,
    data: ImageDataset,
    labels: Sequence[int],
    colors: Mapping[int, Color],
) -> None:
    """Draw scores (K,), labels (H, W), or the first of maps (K, h, w)."""
    target = sample.target
    if prediction.ndim == 1:
        order = prediction.argsort(descending=True)[:MAX_NAMES].tolist()
        present = target.present if isinstance(target, Tags) else frozenset()
        names = [f"{data.classes.first[i]}{' (present)' * (i in present)}" for i in order]
        _show_names(axis, image, names)
    elif _is_labels(prediction):
        show_labels(axis, image, prediction.numpy(), colors)
    elif len(prediction):
        style = MapStyle.of(prediction[0].float(), View())
        show_map(axis, image, prediction[0].float(), style.view, style.scale)
        if style.shared is not None:
            axis.set_xlabel(format_limits(style.shared), fontsize=8, labelpad=2)
        if isinstance(target, Points):
            _mark_points(axis, image, target, labels)


def _show_names(axis: Axes, image: np.ndarray, names: Sequence[str]) -> None:
    show_image(axis, np.ones_like(pale_gray(image)))
    text = "\n".join(names[:MAX_NAMES]) + ("\n..." if len(names) > MAX_NAMES else "")
    axis.text(
        0.04,
        0.96,
        text or "nothing",
        transform=axis.transAxes,
        va="top",
        fontsize=8,
        parse_math=False,
    )


def _mark_points(axis: Axes, image: np.ndarray, target: Points, labels: Sequence[int]) -> None:
    """Mark the points of the first class."""
    height, width = image.shape[:2]
    for positive, color, marker in ((True, POSITIVE, "o"), (False, NEGATIVE, "x")):
        places = torch.tensor(
            [
                (point.x * width - 0.5, point.y * height - 0.5)  # pixels have their centers at 0, 1
                for point in target.points
                if labels and point.label == labels[0] and point.positive == positive
            ]
        ).reshape(-1, 2)
        axis.scatter(places[:, 0], places[:, 1], c=color, marker=marker, s=18, clip_on=False)
    left, right, bottom, top = extent(image)  # a point at the border would resize the panel
    axis.set(xlim=(left, right), ylim=(bottom, top))


def _name_class(axis: Axes, data: ImageDataset, labels: Sequence[int]) -> None:
    if labels:
        axis.set_xlabel(data.classes.first[labels[0]], fontsize=8, labelpad=2, parse_math=False)
