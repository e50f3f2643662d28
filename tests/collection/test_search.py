"""Search: rankings against a naive sort, exports against images, and the command."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.cli import main
from captum_clip_surgery.collection import ImageIndex, _search, search
from captum_clip_surgery.demo import SceneCollection
from captum_clip_surgery.export import load_maps, plan
from captum_clip_surgery.queries import DifferenceQuery, ImageQuery


def unit_vectors(count, width=32, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for sample in SceneCollection(["dog", "pizza", "moon"], per_noun=2, size=64):
        sample.image.save(folder / f"{sample.name}.png")
    return folder


@pytest.fixture(scope="module")
def clip():
    return ZeroShotClassifier.demo(["dog"])


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["clip-surgery", "search", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_ranking_is_that_of_a_sort():
    names, vectors = [f"image-{index}" for index in range(200)], unit_vectors(200)
    index = ImageIndex(names, vectors)
    feature = 3 * unit_vectors(1, seed=1)[0]
    expected = sorted(zip(names, (vectors @ feature).tolist(), strict=True), key=lambda h: -h[1])
    hits = index.search(feature, 7)
    assert [hit.name for hit in hits] == [name for name, _ in expected[:7]]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected[:7]])
    assert len(index.search(feature, 1_000)) == 200


def test_the_graph_finds_the_exact_ranking_of_few_images():
    pytest.importorskip("faiss")
    names, vectors = [str(index) for index in range(500)], unit_vectors(500)
    exact, graph = (ImageIndex(names, vectors, exact=exact) for exact in (True, False))
    for feature in unit_vectors(20, seed=1):
        hits, others = graph.search(2 * feature, 10), exact.search(2 * feature, 10)
        assert [hit.name for hit in hits] == [hit.name for hit in others]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in others])


def test_above_the_threshold_images_are_found_by_the_graph(monkeypatch):
    faiss = pytest.importorskip("faiss")
    assert _search.MAX_EXACT == 100_000
    monkeypatch.setattr(_search, "MAX_EXACT", 300)
    names, vectors = [str(index) for index in range(301)], unit_vectors(301)
    few, many = ImageIndex(names[:300], vectors[:300]), ImageIndex(names, vectors)
    assert (few.exact, many.exact) == (True, False)
    assert few._graph is None
    assert isinstance(many._graph, faiss.IndexHNSWFlat)
    assert many._graph.metric_type == faiss.METRIC_INNER_PRODUCT
    assert many._graph.ntotal == 301
    assert ImageIndex(names, vectors, exact=True)._graph is None
    calls = []
    searched = faiss.IndexHNSWFlat.search
    monkeypatch.setattr(
        faiss.IndexHNSWFlat, "search", lambda *given: calls.append(1) or searched(*given)
    )
    assert many.search(vectors[300], 1)[0].name == "300"
    few.search(vectors[3], 1)
    assert len(calls) == 1


def test_bad_indices_and_queries_are_refused(monkeypatch):
    vectors = unit_vectors(3)
    for embeddings, message in (
        (vectors[:2], r"must be \(3 images, C\) and not empty, got \(2, 32\)"),
        (2 * vectors, "of a has the length 2, expected 1"),
        (np.full_like(vectors, np.nan), "of a has the length nan"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageIndex(["a", "b", "c"], embeddings)
    index = ImageIndex(["a", "b", "c"], vectors)
    with pytest.raises(ValueError, match=r"shape \(31,\), expected \(32,\)"):
        index.search(np.ones(31))
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        index.search(np.ones(32), 0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"captum_clip_surgery\[search\]"):
        ImageIndex(["a", "b", "c"], vectors, exact=False)


@pytest.mark.slow
def test_an_export_is_searched_as_its_images_are(clip, folder, tmp_path):
    pytest.importorskip("pyarrow")
    surgery = LayerCLIPSurgery(clip)
    made = plan(surgery, folder, tmp_path / "out", maps=False, batch_size=6)
    made.explain(surgery, made.left(), workers=0)
    made.finish()
    exported = ImageIndex.from_export(tmp_path / "out", clip)
    store = load_maps(tmp_path / "out")
    for name, embedding in zip(exported.names, exported.embeddings, strict=True):
        assert np.array_equal(embedding, store.embedding(name))
    paths = sorted(folder.iterdir())
    images = ImageIndex.from_images(clip, paths, [path.name for path in paths], batch_size=4)
    for query in ("pizza", ImageQuery(paths[0]), DifferenceQuery("dog", "moon")):
        hits, others = search(clip, query, exported, 6), search(clip, query, images, 6)
        assert [hit.name for hit in hits] == [hit.name for hit in others]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in others], abs=1e-5)
    text = clip.with_texts(["pizza"]).text_features()[0]
    assert search(clip, "pizza", images, 1) == images.search(text.numpy(), 1)
    assert search(clip, ImageQuery(paths[0]), images, 1)[0].score == pytest.approx(1, abs=1e-5)
    half = ZeroShotClassifier(copy.deepcopy(clip.model).to(torch.bfloat16), clip.texts)
    with pytest.raises(ValueError, match=r"made with precision fp32, and the model .* has bf16"):
        ImageIndex.from_export(tmp_path / "out", half)
    other = ZeroShotClassifier.demo(["dog"])
    with torch.no_grad():
        other.model.visual.proj += 1
    with pytest.raises(ValueError, match="made by a model with other weights"):
        ImageIndex.from_export(tmp_path / "out", other)


@pytest.mark.slow
def test_command_writes_ranking_and_pictures(folder, tmp_path, monkeypatch, capsys):
    (folder / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    arguments = [folder, "--query", "pizza", "--minus", "dog", "--top", 3, "--output", out]
    code = run(monkeypatch, *arguments, "--json")
    (folder / "broken.png").unlink()
    assert "1 of 7 images were skipped" in code
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((out / "search.json").read_text())
    assert content["query"] == "pizza rather than dog"
    assert content["images"] == 6
    assert [hit["name"].rpartition("/")[2][:5] for hit in content["hits"][:2]] == ["pizza"] * 2
    Image.open(out / "search.png").verify()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    assert "broken could be read" in run(monkeypatch, tmp_path / "broken", "--query", "dog")
    assert "give either --query or --query-image" in run(monkeypatch, folder)
