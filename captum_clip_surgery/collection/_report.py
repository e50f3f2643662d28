"""An audit as a Markdown report with pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery._utils.text import quantity
from captum_clip_surgery.attr._coverage import cover
from captum_clip_surgery.collection._judging import MIN_CLASSES
from captum_clip_surgery.collection._result import Audit, ClassAudit, Cue, Rise
from captum_clip_surgery.visualization import save_figure
from captum_clip_surgery.visualization._attribution import show_map
from captum_clip_surgery.visualization._images import panel_aspect, show_image
from captum_clip_surgery.visualization._layout import fit_text, panel_grid, panel_width
from captum_clip_surgery.visualization._views import View

#: Largest number of classes that are drawn if none is named, and in the chart.
MAX_DRAWN, MAX_BARS = 3, 40


def write_report(result: Audit, folder: Path) -> Path:
    """Write `audit.md` and its pictures, and return the path of the report."""
    parts = [summary(result)]
    if result.classes:
        save_figure(lifts_figure(result), folder / "lifts.png")
        parts += ["![Lift of each class](lifts.png)", table(result)]
    for entry in result.leaning or result.classes[:MAX_DRAWN]:
        name = f"class-{result.texts.index(entry.name)}.png"
        save_figure(class_figure(result, entry), folder / name)
        parts += [f"## {entry.name}", describe(entry), f"![{entry.name}]({name})"]
    for title, reasons in (("Not audited", result.left_out), ("Unreadable", result.unreadable)):
        if reasons:
            lines = [f"- {name}: {reason}" for name, reason in reasons.items()]
            parts.append("\n".join([f"## {title}", "", *lines]))
    path = folder / "audit.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def summary(result: Audit) -> str:
    """Return the first lines of the report."""
    located = "their masks" if result.source == "masks" else "the maps of CLIP Surgery"
    named = ", ".join(f"**{entry.name}** (on {entry.cue})" for entry in result.leaning)
    if result.critical is None:
        verdict = f"Fewer than {MIN_CLASSES} classes were audited, so none is named."
    else:
        verdict = (
            f"Classes that lean on what is outside their object: {named or 'none'}. A class is "
            f"named from a robust z of {result.critical:.2f}; if lifts were normally distributed, "
            f"any class would be named in {result.false_alarms:.1%} of such audits."
        )
    return (
        f"# Audit of {result.data.name}\n\n{quantity(result.images, 'image')}, "
        f"{quantity(len(result.classes), 'class')} audited; objects located by {located}.\n\n"
        f"{verdict}"
    )


def table(result: Audit) -> str:
    """Return a row for each class."""
    header = [
        "class", "images", "lift", "z", "share outside", "area outside", "heads",
        "recall", "without", "false calls", "without",
    ]  # fmt: skip
    rows = [
        [
            f"**{entry.name}**" if entry.leans else entry.name,
            str(entry.images),
            f"{entry.lift:+.4f}",
            f"{entry.z:+.1f}",
            f"{entry.share:.0%}",
            f"{entry.area:.0%}",
            ", ".join(f"{head.block}.{head.head}" for head in entry.heads) or "-",
            f"{entry.before.recall:.0%}",
            f"{entry.after.recall:.0%}",
            f"{entry.before.false_calls:.1%}",
            f"{entry.after.false_calls:.1%}",
        ]
        for entry in result.classes
    ]
    return markdown(header, rows)


def describe(entry: ClassAudit) -> str:
    """Return a paragraph about a class."""
    heads = ", ".join(
        f"block {head.block} head {head.head} ({head.lift:+.4f})" for head in entry.heads
    )
    cue = "" if entry.cue is None else describe_cue(entry.name, entry.cue) + "\n\n"
    return (
        f"{cue}{entry.share:.0%} of the positive evidence lies outside the object, which leaves "
        f"{entry.area:.0%} of the patches; lift {entry.lift:+.4f}, z {entry.z:+.1f}. Heads that "
        f"carry half of the excess: {heads or 'none'}. Scored without them, the class is "
        f"recognized in {entry.after.recall:.0%} of its images (before: {entry.before.recall:.0%}) "
        f"and called in {entry.after.false_calls:.1%} of the others (before: "
        f"{entry.before.false_calls:.1%}). Below: the images with the most evidence outside the "
        "object, and that evidence."
    )


def describe_cue(name: str, cue: Cue) -> str:
    """Return a paragraph about the cue of a class."""
    verdict = f"The cue is **{cue}**." if cue.place else "The cue could not be located."
    changes = " and ".join(
        f"{_describe_rise(rise)} with {part}"
        for rise, part in ((cue.border, "the border"), (cue.background, "the rest of it"))
    )
    texts = ", ".join(f"{text} ({rise:+.3f})" for text, rise in cue.texts)
    return (
        f"{verdict} The background of images of {name} was pasted into images that do not show the "
        f"class. The evidence for {name} changed {changes}."
        + (f" Texts whose cosines rose most: {texts}." if texts else "")
    )


def _describe_rise(rise: Rise) -> str:
    if math.isnan(rise.mean):
        return "by an unknown amount (no image has a patch of it)"
    if math.isnan(rise.error):
        return f"by {rise.mean:+.3f} (a single image, so no standard error)"
    return f"by {rise.mean:+.3f} (standard error {rise.error:.3f})"


def lifts_figure(result: Audit) -> Figure:
    """Draw the lifts of the classes as bars, named classes in another color."""
    entries = result.classes[:MAX_BARS][::-1]
    figure = Figure(figsize=(6, 0.8 + 0.2 * len(entries)), layout="constrained")
    axis = figure.subplots()
    colors = ["#d55e00" if entry.leans else "#0072b2" for entry in entries]
    places = np.arange(len(entries))
    axis.barh(places, [entry.lift for entry in entries], color=colors)
    axis.set_yticks(places, [fit_text(entry.name, 1.5, 8)[0] for entry in entries], fontsize=8)
    axis.set_xlabel("lift: evidence from outside the object, as cosine")
    axis.axvline(0, color="black", lw=0.8)
    return figure


def class_figure(result: Audit, entry: ClassAudit) -> Figure:
    """Draw the images with the most evidence for a class outside its object."""
    names = [name for name, _ in entry.strongest]
    images = [np.asarray(result.data[result.data.names.index(name)].image) for name in names]
    aspect = max(map(panel_aspect, images))
    figure, axes = panel_grid(2, len(images), aspect, titled=True, noted=False)
    maps = cover(entry.maps[None], result.covered, result.size)[0]
    scale = float(entry.maps.max())
    for column, name, image, evidence in zip(axes.T, names, images, maps, strict=True):
        show_image(column[0], image)
        title, size = fit_text(name, panel_width(column[0]), 8)
        column[0].set_title(title, fontsize=size, parse_math=False)
        show_map(column[1], image, evidence, View(sign="positive"), scale if scale > 0 else None)
    return figure


def rows_of(entries: Sequence[ClassAudit]) -> list[str]:
    """Return a line for each class, for the terminal."""
    return [
        f"  {entry.lift:+.4f}  z {entry.z:+5.1f}  {entry.share:4.0%} outside  {entry.name}"
        + (f"  leans on {entry.cue}" if entry.leans else "")
        for entry in entries
    ]
