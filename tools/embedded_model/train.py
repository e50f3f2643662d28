"""Train the embedded model, train it further, or train a variant, on rendered scenes.

    python -m tools.embedded_model.train [--plan further | map | average] [--start FOLDER]
        --output runs/demo

`further` starts with the whole embedded model, the variants with its text tower; `--start` names
the folder of another model.

The loss is contrastive. An interrupted run resumes when it is started again. The output folder
holds `log.jsonl`, `checkpoint.pt` and, in `model/`, the weights of the highest held-out contrastive
accuracy, as open_clip's `local-dir:` loads them; explanation maps are not used for this choice. The
variants' image towers have no class token; the package does not contain their weights.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import typer
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.model import CLIP
from open_clip.transformer import PatchDropout
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.demo import MODEL_FOLDER, Scenes, nouns, prompt_templates
from tools.embedded_model.plans import MODEL, PLANS, PREPROCESS, Plan, Stage
from tools.embedded_model.report import top1

SEED = 0
BATCH_SIZE = 128
WEIGHT_DECAY = 0.05
#: Steps between two evaluations, and between two checkpoints.
EVALUATE_EVERY = 300
SAVE_EVERY = 100
#: From this size on, fused attention trains faster than plain attention (bfloat16 on a CPU).
FUSED_FROM = 448
#: Validation scenes for contrastive accuracy, and those of one object for top-1 accuracy.
NUM_VALIDATION = 1024
NUM_VALIDATION_TOP1 = 500

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
tokenize = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Data set of pairs: image (3, H, W) in -1..1, token ids (context,) of its caption.

    Args:
        scenes: Scenes, one per pair.
    """

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = self.scenes[index]
        return to_tensor(scene.image), tokenize(scene.caption)[0]


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Data set of a stage's batches: images (N, 3, H, W) in -1..1, token ids (N, context).

    Args:
        plan: The plan.
        step: First step; the rest of its stage follows.
    """

    def __init__(self, plan: Plan, step: int) -> None:
        self.stage, self.begin = plan.stage_at(step)
        self.plan = plan
        self.step = step

    def __len__(self) -> int:
        return self.begin + self.stage.steps - self.step

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        stage = self.stage
        size, count, before = stage.batch(self.step - self.begin + index, BATCH_SIZE)
        # The scenes of a stage follow those of the stages before it.
        first = self.begin * BATCH_SIZE + before
        total = (self.begin + stage.steps) * BATCH_SIZE
        scenes = Scenes("train", total, size, stage.objects, self.plan.backgrounds)
        pairs = Pairs(scenes)
        images, tokens = zip(*(pairs[i] for i in range(first, first + count)), strict=True)
        return torch.stack(images), torch.stack(tokens)


def to_tensor(image: np.ndarray) -> Tensor:
    """Return an image (H, W, 3) of uint8 as a tensor (3, H, W) in -1..1."""
    return torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1


def build(config: Mapping[str, Any], size: int, state: dict[str, Tensor] | None = None) -> CLIP:
    """Build the model for images of `size`, with the positions of `state` resized to its grid."""
    model = CLIP(**{**config, "vision_cfg": {**config["vision_cfg"], "image_size": size}})
    open_clip.model.set_model_preprocess_cfg(model, {**PREPROCESS, "size": size})
    if state is not None:
        state = dict(state)
        open_clip.factory.resize_pos_embed(state, model)
        model.load_state_dict(state)
    return model.to(DEVICE)


def build_start(plan: Plan, folder: Path) -> CLIP:
    """Build the model that training starts with, from weights in a folder if the plan says so."""
    size = plan.stages[0].size
    if plan.start == "random":
        return build(plan.model, size)
    written = load_file(folder / "open_clip_model.safetensors")
    weights = {name: value.float() for name, value in written.items()}
    if plan.start == "all":
        return build(plan.model, size, weights)
    model = build(plan.model, size)
    others = ("visual.", "logit_")
    names = [name for name in model.state_dict() if not name.startswith(others)]
    model.load_state_dict({name: weights[name] for name in names}, strict=False)
    return model


def create_optimizer(model: CLIP) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def contrastive_accuracy(model: CLIP, size: int) -> float:
    """Return the fraction of validation pairs that match within their batch, in both directions."""
    hits = []
    for images, tokens in DataLoader(Pairs(Scenes("validation", NUM_VALIDATION, size)), BATCH_SIZE):
        image = model.encode_image(images.to(DEVICE), normalize=True)
        text = model.encode_text(tokens.to(DEVICE), normalize=True)
        similarity = image @ text.T
        matches = torch.arange(len(similarity), device=DEVICE)
        hits += [similarity.argmax(dim) == matches for dim in (0, 1)]
    return torch.cat(hits).float().mean().item()


def validation_top1(model: CLIP, size: int) -> float:
    """Return the zero-shot accuracy in percent among all nouns on scenes of one object."""
    clip = ZeroShotClassifier(model, nouns(), templates=prompt_templates())
    return top1(clip, Scenes("validation", NUM_VALIDATION_TOP1, size, objects=[1]))


class Training:
    """State of a training run, loaded from the checkpoint in its folder if there is one.

    Args:
        plan: What is trained, and how.
        folder: Folder of the run, created if it does not exist.
        start: Folder of the model that training starts with, if the plan does not start with random
            weights.
    """

    def __init__(self, plan: Plan, folder: Path, start: Path = MODEL_FOLDER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.plan = plan
        self.folder = folder
        self.step = 0
        self.seconds = 0.0
        self.best = -1.0
        self.seen = torch.zeros(MODEL["text_cfg"]["vocab_size"], dtype=torch.bool, device=DEVICE)
        torch.manual_seed(SEED)
        self.model = build_start(plan, start)
        if plan.start == "all":  # rows of words that no caption used are zero
            self.seen = self.model.token_embedding.weight.detach().any(1)
        self.optimizer = create_optimizer(self.model)
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
        self.optimizer = create_optimizer(self.model)
        self.optimizer.load_state_dict(saved["optimizer"])
        # Steps logged after this checkpoint will run again.
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        self._log.write_text("".join(f"{line}\n" for line in kept))

    def save(self, size: int) -> None:
        """Write the checkpoint atomically, so that a kill leaves the previous one."""
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

    def begin(self, stage: Stage) -> None:
        """Prepare the model for the images of a stage."""
        self.resize(stage.size)
        if hasattr(self.model.visual, "patch_dropout"):  # open_clip's own image tower
            self.model.visual.patch_dropout = PatchDropout(stage.dropped)

    def resize(self, size: int) -> None:
        """Change the size of the images; the moments of the resized positions are reset."""
        if size == self.model.visual.image_size[0]:
            return
        optimizer_state = self.optimizer.state_dict()
        self.model = build(self.plan.model, size, self.model.state_dict())
        self.optimizer = create_optimizer(self.model)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, moments in optimizer_state["state"].items():
            if moments["exp_avg"].shape != parameters[index].shape:
                moments["exp_avg"] = torch.zeros_like(parameters[index])
                moments["exp_avg_sq"] = torch.zeros_like(parameters[index])
        self.optimizer.load_state_dict(optimizer_state)

    def learn(self, images: Tensor, tokens: Tensor) -> float:
        """Run one step on a batch of pairs, and return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(self.step)
        images, tokens = images.to(DEVICE), tokens.to(DEVICE)
        self.seen[tokens.flatten()] = True
        torch.manual_seed(self.step)  # so that a resumed run drops the same patches
        criterion = SigLipLoss() if self.plan.sigmoid else ClipLoss()
        on_cpu = DEVICE.type == "cpu"
        plain = self.plan.bfloat16 and on_cpu and images.shape[-1] < FUSED_FROM
        autocast = torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.plan.bfloat16)
        with autocast, sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            output = self.encode(images, tokens)
        loss = criterion(*(value.float() for value in output))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        self.step += 1
        return float(loss.detach())

    def encode(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return the model's output, with positions resized to the images' grid."""
        size = images.shape[-1]
        if size == self.model.visual.image_size[0]:
            return self.model(images, tokens)
        side = size // MODEL["vision_cfg"]["patch_size"]
        native_positions = self.model.visual.positional_embedding
        positions = resample_abs_pos_embed(native_positions[None], [side, side])[0]
        # The gradient flows through the resizing, so that all sizes train the same positions.
        return functional_call(
            self.model, {"visual.positional_embedding": positions}, (images, tokens)
        )

    def evaluate(self, size: int) -> dict[str, float]:
        """Log the model's accuracy, and export the model if it is the best so far."""
        self.model.eval()
        record = {
            "step": self.step,
            "size": size,
            "seconds": round(self.seconds),
            "contrastive_accuracy": contrastive_accuracy(self.model, size),
            "validation_top1": validation_top1(self.model, size),
        }
        self.model.train()
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
    """Write weights and configuration as open_clip's `local-dir:` loads them.

    Rows of the token table that occur in no caption still have their random initial values. They
    are set to zero, so that unknown words have no effect and the file compresses well.

    Args:
        config: The open_clip configuration.
        state: The state dict of the model.
        seen: Token ids that occur in captions, (vocabulary,) of bool.
        size: Native side of the images in pixels.
        folder: Folder to write, replaced atomically.
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
    # Replace both files together, because a kill between them would leave a mismatched pair.
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)


def main(
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    plan: Annotated[str, typer.Option(help=f"One of {', '.join(PLANS)}.")] = "embedded",
    start: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the model to start with (default: the embedded model). A run that is "
            "resumed ignores it."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of processes that render scenes (default: all cores but one with a GPU, "
            "otherwise 0)."
        ),
    ] = None,
) -> None:
    """Train the embedded model, or resume its training."""
    if workers is None:  # without a GPU, training itself uses all cores
        workers = max(0, (os.cpu_count() or 1) - 1) if DEVICE.type == "cuda" else 0
    if plan not in PLANS:
        raise typer.BadParameter(
            f"must be one of {', '.join(PLANS)}, got {plan!r}", param_hint="--plan"
        )
    if start is not None and PLANS[plan].start == "random":
        raise typer.BadParameter(
            f"plan {plan} starts with random weights; leave it out", param_hint="--start"
        )
    training = Training(PLANS[plan], output, start or MODEL_FOLDER)
    total = sum(stage.steps for stage in training.plan.stages)
    if training.plan.start == "all" and training.best < 0:  # not evaluated yet
        size = training.plan.stages[0].size
        tqdm.write(json.dumps(training.evaluate(size)))  # what is to beat
        training.save(size)
    progress = tqdm(total=total, initial=training.step, smoothing=0.05)
    while training.step < total:
        stage, _ = training.plan.stage_at(training.step)
        training.begin(stage)
        batches = Batches(training.plan, training.step)
        started = time.monotonic()
        for images, tokens in DataLoader(batches, batch_size=None, num_workers=workers):
            loss = training.learn(images, tokens)
            progress.update()
            progress.set_postfix(loss=f"{loss:.3f}", size=stage.size)
            last = training.step == total and not training.plan.final_sizes
            if training.step % EVALUATE_EVERY == 0 or last:
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
