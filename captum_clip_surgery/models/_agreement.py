"""Check that results recomputed outside a model equal the model's own.

Adapters and the text encoder restate the forward pass of open_clip's and timm's classes. A
subclass, a patched method or a model's own `encode_image` would be bypassed without a trace, so one
image and two texts are compared with the model itself: when a classifier is made, and whenever a
class, a method or a bypassed part has changed since. A model's own `encode_image` or `encode_text`
can agree now and differ once what it adds is trained or switched on, so that such a model is
compared again after every change of its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from captum_clip_surgery._utils.tensors import as_double
from captum_clip_surgery.models._deviations import ImplementationSnapshot, describe_deviation
from captum_clip_surgery.models._dual_encoders import LIBRARY, TransformersCLIP
from captum_clip_surgery.models._internals import (
    buffers_of,
    children_of,
    copy_without_hooks,
    unwrap_parallel,
)
from captum_clip_surgery.models._state import ModelState, read_state
from captum_clip_surgery.models._validation import check_modes
from captum_clip_surgery.models.image import Tower, build_tower
from captum_clip_surgery.models.image._registry import unwrap
from captum_clip_surgery.models.text._towers import pooled_at_end_of_text, probe_tokens
from captum_clip_surgery.preprocessing import Preprocess

#: Largest distance between unit-length embeddings that counts as rounding, in float32 and wider.
TOLERANCE = 1e-4
#: The same for half precision, as a multiple of the dtype's epsilon: 0.06 in bfloat16, where blocks
#: rebuilt from their parts differ by 0.01 from the modules (ViT-B/16, random weights).
NUM_EPSILONS = 8
#: Relative rounding of 8-bit quantized layers.
EPSILON_8_BIT = 2.0**-7

OPEN_CLIP_MODELS = (CLIP, CustomTextCLIP, CoCa)
ADVICE = {
    "image": (
        "put what was added into parts that are called (norms, projections, feed-forward), or "
        "register a tower of your own with captum_clip_surgery.models.image.register_tower "
        "(CONTRIBUTING.md, a tower)"
    ),
    "text": (
        "pass the features of model.encode_text to ZeroShotClassifier.from_features instead, or "
        "fold the change into the weights of the original class"
    ),
}


class _Verified(NamedTuple):
    """A verified model at one moment; `state` is None unless it has methods of its own."""

    snapshot: ImplementationSnapshot
    state: ModelState | None

    @classmethod
    def of(
        cls, model: Any, names: tuple[str, str], modules: Sequence[nn.Module], tower: Any = None
    ) -> Self:
        """Take a snapshot of the classes, methods and children that `names` depend on."""
        own = any(_owner_of(model, name) for name in names)
        state = read_state(model, samples=True) if own else None
        return cls(ImplementationSnapshot(model, names, modules, tower), state)

    def is_current(self, model: Any) -> bool:
        """Return whether nothing that could make results differ has changed since."""
        before = self.state
        return self.snapshot.is_current() and (
            before is None or before.same(read_state(model, previous=before, samples=True))
        )


class VerifiedImageTower:
    """A model's image tower and its adapter, looked up and verified at each use.

    When it is made and after changes, the model and the adapter each run on one image of the native
    size. Both run on a shallow copy without hooks and with copied buffers, so that the model and
    the random state are unchanged.

    Args:
        model: An open_clip model.
        positions: How positional embeddings are resized, "bilinear" or "bicubic".

    Raises:
        TypeError: If no adapter supports the tower, or its embedding differs from the model's
            `encode_image`.
        ValueError: If the model is in train mode and that changes its results.
    """

    def __init__(self, model: Any, positions: str) -> None:
        self.model = model
        self._adapter = build_tower(model.visual, positions)
        self._verified: _Verified | None = None
        self._preprocess = (model.visual, Preprocess.of(model, self.tower().native_size))

    def tower(self) -> Tower:
        """Return the adapter for the model's present image tower.

        While `torch.compile` traces, changes of the model are not looked for.

        Raises:
            TypeError: If the model has changed, and no adapter supports the tower or its embedding
                differs from the model's `encode_image`.
            ValueError: If the model has changed, and is in train mode where that matters.
        """
        if torch.compiler.is_compiling():
            return self._adapter
        visual = unwrap(self.model.visual)
        if visual is not self._adapter.visual:
            self._adapter = build_tower(visual, self._adapter.positions)
            self._verified = None
        if self._verified is None or not self._verified.is_current(self.model):
            self._verified = None
            present = self._snapshot()
            self._verify()
            self._verified = present
        return self._adapter

    def preprocessing(self) -> Preprocess:
        """Return the preprocessing of the model's present image tower."""
        if self._preprocess[0] is not self.model.visual:
            size = self.tower().native_size
            self._preprocess = (self.model.visual, Preprocess.of(self.model, size))
        return self._preprocess[1]

    def joint_width(self) -> int:
        """Return the width of the joint space, by encoding an image of one patch."""
        tower, device = self.tower(), self.model.logit_scale.device
        with torch.no_grad():
            image = torch.zeros(1, 3, *tower.patch_size, dtype=tower.dtype, device=device)
            return tower.encode(image).shape[-1]

    def _snapshot(self) -> _Verified:
        tower = self._adapter
        parts = [part for each in tower.containers.values() for part in each.children()]
        source = _source_of(self.model)
        modules = list(dict.fromkeys([*tower.bypassed().values(), *parts, *source]))
        return _Verified.of(self.model, ("encode_image", "_encode_image"), modules, tower)

    def _verify(self) -> None:
        tower = build_tower(self._adapter.visual, self._adapter.positions)  # still supported
        check_modes(self.model)
        device, (height, width) = self.model.logit_scale.device, tower.native_size
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(
            1, 3, height, width, generator=generator, dtype=torch.float32, device="cpu"
        ).to(device, tower.dtype)
        with _isolated(device):
            shadow = _shadow(self.model)
            expected = _call_model(shadow, "encode_image", image)
            if expected is not None:
                actual = _encode_rebuilt(type(tower)(shadow.visual, tower.positions), image)
                _compare(self.model, "image", actual, expected, tower.visual)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the snapshot, which holds functions of classes that may not pickle."""
        return {**self.__dict__, "_verified": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a new snapshot: the model was verified before it was copied."""
        self.__dict__.update(state)
        self._verified = self._snapshot()


class TextTowerCheck:
    """Comparison of a model's `encode_text` with the features of `PromptEncoder`.

    Args:
        model: An open_clip model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._verified: _Verified | None = None

    def check(self, encode_tokens: Callable[[Any, Tensor], Tensor], context_length: int) -> None:
        """Compare a short text and one that fills the context, unless nothing has changed.

        If the features are those of `encode_text` itself (Hugging Face, SigLIP), nothing can
        differ, and only the class of the text tower is checked.

        Args:
            encode_tokens: Maps a model and token ids (P, context) to unnormalized features (P, C).
            context_length: Number of tokens that the text tower takes.

        Raises:
            TypeError: If the text tower derives from open_clip's, has replaced methods, or its
                feature differs from the model's `encode_text`.
        """
        tower = getattr(self.model, "text", self.model)
        if self._verified is not None and self._verified.is_current(self.model):
            return
        part = tower.transformer if tower is self.model else tower
        if any(hasattr(module, "_orig_mod") for module in part.modules()):
            raise TypeError(
                f"the text tower {type(tower).__name__} is compiled or has compiled parts, which "
                "cannot be followed; pass the model as it was before torch.compile (`_orig_mod`): "
                "texts are encoded once and cached"
            )
        modules = [self.model, part, *_source_of(self.model)]
        present = _Verified.of(self.model, ("encode_text", "_encode_text"), modules)
        derived = tower is not self.model and isinstance(tower, TextTransformer)
        if derived and (deviation := describe_deviation(tower, TextTransformer)):
            raise TypeError(
                f"the text tower {deviation}, which would not be called; {ADVICE['text']}"
            )
        if pooled_at_end_of_text(tower):
            self._verify(encode_tokens, tower, context_length)
        self._verified = present

    def _verify(
        self, encode_tokens: Callable[[Any, Tensor], Tensor], tower: Any, context_length: int
    ) -> None:
        device = self.model.logit_scale.device
        tokens = probe_tokens(tower, context_length)
        with _isolated(device):
            shadow = _shadow(self.model)
            expected = _call_model(shadow, "encode_text", tokens.to(device))
            if expected is not None:
                _compare(self.model, "text", encode_tokens(shadow, tokens), expected, tower)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the snapshot, which holds functions of classes that may not pickle."""
        return {**self.__dict__, "_verified": None}


# --- the comparison ------------------------------------------------------------------------------


@contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    """Compute without gradients and autocast, and restore the random state."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        devices = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices))
        yield


def _shadow(module: Any, copies: dict[nn.Module, Any] | None = None) -> Any:
    """Copy a tree of modules: the copy shares parameters, but has no hooks and its own buffers.

    What running it changes (buffers, attributes, counters in hooks) does not reach the module.
    Compiled and data-parallel modules are unwrapped.
    """
    copies = {} if copies is None else copies
    module = unwrap_parallel(module)
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if module not in copies:
        copies[module] = clone = copy_without_hooks(module)
        registries = clone.__dict__
        registries["_buffers"] = {
            name: None if buffer is None else buffer.clone()
            for name, buffer in buffers_of(module).items()
        }
        registries["_modules"] = {
            name: None if child is None else _shadow(child, copies)
            for name, child in children_of(module).items()
        }
    return copies[module]


def _call_model(model: Any, name: str, inputs: Tensor) -> Any:
    """Call a method of the model; return None if it is open_clip's own and fails.

    open_clip cannot encode texts with a dynamically quantized tower, for example: then there is
    nothing that the features could differ from.
    """
    try:
        return getattr(model, name)(inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        owner = _owner_of(model, name)
        if owner is None:
            return None
        error.add_note(f"raised by {owner} for a test input {tuple(inputs.shape)}")
        raise


def _encode_rebuilt(tower: Tower, image: Tensor) -> Tensor:
    """Return the pooled embedding with every block rebuilt from queries, keys and values."""
    x, grid_spec = tower.enter(image, 0)
    for index in range(len(tower.blocks)):
        heads = tower.attention_inputs(index, x, grid_spec)
        update = tower.merge(index, heads.attend(), heads.x)
        x = tower.feed_forward(index, x + update if tower.has_residual else update)
    return tower.pool(x)


def _compare(model: Any, side: str, actual: Tensor, expected: Any, tower: nn.Module) -> None:
    """Check that embeddings have the same shape and directions.

    Raises:
        TypeError: If they do not; the message says whose method is responsible.
    """
    name = f"encode_{side}"
    if not isinstance(expected, Tensor) or expected.shape != actual.shape:
        shape = tuple(getattr(expected, "shape", ()))
        what = f"a tensor of shape {shape}" if shape else f"a {type(expected).__name__}"
        raise TypeError(
            f"{type(model).__name__}.{name} gives {what}, the {side} tower {type(tower).__name__} "
            f"{tuple(actual.shape)}; {_cause(model, name)}; {ADVICE[side]}"
        )
    # Only directions enter the results. Compared in float64, whatever either computes in.
    by_model, by_us = (F.normalize(as_double(each.detach()), dim=-1) for each in (expected, actual))
    distance = (by_model - by_us).norm(dim=-1).max().item()
    # Weights that give NaN or infinity are reported later, with the texts or images concerned.
    if not by_model.isfinite().all() or distance <= _tolerance(tower, expected):
        return
    raise TypeError(
        f"{type(model).__name__}.{name} of a test {side} differs from what its {side} tower "
        f"{type(tower).__name__} computes by {distance:.2g} of the embedding's norm; "
        f"{_cause(model, name)}; {ADVICE[side]}"
    )


def _tolerance(tower: nn.Module, expected: Tensor) -> float:
    """Return the distance that rounding explains, given the coarsest dtype in use."""
    dtypes = [p.dtype for p in tower.parameters() if p.is_floating_point()] + [expected.dtype]
    epsilon = max(torch.finfo(dtype).eps for dtype in dtypes)
    if any(callable(getattr(module, "weight", None)) for module in tower.modules()):
        epsilon = EPSILON_8_BIT
    return max(TOLERANCE, NUM_EPSILONS * epsilon)


def _owner_of(model: Any, name: str) -> str | None:
    """Name what defines a method of the model; None means open_clip and transformers."""
    for source in _source_of(model):
        model, name = source, f"get_{name.rpartition('_')[2]}_features"
    if name in model.__dict__:
        return f"the {name} replaced on the instance"
    function = getattr(type(model), name, None)
    if any(function is vars(known).get(name) for known in OPEN_CLIP_MODELS):
        return None
    if getattr(function, "__module__", "").startswith(LIBRARY):
        return None
    return f"{type(model).__name__}'s own {name}"


def _source_of(model: Any) -> list[nn.Module]:
    return [model.source] if isinstance(model, TransformersCLIP) else []


def _cause(model: Any, name: str) -> str:
    owner = _owner_of(model, name)
    if owner is None:
        return "a method of one of its modules must have been changed"
    return f"{owner} would have no effect on the results"
