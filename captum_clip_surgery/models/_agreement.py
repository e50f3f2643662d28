"""Check that what is computed beside a model is what the model itself computes.

Adapters and the text path restate the forward pass of open_clip's and timm's classes. A subclass, a
patched method or an `encode_image` of the model's own would be passed by without a trace, so one
image and two texts are held against the model itself: when a classifier is made, and whenever a
class, a method or a part that is passed by has changed since.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from captum_clip_surgery.models._blocks import HOOKS
from captum_clip_surgery.models._exact import Makeup, why_not_exactly
from captum_clip_surgery.models._validation import check_modes
from captum_clip_surgery.models.image import Tower, adapt, unwrap
from captum_clip_surgery.models.text.towers import pooled_at_end_of_text, probe_tokens
from captum_clip_surgery.preprocessing import Preprocess

#: Largest distance of two unit-length embeddings that counts as rounding, in float32 and wider.
TOLERANCE = 1e-4
#: The same in units of the dtype's epsilon, for half precision: 0.06 in bfloat16, where blocks
#: rebuilt from their parts differ by 0.01 from the modules (ViT-B/16, random weights).
EPSILONS = 8
#: Relative rounding of 8-bit quantized layers.
EPSILON_8_BIT = 2.0**-7

OPEN_CLIP = (CLIP, CustomTextCLIP, CoCa)
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class ImageSide:
    """A model's image tower with the adapter for it, both looked up at each use.

    Making it runs the model once on one image of the native size, and the adapter once. Both run
    on a shallow copy without hooks and with buffers of its own, so that the model stays as it is,
    and so does the random state.

    Args:
        model: an open_clip model.
        positions: how positional embeddings are resized, see `Tower`.

    Raises:
        TypeError: a tower that no adapter supports, or whose embedding differs from the model's
            `encode_image`.
        ValueError: a model in train mode where that changes its results.
    """

    def __init__(self, model: Any, positions: str) -> None:
        self.model = model
        self._adapter = adapt(model.visual, positions)
        self._verified: Makeup | None = None
        self._prepared = (model.visual, Preprocess.of(model, self.tower().native_size))

    def tower(self) -> Tower:
        """Return the adapter for the model's present image tower.

        While `torch.compile` traces, changes of the model are not looked for.

        Raises:
            TypeError, ValueError: as for the class, after a change of the model.
        """
        if torch.compiler.is_compiling():
            return self._adapter
        visual = unwrap(self.model.visual)
        if visual is not self._adapter.visual:
            self._adapter = adapt(visual, self._adapter.positions)
            self._verified = None
        if self._verified is None or not self._verified.holds():
            self._verified = None
            present = self._makeup()
            self._verify()
            self._verified = present
        return self._adapter

    def preprocessing(self) -> Preprocess:
        """Return the preprocessing of the model's present image tower."""
        if self._prepared[0] is not self.model.visual:
            size = self.tower().native_size
            self._prepared = (self.model.visual, Preprocess.of(self.model, size))
        return self._prepared[1]

    def joint_width(self) -> int:
        """Return the width of the joint space, from an image of one patch."""
        tower, device = self.tower(), self.model.logit_scale.device
        with torch.no_grad():
            image = torch.zeros(1, 3, *tower.patch_size, dtype=tower.dtype, device=device)
            return tower.encode(image).shape[-1]

    def _makeup(self) -> Makeup:
        tower = self._adapter
        parts = [part for each in tower.containers.values() for part in each.children()]
        modules = list(dict.fromkeys([*tower.bypassed().values(), *parts]))
        return Makeup(self.model, ("encode_image", "_encode_image"), modules, tower)

    def _verify(self) -> None:
        tower = adapt(self._adapter.visual, self._adapter.positions)  # supported still
        check_modes(self.model)
        device, (height, width) = self.model.logit_scale.device, tower.native_size
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, 3, height, width, generator=generator).to(device, tower.dtype)
        with _undisturbed(device):
            shadow = shadow_of(self.model)
            expected = _of_model(shadow, "encode_image", image)
            if expected is not None:
                actual = _rebuilt(type(tower)(shadow.visual, tower.positions), image)
                _compare(self.model, "encode_image", actual, expected, tower.visual)

    def __getstate__(self) -> dict[str, Any]:
        """Without the functions of classes, which may not pickle."""
        return {**self.__dict__, "_verified": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._verified = self._makeup()  # checked before it was copied


class TextSide:
    """The model's `encode_text`, held against the features that `PromptEncoder` computes.

    Args:
        model: an open_clip model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._verified: Makeup | None = None

    def check(self, encode_tokens: Callable[[Any, Tensor], Tensor], context_length: int) -> None:
        """Compare two texts, a short one and one that fills the context, unless nothing changed.

        Where the features are those of `encode_text` itself (Hugging Face, SigLIP), nothing can
        differ, and only the class of the text tower is checked.

        Args:
            encode_tokens: what computes unnormalized features (P, C) by a model of token ids
                (P, context).
            context_length: the number of tokens that the text tower takes.

        Raises:
            TypeError: a text tower derived from open_clip's, with methods replaced, or whose
                feature differs from the model's `encode_text`.
        """
        tower = getattr(self.model, "text", self.model)
        if self._verified is not None and self._verified.holds():
            return
        parts = [tower.transformer] if tower is self.model else [tower]
        present = Makeup(self.model, ("encode_text", "_encode_text"), [self.model, *parts])
        if tower is not self.model and isinstance(tower, TextTransformer):
            altered = why_not_exactly(tower, TextTransformer)
            if altered:
                raise TypeError(
                    f"the text tower {altered}, which would not be called; {_way_out('text')}"
                )
        if pooled_at_end_of_text(tower):
            self._verify(encode_tokens, tower, context_length)
        self._verified = present

    def _verify(
        self, encode_tokens: Callable[[Any, Tensor], Tensor], tower: Any, context_length: int
    ) -> None:
        device = self.model.logit_scale.device
        tokens = probe_tokens(tower, context_length)
        with _undisturbed(device):
            shadow = shadow_of(self.model)
            expected = _of_model(shadow, "encode_text", tokens.to(device))
            if expected is not None:
                _compare(self.model, "encode_text", encode_tokens(shadow, tokens), expected, tower)

    def __getstate__(self) -> dict[str, Any]:
        """Without the functions of classes, which may not pickle."""
        return {**self.__dict__, "_verified": None}


# --- the comparison ------------------------------------------------------------------------------


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Compute without gradients and autocast, and restore the random state."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        devices = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices))
        yield


def shadow_of(module: Any, made: dict[nn.Module, Any] | None = None) -> Any:
    """Return a copy of a module tree that shares parameters but has no hooks.

    What running it changes (buffers, attributes, others' counters in hooks) does not reach the
    module itself. Compiled and data-parallel modules are unwrapped, as for explaining.
    """
    made = {} if made is None else made
    while isinstance(module, WRAPPERS) or hasattr(module, "_orig_mod"):
        module = module.module if isinstance(module, WRAPPERS) else module._orig_mod
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if module not in made:
        made[module] = clone = object.__new__(type(module))  # copy.copy refuses parametrized ones
        state = dict(module.__dict__)
        for name in HOOKS:
            state[name] = OrderedDict()
        state["_compiled_call_impl"] = None
        state["_parameters"] = dict(module._parameters)
        state["_buffers"] = {
            n: None if b is None else b.clone() for n, b in module._buffers.items()
        }
        clone.__dict__.update(state)
        clone.__dict__["_modules"] = {
            name: None if child is None else shadow_of(child, made)
            for name, child in module._modules.items()
        }
    return made[module]


def _of_model(model: Any, name: str, given: Tensor) -> Any:
    """Call a method of the model; None if it is open_clip's own and cannot run.

    open_clip cannot encode texts with a dynamically quantized tower, for example: there is nothing
    that the features could differ from.
    """
    try:
        return getattr(model, name)(given)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if _owner(model, name) is None:
            return None
        error.add_note(f"raised by {_owner(model, name)} for a test input {tuple(given.shape)}")
        raise


def _rebuilt(tower: Tower, image: Tensor) -> Tensor:
    """Return the pooled embedding, every block rebuilt from its queries, keys and values."""
    x, layout = tower.enter(image, 0)
    for index in range(len(tower.blocks)):
        heads = tower.heads(index, x, layout)
        update = tower.merge(index, heads.attend(), heads.x)
        x = tower.feed_forward(index, x + update if tower.has_residual else update)
    return tower.pool(x)


def _compare(model: Any, name: str, actual: Tensor, expected: Any, tower: nn.Module) -> None:
    side = "image" if name == "encode_image" else "text"
    if not isinstance(expected, Tensor) or expected.shape != actual.shape:
        shape = tuple(getattr(expected, "shape", ()))
        what = f"a tensor of shape {shape}" if shape else f"a {type(expected).__name__}"
        raise TypeError(
            f"{type(model).__name__}.{name} gives {what}, the {side} tower {type(tower).__name__} "
            f"{tuple(actual.shape)}; {_cause(model, name)}; {_way_out(side)}"
        )
    # Directions alone enter the results. Wide, and without the half precision of either.
    own, ours = (F.normalize(each.detach().double(), dim=-1) for each in (expected, actual))
    distance = (own - ours).norm(dim=-1).max().item()
    # Weights that give NaN or infinity are reported where they show, with the texts or images.
    if not own.isfinite().all() or distance <= _tolerance(tower, expected):
        return
    raise TypeError(
        f"{type(model).__name__}.{name} of a test {side} differs from what its {side} tower "
        f"{type(tower).__name__} computes by {distance:.2g} of the embedding's norm; "
        f"{_cause(model, name)}; {_way_out(side)}"
    )


def _tolerance(tower: nn.Module, expected: Tensor) -> float:
    """Return the distance that rounding alone explains, by the coarsest dtype in use."""
    parts = [p.dtype for p in tower.parameters() if p.is_floating_point()] + [expected.dtype]
    epsilon = max(torch.finfo(dtype).eps for dtype in parts)
    if any(callable(getattr(module, "weight", None)) for module in tower.modules()):
        epsilon = EPSILON_8_BIT
    return max(TOLERANCE, EPSILONS * epsilon)


def _owner(model: Any, name: str) -> str | None:
    """Name whoever defines a method of the model, or None for open_clip."""
    if name in model.__dict__:
        return f"the {name} replaced on the instance"
    function = getattr(type(model), name, None)
    if any(function is vars(known).get(name) for known in OPEN_CLIP):
        return None
    return f"{type(model).__name__}'s own {name}"


def _cause(model: Any, name: str) -> str:
    owner = _owner(model, name)
    if owner is None:
        return "a method of one of its modules must have been changed"
    return f"{owner} would have no effect on the results"


def _way_out(side: str) -> str:
    if side == "image":
        return (
            "put what was added into parts that are called (norms, projections, feed-forward), or "
            "register an adapter of your own in captum_clip_surgery.models.image.FAMILIES "
            "(CONTRIBUTING.md, a tower)"
        )
    return (
        "pass the features of model.encode_text to ZeroShotClassifier.from_features instead, or "
        "fold the change into the weights of the original class"
    )
