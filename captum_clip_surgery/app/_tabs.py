"""Results of each tab for an image: as HTML, as arrays and as a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from captum_clip_surgery._utils.similarity import SHARE, format_cosine, format_cosines
from captum_clip_surgery.app import _figures as figures
from captum_clip_surgery.app._explaining import Explainer, Explanation, specificity_of
from captum_clip_surgery.app._figures import Drawn, Legend
from captum_clip_surgery.app._images import PageImage, required_query
from captum_clip_surgery.app._settings import WITHOUT_MINUS, Settings
from captum_clip_surgery.app._templates import html
from captum_clip_surgery.attr._descriptions import title_of
from captum_clip_surgery.demo._scenes import unknown_words
from captum_clip_surgery.metrics._alone import describe_specificity
from captum_clip_surgery.tasks import explain_pair, prompts, segment, word_maps
from captum_clip_surgery.tasks.figures import points_figure, segmentation_figure, words_figure
from captum_clip_surgery.visualization import compare_figure


@dataclass(frozen=True)
class Result:
    """Result of a tab.

    Args:
        html: What the page shows.
        arrays: Contents of the NPZ file.
        figure: Function that draws the figure of PNG and SVG files.
        hints: Messages to show with it.
        complete: False while methods are still running.
    """

    html: str
    arrays: dict[str, np.ndarray]
    figure: Callable[[], Figure]
    hints: tuple[str, ...] = ()
    complete: bool = True


@dataclass(frozen=True)
class Panel:
    """An image on the page: its name, a text that describes it, its colors, how far to trust it."""

    drawn: Drawn
    name: str
    alt: str
    legend: Legend | None = None
    trust: str = ""


def show(
    explainer: Explainer, image: PageImage, settings: Settings, query: PageImage | None = None
) -> Iterator[Result | None]:
    """Compute the selected tab of an image, and of a query image if there is one.

    Yields:
        Results, each with more than the one before, or None where nothing is new, so that the
        computation can be abandoned there.

    Raises:
        TypeError: If the model or a task raises it.
        ValueError: If the model or a task raises it.
    """
    applied = settings.on_tab()
    hints = () if applied == settings else (WITHOUT_MINUS[settings.tab],)
    for result in _TABS[settings.tab](explainer, image, applied, query):
        yield result and replace(result, hints=(*hints, *result.hints))


def complete(
    explainer: Explainer, image: PageImage, settings: Settings, query: PageImage | None = None
) -> Result:
    """Return the last result of the selected tab.

    Raises:
        TypeError: If the model or a task raises it.
        ValueError: If the model or a task raises it.
    """
    *_, last = filter(None, show(explainer, image, settings, query))
    return last


def _texts(settings: Settings) -> tuple[str, ...]:
    """Return the texts of the question, without the name of a query image."""
    return (*settings.texts, settings.minus) if settings.minus else settings.texts


def _unknown_words(explainer: Explainer, texts: tuple[str, ...]) -> tuple[str, ...]:
    vocabulary = explainer.clip.vocabulary
    words = unknown_words(texts) if vocabulary is not None else ()
    if vocabulary is None or not words:
        return ()
    return (
        f"The embedded model has never seen: {', '.join(words)}. It knows only the "
        f"{len(vocabulary)} nouns listed under “Known nouns”.",
    )


# --- maps ----------------------------------------------------------------------------------------


def _maps(
    explainer: Explainer, image: PageImage, settings: Settings, query: PageImage | None
) -> Iterator[Result | None]:
    shown: tuple[int, ...] | None = None
    for explanation in explainer.explain(image, settings, query):
        state = (len(explanation.maps), len(explanation.left_out), len(explanation.specificity))
        if state == shown:
            yield None
        else:
            shown = state
            yield _maps_result(explainer, explanation, image, settings)


def _maps_result(
    explainer: Explainer, explanation: Explanation, image: PageImage, settings: Settings
) -> Result:
    maps, left_out = explanation.maps, explanation.left_out
    hints = _left_out(explanation)
    running = [name for name in settings.methods if name not in maps and name not in left_out]
    if settings.trust:
        measured = explanation.specificity
        running += [
            unit
            for name in maps
            if (unit := specificity_of(name)) not in left_out and name not in measured
        ]
    if running:
        hints.insert(0, f"Still running: {', '.join(map(title_of, running))}.")
    return Result(
        _maps_html(explanation, image, settings),
        {
            "texts": np.array(explanation.texts),
            "logits": explanation.logits.numpy(),
            **{name: values.numpy() for name, values in maps.items()},
        },
        lambda: _maps_figure(explanation, image, settings),
        (*hints, *_unknown_words(explainer, (*_texts(settings), *settings.distractors))),
        not running,
    )


def _left_out(explanation: Explanation) -> list[str]:
    return [f"{title_of(name)} is left out: {why}" for name, why in explanation.left_out.items()]


def _drawn_methods(explanation: Explanation, settings: Settings) -> list[str]:
    """Return the names of the methods that have maps, in the page's order."""
    return [name for name in settings.methods if name in explanation.maps]


def _maps_figure(explanation: Explanation, image: PageImage, settings: Settings) -> Figure:
    if not explanation.maps:
        reasons = "; ".join(_left_out(explanation))
        raise ValueError(f"no method has a map to draw; choose another. {reasons}")
    names = _drawn_methods(explanation, settings)
    return compare_figure(
        [image.pixels],
        {title_of(name): explanation.maps[name][None] for name in names},
        explanation.texts,
        text_notes=[_cosines(explanation, settings)],
        notes={
            title_of(name): [[describe_specificity(value) for value in values]]
            for name, values in explanation.specificity.items()
        },
        sign=settings.sign,
        cmap=settings.cmap,
        alpha_overlay=settings.opacity,
    )


def _cosines(explanation: Explanation, settings: Settings) -> list[str]:
    are_differences = [bool(settings.minus)] * len(explanation.texts)
    return format_cosines(explanation.cosines.tolist(), are_differences)


def _maps_html(explanation: Explanation, image: PageImage, settings: Settings) -> str:
    texts, names = explanation.texts, _drawn_methods(explanation, settings)
    styles = {name: figures.map_style(explanation.maps[name], settings) for name in names}
    legends = {name: figures.legend(style) for name, style in styles.items()}
    rows, cosines = [], _cosines(explanation, settings)
    for index in explanation.ranking():
        panels = []
        for name in names:
            drawn = figures.overlay(image.pixels, explanation.maps[name][index], styles[name])
            alt = f"Where {title_of(name)} sees {texts[index]!r} in the image"
            values = explanation.specificity.get(name)
            trust = "" if values is None else describe_specificity(values[index])
            panels.append(Panel(drawn, title_of(name), alt, legends[name], trust))
        rows.append(
            {
                "text": texts[index],
                "cosine": cosines[index],
                "probability": float(explanation.probabilities[index]),
                "panels": panels,
            }
        )
    at_point = {} if settings.point is None else explanation.scores_at(settings.point)
    scores = {title_of(name): list(zip(texts, row, strict=True)) for name, row in at_point.items()}
    return html(
        "maps",
        rows=rows,
        point=settings.point,
        scores_at_point=scores,
        share=SHARE,
        methods=names,
    )


# --- tasks ---------------------------------------------------------------------------------------


def _segmentation(
    explainer: Explainer, image: PageImage, settings: Settings, query: PageImage | None
) -> Iterator[Result]:
    (segmentation,) = segment(
        explainer.classifier(settings, query),
        [image.pixels],
        size=settings.side,
        background=list(settings.background) or None,
    )
    drawn, colors = figures.segments(image.pixels, segmentation)
    shares = segmentation.shares()
    alt = "Classes of the image: " + ", ".join(f"{n} {s:.0%}" for n, s in shares.items())
    rows = [(name, f"{share:.1%}") for name, share in shares.items()]
    yield Result(
        html("segmentation", segments=Panel(drawn, "classes", alt), rows=rows, colors=colors),
        {
            "labels": segmentation.labels.cpu().numpy(),
            "classes": np.array(segmentation.classes),
        },
        lambda: segmentation_figure(np.asarray(image.pixels), segmentation),
        _unknown_words(explainer, _texts(settings)),
    )


def _points(
    explainer: Explainer, image: PageImage, settings: Settings, query: PageImage | None
) -> Iterator[Result]:
    (image_prompts,) = prompts(
        explainer.classifier(settings, query),
        [image.pixels],
        instances=settings.instances,
        boxes=settings.boxes,
        size=settings.side,
    )
    drawn, colors = figures.points(image.pixels, image_prompts)
    rows, arrays = [], {"texts": np.array([prompt.text for prompt in image_prompts])}
    for number, prompt in enumerate(image_prompts):
        inside = int(prompt.labels.sum())
        box = "" if prompt.box is None else ", ".join(f"{side:.0f}" for side in prompt.box)
        rows.append((prompt.text, inside, len(prompt.labels) - inside, box))
        arrays |= {f"points-{number}": prompt.points, f"labels-{number}": prompt.labels}
        if prompt.box is not None:
            arrays[f"box-{number}"] = prompt.box
    alt = "Points and boxes on the image, for " + ", ".join(colors)
    panel = Panel(drawn, "points inside (●) and outside (✖) what a text names", alt)
    yield Result(
        html("points", points=panel, rows=rows, colors=colors),
        arrays,
        lambda: points_figure(np.asarray(image.pixels), image_prompts),
        _unknown_words(explainer, _texts(settings)),
    )


def _words(
    explainer: Explainer, image: PageImage, settings: Settings, query: PageImage | None
) -> Iterator[Result]:
    if not settings.caption:
        raise ValueError("no caption given; write a sentence whose words are to be found")
    (words,) = word_maps(explainer.clip, [image.pixels], [settings.caption], size=settings.side)
    maps, importance = words.maps.cpu(), words.importance.tolist()
    style = figures.map_style(maps, settings)
    panels, colors = [], figures.legend(style)
    for word, attribution, value in zip(words.words, maps, importance, strict=True):
        drawn = figures.overlay(image.pixels, attribution, style)
        alt = f"Where the image shows {word!r}"
        panels.append(Panel(drawn, f"{word} {value:+.2f}", alt, colors))
    numbered = [f"{number}. {word}" for number, word in enumerate(words.words, 1)]
    yield Result(
        html(
            "words",
            caption=settings.caption,
            panels=panels,
            importance=list(zip(numbered, importance, strict=True)),
        ),
        {
            "words": np.array(words.words),
            "maps": maps.numpy(),
            "importance": words.importance.cpu().numpy(),
        },
        lambda: words_figure(
            np.asarray(image.pixels),
            words,
            sign=settings.sign,
            cmap=settings.cmap,
            alpha_overlay=settings.opacity,
        ),
        _unknown_words(explainer, (settings.caption,)),
    )


def _pair(
    explainer: Explainer, image: PageImage, settings: Settings, query: PageImage | None
) -> Iterator[Result]:
    query = required_query(query)
    found = explain_pair(explainer.clip, query.pixels, image.pixels, size=settings.side)
    alt = "Both images with lines between the regions that match most, and a map of each"
    names = (query.name, image.title)
    figure = partial(found.figure, query.pixels, image.pixels, names=names)
    query_map, image_map = (values.cpu().numpy() for values in found.maps())
    yield Result(
        html(
            "pair",
            panel=Panel(figures.drawn_figure(figure()), " and ".join(names), alt),
            cosine=format_cosine(float(found.cosine)),
        ),
        {
            "interactions": found.interactions.cpu().numpy(),
            "query_map": query_map,
            "image_map": image_map,
            "cosine": found.cosine.cpu().numpy(),
        },
        figure,
    )


_TABS: dict[
    str, Callable[[Explainer, PageImage, Settings, PageImage | None], Iterator[Result | None]]
] = {
    "maps": _maps,
    "segmentation": _segmentation,
    "points": _points,
    "words": _words,
    "pair": _pair,
}
