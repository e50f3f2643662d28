"""The activation a model is built with: the one its weights were trained with, whatever its name.

OpenAI's, MetaCLIP's, DFN's and some of LAION's weights were trained with QuickGELU. open_clip
builds what the name's configuration says and warns at most, so that `ViT-B-32` with the tag
`openai` computes GELU on weights of QuickGELU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import list_pretrained
from torch import nn

from captum_clip_surgery.models._internals import get_hub_config
from captum_clip_surgery.models._weight_files import recognize_activation

HUB = "hf-hub:"
SUFFIX = "-quickgelu"
OPTIONS = ("quick_gelu", "force_quick_gelu")  # open_clip's: of the model and of the factory
#: Modules that define activations; attention and softmax live in torch's as well.
ACTIVATION_MODULES = (
    "torch.nn.modules.activation",
    "timm.layers.activations",
    "transformers.activations",
)
NO_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax)


@dataclass(frozen=True)
class Activation:
    """An activation to build and the reason for it.

    Args:
        quick: whether it is QuickGELU; None leaves it to the configuration, where nothing is known
            of the weights.
        reason: what decided, for `repr` of the classifier.
        chosen: whether the user did.
    """

    quick: bool | None
    reason: str
    chosen: bool = False

    def options(self) -> dict[str, bool]:
        """Return the options by which open_clip builds it."""
        if self.quick is None:
            return {}
        # `force_quick_gelu=False` forces nothing; only the model's own option turns it off.
        return {"force_quick_gelu": True} if self.quick else {"quick_gelu": False}


def choose_activation(name: str, pretrained: str | None, options: dict[str, Any]) -> Activation:
    """Choose the activation: the user's, else that of the weights, else the configuration's.

    Args:
        name: an open_clip name, `hf-hub:org/repo` or `local-dir:folder`.
        pretrained: a tag or a checkpoint file; ignored where `name` has a scheme.
        options: the user's, from which `quick_gelu` and `force_quick_gelu` are removed.

    Raises:
        TypeError: an option that is neither a bool nor None.
        ValueError: options that contradict each other.
    """
    asked = _pop_choice(options)
    if name.startswith(HUB):
        found = _of_repository(name, options.get("cache_dir"), warn=asked is None)
    elif ":" in name:
        found = _as_configured(name)
    elif record := open_clip.get_pretrained_cfg(name, pretrained or ""):
        found = _of_record(name, f"the tag {pretrained!r}", record)
    else:
        found = _of_file(name, str(pretrained), warn=asked is None)
    if asked is None:
        return found
    option, quick = asked
    reason = f"chosen by {option}={quick}"
    if found.quick not in (None, quick):
        reason += f"; {_name(found.quick)} {found.reason}"
        warnings.warn(
            f"{name} is built with {_name(quick)}, {reason}. Leave {option} out to build what the "
            "weights were trained with",
            stacklevel=4,
        )
    return Activation(quick, reason, chosen=True)


def describe_activation(model: nn.Module) -> str:
    """Name the activations that a model's towers compute with.

    Example::

        >>> from captum_clip_surgery import ZeroShotClassifier
        >>> describe_activation(ZeroShotClassifier.demo(["dog"]).model)
        'GELU'
    """
    towers = _activations(model)
    told = {tower: "/".join(sorted(names)) for tower, names in towers.items() if names}
    if len(told) == 2 and len(set(told.values())) == 1:
        return told["image"]
    return ", ".join(f"{tower} {names}" for tower, names in told.items())


def explain_activation(model: nn.Module) -> str:
    """Name the activations, with the reason for them where the model was loaded by name."""
    reason = getattr(model.visual, "activation_reason", None)
    return describe_activation(model) + (f" ({reason})" if reason else "")


def note_activation(activation: Activation, model: Any) -> None:
    """Keep the reason beside the preprocessing, where open_clip keeps what is known of a model.

    Warn of a user's QuickGELU that a tower did not take: timm's and Hugging Face's have their own.
    """
    model.visual.activation_reason = activation.reason
    if not (activation.chosen and activation.quick):
        return
    for tower, names in _activations(model).items():
        if "QuickGELU" not in names and names != {"ReLU"}:  # of a ResNet's stages
            warnings.warn(
                f"QuickGELU was chosen, but the {tower} tower keeps "
                f"{'/'.join(sorted(names)) or 'its own'}: open_clip sets the activation of its own "
                "transformers only",
                stacklevel=4,
            )


# --- what the user, a record, a repository and a file say ----------------------------------------


def _pop_choice(options: dict[str, Any]) -> tuple[str, bool] | None:
    """Take the user's choice out of the options: (option, whether QuickGELU), or None."""
    choices = {name: options.pop(name) for name in OPTIONS if name in options}
    choices = {name: value for name, value in choices.items() if value is not None}
    for name, value in choices.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True, False or None, got {value!r}")
    if len(set(choices.values())) > 1:
        told = " and ".join(f"{name}={value}" for name, value in choices.items())
        raise ValueError(f"{told} contradict each other; pass one of them")
    return next(iter(choices.items()), None)


def _of_record(name: str, what: str, record: Mapping[str, Any]) -> Activation:
    """Return what a tag's record asks for; a record without `quick_gelu` asks for nothing.

    Then the plain name's configuration holds. Do not take it for False, as open_clip's warning
    does: `roberta-ViT-B-32` was trained with the QuickGELU of its configuration.
    """
    if "quick_gelu" in record:
        return Activation(bool(record["quick_gelu"]), f"recorded for {what}")
    plain = name.removesuffix(SUFFIX)
    plain = plain if open_clip.get_model_config(plain) else name
    return Activation(_configured(plain), f"in the configuration of {plain}; {what} records none")


def _as_configured(name: str) -> Activation:
    quick = None if name.startswith(HUB) else _configured(name)
    return Activation(quick, f"in the configuration of {name}")


def _of_repository(name: str, cache_dir: str | None, warn: bool) -> Activation:
    """Return what a repository's configuration says, or open_clip's record where it says nothing.

    Only repositories that open_clip records with QuickGELU are asked for their configuration here.
    """
    repository = name.removeprefix(HUB)
    tag = _recorded_tag(repository)
    if tag is None:
        return _as_configured(name)
    try:
        content = get_hub_config(repository, cache_dir=cache_dir)
        config = content["model_cfg"]
    except (OSError, RuntimeError, ValueError, LookupError, TypeError):
        # open_clip asks again and says what is wrong.
        return _as_configured(name)
    if "quick_gelu" not in config:
        return Activation(True, f"recorded for {tag}, whose weights {name} holds")
    if warn and not config["quick_gelu"]:
        warnings.warn(
            f"{name} is built with GELU, as its configuration says, but open_clip records "
            f"QuickGELU for {tag}, whose weights it holds. Pass quick_gelu=True or quick_gelu=False"
            " to choose",
            stacklevel=5,
        )
    return Activation(bool(config["quick_gelu"]), f"in the configuration of {name}")


def _recorded_tag(repository: str) -> str | None:
    """Name the tag of QuickGELU whose weights a repository holds."""
    for name, tag in list_pretrained():
        record = open_clip.get_pretrained_cfg(name, tag)
        if record.get("quick_gelu") and record.get("hf_hub", "").rstrip("/") == repository:
            return f"the tag {tag!r} of {name}"
    return None


def _of_file(name: str, path: str, warn: bool) -> Activation:
    """Return what a checkpoint file tells, else leave it to the name's configuration."""
    told = recognize_activation(Path(path))
    if told is not None:
        return Activation(*told)
    quick = _configured(name)
    others = [
        tag
        for tag in open_clip.list_pretrained_tags_by_model(name)
        if open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", quick) != quick
    ]
    if others and warn:
        warnings.warn(
            f"{path} does not record its activation, so {name} is built with {_name(quick)}; "
            f"published weights of this name use {_name(not quick)} ({', '.join(others)}). "
            f"For those and what was trained from them pass quick_gelu={not quick}"
            + (f" or the name {name}{SUFFIX}" if not quick and _configured(name + SUFFIX) else "")
            + f"; quick_gelu={quick} confirms {_name(quick)}",
            stacklevel=5,
        )
    return Activation(None, f"in the configuration of {name}; {Path(path).name} records none")


def _configured(name: str) -> bool:
    return bool((open_clip.get_model_config(name) or {}).get("quick_gelu", False))


def _name(quick: bool | None) -> str:
    return "QuickGELU" if quick else "GELU"


# --- what a model computes -----------------------------------------------------------------------


def _activations(model: nn.Module) -> dict[str, set[str]]:
    """Return the names of the activations in the image and the text tower."""
    text = [part for name, part in model.named_children() if name != "visual"]
    return {"image": _names([model.visual]), "text": _names(text)}  # type: ignore[list-item]


def _names(towers: Iterable[nn.Module]) -> set[str]:
    modules = (module for tower in towers for module in tower.modules())
    return {_activation_name(module) for module in modules if _is_activation(module)}


def _is_activation(module: nn.Module) -> bool:
    kind = type(module)
    if isinstance(module, NO_ACTIVATIONS) or next(module.children(), None) is not None:
        return False
    return kind.__module__.startswith(ACTIVATION_MODULES) or kind.__name__.endswith("GELU")


def _activation_name(module: nn.Module) -> str:
    name = type(module).__name__.removesuffix("Activation")
    exact = getattr(module, "approximate", "none") == "none"
    return name if exact else f"{name}({module.approximate})"
