"""Server of the page: on this machine only unless configured otherwise, and with limits."""

from __future__ import annotations

import hmac
import os
import re
import signal
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captum_clip_surgery.classifier import ZeroShotClassifier

#: The page fetches nothing from elsewhere, and no other page embeds it.
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
    model: str | None = None,
    pretrained: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    password: str | None = None,
    share: bool = False,
    more: Sequence[tuple[ZeroShotClassifier, str | None, str | None]] = (),
) -> None:
    """Serve the page until it is interrupted.

    Args:
        clip: The classifier; its texts do not matter.
        model: Name by which open_clip loads the model, for the Python code; None means the
            embedded model.
        pretrained: Tag or checkpoint file, for the Python code.
        host: Address to listen on; "0.0.0.0" accepts connections from other machines.
        port: Port to listen on; None means the first free one from 7860.
        password: Password that users must enter, with any name; None requires none.
        share: Whether to request a public address from Gradio's servers.
        more: Further models that users can choose, each with its name and tag as `model` and
            `pretrained`.

    Raises:
        ImportError: If the extra `app` is not installed.
        OSError: If the port is taken.
        ValueError: If the password is empty, or a model is given twice.
    """
    if password is not None and not password:
        raise ValueError("password is empty; leave the option out to require none")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # so that temporary files are deleted then, too
    warnings.filterwarnings(
        "ignore", message="the embedded model was not trained on"
    )  # shown as a hint
    with tempfile.TemporaryDirectory(prefix="clip-surgery-app-") as folder:
        gradio = _import_gradio(folder)
        from captum_clip_surgery.app import _tabs as tabs
        from captum_clip_surgery.app._code import Model
        from captum_clip_surgery.app._explaining import Explainer
        from captum_clip_surgery.app._images import MAX_MEGABYTES, MAX_SESSIONS, example_image
        from captum_clip_surgery.app._layout import asset
        from captum_clip_surgery.app._models import Models
        from captum_clip_surgery.app._page import Page
        from captum_clip_surgery.app._settings import default_settings

        served = [(clip, model, pretrained), *more]
        models = Models([(Explainer(one), Model.of(one, *origin)) for one, *origin in served])
        page = Page(models)
        # Warm up, so that the first user need not wait.
        first = models.examples()[0]
        tabs.complete(models.explainers[0], example_image(first), default_settings(first))
        _, local, public = page.blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            auth=None if password is None else _password_check(password),
            auth_message="Enter any name, and the password that you were given.",
            state_session_capacity=MAX_SESSIONS,
            max_file_size=2 * MAX_MEGABYTES * 2**20,  # of views; images have their own limit
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


def _import_gradio(folder: str) -> Any:
    """Import Gradio, configured to report nothing and to keep its files in a folder."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(Path(folder))
    try:
        import cachetools  # noqa: F401
        import gradio
    except ImportError as error:
        raise ImportError(
            f"the page needs {error.name}; install the extra: "
            'pip install "captum_clip_surgery[app]"'
        ) from error
    from gradio import processing_utils

    # Gradio would fetch any address that a user sends.
    processing_utils.async_ssrf_protected_get = _reject_address
    return gradio


async def _reject_address(url: str) -> Any:
    raise ValueError(f"addresses such as {url[:200]} are not fetched; choose a file")


def _theme(gradio: Any) -> Any:
    """Return a theme of Gradio with fonts of this machine and enough contrast."""
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


def _password_check(password: str) -> Any:
    def is_right(name: str, entered: str) -> bool:
        return hmac.compare_digest(entered.encode(), password.encode())

    return is_right


async def _busy(request: Any, error: Any) -> Any:
    """Reject a request when too many wait; for 503 Gradio would show its own message."""
    from starlette.responses import JSONResponse

    return JSONResponse({"detail": BUSY}, status_code=429)


def _headers() -> Any:
    from starlette.middleware import Middleware

    class Headers:
        """Middleware that adds `HEADERS`, and answers 404 for files that have been deleted."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            held: list[Any] = []  # the start of a response with a file, until the file is open

            async def send_with_headers(message: Any) -> None:
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
                await self.app(scope, receive, send_with_headers)
            except (FileNotFoundError, RuntimeError) as error:
                # Browsers request uploads to show them, which are deleted once they are read:
                # before the response begins, with starlette's message, or after.
                if not held and not re.match(r"File at path .* does not exist\.$", str(error)):
                    raise
                await send({"type": "http.response.start", "status": 404, "headers": []})
                await send({"type": "http.response.body", "body": b""})

    return Middleware(Headers)
