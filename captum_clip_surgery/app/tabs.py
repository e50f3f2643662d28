"""What each tab shows of a picture: as a page, as arrays and as a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from captum_clip_surgery.app import figures, markup
from captum_clip_surgery.app.explaining import Explainer, Explanation
from captum_clip_surgery.app.pictures import Shown
from captum_clip_surgery.app.settings import Settings
from captum_clip_surgery.demo import unknown_words
from captum_clip_surgery.tasks import prompts, segment, word_maps
from captum_clip_surgery.tasks.figures import points_figure, segmentation_figure, words_figure
from captum_clip_surgery.visualization import compare_figure


@dataclass(frozen=True)
class Result:
    """A tab as it is shown.

    `html` is for the page, `arrays` what an NPZ file holds, `figure` draws it for PNG and SVG, and
    `hints` are messages that go with it. `complete` is false while methods are still at work.
    """

    html: str
    arrays: dict[str, np.ndarray]
    figure: Callable[[], Figure]
    hints: tuple[str, ...] = ()
    complete: bool = True


def show(explainer: Explainer, picture: Shown, settings: Settings) -> Iterator[Result | None]:
    """The tab that the settings name, as it comes about.

    Yields:
        Results, each with more than the one before; None where there is nothing new, so that work
        can be given up there.

    Raises:
        TypeError, ValueError: what the model or a task refuses, in words.
    """
    yield from _TABS[settings.tab](explainer, picture, settings)


def complete(explainer: Explainer, picture: Shown, settings: Settings) -> Result:
    """The tab when all is there.

    Raises:
        TypeError, ValueError: as `show` does.
    """
    *_, last = (result for result in show(explainer, picture, settings) if result is not None)
    return last


# --- maps ----------------------------------------------------------------------------------------


def _maps(explainer: Explainer, picture: Shown, settings: Settings) -> Iterator[Result | None]:
    shown: tuple[int, int] | None = None
    for found in explainer.explain(picture, settings):
        state = len(found.maps), len(found.left_out)
        if state == shown:
            yield None
        else:
            shown = state
            yield _maps_result(explainer, found, picture, settings)


def _maps_result(
    explainer: Explainer, found: Explanation, picture: Shown, settings: Settings
) -> Result:
    done = len(found.maps) + len(found.left_out) == len(settings.methods)
    hints = [f"{name} is left out: {why}" for name, why in found.left_out.items()]
    if not done:
        missing = [n for n in settings.methods if n not in found.maps and n not in found.left_out]
        hints.insert(0, f"Still at work: {', '.join(missing)}.")
    words = (*settings.texts, *settings.distractors)
    return Result(
        _maps_html(found, picture, settings),
        {
            "texts": np.array(found.texts),
            "logits": found.logits.numpy(),
            **{name: maps.numpy() for name, maps in found.maps.items()},
        },
        lambda: _maps_figure(found, picture, settings),
        (*hints, *_unknown(explainer, words)),
        done,
    )


def _maps_figure(found: Explanation, picture: Shown, settings: Settings) -> Figure:
    if not found.maps:
        why = "; ".join(f"{name} is left out: {why}" for name, why in found.left_out.items())
        raise ValueError(f"no method has a map to draw; choose another. {why}")
    shown = [name for name in settings.methods if name in found.maps]  # in the page's order
    return compare_figure(
        [picture.image],
        {name: found.maps[name][None] for name in shown},
        found.texts,
        sign=settings.sign,
        cmap=settings.cmap,
        alpha_overlay=settings.opacity,
    )


def _maps_html(found: Explanation, picture: Shown, settings: Settings) -> str:
    original = figures.plain(picture.image)
    rows = []
    for rank, index in enumerate(found.ranking(), 1):
        text = found.texts[index]
        panels = [markup.panel(original, markup.PICTURE, "The picture itself", settings.point)]
        for name in settings.methods:
            if name in found.maps:
                drawn = figures.overlay(picture.image, found.maps[name][index], settings)
                alt = f"Where {name} sees {text!r} in the picture"
                panels.append(markup.panel(drawn, name, alt, settings.point))
        number = markup.share(float(found.probabilities[index]), float(found.logits[index]))
        rows.append(markup.row(f"{rank}. {text}", panels, number))
    return _at_point(found, settings) + "".join(rows)


def _at_point(found: Explanation, settings: Settings) -> str:
    if settings.point is None:
        return ""
    scores = found.at(settings.point)
    return markup.at_point(
        settings.point,
        [markup.bars(name, dict(zip(found.texts, s, strict=True))) for name, s in scores.items()],
    )


def _unknown(explainer: Explainer, texts: tuple[str, ...]) -> tuple[str, ...]:
    if explainer.clip.vocabulary is None:
        return ()
    words = unknown_words(texts)
    if not words:
        return ()
    return (
        f"The embedded model never learnt: {', '.join(words)}. It knows "
        f"{len(explainer.clip.vocabulary)} nouns, which stand under the texts.",
    )


# --- tasks ---------------------------------------------------------------------------------------


def _segmentation(explainer: Explainer, picture: Shown, settings: Settings) -> Iterator[Result]:
    background = list(settings.background) or None
    (found,) = segment(
        explainer.classifier(settings), [picture.image], size=settings.side, background=background
    )
    drawn, colours = figures.segments(picture.image, found)
    shares = found.shares()
    legend = markup.table(
        ["class", "area"], ((name, f"{share:.1%}") for name, share in shares.items()), colours
    )
    alt = "The picture's classes: " + ", ".join(f"{n} {s:.0%}" for n, s in shares.items())
    yield Result(
        markup.two(markup.panel(drawn, "classes", alt), legend),
        {"labels": found.labels.cpu().numpy(), "classes": np.array(found.classes)},
        lambda: segmentation_figure(np.asarray(picture.image), found),
        _unknown(explainer, settings.texts),
    )


def _points(explainer: Explainer, picture: Shown, settings: Settings) -> Iterator[Result]:
    (found,) = prompts(
        explainer.classifier(settings),
        [picture.image],
        instances=settings.instances,
        boxes=settings.boxes,
        size=settings.side,
    )
    drawn, colours = figures.points(picture.image, found)
    rows, arrays = [], {"texts": np.array([prompt.text for prompt in found])}
    for number, prompt in enumerate(found):
        on = int(prompt.labels.sum())
        box = "" if prompt.box is None else ", ".join(f"{side:.0f}" for side in prompt.box)
        rows.append((prompt.text, str(on), str(len(prompt.labels) - on), box))
        arrays |= {f"points-{number}": prompt.points, f"labels-{number}": prompt.labels}
        if prompt.box is not None:
            arrays[f"box-{number}"] = prompt.box
    legend = markup.table(["text", "points on it", "off it", "box (x0, y0, x1, y1)"], rows, colours)
    alt = "Points and boxes on the picture, for " + ", ".join(colours)
    yield Result(
        markup.two(markup.panel(drawn, "points on (●) and off (✖) what is named", alt), legend),
        arrays,
        lambda: points_figure(np.asarray(picture.image), found),
        _unknown(explainer, settings.texts),
    )


def _words(explainer: Explainer, picture: Shown, settings: Settings) -> Iterator[Result]:
    if not settings.caption:
        raise ValueError("no caption: write a sentence whose words are to be found")
    (found,) = word_maps(explainer.clip, [picture.image], [settings.caption], size=settings.side)
    maps = found.maps.cpu()
    panels = [markup.panel(figures.plain(picture.image), markup.PICTURE, "The picture itself")]
    matter = found.importance.tolist()
    for word, attribution, importance in zip(found.words, maps, matter, strict=True):
        drawn = figures.overlay(picture.image, attribution, settings)
        panels.append(
            markup.panel(drawn, f"{word} {importance:+.2f}", f"Where the picture shows {word!r}")
        )
    legend = markup.bars(
        "How far the likeness of picture and caption falls without a word",
        {f"{i}. {word}": matter[i - 1] for i, word in enumerate(found.words, 1)},
    )
    yield Result(
        markup.row(settings.caption, panels) + legend,
        {
            "words": np.array(found.words),
            "maps": maps.numpy(),
            "importance": found.importance.cpu().numpy(),
        },
        lambda: words_figure(
            np.asarray(picture.image),
            found,
            sign=settings.sign,
            cmap=settings.cmap,
            alpha_overlay=settings.opacity,
        ),
        _unknown(explainer, (settings.caption,)),
    )


_TABS: dict[str, Callable[[Explainer, Shown, Settings], Iterator[Result | None]]] = {
    "maps": _maps,
    "segmentation": _segmentation,
    "points": _points,
    "words": _words,
}
