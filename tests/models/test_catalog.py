"""What is listed of open_clip's configurations, and that the documentation says the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import open_clip
import pytest

from captum_clip_surgery import ModelEntry, ZeroShotClassifier, list_models
from captum_clip_surgery.models._catalog import to_markdown

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(scope="module")
def entries() -> list[ModelEntry]:
    return list_models()


@pytest.mark.slow
def test_every_configuration_is_listed_once(entries):
    assert [entry.name for entry in entries] == open_clip.list_models()
    assert sum(entry.supported for entry in entries) == 125
    for entry in entries:
        assert entry.family
        assert bool(entry.reason) != entry.supported
        if entry.supported:
            (rows, columns), (height, width) = entry.grid, entry.patch_size
            native = entry.native_size
            # One configuration's patches do not divide its size: the last pixels go unseen.
            assert (rows, columns) == (native[0] // height, native[1] // width)
            assert entry.blocks >= 1
        else:
            assert (entry.patch_size, entry.native_size, entry.grid) == (None, None, None)


@pytest.mark.slow
def test_what_the_text_side_needs(entries):
    needs = {entry.name: entry.text for entry in entries}
    assert needs["ViT-B-16"] == needs["EVA02-B-16"] == "open_clip"
    assert needs["ViT-B-16-SigLIP2"] == needs["ViT-L-14-CLIPA"] == "tokenizer"
    assert needs["roberta-ViT-B-32"] == needs["nllb-clip-base-siglip"] == "tower"


@pytest.mark.slow
def test_the_documentation_is_what_the_adapters_say(entries):
    """Mend it with `clip-surgery models`, whose output stands at the end of the page."""
    assert PAGE.read_text().endswith(to_markdown(entries) + "\n")


@pytest.mark.slow
def test_entries_are_json(entries):
    for entry in entries:
        again = ModelEntry(**json.loads(json.dumps(entry.to_dict())))
        assert again.name == entry.name
        assert again.supported == entry.supported


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"open_clip has no model 'ViT-B/17'"):
        list_models(["ViT-B-16", "ViT-B/17"])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"embed_dim": 8, "text_cfg": {}}, "it has no image tower"),
        (
            {"embed_dim": 8, "text_cfg": {}, "vision_cfg": {"layers": 2, "wdith": 8}},
            r"open_clip cannot build it: .* unexpected keyword argument 'wdith'",
        ),
    ],
)
def test_configurations_of_ones_own(tmp_path, monkeypatch, config, reason):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "own", config)
    monkeypatch.setattr(open_clip, "list_models", lambda: ["own"])
    (entry,) = list_models()
    assert not entry.supported
    assert re.search(reason, entry.reason)


def test_a_classifier_says_the_same_of_its_tower():
    (entry,) = list_models(["ViT-S-32-alt"])
    model = open_clip.create_model("ViT-S-32-alt")
    said = repr(ZeroShotClassifier(model.eval(), ["dog"], templates=()))
    rows, columns = entry.grid
    tower = f"{entry.family}, pooled by {entry.pooling}, {entry.blocks} blocks, 224 x 224 pixels"
    assert f"tower={tower} in {rows} x {columns} patches of 32 x 32" in said
