"""The snapshot that guards the model sees every kind of change."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from tests._helpers.cases import each
from tests._helpers.model_snapshot import differences, snapshot
from tests._helpers.tiny import tiny_model


def _swap_positions(model: nn.Module) -> None:
    model.visual.positional_embedding = nn.Parameter(model.visual.positional_embedding.detach())


def _add_hook(model: nn.Module) -> None:
    model.visual.ln_post.register_forward_hook(lambda *_: None)


def _swap_method(model: nn.Module) -> None:
    model.visual.forward = model.visual.forward


def _replace_block(model: nn.Module) -> None:
    model.visual.transformer.resblocks[0] = copy.deepcopy(model.visual.transformer.resblocks[0])


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "values": lambda model: model.visual.conv1.weight.data.add_(1e-6),
    "values there and back": lambda model: model.logit_scale.detach().add_(1).sub_(1),
    "positions swapped": _swap_positions,
    "dtype": lambda model: model.visual.ln_pre.double(),
    "requires_grad": lambda model: model.visual.proj.requires_grad_(False),
    "grad": lambda model: setattr(model.logit_scale, "grad", torch.zeros(())),
    "train mode": lambda model: model.visual.ln_post.train(),
    "hook": _add_hook,
    "method": _swap_method,
    "attribute": lambda model: setattr(model.visual, "grid_size", (8, 8)),
    "block replaced": _replace_block,
    "module added": lambda model: model.add_module("extra", nn.Identity()),
}


@each("change", CHANGES)
def test_snapshot_sees_a_change(change):
    model = tiny_model("vit")
    before = snapshot(model)
    assert not differences(before, snapshot(model))
    CHANGES[change](model)
    assert differences(before, snapshot(model))
