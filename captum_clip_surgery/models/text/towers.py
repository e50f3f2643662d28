"""Text towers: which texts may be cut where they end, and the steps from token ids to a feature."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import Transformer, text_global_pool
from torch import Tensor, nn

from captum_clip_surgery.models._blocks import has_hooks
from captum_clip_surgery.models._exact import why_not_exactly

#: Parts of a model that have no part in its text features.
NOT_TEXT = ("visual", "logit_scale", "logit_bias", "text_decoder")


def modules_of(tower: nn.Module) -> list[nn.Module]:
    """The text tower's, itself first, without the image tower where it is the whole model.

    Walked at every use of a classifier, hence by hand: torch's own walk names what it finds and
    takes longer.
    """
    found = [tower]
    queue = [part for name, part in tower._modules.items() if name != "visual"]
    for module in queue:  # which grows as it is walked
        if module is not None:
            found.append(module)
            queue += module._modules.values()
    return found


def parameters_of(tower: nn.Module) -> list[nn.Parameter]:
    """The text tower's."""
    of_modules = (module._parameters.values() for module in modules_of(tower))
    return [each for values in of_modules for each in values if each is not None]


def warn_of_hooks(silent: list[str], stacklevel: int = 3) -> None:
    """Warn of hooks on the modules of these names, which are not called."""
    if silent:
        warnings.warn(
            f"hooks on {', '.join(silent)} do not fire, for its parts are called instead: what "
            "they change is not in the result. Hooks on the parts (norms, feed-forward) fire",
            stacklevel=stacklevel,
        )


def context_length_of(tower: Any, tokenizer: Any) -> int:
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


def vocabulary_size(tower: Any) -> int | None:
    """Return the number of token embeddings of a text tower, or None if it is not known."""
    embedding = getattr(tower, "token_embedding", None)
    if isinstance(tower, HFTextEncoder):
        embedding = tower.transformer.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    return len(weight) if isinstance(weight, Tensor) else None


def _pool_type(tower: Any) -> str:
    return str(getattr(tower, "text_pool_type", getattr(tower, "pool_type", "")))


def _end_of_text_id(tower: Any) -> Any:
    return getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))


def is_own_transformer(tower: Any) -> bool:
    """Return whether the tower's transformer is open_clip's, of exactly that class."""
    transformer = getattr(tower, "transformer", None)
    if not isinstance(transformer, Transformer):
        return False
    return why_not_exactly(transformer, Transformer) is None


def silent_text_hooks(model: nn.Module, tower: nn.Module) -> list[str]:
    """Name the hooks on the text tower itself, which fire only if the tower is called as a module.

    Where the model is its own text tower (CLIP), `encode_text` does not call it either.
    """
    return ["model.text"] if tower is not model and has_hooks([tower]) else []


def probe_tokens(tower: Any, context_length: int) -> Tensor:
    """Return token ids (2, context) of a short text and of one that fills the context.

    The long one reaches every position, the short one shows what becomes of the padding. For
    towers pooled at the end of the text.
    """
    embedding = tower.token_embedding
    vocabulary = getattr(embedding, "num_embeddings", None) or tower.vocab_size
    end = vocabulary - 1 if _pool_type(tower) == "argmax" else int(_end_of_text_id(tower))
    ids = torch.arange(1, vocabulary)
    ids = ids[ids != end]
    spread = torch.arange(context_length) * 7919 % len(ids)
    rows = ids[spread].repeat(2, 1)
    rows[0, -1] = end
    short = min(3, context_length - 1)
    rows[1, short:] = 0
    rows[1, short] = end
    return rows


def pooled_at_end_of_text(tower: Any) -> bool:
    """Whether nothing after the end of the text can change its feature."""
    return (
        is_own_transformer(tower)
        and getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and not getattr(tower, "use_pad_mask", False)
        and _pool_type(tower) in ("argmax", "eos")
    )


def end_of_text(tower: Any, tokens: Tensor) -> Tensor:
    if _pool_type(tower) == "argmax":
        return tokens.argmax(-1)
    return tokens.eq(_end_of_text_id(tower)).int().argmax(-1)


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
    dtype = cast_dtype(tower)
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    mask = tower.attn_mask
    x = tower.transformer(x, attn_mask=None if mask is None else mask[:length, :length])
    return tower.ln_final(x)


def cast_dtype(tower: Any) -> torch.dtype:
    """The type in which tokens enter, as open_clip takes it from a weight.

    A dynamically quantised layer keeps its weight to itself, and takes what it was made of.
    """
    if isinstance(tower.transformer.resblocks[0].mlp.c_fc.weight, Tensor):
        return tower.transformer.get_cast_dtype()
    return tower.positional_embedding.dtype


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
