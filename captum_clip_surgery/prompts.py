"""Texts to text features: the prompt ensemble, exact truncation and a cache."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_clip_surgery.agreement import TextSide
from captum_clip_surgery.fingerprints import fingerprint, is_open_clips_bpe
from captum_clip_surgery.functional import has_direction, normalized
from captum_clip_surgery.models import check_place, check_same, version_of
from captum_clip_surgery.prefixes import encode_shared, shares_prefixes
from captum_clip_surgery.text_cache import TextCache
from captum_clip_surgery.text_towers import (
    context_length_of,
    end_of_text,
    final_tokens,
    has_hooks,
    is_own_transformer,
    modules_of,
    parameters_of,
    pool_text,
    pooled_at_end_of_text,
    project_text,
    silent_text_hooks,
    warn_of_hooks,
)
from captum_clip_surgery.texts import TEMPLATES, Template, fill, shorten
from captum_clip_surgery.tokenization import (
    Tokenizer,
    check_ends,
    check_tokenizer,
    check_vocabulary,
    padding_id,
    tokenize,
)

BPE_VOCABULARY = 49_408  # open_clip's own tokenizer
PLACES = 2**14  # tokens that pass through the text tower at once
TEXTS_AT_ONCE = 256  # texts whose prompts are held at once
REMEMBERED = 50_000  # texts, before all but those just asked for are forgotten


class PromptEncoder:
    """The text side of one model: texts to L2-normalised features, remembered per text.

    Args:
        model: an open_clip model.
        tokenizer: an open_clip tokenizer, or any callable that maps texts and `context_length` to
            token ids (texts, context_length) with padding at the end; None is open_clip's own BPE,
            where the text tower's vocabulary is its 49,408.
        templates: format strings or callables; a text's feature is the normalised mean of the
            normalised features of its prompts (Li et al., "A Closer Look at the Explainability of
            CLIP", Sec. 4). An empty sequence takes each text as it is.
        truncate: cut prompts longer than the context instead of raising.
        cache: folder in which features are kept between processes, in a file of at most about
            1 GiB (see `TextCache`). If it cannot be used, a warning says so and features are
            computed. None writes nothing.

    Raises:
        TypeError: a tokenizer that is not callable or does not take `context_length`.
        ValueError: no tokenizer and a vocabulary that is not open_clip's, or no context length.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer | None = None,
        templates: Sequence[Template] = TEMPLATES,
        truncate: bool = False,
        cache: str | PathLike[str] | None = None,
    ) -> None:
        if isinstance(templates, str) or callable(templates):
            shown = shorten(templates) if isinstance(templates, str) else repr(templates)
            raise TypeError(f"templates is {shown} alone; pass a list: [{shown}]")
        if not isinstance(templates, Iterable):
            raise TypeError(f"templates is a {type(templates).__name__}, expected a list")
        templates = tuple(templates)  # an iterator gives them once
        for template in templates:
            fill(template, "text")
        self.model = model
        self.templates: tuple[Template, ...] = templates or ("{}",)
        self.truncate = truncate
        if tokenizer is None:
            vocabulary = getattr(self.tower, "vocab_size", None)
            if vocabulary != BPE_VOCABULARY:
                raise ValueError(
                    f"the text tower's vocabulary is {vocabulary}, open_clip's own tokenizer's "
                    f"{BPE_VOCABULARY}; pass tokenizer=open_clip.get_tokenizer(name)"
                )
            tokenizer = open_clip.tokenize
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.context_length = context_length_of(self.tower, tokenizer)
        self._disk = None if cache is None else TextCache(cache)
        self._own_words = cache is not None and is_open_clips_bpe(tokenizer)
        self._fingerprint: tuple[int, bytes] = (0, b"")  # of a generation
        self._cache: dict[str, Tensor] = {}
        self._cached_for: object = None
        self._held: list[Tensor] = []
        self._generation = 0
        self._side = TextSide(model)

    @property
    def tower(self) -> Any:
        """The text tower: the model itself (CLIP) or its `text` (CustomTextCLIP)."""
        return getattr(self.model, "text", self.model)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Features (T, C) of texts, on the text tower's device, in float32 or wider.

        Raises:
            TypeError: a tokenizer that returns something other than integers.
            ValueError: a prompt longer than the context (unless `truncate`); a tokenizer whose
                output does not fit the model.
        """
        self.generation()
        cache = self._cache  # a change in another thread replaces it, never empties it
        missing = [text for text in dict.fromkeys(texts) if text not in cache]
        device = self._device()
        # Remembered features may meet autograd, and full precision, later.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            for start in range(0, len(missing), TEXTS_AT_ONCE):
                part = missing[start : start + TEXTS_AT_ONCE]
                cache.update(self._recalled(part))
                part = [text for text in part if text not in cache]
                if part:
                    before = _marks(parameters_of(self.tower))
                    found = dict(zip(part, self._encode(part), strict=True))
                    check_same(before, _marks(parameters_of(self.tower)))
                    self._keep(found)
                    cache.update(found)
            if len(cache) > REMEMBERED:
                self._cache = {text: cache[text] for text in texts}
            return torch.stack([cache[text] for text in texts])

    def generation(self) -> int:
        """A number that grows when a parameter of the text tower has changed.

        Changes through `p.data.mul_()` and its like, which leave no trace in torch, are not seen.
        """
        parameters = parameters_of(self.tower)
        state = _marks(parameters)
        if state != self._cached_for:
            check_place([*parameters, self.model.logit_scale], "text tower")
            # Held, so that their memory is not handed to others, which would look the same.
            self._held = [p.detach() for p in parameters]
            self._cache, self._cached_for = {}, state
            self._generation += 1
        self.check()
        return self._generation

    def check(self) -> None:
        """Check that features are those of the model's `encode_text`, see `TextSide`."""

        def encode(model: nn.Module, tokens: Tensor) -> Tensor:
            encoder = copy.copy(self)
            encoder.model = model
            return encoder.encode_tokens(tokens)

        self._side.check(encode, self.context_length)

    def __getstate__(self) -> dict[str, Any]:
        """Without what only tells this process's parameters apart, the text tower among it."""
        return {**self.__dict__, "_held": [], "_cached_for": None}

    def _device(self) -> torch.device:
        return parameters_of(self.tower)[0].device

    # --- on disk ---------------------------------------------------------------------------------

    def _uses_disk(self) -> bool:
        """Hooks may change features, and no digest tells what they do."""
        return self._disk is not None and not has_hooks(modules_of(self.tower))

    def _recalled(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Features of those texts that the disk has."""
        if not self._uses_disk():
            return {}
        assert self._disk is not None
        keys = self._keys(texts)
        found = self._disk.get(keys.values())
        device = self._device()
        return {text: found[key].to(device) for text, key in keys.items() if key in found}

    def _keep(self, features: Mapping[str, Tensor]) -> None:
        if self._uses_disk():
            assert self._disk is not None
            keys = self._keys(list(features))
            self._disk.put({keys[text]: feature for text, feature in features.items()})

    def _keys(self, texts: Sequence[str]) -> dict[str, bytes]:
        """Digests of the text tower and of each text's prompts.

        Prompts stand for their ids where the tokenizer is open_clip's own; of others, which may be
        any function, the ids are asked.
        """
        if self._fingerprint[0] != self._generation:
            self._fingerprint = self._generation, fingerprint(self.tower)
        about = [self._fingerprint[1].hex(), self.context_length, self.truncate, self._own_words]
        keys = {}
        for text in texts:
            prompts = [fill(template, text) for template in self.templates]
            content = prompts if self._own_words else self.tokenize(prompts).tolist()
            keys[text] = hashlib.sha256(json.dumps([about, content]).encode()).digest()
        return keys

    # --- prompts ---------------------------------------------------------------------------------

    def _encode(self, texts: Sequence[str]) -> Tensor:
        prompts = [fill(template, text) for text in texts for template in self.templates]
        tokens = self.tokenize(prompts)
        features = F.normalize(self.encode_tokens(tokens), dim=-1)
        means = features.unflatten(0, (len(texts), len(self.templates))).mean(1)
        found = F.normalize(means, dim=-1)
        lost = (~has_direction(found)).nonzero().flatten().tolist()
        if lost:
            raise ValueError(
                f"the text tower makes zero, NaN or infinity of {shorten(texts[lost[0]])}; are the "
                "model's weights whole?"
            )
        return found

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Return the token ids (P, context) of prompts, none of them cut unless `truncate`."""
        tokens, padding = tokenize(self.tokenizer, prompts, self.context_length, self.truncate)
        check_vocabulary(self.tower, tokens, prompts)
        check_ends(self.tower, tokens, padding, prompts)
        return tokens

    def padding(self) -> int:
        """Return the id that fills the positions after a text."""
        return padding_id(self.tokenizer, self.context_length)

    def token_features(self, tokens: Tensor) -> Tensor:
        """Every token's own L2-normalised feature (P, L, C), before pooling makes one of them.

        They are the tower's last tokens after its final LayerNorm, through its projection. L is the
        length of the longest text where nothing behind it is seen, otherwise the context.

        Args:
            tokens: ids (P, context) as `tokenize` gives them.

        Raises:
            TypeError: a text tower that is not one of open_clip's own.
        """
        if not is_own_transformer(self.tower):
            raise TypeError(
                f"the text tower {type(self.tower).__name__} has no tokens in the joint space; "
                "open_clip's own text transformers have (CLIP and the TextTransformer of "
                "CustomTextCLIP and CoCa)"
            )
        warn_of_hooks(silent_text_hooks(self.model, self.tower))
        if pooled_at_end_of_text(self.tower):
            tokens = tokens[:, : int(end_of_text(self.tower, tokens).max()) + 1]
        tokens = tokens.to(self._device())
        return normalized(project_text(self.tower, final_tokens(self.tower, tokens)))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Unnormalised features (P, C) of token ids (P, context), as `encode_text` gives them.

        What texts share at their beginnings is computed once, and nothing behind their ends, where
        the text tower allows it: it is one of open_clip's own, causal, pooled at the end of the
        text, and has no hooks on its transformer, blocks and attention. Hooks there see whole
        batches; they cost that speed.
        """
        lengths = self._lengths(tokens)
        order = lengths.argsort()
        chunks = (lengths[order].cumsum(0) - 1).div(PLACES, rounding_mode="floor").bincount()
        rows = [part for part in order.split(chunks.tolist()) if len(part)]
        features = torch.cat([self._encode_chunk(tokens[part]) for part in rows])
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        return features[order.argsort().to(features.device)]

    def _lengths(self, tokens: Tensor) -> Tensor:
        """How many places (P,) of texts matter."""
        if pooled_at_end_of_text(self.tower):
            return end_of_text(self.tower, tokens) + 1
        return torch.full((len(tokens),), tokens.shape[1])

    def _encode_chunk(self, tokens: Tensor) -> Tensor:
        device = self._device()
        if silent_text_hooks(self.model, self.tower):  # they fire where the tower is called
            return self.model.encode_text(tokens.to(device))  # type: ignore[operator]
        if shares_prefixes(self.tower):
            return encode_shared(self.tower, tokens, device)
        tokens = tokens[:, : int(self._lengths(tokens).max())].to(device)
        if pooled_at_end_of_text(self.tower):
            return pool_text(self.tower, final_tokens(self.tower, tokens), tokens)
        return self.model.encode_text(tokens)  # type: ignore[operator]


def _marks(parameters: list[nn.Parameter]) -> list[tuple[int, int]]:
    return [(p.data_ptr(), version_of(p)) for p in parameters]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def looked_up(features: Callable[[], Tensor]) -> Tensor:
    """Remembered features, which are no part of a compiled graph."""
    return features()
