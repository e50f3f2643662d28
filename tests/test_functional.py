"""The mathematics against its definitions, spelled out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery import functional
from tests._helpers.cases import each


def features(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


TOKENS, TEXTS, CLASS = features(2, 5, 7), features(4, 7, seed=1), features(2, 7, seed=2)


def test_vv_attention_is_softmax_of_vv() -> None:
    values = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    weights = (values @ values.mT / 8**0.5).softmax(-1)
    torch.testing.assert_close(functional.vv_attention(values), weights @ values)


def test_normalized_vv_attention() -> None:
    values = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    unit = values / (values.norm(dim=-1, keepdim=True) + 1e-6)
    weights = (8 * unit @ unit.mT / 8**0.5).softmax(-1)
    torch.testing.assert_close(functional.normalized_vv_attention(values), weights @ values)


@pytest.mark.parametrize("inverse_temperature", [0.5, 2.0, 50.0])
def test_release_and_paper_form_by_loops(inverse_temperature: float) -> None:
    release, paper = torch.empty(2, 4, 5).double(), torch.empty(2, 4, 5).double()
    for n in range(2):
        p = (
            torch.tensor([float(inverse_temperature * CLASS[n] @ text) for text in TEXTS])
            .double()
            .softmax(0)
        )
        w = p / p.mean()
        for i in range(5):
            s = torch.stack([TOKENS[n, i] @ text for text in TEXTS])
            release[n, :, i] = w * s - (w * s).mean()
            paper[n, :, i] = s - (w * s).mean()
    for variant, expected in (("release", release), ("paper", paper)):
        scores = functional.feature_surgery(TOKENS, TEXTS, CLASS, variant, inverse_temperature)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-7)


def test_the_form_is_the_released_one_where_none_is_named() -> None:
    released = functional.feature_surgery(TOKENS, TEXTS, CLASS, "release")
    assert torch.equal(functional.feature_surgery(TOKENS, TEXTS, CLASS), released)


def test_empty_form_is_the_score_of_the_difference() -> None:
    empty = features(7, seed=3)
    scores = functional.feature_surgery(TOKENS, TEXTS, CLASS, "empty", empty_features=empty)
    torch.testing.assert_close(scores, ((TEXTS - empty) @ TOKENS.mT))


def test_no_form_is_the_cosine() -> None:
    scores = functional.feature_surgery(TOKENS, TEXTS, CLASS, None)
    torch.testing.assert_close(scores, F.cosine_similarity(TEXTS[:, None], TOKENS[:, None], dim=-1))


def test_weights_are_positive_with_mean_one() -> None:
    weights = functional.class_weights(CLASS @ TEXTS.T)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.mean(-1), torch.ones(2).double())


@each("variant", [*functional.VARIANTS, None])
@each("targets", [[2], [3, 0], [[1], [2]]])
def test_targets_select_rows(variant: str | None, targets: list[int] | list[list[int]]) -> None:
    index = torch.tensor(targets)
    options = {"variant": variant, "empty_features": features(7, seed=3)}
    full = functional.feature_surgery(TOKENS, TEXTS, CLASS, **options)
    part = functional.feature_surgery(TOKENS, TEXTS, CLASS, **options, targets=index)
    rows = index if index.ndim == 2 else index.expand(2, -1)
    torch.testing.assert_close(part, torch.stack([full[n, rows[n]] for n in range(2)]))


def test_paper_form_keeps_the_ranking_of_texts() -> None:
    plain = functional.feature_surgery(TOKENS, TEXTS, CLASS, None)
    paper = functional.feature_surgery(TOKENS, TEXTS, CLASS, "paper")
    assert torch.equal(plain.argsort(1), paper.argsort(1))


def test_unknown_form_and_missing_empty_text() -> None:
    with pytest.raises(
        ValueError, match="variant must be one of release, paper, empty or None, got 'published'"
    ):
        functional.feature_surgery(TOKENS, TEXTS, CLASS, "published")
    with pytest.raises(ValueError, match="needs empty_features"):
        functional.feature_surgery(TOKENS, TEXTS, CLASS, "empty")


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_features_are_normalised_in_single_precision_or_wider(
    given: torch.dtype, computed: torch.dtype
) -> None:
    values = torch.randn(2, 3, 5).to(given)
    lengths = values.to(computed).pow(2).sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(functional.normalized(values), values.to(computed) / lengths)


def test_what_has_a_direction() -> None:
    rows = torch.tensor(
        [
            [[3.0, -4, 0, 0], [1e-3, 1e-3, 1e-3, 1e-3], [100, 0, 0, 0]],
            [[0, 0, 0, 0], [1, 2, 3, torch.nan], [1, 2, 3, torch.inf]],
            [[1.2e-7, 6e-8, 6e-8, 0], [6e4, 6e4, 6e4, 6e4], [1, 1, 1, 1]],
        ]
    )
    few_bits = [[True, True, True], [False, False, False], [False, False, True]]
    assert functional.has_direction(rows.half()).tolist() == few_bits
    more_bits = [*few_bits[:2], [True, True, True]]
    assert functional.has_direction(rows.requires_grad_()).tolist() == more_bits


def test_full_precision_is_that_of_the_tensors() -> None:
    values = torch.randn(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (values @ values).dtype == torch.bfloat16
        with functional.full_precision(values):
            assert (values @ values).dtype == torch.float32


# --- texts that describe a part ------------------------------------------------------------------


def test_planted_directions_are_named_in_order() -> None:
    """Outputs vary along known texts, most along the first; the others are decoys."""
    generator = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(20, 64, generator=generator, dtype=torch.float64), dim=-1)
    coefficients = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    outputs = coefficients * torch.tensor([4.0, 2.0, 1.0]) @ texts[[7, 3, 12]] + 5 * texts[0]
    chosen = functional.text_span(outputs, texts, 3)
    assert [index for index, _ in chosen] == [7, 3, 12]
    # Three directions hold all variance, and a constant output holds none.
    assert sum(share for _, share in chosen) == pytest.approx(1)
    assert chosen[0][1] > chosen[1][1] > chosen[2][1] > 0
    assert functional.text_span(outputs, texts, 10) == chosen
    # Lengths of outputs do not matter, nor where they are centered.
    again = functional.text_span(1000 * outputs - 3, texts, 3)
    assert [index for index, _ in again] == [7, 3, 12]
    scaled = functional.text_span(outputs, texts * torch.linspace(1, 100, 20)[:, None], 3)
    assert [index for index, _ in scaled] == [7, 3, 12]
    # Texts of another dtype take that of the outputs.
    assert [index for index, _ in functional.text_span(outputs, texts.float(), 3)] == [7, 3, 12]
    assert functional.text_span(outputs, texts, 1) == chosen[:1]


def test_text_span_is_the_best_projection_by_search() -> None:
    """Each step takes the text of most variance in what the texts before leave, by projectors."""
    outputs, texts = features(40, 9, seed=3), features(12, 9, seed=4)
    centered, projector, steps = outputs - outputs.mean(0), torch.eye(9).double(), []
    for _ in range(5):
        left = F.normalize(texts, dim=-1) @ projector
        index = int((centered @ left.T).pow(2).sum(0).argmax())
        direction = left[index] / left[index].pow(2).sum().sqrt()
        share = (centered @ direction).pow(2).sum() / centered.pow(2).sum()
        steps.append((index, pytest.approx(float(share))))
        projector = projector - torch.outer(direction, direction)
    assert functional.text_span(outputs, texts) == steps
    assert len(functional.text_span(outputs[:2], texts, 1)) == 1  # two images are enough


def test_what_a_text_explains_is_taken_from_the_others() -> None:
    """Two texts nearly alike: the second adds nothing once the first is chosen."""
    outputs = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    texts = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=-1)
    chosen = functional.text_span(outputs, texts, 2)
    assert [index for index, _ in chosen] == [0, 2]
    assert [share for _, share in chosen] == pytest.approx([0.9, 0.1])
    # The three lie in a plane, which two of them span.
    assert functional.text_span(outputs, texts, 3) == chosen
    assert functional.text_span(torch.ones(4, 2), texts) == []


@pytest.mark.parametrize(
    ("outputs", "texts", "count", "message"),
    [
        (torch.ones(4, 2), torch.ones(3, 5), 1, r"shapes \(\(4, 2\), \(3, 5\)\), expected"),
        (torch.ones(4), torch.ones(3, 4), 1, "expected"),
        (torch.ones(1, 2), torch.ones(3, 2), 1, "two or more images"),
        (torch.ones(4, 2), torch.ones(3, 2), 0, "count must be at least 1, got 0"),
    ],
)
def test_text_span_refusals(outputs: Tensor, texts: Tensor, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional.text_span(outputs, texts, count)
