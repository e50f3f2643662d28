"""Exported maps: those of `attribute_all`, whatever the source and the format."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import webdataset
import zarr

from captum_clip_surgery import CLIPSurgery
from captum_clip_surgery.export import MapStore, explain_batch, load_maps, write_manifest
from tests._helpers.written_export import (
    TEXTS,
    close,
    expected,
    export,
    scene,
    shards,
    surgery,
    write_folder,
)

FORMATS = ("webdataset", "zarr")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    write_folder(root, 11)
    return root


@pytest.fixture(scope="module", params=FORMATS)
def exported(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp(request.param) / "out"
    export(folder, output, format=request.param, workers=2)
    return output


def test_maps_are_those_of_attribute_all(folder: Path, exported: Path) -> None:
    maps = load_maps(exported)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert list(maps) == names
    assert len(maps) == 11
    assert maps.texts == tuple(TEXTS)
    wanted = expected([folder / name for name in names])
    assert all(close(maps[name], row) for name, row in zip(names, wanted, strict=True))
    assert np.ptp(wanted.astype(float)) > 0.1  # not equal for being flat
    assert maps.size(names[0]) == (64, 64)
    maps.verify()


def test_top_texts_are_clips_own(folder: Path, exported: Path) -> None:
    maps, clip = load_maps(exported), surgery().forward_func
    for name in maps:
        with torch.no_grad():
            logits = clip(clip.preprocess(folder / name, 64))[0]
        values, order = (logits / clip.model.logit_scale.detach().exp()).topk(2)
        found = maps.top(name)
        assert [text for text, _ in found] == [TEXTS[index] for index in order]
        assert [score for _, score in found] == pytest.approx(values.tolist(), abs=1e-5)


def test_reading_is_lazy_and_may_be_shared(exported: Path) -> None:
    maps = load_maps(exported)
    assert "nothing.png" not in maps
    assert 3 not in maps
    with pytest.raises(KeyError, match=r"nothing\.png"):
        maps["nothing.png"]
    again = pickle.loads(pickle.dumps(maps))
    assert isinstance(again, MapStore)
    assert (again["a/s000.png"] == maps["a/s000.png"]).all()
    loader = torch.utils.data.DataLoader(
        [(maps, name) for name in maps],  # type: ignore[arg-type]
        batch_size=None,
        num_workers=2,
        collate_fn=lambda pair: pair[0][pair[1]],
    )
    assert all((a == maps[name]).all() for a, name in zip(loader, maps, strict=True))
    # All other shards may be gone.
    first = maps["a/s000.png"]
    for path in sorted((exported / "shards").iterdir())[1:]:
        path.rename(exported / path.name)
    assert (load_maps(exported)["a/s000.png"] == first).all()
    for path in exported.glob("0*"):
        path.rename(exported / "shards" / path.name)
    maps.verify()


def test_webdataset_reads_our_shards(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out")
    maps = load_maps(tmp_path / "out")
    url = f"file:{tmp_path}/out/shards/{{000000..000002}}.tar"
    data = webdataset.WebDataset(url, shardshuffle=False, empty_check=False).decode()
    samples = list(data)
    assert [unquote(sample["__key__"]) for sample in samples] == list(maps)
    for sample in samples:
        name = sample["json"]["name"]
        assert (sample["maps.npy"] == maps[name]).all()
        assert [tuple(pair) for pair in sample["json"]["top"]] == maps.top(name)


def test_zarr_reads_our_shards(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", format="zarr")
    maps = load_maps(tmp_path / "out")
    seen = []
    for path in sorted((tmp_path / "out" / "shards").iterdir()):
        group = zarr.open_group(path, mode="r")
        assert group.attrs["texts"] == TEXTS
        for row, key in enumerate(group.attrs["names"]):
            name = unquote(key)
            seen.append(name)
            assert (group["maps"][row] == maps[name]).all()
            assert [TEXTS[index] for index in group["top"][row]] == [t for t, _ in maps.top(name)]
            assert tuple(group["sizes"][row]) == (64, 64)
    assert seen == list(maps)


def test_blocks_of_zarr_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captum_clip_surgery.export._shards.BLOCK", 3)
    write_folder(tmp_path / "in", 8)
    export(tmp_path / "in", tmp_path / "out", format="zarr", shard_size=8)
    chunks = (tmp_path / "out/shards/000000.zarr/maps/c").iterdir()
    assert sorted(path.name for path in chunks) == ["0", "1", "2"]
    maps = load_maps(tmp_path / "out")
    wanted = expected([tmp_path / "in" / name for name in maps])
    assert all(close(maps[name], row) for name, row in zip(maps, wanted, strict=True))


def test_a_loop_of_ones_own() -> None:
    clip = surgery().forward_func
    images = clip.preprocess([scene(0), scene(1)], 64)
    found = explain_batch(surgery(), images, top=2)
    assert close(found.maps, expected([scene(0), scene(1)]))
    assert found.top_indices.shape == found.top_scores.shape == (2, 2)
    assert explain_batch(surgery(), images, top=9).top_indices.shape == (2, 3)
    assert explain_batch(surgery(), images, top=0).top_scores.shape == (2, 0)
    whole = CLIPSurgery(clip)
    with torch.no_grad():
        wanted = whole.attribute_all(images).half().numpy()
    assert close(explain_batch(whole, images).maps, wanted)
    with pytest.raises(ValueError, match="NaN"):
        explain_batch(surgery(), images * float("nan"))
    with pytest.raises(ValueError, match="top -1"):
        explain_batch(surgery(), images, top=-1)


def test_a_manifest_is_made_again(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out")
    before = json.loads((tmp_path / "out/manifest.json").read_text())
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out/index.sqlite").unlink()
    with pytest.raises(FileNotFoundError, match="has not ended"):
        load_maps(tmp_path / "out")
    again = write_manifest(tmp_path / "out", {"environment_info": before["environment_info"]})
    assert again == before == json.loads((tmp_path / "out/manifest.json").read_text())
    load_maps(tmp_path / "out").verify()
    assert before["settings"]["texts"] == TEXTS
    assert len(before["settings"]["weights"]) == 64


def test_shards_are_the_same_bytes_again(folder: Path, exported: Path, tmp_path: Path) -> None:
    format = load_maps(exported).manifest["settings"]["format"]
    export(folder, tmp_path / "out", format=format)
    assert shards(tmp_path / "out") == shards(exported)


def test_a_map_is_read_alone(folder: Path, tmp_path: Path) -> None:
    """By its place in the tar: what stands there is a file of numpy's."""
    export(folder, tmp_path / "out")
    maps = load_maps(tmp_path / "out")
    file, place = maps._row("a/s002.png", "file, place")
    offset, length, _ = json.loads(place)
    content = (tmp_path / "out" / file).read_bytes()[offset : offset + length]
    assert (np.load(io.BytesIO(content)) == maps["a/s002.png"]).all()
