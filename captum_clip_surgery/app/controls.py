"""The page's controls, and how settings come from them and go to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from captum_clip_surgery.app.explaining import Explainer
from captum_clip_surgery.app.settings import (
    COLOUR_MAPS,
    FORM_NAMES,
    MAX_TEXTS,
    Settings,
    flag,
    lines_of,
    number,
)
from captum_clip_surgery.tasks import INSTANCES
from captum_clip_surgery.visualization import SIGNS

OWN_SIDE = "the model's own"
SIGN_NAMES = {
    "range": "from lowest to highest",
    "all": "both, around zero",
    "positive": "positive alone",
    "negative": "negative alone",
    "absolute_value": "absolute value",
}
FORM_TITLES = {"auto": "automatic", "none": "none"}
INSTANCE_TITLES = {"one": "one per text", "components": "one per region", "peaks": "one per peak"}


class Controls:
    """Components by the name of what they set.

    Made where they stand on the page, one `with` block after another.
    """

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer
        self.by_name: dict[str, Any] = {}

    # --- making them -----------------------------------------------------------------------------

    def texts(self) -> None:
        self.by_name["texts"] = gr.Textbox(
            label="Texts, one a line",
            info=f"What to look for; at most {MAX_TEXTS}. Shift and Enter explains.",
            lines=4,
            max_lines=MAX_TEXTS,
            elem_id="ccs-texts",
        )

    def options(self) -> None:
        """How maps are found."""
        self.by_name["methods"] = gr.CheckboxGroup(
            list(self.explainer.methods), label="Methods", elem_id="ccs-methods"
        )
        self.by_name["side"] = gr.Dropdown(
            [OWN_SIDE, *map(str, self.explainer.sides()[1:])],
            label="Resolution",
            info="Side in pixels that the model sees; larger is finer and slower.",
            elem_id="ccs-side",
        )
        self.by_name["form"] = gr.Dropdown(
            [(FORM_TITLES.get(name, name), name) for name in FORM_NAMES],
            label="Form of feature surgery",
            info="What all texts share is taken away from the maps of surgery.",
            elem_id="ccs-form",
        )
        self.by_name["distractors"] = gr.Textbox(
            label="Distractors, one a line",
            info="Texts that compete in feature surgery and get no map.",
            lines=2,
            elem_id="ccs-distractors",
        )

    def look(self) -> None:
        """How maps are drawn."""
        self.by_name["opacity"] = gr.Slider(
            0, 1, step=0.05, label="Opacity of maps", elem_id="ccs-opacity", buttons=[]
        )
        self.by_name["colours"] = gr.Dropdown(
            list(COLOUR_MAPS), label="Colour map", elem_id="ccs-colours"
        )
        self.by_name["sign"] = gr.Dropdown(
            [(SIGN_NAMES.get(sign, sign), sign) for sign in SIGNS],
            label="Values shown",
            elem_id="ccs-sign",
        )

    def point(self) -> None:
        """Where scores are read; a click on a map sets it too."""
        self.by_name["pointed"] = gr.Checkbox(
            label="Show the texts' scores at a point", elem_id="ccs-pointed"
        )
        for name, where in (("across", "from the left"), ("down", "from the top")):
            self.by_name[name] = gr.Slider(
                0, 100, step=1, label=f"Point, percent {where}", elem_id=f"ccs-{name}", buttons=[]
            )

    def background(self) -> None:
        self.by_name["background"] = gr.Textbox(
            label="Texts for the background, one a line",
            info="What is no class; without one, every pixel belongs to a text.",
            lines=2,
            elem_id="ccs-background",
        )

    def prompts(self) -> None:
        self.by_name["instances"] = gr.Radio(
            [(INSTANCE_TITLES.get(name, name), name) for name in INSTANCES],
            label="Prompts",
            elem_id="ccs-instances",
        )
        self.by_name["boxes"] = gr.Checkbox(label="Boxes too", elem_id="ccs-boxes")

    def caption(self) -> None:
        self.by_name["caption"] = gr.Textbox(
            label="Caption", info="A sentence, whose words get a map each.", elem_id="ccs-caption"
        )

    def hidden(self) -> None:
        """The tab, which the tabs set."""
        self.by_name["tab"] = gr.Textbox("maps", visible="hidden", label="tab")

    # --- settings --------------------------------------------------------------------------------

    def all(self) -> list[Any]:
        return list(self.by_name.values())

    def settings(self, given: Mapping[Any, Any], example: int | None) -> Settings:
        """What the components say.

        Args:
            given: by component, raw as the browser sent it.
            example: the number of the one that is shown, None for a visitor's own picture.

        Raises:
            ValueError: a value that is refused; the browser may have sent anything.
        """
        raw = {name: given[component] for name, component in self.by_name.items()}
        for name in ("texts", "distractors", "background"):
            raw[name] = lines_of(_string(raw[name], name))
        raw["side"] = None if raw["side"] == OWN_SIDE else _number(raw["side"], "resolution")
        raw["example"] = example
        across, down, pointed = (raw.pop(name) for name in ("across", "down", "pointed"))
        shown = flag(pointed, "whether scores are shown at a point")
        raw["point"] = (_share(across), _share(down)) if shown else None
        raw["caption"] = _string(raw["caption"], "caption")
        return Settings.of(raw)

    def values(self, settings: Settings) -> dict[Any, Any]:
        """What the components show for settings."""
        x, y = settings.point or (0.5, 0.5)
        shown = {
            **{name: getattr(settings, name) for name in self.by_name if hasattr(settings, name)},
            "texts": "\n".join(settings.texts),
            "distractors": "\n".join(settings.distractors),
            "background": "\n".join(settings.background),
            "methods": list(settings.methods),
            "side": OWN_SIDE if settings.side is None else str(settings.side),
            "pointed": settings.point is not None,
            "across": round(100 * x),
            "down": round(100 * y),
        }
        return {component: shown[name] for name, component in self.by_name.items()}


def _string(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{what} is {value!r:.80}, no text")
    return value


def _number(value: object, what: str) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"{what} {value!r:.80} is no whole number") from None


def _share(percent: object) -> float:
    return number(percent, "a point's place in percent", 0, 100) / 100
