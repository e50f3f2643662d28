"""Text towers: which texts may be cut at their end, and the steps from token ids to a feature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import Transformer, text_global_pool
from torch import Tensor, nn

from captum_clip_surgery.models._deviations import describe_deviation
from captum_clip_surgery.models._dual_encoders import TransformersCLIP, TransformersText
from captum_clip_surgery.models._internals import children_of, has_hooks, parameters_of

#: Parts of a model that do not affect its text features.
NOT_TEXT = ("visual", "logit_scale", "logit_bias", "text_decoder")


def parts_without_text(model: Any) -> list[Any]:
    """Return the modules and parameters of a model that do not affect its text features."""
    parts = [getattr(model, name, None) for name in NOT_TEXT]
    if isinstance(model, TransformersCLIP):
        parts += model.visual.children()
    return [part for part in parts if part is not None]


def iter_text_parameters(tower: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of the text tower, excluding `visual` if it is the full CLIP model.

    The modules are walked directly: this runs at every use of a classifier, and torch's own
    iterator takes longer because it also builds names.
    """
    queue = [tower]
    for module in queue:  # the list grows in this loop
        yield from (each for each in parameters_of(module).values() if each is not None)
        children = children_of(module).items()
        queue += [
            child
            for name, child in children
            if child is not None and not (module is tower and name == "visual")
        ]


def device_of(tower: nn.Module) -> torch.device:
    """Return the device of a text tower."""
    return next(iter_text_parameters(tower)).device


def context_length_of(tower: Any, tokenizer: Any) -> int:
    """Return the number of tokens that the text tower takes.

    Hugging Face towers take as many as they have positions, or any number; they were trained on as
    many as their open_clip tokenizer returns.

    Raises:
        ValueError: If neither the tower nor the tokenizer has a context length.
    """
    length = tower.context_length
    own = getattr(tokenizer, "context_length", None)
    if isinstance(tower, HFTextEncoder):
        length = own or length
    elif isinstance(tower, TransformersText) and tower.family.text == "masked":
        length = min(own or length, length)
    if not length:
        raise ValueError(
            f"the text tower {type(tower).__name__} has no context length; pass "
            "tokenizer=open_clip.get_tokenizer(name), which has one"
        )
    return length


def vocabulary_size(tower: Any) -> int | None:
    """Return the number of token embeddings of a text tower, or None if it is not known."""
    embedding = getattr(tower, "token_embedding", None)
    if isinstance(tower, HFTextEncoder):
        embedding = tower.transformer.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    return len(weight) if isinstance(weight, Tensor) else None


def is_open_clip_transformer(tower: Any) -> bool:
    """Return whether the tower's transformer is exactly open_clip's class."""
    transformer = getattr(tower, "transformer", None)
    if not isinstance(transformer, Transformer):
        return False
    return describe_deviation(transformer, Transformer) is None


def bypassed_hooks(model: nn.Module, tower: nn.Module) -> list[str]:
    """Name the text tower if it has hooks, which fire only if it is called as a module.

    If the model is its own text tower (CLIP), `encode_text` does not call it either.
    """
    return ["model.text"] if tower is not model and has_hooks([tower]) else []


def probe_tokens(tower: Any, context_length: int) -> Tensor:
    """Return token ids (2, context) of a text that fills the context and of a short one.

    The long one reaches every position, the short one shows what becomes of the padding. For
    towers pooled at the end of the text.
    """
    embedding = tower.token_embedding
    vocabulary = getattr(embedding, "num_embeddings", None) or tower.vocab_size
    end = vocabulary - 1 if _pool_type(tower) == "argmax" else int(_end_of_text_id(tower))
    ids = torch.arange(1, vocabulary, device="cpu")
    ids = ids[ids != end]
    spread = torch.arange(context_length, device="cpu") * 7919 % len(ids)
    rows = ids[spread].repeat(2, 1)
    rows[0, -1] = end
    short = min(3, context_length - 1)
    rows[1, short:] = 0
    rows[1, short] = end
    return rows


def pooled_at_end_of_text(tower: Any) -> bool:
    """Return whether nothing after the end of a text can change its feature."""
    if isinstance(tower, TransformersText):
        return tower.family.text == "end"
    return (
        is_open_clip_transformer(tower)
        and getattr(tower, "attn_mask", None) is not None
        and not masks_depend_on_text(tower)
        and _pool_type(tower) in ("argmax", "eos")
    )


def pooled_at_last_position(tower: Any) -> bool:
    """Return whether a text's feature is that of the last position, padding or not (SigLIP)."""
    if isinstance(tower, TransformersText):
        return tower.family.text == "last"
    return (
        is_open_clip_transformer(tower)
        and not masks_depend_on_text(tower)
        and _pool_type(tower) == "last"
    )


def masks_depend_on_text(tower: Any) -> bool:
    """Return whether one of open_clip's own towers masks padding or has a class token (CoCa)."""
    return getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False)


def is_masked(tower: Any) -> bool:
    """Return whether a tower of transformers masks padding, which then has no effect."""
    return isinstance(tower, TransformersText) and tower.family.text == "masked"


def pools_one_token(tower: Any) -> bool:
    """Return whether a text's feature is that of one token, which `pooled_positions` tells."""
    if isinstance(tower, TransformersText):
        return tower.family.prefix != "Tipsv2"  # the mean over tokens
    return getattr(tower, "cls_emb", None) is not None or _pool_type(tower) in (
        "first",
        "last",
        "argmax",
        "eos",
    )


def pooled_positions(tower: Any, tokens: Tensor) -> Tensor:
    """Return the position (P,) of the token that becomes each text's feature.

    Args:
        tower: A tower for which `pools_one_token` is true.
        tokens: Token ids (P, L); a class token follows them, at position L.
    """
    length = tokens.shape[1]
    if getattr(tower, "cls_emb", None) is not None:
        return torch.full_like(tokens[:, 0], length)
    if pooled_at_last_position(tower) or _pool_type(tower) == "last":
        return torch.full_like(tokens[:, 0], length - 1)
    if _pool_type(tower) == "first" or is_masked(tower):
        return torch.zeros_like(tokens[:, 0])
    return end_of_text(tower, tokens)


def end_of_text(tower: Any, tokens: Tensor) -> Tensor:
    """Return the position (P,) of the end of each text, for token ids (P, L)."""
    if _pool_type(tower) == "argmax":
        return tokens.argmax(-1)
    return tokens.eq(_end_of_text_id(tower)).int().argmax(-1)


def text_lengths(tower: Any, tokens: Tensor) -> Tensor:
    """Return the number (P,) of positions that affect each text's feature."""
    if pooled_at_end_of_text(tower):
        return end_of_text(tower, tokens) + 1
    if is_masked(tower):
        return tower.masks(tokens)["attention_mask"].sum(1)
    return torch.full((len(tokens),), tokens.shape[1], device=tokens.device)


def final_tokens(tower: Any, tokens: Tensor) -> Tensor:
    """Return the tokens (P, L, D) after the final LayerNorm of one of open_clip's own towers.

    Args:
        tower: The text tower.
        tokens: Token ids (P, L).
    """
    if masks_depend_on_text(tower):
        # The tower computes masks that depend on the text.
        output = tower.forward_intermediates(
            tokens,
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
        )
        return output["text_intermediates"][-1]
    length = tokens.shape[1]
    mask = tower.attn_mask
    x = tower.transformer(
        embed_tokens(tower, tokens, slice(length)),
        attn_mask=None if mask is None else mask[:length, :length],
    )
    return tower.ln_final(x)


def embed_tokens(tower: Any, tokens: Tensor, positions: slice | Tensor) -> Tensor:
    """Return the input of the first block: embeddings of token ids plus those of positions."""
    dtype = cast_dtype(tower)
    embedded = tower.token_embedding(tokens).to(dtype)
    return embedded + tower.positional_embedding[positions].to(dtype)


def cast_dtype(tower: Any) -> torch.dtype:
    """Return the dtype in which tokens enter, which open_clip takes from a weight.

    A dynamically quantized layer hides its weight, and takes the dtype it was made from.
    """
    if isinstance(tower.transformer.resblocks[0].mlp.c_fc.weight, Tensor):
        return tower.transformer.get_cast_dtype()
    return tower.positional_embedding.dtype


def pool_text(tower: Any, x: Tensor, tokens: Tensor) -> Tensor:
    """Return the unnormalized features (P, C) of texts.

    Args:
        tower: The text tower.
        x: Tokens (P, L, D) after the final LayerNorm.
        tokens: Token ids (P, L).
    """
    pooled = text_global_pool(x, tokens, _pool_type(tower), _end_of_text_id(tower))
    return project_text(tower, pooled)


def project_text(tower: Any, x: Tensor) -> Tensor:
    """Project text tokens (..., D), pooled or not, to the joint space."""
    if tower.text_projection is None:
        return x
    if isinstance(tower.text_projection, nn.Linear):
        return tower.text_projection(x)
    return x @ tower.text_projection


def _pool_type(tower: Any) -> str:
    return str(getattr(tower, "text_pool_type", getattr(tower, "pool_type", "")))


def _end_of_text_id(tower: Any) -> Any:
    return getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
