"""Texts to text features: the prompt ensemble, cached as long as the text tower is unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_clip_surgery.functional import has_direction
from captum_clip_surgery.models._agreement import TextTowerCheck
from captum_clip_surgery.models._changes import list_changes, raise_changed, unexplained_changes
from captum_clip_surgery.models._dual_encoders import TransformersText
from captum_clip_surgery.models._guards import check_place
from captum_clip_surgery.models._state import ModelState, read_state
from captum_clip_surgery.models.text._disk import DiskFeatures
from captum_clip_surgery.models.text._fingerprint import is_open_clip_bpe
from captum_clip_surgery.models.text._templates import (
    TEMPLATES,
    Template,
    format_prompt,
    truncate_repr,
)
from captum_clip_surgery.models.text._token_encoder import (
    encode_tokens,
    text_tower_of,
    token_features,
)
from captum_clip_surgery.models.text._tokenization import (
    Tokenizer,
    check_ends,
    check_padding,
    check_tokenizer,
    check_vocabulary,
    padding_id,
    tokenize,
)
from captum_clip_surgery.models.text._towers import (
    context_length_of,
    device_of,
    iter_text_parameters,
    parts_without_text,
)

BPE_VOCABULARY = 49_408  # open_clip's own tokenizer
TEXTS_PER_BATCH = 256  # whose prompts are held at once
MAX_CACHED = 50_000  # texts, before all but the latest request are forgotten


@dataclass(frozen=True)
class _Generation:
    """The features of one state of the text tower, by text; `identity` stands for that state.

    `settings` are those of the encoder that the features were computed with.
    """

    identity: object
    state: ModelState
    settings: tuple[Any, ...]
    features: dict[str, Tensor]


class PromptEncoder:
    """The text side of a model: texts to L2-normalized features, cached per text.

    Args:
        model: An open_clip model.
        tokenizer: An open_clip tokenizer, or any function of texts and `context_length` that
            returns token ids (texts, context_length) padded at the end. None means open_clip's
            own BPE, if the text tower's vocabulary has its 49,408 tokens.
        templates: Format strings or functions. A text's feature is the normalized mean of the
            normalized features of its prompts. An empty sequence takes each text as it is.
        truncate: Whether to cut prompts longer than the context instead of raising.
        cache: Folder in which features are kept between processes, in a file of at most about
            1 GiB. If it cannot be used, a warning is issued and features are computed. None keeps
            them in memory only.

    Raises:
        TypeError: If the tokenizer is not callable or does not take `context_length`, or templates
            have the wrong type.
        ValueError: If a template has no slot, the model has no context length, or `tokenizer` is
            None and the vocabulary is not that of open_clip's tokenizer.

    References:
        Li, Wang, Duan, Zhang, Li: A closer look at the explainability of Contrastive
        Language-Image Pre-training, Sec. 4 (the prompt ensemble).

    Example::

        >>> from captum_clip_surgery import ZeroShotClassifier
        >>> encoder = ZeroShotClassifier.demo(["dog"]).text_encoder
        >>> encoder(["dog", "pizza"]).shape
        torch.Size([2, 128])
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer | None = None,
        templates: Sequence[Template] = TEMPLATES,
        truncate: bool = False,
        cache: str | PathLike[str] | None = None,
    ) -> None:
        self.model = model
        self.templates = _check_templates(templates)
        self.truncate = truncate
        if tokenizer is None:
            vocabulary = getattr(self.tower, "vocab_size", None)
            if vocabulary != BPE_VOCABULARY:
                hint = "tokenizer=open_clip.get_tokenizer(name)"
                if isinstance(self.tower, TransformersText):
                    hint = "processor=transformers.AutoProcessor.from_pretrained(folder)"
                raise ValueError(
                    f"the text tower's vocabulary is {vocabulary}, that of open_clip's own "
                    f"tokenizer {BPE_VOCABULARY}; pass {hint}"
                )
            tokenizer = open_clip.tokenize
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        context_length_of(self.tower, tokenizer)  # raises if there is none
        self._disk = None if cache is None else DiskFeatures(cache)
        self._cached: _Generation | None = None
        self._check = TextTowerCheck(model)

    @property
    def tower(self) -> Any:
        """The text tower: the model itself (CLIP) or its `text` (CustomTextCLIP)."""
        return text_tower_of(self.model)

    @property
    def context_length(self) -> int:
        """Number of tokens that the text tower takes."""
        return context_length_of(self.tower, self.tokenizer)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return features (T, C) of texts, on the text tower's device, in float32 or wider.

        Args:
            texts: T texts.

        Raises:
            TypeError: If the tokenizer returns something other than integers.
            ValueError: If a prompt is longer than the context (unless `truncate`), or the
                tokenizer's output does not fit the model.
            RuntimeError: If the text tower changes during the call; then nothing is cached.
        """
        current = self._current()
        features = current.features  # another thread may replace it, but never empties it
        missing = [text for text in dict.fromkeys(texts) if text not in features]
        device = device_of(self.tower)
        # Cached features may meet autograd and full precision later.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            if missing:
                features.update(self._encode_texts(missing, current))
            latest = self._cached
            if len(features) > MAX_CACHED and latest is not None and latest.features is features:
                self._cached = replace(latest, features={text: features[text] for text in texts})
            return torch.stack([features[text] for text in texts])

    def generation(self) -> object:
        """Return an object that is replaced whenever something that determines features changes.

        Parameters, buffers, attributes, hooks and classes are compared. Writes through `p.data` may
        be missed, always so on a GPU.
        """
        return self._current().identity

    def check(self) -> None:
        """Check that features are those of the model's `encode_text`.

        Raises:
            TypeError: If they are not.
        """
        self._check.check(encode_tokens, self.context_length)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Return the token ids (P, context) of prompts.

        Args:
            prompts: P prompts.

        Raises:
            TypeError: If the tokenizer returns something other than integers.
            ValueError: If a prompt is longer than the context (unless `truncate`), or the
                tokenizer's output does not fit the model.
        """
        tokens, padding = tokenize(self.tokenizer, prompts, self.context_length, self.truncate)
        check_vocabulary(self.tower, tokens, prompts)
        check_padding(self.tower, padding)
        check_ends(self.tower, tokens, padding, prompts)
        return tokens

    def padding(self) -> int:
        """Return the token id that the tokenizer pads texts with."""
        return padding_id(self.tokenizer, self.context_length)

    def token_features(self, tokens: Tensor) -> Tensor:
        """Return the L2-normalized feature (P, L, C) of every token, before pooling.

        They are the tower's tokens after its final LayerNorm, projected to the joint space. L is
        the length of the longest text if tokens behind the end have no effect, otherwise the
        context.

        Args:
            tokens: Token ids (P, context).

        Raises:
            TypeError: If the text tower is not one of open_clip's own.
        """
        return token_features(self.model, tokens)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Return unnormalized features (P, C) of texts, equal to those of `model.encode_text`.

        Args:
            tokens: Token ids (P, context).
        """
        return encode_tokens(self.model, tokens)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the cached features, which belong to this process's text tower."""
        return {**self.__dict__, "_cached": None}

    # --- the text tower's state ------------------------------------------------------------------

    def _current(self) -> _Generation:
        """Return the cache of the text tower in its current state."""
        self.check()
        cached = self._cached
        settings = self._settings()
        if cached is not None and cached.settings != settings:
            cached = None
        if cached is not None and cached.state.same(self._read(cached.state)):
            return cached
        state = self._read()
        if cached is not None and not list_changes(cached.state, state):
            cached = replace(cached, state=state)  # only a forward pass's own counter moved
        else:
            parameters = [*iter_text_parameters(self.tower), self.model.logit_scale]
            check_place(parameters, "text tower")
            cached = _Generation(object(), state, settings, {})
        self._cached = cached
        return cached

    def _settings(self) -> tuple[Any, ...]:
        """Return the settings that determine features, apart from the text tower.

        A tokenizer's numbers and tables are left out: it may count, and keeps what it has read.
        """
        options = getattr(self.tokenizer, "__dict__", {}).items()
        plain = tuple((n, v) for n, v in options if type(v) in (bool, float, str))
        return self.tokenizer, plain, self.templates, self.truncate, self.context_length

    def _read(self, previous: ModelState | None = None) -> ModelState:
        return read_state(self.model, parts_without_text(self.model), previous, samples=True)

    def _check_unchanged(
        self, current: _Generation, tokens: Mapping[str, Tensor], features: Tensor
    ) -> _Generation:
        """Check that the text tower has not changed since the first texts were encoded.

        Args:
            current: The generation before, or as the last check returned it.
            tokens: Token ids of the texts encoded first.
            features: Their features. If modules set attributes as they run, these texts are encoded
                once more; equal features show that nothing else has changed.
        """
        if current.state.same(self._read(current.state)):
            return current
        states = [self._read()]

        def rerun() -> tuple[ModelState, bool]:
            equal = not tokens or torch.equal(self._encode(tokens), features)
            states.append(self._read())
            return states[-1], equal

        raise_changed(unexplained_changes(current.state, states[0], rerun))
        later = replace(current, state=states[-1])
        if self._cached is current:
            self._cached = later
        return later

    # --- texts to features -----------------------------------------------------------------------

    def _encode_texts(self, texts: Sequence[str], current: _Generation) -> dict[str, Tensor]:
        """Return features by text, and store them on disk once all of them are computed."""
        disk, tower = self._disk, self.tower
        digest = None if disk is None else disk.digest(current.identity, tower)
        features: dict[str, Tensor] = {}
        new: dict[bytes, Tensor] = {}
        first: tuple[dict[str, Tensor], Tensor] = ({}, torch.empty(0, device="cpu"))
        for start in range(0, len(texts), TEXTS_PER_BATCH):
            batch = texts[start : start + TEXTS_PER_BATCH]
            # Formatted once: a template that is a function may return something else next time.
            prompts = {text: [format_prompt(t, text) for t in self.templates] for text in batch}
            tokens: dict[str, Tensor] = {}
            keys: dict[str, bytes] = {}
            if disk is not None and digest is not None:
                # Only for open_clip's tokenizer do prompts determine their token ids.
                by_prompts = is_open_clip_bpe(self.tokenizer)
                tokens = {} if by_prompts else self._tokenize(prompts)
                content = prompts if by_prompts else {t: ids.tolist() for t, ids in tokens.items()}
                settings = [digest.hex(), self.context_length, self.truncate, by_prompts]
                keys = disk.keys(settings, content)
                features |= disk.get(keys, device_of(tower))
            missing = {text: prompts[text] for text in batch if text not in features}
            if missing:
                tokens = {t: tokens[t] for t in missing} if tokens else self._tokenize(missing)
                encoded = self._encode(tokens)
                first = first if first[0] else (tokens, encoded)
                features |= zip(missing, encoded, strict=True)
                new |= {keys[text]: features[text] for text in missing if keys}
            current = self._check_unchanged(current, *first)
        if disk is not None:
            disk.put(new)
        return features

    def _tokenize(self, prompts: Mapping[str, list[str]]) -> dict[str, Tensor]:
        """Return the token ids (prompts, context) of each text."""
        tokens = self.tokenize([prompt for each in prompts.values() for prompt in each])
        return dict(zip(prompts, tokens.split(len(self.templates)), strict=True))

    def _encode(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Return features (T, C) of T texts by the token ids (prompts, context) of each."""
        features = F.normalize(self.encode_tokens(torch.cat(list(tokens.values()))), dim=-1)
        means = features.unflatten(0, (len(tokens), len(self.templates))).mean(1)
        ensembles = F.normalize(means, dim=-1)
        lost = (~has_direction(ensembles)).nonzero().flatten().tolist()
        if lost:
            raise ValueError(
                f"the text feature of {truncate_repr(list(tokens)[lost[0]])} is zero, NaN or "
                "infinity; are the model's weights intact?"
            )
        return ensembles


def _check_templates(templates: Sequence[Template]) -> tuple[Template, ...]:
    """Return templates as a tuple; an empty sequence stands for texts as they are."""
    if isinstance(templates, str) or callable(templates):
        shown = truncate_repr(templates) if isinstance(templates, str) else repr(templates)
        raise TypeError(f"templates must be a list, got {shown}; pass [{shown}]")
    if not isinstance(templates, Iterable):
        raise TypeError(f"templates is a {type(templates).__name__}, expected a list")
    templates = tuple(templates)
    for template in templates:
        format_prompt(template, "text")
    return templates or ("{}",)
