"""Scenes are reproducible, and their masks are the truth about their pictures."""

from __future__ import annotations

import hashlib
from importlib.resources import files

import numpy as np
import pytest

from captum_clip_surgery.demo import Scenes, nouns, prompt_templates
from captum_clip_surgery.demo._scenes import BACKGROUNDS, MIN_VISIBLE, STREAMS


def test_vocabulary() -> None:
    assert len(nouns()) >= 150
    assert (files("captum_clip_surgery.demo") / "sprites.png").stat().st_size < 3e6
    assert len(set(nouns())) == len(nouns())


def test_a_scene_follows_from_split_and_index() -> None:
    first, again = Scenes("test", 5)[3], Scenes("test", 100)[3]
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert (first.caption, first.nouns) == (again.caption, again.nouns)


def test_scenes_stay_what_they_were() -> None:
    """Published figures name scenes by split and index: these must not drift."""
    captions = [scene.caption for split in STREAMS for scene in Scenes(split, 20)]
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()
    assert digest[:16] == "2b156524c557828a"
    areas = [int(scene.masks.sum()) for scene in Scenes("test", 4)]
    assert areas == pytest.approx([2550, 3238, 2884, 1034], rel=0.01)


def test_splits_differ_in_stream_and_in_backgrounds() -> None:
    kinds = [set(kinds) for kinds in BACKGROUNDS.values()]
    assert sum(map(len, kinds)) == len(set.union(*kinds))
    captions = [[scene.caption for scene in Scenes(split, 5)] for split in STREAMS]
    assert captions[0] != captions[1] != captions[2] != captions[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_number_of_objects(count: int) -> None:
    for scene in Scenes("validation", 5, objects=[count]):
        assert len(scene.nouns) == len(set(scene.nouns)) == len(scene.masks) == count
        assert all(noun in scene.caption for noun in scene.nouns)


def test_masks_do_not_overlap_and_leave_enough_in_sight() -> None:
    for scene in Scenes("test", 40, objects=[3]):
        assert scene.masks.sum(0).max() == 1
        # The smallest object drawn is 28 % of the side; half of a thin one stays visible.
        assert scene.masks.sum((1, 2)).min() > 0.001 * scene.masks[0].size
    assert MIN_VISIBLE >= 0.5


def test_masks_mark_the_pixels_that_objects_changed() -> None:
    """The same scene on other backgrounds: only what the masks hold may stay the same."""
    from captum_clip_surgery.demo import _scenes as module

    def render(shade: float) -> module.Scene:
        rng = np.random.default_rng(5)
        chosen = rng.choice(len(nouns()), 3, replace=False)
        names = [nouns()[noun] for noun in chosen]
        return module.render_scene(rng, np.full((96, 96, 3), shade), names)

    dark, light = render(0.0), render(1.0)
    np.testing.assert_array_equal(dark.masks, light.masks)
    unchanged = np.abs(dark.image.astype(int) - light.image.astype(int)).max(-1) < 128
    np.testing.assert_array_equal(unchanged, dark.masks.any(0))


def test_layout_is_the_same_at_every_size() -> None:
    small, large = Scenes("test", 1, size=64)[0], Scenes("test", 1, size=128)[0]
    assert small.nouns == large.nouns
    enlarged = small.masks.repeat(2, axis=1).repeat(2, axis=2)
    union = (enlarged | large.masks).sum()
    assert (enlarged & large.masks).sum() / union > 0.8


def test_sequence() -> None:
    scenes = Scenes("test", 4)
    assert len(scenes) == len(list(scenes)) == 4
    np.testing.assert_array_equal(scenes[-1].image, scenes[3].image)
    assert [s.caption for s in scenes[1:3]] == [scenes[1].caption, scenes[2].caption]
    with pytest.raises(IndexError, match="index 4 is out of range for 4 scenes"):
        scenes[4]


def test_templates_have_one_slot_each() -> None:
    assert all(template.count("{}") == 1 for template in prompt_templates())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train2", "length": 1}, "split must be one of .*, got 'train2'"),
        ({"split": "test", "length": 1, "objects": []}, "must be numbers from 1 to 3"),
        ({"split": "test", "length": 1, "objects": [4]}, "must be numbers from 1 to 3"),
    ],
)
def test_refused_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenes(**arguments)  # type: ignore[arg-type]


def test_chosen_backgrounds_are_behind_the_same_objects() -> None:
    def gray(rng: np.random.Generator, size: int) -> np.ndarray:
        return np.full((size, size, 3), 0.5, np.float32)

    usual, changed = Scenes("test", 3), Scenes("test", 3, backgrounds=[gray])
    for one, other in zip(usual, changed, strict=True):
        assert one.caption == other.caption
        assert np.array_equal(one.masks, other.masks)
        assert not np.array_equal(one.image, other.image)
        assert (other.image == 128).all(-1).mean() > 0.3
    with pytest.raises(ValueError, match="backgrounds is empty"):
        Scenes("test", 3, backgrounds=[])
