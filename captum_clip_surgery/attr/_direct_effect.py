"""Direct effects: what each patch contributed to an image's similarity to a text, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import torch
from captum.log import log_usage
from torch import Tensor
from typing_extensions import override

from captum_clip_surgery import functional
from captum_clip_surgery.attr._base import (
    InputShapeMixin,
    LayerShapeMixin,
    PatchAttribution,
    single_input,
)
from captum_clip_surgery.attr._dual_path import (
    check_inverse_temperature,
    check_variant,
    resolve_variant,
)
from captum_clip_surgery.attr._engine import forward_pass
from captum_clip_surgery.classifier import ZeroShotClassifier
from captum_clip_surgery.models._guards import check_differentiable
from captum_clip_surgery.models._validation import Target, check_finite, resolve_target
from captum_clip_surgery.models.image._direct_effects import (
    DirectEffects,
    check_direct_effects,
    chosen_indices,
    direct_effects,
)
from captum_clip_surgery.models.image._traces import num_decomposed_blocks


class _DirectEffectCore(PatchAttribution):
    method_name = "Direct effect"

    def __init__(
        self,
        forward_func: ZeroShotClassifier,
        blocks: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        feature_surgery: str | None = "empty",
        inverse_temperature: float = functional.INVERSE_TEMPERATURE,
    ) -> None:
        super().__init__(forward_func)
        tower = self.forward_func.tower
        check_direct_effects(tower)
        check_differentiable(tower.visual)  # directions are pulled back by autograd
        chosen = chosen_indices(blocks, num_decomposed_blocks(tower), "block")
        check_variant(feature_surgery)
        check_inverse_temperature(inverse_temperature)
        self.blocks = None if blocks is None else tuple(blocks)
        self.heads = None if heads is None else tuple(heads)
        self.feature_surgery = feature_surgery
        self.inverse_temperature = inverse_temperature
        self._set_layer(-1 if tower.attention_pool else chosen[0])

    def has_convergence_delta(self) -> bool:
        """Return True: the contributions of all parts sum to the score."""
        return True

    @overload
    def attribute(
        self,
        inputs: Tensor,
        target: Target = ...,
        additional_forward_args: Any = ...,
        return_convergence_delta: Literal[False] = ...,
    ) -> Tensor: ...
    @overload
    def attribute(
        self,
        inputs: tuple[Tensor],
        target: Target = ...,
        additional_forward_args: Any = ...,
        return_convergence_delta: Literal[False] = ...,
    ) -> tuple[Tensor]: ...
    @overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor],
        target: Target = ...,
        additional_forward_args: Any = ...,
        *,
        return_convergence_delta: Literal[True],
    ) -> tuple[Any, Tensor]: ...

    @log_usage()  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor],
        target: Target = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Return the map of one text per image and, on request, the rounding error of its sum.

        Args:
            inputs: Images (N, 3, H, W), or a tuple that holds only this tensor.
            target: Index of a text, where negative values count from the end, or a tensor or list
                of one index per image. Optional if there is one text.
            additional_forward_args: Must be None; part of Captum's signature.
            return_convergence_delta: Whether to also return the deltas (N,): the sum of all
                contributions, of patches and of the remainder, minus the score that they explain.
                They differ from 0 only by rounding.

        Returns:
            The attribution as `PatchAttribution.attribute` shapes it, or a pair of it and the
            deltas. The contributions sum to the score on the patch grid, before upsampling.

        Raises:
            TypeError: See `PatchAttribution.attribute`.
            ValueError: See `PatchAttribution.attribute`.
            IndexError: If a target or head is out of range.
            RuntimeError: If a parameter of the model changes during the call, or the parts do not
                sum to the embedding.
        """
        images = single_input(inputs, additional_forward_args)
        with forward_pass(self.forward_func, images):
            chosen = self._resolve(images, target)
            entries = self._entries(images, chosen)
            attribution = self._expand_channels(self._shape(images, entries.maps))
        result = (attribution,) if isinstance(inputs, tuple) else attribution
        return (result, entries.delta[:, 0]) if return_convergence_delta else result

    def remainder(self, inputs: Tensor, target: Target = None) -> dict[str, Tensor]:
        """Return the contributions of the parts that have no position in the image, by name.

        Together with the patches of `LayerDirectEffect`, they sum to the score: the cosine of image
        and text, after feature surgery if it is used.

        Args:
            inputs: Images (N, 3, H, W).
            target: As in `attribute`.

        Returns:
            Contributions (N,) by name: "embedding" (the class token as it enters the blocks, or the
            mean of the tokens), "feed-forward", "prefix tokens", "bias" and, where blocks or heads
            were chosen, "other heads". Parts that the tower does not have are absent.

        Raises:
            TypeError: As `attribute`.
            ValueError: As `attribute`.
            IndexError: As `attribute`.
            RuntimeError: As `attribute`.
        """
        images = single_input(inputs, None)
        with forward_pass(self.forward_func, images):
            entries = self._entries(images, self._resolve(images, target))
        check_finite(images, entries.maps, "maps")
        return {name: share[:, 0].to(images.dtype) for name, share in entries.remainder.items()}

    @override
    def scores(self, images: Tensor, targets: Tensor) -> Tensor:
        return self._entries(images, targets).maps

    def _resolve(self, images: Tensor, target: Target) -> Tensor:
        return resolve_target(target, len(images), len(self.forward_func.texts), images.device)

    def _entries(self, images: Tensor, targets: Tensor) -> _Entries:
        """Return all contributions to the scores of texts, (K,) for all images or (N, K)."""
        clip = self.forward_func
        variant = resolve_variant(clip, self.feature_surgery)
        features = clip.text_features()
        if variant in functional.CONTRASTING:  # all texts compete
            entries = self._explain(images, features)
            return entries.contrasted(variant, self.inverse_temperature, targets)
        if variant == "empty" and (empty := clip.empty_features()) is not None:
            features = features - empty
        return self._explain(images, features[targets])

    def _explain(self, images: Tensor, directions: Tensor) -> _Entries:
        tower = self.forward_func.tower
        with functional.full_precision(images):
            effects = direct_effects(
                tower, images.to(tower.dtype), directions, blocks=self.blocks, heads=self.heads
            )
            return _Entries.of(effects, directions)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(blocks={self.blocks}, heads={self.heads}, "
            f"feature_surgery={self.feature_surgery!r}, "
            f"inverse_temperature={self.inverse_temperature})"
        )


class _Entries:
    """Contributions to cosines in one tensor (N, K, h*w + parts + 1), the cosine itself last.

    Feature surgery is linear in the text features, hence the same for each column.
    """

    def __init__(self, columns: Tensor, names: Sequence[str], grid: tuple[int, int]) -> None:
        self._columns = columns
        self._names = names
        self._grid = grid

    @classmethod
    def of(cls, effects: DirectEffects, directions: Tensor) -> _Entries:
        """Divide contributions by the length of the embedding."""
        remainder = effects.remainder
        embedding = effects.embedding.to(effects.patches.dtype)[:, None]  # (N, 1, C)
        products = embedding @ directions.to(embedding.dtype).mT  # (N, 1, K)
        shares = [*remainder.values(), products[:, 0]]
        columns = torch.cat([effects.patches, torch.stack(shares, -1)], -1)
        lengths = embedding.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return cls(columns / lengths, list(remainder), effects.grid)

    def contrasted(self, variant: str, inverse_temperature: float, targets: Tensor) -> _Entries:
        """Apply a variant of feature surgery that contrasts texts, and select some of them."""
        columns = self._columns
        texts = torch.eye(columns.shape[1], dtype=columns.dtype, device=columns.device)
        contrasted = functional.feature_surgery(
            columns.mT, texts, columns[..., -1], variant, inverse_temperature, targets=targets
        )
        return _Entries(contrasted, self._names, self._grid)

    @property
    def maps(self) -> Tensor:
        """Contributions (N, K, h, w) of patches."""
        rows, columns = self._grid
        return self._columns[..., : rows * columns].unflatten(-1, self._grid)

    @property
    def remainder(self) -> Mapping[str, Tensor]:
        """Contributions (N, K) of parts without a place, by name."""
        shares = self._columns[..., -1 - len(self._names) : -1].unbind(-1)
        return dict(zip(self._names, shares, strict=True))

    @property
    def delta(self) -> Tensor:
        """The sum of all contributions minus the score, (N, K)."""
        return self._columns[..., :-1].sum(-1) - self._columns[..., -1]


class LayerDirectEffect(_DirectEffectCore, LayerShapeMixin):
    """The exact contribution of each patch to the score, on the patch grid: (N, 1, h, w).

    An image's embedding is the sum of what every attention head moved into it from every patch, and
    of parts that have no position in the image: the class token that enters the first block, the
    feed-forward layers, and biases. The map of a text holds the patches' contributions to the
    cosine, summed over blocks and heads; `remainder` returns the other parts, and all of them sum
    to the cosine. The statistics of norms are frozen at their values for the image. It takes one
    forward pass for any number of texts. By default, the cosine with the empty text is subtracted,
    part by part.

    On towers pooled by the attention of learned queries (SigLIP, CoCa, PE-Core) and on ResNets,
    only the pooling is decomposed: a patch's contribution is that of its token after the last
    block.

    Args:
        forward_func: The classifier.
        blocks: Indices of the blocks whose heads make up the map, where negative values count from
            the end; None means all. The others are in the remainder, as "other heads".
        heads: Indices of the heads that count in these blocks; None means all.
        feature_surgery: What is subtracted from the contributions to a text's score: "empty" (those
            to the score of the empty text; chosen on validation scenes of the embedded model, for
            any number of texts), "release" or "paper" (what all texts and distractors have in
            common, see `functional.feature_surgery`), "auto" as in `LayerCLIPSurgery`, or None,
            with which the parts sum to the cosine itself.
        inverse_temperature: Inverse temperature of the softmax that weights the texts.

    Raises:
        TypeError: If `forward_func` is not a `ZeroShotClassifier`, the embedding of its tower is
            not a sum of parts, or an index is not an int.
        IndexError: If a block or, when called, a head is out of range.
        ValueError: If `feature_surgery` is unknown, `inverse_temperature` is not a finite number,
            or no block or head is chosen.

    References:
        Elhage et al.: A Mathematical Framework for Transformer Circuits. 2021.
        Gandelsman, Efros, Steinhardt: Interpreting CLIP's Image Representation via Text-Based
        Decomposition. ICLR 2024, Sec. 3.

    Example::

        >>> import torch
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> effect = LayerDirectEffect(clip, feature_surgery=None)
        >>> images = torch.zeros(1, 3, 128, 160)
        >>> maps, delta = effect.attribute(images, target=1, return_convergence_delta=True)
        >>> rest = effect.remainder(images, target=1)
        >>> list(rest)
        ['embedding', 'feed-forward', 'prefix tokens', 'bias']
        >>> cosine = clip(images)[:, 1] / clip.model.logit_scale.exp()
        >>> torch.allclose(maps.sum((1, 2, 3)) + sum(rest.values()), cosine, atol=1e-5)
        True
    """


class DirectEffect(_DirectEffectCore, InputShapeMixin):
    """The exact contribution of each patch to the score, shaped like the images: (N, 3, H, W).

    See `LayerDirectEffect` for the method and its arguments. The patch map is upsampled bilinearly
    and returned in equal thirds on the channels.
    """
