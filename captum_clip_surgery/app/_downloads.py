"""Files and links of what the page shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from captum_clip_surgery.app import _files as files
from captum_clip_surgery.app import _tabs as tabs
from captum_clip_surgery.app._code import Model
from captum_clip_surgery.app._controls import ComponentValues
from captum_clip_surgery.app._explaining import Explainer
from captum_clip_surgery.app._images import PageImage
from captum_clip_surgery.app._layout import Layout, asset
from captum_clip_surgery.app._settings import Settings
from captum_clip_surgery.app._templates import notice

Updates = dict[Any, Any]


@dataclass(frozen=True)
class Shown:
    """All that determines what the page shows a user."""

    explainer: Explainer
    model: Model
    image: PageImage
    settings: Settings
    query: PageImage | None


class Downloads:
    """Handlers of the buttons that save a result, its code, or the view.

    Args:
        layout: Components of the page.
        settings: Returns the settings of a user, read from the page's controls.
        shown: Returns what the page shows with them.
        catching: Runs a computation that updates the page, and shows its errors.
    """

    def __init__(
        self,
        layout: Layout,
        settings: Callable[[ComponentValues, gr.Request], Settings],
        shown: Callable[[Settings, gr.Request], Shown],
        catching: Callable[..., Iterator[Updates]],
    ) -> None:
        self.layout = layout
        self._settings, self._shown, self._catching = settings, shown, catching

    def connect(self, values: set[Any], queue: dict[str, Any]) -> list[Any]:
        """Connect the buttons, and return the events that can be stopped.

        Args:
            values: Components whose values determine the view.
            queue: Options of events that share the page's queue.
        """
        layout, events = self.layout, []
        options: dict[str, Any] = {"preprocess": False, "api_visibility": "private"}
        for name, button in layout.downloads.items():
            if name == "Link":
                outputs = [layout.link, layout.notice]
                event = button.click(self._on_link, values, outputs, **options)
                event.then(None, layout.link, layout.link, js=asset("link.js"))
                continue
            outputs = [layout.file, layout.notice]
            event = button.click(self._on_download(name), values, outputs, **options, **queue)
            events.append(event)
            event.then(None, layout.file, None, js=asset("save.js"))
        return events

    def _on_link(self, values: ComponentValues, request: gr.Request) -> Updates:
        """Show a link to the current view."""
        layout = self.layout
        try:
            link = files.link(self._settings(values, request))
        except ValueError as error:
            message = notice([str(error)], is_error=True)
            return {layout.link: gr.Textbox(visible=False), layout.notice: message}
        return {layout.link: gr.Textbox(link, visible=True), layout.notice: gr.skip()}

    def _on_download(self, name: str) -> Callable[..., Iterator[Updates]]:
        """Return the handler of a kind of file."""

        def download(values: ComponentValues, request: gr.Request) -> Iterator[Updates]:
            yield {self.layout.file: None}  # clear the previous file, in case this is stopped

            def work() -> Iterator[Updates]:
                shown = self._shown(self._settings(values, request), request)
                for file in _file(name, shown):
                    yield {self.layout.file: None if file is None else file.to_dict()}

            yield from self._catching(work)

        return download


def _file(name: str, shown: Shown) -> Iterator[files.File | None]:
    """Yield None while a file is being made, so that it can be stopped, then the file."""
    image, settings, query = shown.image, shown.settings, shown.query
    if name == "Python":
        yield files.script(shown.model, image, settings, query)
    elif name == "View":
        yield files.view(image, settings, query)
    else:
        last = None
        for result in tabs.show(shown.explainer, image, settings, query):
            last = result or last
            yield None
        assert last is not None  # a tab gives a result or raises
        yield files.OF_RESULT[name](last, settings)
