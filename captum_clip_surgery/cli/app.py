"""`app`: the page on which one tries a model without writing code."""

from __future__ import annotations

import errno
import socket
from typing import Annotated

import typer

from captum_clip_surgery.cli.common import ABOUT_THE_DEMO_MODEL, Model, Pretrained, load_model


def app(
    model: Model = None,
    pretrained: Pretrained = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The first free one from 7860.")
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(envvar="CLIP_SURGERY_PASSWORD", help="Asked of visitors, with any name."),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Ask Gradio's servers for a public address.")
    ] = False,
) -> None:
    """A page in the browser: pictures, texts, methods, and what a model sees where."""
    from captum_clip_surgery.app import code, serving

    _check_free(host, port)
    if model is None:
        print(ABOUT_THE_DEMO_MODEL)
    clip = load_model(model, pretrained, ["a picture"], quiet=True)
    serving.serve(clip, code.Model.of(clip, model, pretrained), host, port, password, share)


def _check_free(host: str, port: int | None) -> None:
    """Before a model is loaded for nothing."""
    where = host if port is None else f"{host}, port {port}"
    try:
        # As in a URL, brackets may stand around an IPv6 address.
        found = socket.getaddrinfo(host.strip("[]"), port or 0, type=socket.SOCK_STREAM)
        family, kind, _, _, address = found[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} is taken; choose another --port") from None
        raise OSError(
            f"cannot listen at {where}: {error.strerror}; choose another --host or --port"
        ) from None
