"""Outlier tokens and their remedies, on the embedded model with outliers made by an edit.

    python benchmarks/outliers.py [--scenes 60] [--split test] [--model FOLDER] [--output FILE.md]
    python benchmarks/outliers.py --tables direct [--firing 0.08,0.07]
    python benchmarks/outliers.py --tables blocks [--scenes 500]

The tables of docs/models.md:

- direct: what the edit does without a remedy: accuracy, outliers and their norms, collapsed maps
- remedies: CLIP Surgery on the edited model with each remedy
- variants: the local outlier factor alone, and a register in the path's own attention
- unedited: repairs on the unedited model
- cost: processor time in units of `encode_image`
- blocks: CLIP Surgery over 0, 1, ... blocks of the unedited model, not among the defaults

The edit is that of tests/_helpers/outliers.py, whose neurons fire on shares of patches that are
tuned to the embedded model's weights. For other weights, tune `--firing` with `--tables direct`:
the edited model should be nearly as accurate as the unedited one, and have maps with a correlation
near 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from _options import ModelFolder, TablesFile, load_model, split_names
from torch import Tensor

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery._utils.outliers import norm_outliers
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.attr import DualPathAttribution
from captum_clip_surgery.attr._repair import REPAIRS
from captum_clip_surgery.attr._token_steps import LocalOutliers, ReplaceOutliers
from captum_clip_surgery.demo import Scene, Scenes, nouns
from captum_clip_surgery.evaluation import evaluate_scenes
from captum_clip_surgery.evaluation._results import DEFAULT_COLUMNS
from captum_clip_surgery.models.image import PathConfig, Tower
from tests._helpers.outliers import FIRING, mean_correlation, scene_maps, with_outliers

#: Numbers of scenes: for maps, for maps by number of blocks, of one object, and for registers.
NUM_SCENES, NUM_BLOCKS_SCENES, NUM_SINGLE, NUM_REGISTER_SCENES = 60, 500, 200, 24
#: Number of images per call, and of rounds of calls, for the processor time.
BATCH_SIZE, ROUNDS = 8, 9
BASELINE = "encode_image"

Make = Callable[[ZeroShotClassifier], DualPathAttribution]


class LayerLocalRepair(LayerCLIPSurgery):
    """CLIP Surgery after a repair by the local outlier factor alone."""

    @property
    def path_config(self) -> PathConfig:
        path = super().path_config
        first = len(self.forward_func.tower.blocks) - path.num_blocks
        return replace(path, before=ReplaceOutliers(LocalOutliers(first)), streams=(first,))


class LayerVisibleRegister(LayerCLIPSurgery):
    """CLIP Surgery whose path attends to the register of a classifier with registers."""

    def scores(self, images: Tensor, targets: Tensor) -> Tensor:
        # `RegisterTower.paths` hides the register from paths; the base class's does not.
        (output,) = Tower.paths(self.forward_func.tower, images, [self.path_config])
        return self.scores_from_output(output, targets)


def repaired(repair: str | None) -> Make:
    return partial(LayerCLIPSurgery, repair=repair)


@dataclass(frozen=True)
class Setting:
    """The models to compare, and the scenes to measure them on.

    Args:
        folder: Folder of the model; None means the embedded one.
        firing: Shares of patches on which the edit's neurons fire.
        split: Split of the scenes.
        num_scenes: Number of scenes; None means the documentation's.
    """

    folder: Path | None
    firing: Sequence[float]
    split: str
    num_scenes: int | None

    @cached_property
    def scenes(self) -> Sequence[Scene]:
        """Scenes of two or three objects."""
        count, side = self.num_scenes or NUM_SCENES, self.unedited.native_size[0]
        return [*Scenes(self.split, count, side, objects=[2, 3])]

    @cached_property
    def unedited(self) -> ZeroShotClassifier:
        """The model."""
        return load_model(self.folder, nouns())

    @cached_property
    def edited(self) -> ZeroShotClassifier:
        """The model with outliers."""
        return with_outliers(load_model(self.folder, nouns()), self.firing)

    @cached_property
    def registers(self) -> ZeroShotClassifier:
        """The edited model with registers, found from the first scenes."""
        chosen = self.scenes[:NUM_REGISTER_SCENES]
        return self.edited.with_registers(self.edited.preprocess([s.image for s in chosen]))

    @cached_property
    def references(self) -> list[Tensor]:
        """Maps of the unedited model without a repair."""
        return scene_maps(self.unedited, LayerCLIPSurgery, self.scenes)


def measure(clip: ZeroShotClassifier, make: Make, scenes: Sequence[Scene]) -> list[str]:
    """Return the cells of mIoU, mSC and pointing game."""
    measured = evaluate_scenes(clip, scenes, {"": make}, progress=False, confidence=False)
    return [measured[""].cell(name) for name in DEFAULT_COLUMNS]


# --- the edit ------------------------------------------------------------------------------------


def direct_table(setting: Setting) -> str:
    """Describe both models without a remedy."""
    side = setting.unedited.native_size[0]
    single = [*Scenes(setting.split, NUM_SINGLE, side, objects=[1])]
    images = setting.unedited.preprocess([scene.image for scene in single])
    labels = torch.tensor([setting.unedited.index(scene.nouns[0]) for scene in single])
    clips = (setting.unedited, setting.edited)
    with torch.no_grad():
        features = [clip.image_features(images) for clip in clips]
        top1 = [100 * (clip(images).argmax(1) == labels).double().mean() for clip in clips]
    cosines = [(each * features[0]).sum(-1).mean() for each in features]
    maps = (setting.references, scene_maps(setting.edited, LayerCLIPSurgery, setting.scenes))
    correlations = [mean_correlation(each, setting.references) for each in maps]
    rows = [
        ["top-1, %", *(f"{each:.1f}" for each in top1)],
        ["mean cosine with the unedited embedding", *(f"{each:.3f}" for each in cosines)],
    ]
    norms = [describe_norms(clip, images) for clip in clips]
    rows += [[name, *(each[name] for each in norms)] for name in norms[0]]
    name = f"correlation with the unedited maps, {len(setting.scenes)} scenes of two or three"
    rows.append([name, *(f"{each:.2f}" for each in correlations)])
    title = f"{NUM_SINGLE} scenes of one object"
    return markdown([title, "unedited model", "edited model"], rows)


def describe_norms(clip: ZeroShotClassifier, images: Tensor) -> dict[str, str]:
    """Describe the patch tokens that the path of CLIP Surgery starts from."""
    tower = clip.tower
    start = len(tower.blocks) - LayerCLIPSurgery(clip).path_config.num_blocks
    with torch.no_grad():
        x, _ = tower.enter(images, start)
    patches = x[:, tower.num_prefix_tokens :]
    norms = patches.norm(dim=-1)
    ratios = norms / norms.median(1, keepdim=True).values  # (N, h*w)
    mask = norm_outliers(patches)
    counts = mask.sum(1)
    least, most = counts.aminmax()
    extreme = ratios[mask]
    return {
        f"outliers per image, of {mask.shape[1]} patches entering block {start}": (
            f"{counts.double().mean():.1f} ({least} to {most})"
        ),
        "norms of outliers, times the median": (
            f"{extreme.median():.1f} ({extreme.min():.1f} to {extreme.max():.1f})"
            if len(extreme)
            else "-"
        ),
        "largest norm of other patches, times the median": f"{ratios[~mask].max():.1f}",
    }


# --- remedies ------------------------------------------------------------------------------------


def remedies_table(setting: Setting) -> str:
    """Measure every remedy on the edited model."""
    cases = {
        "unedited model": (setting.unedited, repaired(None)),
        "edited model": (setting.edited, repaired(None)),
        "registers": (setting.registers, repaired(None)),
        **{f'"{repair}"': (setting.edited, repaired(repair)) for repair in REPAIRS},
    }
    return cases_table(f"CLIP Surgery, {len(setting.scenes)} scenes", setting, cases)


def variants_table(setting: Setting) -> str:
    """Measure what was tried and is not an option."""
    cases = {
        "local outlier factor alone": (setting.edited, LayerLocalRepair),
        "register in the path's own attention": (setting.registers, LayerVisibleRegister),
    }
    return cases_table("edited model", setting, cases)


def unedited_table(setting: Setting) -> str:
    """Measure what repairs do to a model without outliers."""
    cases: dict[str, tuple[ZeroShotClassifier, Make]] = {
        f'"{repair}"': (setting.unedited, repaired(repair)) for repair in REPAIRS
    }
    cases = {"no repair": (setting.unedited, repaired(None)), **cases}
    cases["local outlier factor alone"] = (setting.unedited, LayerLocalRepair)
    return cases_table("unedited model", setting, cases, differences=True)


def cases_table(
    title: str,
    setting: Setting,
    cases: Mapping[str, tuple[ZeroShotClassifier, Make]],
    differences: bool = False,
) -> str:
    """Compare maps with the unedited model's, and with the scenes' masks."""
    rows = []
    for name, (clip, make) in cases.items():
        maps = scene_maps(clip, make, setting.scenes)
        cells = [f"{mean_correlation(maps, setting.references):.2f}"]
        if differences:
            pairs = zip(maps, setting.references, strict=True)
            cells.append(f"{max(float((a - b).abs().max()) for a, b in pairs):.1e}")
        rows.append([name, *cells, " / ".join(measure(clip, make, setting.scenes))])
    measures = " / ".join(DEFAULT_COLUMNS.values())
    header = [title, "correlation", *["largest difference"] * differences, measures]
    return markdown(header, rows)


def cost_table(setting: Setting) -> str:
    """Measure processor time relative to `encode_image` in the same round."""
    scenes = [setting.scenes[i % len(setting.scenes)] for i in range(BATCH_SIZE)]
    images = setting.edited.preprocess([scene.image for scene in scenes])
    calls: dict[str, Callable[[Tensor], Tensor]] = {BASELINE: setting.edited.model.encode_image}
    for repair in (None, *REPAIRS, "registers"):
        clip, option = (
            (setting.registers, None) if repair == "registers" else (setting.edited, repair)
        )
        local = clip.with_texts(scenes[0].nouns)
        calls[repair or "no repair"] = LayerCLIPSurgery(local, repair=option).attribute_all
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        seconds = {}
        for name, call in calls.items():
            start = time.process_time()
            with torch.no_grad():
                call(images)
            seconds[name] = time.process_time() - start
        for name in calls:
            ratios[name].append(seconds[name] / seconds[BASELINE])
    # What is computed once, such as text features, is in the first round.
    rows = [[name, f"{median(taken[1:]):.2f}"] for name, taken in ratios.items()]
    return markdown([f"{BATCH_SIZE} images per call", f"x {BASELINE}"], rows)


def blocks_table(setting: Setting) -> str:
    """Measure CLIP Surgery over every number of blocks."""
    clip, count = setting.unedited, setting.num_scenes or NUM_BLOCKS_SCENES
    scenes = Scenes(setting.split, count, clip.native_size[0], objects=[2, 3])
    methods = {
        str(num_blocks): partial(LayerCLIPSurgery, num_blocks=num_blocks, feature_surgery="empty")
        for num_blocks in range(len(clip.tower.blocks) + 1)
    }
    measured = evaluate_scenes(clip, scenes, methods, confidence=False)
    rows = [
        [name, *(result.cell(each) for each in DEFAULT_COLUMNS)]
        for name, result in measured.items()
    ]
    return markdown(["`num_blocks`", *DEFAULT_COLUMNS.values()], rows)


TABLES: dict[str, Callable[[Setting], str]] = {
    "direct": direct_table,
    "remedies": remedies_table,
    "variants": variants_table,
    "unedited": unedited_table,
    "cost": cost_table,
    "blocks": blocks_table,
}


def main(
    scenes: Annotated[
        int | None,
        typer.Option(
            help=f"Number of scenes, of two or three objects (default: {NUM_SCENES}; "
            f"{NUM_BLOCKS_SCENES} for `blocks`)."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="'test' or 'validation'.")] = "test",
    model: ModelFolder = None,
    tables: Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(TABLES)}.")] = ",".join(
        name for name in TABLES if name != "blocks"
    ),
    firing: Annotated[
        str, typer.Option(help="Comma-separated shares of patches on which pairs of neurons fire.")
    ] = ",".join(map(str, FIRING)),
    output: TablesFile = None,
) -> None:
    """Print the tables."""
    chosen = split_names(tables, TABLES, "--tables")
    setting = Setting(model, tuple(map(float, firing.split(","))), split, scenes)
    parts = []
    for name in chosen:
        table = TABLES[name](setting)
        parts.append(f"**{name}**\n\n{table}\n")
        print(f"\n{parts[-1]}", flush=True)
    if output is not None:
        output.write_text("\n".join(parts))


if __name__ == "__main__":
    typer.run(main)
