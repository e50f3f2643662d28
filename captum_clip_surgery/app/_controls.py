"""Controls of the page, and the settings they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from captum_clip_surgery.app._models import Models
from captum_clip_surgery.app._settings import (
    COLOR_MAPS,
    FEATURE_SURGERY,
    MAX_TEXTS,
    Settings,
    check_flag,
    check_number,
    split_lines,
)
from captum_clip_surgery.app._templates import html
from captum_clip_surgery.attr._descriptions import title_of
from captum_clip_surgery.tasks._sam import INSTANCES
from captum_clip_surgery.visualization._scales import AUTO, SIGNS

#: What dropdowns show for None, which Gradio takes for nothing chosen.
NONE = {"side": "native", "cmap": "auto", "feature_surgery": "none"}
SIGN_TITLES = {
    "auto": "auto: around zero if a method's maps have both signs",
    "range": "lowest to highest",
    "all": "both signs, around zero",
    "positive": "positive only",
    "negative": "negative only",
    "absolute_value": "absolute value",
}
INSTANCE_TITLES = {"one": "one per text", "components": "one per region", "peaks": "one per peak"}

#: Values that browsers send, by component; untrusted.
ComponentValues = Mapping[Any, Any]


class Controls:
    """Components by the name of the setting, created where they are on the page.

    Args:
        models: Models to choose from.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self.by_name: dict[str, Any] = {}

    def texts(self) -> None:
        """Create the texts to explain."""
        self.by_name["texts"] = gr.Textbox(
            label="Texts, one per line",
            info=f"What to look for, at most {MAX_TEXTS}. Press Shift+Enter to explain.",
            lines=4,
            max_lines=MAX_TEXTS,
            elem_id="ccs-texts",
        )

    def minus(self) -> None:
        """Create the text that is subtracted."""
        self.by_name["minus"] = gr.Textbox(
            label="Text to subtract",
            info="Asks what speaks for each text and for the query image rather than for this "
            "text. Press Enter to explain.",
            elem_id="ccs-minus",
        )

    def options(self) -> None:
        """Create the model and the options of methods."""
        self.by_name["model"] = gr.Dropdown(
            self.models.titles,
            label="Model",
            info="Models that this page was started with.",
            visible=len(self.models.titles) > 1,
            elem_id="ccs-model",
        )
        self.by_name["methods"] = gr.CheckboxGroup(
            [(title_of(name), name) for name in self.models.methods()],
            label="Methods",
            elem_id="ccs-methods",
        )
        with gr.Accordion("What the methods do", open=False, elem_id="ccs-about-methods"):
            gr.HTML(html("methods", methods=self.models.methods()), apply_default_css=False)
        self.by_name["side"] = gr.Dropdown(
            [NONE["side"], *map(str, self.models.larger_sides())],
            label="Resolution",
            info="Side in pixels to which the image is resized. Larger is finer and slower.",
            elem_id="ccs-side",
        )
        self.by_name["feature_surgery"] = gr.Dropdown(
            [variant or NONE["feature_surgery"] for variant in FEATURE_SURGERY],
            label="Feature surgery",
            info="Removes from maps of surgery what all texts have in common.",
            elem_id="ccs-feature-surgery",
        )
        self.by_name["distractors"] = gr.Textbox(
            label="Distractors, one per line",
            info="Texts that compete in feature surgery but get no map.",
            lines=2,
            elem_id="ccs-distractors",
        )
        self.by_name["trust"] = gr.Checkbox(
            label="Show how far to trust each map",
            info="Compares each map with maps for four texts that the image does not show; slow "
            "methods take several times as long.",
            elem_id="ccs-trust",
        )

    def appearance(self) -> None:
        """Create the options of drawing."""
        self.by_name["opacity"] = gr.Slider(
            0, 1, step=0.05, label="Opacity of maps", elem_id="ccs-opacity", buttons=[]
        )
        self.by_name["cmap"] = gr.Dropdown(
            [name or NONE["cmap"] for name in COLOR_MAPS], label="Color map", elem_id="ccs-cmap"
        )
        self.by_name["sign"] = gr.Dropdown(
            [(SIGN_TITLES.get(sign, sign), sign) for sign in (AUTO, *SIGNS)],
            label="Values to draw",
            elem_id="ccs-sign",
        )

    def point(self) -> None:
        """Create the point whose scores are shown; a click on a map sets it, too."""
        self.by_name["pointed"] = gr.Checkbox(
            label="Show the scores of all texts at a point", elem_id="ccs-pointed"
        )
        for name, edge in (("across", "left"), ("down", "top")):
            self.by_name[name] = gr.Slider(
                0, 100, step=1, label=f"Percent from the {edge}", elem_id=f"ccs-{name}", buttons=[]
            )

    def background(self) -> None:
        """Create the options of segmentation."""
        self.by_name["background"] = gr.Textbox(
            label="Texts for the background, one per line",
            info="Describe everything else. If empty, every pixel is assigned to one of your "
            "texts.",
            lines=2,
            elem_id="ccs-background",
        )

    def prompts(self) -> None:
        """Create the options of points and boxes."""
        self.by_name["instances"] = gr.Radio(
            [(INSTANCE_TITLES.get(name, name), name) for name in INSTANCES],
            label="Prompts",
            elem_id="ccs-instances",
        )
        self.by_name["boxes"] = gr.Checkbox(label="Add boxes", elem_id="ccs-boxes")

    def caption(self) -> None:
        """Create the caption."""
        self.by_name["caption"] = gr.Textbox(
            label="Caption", info="A sentence; each word gets a map.", elem_id="ccs-caption"
        )

    def hidden(self) -> None:
        """Create the selected tab, which the tabs set, and the name of the query image."""
        self.by_name["tab"] = gr.Textbox("maps", visible="hidden", label="tab")
        self.by_name["query"] = gr.Textbox("", visible="hidden", label="query")

    def all(self) -> list[Any]:
        """Return all components."""
        return list(self.by_name.values())

    def settings(self, values: ComponentValues, example: int | None) -> Settings:
        """Return the settings that components stand for.

        Args:
            values: Values by component as the browser sent them, untrusted.
            example: Number of the example that is shown, or None for the user's own image.

        Raises:
            ValueError: If a value is rejected.
        """
        raw = {name: values[component] for name, component in self.by_name.items()}
        for name in ("texts", "distractors", "background"):
            raw[name] = split_lines(_string(raw[name], name))
        for name, none in NONE.items():
            raw[name] = None if raw[name] == none else raw[name]
        raw["side"] = None if raw["side"] is None else _integer(raw["side"], "resolution")
        raw["example"] = example
        across, down, pointed = (raw.pop(name) for name in ("across", "down", "pointed"))
        show_point = check_flag(pointed, "whether to show scores at a point")
        raw["point"] = (_fraction(across), _fraction(down)) if show_point else None
        for name in ("caption", "minus", "query"):
            raw[name] = _string(raw[name], name)
        if raw["model"] in (None, self.models.titles[0]):
            raw["model"] = ""  # so that views and links open where other models are served
        return Settings.from_dict(raw)

    def values(self, settings: Settings) -> dict[Any, Any]:
        """Return the values of components that stand for settings."""
        x, y = settings.point or (0.5, 0.5)
        values: dict[str, Any] = {
            **{name: getattr(settings, name) for name in self.by_name if hasattr(settings, name)},
            "texts": "\n".join(settings.texts),
            "distractors": "\n".join(settings.distractors),
            "background": "\n".join(settings.background),
            "methods": list(settings.methods),
            "model": settings.model or self.models.titles[0],
            "side": None if settings.side is None else str(settings.side),
            "pointed": settings.point is not None,
            "across": round(100 * x),
            "down": round(100 * y),
        }
        values |= {name: none for name, none in NONE.items() if values[name] is None}
        return {component: values[name] for name, component in self.by_name.items()}


def image_upload(label: str, placeholder: str, name: str) -> gr.Image:
    """Create a place for an image that users upload; `name` is its id."""
    return gr.Image(
        label=label,
        sources=["upload", "clipboard"],
        type="filepath",
        height=140,
        buttons=[],
        placeholder=placeholder,
        elem_id=name,
        elem_classes="ccs-upload",
    )


def _string(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, got {value!r:.80}")
    return value


def _integer(value: object, what: str) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"{what} must be a whole number, got {value!r:.80}") from None


def _fraction(percent: object) -> float:
    return check_number(percent, "the position of a point in percent", 0, 100) / 100
