"""A CLIP and its texts as an image classifier, which any Captum method explains."""

from __future__ import annotations

import difflib
import operator
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from os import PathLike
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_clip_surgery.functional import full_precision, normalized
from captum_clip_surgery.models import _validation
from captum_clip_surgery.models._activations import explain_activation
from captum_clip_surgery.models._agreement import ImageSide
from captum_clip_surgery.models._blocks import has_hooks
from captum_clip_surgery.models._guards import (
    assert_parameters_unchanged,
    check_clip,
    check_differentiable,
)
from captum_clip_surgery.models._token_grid import TokenGrid
from captum_clip_surgery.models.image import Tower
from captum_clip_surgery.models.loading import load
from captum_clip_surgery.models.text.encoder import PromptEncoder, cached_features
from captum_clip_surgery.models.text.templates import TEMPLATES, Template, check_texts
from captum_clip_surgery.models.text.tokenization import Tokenizer
from captum_clip_surgery.preprocessing import ImageInput, Preprocess


class ZeroShotClassifier(nn.Module):
    """A CLIP and texts as an image classifier: images (N, 3, H, W) to logits (N, K texts).

    logits = exp(logit_scale) * cosine (+ logit_bias), at every size the patch size divides. The
    model is a submodule and is never altered; an image and two texts are run through a copy that
    shares its weights, to check what is computed. Forward calls its blocks, layer norms and
    convolutions as modules, so hooks on them fire; those on containers (`visual`,
    `visual.transformer`) do not.

    Args:
        model: any open_clip model whose image tower is supported; a compiled or data-parallel one
            is unwrapped.
        texts: the classes; an attribution's target is an index into them.
        distractors: further texts that compete in feature surgery but are no targets.
        tokenizer: `open_clip.get_tokenizer(name)`, or a callable that maps texts and
            `context_length` to token ids (texts, context_length) with padding at the end; None is
            open_clip's own BPE, where the text tower's vocabulary is its 49,408.
        templates: format strings with a slot `{}`, or callables, which are asked once for each
            text; a text's feature is the mean over its prompts. None is the 85 of CLIP Surgery, an
            empty sequence the texts as they are.
        truncate: cut prompts longer than the context instead of raising.
        positions: how positional embeddings are resized for sizes that are not native, "bilinear"
            as CLIP Surgery does or "bicubic" with antialiasing as open_clip does.
        cache: folder in which text features are kept between processes, in a file of at most about
            1 GiB, under what determines them: weights, attributes of modules, prompts, versions.
            If it cannot be used, or the text tower has hooks, replaced methods or objects that mean
            nothing in another process, a warning says so and features are computed. None keeps them
            in memory alone.

    Raises:
        TypeError: a model that is no CLIP, is scripted, has an image tower on which surgery is not
            defined, or was subclassed or patched; texts, templates of the wrong kind.
        ValueError: no texts, an empty one, one longer than the context, a template without a slot,
            a tokenizer whose output does not fit the model, a model on several devices or on meta.

    Example::

        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> clip(torch.zeros(1, 3, *clip.native_size)).shape
        torch.Size([1, 2])
    """

    model: Any
    features: Tensor  # (texts + distractors, C); as given, or L2-normalised of the texts
    _given_empty: Tensor | None  # (C,), with ready features alone

    def __init__(
        self,
        model: nn.Module,
        texts: Iterable[str],
        distractors: Iterable[str] | None = None,
        tokenizer: Tokenizer | None = None,
        templates: Sequence[Template] | None = None,
        truncate: bool = False,
        positions: str = "bilinear",
        cache: str | PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self._set_model(model, positions)
        templates = TEMPLATES if templates is None else templates
        self._encoder: PromptEncoder | None = PromptEncoder(
            self.model, tokenizer, templates, truncate, cache
        )
        self._vocabulary: tuple[str, ...] | None = None
        self._set_texts(texts, distractors)

    @classmethod
    def _blank(cls) -> Self:
        clip = cls.__new__(cls)
        nn.Module.__init__(clip)
        return clip

    # --- ways to make one ------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        pretrained: str | PathLike[str] | None,
        texts: Iterable[str],
        distractors: Iterable[str] | None = None,
        templates: Sequence[Template] | None = None,
        truncate: bool = False,
        positions: str = "bilinear",
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: str | None = None,
        tokenizer: Tokenizer | None = None,
        cache: str | PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """A model as `open_clip.create_model_and_transforms` loads it, in eval mode.

        Args:
            name: an open_clip name, `hf-hub:org/repo` or `local-dir:folder`.
            pretrained: an open_clip tag or a checkpoint file; None where `name` has a scheme.
            texts, distractors, templates, truncate, positions, cache: as for the class.
            mean, std, interpolation: override the model's preprocessing. A checkpoint file does
                not record any, so open_clip assumes OpenAI's; a warning says where that is likely
                to be wrong.
            tokenizer: instead of the model's own, which many take from a hub: a callable of texts
                and `context_length` to token ids.
            **options: for open_clip: `precision`, `device`, `cache_dir`, `force_image_size`, ...
                `quick_gelu` chooses the activation. Without it the model is built with the one its
                weights were trained with, whatever its name; `repr` says which, and why.

        Raises:
            FileNotFoundError: a checkpoint file or folder that is not there.
            ValueError: a model or a tag that open_clip does not know, or no weights named.
            ImportError: a text tower or tokenizer of Hugging Face without the extra `transformers`.
        """
        model, tokenizer = load(name, pretrained, mean, std, interpolation, tokenizer, **options)
        return cls(model, texts, distractors, tokenizer, templates, truncate, positions, cache)

    @classmethod
    def from_features(
        cls,
        model: nn.Module,
        features: Tensor,
        empty_features: Tensor | None = None,
        texts: Iterable[str] | None = None,
        positions: str = "bilinear",
    ) -> Self:
        """Ready text features instead of texts.

        Args:
            model: as for the class; its text tower is not used.
            features: (K, C), on the model's device; L2-normalised at each use, so that gradients
                flow to them and changes to them show.
            empty_features: (C,) or (1, C), the feature of the empty text, for feature surgery's
                "empty" form.
            texts: names for the features, for `index` and figures.
            positions: as for the class.

        Raises:
            ValueError: features of another width, or holding zero rows, NaN or infinity.
        """
        clip = cls._blank()
        clip._set_model(model, positions)
        clip._encoder = clip._vocabulary = None
        width = clip._image_side.joint_width()
        _validation.check_features(features, width, "features", clip.device)
        names = [f"feature {i}" for i in range(len(features))] if texts is None else texts
        clip.texts = check_texts(names)
        if len(clip.texts) != len(features):
            raise ValueError(f"{len(clip.texts)} texts name {len(features)} features")
        clip.distractors = ()
        clip.register_buffer("features", features, persistent=False)
        if empty_features is not None:
            if isinstance(empty_features, Tensor) and empty_features.ndim == 1:
                empty_features = empty_features[None]
            _validation.check_features(empty_features, width, "empty_features", clip.device, rows=1)
            empty_features = empty_features[0]
        clip.register_buffer("_given_empty", empty_features, persistent=False)
        return clip

    @classmethod
    def demo(
        cls,
        texts: Iterable[str],
        distractors: Iterable[str] | None = None,
        templates: Sequence[Template] | None = None,
    ) -> Self:
        """The embedded model: small, trained by this project on scenes of emoji it renders.

        It knows the nouns in `.vocabulary`, warns of others, and takes its training's templates.

        Example::

            >>> clip = ZeroShotClassifier.demo(["camera", "mushroom"])
            >>> clip.index("mushroom"), "pizza" in clip.vocabulary
            (1, True)
        """
        from captum_clip_surgery import demo

        templates = demo.prompt_templates() if templates is None else templates
        name = f"local-dir:{demo.MODEL_FOLDER}"
        clip = cls.from_pretrained(name, None, texts, distractors, templates)
        clip._vocabulary = demo.nouns()
        clip._warn_of_unknown_words()
        return clip

    def with_texts(self, texts: Iterable[str], distractors: Iterable[str] | None = None) -> Self:
        """The same model, templates and remembered features under other texts."""
        if self._encoder is None:
            raise ValueError("a classifier made from_features has no texts to replace")
        clip = self._blank()
        for shared in ("model", "_image_side", "_encoder", "_vocabulary"):
            setattr(clip, shared, getattr(self, shared))
        clip._grids = nn.ModuleList(TokenGrid() for _ in self.tower.blocks)
        clip.training = self.training
        clip._set_texts(texts, distractors)
        clip._warn_of_unknown_words()
        return clip

    def _set_model(self, model: nn.Module, positions: str) -> None:
        self.model = model = check_clip(model)
        self.training = model.training
        self._image_side = ImageSide(model, positions)
        self._grids = nn.ModuleList(TokenGrid() for _ in self.tower.blocks)

    def _set_texts(self, texts: Iterable[str], distractors: Iterable[str] | None) -> None:
        self.texts = check_texts(texts)
        if not self.texts:
            raise ValueError("no texts: a classifier needs at least one")
        self.distractors = check_texts(() if distractors is None else distractors, "distractor")
        self.register_buffer("features", None, persistent=False)
        self._known: tuple[object, Tensor] | None = None  # of a generation of the encoder
        self.text_features()

    def _warn_of_unknown_words(self) -> None:
        if self._vocabulary is None or self._encoder is None:
            return
        from captum_clip_surgery import demo

        own = [template for template in self._encoder.templates if isinstance(template, str)]
        unknown = demo.unknown_words([*self.texts, *self.distractors, *own])
        if unknown:
            warnings.warn(
                f"the embedded model never learnt: {', '.join(unknown)}. What it knows is in "
                ".vocabulary",
                stacklevel=3,
            )

    # --- texts -----------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The nouns the embedded model knows; None for every other model: nobody can list them."""
        return self._vocabulary

    def index(self, text: str) -> int:
        """The target of a text.

        Raises:
            ValueError: a text that is not among the classes, or is twice.
        """
        found = [i for i, known in enumerate(self.texts) if known == text]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"text {text!r} stands at {found}; name the target by its index")
        close = difflib.get_close_matches(str(text), self.texts, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"text {text!r} is not among the classifier's {len(self.texts)}{hint}")

    def text_features(self) -> Tensor:
        """L2-normalised features (texts + distractors, C) in the order texts, distractors.

        Computed anew once something that determines them has changed, see `model_state`.
        """
        if self._encoder is None:
            return F.normalize(self.features, dim=-1)
        return cached_features(self._cached_features)

    def _cached_features(self) -> Tensor:
        assert self._encoder is not None
        generation = self._encoder.generation()
        known = self._known
        if known is None or known[0] is not generation:
            _validation.check_modes(self.model)
            # One tuple, so that no thread meets features of another generation.
            known = self._known = generation, self._encoder(self.texts + self.distractors)
            self.features = known[1]
        return known[1]

    @property
    def has_empty_features(self) -> bool:
        """Whether the feature of the empty text is known or can be encoded."""
        return self._encoder is not None or self._given_empty is not None

    def empty_features(self) -> Tensor | None:
        """The feature (C,) of the empty text; None if made from features without one."""
        if self._encoder is None:
            return None if self._given_empty is None else F.normalize(self._given_empty, dim=-1)
        return cached_features(partial(self._encoder, [""]))[0]

    # --- images ----------------------------------------------------------------------------------

    @property
    def tower(self) -> Tower:
        """The adapter for the model's image tower, looked up at each use; see `ImageSide`."""
        return self._image_side.tower()

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images the model was trained on."""
        return self.tower.native_size

    def preprocess(
        self,
        images: ImageInput | Sequence[ImageInput],
        size: int | tuple[int, int] | None = None,
        crop: bool = False,
    ) -> Tensor:
        """Pictures to a normalised batch (N, 3, H, W) on the model's device.

        Args:
            images: one or a list of PIL images, arrays or paths; see `load_image`.
            size: side or (height, width) in pixels; None is the native size.
            crop: resize the shorter side and keep the middle, as open_clip's own preprocessing
                does, instead of squashing the whole picture.

        Raises:
            ValueError: no images, an unreadable one, a size the patch size does not divide.
            FileNotFoundError, TypeError: see `load_image`.
        """
        batch = self.preprocessing(images, size, crop)
        self.tower.grid(*batch.shape[-2:])
        return batch.to(self.device)

    @property
    def preprocessing(self) -> Preprocess:
        """What `preprocess` does before the model's device, for workers of a data loader."""
        return self._image_side.preprocessing()

    def unnormalize(self, images: Tensor) -> Tensor:
        """A batch (..., 3, H, W) as colours in 0..1, for display."""
        return self.preprocessing.unnormalize(images)

    def image_features(self, images: Tensor) -> Tensor:
        """The model's own embedding of images, L2-normalised: (N, C)."""
        with assert_parameters_unchanged(self.model):
            found = self._image_features(images)
        return _validation.check_finite(images, found, "image features")

    def _image_features(self, images: Tensor) -> Tensor:
        tower = self.tower
        _validation.check_images(images, tower, self.device, finite=False)
        _validation.check_modes(self.model)
        # Tokens make the detour only where somebody looks.
        taps = {i: grid for i, grid in enumerate(self._grids) if has_hooks([grid])}
        if torch.is_grad_enabled() and (images.requires_grad or taps):
            check_differentiable(tower.visual)
        return normalized(tower.encode(images.to(tower.dtype), taps))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, 3, H, W) for the K texts.

        Raises:
            TypeError, ValueError: see `checks`.
            RuntimeError: a training step of the model meanwhile, see `assert_parameters_unchanged`.
        """
        with assert_parameters_unchanged(self.model):
            logits = self.logits(self._image_features(images)).to(images.dtype)
        return _validation.check_finite(images, logits, "logits")

    def logits(self, image_features: Tensor) -> Tensor:
        """Return the logits (N, K) of L2-normalized image features (N, C) for the K texts."""
        text_features = self.text_features()[: len(self.texts)].to(image_features.dtype)
        bias = getattr(self.model, "logit_bias", None)
        with full_precision(image_features):
            logits = self.model.logit_scale.exp() * image_features @ text_features.T
            return logits if bias is None else logits + bias

    def token_grid(self, index: int) -> nn.Module:
        """A module through which the patch tokens entering block `index` pass as (N, D, h, w).

        Captum's layer methods take it as a layer: on token sequences they would pool the wrong
        axes. The classifier owns it; the model is not touched.

        Raises:
            IndexError: no such block; negative counts from the end.
            TypeError: an index that is no int.
        """
        index = operator.index(index)
        count = len(self.tower.blocks)
        self._grids.extend(TokenGrid() for _ in range(len(self._grids), count))
        if not -count <= index < count:
            raise IndexError(f"block {index} of {count}; {-count} to {count - 1} exist")
        return self._grids[index % count]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.logit_scale.device

    def extra_repr(self) -> str:
        texts = f"texts={list(self.texts)}, distractors={list(self.distractors)}"
        tower = f"tower={self.tower.describe()}"
        return f"{texts},\n{tower},\nactivation={explain_activation(self.model)}"
