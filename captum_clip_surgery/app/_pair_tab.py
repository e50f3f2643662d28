"""Tab that compares two images; it has images of its own, and leaves those of other tabs alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from captum_clip_surgery.app import _tabs as tabs
from captum_clip_surgery.app._controls import ComponentValues, image_upload
from captum_clip_surgery.app._figures import plain
from captum_clip_surgery.app._images import PageImage, Sessions, read_image
from captum_clip_surgery.app._models import Models
from captum_clip_surgery.app._templates import html
from captum_clip_surgery.app._uploads import take_file

#: Labels of the two images, in the order of `tabs.pair`.
SIDES = ("Query image", "Other image")
ABOUT = (
    "Which regions of two images match: lines connect those that raise the cosine of the images "
    "most, and the maps below show what each place adds."
)

Updates = dict[Any, Any]
#: Runs a computation that updates the page, and shows its errors, with further updates, if any.
Catching = Callable[..., Iterator[Updates]]


class PairTab:
    """Components of the tab, created within Gradio's tabs.

    Args:
        models: Models to choose from.
        model: Component with the title of the chosen model.
        notice: Component that shows messages.
    """

    def __init__(self, models: Models, model: Any, notice: Any) -> None:
        self.models, self.model, self.notice = models, model, notice
        self.sessions = {label: Sessions() for label in SIDES}
        self.uploads: dict[str, Any] = {}
        self.pictures: dict[str, Any] = {}
        gr.HTML(f'<p class="ccs-about">{ABOUT}</p>')
        with gr.Row():
            for label in SIDES:
                with gr.Column(min_width=200):
                    name = f"ccs-pair-{label.split()[0].lower()}"
                    self.uploads[label] = image_upload(label, "Drop or choose an image", name)
                    self.pictures[label] = gr.HTML(apply_default_css=False)
        self.run = gr.Button("Compare", variant="primary", elem_id="ccs-pair-run")
        self.result = gr.HTML(elem_id="ccs-pair", min_height=200, apply_default_css=False)

    def connect(self, blocks: gr.Blocks, catching: Catching, queue: dict[str, Any]) -> list[Any]:
        """Connect the tab's events, and return those that can be stopped.

        Args:
            blocks: The page.
            catching: Function that runs a computation and shows its errors.
            queue: Options of events that share the page's queue.
        """
        options: dict[str, Any] = {"preprocess": False, "api_visibility": "private", **queue}
        outputs = [self.result, self.notice]
        events = []
        for label, upload in self.uploads.items():
            shown = [upload, self.pictures[label], *outputs]
            handler = self._on_upload(label, catching)
            events.append(upload.upload(handler, {upload}, shown, **options))

        def run(values: ComponentValues, request: gr.Request) -> Iterator[Updates]:
            yield from catching(lambda: self._compare(values[self.model], request))

        events.append(self.run.click(run, {self.model}, outputs, **options))
        blocks.unload(self._close)
        return events

    def _on_upload(self, label: str, catching: Catching) -> Callable[..., Iterator[Updates]]:
        """Return the handler of an uploaded image; its file is deleted as soon as it is read."""
        upload = self.uploads[label]

        def work(values: ComponentValues, request: gr.Request) -> Iterator[Updates]:
            image = read_image(*take_file(values[upload]))
            self.sessions[label].set_image(str(request.session_hash), image)
            drawn = plain(image.pixels)
            picture = html("picture", drawn=drawn, file=image.name, is_own=True)
            cleared = {upload: None, self.result: "", self.notice: ""}
            yield {self.pictures[label]: picture, **cleared}

        def handler(values: ComponentValues, request: gr.Request) -> Iterator[Updates]:
            yield from catching(lambda: work(values, request), {upload: None})

        return handler

    def _compare(self, model: Any, request: gr.Request) -> Iterator[Updates]:
        query, image = (self._image(label, request) for label in SIDES)
        explainer, _ = self.models.get(model or "")
        yield {self.result: tabs.pair(explainer, query, image), self.notice: ""}

    def _image(self, label: str, request: gr.Request) -> PageImage:
        try:
            return self.sessions[label].image(str(request.session_hash))
        except ValueError:  # none was chosen, or it is no longer kept
            raise ValueError(f"the {label.lower()} is missing; choose it") from None

    def _close(self, request: gr.Request) -> None:
        """Drop a user's images."""
        for sessions in self.sessions.values():
            sessions.close(str(request.session_hash))
