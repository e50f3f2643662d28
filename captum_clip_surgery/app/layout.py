"""The page: what stands where."""

from __future__ import annotations

from importlib.resources import files as resources
from typing import Any

import gradio as gr

from captum_clip_surgery.app import figures, markup
from captum_clip_surgery.app.code import Model
from captum_clip_surgery.app.controls import Controls
from captum_clip_surgery.app.explaining import Explainer
from captum_clip_surgery.app.files import OF_RESULT
from captum_clip_surgery.app.pictures import EXAMPLES, MAX_MEGABYTES, example_picture, scene

TITLE = "What CLIP sees"
TAB_TITLES = {
    "maps": "Maps",
    "segmentation": "Segmentation",
    "points": "Points and boxes",
    "words": "Words",
}
ABOUT_TABS = {
    "maps": "Where each method sees each text, the likeliest text first. Click a map to read the "
    "texts' scores there.",
    "segmentation": "Every pixel goes to the text that it is most like.",
    "points": "Points and boxes that ask the Segment Anything Model for what is named.",
    "words": "Where the picture shows each word of a sentence, and which words matter.",
}
ABOUT_DEMO = (
    "This is the embedded model: small, trained by this project on scenes of emoji. It shows how "
    "the page works; it is of no use for photographs, for which another model is named at start."
)


def asset(name: str) -> str:
    """A file of this package as text."""
    return (resources("captum_clip_surgery.app") / name).read_text(encoding="utf-8")


class Layout:
    """The components of the page, made within Gradio's blocks.

    Args:
        explainer: of the model.
        model: where it comes from.
    """

    def __init__(self, explainer: Explainer, model: Model) -> None:
        self.explainer = explainer
        self.controls = Controls(explainer)
        self.results: dict[str, Any] = {}
        self._lay_out(model)

    def _lay_out(self, model: Model) -> None:
        about = ABOUT_DEMO if model.name is None else f"The model is {model.name}."
        gr.HTML(f"<header><h1>{TITLE}</h1><p>{markup.escape(about)}</p></header>")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                self._inputs()
            with gr.Column(scale=3, min_width=320):
                self.notice = gr.HTML(elem_id="ccs-notices", apply_default_css=False)
                self._tabs()
                self._downloads()

    def _inputs(self) -> None:
        self.upload = gr.Image(
            label="Your picture",
            sources=["upload", "clipboard"],
            type="filepath",
            height=170,
            buttons=[],
            placeholder=f"Drop, choose or paste one, up to {MAX_MEGABYTES} MB",
            elem_id="ccs-upload",
        )
        shown = [
            (figures.plain(example_picture(i).image, 96), ", ".join(scene(i).nouns))
            for i in range(len(EXAMPLES))
        ]
        self.examples = gr.HTML(
            markup.examples(shown),
            js_on_load=asset("examples.js"),
            elem_id="ccs-examples",
            apply_default_css=False,
        )
        self.controls.texts()
        with gr.Row():
            self.run = gr.Button("Explain", variant="primary", min_width=80, elem_id="ccs-run")
            self.stop = gr.Button("Stop", min_width=80, elem_id="ccs-stop")
        if self.explainer.clip.vocabulary is not None:
            with gr.Accordion("Nouns that the model knows", open=False):
                gr.HTML(f"<p>{markup.escape(', '.join(self.explainer.clip.vocabulary))}</p>")
        with gr.Accordion("Methods and model", open=False, elem_id="ccs-options"):
            self.controls.options()
        with gr.Accordion("Look", open=False, elem_id="ccs-look"):
            self.controls.look()
        with gr.Accordion("Scores at a point", open=False, elem_id="ccs-at-point"):
            self.controls.point()
        self.controls.hidden()

    def _tabs(self) -> None:
        inputs = {
            "segmentation": self.controls.background,
            "points": self.controls.prompts,
            "words": self.controls.caption,
        }
        self.tab_items = {}
        with gr.Tabs(selected="maps", elem_id="ccs-tabs") as self.tabs:
            for name, title in TAB_TITLES.items():
                with gr.Tab(title, id=name) as self.tab_items[name]:
                    gr.HTML(f'<p class="ccs-about">{ABOUT_TABS[name]}</p>')
                    if name in inputs:
                        inputs[name]()
                    self.results[name] = gr.HTML(
                        js_on_load=asset("click.js") if name == "maps" else None,
                        elem_id=f"ccs-{name}",
                        min_height=200,
                        apply_default_css=False,
                    )

    def _downloads(self) -> None:
        with gr.Accordion("Take it with you", open=True, elem_id="ccs-downloads"):
            with gr.Row():
                self.downloads = {
                    name: gr.Button(name, size="sm", min_width=80, elem_id=f"ccs-get-{name}")
                    for name in (*OF_RESULT, "Python", "View", "Link")
                }
                self.open = gr.UploadButton(
                    "Open a view",
                    file_types=[".json"],
                    size="sm",
                    min_width=80,
                    elem_id="ccs-open",
                )
            self.link = gr.Textbox(
                label="Link to this view", visible=False, buttons=["copy"], elem_id="ccs-link"
            )
            self.handed = gr.JSON(visible="hidden")
        with gr.Accordion("The Python that repeats it", open=False, elem_id="ccs-python"):
            self.python = gr.HTML(apply_default_css=False)
