"""The page as a visitor meets it: `clip-surgery app` in a process, and a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier, explain_pair
from captum_clip_surgery.app import _figures as figures
from captum_clip_surgery.app._images import (
    PHOTO_CAPTION,
    PHOTO_TEXTS,
    example_image,
    example_scene,
)
from captum_clip_surgery.app._settings import Settings
from captum_clip_surgery.attr import METHODS
from captum_clip_surgery.attr._descriptions import sentence_of, title_of
from captum_clip_surgery.attr._papers import PAPERS
from captum_clip_surgery.attr._registry import choose
from tests._helpers.served import CHROMIUM, Server, Visitor, chromium, end, serve, until_work_begins
from tests._helpers.tiny import tiny_model
from tests._helpers.tower_kinds import TINY
from tests._helpers.waiting import wait_until

gradio = pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here"),
]
AXE = (Path(__file__).parents[1] / "data" / "axe.min.js").read_text(encoding="utf-8")
TITLES = {
    "maps": "Maps",
    "segmentation": "Segmentation",
    "points": "Points and boxes",
    "words": "Words",
    "pair": "Two images",
}
PATIENCE = 60_000  # milliseconds
#: Minutes of work.
HEAVY = {
    "ccs-texts": "\n".join(f"star {sign}" for sign in "abcdefghijklmnopqrstuvwx"),
    "ccs-methods": ["KernelShap", "Occlusion"],
}
#: What axe finds in Gradio's own components, by rule and a part of the element.
OF_GRADIO = {("label-content-name-mismatch", "upload-container")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = serve(tmp_path_factory.mktemp("served"))
    yield found
    end(found)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = chromium(driver)
        yield found
        found.close()


Come = Callable[..., Any]


@pytest.fixture
def come(browser: Any, server: Server) -> Iterator[Come]:
    """A new visitor's page; nothing may be fetched from elsewhere, and no script may fail."""
    contexts, wrong = [], []

    def visit(end: str = "", wait: bool = True, at: Server = server, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        context.on("weberror", lambda error: wrong.append(str(error.error)))
        context.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
        context.on(
            "request",
            lambda request: (
                request.url.startswith((at.address, "data:", "blob:")) or wrong.append(request.url)
            ),
        )
        page.goto(at.address + end)
        if wait:
            page.wait_for_selector("#ccs-maps img.ccs-map")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def headings(page: Any) -> list[str]:
    found = page.locator("#ccs-maps .ccs-heading h2").all_inner_texts()
    return [re.sub(r"^\d+\. ", "", text) for text in found]


def picture_of(page: Any, alt: str) -> np.ndarray:
    source = page.locator(f'img[alt="{alt}"]').get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB"))


def check_maps(page: Any, number: int, texts: tuple[str, ...]) -> None:
    """The maps of surgery on the page are those that the API finds in an example's picture."""
    clip, shown = ZeroShotClassifier.demo(texts), example_image(number).pixels
    maps = LayerCLIPSurgery(clip).attribute_all(clip.preprocess(shown))[0].detach()
    style = figures.map_style(maps, Settings(texts))
    for text, attribution in zip(texts, maps, strict=True):
        found = picture_of(page, f"Where CLIP Surgery sees {text!r} in the image")
        drawn = figures.overlay(shown, attribution, style)
        expected = np.asarray(Image.open(io.BytesIO(drawn.content)).convert("RGB"))
        assert np.abs(found.astype(int) - expected).mean() < 1, text


def point_at(page: Any, across: float, down: float) -> None:
    """Enlarge a map, and click a place of it."""
    page.locator("#ccs-maps button.ccs-frame").nth(1).click()
    large = page.locator("dialog img.ccs-map")
    box = large.bounding_box()
    large.click(position={"x": box["width"] * across, "y": box["height"] * down})
    page.wait_for_selector(".ccs-point")


def explain(page: Any, texts: str) -> None:
    page.locator("#ccs-texts textarea").fill(texts)
    page.locator("#ccs-run").click()


def waits_for(page: Any, texts: list[str]) -> None:
    page.wait_for_function(
        "wanted => JSON.stringify([...document.querySelectorAll('#ccs-maps .ccs-heading h2')]"
        ".map(title => title.innerText.replace(/^\\d+\\. /, '')).sort()) === wanted",
        arg=json.dumps(sorted(texts), separators=(",", ":")),
    )


def waits_for_another(page: Any, before: np.ndarray, alt: str) -> None:
    """Until a picture is another than it was."""
    wait_until(lambda: not np.array_equal(before, picture_of(page, alt)), "another picture")


def upload(page: Any, path: Path) -> None:
    page.locator("#ccs-upload input[type=file]").set_input_files(path)


def upload_query(page: Any, path: Path) -> None:
    """Choose a query image, and wait until it has arrived."""
    if not page.locator("#ccs-query-upload").is_visible():
        page.get_by_role("button", name="Query image and difference").click()
    page.locator("#ccs-query-upload input[type=file]").set_input_files(path)
    page.wait_for_selector("#ccs-query img")


def photo(tmp_path: Path, number: int = 1, name: str = "photo.png") -> Path:
    path = tmp_path / name
    Image.fromarray(example_scene(number).image).save(path)
    return path


def test_the_first_view_is_that_of_the_api(come: Come) -> None:
    page = come()
    assert "embedded model" in page.locator("header").inner_text()
    nouns = example_scene(0).nouns
    assert sorted(headings(page)) == sorted(nouns)
    check_maps(page, 0, nouns)
    seen = [picture_of(page, f"Where CLIP Surgery sees {n!r} in the image") for n in nouns]
    assert all(found.std() > 5 for found in seen)  # one scale: a weak text stays pale
    assert np.abs(seen[0].astype(int) - seen[1]).mean() > 5
    assert page.locator(".ccs-number").first.inner_text().startswith("cosine 0.")
    assert "share among your texts under 0.1%" in page.locator("#ccs-maps").inner_text()
    sentences = page.locator("#ccs-maps .ccs-sentences dt").all_inner_texts()
    assert sentences == ["CLIP", "CLIP Surgery"]


def test_texts_controls_and_a_click(come: Come) -> None:
    page = come()
    explain(page, "zebra\n\n  star \n<b>kiwi</b>")
    waits_for(page, ["zebra", "star", "<b>kiwi</b>"])
    page.wait_for_selector("#ccs-notices .ccs-notice")
    assert "never seen: b" in page.locator("#ccs-notices").inner_text()
    before = picture_of(page, "Where CLIP sees 'zebra' in the image")
    open_appearance(page)
    set_opacity(page, "0.1")
    waits_for_another(page, before, "Where CLIP sees 'zebra' in the image")

    small = page.locator("#ccs-maps img.ccs-map").nth(1).bounding_box()
    page.locator("#ccs-maps button.ccs-frame").nth(1).click()
    large = page.locator("dialog img.ccs-map")
    box = large.bounding_box()
    assert box["width"] > 2 * small["width"]
    assert "0" in page.locator("dialog .ccs-scale").inner_text().split()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    point_at(page, 0.25, 0.75)
    assert page.locator(".ccs-point h2").inner_text().endswith("25% across, 75% down")
    assert page.locator(".ccs-point table").count() == 2
    assert page.locator(".ccs-mark").count() == page.locator("#ccs-maps img.ccs-map").count()
    assert page.locator(".ccs-point th").all_inner_texts().count("zebra") == 2

    explain(page, "")
    page.wait_for_selector("#ccs-notices [role=alert]")
    assert "No text given; write what to look for" in page.locator("#ccs-notices").inner_text()
    assert len(headings(page)) == 3  # what was there stays


def open_appearance(page: Any) -> None:
    """Open the options of drawing; Gradio gives them their values a moment after they appear."""
    page.locator("#ccs-appearance button").first.click()
    opacity = page.locator("#ccs-opacity input[type=number]")
    wait_until(lambda: opacity.input_value() == "0.7", "the value of the opacity")


def set_opacity(page: Any, value: str) -> None:
    page.locator("#ccs-opacity input[type=number]").fill(value)
    page.locator("#ccs-opacity input[type=number]").press("Tab")


def test_the_last_change_during_work_counts(come: Come) -> None:
    page = come()
    open_appearance(page)
    page.locator("#ccs-options button").first.click()
    page.locator("#ccs-methods").get_by_label("Occlusion").check()
    page.wait_for_function(
        "document.querySelector('#ccs-notices').innerText.includes('Still running')"
    )
    for value in ("0.5", "0.3", "0.1"):
        set_opacity(page, value)
    page.wait_for_function("() => JSON.parse(sessionStorage['ccs-view']).settings.opacity === 0.1")
    assert page.locator("#ccs-opacity input[type=number]").input_value() == "0.1"


def test_an_upload_is_explained_and_deleted(come: Come, server: Server, tmp_path: Path) -> None:
    page = come()
    upload(page, photo(tmp_path))
    page.wait_for_selector("#ccs-notices .ccs-notice")
    told = page.locator("#ccs-notices").inner_text()
    assert "Write what to look for" in told
    assert "knows 156 drawn objects and no photographs" in told
    assert "clip-surgery app --model" in told
    assert page.locator("#ccs-texts textarea").input_value() == ""
    assert page.locator("#ccs-picture").inner_text() == "photo.png"
    assert headings(page) == []
    page.reload()  # the picture is kept before it has texts
    page.wait_for_selector("#ccs-notices .ccs-notice")
    explain(page, "cat\ntree")
    waits_for(page, ["cat", "tree"])
    check_maps(page, 1, ("cat", "tree"))
    assert server.uploads() == []
    page.reload()  # and with them
    page.wait_for_selector("#ccs-maps img.ccs-map")
    waits_for(page, ["cat", "tree"])
    check_maps(page, 1, ("cat", "tree"))
    assert page.locator("#ccs-picture").inner_text() == "photo.png"
    other = come()  # in another tab
    waits_for(other, list(example_scene(0).nouns))


COPY = """async ([picture, text]) => {
    const kinds = picture ? {'image/png': await (await fetch(picture)).blob()} : {};
    if (text) kinds['text/plain'] = new Blob([text], {type: 'text/plain'});
    await navigator.clipboard.write([new ClipboardItem(kinds)]);
}"""


def copy(page: Any, number: int | None, text: str = "") -> None:
    """An example's picture, a text or both to the clipboard, as from another program."""
    picture = None
    if number is not None:
        buffer = io.BytesIO()
        Image.fromarray(example_scene(number).image).save(buffer, format="PNG")
        picture = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    page.evaluate(COPY, [picture, text])


def test_a_image_is_pasted(come: Come, server: Server) -> None:
    page = come(permissions=["clipboard-read", "clipboard-write"])
    texts = ("zebra", "star")  # one's own stay, where an example's are cleared
    explain(page, "\n".join(texts))
    waits_for(page, list(texts))

    def by_button() -> None:
        page.get_by_role("button", name="Paste from clipboard").first.click()

    def by_keys() -> None:
        page.keyboard.press("Control+V")

    # By keys again after the button, which takes the field for files from the page.
    for number, paste in ((1, by_keys), (2, by_button), (3, by_keys)):
        alt = f"Where CLIP sees {texts[0]!r} in the image"
        before = picture_of(page, alt)
        copy(page, number)
        paste()
        waits_for_another(page, before, alt)
        check_maps(page, number, texts)
    wait_until(lambda: server.uploads() == [], "the end of uploads")


def test_a_text_is_pasted_where_texts_are_written(come: Come) -> None:
    page = come(permissions=["clipboard-read", "clipboard-write"])
    page.locator("#ccs-texts textarea").fill("")
    copy(page, 1, "zebra\nstar")  # office programs give a picture of a text as well
    page.locator("#ccs-texts textarea").press("Control+V")
    page.locator("#ccs-run").click()
    waits_for(page, ["zebra", "star"])
    check_maps(page, 0, ("zebra", "star"))


def test_bad_uploads_are_told_and_the_page_lives(
    come: Come, server: Server, tmp_path: Path
) -> None:
    page = come()
    for name, content in (
        ("empty.png", b""),
        ("broken.png", photo(tmp_path).read_bytes()[:300]),
        ("page.jpg", b"<html><script>alert(1)</script>"),
    ):
        (tmp_path / name).write_bytes(content)
        upload(page, tmp_path / name)
        page.wait_for_selector("#ccs-notices [role=alert]")
        words = page.locator("#ccs-notices").inner_text()
        assert "empty" in words or "cannot be read as an image" in words
        explain(page, "star\nzebra")
        page.wait_for_selector("#ccs-notices [role=alert]", state="detached")
    waits_for(page, ["star", "zebra"])
    assert server.uploads() == []
    assert server.process.poll() is None


@pytest.mark.parametrize("kind", ["PNG", "SVG", "NPZ", "Python", "View"])
def test_downloads(kind: str, come: Come, tmp_path: Path) -> None:
    page = come()
    with page.expect_download() as caught:
        page.locator(f"#ccs-get-{kind}").click()
    path = tmp_path / caught.value.suggested_filename
    caught.value.save_as(path)
    if kind == "PNG":
        assert np.asarray(Image.open(path).convert("RGB")).std() > 30
    elif kind == "SVG":
        assert "<svg" in path.read_text(encoding="utf-8")[:1000]
    elif kind == "NPZ":
        clip = ZeroShotClassifier.demo(example_scene(0).nouns)
        images = clip.preprocess(example_scene(0).image)
        expected = LayerCLIPSurgery(clip).attribute_all(images)[0].detach().numpy()
        assert np.allclose(np.load(path)["CLIPSurgery"], expected, atol=1e-5)
    elif kind == "Python":
        done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "maps.png").stat().st_size > 10_000
    else:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["settings"] |= {"texts": ["cat", "snowflake"], "example": 1, "tab": "segmentation"}
        path.write_text(json.dumps(content), encoding="utf-8")
        page.locator("#ccs-open").locator("xpath=..").locator("input[type=file]").set_input_files(
            path
        )
        page.wait_for_selector("#ccs-segmentation img")
        assert page.locator("#ccs-texts textarea").input_value() == "cat\nsnowflake"


def test_a_link_brings_the_view_back(come: Come) -> None:
    page = come()
    explain(page, "zebra\nstar")
    waits_for(page, ["zebra", "star"])
    page.locator("#ccs-get-Link").click()
    page.wait_for_function(
        "(document.querySelector('#ccs-link textarea, #ccs-link input') || {value: ''})"
        ".value.startsWith('http')"
    )
    link = page.locator("#ccs-link textarea, #ccs-link input").first.input_value()
    other = come("/" + link.split("/", 3)[3])
    waits_for(other, ["zebra", "star"])
    broken = come("/?view=%7Bnonsense")
    assert len(headings(broken)) == 3
    assert "The link cannot be opened" in broken.locator("#ccs-notices").inner_text()


@pytest.fixture
def pretrained_server(tmp_path: Path) -> Iterator[Server]:
    folder, place = tmp_path / "model", tmp_path / "served"
    for path in (folder, place):
        path.mkdir()
    config = {"model_cfg": TINY["vit"].config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(tiny_model("vit").state_dict(), folder / "open_clip_model.safetensors")
    found = serve(place, "--model", f"local-dir:{folder}")
    yield found
    end(found)


def test_a_pretrained_model_begins_with_the_photograph(
    pretrained_server: Server, come: Come, tmp_path: Path
) -> None:
    page = come(at=pretrained_server)
    waits_for(page, list(PHOTO_TEXTS))
    examples = page.locator("#ccs-examples button")
    assert examples.count() == 5
    assert examples.first.get_attribute("aria-label").endswith(", ".join(PHOTO_TEXTS))
    examples.nth(1).click()
    waits_for(page, list(example_scene(0).nouns))
    examples.first.click()
    waits_for(page, list(PHOTO_TEXTS))
    files = {}
    for kind in ("NPZ", "Python"):
        with page.expect_download() as caught:
            page.locator(f"#ccs-get-{kind}").click()
        files[kind] = tmp_path / caught.value.suggested_filename
        caught.value.save_as(files[kind])
    assert "coffee.jpg" in files["Python"].read_text(encoding="utf-8")
    saved = "\nimport numpy\nnumpy.savez('again.npz', **{n: m.numpy() for n, m in maps.items()})"
    with files["Python"].open("a") as script:
        script.write(saved)
    command = [sys.executable, files["Python"]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = np.load(tmp_path / "again.npz")
    shown = np.load(files["NPZ"])
    assert len(shown["CLIPSurgery"]) == len(PHOTO_TEXTS)
    for name in ("CLIP", "CLIPSurgery"):
        assert np.allclose(shown[name], again[title_of(name)], atol=1e-5)
    select(page, "Words")
    page.wait_for_selector("#ccs-words img")
    assert page.locator("#ccs-caption textarea, #ccs-caption input").input_value() == PHOTO_CAPTION


def test_stopped_work_ends(come: Come) -> None:
    page = come()
    page.locator("#ccs-options button").first.click()
    page.locator("#ccs-methods").get_by_label("KernelShap").check()
    page.wait_for_function(
        "document.querySelector('#ccs-notices').innerText.includes('Still running')"
    )
    page.locator("#ccs-stop").click()
    page.wait_for_function("document.querySelector('#ccs-notices').innerText.includes('Stopped')")
    page.locator("#ccs-methods").get_by_label("KernelShap").uncheck()
    explain(page, "pizza")
    waits_for(page, ["pizza"])


def test_who_comes_while_too_many_wait_is_told_what_to_do(come: Come, server: Server) -> None:
    page, other = come(), Visitor(server)
    other.joins("ccs-run", "click", **HEAVY)
    with other.listens() as stream:
        until_work_begins(stream)
        with pytest.raises(urllib.error.HTTPError) as refused:
            joins_often(other)
        assert refused.value.code == 429
        explain(page, "pizza")
        told = page.locator("[data-testid=toast-body]").first
        told.wait_for()
        assert "Too many requests are waiting. Try again in a minute" in told.inner_text()
        assert len(headings(page)) == 3  # what was there stays
    # The other has left.
    wait_until(lambda: headings_after_a_try(page) == ["pizza"], "an answer")


def joins_often(visitor: Visitor) -> None:
    for _ in range(100):
        visitor.joins("ccs-run", "click")


def headings_after_a_try(page: Any) -> list[str]:
    page.locator("#ccs-run").click()
    page.wait_for_timeout(2000)
    return headings(page)


def test_two_visitors_at_once(come: Come, tmp_path: Path) -> None:
    first, second = come(), come()
    upload(first, photo(tmp_path, 2, "first.png"))
    upload(second, photo(tmp_path, 3, "second.png"))
    for page, noun in ((first, "tractor"), (second, "panda")):
        # An image clears the example's texts when it has arrived.
        page.wait_for_function("() => !document.querySelector('#ccs-texts textarea').value")
        explain(page, f"{noun}\nstar")
    for page, noun, number in ((first, "tractor", 2), (second, "panda", 3)):
        waits_for(page, [noun, "star"])
        check_maps(page, number, (noun, "star"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["laptop", "phone"])
def test_every_tab_is_accessible(
    size: tuple[int, int], scheme: str, come: Come, tmp_path: Path
) -> None:
    page = come(color_scheme=scheme, viewport=dict(zip(("width", "height"), size, strict=True)))
    for accordion in page.locator("button.label-wrap").all():
        if "open" not in (accordion.get_attribute("class") or ""):
            accordion.click()
    upload_query(page, photo(tmp_path))
    page.locator("#ccs-maps button.ccs-frame").nth(1).click()
    page.wait_for_selector("dialog")
    found, in_menu = violations(page), []
    page.keyboard.press("Escape")
    point_at(page, 0.5, 0.5)
    for name, title in TITLES.items():
        if not page.get_by_role("tab", name=title).is_visible():
            in_menu.append(name)
            page.get_by_role("button", name="More tabs").click()
            found |= violations(page)
        select(page, title)
        page.wait_for_selector(f"#ccs-{name} img")
        assert page.get_by_role("tab", name=title).get_attribute("aria-selected") == "true"
        found |= violations(page)
    assert in_menu == (["points", "words", "pair"] if size[0] < 400 else [])
    ours = [
        (rule, html)
        for rule, html in found
        if not any(rule == known and part in html for known, part in OF_GRADIO)
    ]
    assert ours == []


def select(page: Any, title: str) -> None:
    """Select a tab, which may be in the menu of those that the screen has no room for."""
    tab, menu = page.get_by_role("tab", name=title), page.locator("#ccs-tabs .overflow-dropdown")
    if tab.is_visible():
        tab.click()
        return
    if not menu.is_visible():
        page.get_by_role("button", name="More tabs").click()
    menu.get_by_text(title).click()


def violations(page: Any) -> set[tuple[str, str]]:
    """What axe finds that is serious: rules, and the elements that break them."""
    page.wait_for_timeout(1000)  # colours fade
    page.evaluate(AXE)
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return {
        (violation["id"], node["html"])
        for violation in result["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_guide_opens_in_a_tab_of_its_own(scheme: str, come: Come, server: Server) -> None:
    page = come(
        color_scheme=scheme,
        viewport={"width": 390, "height": 844},
        permissions=["clipboard-read", "clipboard-write"],
    )
    link = page.get_by_role("link", name="Guide")
    assert in_view(page, "header a")
    assert link.get_attribute("href") == "guide"  # relative: behind proxies, too
    assert page.get_by_role("navigation").count() == 0  # Gradio's bar of pages
    with page.context.expect_page() as opened:
        link.click()
    guide = opened.value
    guide.wait_for_selector("#ccs-guide h2")
    assert guide.url == f"{server.address}/guide"
    headings = guide.locator("#ccs-guide h2").all_inner_texts()
    assert guide.get_by_role("navigation").count() == 0
    assert headings[0] == "What each tab shows"
    assert headings[-1] == "Methods"
    text = guide.locator("#ccs-guide").inner_text()
    offered, _ = choose(ZeroShotClassifier.demo(["star"]), ["all"])
    for name in METHODS:
        assert (f"{title_of(name)}: {sentence_of(name)}" in text) == (name in offered)
    links = guide.locator("#ccs-guide a").all()
    assert len(links) == sum(name in PAPERS and PAPERS[name].arxiv != "" for name in offered)
    for found in links:
        assert found.get_attribute("href").startswith("https://arxiv.org/abs/")
        assert found.get_attribute("target") == "_blank"
    assert guide.evaluate("document.documentElement.scrollWidth") <= 390
    assert violations(guide) == set()
    copy(guide, 1)
    guide.keyboard.press("Control+V")  # nothing takes it, and no script fails


def test_the_page_is_reached_by_keyboard(come: Come) -> None:
    page = come()
    page.locator("#ccs-examples button").nth(1).focus()
    page.keyboard.press("Enter")
    waits_for(page, list(example_scene(1).nouns))
    page.locator("#ccs-texts textarea").fill("cat\ntree")
    page.locator("#ccs-texts textarea").press("Shift+Enter")
    waits_for(page, ["cat", "tree"])


def test_a_phone_shows_all_without_scrolling_sideways(come: Come) -> None:
    page = come(viewport={"width": 390, "height": 844})
    explain(page, "")
    page.wait_for_selector("#ccs-notices [role=alert]")
    wait_until(lambda: in_view(page, "#ccs-notices [role=alert]"), "the message in view")
    explain(page, "zebra\nstar\npizza")
    waits_for(page, ["zebra", "star", "pizza"])
    wait_until(lambda: in_view(page, "#ccs-maps img.ccs-map"), "the first map in view")
    point_at(page, 0.5, 0.5)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # Neither short names nor numbers break, and two panels fill a row.
    cells = page.locator(".ccs-point th, .ccs-point td:last-child").all()
    assert cells
    assert all(cell.bounding_box()["height"] < 30 for cell in cells)
    row = page.locator(".ccs-row").nth(1)
    panels = [panel.bounding_box() for panel in row.locator(".ccs-panel:visible").all()]
    assert len({panel["y"] for panel in panels}) == 1
    right = max(panel["x"] + panel["width"] for panel in panels)
    assert right == pytest.approx(row.bounding_box()["x"] + row.bounding_box()["width"], abs=2)


def test_a_query_image_is_explained_kept_and_removed(come: Come, tmp_path: Path) -> None:
    page = come()
    explain(page, "star\nzebra")
    upload_query(page, photo(tmp_path, 1, "asked.png"))
    waits_for(page, ["star", "zebra", "asked.png"])
    page.locator("#ccs-minus textarea, #ccs-minus input").fill("dog")
    page.keyboard.press("Enter")
    waits_for(page, [f"{text} rather than dog" for text in ("star", "zebra", "asked.png")])
    page.locator("#ccs-get-Link").click()
    assert "cannot hold your own images" in page.locator("#ccs-notices [role=alert]").inner_text()
    with page.expect_download() as caught:
        page.locator("#ccs-get-View").click()
    caught.value.save_as(tmp_path / "view.json")
    page.reload()
    waits_for(page, [f"{text} rather than dog" for text in ("star", "zebra", "asked.png")])
    page.locator("#ccs-query-remove").click()
    waits_for(page, ["star rather than dog", "zebra rather than dog"])
    assert page.locator("#ccs-query img").count() == 0
    other = come()
    other.locator("#ccs-open").locator("xpath=..").locator("input[type=file]").set_input_files(
        tmp_path / "view.json"
    )
    waits_for(other, [f"{text} rather than dog" for text in ("star", "zebra", "asked.png")])
    assert "asked.png" in other.locator("#ccs-query").inner_text()


def test_two_images_are_matched_on_a_phone(come: Come, tmp_path: Path) -> None:
    page = come(viewport={"width": 390, "height": 844})
    explain(page, "star\nkiwi")
    waits_for(page, ["star", "kiwi"])
    select(page, "Two images")
    page.wait_for_selector("#ccs-notices [role=alert]")
    assert "query image is missing" in page.locator("#ccs-notices [role=alert]").inner_text()
    upload_query(page, photo(tmp_path, 1, "asked.png"))
    page.wait_for_selector("#ccs-pair img")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#ccs-pair button.ccs-frame").click()
    large = page.locator("dialog img")
    assert large.bounding_box()["width"] > 900  # to be read by scrolling
    page.evaluate("document.querySelector('dialog').scrollTo(600, 300)")
    page.get_by_role("button", name="Close").click()
    large.wait_for(state="detached")
    with page.expect_download() as caught:
        page.locator("#ccs-get-NPZ").click()
    assert caught.value.suggested_filename == "pair.npz"
    caught.value.save_as(tmp_path / "pair.npz")
    query, image = (Image.fromarray(example_scene(number).image) for number in (1, 0))
    expected = explain_pair(ZeroShotClassifier.demo(["star"]), query, image)
    assert np.load(tmp_path / "pair.npz")["cosine"] == pytest.approx(float(expected.cosine))
    page.reload()
    page.wait_for_selector("#ccs-pair img")
    assert "asked.png" in page.locator("#ccs-query").inner_text()
    for act in (page.locator("#ccs-query-remove").click, page.reload):
        act()
        page.wait_for_selector("#ccs-notices [role=alert]")
        assert "query image is missing" in page.locator("#ccs-notices").inner_text()
        assert page.locator("#ccs-pair img, #ccs-query img").count() == 0
        texts = page.locator("#ccs-texts textarea")
        wait_until(lambda texts=texts: texts.input_value() == "star\nkiwi", "the texts")
        page.wait_for_function("() => JSON.parse(sessionStorage['ccs-view']).query === null")


def test_a_reload_keeps_the_image_where_there_is_no_room_for_both(
    come: Come, tmp_path: Path
) -> None:
    page = come()
    noise = np.random.default_rng(0).integers(0, 256, (2, 1024, 1024, 3), dtype=np.uint8)
    for name, pixels in zip(("mine.png", "asked.png"), noise, strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    upload(page, tmp_path / "mine.png")
    page.wait_for_selector("#ccs-picture img[alt='Your image']")
    explain(page, "star\nzebra")
    waits_for(page, ["star", "zebra"])
    upload_query(page, tmp_path / "asked.png")
    waits_for(page, ["star", "zebra", "asked.png"])
    page.reload()
    waits_for(page, ["star", "zebra"])
    assert page.locator("#ccs-picture").inner_text() == "mine.png"
    assert "no room to keep the query image" in page.locator("#ccs-notices").inner_text()


def in_view(page: Any, selector: str) -> bool:
    box = page.locator(selector).first.bounding_box()
    return bool(box and box["y"] >= 0 and box["y"] + box["height"] <= 844)


def test_only_its_own_files_are_served(server: Server) -> None:
    for path in ("/etc/passwd", str(Path("setup.cfg").resolve()), "setup.cfg", "../setup.cfg"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.address}/gradio_api/file={path}")
        assert refused.value.code in (403, 404)
    for path in ("", "/guide"):
        with urllib.request.urlopen(server.address + path) as answer:
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_a_password_is_asked_for(tmp_path: Path) -> None:
    server = serve(tmp_path, "--password", "open sesame")
    try:
        for path in ("/config", "/config?page=guide"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(server.address + path)
            assert refused.value.code == 401
        guide = "Each text is shown with its cosine"
        for path in ("", "/guide"):  # which ask for it
            with urllib.request.urlopen(server.address + path) as answer:
                content = answer.read().decode()
            assert '"auth_required":true' in content
            assert guide not in content
        login = server.address + "/login"
        wrong = urllib.parse.urlencode({"username": "anna", "password": "guess"}).encode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(login, wrong)
        assert refused.value.code == 400
        right = urllib.parse.urlencode({"username": "anna", "password": "open sesame"}).encode()
        visitor = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with visitor.open(login, right) as answer:
            assert answer.status == 200
        with visitor.open(server.address + "/guide") as answer:
            assert guide in answer.read().decode()
    finally:
        end(server)
