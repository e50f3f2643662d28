"""The query image: an image that stands beside the texts, and is explained like one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import gradio as gr

from captum_clip_surgery.app._controls import Controls, image_upload
from captum_clip_surgery.app._figures import plain
from captum_clip_surgery.app._files import encode_image
from captum_clip_surgery.app._images import QUERY_TITLE, PageImage, Sessions, read_image
from captum_clip_surgery.app._settings import MAX_JSON, Settings, printable
from captum_clip_surgery.app._templates import html
from captum_clip_surgery.app._uploads import take_file


class QueryImages:
    """Components of the query image, created within Gradio's blocks, and the users' images.

    Args:
        controls: Controls of the page, among which is the name of the query image.
    """

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        self._sessions = Sessions()
        with gr.Accordion(QUERY_TITLE, open=False, elem_id="ccs-queries") as self.accordion:
            self.upload = image_upload("Query image", "Drop or choose an image", "ccs-query-upload")
            self.picture = gr.HTML(elem_id="ccs-query", apply_default_css=False)
            self.remove = gr.Button("Remove", size="sm", visible=False, elem_id="ccs-query-remove")
            controls.minus()
        self.kept = gr.JSON(visible="hidden")
        #: Components that change with the query image, apart from controls.
        self.components = [self.accordion, self.upload, self.picture, self.remove]

    def take(self, upload: Any) -> PageImage:
        """Return an uploaded image; its file is deleted as soon as it is read.

        Raises:
            ValueError: If the file is not an image within limits.
        """
        content, name = take_file(upload)
        return read_image(content, printable(name))

    def put(self, image: PageImage | None, session: str) -> tuple[dict[Any, Any], set[str]]:
        """Replace a user's query image; None removes it.

        Returns:
            Updates of the page, and digests of images that no session uses as a query.
        """
        sessions = self._sessions
        gone = sessions.close(session) if image is None else sessions.set_image(session, image)
        updates = {
            self._controls.by_name["query"]: "" if image is None else image.name,
            self.picture: "" if image is None else picture(image, "The query image"),
            self.remove: gr.Button(visible=image is not None),
            self.kept: None if image is None else encode_image(image),
        }
        return updates, gone

    def of(self, settings: Settings, session: str) -> PageImage | None:
        """Return the query image that settings name, or None if they name none.

        Raises:
            ValueError: If it is no longer kept.
        """
        if not settings.query:
            return None
        try:
            image = self._sessions.image(session)
        except ValueError:
            raise ValueError("the query image is no longer in memory; choose it again") from None
        return replace(image, name=settings.query)

    def opened(self, settings: Settings) -> dict[Any, Any]:
        """Return the update that shows what settings ask for beside texts."""
        is_asked = settings.tab == "pair" or bool(settings.query or settings.minus)
        return {self.accordion: gr.Accordion(open=True) if is_asked else gr.skip()}

    def close(self, session: str) -> set[str]:
        """Drop a user's query image, and return the digests of images that no session uses."""
        return self._sessions.close(session)


def with_query(kept: Any, name: str) -> str:
    """Return kept settings with the name of another query image, or "" for none.

    Args:
        kept: The settings as JSON, or what a browser sent for them; "" if there are none.
        name: Name of the query image that is kept beside them, or "" without one.
    """
    try:
        settings = json.loads(kept) if len(kept) <= MAX_JSON else None
    except (TypeError, ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        return ""
    return json.dumps({**settings, "query": name}, ensure_ascii=False)


def picture(image: PageImage, alt: str) -> str:
    """Return HTML that shows an image as it is."""
    return html("picture", drawn=plain(image.pixels), image=image, alt=alt)
