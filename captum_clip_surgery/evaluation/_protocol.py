"""Published protocols as data: how each task shows images and names classes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from captum_clip_surgery._utils.text import did_you_mean
from captum_clip_surgery.datasets import DATASETS
from captum_clip_surgery.models.image._contract import POSITION_MODES
from captum_clip_surgery.models.text._templates import TEMPLATES, Template
from captum_clip_surgery.tasks._refinement import check_refinement

#: The tasks, and the fields of a `View` that each uses.
USES: dict[str, tuple[str, ...]] = {
    "localization": ("size", "texts", "classes", "target_size"),
    "segmentation": (
        "size",
        "keep_aspect",
        "longest",
        "window",
        "stride",
        "synonyms",
        "classes",
        "background_name",
        "background",
        "min_area",
        "scale",
        "refine",
    ),
    "recognition": ("size", "classes"),
    "points": ("size", "texts", "classes"),
    "faithfulness": ("size", "texts", "classes", "steps"),
    "grid": ("size", "classes"),
    "specificity": ("size", "classes"),
}
#: Names of the tasks that a protocol can configure.
TASKS = tuple(USES)
#: Maximum side in pixels; a batch of one is 3 GB.
MAX_PIXELS = 2**14
#: Maximum number of steps of insertion and deletion.
MAX_STEPS = 1000
FOLDER = Path(__file__).parent / "protocols"
CLASSES = Path(__file__).parents[1] / "datasets" / "classes"
#: Templates by the name that a protocol gives them. "imagenet" is OpenAI's 80 for ImageNet.
TEMPLATE_SETS: dict[str, Sequence[Template]] = {
    "surgery": TEMPLATES,
    "imagenet": TEMPLATES[:80],
    "none": (),
}


@dataclass(frozen=True)
class View:
    """Settings of one task: image sizes and names of classes.

    The fields of segmentation are those of `tasks.segment`.

    Args:
        size: Side in pixels that the model sees, to the nearest multiple of the patch; None means
            the native size.
        keep_aspect: Whether images keep their aspect ratio; `size` is then their shorter side.
        longest: With `keep_aspect`, the maximum of the longer side in pixels.
        window: With `keep_aspect`, the side in pixels of sliding windows; None shows the image
            whole.
        stride: Pixels from one window to the next.
        texts: "classes" if all classes of the data set compete, or "present" for those of the
            image.
        synonyms: Whether all names of a class are texts, of which the best counts; otherwise only
            the first.
        classes: Name of a file of class names in the package; None means the data set's own.
        background_name: Whether the background is also described by its own name, "background";
            with False only its further names are texts.
        background: Probability below which a pixel is background, of its best name in a softmax
            over all names. Names of the background itself compete in any case.
        min_area: Share in 0..1 of the pixels that are not background; a class that covers less
            becomes background.
        scale: Factor of the scores in that softmax; None means the model's logit scale.
        refine: Filter that aligns classes with image edges, "guided" or "pamr", or None.
        steps: Number of steps of insertion and deletion.
        target_size: Side in pixels to which labels and masks are resized, by the nearest pixel,
            before maps are compared with them; None keeps their size.

    Raises:
        ValueError: If a value is out of range, or fields contradict each other.
    """

    size: int | None = None
    keep_aspect: bool = False
    longest: int | None = None
    window: int | None = None
    stride: int | None = None
    texts: str = "classes"
    synonyms: bool = False
    classes: str | None = None
    background_name: bool = True
    background: float | None = None
    min_area: float | None = None
    scale: float | None = None
    refine: str | None = None
    target_size: int | None = None
    steps: int = 10

    def __post_init__(self) -> None:
        for name in ("size", "longest", "window", "stride", "target_size"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= MAX_PIXELS):
                raise ValueError(
                    f"{name} must be a whole number of pixels from 1 to {MAX_PIXELS}, got {value!r}"
                )
        if type(self.steps) is not int or not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(
                f"steps must be a whole number from 1 to {MAX_STEPS}, got {self.steps!r}"
            )
        for name in ("keep_aspect", "synonyms", "background_name"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.texts not in ("classes", "present"):
            raise ValueError(f'texts must be "classes" or "present", got {self.texts!r}')
        self._check_shape()
        check_refinement(self.refine)
        for name, limit in (("background", 1.0), ("min_area", 1.0), ("scale", float("inf"))):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < limit):
                raise ValueError(
                    f"{name} must be a number above 0 and below {limit}, got {value!r}"
                )
        if self.classes is not None and self.classes not in class_files():
            raise ValueError(
                f"classes must be one of {', '.join(class_files())}, got {self.classes!r}"
            )

    def _check_shape(self) -> None:
        """Check that sizes fit each other."""
        if self.keep_aspect and self.size is None:
            raise ValueError("keep_aspect needs a size, that of the shorter side")
        if self.longest is not None and not self.keep_aspect:
            raise ValueError("longest needs keep_aspect")
        if self.longest is not None and self.size is not None and self.longest < self.size:
            raise ValueError(f"longest must be at least size, {self.size}, got {self.longest}")
        if self.window is not None and not self.keep_aspect:
            raise ValueError("window needs keep_aspect; squashed images are shown whole")
        if (self.window is None) != (self.stride is None):
            raise ValueError("window and stride must be given together")
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise ValueError(
                f"stride must be at most the window, {self.window}, got {self.stride}: pixels "
                "between windows would not be seen"
            )


@dataclass(frozen=True)
class Protocol:
    """A published way to evaluate methods.

    Args:
        name: Name of the protocol.
        source: Where it is published.
        views: View of each task.
        changes: Views that replace those by task and data set.
        templates: A name in `TEMPLATE_SETS`, or None for the model's own templates.
        positions: How positional embeddings are resized, "bilinear" or "bicubic"; None leaves it
            open. `evaluate` takes a classifier made with these and the templates, as
            `clip-surgery evaluate` does.
    """

    name: str
    source: str
    views: Mapping[str, View]
    changes: Mapping[tuple[str, str], View]
    templates: str | None = None
    positions: str | None = None

    @classmethod
    def load(cls, name: str | Path) -> Protocol:
        """Load a protocol of the package, or a TOML file.

        A file has the key `source`, optionally `templates` and `positions`, and a table for each
        task, with the fields of `View` that the task uses. A table inside, named after a data set,
        changes some of them for it; "none" resets a field to None.

        Args:
            name: Name of a protocol, or path of a file that ends in ".toml".

        Raises:
            FileNotFoundError: If there is no such protocol or file.
            ValueError: If the file is not TOML, or has an unknown key or an invalid value.
        """
        path = Path(name)
        if path.suffix != ".toml":
            path = FOLDER / f"{name}.toml"
        if not path.is_file():
            known = sorted(p.stem for p in FOLDER.glob("*.toml"))
            raise FileNotFoundError(
                f"there is no protocol {str(name)!r}; choose from {', '.join(known)}, or pass a "
                f".toml file{did_you_mean(str(name), known)}"
            )
        try:
            return cls._parse(path.stem, tomllib.loads(path.read_text(encoding="utf-8-sig")))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"protocol {path}: {error}") from None

    @classmethod
    def _parse(cls, name: str, content: dict[str, Any]) -> Protocol:
        source, templates, positions = (
            content.pop(key, None) for key in ("source", "templates", "positions")
        )
        if not isinstance(source, str) or not source:
            raise ValueError("source must be a text that is not empty")
        if templates is not None and templates not in list(TEMPLATE_SETS):
            raise ValueError(
                f"templates must be one of {', '.join(TEMPLATE_SETS)}, got {templates!r}"
            )
        if positions is not None and positions not in POSITION_MODES:
            raise ValueError(
                f"positions must be one of {', '.join(POSITION_MODES)}, got {positions!r}"
            )
        _check_keys(content, TASKS, "the file")
        if not content:
            raise ValueError(f"the file has no task; add one of {', '.join(TASKS)}")
        views, changes = {}, {}
        for task, table in content.items():
            if not isinstance(table, dict):
                raise ValueError(f"{task} must be a table, [{task}], got {table!r}")
            values = {key: value for key, value in table.items() if not isinstance(value, dict)}
            views[task] = _view(values, task, task)
            for dataset in [key for key in table if key not in values]:
                if dataset not in DATASETS:
                    known = ", ".join(DATASETS)
                    raise ValueError(
                        f"{task} has a table for {dataset!r}, which must be one of {known}"
                    )
                changed = values | table[dataset]
                changes[task, dataset] = _view(changed, task, f"{task}.{dataset}")
        return cls(name, source, views, changes, templates, positions)

    def view(self, task: str, dataset: str) -> View:
        """Return how a task shows a data set.

        Raises:
            ValueError: If the protocol does not have the task.
        """
        if task not in self.views:
            raise ValueError(f"protocol {self.name} has no {task}; it has {', '.join(self.views)}")
        return self.changes.get((task, dataset), self.views[task])


def class_files() -> list[str]:
    """Return the names of the files of class names in the package."""
    names = sorted(path.stem for path in CLASSES.glob("*.txt"))
    return [name for name in names if not name.endswith("_members")]  # groups of classes


def _view(table: Mapping[str, Any], task: str, where: str) -> View:
    _check_keys(table, USES[task], where)
    optional = [field.name for field in fields(View) if field.default is None]
    reset = [key for key in optional if table.get(key) == "none"]
    try:
        return View(**{key: value for key, value in table.items() if key not in reset})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_keys(table: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    unknown = sorted(table.keys() - set(allowed))
    if unknown:
        raise ValueError(
            f"{where} has the unknown key {unknown[0]!r}; choose from {', '.join(allowed)}"
            f"{did_you_mean(unknown[0], allowed)}"
        )
