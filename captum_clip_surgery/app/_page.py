"""The page: what happens when a user does something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from captum_clip_surgery.app import _files as files
from captum_clip_surgery.app import _tabs as tabs
from captum_clip_surgery.app._code import python
from captum_clip_surgery.app._controls import ComponentValues
from captum_clip_surgery.app._downloads import Downloads, Shown
from captum_clip_surgery.app._images import (
    PageImage,
    Sessions,
    example_image,
    read_image,
)
from captum_clip_surgery.app._layout import TITLE, Layout, about_demo, add_guide, asset, header
from captum_clip_surgery.app._models import Models
from captum_clip_surgery.app._query import picture, with_query
from captum_clip_surgery.app._settings import Settings, default_settings, split_lines
from captum_clip_surgery.app._templates import html, notice
from captum_clip_surgery.app._uploads import take_file

#: Requests that may wait; further ones are rejected.
MAX_WAITING = 32
#: Seconds between searches for abandoned uploads, and the age at which they are deleted.
CLEANING = (60, 300)
#: All work shares one queue, so that one request is processed at a time.
QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
#: Text boxes that take effect when they are submitted.
SUBMITTED = ("texts", "minus", "distractors", "background", "caption")
WRITE_TEXTS = "Write what to look for, one text per line, then press Explain."

Updates = dict[Any, Any]
#: A computation that updates the page step by step.
Work = Callable[[], Iterator[Updates]]


class Page:
    """The page; `blocks` is what Gradio serves.

    Args:
        models: Models to choose from.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self._first = models.examples()[0]
        self.sessions = Sessions()
        self._running: list[Any] = []
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CLEANING) as blocks:
            self.layout = Layout(models)
            self.controls = self.layout.controls
            self._connect(blocks)
        add_guide(blocks, models)
        blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
        self.blocks = blocks

    # --- events ----------------------------------------------------------------------------------

    def _connect(self, blocks: gr.Blocks) -> None:
        layout, named = self.layout, self.controls.by_name
        results = list(layout.results.values())
        kept: list[Any] = [layout.kept_settings, layout.kept_image, layout.query.kept]
        changing = [layout.notice, layout.python, layout.upload, layout.header, layout.picture]
        changing += [*layout.query.components, *kept, layout.tabs, layout.link]
        options: dict[str, Any] = {
            "outputs": [*self.controls.all(), *results, *changing],
            "preprocess": False,  # settings check all that browsers send
            "trigger_mode": "always_last",  # of changes during work, the last one counts
            "show_progress": "minimal",
            "show_progress_on": results,
            "api_visibility": "private",
            **QUEUE,
        }
        values = set(self.controls.all())

        def on(
            *triggers: Any,
            fn: Callable[..., Any],
            inputs: set[Any] | None = None,
            js: str | None = None,
        ) -> None:
            inputs = values if inputs is None else inputs
            self._running.append(gr.on(triggers, fn, inputs=inputs, js=js, **options))

        def in_browser(*triggers: Any, js: str, inputs: Any = None) -> None:
            script = asset(js)
            gr.on(triggers, None, inputs, None, js=script, queue=False, api_visibility="private")

        changed = [named[name].input for name in named if name not in (*SUBMITTED, "tab", "query")]
        submitted = [layout.run.click, *(named[name].submit for name in SUBMITTED)]
        on(*submitted, fn=self._run)
        in_browser(*submitted, layout.examples.click, js="show.js")
        in_browser(layout.notice.change, js="tell.js", inputs=layout.notice)
        in_browser(*(one.change for one in kept), js="keep.js", inputs=kept)
        on(*changed, fn=self._run)
        for name, tab in layout.tab_items.items():
            on(tab.select, fn=self._on_select(name))
        on(layout.upload.upload, fn=self._on_upload, inputs=values | {layout.upload})
        asked = values | {layout.kept_settings}
        on(layout.query.upload.upload, fn=self._on_query, inputs=asked | {layout.query.upload})
        on(layout.query.remove.click, fn=self._on_remove, inputs=asked)
        on(layout.examples.click, fn=self._on_example)
        on(layout.results["maps"].click, fn=self._on_point)
        on(layout.open.upload, fn=self._on_open, inputs={layout.open})
        on(
            blocks.load,
            fn=self._on_load,
            inputs={layout.kept_settings},
            js=asset("restore.js"),
        )
        downloads = Downloads(layout, self._settings, self._shown, self._catching)
        self._running += downloads.connect(values, QUEUE)
        layout.stop.click(
            lambda: notice(["Stopped."]),
            None,
            layout.notice,
            cancels=self._running,
            queue=False,
            api_visibility="private",
        )
        blocks.unload(self._close)

    def _run(self, values: ComponentValues, request: gr.Request) -> Iterator[Updates]:
        """Explain the image with the current settings."""
        yield from self._catching(lambda: self._show(self._settings(values, request), request))

    def _on_select(self, name: str) -> Callable[..., Iterator[Updates]]:
        """Return the handler of a selected tab."""

        def select(values: ComponentValues, request: gr.Request) -> Iterator[Updates]:
            tab = self.controls.by_name["tab"]
            if values[tab] == name:  # selected by the page itself, which shows it already
                yield {self.layout.notice: gr.skip()}
                return

            def work() -> Iterator[Updates]:
                yield {tab: name}
                settings = replace(self._settings(values, request), tab=name)
                yield self.layout.query.opened(settings)
                yield from self._show(settings, request)

            yield from self._catching(work)

        return select

    def _on_upload(self, values: ComponentValues, request: gr.Request) -> Iterator[Updates]:
        """Show an uploaded or pasted image; its file is deleted as soon as it is read.

        An example's texts and caption are cleared; the user's own are explained at once.
        """
        upload, named = self.layout.upload, self.controls.by_name

        def work() -> Iterator[Updates]:
            content, name = take_file(values[upload])
            image = read_image(content, name)
            start = self._example_of(request)
            cleared: Updates = {}
            if start is not None:
                if split_lines(values[named["texts"]]) == start.texts:
                    cleared[named["texts"]] = ""
                if values[named["caption"]] == start.caption:
                    cleared[named["caption"]] = ""
            hints = self._model_hints(values[named["model"]] or "")
            yield {**self._set_image(image, request), upload: None, **cleared}
            yield from self._explain_or_await({**values, **cleared}, request, hints)

        yield from self._catching(work, {upload: None})

    def _on_query(self, values: ComponentValues, request: gr.Request) -> Iterator[Updates]:
        """Explain an uploaded query image beside the texts."""
        query = self.layout.query

        def work() -> Iterator[Updates]:
            image, kept = query.take(values[query.upload]), values[self.layout.kept_settings]
            updates = self._set_query(image, kept, request)
            yield {**updates, query.upload: None}
            yield from self._explain_or_await({**values, **updates}, request)

        yield from self._catching(work, {query.upload: None})

    def _on_remove(self, values: ComponentValues, request: gr.Request) -> Iterator[Updates]:
        """Remove the query image."""

        def work() -> Iterator[Updates]:
            updates = self._set_query(None, values[self.layout.kept_settings], request)
            yield updates
            yield from self._explain_or_await({**values, **updates}, request)

        yield from self._catching(work)

    def _on_example(
        self, event: gr.EventData, values: ComponentValues, request: gr.Request
    ) -> Iterator[Updates]:
        """Show an example with its own texts."""

        def work() -> Iterator[Updates]:
            example = _example_of(event)
            start = default_settings(example)
            picture = self._set_image(example_image(example), request)
            named = self.controls.by_name
            texts = {named["texts"]: "\n".join(start.texts), named["caption"]: start.caption}
            settings = replace(self._settings({**values, **texts}, request), point=None)
            yield {**picture, **self.controls.values(settings)}
            yield from self._show(settings, request)

        yield from self._catching(work)

    def _on_point(
        self, event: gr.EventData, values: ComponentValues, request: gr.Request
    ) -> Iterator[Updates]:
        """Show the scores at the point of a map that was clicked."""

        def work() -> Iterator[Updates]:
            settings = replace(self._settings(values, request), point=(event.x, event.y))
            yield self.controls.values(settings)
            yield from self._show(settings, request)

        yield from self._catching(work)

    def _on_open(self, values: ComponentValues, request: gr.Request) -> Iterator[Updates]:
        """Open a view from a file."""

        def work() -> Iterator[Updates]:
            content, _ = take_file(values[self.layout.open])
            yield from self._open(*files.read_view(content), request)

        yield from self._catching(work)

    def _on_load(self, values: ComponentValues, request: gr.Request) -> Iterator[Updates]:
        """Open what the browser tab kept, the view of a link, or the first example."""
        kept = values[self.layout.kept_settings]

        def work() -> Iterator[Updates]:
            view = files.read_kept(kept)
            if view is not None:
                yield from self._restore(*view, request)  # errors of the model leave the images
                return
            link = request.query_params.get("view")
            settings, image = default_settings(self._first), example_image(self._first)
            hints: tuple[str, ...] = ()
            if link:
                try:
                    settings, image = files.read_link(link)
                except ValueError as error:
                    hints = (f"The link cannot be opened: {error}",)
            yield from self._open(settings, image, None, request, hints)

        yield from self._catching(work)

    # --- sessions --------------------------------------------------------------------------------

    def _explain_or_await(
        self, values: ComponentValues, request: gr.Request, hints: tuple[str, ...] = ()
    ) -> Iterator[Updates]:
        """Explain the image, or say what to do if there is nothing to look for."""
        named = self.controls.by_name
        if split_lines(values[named["texts"]]) or values[named["query"]]:
            yield from self._show(self._settings(values, request), request, hints)
        else:
            yield self._await_texts(hints)

    def _restore(
        self,
        settings: Settings | None,
        image: PageImage,
        query: PageImage | None,
        hints: tuple[str, ...],
        request: gr.Request,
    ) -> Iterator[Updates]:
        if settings is not None:
            yield from self._open(settings, image, query, request, hints)
            return
        named = self.controls.by_name
        cleared = {named["texts"]: "", named["caption"]: ""}
        usual = self.controls.values(default_settings(self._first))
        yield {**self._set_image(image, request), **usual, **cleared}
        yield self._await_texts((*self._model_hints(""), *hints))

    def _await_texts(self, hints: tuple[str, ...]) -> Updates:
        """Clear results, and say what to do with an image without texts."""
        return {
            **dict.fromkeys(self.layout.results.values(), ""),
            self.layout.notice: notice([WRITE_TEXTS, *hints]),
            self.layout.python: "",
            self.layout.kept_settings: "",
        }

    def _model_hints(self, title: str) -> tuple[str, ...]:
        """Return a notice on the limits of the embedded model for photographs."""
        return (about_demo(self.models),) if self.models.get(title)[1].name is None else ()

    def _example_of(self, request: gr.Request) -> Settings | None:
        """Return the first view of the example that is shown, or None for a user's own image."""
        try:
            example = self.sessions.image(_session(request)).example
        except ValueError:  # no longer kept
            return None
        return None if example is None else default_settings(example)

    def _open(
        self,
        settings: Settings,
        image: PageImage,
        query: PageImage | None,
        request: gr.Request,
        hints: tuple[str, ...] = (),
    ) -> Iterator[Updates]:
        pictures = self._set_image(image, request)
        pictures |= self._set_query(query, settings.to_json(), request)
        pictures[self.layout.tabs] = gr.Tabs(selected=settings.tab)
        yield {**pictures, **self.controls.values(settings), **self.layout.query.opened(settings)}
        yield from self._show(settings, request, hints)

    def _set_image(self, image: PageImage, request: gr.Request) -> Updates:
        """Replace a user's image, drop everything cached of the previous one, and show it."""
        self.models.forget(self.sessions.set_image(_session(request), image))
        is_own = image.example is None
        return {
            self.layout.picture: picture(image, "Your image" if is_own else "The example"),
            self.layout.kept_image: files.encode_image(image),
        }

    def _set_query(self, image: PageImage | None, kept: Any, request: gr.Request) -> Updates:
        """Replace or remove a user's query image, and drop everything made of the previous one."""
        updates, gone = self.layout.query.put(image, _session(request))
        self.models.forget(gone)
        settings = with_query(kept, "" if image is None else image.name)
        return {**updates, self.layout.kept_settings: settings, self.layout.results["pair"]: ""}

    def _close(self, request: gr.Request) -> None:
        """Drop everything that is kept of a user."""
        session = _session(request)
        self.models.forget(self.sessions.close(session) | self.layout.query.close(session))
        # Gradio would keep the last results of thousands of users, images included.
        held = self.blocks.state_holder
        held.session_data.pop(session, None)
        held.time_last_used.pop(session, None)

    # --- results ---------------------------------------------------------------------------------

    def _settings(self, values: ComponentValues, request: gr.Request) -> Settings:
        return self.controls.settings(values, self.sessions.image(_session(request)).example)

    def _shown(self, settings: Settings, request: gr.Request) -> Shown:
        """Return what the page shows a user with the settings."""
        session = _session(request)
        explainer, model = self.models.get(settings.model)
        query = self.layout.query.of(settings, session)
        return Shown(explainer, model, self.sessions.image(session), settings, query)

    def _show(
        self, settings: Settings, request: gr.Request, hints: tuple[str, ...] = ()
    ) -> Iterator[Updates]:
        layout, shown = self.layout, self._shown(settings, request)
        model, image, query = shown.model, shown.image, shown.query
        if image.is_photo:
            hints = (*hints, *self._model_hints(settings.model))
        for result in tabs.show(shown.explainer, image, settings, query):
            if result is None:
                yield {layout.notice: gr.skip()}
                continue
            yield {
                layout.results[settings.tab]: result.html,
                layout.notice: notice([*hints, *result.hints]),
                layout.python: html("code", python=python(model, image, settings, query)),
                layout.link: gr.Textbox(visible=False),
                layout.kept_settings: settings.to_json(),
                layout.header: header(model, self.models),
            }

    def _catching(self, work: Work, on_error: Updates | None = None) -> Iterator[Updates]:
        """Show errors as messages; the previous result stays."""
        try:
            yield from work()
        except (TypeError, ValueError, ImportError) as error:
            message = notice([str(error)], is_error=True)
            yield {self.layout.notice: message, **(on_error or {})}


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def _example_of(event: gr.EventData) -> int:
    number = event.example
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"there is no example {number!r:.80}")
    return number
