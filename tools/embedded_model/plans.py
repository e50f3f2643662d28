"""Plans of the models that `train` trains: the embedded one, and variants without a class token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from captum_clip_surgery.demo._scenes import BackgroundKind
from tools.embedded_model.backgrounds import MORE_BACKGROUNDS

WARM_UP_STEPS = 100

MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 128,
        "layers": 8,
        "width": 128,
        "head_width": 32,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 49408,
        "width": 128,
        "heads": 4,
        "layers": 2,
    },
}
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


@dataclass(frozen=True)
class Stage:
    """Steps with a cosine schedule of the learning rate.

    Args:
        size: Native side of the images in pixels.
        steps: Number of steps.
        learning_rate: Learning rate at the first step.
        final_learning_rate: Learning rate at the last step.
        objects: Numbers of objects of the scenes; a repeated number is drawn more often.
        other_sizes: Sizes of images that take turns with the native one, not smaller than it. Their
            batches have as many pixels as the native one's.
        dropped: Fraction of the patches left out of each image, at random.
    """

    size: int
    steps: int
    learning_rate: float
    final_learning_rate: float
    objects: tuple[int, ...] = (1, 2, 3)
    other_sizes: tuple[int, ...] = ()
    dropped: float = 0.0

    def batch(self, step: int, batch_size: int) -> tuple[int, int, int]:
        """Return a batch's image size, its number of scenes, and that of earlier batches' scenes.

        Args:
            step: Number of the batch in this stage.
            batch_size: Number of scenes in a batch of native size.
        """
        sizes = (self.size, *self.other_sizes)
        counts = [max(2, round(batch_size * (self.size / size) ** 2)) for size in sizes]
        rounds, turn = divmod(step, len(sizes))
        return sizes[turn], counts[turn], rounds * sum(counts) + sum(counts[:turn])


@dataclass(frozen=True)
class Plan:
    """Configuration of a model and of its training.

    Args:
        model: The open_clip configuration.
        stages: Stages, one after the other.
        final_sizes: Sizes at which the trained model is evaluated; the one of the best accuracy
            becomes native. Without any, the size of the last stage stays native.
        sigmoid: Use SigLIP's pairwise loss instead of CLIP's contrastive one.
        start: What training starts with: random weights, a model's text tower, which saves most of
            the time, or the whole model. `train --start` names it; the default is the embedded one.
        backgrounds: Kinds of background; None means those of the scenes' training split.
        bfloat16: Compute the features in bfloat16; weights stay in float32, and so does the loss of
            the rounded features.
    """

    model: Mapping[str, Any]
    stages: tuple[Stage, ...]
    final_sizes: tuple[int, ...]
    sigmoid: bool = False
    start: Literal["random", "text", "all"] = "random"
    backgrounds: tuple[BackgroundKind, ...] | None = None
    bfloat16: bool = False

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """Return the stage of a step, and the step at which the stage begins.

        Raises:
            ValueError: If the step is past the end of training.
        """
        begin = 0
        for stage in self.stages:
            if step < begin + stage.steps:
                return stage, begin
            begin += stage.steps
        raise ValueError(f"step {step} is past the end of training, {begin}")

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: its stage's cosine, with a linear warm-up."""
        stage, begin = self.stage_at(step)
        cosine = (1 + math.cos(math.pi * (step - begin) / stage.steps)) / 2
        span = stage.learning_rate - stage.final_learning_rate
        return (stage.final_learning_rate + span * cosine) * min(1.0, (step + 1) / WARM_UP_STEPS)


def _timm_model(pool: str, **options: Any) -> dict[str, Any]:
    """Return the embedded model's configuration with timm's ViT as image tower."""
    tower = {"timm_model_name": f"scenes_vit_{pool}", "timm_pool": pool, "image_size": 128}
    return {**MODEL, "vision_cfg": {**tower, "timm_proj": "linear"}, **options}


SHORT = (Stage(128, 2000, 1e-3, 0.0),)
PLANS = {
    "embedded": Plan(
        MODEL,
        # Most steps run at the cheap size, as for OpenAI's CLIP of 336 pixels; the last ones at the
        # size of use.
        (
            Stage(128, 2100, 1e-3, 2.65e-4),
            Stage(192, 900, 2.65e-4, 6e-6),
            Stage(192, 560, 2.5e-4, 0.0, objects=(1, 1, 2, 3)),
        ),
        final_sizes=(192, 224),
    ),
    "further": Plan(
        # Starts with the embedded model and repeats its scenes' layouts, on more kinds of
        # background and at several sizes in turn. Most steps leave out half of the patches, which
        # halves their cost.
        MODEL,
        (
            Stage(224, 2300, 5e-4, 8e-5, other_sizes=(320, 224, 448), dropped=0.5),
            Stage(224, 250, 8e-5, 0.0, objects=(1, 1, 2, 3), other_sizes=(320, 224, 448)),
        ),
        final_sizes=(),
        start="all",
        backgrounds=MORE_BACKGROUNDS,
        bfloat16=True,
    ),
    "map": Plan(
        # SigLIP's initial scale and bias, because most pairs of a batch do not match.
        _timm_model("map", init_logit_scale=math.log(10), init_logit_bias=-10.0),
        SHORT,
        final_sizes=(128,),
        sigmoid=True,
        start="text",
    ),
    "average": Plan(_timm_model("avg"), SHORT, final_sizes=(128,), start="text"),
}
