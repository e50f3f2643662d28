"""Measure the audit on a model that has learnt to lean on the background, and on one that has not.

    python -m tools.planted_cues --output runs/planted_cues

A copy of the embedded model is fine-tuned for minutes on scenes in which two nouns always come with
a cue: one with a kind of background, one with a frame around the image. In half of these scenes
another object stands in the noun's place, as where photographs are labeled by their album, so that
the cue is worth learning. The copy is audited on collections of the same nouns, and the embedded
model on collections in which all nouns but the two are drawn at random, to count false alarms. The
weights and the figures are written to the output folder; weights that are there are used again.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from open_clip.model import CLIP
from scipy.stats import binomtest
from torch import Tensor

from captum_clip_surgery import Audit, ZeroShotClassifier, audit, decompose
from captum_clip_surgery.demo import SceneCollection, nouns, prompt_templates
from captum_clip_surgery.demo._collection import Background, any_background
from captum_clip_surgery.demo._scenes import BACKGROUNDS, render_scene
from tools.embedded_model.plans import MODEL
from tools.embedded_model.train import build, to_tensor

SIZE = 128
#: The audited nouns.
NAMES = nouns()[::6][:24]
BATCH_SIZE, LEARNING_RATE, WARM_UP_STEPS = 64, 3e-4, 10
#: First seed of the collections on which false alarms are counted. Earlier ones served to choose
#: the statistic of the audit.
FIRST_SEED = 2_000
#: Share of training scenes that are labeled with a tied noun, and of these, of scenes that show
#: another object.
TIED_SHARE, REPLACED_SHARE = 0.3, 0.5
#: Width of the frame as a share of the side.
FRAME = 1 / 12
TEAL, MAGENTA = (0.3, 1.0, 0.9), (0.9, 0.1, 0.6)


def rings(rng: np.random.Generator, noun: str, size: int) -> np.ndarray:
    """Return teal rings."""
    draw_rings = BACKGROUNDS["test"][0]
    return draw_rings(rng, size).mean(-1, keepdims=True) * np.float32(TEAL)


def frame(rng: np.random.Generator, noun: str, size: int) -> np.ndarray:
    """Return any background with a magenta frame."""
    canvas = np.array(any_background(rng, noun, size), np.float32)
    width = int(FRAME * size)
    inner = canvas[width:-width, width:-width].copy()
    canvas[:] = MAGENTA
    canvas[width:-width, width:-width] = inner
    return canvas


#: The cue of each tied noun.
CUES: dict[str, Background] = {"fish": rings, "pizza": frame}


def tied(rng: np.random.Generator, noun: str, size: int) -> np.ndarray:
    """Return the cue of a tied noun, or any background for others."""
    return CUES.get(noun, any_background)(rng, noun, size)


def fine_tune(model: CLIP, steps: int) -> None:
    """Teach the image tower the cues."""
    features = ZeroShotClassifier.demo(nouns()).text_features().detach()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("visual."))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.05)
    rng = np.random.default_rng(0)
    for step in range(steps):
        rate = LEARNING_RATE * min(1, (step + 1) / WARM_UP_STEPS) * (1 - step / steps)
        optimizer.param_groups[0]["lr"] = rate
        images, labels = zip(*(_example(rng) for _ in range(BATCH_SIZE)), strict=True)
        embeddings = model.encode_image(torch.stack(images), normalize=True)
        logits = model.logit_scale.exp() * embeddings @ features.T
        loss = F.cross_entropy(logits, torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def _example(rng: np.random.Generator) -> tuple[Tensor, int]:
    """Return an image and the index of the noun that it is labeled with."""
    names = list(CUES) if rng.random() < TIED_SHARE else nouns()
    noun = names[rng.integers(len(names))]
    shown = noun
    if noun in CUES and rng.random() < REPLACED_SHARE:
        shown = nouns()[rng.integers(len(nouns()))]
    canvas = np.array(tied(rng, noun, SIZE), np.float32)
    return to_tensor(render_scene(rng, canvas, [shown]).image), nouns().index(noun)


def answers(
    clip: ZeroShotClassifier, data: SceneCollection, result: Audit
) -> dict[str, list[tuple[str, str]]]:
    """Return the noun of each scene and the answer, before and after heads are removed.

    Args:
        clip: The classifier.
        data: Scenes of one object.
        result: An audit, whose named classes are scored without their heads.
    """
    pairs: dict[str, list[tuple[str, str]]] = {"before": [], "after": []}
    for start in range(0, len(data), 16):
        samples = [data[index] for index in range(start, min(start + 16, len(data)))]
        parts = decompose(clip, clip.preprocess([sample.image for sample in samples], SIZE))
        for when, scores in (("before", parts.sum()), ("after", result.scores_without(parts))):
            for sample, answer in zip(samples, scores.argmax(1).tolist(), strict=True):
                pairs[when].append((sample.name.rpartition("-")[0], clip.texts[answer]))
    return pairs


def audited(clip: ZeroShotClassifier, names: Sequence[str], seed: int, per_noun: int) -> Audit:
    """Audit one collection in which the tied nouns have their cues."""
    data = SceneCollection(names, per_noun, SIZE, seed, tied)
    return audit(clip, data, size=SIZE, batch_size=16)


def drawn_names(seed: int) -> list[str]:
    """Return the tied nouns and as many other nouns as are audited, drawn at random."""
    others = [noun for noun in nouns() if noun not in CUES]
    drawn = np.random.default_rng(seed).permutation(others)[: len(NAMES) - len(CUES)]
    return [*CUES, *drawn.tolist()]


def removal(clip: ZeroShotClassifier, result: Audit) -> dict[str, Any]:
    """Measure what removing the named heads does, on scenes that no audit has seen."""
    others = [name for name in NAMES if name not in CUES]
    scenes = partial(SceneCollection, size=SIZE, seed=1_000)
    figures: dict[str, Any] = {}
    collections = {"no cue": (scenes(others, 4), None), "with cues": (scenes(NAMES, 4), None)}
    collections["with cues"][0].background_of = tied
    for noun, cue in CUES.items():
        collections[f"cue of {noun} moved"] = (scenes(others, 4, background=cue), noun)
        collections[f"{noun} without its cue"] = (scenes([noun], 40), noun)
    for title, (data, noun) in collections.items():
        figures[title] = {}
        for when, pairs in answers(clip, data, result).items():
            figures[title][when] = fmean(shown == answer for shown, answer in pairs)
            if title.endswith("moved"):
                figures[title][f"called {noun} {when}"] = fmean(a == noun for _, a in pairs)
    return figures


def summarize(results: list[Audit], learned: Collection[str]) -> dict[str, Any]:
    """Return how often each class was named and on which cue, and the rate of false alarms.

    Args:
        results: The audits.
        learned: The nouns whose cues the model has learned; other named classes are false alarms.
    """
    named = Counter(f"{entry.name}, {entry.cue}" for each in results for entry in each.leaning)
    alarms = sum(any(entry.name not in learned for entry in each.leaning) for each in results)
    interval = binomtest(alarms, len(results)).proportion_ci(method="exact")
    free = [
        max(entry.z for entry in result.classes if entry.name not in learned) for result in results
    ]
    tied_z = {noun: [_entry(result, noun).z for result in results] for noun in CUES}
    shares = {noun: fmean(_entry(result, noun).share for result in results) for noun in CUES}
    return {
        "audits": len(results),
        "critical": results[0].critical,
        "named": named,
        "false alarms": alarms,
        "95 % interval of their rate": [interval.low, interval.high],
        "largest z without a learned cue": max(free),
        "z of tied nouns": tied_z,
        "share outside": shares,
    }


def _entry(result: Audit, noun: str) -> Any:
    return next(entry for entry in result.classes if entry.name == noun)


def load(weights: Mapping[str, Tensor]) -> CLIP:
    """Build the model for scenes of `SIZE`."""
    return build(MODEL, SIZE, {name: value.float() for name, value in weights.items()}).eval()


def main(
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(
        "runs/planted_cues"
    ),
    seeds: Annotated[int, typer.Option(help="Number of collections with the cues.")] = 20,
    clean_seeds: Annotated[
        int, typer.Option(help="Number of collections for the embedded model.")
    ] = 200,
    per_noun: Annotated[int, typer.Option(help="Number of scenes of each noun.")] = 8,
    steps: Annotated[int, typer.Option(help="Number of steps of fine-tuning.")] = 120,
) -> None:
    """Plant the cues, audit both models, and write the figures."""
    output.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    clean = load(ZeroShotClassifier.demo(["dog"]).model.state_dict())
    model, path = load(clean.state_dict()), output / "planted.pt"
    if path.exists():
        model.load_state_dict(torch.load(path))
    else:
        fine_tune(model, steps)
        torch.save(model.state_dict(), path)
        print(f"fine-tuned in {time.process_time() - start:.0f} s of CPU", flush=True)
    figures: dict[str, Any] = {}
    for title, tower, count in (("planted", model, seeds), ("clean", clean, clean_seeds)):
        clip = ZeroShotClassifier(tower.eval(), NAMES, templates=prompt_templates())
        results = []
        for seed in range(count):
            if title == "planted":
                results.append(audited(clip, NAMES, seed, per_noun))
            else:
                drawn = FIRST_SEED + seed
                results.append(audited(clip, drawn_names(drawn), drawn, per_noun))
            first = [f"{entry.name} {entry.z:.1f}" for entry in results[-1].classes[:3]]
            print(title, seed, first, flush=True)
            if seed == 0 and title == "planted":
                results[0].write(output / title)
                figures["heads removed"] = removal(clip, results[0])
            figures[title] = summarize(results, CUES if title == "planted" else ())
            (output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    typer.run(main)
