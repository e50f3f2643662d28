"""Command `app`: the web demo."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace

from captum_clip_surgery.app import serve
from captum_clip_surgery.cli import _options
from captum_clip_surgery.cli._model import EMBEDDED_MODEL_NOTE, PLACEHOLDER, load_model
from captum_clip_surgery.models._sources import SCHEMES


def app(options: _options.App) -> None:
    """Run the command."""
    _check_address(options.server.host, options.server.port)
    name, pretrained = options.clip.model, options.clip.pretrained
    if name is None:
        print(EMBEDDED_MODEL_NOTE)
    clip = load_model(options.clip, PLACEHOLDER, quiet=True)
    more = []
    for also in options.also or ():
        other, tag = _split(also)
        chosen = replace(options.clip, model=other, pretrained=tag)
        more.append((load_model(chosen, PLACEHOLDER, quiet=True), other, tag))
    serve(clip, name, pretrained, more=more, **vars(options.server))


def _split(also: str) -> tuple[str, str | None]:
    """Return the name and the tag; names of folders and on hubs have a colon, and no tag."""
    if also.startswith(SCHEMES):
        return also, None
    name, _, tag = also.partition(":")
    return name, tag or None


def _check_address(host: str, port: int | None) -> None:
    """Raise OSError if the address cannot be listened on, before a model is loaded."""
    try:
        # An IPv6 address may be in brackets, as in a URL.
        addresses = socket.getaddrinfo(host.strip("[]"), port or 0, type=socket.SOCK_STREAM)
        family, kind, _, _, address = addresses[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} is in use; choose another --port") from None
        place = host if port is None else f"{host}, port {port}"
        raise OSError(
            f"cannot listen on {place}: {error.strerror}; choose another --host or --port"
        ) from None
