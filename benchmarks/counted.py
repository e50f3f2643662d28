"""Operations of explaining relative to those of the model's own pass, independent of the machine.

    python benchmarks/counted.py [--texts 59] [--json FILE]

Counts multiplications and additions of matrix products, convolutions and attention in a real pass
with random weights, by torch's counter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from speed import at_size, classifier
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from captum_clip_surgery import LayerCLIPSurgery
from captum_clip_surgery._utils.tables import markdown

CASES = (
    ("ViT-B-16", 224),
    ("ViT-B-16", 512),
    ("ViT-L-14-336", 336),
    ("ViT-H-14", 224),
    ("ViT-L-14-CLIPA", 224),
    ("ViT-B-16-SigLIP", 224),
    ("EVA02-B-16", 224),
    ("RN50", 224),
)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


#: The counter has no formula for attention on the CPU.
ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def count(model: str, size: int, texts: int) -> tuple[float, float]:
    """Return the operations of one image for the model's own pass and for the maps of all texts."""
    clip = classifier(model, texts, "cpu", torch.float32)
    image = torch.zeros(1, 3, size, size)
    found = []
    # With gradients enabled, PyTorch does not use its fused attention, which is not counted.
    for call in (at_size(clip, image), LayerCLIPSurgery(clip).attribute_all):
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
            call(image)
        found.append(float(counter.get_total_flops()))
    return found[0], found[1]


def main(
    texts: Annotated[int, typer.Option(help="Number of text features.")] = 59,
    output: Annotated[
        Path | None, typer.Option("--json", help="JSON file for the results.")
    ] = None,
) -> None:
    """Print the table."""
    counts = {case: count(*case, texts) for case in CASES}
    rows = [
        [model, str(size), f"{plain / 1e9:.1f}", f"{surgery / 1e9:.1f}", f"{surgery / plain:.3f}"]
        for (model, size), (plain, surgery) in counts.items()
    ]
    print(markdown(["model", "size", "encode_image, G", "all texts, G", "ratio"], rows))
    if output is not None:
        content = {f"{model} {size}": pair for (model, size), pair in counts.items()}
        output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
