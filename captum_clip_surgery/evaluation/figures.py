"""The images that went worst, as usual, and best: what is true, and what methods say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from captum_clip_surgery.datasets import (
    IGNORE_INDEX,
    ImageDataset,
    Labels,
    Points,
    Sample,
    Tags,
)
from captum_clip_surgery.evaluation.shown import Reader
from captum_clip_surgery.evaluation.tasks import Asking
from captum_clip_surgery.tasks.segmentation import voc_palette
from captum_clip_surgery.visualization import (
    drawn_aspect,
    greyed,
    show_labels,
    show_map,
    show_picture,
    tight_grid,
)
from captum_clip_surgery.visualization.layout import fit, side_of, type_size

NAMED = 5  # classes that are listed
INSIDE, OUTSIDE = "#009e73", "#d55e00"  # of points; also told apart by their marks


def cases_figure(
    data: ImageDataset, ask: Asking, reader: Reader, scores: Sequence[float], title: str
) -> Figure:
    """A row for each image: the picture, what is true, and what each method says.

    Args:
        data: where the images are from.
        ask: the task.
        reader: of the images to show, in order.
        scores: how well each went, in 0..1.
        title: above everything.
    """
    rows = [
        (data[shown.index], ask.judge.targets(shown.truth), said)
        for batch in reader
        for shown, said in zip(batch, ask.found(batch), strict=True)
    ]
    pictures = [np.asarray(sample.image) for sample, *_ in rows]
    aspect = max(map(drawn_aspect, pictures))
    figure, axes = tight_grid(len(rows), len(ask.names) + 2, aspect, titled=True, noted=True)
    side = side_of(axes[0, 0])
    for row, picture, score, line in zip(rows, pictures, scores, axes, strict=True):
        sample, targets, said = row
        show_picture(line[0], picture)
        line[0].set_ylabel(f"{sample.name[-24:]}\n{100 * score:.1f}", fontsize=8)
        _show_truth(line[1], picture, sample, data, targets)
        for axis, name in zip(line[2:], ask.names, strict=True):
            _show_found(axis, picture, said[name], sample, data, targets)
    for axis, name in zip(axes[0], ["image", "truth", *ask.names], strict=True):
        label, size = fit(name, side, type_size(side))
        axis.set_title(label, fontsize=size, parse_math=False)
    figure.suptitle(title, fontsize=12)
    return figure


def _show_truth(
    axis: Axes, picture: np.ndarray, sample: Sample, data: ImageDataset, targets: Sequence[int]
) -> None:
    truth = sample.target
    if isinstance(truth, Tags):
        _show_names(axis, picture, [data.classes.first[label] for label in sorted(truth.present)])
    elif isinstance(truth, Points):
        show_picture(axis, greyed(picture), picture)
        _mark(axis, picture, truth, targets)
        _name(axis, data, targets)
    elif isinstance(truth, Labels) and not targets:
        _show_labels(axis, picture, truth.labels, data.background)
    else:
        masks = truth.masks() if isinstance(truth, Labels) else truth
        inside = masks.masks[targets[0]] if targets else np.zeros(picture.shape[:2], bool)
        _show_labels(axis, picture, np.where(inside, 1, 0), 0)
        _name(axis, data, targets)


def _show_found(
    axis: Axes,
    picture: np.ndarray,
    found: Tensor,
    sample: Sample,
    data: ImageDataset,
    targets: Sequence[int],
) -> None:
    if found.ndim == 1:
        order = found.argsort(descending=True)[:NAMED].tolist()
        present = sample.target.present if isinstance(sample.target, Tags) else frozenset()
        _show_names(
            axis,
            picture,
            [f"{data.classes.first[i]}{' (true)' * (i in present)}" for i in order],
        )
    elif found.ndim == 2:
        _show_labels(axis, picture, found.numpy(), data.background)
    elif len(found):
        show_map(axis, picture, found[0])
        if isinstance(sample.target, Points):
            _mark(axis, picture, sample.target, targets)


def _show_labels(
    axis: Axes, picture: np.ndarray, labels: np.ndarray, background: int | None
) -> None:
    """Classes in the colours of PASCAL VOC; the background, and what is ignored, without any."""
    drawn = set(np.unique(labels).tolist()) - {IGNORE_INDEX, background}
    # The first colour is black, VOC's background.
    shift = int(background is None)
    palette = (voc_palette() / 255).tolist()
    show_labels(
        axis, picture, labels, {label: tuple(palette[(label + shift) % 256]) for label in drawn}
    )


def _show_names(axis: Axes, picture: np.ndarray, names: Sequence[str]) -> None:
    show_picture(axis, np.ones_like(greyed(picture)))
    text = "\n".join(names[:NAMED]) + ("\n..." if len(names) > NAMED else "")
    axis.text(
        0.04,
        0.96,
        text or "nothing",
        transform=axis.transAxes,
        va="top",
        fontsize=8,
        parse_math=False,
    )


def _mark(axis: Axes, picture: np.ndarray, truth: Points, targets: Sequence[int]) -> None:
    """Points of the first class that is asked for."""
    height, width = picture.shape[:2]
    for positive, colour, mark in ((True, INSIDE, "o"), (False, OUTSIDE, "x")):
        places = torch.tensor(
            [
                (point.x * width, point.y * height)
                for point in truth.points
                if targets and point.label == targets[0] and point.positive == positive
            ]
        ).reshape(-1, 2)
        axis.scatter(places[:, 0], places[:, 1], c=colour, marker=mark, s=18)


def _name(axis: Axes, data: ImageDataset, targets: Sequence[int]) -> None:
    if targets:
        axis.set_xlabel(data.classes.first[targets[0]], fontsize=8, labelpad=2, parse_math=False)
