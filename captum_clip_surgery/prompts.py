"""Texts to text features: templates, the prompt ensemble, exact truncation and a cache."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from captum_clip_surgery.functional import normalized

Template = str | Callable[[str], str]
Tokenizer = Callable[..., Tensor]

SCENE_TEMPLATES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
#: The 85 prompts of CLIP Surgery: OpenAI's 80 for ImageNet and five about scenes.
TEMPLATES: tuple[str, ...] = (
    tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES) + SCENE_TEMPLATES
)

BPE_VOCABULARY = 49_408  # open_clip's own tokenizer
CHUNK = 512  # prompts that pass through the text tower at once
TEXTS_AT_ONCE = 256  # texts whose prompts are held at once


def fill(template: Template, text: str) -> str:
    """Put a text into a template.

    Args:
        template: a format string whose every slot is a plain `{}`, or a callable of the text.
        text: what fills the slots.

    Raises:
        ValueError: a format string without a slot, or with one that is not plain `{}`.
        TypeError: a template of another kind, or a callable that returns no string.

    Example::

        >>> fill("a photo of a {}.", "dog")
        'a photo of a dog.'
    """
    if isinstance(template, str):
        return "".join(literal + text * slots for literal, slots in _parse(template))
    if not callable(template):
        raise TypeError(f"template {template!r} is neither a format string nor a callable")
    prompt = template(text)
    if not isinstance(prompt, str):
        raise TypeError(f"template {template!r} returned {prompt!r} for {text!r}, not a string")
    return prompt


def _parse(template: str) -> list[tuple[str, int]]:
    """Literal pieces, each with the number of slots (0 or 1) that follow it."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r} is no format string: {error}") from None
    for _, field, spec, conversion in parts:
        if field is not None and (field or spec or conversion):
            slot = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ValueError(
                f"template {template!r} has the slot {{{slot}}}; only plain {{}} is filled"
            )
    if all(field is None for _, field, _, _ in parts):
        raise ValueError(f"template {template!r} has no slot; write {{}} where the text goes")
    return [(literal, int(field is not None)) for literal, field, _, _ in parts]


def check_texts(texts: Iterable[str], what: str = "text") -> tuple[str, ...]:
    """Texts as a tuple, each a string with something in it.

    Raises:
        TypeError: one string or a set where a list belongs, or something that is no string in it.
        ValueError: an empty text.
    """
    if isinstance(texts, str):
        raise TypeError(f"{what}s is the string {texts!r}; pass a list: [{texts!r}]")
    if isinstance(texts, (set, frozenset)):
        raise TypeError(f"{what}s is a set, whose order changes; targets follow it, so pass a list")
    if not isinstance(texts, Iterable):
        raise TypeError(f"{what}s is a {type(texts).__name__}, expected a list of strings")
    texts = tuple(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{what} {index} is {text!r} of type {type(text).__name__}, no string")
        if not text.strip():
            raise ValueError(f"{what} {index} is empty")
    return texts


class PromptEncoder:
    """The text side of one model: texts to L2-normalised features, remembered per text.

    Args:
        model: an open_clip model.
        tokenizer: an open_clip tokenizer; None is open_clip's own BPE, where the text tower's
            vocabulary is its 49,408.
        templates: format strings or callables; a text's feature is the normalised mean of the
            normalised features of its prompts (Li et al., "A Closer Look at the Explainability of
            CLIP", Sec. 4). An empty sequence takes each text as it is.
        truncate: cut prompts longer than the context instead of raising.

    Raises:
        ValueError: no tokenizer and a vocabulary that is not open_clip's, or no context length.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer | None = None,
        templates: Sequence[Template] = TEMPLATES,
        truncate: bool = False,
    ) -> None:
        if isinstance(templates, str) or callable(templates):
            raise TypeError(f"templates is {templates!r} alone; pass a list: [{templates!r}]")
        for template in templates:
            fill(template, "text")
        self.model = model
        self.templates: tuple[Template, ...] = tuple(templates) or ("{}",)
        self.truncate = truncate
        #: The text tower: the model itself (CLIP) or its `text` (CustomTextCLIP).
        self.tower: Any = getattr(model, "text", model)
        if tokenizer is None:
            vocabulary = getattr(self.tower, "vocab_size", None)
            if vocabulary != BPE_VOCABULARY:
                raise ValueError(
                    f"the text tower's vocabulary is {vocabulary}, open_clip's own tokenizer's "
                    f"{BPE_VOCABULARY}; pass tokenizer=open_clip.get_tokenizer(name)"
                )
            tokenizer = open_clip.tokenize
        self.tokenizer = tokenizer
        self.context_length = _context_length(self.tower, tokenizer)
        self._cache: dict[str, Tensor] = {}
        self._cached_for: object = None
        self._held: list[Tensor] = []
        self._generation = 0

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Features (T, C) of texts, on the text tower's device, in float32 or wider.

        Raises:
            ValueError: a prompt longer than the context (unless `truncate`).
        """
        self.generation()
        cache = self._cache  # a change in another thread replaces it, never empties it
        missing = [text for text in dict.fromkeys(texts) if text not in cache]
        device = self._parameters()[0].device
        # Remembered features may meet autograd, and full precision, later.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            for start in range(0, len(missing), TEXTS_AT_ONCE):
                part = missing[start : start + TEXTS_AT_ONCE]
                cache.update(zip(part, self._encode(part), strict=True))
            return torch.stack([cache[text] for text in texts])

    def generation(self) -> int:
        """A number that grows when a parameter of the text tower has changed.

        Changes through `p.data.mul_()` and its like, which leave no trace in torch, are not seen.
        """
        parameters = self._parameters()
        state = [(p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in parameters]
        if state != self._cached_for:
            # Held, so that their memory is not handed to others, which would look the same.
            self._held = [p.detach() for p in parameters]
            self._cache, self._cached_for = {}, state
            self._generation += 1
        return self._generation

    def __getstate__(self) -> dict[str, Any]:
        """Without what only tells this process's parameters apart, the text tower among it."""
        return {**self.__dict__, "_held": [], "_cached_for": None}

    def _parameters(self) -> list[nn.Parameter]:
        """The text tower's, without walking through the image tower."""
        parts = (part for name, part in self.tower.named_children() if name != "visual")
        inner = (parameter for part in parts for parameter in part.parameters())
        return [*self.tower.parameters(recurse=False), *inner]

    def _encode(self, texts: Sequence[str]) -> Tensor:
        prompts = [fill(template, text) for text in texts for template in self.templates]
        tokens = self.tokenize(prompts)
        features = F.normalize(self.encode_tokens(tokens), dim=-1)
        means = features.unflatten(0, (len(texts), len(self.templates))).mean(1)
        return F.normalize(means, dim=-1)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids (P, context) of prompts, none of them cut but by request."""
        context = self.context_length
        # A tokenizer cuts in silence. Given one place more than there is, what it cuts at the
        # right place differs, where it fills that place at all.
        longer = self.tokenizer(prompts, context_length=context + 1)
        tokens = longer[:, :-1]
        padding = self.padding()
        full = (longer[:, -2:] != padding).any(1).nonzero().flatten()
        if not len(full):
            return tokens
        fitted = self.tokenizer([prompts[i] for i in full], context_length=context)
        cut = ((fitted != tokens[full]).any(1) | (longer[full, -1] != padding)).nonzero().flatten()
        if len(cut) and not self.truncate:
            raise ValueError(
                f"the prompt {prompts[full[cut[0]]]!r} is longer than the model's context of "
                f"{context} tokens; shorten it or pass truncate=True"
            )
        tokens[full] = fitted
        return tokens

    def padding(self) -> int:
        """The id that fills the places behind a text."""
        return int(self.tokenizer([""], context_length=self.context_length + 1)[0, -1])

    def token_features(self, tokens: Tensor) -> Tensor:
        """Every token's own L2-normalised feature (P, L, C), before pooling makes one of them.

        They are the tower's last tokens after its final LayerNorm, through its projection. L is the
        length of the longest text where nothing behind it is seen, otherwise the context.

        Args:
            tokens: ids (P, context) as `tokenize` gives them.

        Raises:
            TypeError: a text tower that is not one of open_clip's own.
        """
        if not _is_own_transformer(self.tower):
            raise TypeError(
                f"the text tower {type(self.tower).__name__} has no tokens in the joint space; "
                "open_clip's own text transformers have (CLIP and the TextTransformer of "
                "CustomTextCLIP and CoCa)"
            )
        if pooled_at_end_of_text(self.tower):
            tokens = tokens[:, : int(end_of_text(self.tower, tokens).max()) + 1]
        tokens = tokens.to(self._parameters()[0].device)
        return normalized(project_text(self.tower, final_tokens(self.tower, tokens)))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Unnormalised features (P, C) of token ids (P, context), in chunks of similar length."""
        device = self._parameters()[0].device
        exact = pooled_at_end_of_text(self.tower)
        lengths = end_of_text(self.tower, tokens) + 1 if exact else None
        order = lengths.argsort() if lengths is not None else torch.arange(len(tokens))
        features: Tensor | None = None
        for rows in order.split(CHUNK):
            if lengths is not None:
                part = tokens[rows, : int(lengths[rows].max())].to(device)
                encoded = _encode_truncated(self.tower, part)
            else:
                encoded = self.model.encode_text(tokens[rows].to(device))  # type: ignore[operator]
            if features is None:
                dtype = torch.promote_types(encoded.dtype, torch.float32)
                features = encoded.new_empty(len(tokens), encoded.shape[-1], dtype=dtype)
            features[rows.to(device)] = encoded.to(features.dtype)
        assert features is not None
        return features


def _context_length(tower: Any, tokenizer: Any) -> int:
    """How many tokens the text tower takes.

    Hugging Face towers take as many as they have positions (or any number); they were trained on
    as many as their open_clip tokenizer gives.
    """
    own = tower.context_length
    if isinstance(tower, HFTextEncoder):
        own = getattr(tokenizer, "context_length", None) or own
    if not own:
        raise ValueError(
            f"the text tower {type(tower).__name__} does not say its context length; pass "
            "tokenizer=open_clip.get_tokenizer(name), which does"
        )
    return own


def _pool_type(tower: Any) -> str:
    return str(getattr(tower, "text_pool_type", getattr(tower, "pool_type", "")))


def _end_of_text_id(tower: Any) -> Any:
    return getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))


def _is_own_transformer(tower: Any) -> bool:
    return isinstance(getattr(tower, "transformer", None), open_clip.transformer.Transformer)


def pooled_at_end_of_text(tower: Any) -> bool:
    """Whether nothing after the end of the text can change its feature."""
    return (
        _is_own_transformer(tower)
        and getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and not getattr(tower, "use_pad_mask", False)
        and _pool_type(tower) in ("argmax", "eos")
    )


def end_of_text(tower: Any, tokens: Tensor) -> Tensor:
    if _pool_type(tower) == "argmax":
        return tokens.argmax(-1)
    return tokens.eq(_end_of_text_id(tower)).int().argmax(-1)


def _encode_truncated(tower: Any, tokens: Tensor) -> Tensor:
    """open_clip's `encode_text` on the first places of the context."""
    return pool_text(tower, final_tokens(tower, tokens), tokens)


def final_tokens(tower: Any, tokens: Tensor) -> Tensor:
    """Token ids (P, L) to one of open_clip's own towers' tokens after the final LayerNorm."""
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        # Masks that depend on the text are the tower's own affair.
        found = tower.forward_intermediates(
            tokens,
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
        )
        return found["text_intermediates"][-1]
    length = tokens.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    mask = tower.attn_mask
    x = tower.transformer(x, attn_mask=None if mask is None else mask[:length, :length])
    return tower.ln_final(x)


def pool_text(tower: Any, x: Tensor, tokens: Tensor) -> Tensor:
    """Tokens after the final LayerNorm to the text's feature, unnormalised."""
    return project_text(
        tower, text_global_pool(x, tokens, _pool_type(tower), _end_of_text_id(tower))
    )


def project_text(tower: Any, x: Tensor) -> Tensor:
    """Text tokens, pooled or not, to the joint space."""
    if tower.text_projection is None:
        return x
    if isinstance(tower.text_projection, nn.Linear):
        return tower.text_projection(x)
    return x @ tower.text_projection
