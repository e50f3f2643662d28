"""Cost and gain of test-time augmentation on validation scenes of the embedded model.

    python benchmarks/augmentation.py [--scenes 50] [--method CLIPSurgery] [--output FILE.md]

In brackets: the number of passes, and of patches that pass the tower relative to one map.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from captum_clip_surgery import METHODS, TestTimeAugmentation, ZeroShotClassifier
from captum_clip_surgery.attr import Method
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.evaluation import evaluate_scenes, to_markdown

#: Settings: sizes, shifts, and whether copies are flipped as well.
SETTINGS: list[tuple[tuple[float, ...], int, bool]] = [
    ((1.0,), 1, False),
    ((1.0,), 1, True),
    ((1.5,), 1, False),
    ((1.0, 1.5), 1, True),
    ((1.0, 1.25, 1.5, 2.0), 1, False),
    ((1.0,), 2, False),
    ((1.25,), 2, False),
    ((1.5,), 2, False),
    ((1.0, 1.5), 2, False),
    ((1.0, 2.0), 2, False),
    ((1.25,), 3, False),
    ((1.5,), 3, False),
    ((1.0, 1.5, 2.0), 2, False),
]


def augmented(method: Method, options: dict[str, Any]) -> Method:
    def make(clip: ZeroShotClassifier) -> Callable[..., Any]:
        return TestTimeAugmentation(method(clip), **options).attribute_all

    return make


def settings(method: Method) -> dict[str, Method]:
    """Return the method with each setting, named with its passes and its cost."""
    table = {}
    for scales, shifts, flip in SETTINGS:
        copies = shifts**2 * (1 + flip)
        cost = copies * sum(scale**2 for scale in scales)
        sizes = ", ".join(f"{scale:g}" for scale in scales)
        name = (
            f"sizes {sizes}; shifts {shifts}{'; flip' * flip} ({copies * len(scales)}; {cost:.1f})"
        )
        table[name] = augmented(method, {"scales": scales, "shifts": shifts, "flip": flip})
    return table


def main(
    scenes: Annotated[int, typer.Option(help="Number of scenes.")] = 50,
    method: Annotated[str, typer.Option(help="Name of the method.")] = "CLIPSurgery",
    output: Annotated[Path | None, typer.Option(help="Markdown file for the table.")] = None,
) -> None:
    """Print the table."""
    clip = ZeroShotClassifier.demo(["dog"])
    chosen = Scenes("validation", scenes, clip.native_size[0], objects=[2, 3])
    measured = evaluate_scenes(clip, chosen, settings(METHODS[method]), [], confidence=False)
    text = to_markdown(measured)
    print(text)
    if output is not None:
        output.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
