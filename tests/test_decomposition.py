"""Cosines taken apart: every view of the parts adds up, and heads are named by texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captum_clip_surgery import ZeroShotClassifier, decompose, describe_head
from captum_clip_surgery.decomposition import Part, _decompose, _parts
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.functional import normalized
from tests._helpers.tiny import TWO_TOWERS, random_images, tiny_model

TEXTS = ("orange", "clover", "pineapple")


@pytest.fixture(scope="module")
def clip():
    return ZeroShotClassifier.demo(TEXTS)


@pytest.fixture(scope="module")
def scene():
    return Scenes("test", 120, size=256, objects=[2])[78]  # an orange and a clover


@pytest.fixture(scope="module")
def parts(clip, scene):
    return decompose(clip, scene.image)


@pytest.fixture(scope="module")
def tiny():
    return ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=())


def test_ablated_kinds_are_the_same_for_all_images(tiny):
    parts = decompose(tiny, random_images(tiny, 3))
    kinds = parts.by_kind()
    kept = kinds["attention"] + kinds["feed-forward"].mean(0)
    others = sum(
        value for name, value in kinds.items() if name not in ("attention", "feed-forward")
    )
    assert torch.allclose(parts.mean_ablated("feed-forward"), kept + others)
    rest = parts.mean_ablated() - kinds["attention"]
    assert torch.allclose(rest, rest[:1].expand_as(rest))
    assert torch.allclose(parts.mean_ablated(*kinds).mean(0), parts.sum().mean(0))
    with pytest.raises(ValueError, match=r"kinds must be among attention, .*, got 'mlp'"):
        parts.mean_ablated("mlp")
    with pytest.raises(ValueError, match="needs at least 2 of them, got 1"):
        decompose(tiny, random_images(tiny, 1)).mean_ablated()


def test_autocast_and_broken_weights(tiny):
    images = random_images(tiny, 2)
    with torch.autocast("cpu", torch.bfloat16):
        parts = decompose(tiny, images)
    assert torch.allclose(parts.sum(), decompose(tiny, images).cosines, atol=1e-5)
    broken = ZeroShotClassifier(tiny_model("vit"), ["a dog", "a cat"], templates=())
    with torch.no_grad():
        broken.model.visual.ln_post.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="contributions hold NaN or infinity"):
        decompose(broken, images)
    with pytest.raises(ValueError, match="contributions hold NaN or infinity"):
        describe_head(broken, images, block=0, head=0)


# --- sums ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TWO_TOWERS)
def test_all_views_sum_to_the_models_own_cosine(kind):
    clip = ZeroShotClassifier(tiny_model(kind), ["a dog", "a cat"], templates=())
    images = random_images(clip)
    parts = decompose(clip, images)
    with torch.no_grad():
        embedding = normalized(clip.model.encode_image(images))
        cosines = (embedding @ clip.text_features().T).double()
        logits = clip(images).double()
    assert torch.allclose(parts.cosines, cosines, atol=1e-5)
    assert torch.allclose(parts.sum(), cosines, atol=1e-5)
    assert torch.allclose(parts.logits(), logits, rtol=1e-4, atol=1e-4)
    by_kind = parts.by_kind()
    assert torch.allclose(sum(by_kind.values()), parts.sum())
    assert torch.allclose(parts.by_head().sum((-2, -1)), by_kind["attention"])
    assert torch.allclose(parts.map().sum((-2, -1)), by_kind["attention"])
    assert parts.map().shape == (2, 2, *clip.tower.grid(*images.shape[-2:]))
    in_blocks = by_kind["attention"]
    if parts.feed_forward is not None:
        in_blocks = in_blocks + by_kind["feed-forward"]
        assert torch.allclose(parts.feed_forward.sum(-1), by_kind["feed-forward"])
    assert torch.allclose(parts.by_block().sum(-1), in_blocks)
    ledger = parts.figure().axes[2]
    names = [label.get_text() for label in ledger.get_yticklabels()]
    assert ("pooling" in names) == (clip.tower.pooling == "attention")
    assert ("block 0" in names) == (clip.tower.pooling != "attention")


def test_other_sizes_and_precisions(tiny):
    rows, columns = tiny.tower.patch_size
    parts = decompose(tiny, torch.randn(1, 3, 3 * rows, 5 * columns))
    assert parts.grid == (3, 5)
    assert torch.allclose(parts.sum(), parts.cosines, atol=1e-6)
    double = ZeroShotClassifier(tiny_model("vit").double(), ["a dog"], templates=())
    exact = decompose(double, random_images(double).double())
    assert torch.allclose(exact.sum(), exact.cosines, atol=1e-12)


def test_images_and_batches_are_taken_apart_alike(tiny, monkeypatch):
    images = random_images(tiny, 5)
    together = decompose(tiny, images)
    monkeypatch.setattr(_decompose, "BATCH_SIZE", 2)
    split = decompose(tiny, images)
    assert len(split.images) == 5
    assert torch.allclose(split.attention, together.attention, atol=1e-7)
    assert torch.allclose(split.cosines, together.cosines, atol=1e-6)
    assert torch.allclose(split.by_block(), together.by_block(), atol=1e-6)
    one = decompose(tiny, images[3:4])
    assert torch.allclose(one.sum(), together.sum()[3:4], atol=1e-6)


def test_other_texts_than_the_classifiers(clip, parts, scene):
    others = decompose(clip, scene.image, ["pineapple", "dog"])
    assert others.texts == ("pineapple", "dog")
    assert torch.allclose(others.attention[:, 0], parts.attention[:, 2], atol=1e-6)


# --- views ---------------------------------------------------------------------------------------


def test_maps_of_heads_and_blocks_are_differences_of_maps(parts):
    num_blocks, num_heads = parts.attention.shape[2:4]
    others = [parts.map(2, head) for head in range(num_heads) if head != 1]
    assert torch.allclose(parts.map(2, 1), parts.map(2) - sum(others))
    others = [parts.map(block) for block in range(num_blocks) if block != 2]
    assert torch.allclose(parts.map(2), parts.map() - sum(others))
    assert torch.equal(parts.map(-1, -1), parts.map(num_blocks - 1, num_heads - 1))
    assert torch.allclose(parts.map(2, 1).sum((-2, -1)), parts.by_head()[:, :, 2, 1])


def test_the_difference_of_two_texts(parts):
    contrast = parts.contrast("pineapple", 0)
    assert contrast.texts == ("pineapple minus orange",)
    expected = parts.cosines[:, 2] - parts.cosines[:, 0]
    assert torch.allclose(contrast.sum()[:, 0], expected, atol=1e-6)
    assert torch.allclose(contrast.map()[:, 0], parts.map()[:, 2] - parts.map()[:, 0])
    logits = parts.logits()
    assert torch.allclose(contrast.logits()[:, 0], logits[:, 2] - logits[:, 0], atol=1e-4)


def test_top_parts_are_sorted_and_complete(parts):
    top = parts.top(5, text="pineapple")
    sizes = [abs(part.value) for part in top]
    assert sizes == sorted(sizes, reverse=True)
    assert len(top) == 5
    for patches in (False, True):
        every = parts.top(10**6, text="pineapple", patches=patches)
        assert sum(part.value for part in every) == pytest.approx(float(parts.sum()[0, 2]))
    first = next(part for part in every if part.kind == "attention")
    assert first.value == parts.map(first.block, first.head)[0, 2, first.row, first.column]
    whole = next(part for part in top if part.kind == "attention")
    assert whole == Part(
        *(0, "pineapple", "attention", whole.block, whole.head, None, None),
        float(parts.by_head()[0, 2, whole.block, whole.head]),
    )


def test_strongest_patches_over_a_collection(tiny):
    parts = decompose(tiny, random_images(tiny, 3))
    values = parts.map(1, 0)[:, 1]
    strongest = parts.strongest_patches(1, 0, "a cat", 4)
    assert [part.value for part in strongest] == values.flatten().sort(descending=True)[0][
        :4
    ].tolist()
    for part in strongest:
        assert values[part.image, part.row, part.column] == part.value
        assert (part.text, part.block, part.head) == ("a cat", 1, 0)
    assert len(parts.strongest_patches(1, 0, "a cat", 10**6)) == values.numel()
    assert parts.strongest_patches(-1, -1, count=1)[0].block == parts.attention.shape[2] - 1


def test_tables(tiny):
    pandas = pytest.importorskip("pandas")
    parts = decompose(tiny, random_images(tiny, 2))
    for patches in (False, True):
        frame = parts.to_dataframe(patches)
        assert isinstance(frame, pandas.DataFrame)
        assert list(frame.columns) == list(Part._fields)
        sums = frame.groupby(["image", "text"], sort=False)["value"].sum()
        assert sums.to_numpy() == pytest.approx(parts.cosines.flatten().numpy(), abs=1e-6)
    attention = frame[frame["kind"] == "attention"]
    assert len(attention) == parts.attention.numel()
    row = attention.iloc[-1]
    assert parts.map(row["block"], row["head"])[1, 1, row["row"], row["column"]] == row["value"]
    rest = frame[frame["kind"] != "attention"]
    assert set(rest["kind"]) == set(parts.remainder)
    assert rest["head"].isna().all()


def test_a_table_needs_pandas(parts, monkeypatch):
    monkeypatch.setattr(_parts, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="to_dataframe needs pandas, which is not installed"):
        parts.to_dataframe()


# --- figure --------------------------------------------------------------------------------------


def test_the_figure_adds_up(parts):
    figure = parts.figure(text="pineapple", heads=3)
    _, mapped, ledger, heads, *maps = figure.axes
    assert mapped.get_title() == "pineapple"
    assert maps[0].get_title().startswith("block 3, head 1: +")
    assert len(maps) == 3
    total = float(parts.sum()[0, 2])
    assert ledger.get_title() == f"sum = {total:.4f} = cosine"
    *bars, last = ledger.patches
    assert sum(bar.get_width() for bar in bars) == pytest.approx(total)
    assert last.get_width() == pytest.approx(total)
    ends = [bar.get_x() + bar.get_width() for bar in bars]
    starts = [bar.get_x() for bar in bars[1:]]
    assert starts == pytest.approx(ends[:-1])  # each bar starts where the one before ended
    heights = -np.array([bar.get_height() for bar in heads.patches])
    by_head = parts.by_head()[0, 2].flatten().numpy()
    assert heights / np.abs(heights).max() == pytest.approx(by_head / np.abs(by_head).max())


def test_figures_of_contrasts_and_without_maps(parts):
    contrast = parts.contrast("pineapple", "orange")
    figure = contrast.figure(heads=0, width="page")
    assert len(figure.axes) == 4
    assert figure.axes[2].get_title().endswith(" = difference of cosines")
    figure.canvas.draw()


# --- heads in words ------------------------------------------------------------------------------


def test_a_head_is_described_by_the_text_that_it_varies_most_by(clip):
    nouns = ["dog", "pizza", "moon", "camera", "kiwi"]
    images = [scene.image for scene in Scenes("test", 10, size=64)]
    described = describe_head(clip, images, block=3, head=1, texts=nouns, count=3)
    parts = decompose(clip, images, nouns)
    variances = parts.by_head()[:, :, 3, 1].var(0)
    assert described[0][0] == nouns[int(variances.argmax())]
    assert len({text for text, _ in described}) == 3
    shares = [share for _, share in described]
    assert all(0 < share < 1 for share in shares)
    assert sum(shares) < 1
    assert describe_head(clip, images, -5, -3, nouns, 3) == described


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.map(head=1), ValueError, "head=1 needs a block"),
        (lambda p: p.map(block=8), IndexError, "block 8 is out of range: there are 8"),
        (lambda p: p.map(block=0, head=4), IndexError, "head 4 is out of range: there are 4"),
        (lambda p: p.top(image=1), IndexError, "image 1 is out of range: there are 1"),
        (lambda p: p.figure(text="dog"), ValueError, "text 'dog' is not among the"),
        (lambda p: p.contrast(0, 3), IndexError, "text 3 is out of range: there are 3"),
    ],
)
def test_parts_that_do_not_exist(parts, call, error, message):
    with pytest.raises(error, match=message):
        call(parts)


def test_refusals(clip, scene):
    with pytest.raises(ValueError, match="expected"):
        decompose(clip, torch.zeros(3, 224, 224))
    with pytest.raises(ValueError, match="NaN"):
        decompose(clip, torch.full((1, 3, 224, 224), torch.nan))
    given = ZeroShotClassifier.from_features(clip.model, clip.text_features())
    assert decompose(given, given.preprocess(scene.image)).texts == given.texts
    with pytest.raises((TypeError, ValueError), match="from_features"):
        decompose(given, scene.image, ["dog"])
    with pytest.raises(TypeError, match="'dog'"):
        decompose(clip, scene.image, "dog")
    with pytest.raises(ValueError, match="two or more images"):
        describe_head(clip, scene.image, 0, 0)
    with pytest.raises(IndexError, match="block must be from -8 to 7, got 8"):
        describe_head(clip, [scene.image] * 2, 8, 0)
    with pytest.raises(IndexError, match="head must be from -4 to 3, got 4"):
        describe_head(clip, [scene.image] * 2, 0, 4)


def test_the_model_is_left_as_it_was(tiny):
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    parts = decompose(tiny, random_images(tiny).requires_grad_())
    assert not parts.attention.requires_grad
    assert all(parameter.grad is None for parameter in tiny.model.parameters())
    assert all(torch.equal(before[name], v) for name, v in tiny.model.state_dict().items())
