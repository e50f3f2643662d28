"""Serves the page: on this machine alone unless asked otherwise, and with limits."""

from __future__ import annotations

import hmac
import os
import re
import signal
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

from captum_clip_surgery.app import tabs
from captum_clip_surgery.app.code import Model
from captum_clip_surgery.app.explaining import Explainer
from captum_clip_surgery.app.pictures import MAX_MEGABYTES, VISITORS, example_picture
from captum_clip_surgery.classifier import ZeroShotClassifier

#: Nothing is fetched from elsewhere, and no other page holds this one.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
BUSY = (
    "Too many requests are waiting. Try again in a minute, and reload the page if it shows no maps."
)
FONT = ["system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]


def serve(
    clip: ZeroShotClassifier,
    model: Model,
    host: str = "127.0.0.1",
    port: int | None = None,
    password: str | None = None,
    share: bool = False,
) -> None:
    """Serve the page until it is interrupted.

    Args:
        clip: the model; its texts do not matter.
        model: where it comes from, for the Python code.
        host: the address to listen on; "0.0.0.0" is every one this machine has.
        port: None is the first free one from 7860.
        password: asked of visitors, with any name; None lets everybody in.
        share: whether Gradio's servers make a public address for it.

    Raises:
        ImportError: without Gradio.
        OSError: a port that is taken.
        ValueError: an empty password.
    """
    if password is not None and not password:
        raise ValueError("the password is empty; leave the option out to let everybody in")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # so that nothing stays on the disk then either
    warnings.filterwarnings("ignore", message="the embedded model never learnt")  # the page says so
    with tempfile.TemporaryDirectory(prefix="clip-surgery-app-") as folder:
        gradio = _gradio(folder)
        from captum_clip_surgery.app.layout import asset
        from captum_clip_surgery.app.page import Page, default_settings

        explainer = Explainer(clip)
        page = Page(explainer, model)
        # So that the first visitor need not wait.
        tabs.complete(explainer, example_picture(0), default_settings())
        _, local, public = page.blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=None if password is None else _door(password),
            auth_message="Any name, and the password that you were given.",
            state_session_capacity=VISITORS,
            max_file_size=2 * MAX_MEGABYTES * 2**20,  # of views; pictures have their own limit
            footer_links=[],
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=_theme(gradio),
            css=asset("page.css"),
            js=asset("paste.js"),
            app_kwargs={"middleware": [_headers()], "exception_handlers": {503: _busy}},
        )
        print(f"The page is at {public or local}", flush=True)
        page.blocks.block_thread()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _gradio(folder: str) -> Any:
    """Gradio, told before it is imported to send nothing home and where its files go."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(Path(folder))
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            'the page needs gradio; install the extra: pip install "captum_clip_surgery[app]"'
        ) from error
    from gradio import processing_utils

    # It would fetch what an address leads to, for any visitor who names one.
    processing_utils.async_ssrf_protected_get = _refuse_address
    return gradio


async def _refuse_address(url: str) -> Any:
    raise ValueError(f"addresses such as {url[:200]} are not fetched; choose a file")


def _theme(gradio: Any) -> Any:
    """Gradio's own, with fonts of this machine and colours that contrast."""
    light, dark = "*primary_700", "*primary_200"
    return gradio.themes.Soft(primary_hue="indigo", font=FONT, font_mono=MONO).set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color=light,
        block_label_text_color_dark="white",
        block_title_text_color=light,
        block_title_text_color_dark="white",
        button_primary_background_fill=light,
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark=light,
        checkbox_border_color="*neutral_500",
        checkbox_border_width="1px",
        checkbox_label_background_fill_selected=light,
        checkbox_label_background_fill_selected_dark=light,
        color_accent=light,
        color_accent_soft="*primary_100",
        input_border_color="*neutral_500",
        input_border_width="1px",
        link_text_color=light,
        link_text_color_dark=dark,
    )


def _door(password: str) -> Any:
    def enters(name: str, given: str) -> bool:
        return hmac.compare_digest(given.encode(), password.encode())

    return enters


async def _busy(request: Any, error: Any) -> Any:
    """What a visitor is told where as many wait as may; Gradio has words of its own for 503."""
    from starlette.responses import JSONResponse

    return JSONResponse({"detail": BUSY}, status_code=429)


def _headers() -> Any:
    from starlette.middleware import Middleware

    class Headers:
        """Adds `HEADERS` to every answer; a file that is deleted meanwhile is not found."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            held: list[Any] = []  # the start of an answer with a file, until the file is open

            async def with_headers(message: Any) -> None:
                if message["type"] == "http.response.start":
                    added = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                    message["headers"] = [*message.get("headers", []), *added]
                    if "/file=" in scope["path"]:
                        held.append(message)
                        return
                while held:
                    await send(held.pop())
                await send(message)

            try:
                await self.app(scope, receive, with_headers)
            except (FileNotFoundError, RuntimeError) as error:
                # Browsers ask for uploads to show them, which are deleted once they are read:
                # before the answer begins, in starlette's words, or after.
                if not held and not re.match(r"File at path .* does not exist\.$", str(error)):
                    raise
                await send({"type": "http.response.start", "status": 404, "headers": []})
                await send({"type": "http.response.body", "body": b""})

    return Middleware(Headers)
