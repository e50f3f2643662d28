"""What visitors of the page may send without a browser: nobody else's files, time or pictures."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.app._code import Model
from captum_clip_surgery.app._explaining import Explainer
from captum_clip_surgery.app._images import example_scene
from tests._helpers.served import Server, Visitor, end, free_port, serve, until_work_begins
from tests._helpers.waiting import wait_until

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = serve(tmp_path_factory.mktemp("served"))
    yield found
    end(found)


@pytest.mark.parametrize("declared", [False, True], ids=["plain", "declared a file"])
@pytest.mark.parametrize("control", ["ccs-upload", "ccs-query-upload", "ccs-open"])
def test_files_of_the_machine_are_neither_shown_nor_deleted(
    server: Server, tmp_path: Path, control: str, declared: bool
) -> None:
    path = tmp_path / "private.png"
    Image.fromarray(example_scene(1).image).save(path)
    visitor = Visitor(server)
    given = {"path": str(path), "orig_name": "private.png"}
    if declared:
        given["meta"] = {"_type": "gradio.FileData"}  # type: ignore[assignment]
    answer = visitor.asks(control, "upload", **{control: given})
    assert path.exists()
    if control != "ccs-open" and not declared:  # Gradio refuses the others, without a word
        assert "No file was uploaded; choose it again." in answer
    view = visitor.asks("ccs-get-View", "click")
    assert "private.png" not in answer + view


def test_addresses_are_not_fetched(server: Server) -> None:
    """Not even those that Gradio's own guard lets pass."""
    visitor = Visitor(server)
    given = {"path": "https://captum.ai/logo.png", "meta": {"_type": "gradio.FileData"}}
    answer = visitor.asks("ccs-upload", "upload", **{"ccs-upload": given})
    assert "image" not in json.loads(answer.rpartition("data:")[2]).get("output", {})
    log = server.log.read_text(encoding="utf-8")
    assert "addresses such as https://captum.ai/logo.png are not fetched" in log
    server.log.write_text(log.replace("Traceback", "traceback"), encoding="utf-8")


@pytest.mark.parametrize(("control", "event"), [("ccs-run", "click"), ("ccs-get-PNG", "click")])
def test_who_leaves_holds_up_nobody(server: Server, control: str, event: str) -> None:
    """Work that would take minutes ends where its visitor has gone."""
    leaving, staying = Visitor(server), Visitor(server)
    heavy = {
        "ccs-texts": "\n".join(f"star {sign}" for sign in "abcdefghijklmnopqrstuvwx"),
        "ccs-methods": ["KernelShap", "Occlusion"],
    }
    leaving.joins(control, event, **heavy)
    with leaving.listens() as stream:
        until_work_begins(stream)
    answer = staying.asks("ccs-run", "click")
    assert "zebra" in answer


def test_nothing_of_who_left_is_held() -> None:
    """Neither by the page nor by Gradio, which keeps what it showed."""
    from captum_clip_surgery.app._models import Models
    from captum_clip_surgery.app._page import Page

    page = Page(Models([(Explainer(ZeroShotClassifier.demo(["star"])), Model())]))
    _, address, _ = page.blocks.launch(
        server_port=free_port(), prevent_thread_lock=True, quiet=True, ssr_mode=False
    )
    try:
        visitor = Visitor(SimpleNamespace(address=address.rstrip("/")))
        with visitor.stays():
            visitor.asks("ccs-run", "click")
            held = page.blocks.state_holder
            assert visitor.session in held.session_data
            assert page.sessions.image(visitor.session)
        wait_until(
            lambda: not {visitor.session} & {*held.session_data, *held.time_last_used},
            "the end of the visit",
        )
        with pytest.raises(ValueError, match="no longer in memory"):
            page.sessions.image(visitor.session)
    finally:
        page.blocks.close()


def test_what_stops_a_service_leaves_nothing_behind(tmp_path: Path) -> None:
    server = serve(tmp_path)
    end(server, signal.SIGTERM)
