"""A CLIP and its texts as an image classifier, which any Captum method explains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, Self

from torch import Tensor, nn

from captum_clip_surgery.functional import full_precision
from captum_clip_surgery.models._activations import explain_activation
from captum_clip_surgery.models._guards import assert_parameters_unchanged
from captum_clip_surgery.models._image_encoder import ImageEncoder
from captum_clip_surgery.models._internals import is_exporting
from captum_clip_surgery.models._loading import load
from captum_clip_surgery.models._processors import with_processor
from captum_clip_surgery.models._validation import check_finite
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._features import EncodedTexts, GivenFeatures, TextFeatures
from captum_clip_surgery.models.text._templates import TEMPLATES, Template, check_names, index_of
from captum_clip_surgery.models.text._tokenization import Tokenizer
from captum_clip_surgery.queries import DifferenceQuery, Query
from captum_clip_surgery.queries._features import QueryFeatures, ask, bias_of, queries_of

__all__ = ["ZeroShotClassifier"]

Texts = tuple[str, ...]


class ZeroShotClassifier(ImageEncoder):
    """A CLIP and texts as an image classifier: images (N, 3, H, W) to logits (N, K texts).

    logits = exp(logit_scale) * cosine (+ logit_bias), at every size the patch size divides. The
    model is a submodule and is never changed; to verify what is computed, one image and two texts
    are run through a copy that shares its weights. Forward calls the model's blocks, layer norms
    and convolutions as modules, so hooks on them fire; those on containers (`visual`,
    `visual.transformer`) do not.

    Args:
        model: Any model of open_clip or transformers whose image tower is supported; compiled,
            data-parallel and peft's models are unwrapped.
        texts: The K classes; an attribution's target is an index into them.
        distractors: Further texts that compete in feature surgery but are not targets.
        tokenizer: `open_clip.get_tokenizer(name)`, a tokenizer of transformers, or a function of
            texts and `context_length` that returns token ids (texts, context_length) padded at the
            end. None means that of `processor`, or for open_clip's own BPE if the text tower's
            vocabulary has its 49,408 tokens.
        templates: Format strings with a slot `{}`, or functions, called once for each text; a
            text's feature is the mean over its prompts. None means the 85 of CLIP Surgery, an
            empty sequence for texts as they are.
        truncate: Whether to cut prompts longer than the context instead of raising.
        positions: How positional embeddings are resized for sizes that are not native: "bilinear"
            as in CLIP Surgery, or "bicubic" with antialiasing as in open_clip.
        cache: Folder in which text features are kept between processes, in a file of at most about
            1 GiB, under a key of weights, attributes of modules, prompts and versions. If it cannot
            be used, or the text tower has hooks, replaced methods or objects that mean nothing in
            another process, a warning is issued. None keeps them in memory only.
        processor: For a model of transformers, its processor, with preprocessing and tokenizer.

    Raises:
        TypeError: If `model` is not a CLIP, is scripted, has an image tower on which surgery is not
            defined, or was subclassed or patched; or if texts or templates have the wrong type.
        ValueError: If there are no texts, a text is empty or longer than the context, a template
            has no slot, the tokenizer's output does not fit the model, or the model is on several
            devices or on meta.

    Example::

        >>> import torch
        >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
        >>> clip(torch.zeros(1, 3, *clip.native_size)).shape
        torch.Size([1, 2])
    """

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
        processor: Any = None,
    ) -> None:
        model, tokenizer = with_processor(model, tokenizer, processor)
        super().__init__(model, positions)
        templates = TEMPLATES if templates is None else templates
        encoder = PromptEncoder(self.model, tokenizer, templates, truncate, cache)
        names = check_names(texts, distractors)
        self._set_text(EncodedTexts(encoder, names[0] + names[1]), *names)

    #: What the model was loaded from, for `repr`; None if the caller had it.
    origin: str | None = None

    def _set_text(self, text: TextFeatures, texts: Texts, distractors: Texts = ()) -> None:
        self._text = text
        self.texts, self.distractors = texts, distractors
        self.text_features()

    # --- constructors ----------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        pretrained: str | PathLike[str] | None = None,
        texts: Iterable[str] = (),
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
        """Load a model of open_clip or transformers by name, in eval mode.

        Args:
            name: The name of a configuration of open_clip, or a model with weights of its own: a
                folder, or a repository of the Hugging Face hub, in open_clip's, transformers' or
                sentence-transformers' form. The files determine the form, and `repr` shows it. If
                there are two, `local-dir:folder` and `hf-hub:repository` stand for open_clip's, and
                `hf:folder` or `hf:repository` for transformers'.
            pretrained: For a configuration of open_clip, its tag or a checkpoint file: a state dict
                of open_clip or OpenAI, as it is or within a checkpoint of Lightning, DDP or
                `torch.compile`, in the form of `torch.save` or safetensors, or OpenAI's TorchScript
                archive. None for a model with weights of its own.
            texts: As for the class.
            distractors: As for the class.
            templates: As for the class.
            truncate: As for the class.
            positions: As for the class.
            mean: Mean of pixels in 0..1 per channel, instead of the model's own. A checkpoint file
                does not record its preprocessing, so open_clip assumes OpenAI's; a warning says if
                that is likely to be wrong.
            std: Standard deviation per channel, likewise.
            interpolation: "bicubic", "bilinear" or "nearest", likewise.
            tokenizer: A function of texts and `context_length` that returns token ids, instead of
                the model's own, which many models take from a hub.
            cache: As for the class.
            **options: `device`, `precision` and `cache_dir`; for models of transformers also
                `revision` and `token`, for those of open_clip `force_image_size` and others.
                `quick_gelu` chooses the activation (default: that of the weights' training).

        Raises:
            FileNotFoundError: If a checkpoint file or folder does not exist.
            OSError: If a repository cannot be reached.
            ValueError: If nothing or more than one thing has the name, no weights are named, or
                weights and configuration are not of one model.
            TypeError: If surgery is not defined on the image tower.
            ImportError: If the extra `transformers` is needed and not installed.
        """
        found = load(name, pretrained, mean, std, interpolation, tokenizer, **options)
        self = cls(
            found.model, texts, distractors, found.tokenizer, templates, truncate, positions, cache
        )
        self.origin = found.origin
        return self

    @classmethod
    def from_features(
        cls,
        model: nn.Module,
        features: Tensor,
        empty_features: Tensor | None = None,
        texts: Iterable[str] | None = None,
        positions: str = "bilinear",
        processor: Any = None,
    ) -> Self:
        """Make a classifier of ready text features.

        Args:
            model: As for the class; its text tower is not used.
            features: Text features (K, C) on the model's device. They are L2-normalized at each
                use, so that gradients flow to them and changes to them take effect.
            empty_features: Feature (C,) or (1, C) of the empty text, for `feature_surgery="empty"`.
            texts: Names of the features, for `index` and figures.
            positions: As for the class.
            processor: As for the class.

        Raises:
            TypeError: If features are not floating-point tensors, or the model is not supported.
            ValueError: If features have another width, or rows that are zero, NaN or infinite.
        """
        self = cls.__new__(cls)
        model, _ = with_processor(model, None, processor)
        ImageEncoder.__init__(self, model, positions)
        text = GivenFeatures.checked(features, empty_features, self.joint_width(), self.device)
        self._set_text(text, text.names(texts))
        return self

    @staticmethod
    def demo(
        texts: Iterable[str],
        distractors: Iterable[str] | None = None,
        templates: Sequence[Template] | None = None,
    ) -> ZeroShotClassifier:
        """Load the embedded model, which was trained on rendered scenes of emoji.

        It knows the nouns in `.vocabulary` and warns of other words.

        Args:
            texts: The classes.
            distractors: Further texts that compete in feature surgery but are not targets.
            templates: Templates of prompts; None means those of the model's training.

        Example::

            >>> clip = ZeroShotClassifier.demo(["camera", "mushroom"])
            >>> clip.index("mushroom"), "pizza" in clip.vocabulary
            (1, True)
        """
        from captum_clip_surgery.demo._classifier import DemoClassifier

        return DemoClassifier.load(texts, distractors, templates)

    def with_texts(self, texts: Iterable[str], distractors: Iterable[str] | None = None) -> Self:
        """Return a classifier with other texts that shares model, templates and cached features.

        Args:
            texts: As for the class.
            distractors: As for the class.

        Raises:
            ValueError: If this classifier was made by `from_features`, or there are no texts.
        """
        texts, distractors = check_names(texts, distractors)
        return self._share(self._text.with_texts(texts + distractors), texts, distractors)

    def with_queries(
        self, queries: Iterable[Query], distractors: Iterable[Query] | None = None
    ) -> Self:
        """Return a classifier of texts and other queries that shares the model.

        Their names are in `texts`; `with_texts` takes these names for the queries.

        Args:
            queries: Texts, and queries of `captum_clip_surgery.queries`.
            distractors: Further queries that compete in feature surgery but are not targets.

        Raises:
            TypeError: If an entry is not a query, or an image has another type.
            ValueError: If there are no queries, two have one name, one does not fit the model, a
                difference is zero, or there are texts and `from_features` made this classifier.
            FileNotFoundError: If the file of an image does not exist.

        Example::

            >>> from captum_clip_surgery.queries import DifferenceQuery
            >>> clip = ZeroShotClassifier.demo(["dog"])
            >>> clip.with_queries(["dog", DifferenceQuery("fox", "lion")]).texts
            ('dog', 'fox rather than lion')
        """
        return self._share(*ask(self.share(), self._text, queries, distractors or ()))

    def _share(self, text: TextFeatures, texts: Texts, distractors: Texts) -> Self:
        clip = self.share()
        vars(clip).update(_text=text, texts=texts, distractors=distractors)
        clip.text_features()
        return clip

    def _follow_tower(self) -> None:
        if isinstance(self._text, QueryFeatures):
            vars(self).update(_text=self._text.encoded_by(self.share()))

    # --- texts -----------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """The nouns that the embedded model knows; None for other models, whose words are open."""
        return None

    @property
    def templates(self) -> tuple[Template, ...]:
        """The templates of prompts; empty unless all features come from texts."""
        return self._text.templates

    @property
    def text_encoder(self) -> PromptEncoder:
        """The encoder of texts, checked against the model's `encode_text`.

        Raises:
            TypeError: If this classifier was made by `from_features`.
        """
        return self._text.encoder

    @property
    def queries(self) -> dict[str, Query]:
        """The queries of `with_queries` and its distractors by name; empty if all are texts."""
        return queries_of(self._text)

    @property
    def differences(self) -> tuple[bool, ...]:
        """Whether each of the texts names a difference, whose score is that of two cosines."""
        queries = self.queries
        return tuple(isinstance(queries.get(text), DifferenceQuery) for text in self.texts)

    def index(self, text: str) -> int:
        """Return the target of a text.

        Raises:
            ValueError: If the text is not among the classes, or occurs more than once.
        """
        return index_of(text, self.texts)

    def text_features(self) -> Tensor:
        """Return the L2-normalized features (texts + distractors, C), in that order.

        Those of differences (`with_queries`) are not normalized. Features are computed again when
        something that determines them has changed.

        Raises:
            TypeError: If `torch.export` traces, and the features are computed from texts.
        """
        self._check_exportable()
        return self._text.features()

    @property
    def has_empty_features(self) -> bool:
        """Whether the feature of the empty text is known or can be computed."""
        return self._text.has_empty_features

    def empty_features(self) -> Tensor | None:
        """Return the L2-normalized feature (C,) of the empty text, or None if it is unknown.

        With differences, in which it cancels: (texts + distractors, C), zero for differences.
        """
        self._check_exportable()
        return self._text.empty_features()

    def _check_exportable(self) -> None:
        if is_exporting() and not isinstance(self._text, GivenFeatures):
            raise TypeError(
                "torch.export needs fixed text features; export a method of ZeroShotClassifier."
                "from_features(clip.model, clip.text_features(), clip.empty_features())"
            )

    def describe_features(self) -> Any:
        """Return what else text features depend on, besides texts, templates and the model."""
        return self._text.describe()

    @property
    def text_features_require_grad(self) -> bool:
        """Whether gradients flow to features that were given, or to images of queries."""
        return self._text.requires_grad

    # --- logits ----------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of images (N, 3, H, W) for the K texts.

        Raises:
            TypeError: If `images` is not a dense floating-point tensor.
            ValueError: If the images do not fit the model or contain NaN or infinity, or the model
                is in train mode where that matters.
            RuntimeError: If a parameter of the model changes during the call.
        """
        with assert_parameters_unchanged(self.model):
            logits = self.logits(self._image_features(images)).to(images.dtype)
        return check_finite(images, logits, "logits")

    def logits(self, image_features: Tensor) -> Tensor:
        """Return the logits (N, K) of L2-normalized image features (N, C) for the K texts."""
        text_features = self.text_features()[: len(self.texts)].to(image_features.dtype)
        bias = bias_of(self.model, self.differences)
        with full_precision(image_features):
            logits = self.model.logit_scale.exp() * image_features @ text_features.T
            return logits if bias is None else logits + bias

    def cosines(self, logits: Tensor) -> Tensor:
        """Return the cosines, or differences of two, (N, K) that logits (N, K) stand for.

        Cosines compare between calls; logits depend on the scale, and their softmax on other texts.

        Example::

            >>> import torch
            >>> clip = ZeroShotClassifier.demo(["dog", "pizza"])
            >>> clip.cosines(clip(torch.rand(1, 3, 64, 64))).abs().max().item() <= 1
            True
        """
        bias = bias_of(self.model, self.differences)
        logits = logits if bias is None else logits - bias.detach().to(logits)
        return logits / self.model.logit_scale.detach().exp().to(logits)

    def extra_repr(self) -> str:
        """Return texts, origin, tower and activation, for `repr`."""
        lines = [
            f"texts={list(self.texts)}, distractors={list(self.distractors)}",
            f"tower={self.tower.describe()}",
            f"activation={explain_activation(self.model)}",
        ]
        return ",\n".join(lines + [f"loaded from={self.origin}"] * (self.origin is not None))
