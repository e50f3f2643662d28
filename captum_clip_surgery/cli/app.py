"""`app`: the page on which one tries a model without writing code."""

from __future__ import annotations

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

    if model is None:
        print(ABOUT_THE_DEMO_MODEL)
    clip = load_model(model, pretrained, ["a picture"], quiet=True)
    serving.serve(clip, code.Model(model, pretrained), host, port, password, share)
