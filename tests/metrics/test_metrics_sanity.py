"""Cascading randomisation: what is shuffled when, and who notices."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from captum_clip_surgery import METHODS, ZeroShotClassifier
from captum_clip_surgery.attr._engine import Explain
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.metrics import Randomization, flag_insensitive, randomization
from captum_clip_surgery.metrics._sanity import _shuffle_stages, _stages
from captum_clip_surgery.metrics.functional._ranking import spearman
from tests._helpers.cases import each
from tests._helpers.model_snapshot import snapshot
from tests._helpers.tiny import MODELS, TOWERS, random_images, tiny_model
from tests._helpers.tower_kinds import TINY

surgery = METHODS["CLIPSurgery"]


def brightness(clip: ZeroShotClassifier) -> Explain:
    """A map that looks at the image alone."""
    return lambda images, targets=None: images.mean(1, keepdim=True)


def test_surgery_falls_and_a_map_without_model_stays() -> None:
    clip = ZeroShotClassifier.demo(["dog", "pizza", "camera"], distractors=["mushroom"])
    images = clip.preprocess([scene.image for scene in Scenes("test", 3, objects=[2])])
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    found = randomization(clip, {"surgery": surgery, "brightness": brightness}, images, [0, 1, 2])
    blocks = [f"block {i}" for i in reversed(range(8))]
    assert found.stages == ("original", "head", *blocks, "embeddings")
    assert {len(values) for values in found.correlations.values()} == {len(found.stages)}
    assert found.correlations["brightness"] == pytest.approx([1.0] * len(found.stages))
    assert found.correlations["surgery"][0] == pytest.approx(1, abs=1e-3)
    assert abs(found.correlations["surgery"][-1]) < 0.5
    assert flag_insensitive(found) == ["brightness"]
    fewer = randomization(clip, {"": brightness}, images, [0, 1, 2], num_stages=2)
    assert fewer.stages == found.stages[:3]
    for name, value in clip.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", MODELS)
def test_the_model_is_untouched_and_others_forget_it_all(kind: str) -> None:
    clip = ZeroShotClassifier(tiny_model(kind), ["a dog", "a cat"], templates=["{}"])
    seen: list[tuple[ZeroShotClassifier, dict[str, Tensor]]] = []

    def watch(given: ZeroShotClassifier) -> Explain:
        state = {name: value.clone() for name, value in given.model.visual.named_parameters()}
        seen.append((given, state))
        torch.testing.assert_close(given.text_features(), clip.text_features())
        return brightness(given)

    before = snapshot(clip.model)
    found = randomization(clip, {"watch": watch}, random_images(clip), 0)
    assert snapshot(clip.model) == before
    assert seen[0][0] is clip
    assert all(given.model is not clip.model for given, _ in seen[1:])
    assert len(seen) == 1 + len(found.stages)
    original, last = seen[0][1], seen[-1][1]
    for name, value in seen[1][1].items():
        assert torch.equal(value, original[name]), name  # stage "original"
    for name, value in last.items():
        # Shuffled, not redrawn.
        assert torch.equal(value.flatten().sort()[0], original[name].flatten().sort()[0]), name
        if value.numel() > 8 and len(value.unique()) > 8:
            assert not torch.equal(value, original[name]), name


@pytest.mark.parametrize("kind", TOWERS)
def test_stages_part_the_tower_from_the_output_backwards(kind: str) -> None:
    """After the stage of a block, the tokens entering it are still the original's; not after it."""
    clip = ZeroShotClassifier(tiny_model(kind), ["a dog", "a cat"], templates=["{}"])
    images = random_images(clip)
    stages = _stages(clip, images)
    placed = [id(parameter) for stage in stages.values() for parameter in stage]
    assert len(placed) == len(set(placed))
    assert set(placed) == {id(parameter) for parameter in clip.model.visual.parameters()}
    assert not any(value.grad is not None for value in clip.model.visual.parameters())

    def tokens(given: ZeroShotClassifier, index: int) -> Tensor:
        with torch.no_grad():
            return given.tower.enter(images, index)[0]

    shuffled = clip.with_model(copy.deepcopy(clip.model))
    count = len(clip.tower.blocks)
    intact = {"original": count, "head": count} | {f"block {i}": i for i in range(count)}
    if TINY[kind].parts.positions.startswith(TINY[kind].parts.blocks[0]):
        del intact["block 0"]  # its positions are its own, and are added before it
    previous: Tensor | None = None
    for label in _shuffle_stages(shuffled, images, seed=0):
        if label in intact:
            torch.testing.assert_close(tokens(shuffled, intact[label]), tokens(clip, intact[label]))
        else:
            assert not torch.allclose(tokens(shuffled, 0), tokens(clip, 0))
        with torch.no_grad():
            features = shuffled.image_features(images)
        if previous is not None:
            assert not torch.allclose(features, previous), label
        previous = features


def test_what_a_tower_holds_itself_is_placed_by_its_use() -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog"], templates=["{}"])
    visual = clip.model.visual
    stages = {
        label: {id(parameter) for parameter in parameters}
        for label, parameters in _stages(clip, random_images(clip)).items()
    }
    assert stages["head"] == {id(visual.proj), *map(id, visual.ln_post.parameters())}
    for parameter in (visual.class_embedding, visual.positional_embedding, visual.conv1.weight):
        assert id(parameter) in stages["embeddings"]


def test_frozen_parameters_stay_frozen() -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog"], templates=["{}"])
    clip.model.visual.requires_grad_(False)
    with torch.no_grad():
        found = randomization(clip, {"surgery": surgery}, random_images(clip), None)
    assert "head" in found.stages
    assert not any(value.requires_grad for value in clip.model.visual.parameters())


def test_the_seed_decides() -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=["{}"])
    images = random_images(clip)
    first, second, other = (
        randomization(clip, {"surgery": surgery}, images, 0, seed) for seed in (1, 1, 2)
    )
    assert first == second
    assert first.correlations != other.correlations
    assert first.correlations["surgery"][0] == other.correlations["surgery"][0]


# --- rank correlation ----------------------------------------------------------------------------


@each("change", [Tensor.clone, Tensor.round])
def test_spearman_against_scipy(change: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (change(2 * torch.randn(4, 5, 6, generator=generator)) for _ in range(2))
    expected = [
        spearmanr(one.flatten().numpy(), two.flatten().numpy()).statistic
        for one, two in zip(first, second, strict=True)
    ]
    assert spearman(first, second).tolist() == pytest.approx(expected)


def test_spearman_of_known_maps() -> None:
    rising = torch.arange(6.0).view(1, 2, 3)
    assert spearman(rising[:, :1, :2], 3 * rising[:, :1, :2]).item() == pytest.approx(1)
    assert spearman(rising, rising.exp()).item() == pytest.approx(1)
    assert spearman(rising, -rising).item() == pytest.approx(-1)
    assert spearman(rising, torch.ones(1, 2, 3)).item() == 0
    assert spearman(torch.ones(1, 2, 3), torch.ones(1, 2, 3)).item() == 0
    with pytest.raises(ValueError, match=r"same shape, got \(1, 2, 3\) and \(1, 3, 2\)"):
        spearman(rising, rising.mT)


def test_methods_above_the_limit_are_flagged() -> None:
    correlations = {"a": [1, 0, 0.6], "b": [1, 0.9, 0.5], "c": [1, 0.9, -0.9]}
    found = Randomization(("original", "head", "block 0"), correlations)
    assert flag_insensitive(found) == ["a"]
    assert flag_insensitive(found, limit=0.4) == ["a", "b"]


@each(
    ("maps", "message"),
    [
        (torch.ones(1, 3, 4, 4), r"maps of bad for one image and one text are \(1, 3, 4, 4\)"),
        (torch.ones(4, 4), r"maps of bad for one image and one text are \(4, 4\), expected"),
        (None, "maps of bad for one image and one text are NoneType"),
        (torch.full((1, 1, 4, 4), torch.nan), "maps of bad hold NaN"),
    ],
)
def test_refused_maps_name_the_method(maps: Tensor | None, message: str) -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=["{}"])
    with pytest.raises(ValueError, match=message):
        randomization(clip, {"bad": lambda _: lambda *_: maps}, random_images(clip), 0)


def test_each_image_is_explained_for_its_own_target() -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=["{}"])
    images = random_images(clip)
    seen = []

    def watch(given: ZeroShotClassifier) -> Explain:
        def explain(image: Tensor, targets: list[int]) -> Tensor:
            seen.append((image, targets))
            return image.mean(1, keepdim=True)

        return explain

    randomization(clip, {"watch": watch}, images, [1, 0])
    assert [targets for _, targets in seen[:2]] == [[1], [0]]
    assert torch.equal(torch.cat([image for image, _ in seen[:2]]), images)


def test_the_head_is_found_in_inference_mode_as_well() -> None:
    clip = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=["{}"])
    with torch.inference_mode():
        images = random_images(clip)
        found = randomization(clip, {"surgery": surgery}, images, 0)
    expected = randomization(clip, {"surgery": surgery}, random_images(clip), 0)
    assert found.stages == expected.stages
    assert found.correlations["surgery"] == pytest.approx(
        expected.correlations["surgery"], abs=0.01
    )
