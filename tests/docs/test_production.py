"""The page on production: its service answers requests, and its ONNX program gives the maps."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from tests.docs.test_docs import DOCS, ROOT, blocks, needs, run

pytestmark = pytest.mark.slow
PAGE = (DOCS / "production.md").read_text()
SCENE = DOCS / "images" / "scene.png"
TEXTS = ["duck", "kiwi"]


def test_the_onnx_program_gives_the_maps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs("onnxruntime", "onnxscript")
    shared = run(blocks(PAGE, "python"), tmp_path, monkeypatch)
    maps = shared["session"].run(None, {"images": torch.zeros(3, 3, 224, 224).numpy()})[0]
    assert maps.shape == (3, 2, 14, 14)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the service of the page in a process of its own."""
    needs("fastapi", "uvicorn", "python_multipart")
    folder = tmp_path_factory.mktemp("service")
    (source,) = blocks(PAGE, "python service")
    assert len(source.splitlines()) <= 40
    (folder / "service.py").write_text(source)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", folder, "--port", str(port)]
    process = subprocess.Popen([*command, "service:app"], cwd=ROOT)
    try:
        for _ in range(600):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the service ended"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/maps"
    finally:
        process.terminate()
        process.wait(30)


def post(address: str, image: bytes, texts: list[str]) -> tuple[int, dict[str, object]]:
    httpx = pytest.importorskip("httpx")
    files = {"image": ("image.png", image, "image/png")}
    reply = httpx.post(address, files=files, data={"text": texts}, timeout=60)
    return reply.status_code, json.loads(reply.text)


def test_the_service_returns_maps_and_cosines(address: str) -> None:
    status, reply = post(address, SCENE.read_bytes(), TEXTS)
    clip = ZeroShotClassifier.demo(TEXTS)
    images = clip.preprocess(SCENE)
    expected = LayerCLIPSurgery(clip).attribute_all(images)[0]
    logits = dict(zip(TEXTS, clip(images)[0].tolist(), strict=True))
    scale = clip.model.logit_scale.exp().item()
    assert status == 200
    torch.testing.assert_close(torch.tensor(reply["maps"]), expected, rtol=0, atol=1e-3)
    cosines = {text: logit / scale for text, logit in logits.items()}
    assert reply["cosines"] == pytest.approx(cosines, abs=1e-4)


def test_the_service_refuses_what_it_cannot_read(address: str) -> None:
    assert post(address, b"%!PS-Adobe-3.0 EPSF-3.0\n", TEXTS)[0] == 422
    assert post(address, SCENE.read_bytes()[:2000], TEXTS)[0] == 422
    assert post(address, SCENE.read_bytes(), ["duck", ""])[0] == 422
    assert post(address, SCENE.read_bytes(), TEXTS * 13)[0] == 413
