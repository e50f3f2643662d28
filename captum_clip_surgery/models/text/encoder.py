"""Texts to text features: the prompt ensemble, exact truncation and a cache."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_clip_surgery.functional import has_direction, normalized
from captum_clip_surgery.models._agreement import TextSide
from captum_clip_surgery.models._changes import changes, unexplained
from captum_clip_surgery.models._contents import UntellableError
from captum_clip_surgery.models._guards import check_place, check_same
from captum_clip_surgery.models._state import State, read_state
from captum_clip_surgery.models.text._fingerprint import fingerprint, is_open_clips_bpe
from captum_clip_surgery.models.text.cache import TextCache
from captum_clip_surgery.models.text.prefix_tree import encode_shared, shares_prefixes
from captum_clip_surgery.models.text.templates import (
    TEMPLATES,
    Template,
    format_prompt,
    truncate_repr,
)
from captum_clip_surgery.models.text.tokenization import (
    Tokenizer,
    check_ends,
    check_tokenizer,
    check_vocabulary,
    padding_id,
    tokenize,
)
from captum_clip_surgery.models.text.towers import (
    NOT_TEXT,
    context_length_of,
    end_of_text,
    final_tokens,
    is_own_transformer,
    parameters_of,
    pool_text,
    pooled_at_end_of_text,
    project_text,
    silent_text_hooks,
    warn_of_hooks,
)

BPE_VOCABULARY = 49_408  # open_clip's own tokenizer
PLACES = 2**14  # tokens that pass through the text tower at once
TEXTS_AT_ONCE = 256  # texts whose prompts are held at once
REMEMBERED = 50_000  # texts, before all but those just asked for are forgotten


class _Known(NamedTuple):
    """Features of one state of the text tower, by text. `generation` is that state's identity."""

    generation: object
    state: State
    features: dict[str, Tensor]


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
            shown = truncate_repr(templates) if isinstance(templates, str) else repr(templates)
            raise TypeError(f"templates is {shown} alone; pass a list: [{shown}]")
        if not isinstance(templates, Iterable):
            raise TypeError(f"templates is a {type(templates).__name__}, expected a list")
        templates = tuple(templates)  # an iterator gives them once
        for template in templates:
            format_prompt(template, "text")
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
        self._known: _Known | None = None
        self._digest: tuple[object, bytes | None] = (None, None)  # of a generation
        self._warned = False
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
            RuntimeError: the text tower was changed meanwhile; nothing is kept then.
        """
        known = self._current()
        cache = known.features  # a change in another thread replaces it, never empties it
        missing = [text for text in dict.fromkeys(texts) if text not in cache]
        device = self._device()
        # Remembered features may meet autograd, and full precision, later.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            if missing:
                cache.update(self._features(missing, known))
            latest = self._known
            if len(cache) > REMEMBERED and latest is not None and latest.features is cache:
                self._known = latest._replace(features={text: cache[text] for text in texts})
            return torch.stack([cache[text] for text in texts])

    def generation(self) -> object:
        """An object that is replaced once something that determines features has changed.

        `model_state` tells what is compared, and which changes are not seen.
        """
        return self._current().generation

    def check(self) -> None:
        """Check that features are those of the model's `encode_text`, see `TextSide`."""

        def encode(model: nn.Module, tokens: Tensor) -> Tensor:
            encoder = copy.copy(self)
            encoder.model = model
            return encoder.encode_tokens(tokens)

        self._side.check(encode, self.context_length)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is known of this process's text tower."""
        return {**self.__dict__, "_known": None, "_digest": (None, None)}

    def _device(self) -> torch.device:
        return parameters_of(self.tower)[0].device

    # --- the text tower's state ------------------------------------------------------------------

    def _current(self) -> _Known:
        """What is remembered of the text tower as it is now."""
        self.check()
        known = self._known
        if known is not None and known.state.same(self._read(known.state)):
            return known
        state = self._read()
        if known is not None and not changes(known.state, state):
            known = known._replace(state=state)  # a pass of somebody else's moved a counter
        else:
            check_place([*parameters_of(self.tower), self.model.logit_scale], "text tower")
            known = _Known(object(), state, {})
        self._known = known
        return known

    def _read(self, previous: State | None = None) -> State:
        others = [
            part for name in NOT_TEXT if (part := getattr(self.model, name, None)) is not None
        ]
        return read_state(self.model, others, previous, samples=True)

    def _checked(self, known: _Known, tokens: Mapping[str, Tensor], found: Tensor) -> _Known:
        """Check that the text tower is the one it was before the first texts were encoded.

        Args:
            known: before them, or as the last check returned it.
            tokens: of the texts that were encoded first.
            found: their features. If modules set attributes as they run, these texts are encoded
                once more; equal features show that nothing else changed.
        """
        if known.state.same(self._read(known.state)):
            return known
        states = [self._read()]

        def rerun() -> tuple[State, bool]:
            equal = not tokens or torch.equal(self._encode(tokens), found)
            states.append(self._read())
            return states[-1], equal

        check_same(unexplained(known.state, states[0], rerun))
        later = known._replace(state=states[-1])
        if self._known is known:
            self._known = later
        return later

    # --- texts to features -----------------------------------------------------------------------

    def _features(self, texts: Sequence[str], known: _Known) -> dict[str, Tensor]:
        """Features of texts, which are all of one text tower before the disk keeps any."""
        digest = self._digest_of(known)
        found: dict[str, Tensor] = {}
        new: dict[bytes, Tensor] = {}
        first_tokens: dict[str, Tensor] = {}
        first_features = torch.empty(0)
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[start : start + TEXTS_AT_ONCE]
            # A callable need not say the same twice: what is encoded is what the key was made of.
            prompts = {
                text: [format_prompt(each, text) for each in self.templates] for text in part
            }
            tokens: dict[str, Tensor] = {}
            keys: dict[str, bytes] = {}
            if digest is not None:
                own_words = is_open_clips_bpe(self.tokenizer)
                tokens = {} if own_words else self._tokens(prompts)
                keys = self._keys(digest, prompts if own_words else tokens, own_words)
                found |= self._recalled(keys)
            left = {text: prompts[text] for text in part if text not in found}
            if left:
                tokens = {text: tokens[text] for text in left} if tokens else self._tokens(left)
                features = self._encode(tokens)
                if not first_tokens:
                    first_tokens, first_features = tokens, features
                found |= zip(left, features, strict=True)
                new |= {keys[text]: found[text] for text in left if keys}
            known = self._checked(known, first_tokens, first_features)
        if new and self._disk is not None:
            self._disk.put(new)
        return found

    def _digest_of(self, known: _Known) -> bytes | None:
        """A digest of the text tower for the disk; None if the disk is not used."""
        if self._disk is None:
            return None
        if self._digest[0] is not known.generation:
            digest = None
            try:
                digest = fingerprint(self.tower)
            except UntellableError as error:
                if not self._warned:
                    warnings.warn(
                        f"text features are not kept in {self._disk.path.parent}: {error}, and "
                        "what that does to them cannot be told in another process",
                        stacklevel=5,
                    )
                    self._warned = True
            self._digest = known.generation, digest
        return self._digest[1]

    def _keys(self, digest: bytes, content: Mapping[str, Any], own_words: bool) -> dict[str, bytes]:
        """Digests of the text tower and of each text's prompts.

        Prompts stand for their ids if the tokenizer is open_clip's own. Others may be any function,
        so their ids are taken.
        """
        about = [digest.hex(), self.context_length, self.truncate, own_words]
        keys = {}
        for text, written in content.items():
            told = written if own_words else written.tolist()
            keys[text] = hashlib.sha256(json.dumps([about, told]).encode()).digest()
        return keys

    def _recalled(self, keys: Mapping[str, bytes]) -> dict[str, Tensor]:
        """Features of those texts that the disk has."""
        assert self._disk is not None
        found = self._disk.get(keys.values())
        device = self._device()
        return {text: found[key].to(device) for text, key in keys.items() if key in found}

    def _tokens(self, prompts: Mapping[str, list[str]]) -> dict[str, Tensor]:
        """Token ids (prompts, context) by text."""
        tokens = self.tokenize([prompt for written in prompts.values() for prompt in written])
        return dict(zip(prompts, tokens.split(len(self.templates)), strict=True))

    # --- prompts ---------------------------------------------------------------------------------

    def _encode(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Features (T, C) of texts by the token ids (prompts, context) of each."""
        encoded = F.normalize(self.encode_tokens(torch.cat(list(tokens.values()))), dim=-1)
        means = encoded.unflatten(0, (len(tokens), len(self.templates))).mean(1)
        found = F.normalize(means, dim=-1)
        lost = (~has_direction(found)).nonzero().flatten().tolist()
        if lost:
            raise ValueError(
                f"the text feature of {truncate_repr(list(tokens)[lost[0]])} is zero, NaN or "
                "infinity; "
                "are the model's weights whole?"
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


@torch.compiler.disable  # type: ignore[untyped-decorator]
def cached_features(features: Callable[[], Tensor]) -> Tensor:
    """Remembered features, which are no part of a compiled graph."""
    return features()
