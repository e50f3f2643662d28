"""Cost and gain of test-time augmentation on validation scenes of the embedded model.

    python benchmarks/augmentation.py [--scenes 50] [--method CLIPSurgery] [--output FILE.md]
    python benchmarks/augmentation.py --refine pamr [--default --split test --scenes 500]

In brackets: the number of passes, and of patches that pass the tower relative to one map.
`--refine` aligns every setting's maps with the images' edges, and `--default` measures a single map
and the default setting only, with confidence intervals.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from _options import TablesFile

from captum_clip_surgery import METHODS, TestTimeAugmentation, ZeroShotClassifier
from captum_clip_surgery.attr import Method
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.evaluation import evaluate_scenes, to_markdown
from captum_clip_surgery.tasks import refine_maps

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


def default_setting() -> tuple[tuple[float, ...], int, bool]:
    """Return the sizes, shifts and flip that `TestTimeAugmentation` has by default."""
    options = inspect.signature(TestTimeAugmentation).parameters
    scales, shifts, flip = (options[name].default for name in ("scales", "shifts", "flip"))
    return scales, shifts, flip


def augmented(method: Method, options: dict[str, Any], refine: str | None) -> Method:
    def make(clip: ZeroShotClassifier) -> Callable[..., Any]:
        attribute_all = TestTimeAugmentation(method(clip), **options).attribute_all
        if refine is None:
            return attribute_all
        return lambda images: refine_maps(clip, attribute_all(images), images, refine)

    return make


def settings(
    method: Method, refine: str | None, chosen: list[tuple[tuple[float, ...], int, bool]]
) -> dict[str, Method]:
    """Return the method with each setting, named with its passes and its cost."""
    table = {}
    for scales, shifts, flip in chosen:
        copies = shifts**2 * (1 + flip)
        cost = copies * sum(scale**2 for scale in scales)
        sizes = ", ".join(f"{scale:g}" for scale in scales)
        name = (
            f"sizes {sizes}; shifts {shifts}{'; flip' * flip} ({copies * len(scales)}; {cost:.1f})"
        )
        options = {"scales": scales, "shifts": shifts, "flip": flip}
        table[name] = augmented(method, options, refine)
    return table


def main(
    scenes: Annotated[int, typer.Option(help="Number of scenes.")] = 50,
    method: Annotated[str, typer.Option(help="Name of the method.")] = "CLIPSurgery",
    split: Annotated[str, typer.Option(help="Split of the scenes.")] = "validation",
    refine: Annotated[str | None, typer.Option(help="'guided' or 'pamr' (default: none).")] = None,
    default: Annotated[bool, typer.Option("--default", help="Measure the default only.")] = False,
    output: TablesFile = None,
) -> None:
    """Print the table."""
    clip = ZeroShotClassifier.demo(["dog"])
    images = Scenes(split, scenes, clip.native_size[0], objects=[2, 3])
    chosen = [SETTINGS[0], default_setting()] if default else SETTINGS
    table = settings(METHODS[method], refine, chosen)
    measured = evaluate_scenes(clip, images, table, [], confidence=default)
    text = to_markdown(measured)
    print(text)
    if output is not None:
        output.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
