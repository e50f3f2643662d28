"""Train the embedded model: CLIP's contrastive loss on rendered scenes, and nothing else.

    python -m tools.embedded_model.train [--plan map | average] --output runs/demo

The other plans are variants that show surgery on towers without a class token; their weights are
not part of the package. Run it again to go on after an interruption. The folder then holds
`log.jsonl`, `checkpoint.pt` and, under `model/`, the best weights as open_clip's `local-dir:` loads
them. Best is the highest held-out contrastive accuracy; the explanation maps play no part in the
choice.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import typer
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.demo import MODEL_FOLDER
from captum_clip_surgery.demo.scenes import Scenes, nouns, prompt_templates
from tools.embedded_model.report import top1

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
    """Pictures of one size; the learning rate falls along half a cosine."""

    size: int
    steps: int
    rate: float
    last_rate: float
    objects: tuple[int, ...] = (1, 2, 3)  # a number that stands twice is drawn twice as often


@dataclass(frozen=True)
class Plan:
    """What is trained, and how.

    Args:
        model: the open_clip configuration.
        stages: one after the other.
        final_sizes: at the end the model is tried at these, and native is the one of the best
            accuracy.
        sigmoid: SigLIP's loss over pairs instead of CLIP's contrastive one.
        known_text: the text tower starts as the embedded model's, which saves most of the time.
    """

    model: Mapping[str, Any]
    stages: tuple[Stage, ...]
    final_sizes: tuple[int, ...]
    sigmoid: bool = False
    known_text: bool = False

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """The stage of a step, and the step at which it began."""
        begin = 0
        for stage in self.stages:
            if step < begin + stage.steps:
                return stage, begin
            begin += stage.steps
        raise ValueError(f"step {step} is past the end of training, {begin}")

    def learning_rate(self, step: int) -> float:
        """The stage's own, after a linear warm-up at the very start."""
        stage, begin = self.stage_at(step)
        turn = (1 + math.cos(math.pi * (step - begin) / stage.steps)) / 2
        rate = stage.last_rate + (stage.rate - stage.last_rate) * turn
        return rate * min(1.0, (step + 1) / WARM_UP)


def _timm_model(pool: str, **others: Any) -> dict[str, Any]:
    """The embedded model's configuration with timm's ViT as image tower."""
    tower = {"timm_model_name": f"scenes_vit_{pool}", "timm_pool": pool, "image_size": 128}
    return {**MODEL, "vision_cfg": {**tower, "timm_proj": "linear"}, **others}


SHORT = (Stage(128, 2000, 1e-3, 0.0),)
PLANS = {
    "embedded": Plan(
        MODEL,
        # Most of the learning at the cheap size, as OpenAI's CLIP for 336 pixels was made from
        # that for 224; then the whole at the size it is used in.
        (
            Stage(128, 2100, 1e-3, 2.65e-4),
            Stage(192, 900, 2.65e-4, 6e-6),
            Stage(192, 560, 2.5e-4, 0.0, objects=(1, 1, 2, 3)),
        ),
        final_sizes=(192, 224),
    ),
    "map": Plan(
        # SigLIP's start of scale and bias: most pairs of a batch are no pairs.
        _timm_model("map", init_logit_scale=math.log(10), init_logit_bias=-10.0),
        SHORT,
        final_sizes=(128,),
        sigmoid=True,
        known_text=True,
    ),
    "average": Plan(_timm_model("avg"), SHORT, final_sizes=(128,), known_text=True),
}
SEED = 0
BATCH = 128
WARM_UP = 100
WEIGHT_DECAY = 0.05
EVALUATE_EVERY = 300
SAVE_EVERY = 100
HELD_OUT = 1024
ONE_OBJECT = 500

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
tokenize = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Scenes as (image (3, H, W) in -1..1, token ids (context,))."""

    def __init__(self, scenes: Scenes, start: int = 0) -> None:
        self.scenes = scenes
        self.start = start

    def __len__(self) -> int:
        return len(self.scenes) - self.start

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = self.scenes[self.start + index]
        return to_tensor(scene.image), tokenize(scene.caption)[0]


def to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1


def build(config: Mapping[str, Any], size: int, state: dict[str, Tensor] | None = None) -> CLIP:
    """The model for pictures of `size`, with positions of `state` resized to its grid."""
    model = CLIP(**{**config, "vision_cfg": {**config["vision_cfg"], "image_size": size}})
    open_clip.model.set_model_preprocess_cfg(model, {**PREPROCESS, "size": size})
    if state is not None:
        state = dict(state)
        open_clip.factory.resize_pos_embed(state, model)
        model.load_state_dict(state)
    return model.to(DEVICE)


def start_with_known_text(model: CLIP) -> None:
    """Give the model the embedded model's text tower."""
    known = load_file(MODEL_FOLDER / "open_clip_model.safetensors")
    own = {name for name in model.state_dict() if not name.startswith(("visual.", "logit_"))}
    model.load_state_dict({name: known[name].float() for name in own}, strict=False)


def optimizer_for(model: CLIP) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def contrastive_accuracy(model: CLIP, size: int) -> float:
    """Share of held-out pairs that find each other within their batch, both ways."""
    hits = []
    for images, tokens in DataLoader(Pairs(Scenes("validation", HELD_OUT, size)), BATCH):
        image = model.encode_image(images.to(DEVICE), normalize=True)
        text = model.encode_text(tokens.to(DEVICE), normalize=True)
        similarity = image @ text.T
        right = torch.arange(len(similarity), device=DEVICE)
        hits += [similarity.argmax(dim) == right for dim in (0, 1)]
    return torch.cat(hits).float().mean().item()


def validation_top1(model: CLIP, size: int) -> float:
    """Zero-shot accuracy in percent among all nouns on validation scenes of one object."""
    clip = ZeroShotClassifier(model, nouns(), templates=prompt_templates())
    return top1(clip, Scenes("validation", ONE_OBJECT, size, objects=[1]))


class Training:
    """The state of training and its folder; made anew, it goes on where the last one was saved."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.plan = plan
        self.folder = folder
        self.step = 0
        self.seconds = 0.0
        self.best = -1.0
        self.seen = torch.zeros(MODEL["text_cfg"]["vocab_size"], dtype=torch.bool, device=DEVICE)
        torch.manual_seed(SEED)
        self.model = build(plan.model, plan.stages[0].size)
        if plan.known_text:
            start_with_known_text(self.model)
        self.optimizer = optimizer_for(self.model)
        if self._checkpoint.exists():
            self._load(torch.load(self._checkpoint, map_location=DEVICE))

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def _log(self) -> Path:
        return self.folder / "log.jsonl"

    def _load(self, saved: dict[str, Any]) -> None:
        self.step, self.seconds, self.best = saved["step"], saved["seconds"], saved["best"]
        self.seen = saved["seen"]
        self.model = build(self.plan.model, saved["size"], saved["model"])
        self.optimizer = optimizer_for(self.model)
        self.optimizer.load_state_dict(saved["optimizer"])
        # What was logged after this checkpoint is about to happen again.
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        self._log.write_text("".join(f"{line}\n" for line in kept))

    def save(self, size: int) -> None:
        """Write whole or not at all: a kill in the middle leaves the previous checkpoint."""
        content = {
            "step": self.step,
            "size": size,
            "seconds": self.seconds,
            "best": self.best,
            "seen": self.seen,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = self._checkpoint.with_suffix(".tmp")
        torch.save(content, temporary)
        temporary.replace(self._checkpoint)

    def resize(self, size: int) -> None:
        """Go on with pictures of another size; the resized positions' averages start anew."""
        if size == self.model.visual.image_size[0]:
            return
        averages = self.optimizer.state_dict()
        self.model = build(self.plan.model, size, self.model.state_dict())
        self.optimizer = optimizer_for(self.model)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, moments in averages["state"].items():
            if moments["exp_avg"].shape != parameters[index].shape:
                moments["exp_avg"] = torch.zeros_like(parameters[index])
                moments["exp_avg_sq"] = torch.zeros_like(parameters[index])
        self.optimizer.load_state_dict(averages)

    def learn(self, images: Tensor, tokens: Tensor) -> float:
        """One step on a batch of pairs; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(self.step)
        images, tokens = images.to(DEVICE), tokens.to(DEVICE)
        self.seen[tokens.flatten()] = True
        loss_of = SigLipLoss() if self.plan.sigmoid else ClipLoss()
        loss = loss_of(*self.model(images, tokens))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        self.step += 1
        return float(loss.detach())

    def evaluate(self, size: int) -> dict[str, float]:
        """Log the model's accuracy, and export it if it is the best so far."""
        record = {
            "step": self.step,
            "size": size,
            "seconds": round(self.seconds),
            "contrastive_accuracy": contrastive_accuracy(self.model, size),
            "validation_top1": validation_top1(self.model, size),
        }
        with self._log.open("a") as log:
            log.write(json.dumps(record) + "\n")
        if record["contrastive_accuracy"] >= self.best:
            self.best = record["contrastive_accuracy"]
            state = self.model.state_dict()
            export(self.plan.model, state, self.seen, size, self.folder / "model")
        return record


def export(
    config: Mapping[str, Any], state: dict[str, Tensor], seen: Tensor, size: int, folder: Path
) -> None:
    """Write weights and config as open_clip's `local-dir:` loads them.

    Rows of the token table that no caption ever touched hold only their random start: they become
    zero, so that an unknown word says nothing, and the file packs well.
    """
    table = state["token_embedding.weight"]
    state = {**state, "token_embedding.weight": table * seen[:, None].to(table)}
    sized = {**config, "vision_cfg": {**config["vision_cfg"], "image_size": size}}
    written = {"model_cfg": sized, "preprocess_cfg": PREPROCESS}
    partial = folder.with_suffix(".partial")
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "open_clip_config.json").write_text(json.dumps(written, indent=2) + "\n")
    half = {name: value.half().contiguous() for name, value in state.items()}
    save_file(half, partial / "open_clip_model.safetensors")
    # Config and weights change together, or a kill between them would leave a pair that misfits.
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)


def main(
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    plan: Annotated[str, typer.Option(help=f"One of {', '.join(PLANS)}.")] = "embedded",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that render scenes; all cores but one beside a GPU, else 0."),
    ] = None,
) -> None:
    """Train, or go on training, the embedded model."""
    if workers is None:  # without a GPU, training itself takes all cores
        workers = max(0, (os.cpu_count() or 1) - 1) if DEVICE.type == "cuda" else 0
    if plan not in PLANS:
        raise typer.BadParameter(f"{plan!r} is none of {', '.join(PLANS)}", param_hint="--plan")
    training = Training(PLANS[plan], output)
    total = sum(stage.steps for stage in training.plan.stages)
    progress = tqdm(total=total, initial=training.step, smoothing=0.05)
    while training.step < total:
        stage, begin = training.plan.stage_at(training.step)
        training.resize(stage.size)
        scenes = Scenes("train", (begin + stage.steps) * BATCH, stage.size, stage.objects)
        started = time.monotonic()
        for images, tokens in DataLoader(
            Pairs(scenes, training.step * BATCH), BATCH, num_workers=workers
        ):
            loss = training.learn(images, tokens)
            progress.update()
            progress.set_postfix(loss=f"{loss:.3f}", size=stage.size)
            if training.step % EVALUATE_EVERY == 0:
                progress.write(json.dumps(training.evaluate(stage.size)))
            started, before = time.monotonic(), started
            training.seconds += started - before
            if training.step % SAVE_EVERY == 0 or training.step == total:
                training.save(stage.size)
    for size in training.plan.final_sizes:
        training.resize(size)
        progress.write(json.dumps(training.evaluate(size)))


if __name__ == "__main__":
    typer.run(main)
