"""Tokenizers of every manner: the model's own features of their ids, or an error that says why."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn
from torch.testing import assert_close

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.models.text._encoder import PromptEncoder
from tests._helpers.cases import each
from tests._helpers.text_towers import CONTEXT, save_tokenizer, text_model

TEXTS = ["dog", "a remote control on a table", "cat!"]
FILLS = "dog " * (CONTEXT - 2)  # besides start and end
TOO_LONG = "dog " * (CONTEXT - 1)
#: One more token than fits, and it has the id of the padding.
ENDS_IN_PADDING = "dog " * (CONTEXT - 2) + "!?"

MODELS = {
    "pooled at the end": (CLIP, {}),
    "bidirectional": (CustomTextCLIP, dict(no_causal_mask=True)),
    "last token": (CustomTextCLIP, dict(pool_type="last")),
}


@functools.cache
def model_of(name: str) -> Any:
    family, text_cfg = MODELS[name]
    return text_model(family, **text_cfg)


def own_features(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.normalize(model.encode_text(ids), dim=-1)


def ids_of(texts: Sequence[str], length: int = CONTEXT) -> Tensor:
    return open_clip.tokenize(list(texts), context_length=length)


def fixed(width: int) -> Callable[..., Tensor]:
    """A tokenizer that ignores `context_length`, as a lambda around another often does."""
    return lambda texts, context_length=None: ids_of(texts, width)


def to_longest(texts: Sequence[str], length: int) -> Tensor:
    ids = ids_of(texts, length)
    return ids[:, : int(ids.argmax(-1).max()) + 1]


def at_the_front(texts: Sequence[str], length: int) -> Tensor:
    ids = ids_of(texts, length)
    return torch.stack([row.roll(length - 1 - int(row.argmax())) for row in ids])


def class_token_behind(texts: Sequence[str], length: int) -> Tensor:
    """Padding stands between the text and a last token, as with open_clip's mode "clips"."""
    ids = ids_of(texts, length - 1)
    return torch.cat([ids, ids.new_full((len(ids), 1), 5)], dim=1)


# --- what is right -------------------------------------------------------------------------------

RIGHT: dict[str, Callable[..., Any]] = {
    "follows": ids_of,
    "fixed at the context": fixed(CONTEXT),
    "fixed at one more": fixed(CONTEXT + 1),
    "fixed at 77": fixed(77),
    "at most the context": lambda texts, n: ids_of(texts, min(n, CONTEXT)),
    "int32": lambda texts, n: ids_of(texts, n).int(),
    "numpy": lambda texts, n: ids_of(texts, n).numpy().astype(np.uint16),
    "lists": lambda texts, n: ids_of(texts, n).tolist(),
    "dictionary": lambda texts, n: {"input_ids": ids_of(texts, n), "attention_mask": None},
    "the same tensor again": functools.lru_cache(lambda texts, n: ids_of(texts, n)),
}


def called(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda texts, context_length: function(tuple(texts), context_length)


@pytest.mark.parametrize("model", MODELS)
@each("case", RIGHT)
def test_features_are_the_models_own(case, model):
    encoder = PromptEncoder(model_of(model), called(RIGHT[case]), templates=())
    for texts in (TEXTS, TEXTS[:1]):
        assert_close(encoder(texts), own_features(model_of(model), ids_of(texts)))


@pytest.mark.parametrize("model", MODELS)
@each("case", RIGHT)
def test_a_prompt_as_long_as_the_context_is_read_whole_or_refused(case, model):
    """Which of them were cut cannot be told of a tokenizer that gives what it gives."""
    follows = "fixed" not in case and "at most" not in case

    def encoder(truncate: bool) -> PromptEncoder:
        return PromptEncoder(model_of(model), called(RIGHT[case]), (), truncate)

    for text in (FILLS, TOO_LONG, ENDS_IN_PADDING):
        expected = own_features(model_of(model), ids_of([text]))
        if follows and text == FILLS:
            assert_close(encoder(False)([text]), expected)
        else:
            message = "(longer than|exceeds) the model's context of 16 tokens"
            with pytest.raises(ValueError, match=message):
                encoder(False)(["dog", text])
        if case in ("fixed at one more", "fixed at 77"):
            with pytest.raises(ValueError, match=r"cannot truncate it, .* returns \d\d columns"):
                encoder(True)(["dog", text])
        else:
            assert_close(encoder(True)([text]), expected)


# --- what is refused -----------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "shorter": (fixed(12), ValueError, "returned 12 and 12 columns .* the model's context is 16"),
    "to the longest": (to_longest, ValueError, "returned 3 and 3 columns of token ids"),
    "padded in front": (at_the_front, ValueError, r"for the text 'a', which is not padded at the"),
    "fixed, padded in front": (
        lambda texts, n: at_the_front(texts, CONTEXT),
        ValueError,
        "not padded at the end",
    ),
    "token behind": (class_token_behind, ValueError, "not padded at the end"),
    "one more by chance": (
        lambda texts, n: ids_of(texts, n) if len(texts) == 1 else ids_of(texts, n + 1),
        ValueError,
        r"returned 17 columns for one text and 18 for others",
    ),
    "one column": (lambda texts, n: ids_of(texts, n)[:, :1], ValueError, r"shape \(1, 1\)"),
    "one dimension": (lambda texts, n: ids_of(texts, n)[0], ValueError, r"shape \(16,\) for 1"),
    "three dimensions": (lambda texts, n: ids_of(texts, n)[None], ValueError, r"\(1, 1, 16\)"),
    "other batch size": (
        lambda texts, n: ids_of([*texts, "more"], n),
        ValueError,
        r"shape \(2, 16\) for 1 texts",
    ),
    "one text of many": (
        lambda texts, n: ids_of(texts[:1], n),
        ValueError,
        r"shape \(1, 17\) for 3 texts",
    ),
    "floats": (lambda texts, n: ids_of(texts, n).float(), TypeError, "float32, expected integers"),
    "truth": (lambda texts, n: ids_of(texts, n) > 0, TypeError, "torch.bool, expected integers"),
    "ragged": (lambda texts, n: [[1, 2], [3]], TypeError, r"\[\[1, 2\], \[3\]\] of type list"),
    "words": (lambda texts, n: [text.split() for text in texts], TypeError, "of type list"),
    "nothing": (lambda texts, n: None, TypeError, "returned None of type NoneType"),
    "beyond": (
        lambda texts, n: ids_of(texts, n) + 1,
        ValueError,
        "'dog' the token id 49408, .*0 to",
    ),
    "negative": (lambda texts, n: ids_of(texts, n) - 1, ValueError, "the token id -1"),
}


@each("case", WRONG)
def test_other_output_is_refused_by_name(case):
    tokenizer, error, message = WRONG[case]
    with pytest.raises(error, match=message) as caught:
        ZeroShotClassifier(model_of("bidirectional"), TEXTS, None, called(tokenizer), ())
    assert "pass " in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda texts: ids_of(texts), r"must take \(texts, context_length=...\), .* is \(texts\)"),
        (lambda texts, length: ids_of(texts, length), r"signature is \(texts, length\)"),
        ("ViT-B-32", "the tokenizer must be callable, got 'ViT-B-32'; pass"),
    ],
)
def test_what_cannot_be_called_with_a_context_length(tokenizer, message):
    with pytest.raises(TypeError, match=message):
        PromptEncoder(model_of("bidirectional"), tokenizer)


# --- Hugging Face --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_wrapped_hugging_face_tokenizers(hugging_face):
    """Each manner of padding and cutting that a lambda may ask of one."""
    model = text_model(CustomTextCLIP, no_causal_mask=True, vocab_size=60)
    texts = ["a dog", "a remote control on a table"]
    fits, too_long = "dog " * (CONTEXT - 2), "dog " * (CONTEXT - 1)

    def wrapped(**options: Any) -> Callable[..., Any]:
        def tokenizer(texts: list[str], context_length: int) -> Any:
            length = {"max_length": context_length, "truncation": True}
            return hugging_face(texts, **(length | options))

        return tokenizer

    full = dict(padding="max_length", return_tensors="pt")

    def expected(prompts: list[str]) -> Tensor:
        return own_features(model, wrapped(**full)(prompts, CONTEXT).input_ids)

    for options in (full, dict(padding="max_length"), full | dict(max_length=CONTEXT)):
        encoder = PromptEncoder(model, wrapped(**options), ())
        assert_close(encoder(texts), expected(texts))
        if "max_length" in options:
            with pytest.raises(ValueError, match="may be longer than the model's context of 16"):
                encoder([fits])
        else:
            assert_close(encoder([fits]), expected([fits]))
        with pytest.raises(ValueError, match="longer than the model's context of 16"):
            encoder([too_long])
        cut = PromptEncoder(model, wrapped(**options), (), truncate=True)
        assert_close(cut([too_long, "dog"]), expected([too_long, "dog"]))
    refused = [
        (wrapped(padding=True, return_tensors="pt"), ValueError, "3 and 3 columns"),
        (wrapped(padding=True, max_length=None, truncation=False), ValueError, "3 and 3 columns"),
        (wrapped(), ValueError, "3 and 3 columns"),
        (hugging_face, ValueError, "3 and 3 columns"),
        (wrapped(**full, padding_side="left"), ValueError, "not padded at the end"),
    ]
    for tokenizer, error, message in refused:
        with pytest.raises(error, match=message):
            PromptEncoder(model, tokenizer, ())(texts)
    small = text_model(CustomTextCLIP, no_causal_mask=True, vocab_size=6)
    with pytest.raises(ValueError, match=r"vocabulary has ids from 0 to 5; pass the tokenizer"):
        PromptEncoder(small, wrapped(**full), ())(texts)
