"""Train the embedded model: CLIP's contrastive loss on rendered scenes, and nothing else.

    python -m captum_clip_surgery.demo.train --output runs/demo

Run it again to go on after an interruption. The folder then holds `log.jsonl`, `checkpoint.pt`
and, under `model/`, the best weights as open_clip's `local-dir:` loads them. Best is the highest
held-out contrastive accuracy; the explanation maps play no part in the choice.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import typer
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from captum_clip_surgery.demo.scenes import Scenes, nouns, prompt_templates

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
# Picture size and number of steps: most of the learning at the cheap size, as OpenAI's CLIP
# models for 336 px were made from those for 224.
STAGES = ((128, 3300), (192, 300))
SEED = 0
BATCH = 128
LEARNING_RATE = 1e-3
WARM_UP = 100
WEIGHT_DECAY = 0.05
EVALUATE_EVERY = 300
SAVE_EVERY = 100
HELD_OUT = 1024

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


def stage_at(step: int) -> tuple[int, int]:
    """The picture size at a step, and the step at which its stage ends."""
    end = 0
    for size, steps in STAGES:
        end += steps
        if step < end:
            return size, end
    raise ValueError(f"step {step} is past the end of training, {end}")


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine to zero over all stages."""
    total = sum(steps for _, steps in STAGES)
    if step < WARM_UP:
        return LEARNING_RATE * (step + 1) / WARM_UP
    progress = (step - WARM_UP) / (total - WARM_UP)
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * progress))


def build(size: int, state: dict[str, Tensor] | None = None) -> CLIP:
    """The model for pictures of `size`, with positions of `state` resized to its grid."""
    config = {**MODEL, "vision_cfg": {**MODEL["vision_cfg"], "image_size": size}}
    model = CLIP(**config)
    if state is not None:
        state = dict(state)
        open_clip.factory.resize_pos_embed(state, model)
        model.load_state_dict(state)
    return model


def optimizer_for(model: CLIP) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def contrastive_accuracy(model: CLIP, size: int, device: torch.device) -> float:
    """Share of held-out pairs that find each other within their batch, both ways."""
    hits = []
    for images, tokens in DataLoader(Pairs(Scenes("validation", HELD_OUT, size)), BATCH):
        image, text = _features(model, images.to(device), tokens.to(device))
        similarity = image @ text.T
        right = torch.arange(len(similarity), device=device)
        hits += [similarity.argmax(dim) == right for dim in (0, 1)]
    return torch.cat(hits).float().mean().item()


def _features(model: CLIP, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)


@torch.no_grad()
def top1(model: CLIP, split: str, size: int, device: torch.device, count: int = 500) -> float:
    """Zero-shot accuracy among all nouns on scenes of one object."""
    texts = []
    for noun in nouns():
        prompts = tokenize([template.format(noun) for template in prompt_templates()])
        features = model.encode_text(prompts.to(device), normalize=True)
        texts.append(F.normalize(features.mean(0), dim=0))
    classifier = torch.stack(texts)
    hits = 0
    scenes = Scenes(split, count, size, objects=[1])
    for start in range(0, count, BATCH):
        batch = scenes[start : start + BATCH]
        images = torch.stack([to_tensor(scene.image) for scene in batch]).to(device)
        guesses = (model.encode_image(images, normalize=True) @ classifier.T).argmax(1)
        hits += sum(
            nouns()[guess] == scene.nouns[0]
            for guess, scene in zip(guesses.tolist(), batch, strict=True)
        )
    return hits / count


def export(state: dict[str, Tensor], seen: Tensor, size: int, folder: Path) -> None:
    """Write weights and config as open_clip's `local-dir:` loads them.

    Rows of the token table that no caption ever touched hold only their random start: they become
    zero, so that an unknown word says nothing, and the file packs well.
    """
    table = state["token_embedding.weight"]
    state = {**state, "token_embedding.weight": table * seen[:, None].to(table)}
    config = {
        "model_cfg": {**MODEL, "vision_cfg": {**MODEL["vision_cfg"], "image_size": size}},
        "preprocess_cfg": PREPROCESS,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    half = {
        name: value.half().contiguous()
        for name, value in state.items()
        if value.is_floating_point() and name != "attn_mask"
    }
    save_file(half, folder / "open_clip_model.safetensors")


def main(output: Path = Path("runs/demo"), workers: int = 0) -> None:
    """Train, or go on training, the embedded model.

    Args:
        output: folder for the log, the checkpoint and the resulting model.
        workers: processes that render scenes; 0 renders in the training process.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    output.mkdir(parents=True, exist_ok=True)
    path = output / "checkpoint.pt"
    torch.manual_seed(SEED)
    saved = torch.load(path, map_location=device) if path.exists() else None
    step = saved["step"] if saved else 0
    state = saved["model"] if saved else build(STAGES[0][0]).state_dict()
    optimizer_state = saved["optimizer"] if saved else None
    seen = saved["seen"] if saved else torch.zeros(49408, dtype=torch.bool, device=device)
    best = saved["best"] if saved else {"accuracy": -1.0}
    total = sum(steps for _, steps in STAGES)
    start_time = time.time() - (saved["seconds"] if saved else 0)
    progress = tqdm(total=total, initial=step, smoothing=0.05)

    while step < total:
        size, end = stage_at(step)
        model = build(size, state).to(device).train()
        optimizer = optimizer_for(model)
        if optimizer_state is not None:
            _resize_moments(optimizer_state, optimizer)
            optimizer.load_state_dict(optimizer_state)
        loss_function = open_clip.ClipLoss()
        scenes = Scenes("train", end * BATCH, size)
        loader = DataLoader(Pairs(scenes, step * BATCH), BATCH, num_workers=workers)
        for images, tokens in loader:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            images, tokens = images.to(device), tokens.to(device)
            seen[tokens.flatten()] = True
            image_features, text_features, scale = model(images, tokens)[:3]
            loss = loss_function(image_features, text_features, scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            step += 1
            progress.update()
            progress.set_postfix(loss=f"{loss.item():.3f}", size=size)
            state = model.state_dict()
            if step % EVALUATE_EVERY == 0 or step == total:
                model.eval()
                record = {
                    "step": step,
                    "size": size,
                    "seconds": round(time.time() - start_time),
                    "loss": round(loss.item(), 4),
                    "contrastive_accuracy": contrastive_accuracy(model, size, device),
                    "validation_top1": top1(model, "validation", size, device),
                }
                model.train()
                with (output / "log.jsonl").open("a") as log:
                    log.write(json.dumps(record) + "\n")
                progress.write(json.dumps(record))
                if record["contrastive_accuracy"] >= best["accuracy"]:
                    weights = {name: value.detach().clone() for name, value in state.items()}
                    best = {"accuracy": record["contrastive_accuracy"], **record}
                    export(weights, seen, size, output / "model")
            if step % SAVE_EVERY == 0 or step == total:
                optimizer_state = optimizer.state_dict()
                _save(
                    path,
                    {
                        "step": step,
                        "model": state,
                        "optimizer": optimizer_state,
                        "seen": seen,
                        "best": best,
                        "seconds": time.time() - start_time,
                    },
                )
        optimizer_state = optimizer.state_dict()
    print(json.dumps(best))


def _resize_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Drop the averages of a parameter whose shape a new picture size has changed."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        moments = state["state"].get(index)
        if moments is not None and moments["exp_avg"].shape != parameter.shape:
            moments["exp_avg"] = torch.zeros_like(parameter)
            moments["exp_avg_sq"] = torch.zeros_like(parameter)


def _save(path: Path, content: dict[str, Any]) -> None:
    """Write whole or not at all: a kill in the middle leaves the previous checkpoint."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)


if __name__ == "__main__":
    typer.run(main)
