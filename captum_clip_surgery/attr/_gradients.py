"""Base class and helpers of methods that read a tower's attention and gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clip_surgery._utils.profiling import add_backward_passes
from captum_clip_surgery.attr._base import PatchAttribution
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.functional import full_precision, normalized
from captum_clip_surgery.models._guards import check_differentiable
from captum_clip_surgery.models.image import Tower

#: Bytes of one batch of gradients.
GRADIENT_BYTES = 256 << 20


class TowerAttribution(PatchAttribution):
    """Base class of methods with a pass of their own: checks the tower, returns detached maps.

    Args:
        forward_func: The classifier.

    Raises:
        TypeError: If the method is not defined on the classifier's tower.
    """

    #: Whether the method reads the attention of the token that becomes the image's embedding.
    reads_class_token = True
    #: Whether it needs residual blocks; a ResNet's attention pooling has none.
    needs_stream = True
    #: Whether it differentiates scores.
    needs_gradients = True

    def __init__(self, forward_func: ZeroShotClassifier) -> None:
        super().__init__(forward_func)
        self._check_tower(self.forward_func.tower)
        if self.needs_gradients:
            check_differentiable(self.forward_func.tower.visual)

    def _check_tower(self, tower: Tower) -> None:
        why = None
        if self.reads_class_token and tower.num_pooled_tokens is None:
            why = f"reads a class token's attention, and this tower pools by {tower.pooling}"
        elif self.needs_stream and not tower.has_residual:
            why = "follows a stream through residual blocks, and this tower has attention pooling"
        if why:
            raise TypeError(
                f"{type(self).__name__} is not defined on {tower.family}: it {why}. Surgery, the "
                "dense methods and TokenGradCam work on every tower"
            )

    def scores(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return `patch_scores` for chosen texts, with gradients where the method needs them."""
        clip = self.forward_func
        features = clip.text_features()[targets]
        with torch.inference_mode(False), torch.set_grad_enabled(self.needs_gradients):
            # Tensors of inference mode cannot be differentiated; their copies can.
            images = images.detach().clone().to(clip.tower.dtype)
            features = features.detach().clone()
            grid = clip.tower.grid(*images.shape[-2:])
            with full_precision(images):
                maps = self.patch_scores(images, features if features.ndim == 3 else features[None])
        return maps.detach().contiguous().unflatten(-1, grid)

    @abstractmethod
    def patch_scores(self, images: Tensor, features: Tensor) -> Tensor:
        """Return scores of patches for texts.

        Args:
            images: Images (N, 3, H, W) in the tower's dtype.
            features: Features (N or 1, K, C) of the texts.

        Returns:
            Scores (N, K, h*w).
        """

    def _patches(self, tokens: Tensor) -> Tensor:
        return tokens[..., self.forward_func.tower.num_prefix_tokens :]


def text_gradients(scores: Tensor, by: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Differentiate every text's scores (N, K) by tensors (N, ...), in chunks of texts.

    Yields:
        One gradient (texts, N, ...) per tensor, texts in order.
    """
    count = scores.shape[1]
    add_backward_passes(scores.numel())
    size = sum(tensor.numel() * tensor.element_size() for tensor in by)
    unit = torch.eye(count, dtype=scores.dtype, device=scores.device)
    # Anomaly detection reads values, which batched gradients do not allow.
    batched = not (torch.is_anomaly_enabled() and torch.is_anomaly_check_nan_enabled())
    for rows in unit.split(max(1, GRADIENT_BYTES // size) if batched else 1):
        directions = rows[:, None].expand(-1, len(scores), -1)
        gradients = torch.autograd.grad(
            scores, by, directions if batched else directions[0], True, is_grads_batched=batched
        )
        yield gradients if batched else tuple(gradient[None] for gradient in gradients)


def cosines(embeddings: Tensor, features: Tensor) -> Tensor:
    """Return the cosines (N, K) of embeddings (N, C) with text features (N or 1, K, C)."""
    embeddings = normalized(embeddings)
    return (embeddings[:, None] * features.to(embeddings.dtype)).sum(-1)


def minmax_cosines(query: Tensor, keys: Tensor) -> Tensor:
    """Return cosines (N, L) of keys (N, L, D) with a query (N, 1, D), min-max scaled over keys."""
    similarity = F.cosine_similarity(query, keys, dim=-1)
    low, high = similarity.amin(-1, keepdim=True), similarity.amax(-1, keepdim=True)
    return (similarity - low) / torch.where(high > low, high - low, 1)


def relevance_row(gradients: Sequence[Tensor], attention: Sequence[Tensor], place: int) -> Tensor:
    """Return one token's row (texts, N, L) of the product of all blocks' (I + relevance).

    The row is propagated from the last block to the first; the full product is never built.

    Args:
        gradients: For each block, gradients (texts, N, heads, L, L).
        attention: For each block, attention (N, heads, L, L).
        place: Position of the token. The last block may hold only the first rows, if the token is
            among them.
    """
    row = torch.zeros_like(gradients[0][:, :, 0, :1])
    row[..., place] = 1
    for gradient, probabilities in zip(reversed(gradients), reversed(attention), strict=True):
        relevance = (gradient * probabilities).relu().mean(2)
        row = row + row[..., : relevance.shape[-2]] @ relevance
    return row[:, :, 0]


def resolve_block(clip: ZeroShotClassifier, block: int) -> int:
    """Return a block's index counted from the start.

    Raises:
        TypeError: If `block` is not an int.
        IndexError: If `block` is out of range.
    """
    if isinstance(block, bool) or not isinstance(block, int):
        raise TypeError(f"block must be an int, got {block!r}")
    count = len(clip.tower.blocks)
    if not -count <= block < count:
        raise IndexError(f"block must be from {-count} to {count - 1}, got {block}")
    return block % count
