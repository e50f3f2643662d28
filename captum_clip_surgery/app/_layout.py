"""Layout of the page."""

from __future__ import annotations

from importlib.resources import files as resources
from typing import Any

import gradio as gr

from captum_clip_surgery.app import _figures as figures
from captum_clip_surgery.app._code import Model
from captum_clip_surgery.app._controls import Controls, image_upload
from captum_clip_surgery.app._files import OF_RESULT
from captum_clip_surgery.app._images import QUERY_TITLE, example_image, example_texts
from captum_clip_surgery.app._models import Models
from captum_clip_surgery.app._query import QueryImages
from captum_clip_surgery.app._templates import escape, html
from captum_clip_surgery.attr._descriptions import sentence_of, title_of
from captum_clip_surgery.attr._papers import PAPERS

TITLE = "What CLIP sees"
#: Path of the guide beside the page.
GUIDE = "guide"
TAB_TITLES = {
    "maps": "Maps",
    "segmentation": "Segmentation",
    "points": "Points and boxes",
    "words": "Words",
    "pair": "Two images",
}
ABOUT_TABS = {
    "maps": "Where each method sees each text, most similar text first. Click a map to enlarge it, "
    "and the enlarged map to read the scores of all texts at that point.",
    "segmentation": "Assigns every pixel to the text that it resembles most.",
    "points": "Points and boxes that prompt the Segment Anything Model for each text.",
    "words": "Where the image shows each word of a sentence, and which words matter.",
    "pair": "Which regions of your image and of the query image match: lines connect those that "
    "raise the cosine of the images most, and the maps below show what each place adds. Choose the "
    f"query image under “{QUERY_TITLE}”.",
}
OPTIONS_TITLE = "Methods and model"


def asset(name: str) -> str:
    """Return a file of this package as text."""
    return (resources("captum_clip_surgery.app") / name).read_text(encoding="utf-8")


def about_demo(models: Models) -> str:
    """Return what the embedded model is, and where to find a model for photographs."""
    remedy = (
        f"choose another model under “{OPTIONS_TITLE}”."
        if models.any_pretrained
        else "start the page with a pretrained model: "
        "clip-surgery app --model ViT-B-16 --pretrained openai"
    )
    return (
        "This is the embedded model. It knows 156 drawn objects and no photographs. "
        f"For photographs, {remedy}"
    )


def header(model: Model, models: Models) -> str:
    """Return the title of the page, and what the chosen model is."""
    about = about_demo(models) if model.name is None else f"The model is {model.title}."
    return html("header", title=TITLE, about=about, guide=GUIDE)


def guide(methods: list[str]) -> str:
    """Return the guide as Markdown, with the methods and their papers."""
    described = [
        f"- **{title_of(name)}**: {sentence_of(name)}"
        + (f" {PAPERS[name].to_markdown()}." if name in PAPERS else "")
        for name in methods
        if sentence_of(name)
    ]
    return "\n".join([f"# {TITLE}: guide\n", asset("guide.md"), "## Methods\n", *described])


def add_guide(blocks: gr.Blocks, models: Models) -> None:
    """Add the guide at its own address, under the same password as the page."""
    with blocks.route("Guide", GUIDE):
        gr.Markdown(guide(models.methods()), elem_id="ccs-guide")


class Layout:
    """Components of the page, created within Gradio's blocks.

    Args:
        models: Models to choose from.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self.controls = Controls(models)
        self.results: dict[str, Any] = {}
        self.header = gr.HTML(header(models.get("")[1], models))
        with gr.Row(elem_id="ccs-body"):
            with gr.Column(scale=1, min_width=320, elem_id="ccs-inputs"):
                self._add_inputs()
            with gr.Column(scale=3, min_width=320, elem_id="ccs-output"):
                self.notice = gr.HTML(elem_id="ccs-notices", apply_default_css=False)
                self._add_tabs()
                self._add_downloads()

    def _add_inputs(self) -> None:
        self.upload = image_upload("Your image", "Drop, choose or paste an image", "ccs-upload")
        self.picture = gr.HTML(elem_id="ccs-picture", apply_default_css=False)
        examples = [
            (number, figures.plain(example_image(number).pixels, 96), example_texts(number)[0])
            for number in self.models.examples()
        ]
        self.examples = gr.HTML(
            html("examples", examples=examples),
            js_on_load=asset("examples.js"),
            elem_id="ccs-examples",
            apply_default_css=False,
        )
        self.controls.texts()
        self.query = QueryImages(self.controls)
        with gr.Row():
            self.run = gr.Button("Explain", variant="primary", min_width=80, elem_id="ccs-run")
            self.stop = gr.Button("Stop", min_width=80, elem_id="ccs-stop")
        nouns = self.models.vocabulary()
        if nouns is not None:
            with gr.Accordion("Known nouns", open=False, elem_id="ccs-nouns"):
                gr.HTML(f"<p>{escape(', '.join(nouns))}</p>")
        with gr.Accordion(OPTIONS_TITLE, open=False, elem_id="ccs-options"):
            self.controls.options()
        with gr.Accordion("Appearance", open=False, elem_id="ccs-appearance"):
            self.controls.appearance()
        with gr.Accordion("Scores at a point", open=False, elem_id="ccs-at-point"):
            self.controls.point()
        self.controls.hidden()
        self.kept_settings = gr.Textbox(visible="hidden", label="kept settings")
        self.kept_image = gr.JSON(visible="hidden")

    def _add_tabs(self) -> None:
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
                        js_on_load=asset("click.js"),
                        elem_id=f"ccs-{name}",
                        min_height=200,
                        apply_default_css=False,
                    )

    def _add_downloads(self) -> None:
        with gr.Accordion("Download", open=True, elem_id="ccs-downloads"):
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
            self.file = gr.JSON(visible="hidden")
        with gr.Accordion("Python code for this result", open=False, elem_id="ccs-python"):
            self.python = gr.HTML(apply_default_css=False)
