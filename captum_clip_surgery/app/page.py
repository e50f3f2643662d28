"""The page: what happens when a visitor does something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from captum_clip_surgery.app import code, files, markup, tabs
from captum_clip_surgery.app.explaining import Explainer
from captum_clip_surgery.app.layout import TITLE, Layout, asset
from captum_clip_surgery.app.pictures import Shown, Visitors, example_picture, read_picture, scene
from captum_clip_surgery.app.settings import Settings

WAITING = 32  # visitors whose requests wait; more are told to come back
#: Seconds between looks for uploads that nobody took, and the age at which they go.
CLEANING = (60, 300)
#: In a queue of their own: one model, one after another.
QUEUE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}

Given = Mapping[Any, Any]
Updates = dict[Any, Any]


def default_settings(example: int = 0) -> Settings:
    """What a visitor meets: an example with its own nouns as texts."""
    shown = scene(example)
    return Settings(texts=shown.nouns, caption=shown.caption, example=example)


class Page:
    """The page of one model.

    Args:
        explainer: of the model.
        model: where it comes from, for the Python code.

    `blocks` is what Gradio serves.
    """

    def __init__(self, explainer: Explainer, model: code.Model) -> None:
        self.explainer = explainer
        self.model = model
        self.visitors = Visitors()
        self._running: list[Any] = []
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=CLEANING) as blocks:
            self.at = Layout(explainer, model)
            self.controls = self.at.controls
            self._connect(blocks)
        blocks.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
        self.blocks = blocks

    # --- what happens ----------------------------------------------------------------------------

    def _connect(self, blocks: gr.Blocks) -> None:
        named = self.controls.by_name
        outputs = [*self.controls.all(), *self.at.results.values()]
        outputs += [self.at.notice, self.at.python, self.at.upload, self.at.tabs, self.at.link]
        options: dict[str, Any] = {
            "outputs": outputs,
            "preprocess": False,  # settings check all that browsers send, in words
            "trigger_mode": "always_last",  # of what is set while work is done, the last counts
            "show_progress": "minimal",
            "show_progress_on": list(self.at.results.values()),
            "api_visibility": "private",
            **QUEUE,
        }
        given = set(self.controls.all())

        def on(*triggers: Any, fn: Callable[..., Any], inputs: set[Any] | None = None) -> None:
            done = gr.on(triggers, fn, inputs=given if inputs is None else inputs, **options)
            self._running.append(done)

        written = ("texts", "distractors", "background", "caption")  # when they are submitted
        chosen = [named[name].input for name in named if name not in (*written, "tab")]
        on(self.at.run.click, *(named[name].submit for name in written), fn=self._run)
        on(*chosen, fn=self._run)
        for name, tab in self.at.tab_items.items():
            on(tab.select, fn=self._selecting(name))
        on(self.at.upload.upload, fn=self._receive, inputs=given | {self.at.upload})
        on(self.at.examples.click, fn=self._pick)
        on(self.at.results["maps"].click, fn=self._point)
        on(self.at.open.upload, fn=self._restore, inputs={self.at.open})
        on(blocks.load, fn=self._load, inputs=set())
        self._connect_downloads(given)
        self.at.stop.click(
            self._stopped, None, self.at.notice, cancels=self._running, queue=False,
            api_visibility="private",
        )  # fmt: skip
        blocks.unload(self._leave)

    def _connect_downloads(self, given: set[Any]) -> None:
        for name, button in self.at.downloads.items():
            if name == "Link":
                button.click(
                    self._link, given, [self.at.link, self.at.notice], preprocess=False,
                    api_visibility="private",
                ).then(None, self.at.link, self.at.link, js=asset("link.js"))  # fmt: skip
                continue
            made = button.click(
                self._downloading(name),
                given,
                [self.at.handed, self.at.notice],
                preprocess=False,
                api_visibility="private",
                **QUEUE,
            )
            self._running.append(made)
            made.then(None, self.at.handed, None, js=asset("save.js"))

    def _run(self, given: Given, request: gr.Request) -> Iterator[Updates]:
        """Explain what is set."""
        yield from self._told(lambda: self._showing(self._settings(given, request), request))

    def _selecting(self, name: str) -> Callable[..., Iterator[Updates]]:
        """What happens when a tab is selected."""

        def select(given: Given, request: gr.Request) -> Iterator[Updates]:
            tab = self.controls.by_name["tab"]
            if given[tab] == name:  # as it is opened by the page itself, which shows it already
                yield {self.at.notice: gr.skip()}
                return

            def do() -> Iterator[Updates]:
                yield {tab: name}
                settings = replace(self._settings(given, request), tab=name)
                yield from self._showing(settings, request)

            yield from self._told(do)

        return select

    def _receive(self, given: Given, request: gr.Request) -> Iterator[Updates]:
        """A picture that was uploaded or pasted; its file goes as soon as it is read."""

        def do() -> Iterator[Updates]:
            content, name = _taken(given[self.at.upload])
            self._bring(read_picture(content, name), request)
            yield {self.at.upload: None}
            yield from self._showing(self._settings(given, request), request)

        yield from self._told(do, {self.at.upload: None})

    def _pick(self, event: gr.EventData, given: Given, request: gr.Request) -> Iterator[Updates]:
        """An example, with its own texts."""

        def do() -> Iterator[Updates]:
            start = default_settings(_index(event))
            self._bring(example_picture(_index(event)), request)
            named = self.controls.by_name
            texts = {named["texts"]: "\n".join(start.texts), named["caption"]: start.caption}
            settings = replace(self._settings({**given, **texts}, request), point=None)
            yield self.controls.values(settings)
            yield from self._showing(settings, request)

        yield from self._told(do)

    def _point(self, event: gr.EventData, given: Given, request: gr.Request) -> Iterator[Updates]:
        """A click on a map."""

        def do() -> Iterator[Updates]:
            settings = replace(self._settings(given, request), point=(event.x, event.y))
            yield self.controls.values(settings)
            yield from self._showing(settings, request)

        yield from self._told(do)

    def _restore(self, given: Given, request: gr.Request) -> Iterator[Updates]:
        """A view from a file."""

        def do() -> Iterator[Updates]:
            content, _ = _taken(given[self.at.open])
            yield from self._opened(*files.read_view(content), request)

        yield from self._told(do)

    def _load(self, given: Given, request: gr.Request) -> Iterator[Updates]:
        """A visitor comes, perhaps by a link."""

        def do() -> Iterator[Updates]:
            link = request.query_params.get("view")
            settings, picture = default_settings(), example_picture(0)
            hints: tuple[str, ...] = ()
            if link:
                try:
                    settings, picture = files.read_link(link)
                except ValueError as error:
                    hints = (f"The link cannot be opened: {error}",)
            yield from self._opened(settings, picture, request, hints)

        yield from self._told(do)

    def _opened(
        self, settings: Settings, picture: Shown, request: gr.Request, hints: tuple[str, ...] = ()
    ) -> Iterator[Updates]:
        self._bring(picture, request)
        yield {**self.controls.values(settings), self.at.tabs: gr.Tabs(selected=settings.tab)}
        yield from self._showing(settings, request, hints)

    def _bring(self, picture: Shown, request: gr.Request) -> None:
        """Keep a visitor's picture, and nothing of the one before."""
        for digest in self.visitors.bring(_visitor(request), picture):
            self.explainer.forget(digest)

    def _leave(self, request: gr.Request) -> None:
        """Nothing of a visitor's picture is kept."""
        visitor = _visitor(request)
        for digest in self.visitors.leave(visitor):
            self.explainer.forget(digest)
        # Gradio would keep what it last showed to thousands of visitors, pictures and all.
        held = self.blocks.state_holder
        held.session_data.pop(visitor, None)
        held.time_last_used.pop(visitor, None)

    def _stopped(self) -> str:
        return markup.notice(["Stopped."])

    # --- what it comes to ------------------------------------------------------------------------

    def _settings(self, given: Given, request: gr.Request) -> Settings:
        return self.controls.settings(given, self.visitors.picture(_visitor(request)).example)

    def _showing(
        self, settings: Settings, request: gr.Request, hints: tuple[str, ...] = ()
    ) -> Iterator[Updates]:
        picture = self.visitors.picture(_visitor(request))
        for result in tabs.show(self.explainer, picture, settings):
            if result is None:
                yield {self.at.notice: gr.skip()}
                continue
            yield {
                self.at.results[settings.tab]: result.html,
                self.at.notice: markup.notice([*hints, *result.hints]),
                self.at.python: markup.script(code.python(self.model, picture, settings)),
                self.at.link: gr.Textbox(visible=False),
            }

    def _told(
        self, do: Callable[[], Iterator[Updates]], at_failure: Updates | None = None
    ) -> Iterator[Updates]:
        """What cannot be done is told in words, and the result before it stays."""
        try:
            yield from do()
        except (TypeError, ValueError, ImportError) as error:
            told = markup.notice([str(error)], wrong=True)
            yield {self.at.notice: told, **(at_failure or {})}

    def _downloading(self, name: str) -> Callable[..., Iterator[Updates]]:
        """What happens when a kind of file is asked for."""

        def download(given: Given, request: gr.Request) -> Iterator[Updates]:
            yield {self.at.handed: None}  # the file before, should this one be stopped

            def do() -> Iterator[Updates]:
                for file in self._file(name, self._settings(given, request), request):
                    # Where none is made yet, work ends if the visitor leaves or stops it.
                    yield {self.at.handed: None if file is None else file.to_dict()}

            yield from self._told(do)

        return download

    def _file(
        self, name: str, settings: Settings, request: gr.Request
    ) -> Iterator[files.File | None]:
        """A file, and None as long as it is not made."""
        picture = self.visitors.picture(_visitor(request))
        if name == "Python":
            yield files.script(self.model, picture, settings)
        elif name == "View":
            yield files.view(picture, settings)
        else:
            last = None
            for result in tabs.show(self.explainer, picture, settings):
                last = result or last
                yield None
            assert last is not None  # a tab shows something, or raises
            yield files.OF_RESULT[name](last, settings)

    def _link(self, given: Given, request: gr.Request) -> Updates:
        try:
            end = files.link(self._settings(given, request))
        except ValueError as error:
            told = markup.notice([str(error)], wrong=True)
            return {self.at.link: gr.Textbox(visible=False), self.at.notice: told}
        return {self.at.link: gr.Textbox(end, visible=True), self.at.notice: gr.skip()}


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash)


def _index(event: gr.EventData) -> int:
    number = event.example
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"there is no example {number!r:.80}")
    return number


def _taken(uploaded: Any) -> tuple[bytes, str]:
    """The bytes and the name of an uploaded file, which is deleted.

    Browsers may send any path: what does not lie among the uploads is neither read nor deleted.
    """
    if not isinstance(uploaded, Mapping) or not isinstance(uploaded.get("path"), str):
        raise ValueError("no file came; choose it again")
    try:
        path = Path(uploaded["path"]).resolve()
        uploads = Path(get_upload_folder()).resolve()
        if not path.is_relative_to(uploads) or not path.is_file():
            raise ValueError("no file came; choose it again")
        content = path.read_bytes()
    except OSError:
        raise ValueError("the file did not come through; choose it again") from None
    path.unlink(missing_ok=True)
    name = uploaded.get("orig_name")
    return content, Path(name).name[:100] if isinstance(name, str) else path.name
