"""Search for better defaults of CLIP Surgery on validation scenes of the embedded model.

    python benchmarks/defaults.py [--scenes 200] [--split validation] [--tables blocks,variants]
        [--distractors 0,10,30] [--model FOLDER] [--output FILE.md]

Varies the number of blocks, averages over numbers of blocks ("blocks"), the variant of feature
surgery, the inverse temperature, and the number of texts ("variants"). docs/results.md reports the
choice on test scenes.
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from _options import ModelFolder, TablesFile, load_model, split_names
from torch import Tensor

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.attr import Method
from captum_clip_surgery.demo import Scenes, nouns
from captum_clip_surgery.evaluation import evaluate_scenes, to_markdown

DISTRACTOR_SEED = 7


def surgery(**options: object) -> Method:
    return lambda clip: LayerCLIPSurgery(clip, **options).attribute_all


def averaged(num_blocks: range, variant: str) -> Method:
    """Return a method that averages the maps of several numbers of blocks."""

    def method(clip: ZeroShotClassifier):  # type: ignore[no-untyped-def]
        each = [LayerCLIPSurgery(clip, num_blocks=n, feature_surgery=variant) for n in num_blocks]

        def explain(images: Tensor) -> Tensor:
            return torch.stack([one.attribute_all(images) for one in each]).mean(0)

        return explain

    return method


def num_blocks_methods() -> dict[str, Method]:
    single = {
        f"empty, num_blocks {d}": surgery(num_blocks=d, feature_surgery="empty")
        for d in range(1, 9)
    }
    ranges = (range(5, 9), range(3, 9), range(1, 9))
    return single | {
        f"empty, mean of num_blocks {r.start} to {r.stop - 1}": averaged(r, "empty") for r in ranges
    }


def variant_methods() -> dict[str, Method]:
    contrasts = {
        f"{form}, inverse_temperature {inverse_temperature:g}": surgery(
            feature_surgery=form, inverse_temperature=inverse_temperature
        )
        for form in ("release", "paper")
        for inverse_temperature in (0.0, 1.0, 2.0, 5.0, 20.0)
    }
    plain = {
        "no feature surgery": surgery(feature_surgery=None),
        "empty": surgery(feature_surgery="empty"),
    }
    return plain | contrasts


def main(
    scenes: Annotated[int, typer.Option(help="Number of scenes.")] = 200,
    split: Annotated[str, typer.Option(help="'validation' or 'test'.")] = "validation",
    tables: Annotated[
        str, typer.Option(help="Comma-separated: blocks, variants.")
    ] = "blocks,variants",
    distractors: Annotated[
        str, typer.Option(help="Comma-separated numbers of distractors for 'variants'.")
    ] = "0,10,30",
    model: ModelFolder = None,
    output: TablesFile = None,
) -> None:
    """Print the tables."""
    clip = load_model(model, ["dog"])
    images = Scenes(split, scenes, clip.native_size[0], objects=[2, 3])
    shuffled = torch.randperm(
        len(nouns()), generator=torch.Generator().manual_seed(DISTRACTOR_SEED)
    )
    candidates = [nouns()[i] for i in shuffled.tolist()]
    drawn = [candidates[: int(count)] for count in distractors.split(",")]
    available: dict[str, list[tuple[str, dict[str, Method], list[str]]]] = {
        "blocks": [("Number of blocks, the scene's two or three texts", num_blocks_methods(), [])],
        "variants": [
            (
                f"Variant and inverse temperature, the scene's texts and {len(others)} distractors",
                variant_methods(),
                others,
            )
            for others in drawn
        ],
    }
    chosen = [row for name in split_names(tables, available, "--tables") for row in available[name]]
    parts = []
    for title, methods, others in chosen:
        measured = evaluate_scenes(clip, images, methods, others, confidence=False)
        parts.append(f"**{title}**\n\n{to_markdown(measured)}\n")
        print(parts[-1], flush=True)
    if output is not None:
        output.write_text("\n".join(parts))


if __name__ == "__main__":
    typer.run(main)
