"""A CLIP's image tower as a module: from images to embeddings."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from captum_clip_surgery.functional import normalized
from captum_clip_surgery.models._agreement import VerifiedImageTower
from captum_clip_surgery.models._guards import (
    assert_parameters_unchanged,
    check_clip,
    check_differentiable,
)
from captum_clip_surgery.models._internals import has_hooks, shallow_copy
from captum_clip_surgery.models._validation import check_finite, check_images, check_modes
from captum_clip_surgery.models.image import Tower
from captum_clip_surgery.models.image._registers import (
    NUM_NEURONS,
    Neuron,
    RegisterTower,
    find_register_neurons,
)
from captum_clip_surgery.preprocessing import ImageInput, Preprocess


class TokenGrid(nn.Module):
    """Identity through which the patch tokens entering a block pass as (N, D, h, w)."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens."""
        return tokens


class ImageEncoder(nn.Module):
    """The image side of a CLIP, which is a submodule and is never changed.

    Args:
        model: Any model of open_clip or transformers whose image tower is supported; compiled,
            data-parallel and peft's models are unwrapped.
        positions: How positional embeddings are resized for sizes that are not native: "bilinear"
            as in CLIP Surgery, or "bicubic" with antialiasing as in open_clip.

    Raises:
        TypeError: If `model` is not a CLIP, is scripted, has an image tower on which surgery is not
            defined, or was subclassed or patched.
        ValueError: If the model is on several devices or on meta, or `positions` is unknown.
    """

    model: Any
    #: Feed-forward neurons that are moved to a register, each as (block, neuron).
    registers: tuple[Neuron, ...] = ()

    def __init__(self, model: nn.Module, positions: str = "bilinear") -> None:
        super().__init__()
        self.model = check_clip(model)
        self.training = self.model.training
        self._image_tower = VerifiedImageTower(self.model, positions)
        self._grids = nn.ModuleList(TokenGrid() for _ in self.tower.blocks)

    def share(self) -> Self:
        """Return a copy that shares the model and has token grids of its own."""
        clone: Self = shallow_copy(self)
        clone.add_module("_grids", nn.ModuleList(TokenGrid() for _ in self.tower.blocks))
        return clone

    def with_model(self, model: nn.Module) -> Self:
        """Return a copy that runs the image tower of another model.

        Text features stay those of this one's model.

        Args:
            model: A model of the same architecture.

        Raises:
            TypeError: As for the class.
            ValueError: As for the class.
        """
        clone = self.share()
        clone.add_module("model", check_clip(model))
        vars(clone).update(_image_tower=VerifiedImageTower(clone.model, self.tower.positions))
        return clone

    @property
    def tower(self) -> Tower:
        """The adapter for the model's image tower, verified again if the model has changed."""
        tower = self._image_tower.tower()
        return RegisterTower(tower, self.registers) if self.registers else tower

    def with_registers(self, images: Tensor, count: int = NUM_NEURONS) -> Self:
        """Return a classifier whose outlier tokens are moved out of the images, to a register.

        Outliers are written by a few feed-forward neurons, which are found from images. At patches,
        these neurons are set to 0; a token that is not part of the image gets each neuron's largest
        activation. The model is not changed and no weight is copied; logits, the features of query
        images and the maps of all methods are those of the tower with the register. Direct effects
        are not defined on it.

        Args:
            images: Images (N, 3, H, W) that have outlier tokens, see `tower_report`; some dozens.
            count: Number of neurons.

        Raises:
            TypeError: If `images` is not a dense floating-point tensor, or the tower's feed-forward
                layers or rotary positions do not allow a register.
            ValueError: If no token is an outlier, the images do not fit the model, or `count` is
                below 1.

        References:
            Jiang, Dravid, Efros, Gandelsman: Vision Transformers Don't Need Trained Registers.
            NeurIPS 2025.
        """
        tower = self._image_tower.tower()
        check_images(images, tower, self.device)
        check_modes(self.model)
        with torch.no_grad(), assert_parameters_unchanged(self.model):
            neurons = find_register_neurons(tower, images, count)
        clone = self.share()
        clone.registers = neurons
        clone._follow_tower()
        return clone

    def _follow_tower(self) -> None:
        """Compute anew what another image tower computed, which is nothing in this class."""

    def shares_tower(self, other: ImageEncoder) -> bool:
        """Return whether another classifier computes the same of images: one pass serves both."""
        return self.model is other.model and self.registers == other.registers

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the model was trained on."""
        return self.tower.native_size

    def preprocess(
        self,
        images: ImageInput | Sequence[ImageInput],
        size: int | tuple[int, int] | None = None,
        crop: bool = False,
    ) -> Tensor:
        """Turn images into a normalized batch (N, 3, H, W) on the model's device.

        Args:
            images: One or a list of PIL images, arrays or paths.
            size: Side or (height, width) in pixels; None means the native size.
            crop: Whether to resize the shorter side and keep the center, as open_clip's own
                preprocessing does, instead of squashing the whole image.

        Raises:
            FileNotFoundError: If a file does not exist.
            TypeError: If an image has another type.
            ValueError: If there are no images, one cannot be read, or the patch size does not
                divide the size.
        """
        batch = self.preprocessing(images, size, crop)
        self.tower.grid(*batch.shape[-2:])
        return batch.to(self.device)

    @property
    def preprocessing(self) -> Preprocess:
        """The part of `preprocess` that needs no model, for the workers of a data loader."""
        return self._image_tower.preprocessing()

    def unnormalize(self, images: Tensor) -> Tensor:
        """Return a batch (..., 3, H, W) as colors in 0..1, for display."""
        return self.preprocessing.unnormalize(images)

    def image_features(self, images: Tensor) -> Tensor:
        """Return the model's own embeddings (N, C) of images (N, 3, H, W), L2-normalized.

        Raises:
            TypeError: As `forward`.
            ValueError: As `forward`.
            RuntimeError: As `forward`.
        """
        with assert_parameters_unchanged(self.model):
            features = self._image_features(images)
        return check_finite(images, features, "image features")

    def _image_features(self, images: Tensor) -> Tensor:
        tower = self.tower
        check_images(images, tower, self.device, finite=False)
        check_modes(self.model)
        # Only where a grid has hooks do tokens pass through it.
        taps = {i: grid for i, grid in enumerate(self._grids) if has_hooks([grid])}
        if torch.is_grad_enabled() and (images.requires_grad or taps):
            check_differentiable(tower.visual)
        return normalized(tower.encode(images.to(tower.dtype), taps))

    def token_grid(self, index: int) -> nn.Module:
        """Return a module through which the patch tokens entering a block pass as (N, D, h, w).

        Captum's layer methods take it as a layer; on token sequences they would pool the wrong
        dimensions. The classifier owns it, and the model is not changed.

        Args:
            index: Index of the block, where negative values count from the end.

        Raises:
            IndexError: If there is no such block.
            TypeError: If `index` is not an int.
        """
        index = operator.index(index)
        count = len(self.tower.blocks)
        self._grids.extend(TokenGrid() for _ in range(len(self._grids), count))
        if not -count <= index < count:
            raise IndexError(
                f"block must be from {-count} to {count - 1}, got {index} of {count} blocks"
            )
        return self._grids[index % count]

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.logit_scale.device

    def joint_width(self) -> int:
        """Return the width C of the joint space."""
        return self._image_tower.joint_width()
