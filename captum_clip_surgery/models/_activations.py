"""Choose the activation that a model's weights were trained with, whatever the model's name.

The weights of OpenAI, MetaCLIP, DFN and some of LAION were trained with QuickGELU. open_clip builds
the activation in the name's configuration and at most warns, so that `ViT-B-32` with the tag
`openai` computes GELU on weights trained with QuickGELU.
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

from captum_clip_surgery.models._dual_encoders import TransformersCLIP
from captum_clip_surgery.models._internals import get_hub_config
from captum_clip_surgery.models._weight_files import recognize_activation

HUB = "hf-hub:"
SUFFIX = "-quickgelu"
OPTIONS = ("quick_gelu", "force_quick_gelu")  # of open_clip's models and of its factory
#: Modules that define activations; torch's also defines attention and softmax.
ACTIVATION_MODULES = (
    "torch.nn.modules.activation",
    "timm.layers.activations",
    "transformers.activations",
)
NO_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax)


@dataclass(frozen=True)
class Activation:
    """An activation to build and the reason for it.

    Attributes:
        quick: Whether it is QuickGELU; None leaves it to the configuration, if nothing is known of
            the weights.
        reason: The reason, for `repr` of the classifier.
        chosen: Whether the user chose it.
    """

    quick: bool | None
    reason: str
    chosen: bool = False

    def options(self) -> dict[str, bool]:
        """Return the options with which open_clip builds it."""
        if self.quick is None:
            return {}
        # `force_quick_gelu=False` has no effect; only the model's own option turns it off.
        return {"force_quick_gelu": True} if self.quick else {"quick_gelu": False}


def choose_activation(name: str, pretrained: str | None, options: dict[str, Any]) -> Activation:
    """Choose the activation: the user's, else that of the weights, else the configuration's.

    Args:
        name: An open_clip name, `hf-hub:org/repo` or `local-dir:folder`.
        pretrained: A tag or a checkpoint file; ignored if `name` has a scheme.
        options: The user's options; `quick_gelu` and `force_quick_gelu` are removed.

    Raises:
        TypeError: If one of these options is neither a bool nor None.
        ValueError: If they contradict each other.
    """
    choice = _pop_choice(options)
    if name.startswith(HUB):
        trained = _of_repository(name, options.get("cache_dir"), warn=choice is None)
    elif ":" in name:
        trained = _as_configured(name)
    elif record := open_clip.get_pretrained_cfg(name, pretrained or ""):
        trained = _of_record(name, f"the tag {pretrained!r}", record)
    else:
        trained = _of_file(name, str(pretrained), warn=choice is None)
    if choice is None:
        return trained
    option, quick = choice
    reason = f"chosen by {option}={quick}"
    if trained.quick not in (None, quick):
        reason += f"; {_name(trained.quick)} {trained.reason}"
        warnings.warn(
            f"{name} is built with {_name(quick)}, {reason}. Leave {option} out to build what the "
            "weights were trained with",
            stacklevel=5,
        )
    return Activation(quick, reason, chosen=True)


def describe_activation(model: nn.Module) -> str:
    """Return the names of the activations in a model's towers.

    Example::

        >>> from captum_clip_surgery import ZeroShotClassifier
        >>> describe_activation(ZeroShotClassifier.demo(["dog"]).model)
        'GELU'
    """
    towers = _activations(model)
    joined = {tower: "/".join(sorted(names)) for tower, names in towers.items() if names}
    if len(joined) == 2 and len(set(joined.values())) == 1:
        return joined["image"]
    return ", ".join(f"{tower} {names}" for tower, names in joined.items())


def explain_activation(model: nn.Module) -> str:
    """Return the names of the activations, with the reason if the model was loaded by name."""
    reason = getattr(model.visual, "activation_reason", None)
    return describe_activation(model) + (f" ({reason})" if reason else "")


def note_activation(activation: Activation, model: Any) -> None:
    """Record the reason on the image tower, where open_clip records the preprocessing.

    If the user chose QuickGELU, warn of towers that keep another activation, as timm's and Hugging
    Face's do.
    """
    model.visual.activation_reason = activation.reason
    if not (activation.chosen and activation.quick):
        return
    for tower, names in _activations(model).items():
        if "QuickGELU" not in names and names != {"ReLU"}:  # in a ResNet's stages
            warnings.warn(
                f"QuickGELU was chosen, but the {tower} tower keeps "
                f"{'/'.join(sorted(names)) or 'its own'}: open_clip sets the activation of its own "
                "transformers only",
                stacklevel=5,
            )


# --- the user's choice, records, repositories and files ------------------------------------------


def _pop_choice(options: dict[str, Any]) -> tuple[str, bool] | None:
    """Remove the user's choice from the options and return (option, whether QuickGELU) or None."""
    choices = {name: options.pop(name) for name in OPTIONS if name in options}
    choices = {name: value for name, value in choices.items() if value is not None}
    for name, value in choices.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True, False or None, got {value!r}")
    if len(set(choices.values())) > 1:
        both = " and ".join(f"{name}={value}" for name, value in choices.items())
        raise ValueError(f"{both} contradict each other; pass one of them")
    return next(iter(choices.items()), None)


def _of_record(name: str, what: str, record: Mapping[str, Any]) -> Activation:
    """Return the activation in a tag's record, or the plain name's if it records none.

    A missing `quick_gelu` does not mean False, as open_clip's warning assumes: `roberta-ViT-B-32`
    was trained with the QuickGELU of its configuration.
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
    """Return the activation in a repository's configuration, or open_clip's record if it has none.

    Configurations are fetched only for repositories that open_clip records with QuickGELU.
    """
    repository = name.removeprefix(HUB)
    tag = _recorded_tag(repository)
    if tag is None:
        return _as_configured(name)
    try:
        content = get_hub_config(repository, cache_dir=cache_dir)
        config = content["model_cfg"]
    except (OSError, RuntimeError, ValueError, LookupError, TypeError):
        # open_clip fetches it again and reports what is wrong.
        return _as_configured(name)
    if "quick_gelu" not in config:
        return Activation(True, f"recorded for {tag}, whose weights {name} holds")
    if warn and not config["quick_gelu"]:
        warnings.warn(
            f"{name} is built with GELU, as its configuration says, but open_clip records "
            f"QuickGELU for {tag}, whose weights it holds. Pass quick_gelu=True or quick_gelu=False"
            " to choose",
            stacklevel=6,
        )
    return Activation(bool(config["quick_gelu"]), f"in the configuration of {name}")


def _recorded_tag(repository: str) -> str | None:
    """Return the tag of weights with QuickGELU that a repository contains, or None."""
    for name, tag in list_pretrained():
        record = open_clip.get_pretrained_cfg(name, tag)
        if record.get("quick_gelu") and record.get("hf_hub", "").rstrip("/") == repository:
            return f"the tag {tag!r} of {name}"
    return None


def _of_file(name: str, path: str, warn: bool) -> Activation:
    """Return the activation detected in a checkpoint file, or leave it to the configuration."""
    detected = recognize_activation(Path(path))
    if detected is not None:
        return Activation(*detected)
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
            stacklevel=6,
        )
    return Activation(None, f"in the configuration of {name}; {Path(path).name} records none")


def _configured(name: str) -> bool:
    return bool((open_clip.get_model_config(name) or {}).get("quick_gelu", False))


def _name(quick: bool | None) -> str:
    return "QuickGELU" if quick else "GELU"


# --- activations of a model ----------------------------------------------------------------------


def _activations(model: nn.Module) -> dict[str, set[str]]:
    """Return the names of the activations in the image and the text tower."""
    text = [part for name, part in model.named_children() if name != "visual"]
    if isinstance(model, TransformersCLIP):
        text = [model.text]
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
