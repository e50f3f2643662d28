"""Options of methods reach the methods that have them, and say which do not."""

from __future__ import annotations

import torch

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.cli._model import choose_methods


def test_options_reach_the_finer_maps_too_and_name_who_does_not_have_them(capsys):
    clip = ZeroShotClassifier.demo(["dog", "pizza"])
    names = ["CLIPSurgery", "CLIPSurgeryFine", "LeGrad"]
    methods, _ = choose_methods(clip, names, "release", is_fine=False, repair="likeness")
    assert capsys.readouterr().err == "--repair likeness has no effect on LeGrad\n"
    images = torch.rand(1, 3, 64, 64)
    plain, finer = methods["CLIPSurgery"](clip), methods["CLIPSurgeryFine"](clip)
    assert plain.feature_surgery == finer.method.feature_surgery == "release"
    assert finer.method.path_config == plain.path_config
    assert plain.path_config.after is not None
    assert finer.attribute_all(images).shape[:2] == (1, 2)
