"""How a published evaluation shows images and names classes, as data."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from captum_clip_surgery.datasets.catalog import DATASETS
from captum_clip_surgery.models.text import TEMPLATES, Template

#: What can be measured on a data set, and which fields of a `View` that looks at.
USES: dict[str, tuple[str, ...]] = {
    "localization": ("size", "texts", "classes", "truth_size"),
    "segmentation": (
        "size",
        "keep_aspect",
        "longest",
        "window",
        "stride",
        "synonyms",
        "classes",
        "background",
        "scale",
    ),
    "recognition": ("size", "classes"),
    "points": ("size", "texts", "classes"),
}
TASKS = tuple(USES)
MOST_PIXELS = 2**14  # a side; a batch of one is 3 GB
FOLDER = Path(__file__).parent / "protocols"
CLASSES = Path(__file__).parents[1] / "datasets" / "classes"
#: Templates by the name that a protocol gives them; open_clip's are OpenAI's 80 for ImageNet.
TEMPLATE_SETS: dict[str, Sequence[Template]] = {
    "surgery": TEMPLATES,
    "imagenet": TEMPLATES[:80],
    "none": (),
}


@dataclass(frozen=True)
class View:
    """How one task shows images and names classes.

    Args:
        size: side in pixels that the model sees, to the nearest multiple of the patch; None is the
            native size.
        keep_aspect: whether `size` is the shorter side of a picture that is not squashed.
        longest: of such a picture the longer side at most.
        window: side in pixels of windows that slide over a picture that is not squashed; None
            shows it whole.
        stride: from window to window.
        texts: "classes", all classes of the data set compete, or "present", those the image shows.
        synonyms: whether all names of a class are texts, the best of which counts; otherwise the
            first.
        classes: which names, of those that come with the package; None is the data set's own.
        background: a pixel whose best text has less than this probability, of a softmax over all
            texts, is background. Texts of the background itself compete all the same.
        scale: of that softmax; None is the model's own logit scale.
        truth_size: side in pixels that labels and masks are squashed to, by their nearest pixels,
            before maps are held against them; None is the size they are of.
    """

    size: int | None = None
    keep_aspect: bool = False
    longest: int | None = None
    window: int | None = None
    stride: int | None = None
    texts: str = "classes"
    synonyms: bool = False
    classes: str | None = None
    background: float | None = None
    scale: float | None = None
    truth_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("size", "longest", "window", "stride", "truth_size"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} {value!r} must be a positive whole number of pixels")
            if value is not None and value > MOST_PIXELS:
                raise ValueError(f"{name} {value!r} is more than {MOST_PIXELS} pixels")
        for name in ("keep_aspect", "synonyms"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} {getattr(self, name)!r} must be true or false")
        if self.texts not in ("classes", "present"):
            raise ValueError(f'texts {self.texts!r} is neither "classes" nor "present"')
        if self.keep_aspect and self.size is None:
            raise ValueError("keep_aspect needs a size, which is of the shorter side")
        if self.longest is not None and not self.keep_aspect:
            raise ValueError("longest needs keep_aspect")
        if self.longest is not None and self.size is not None and self.longest < self.size:
            raise ValueError(f"longest {self.longest} is less than size, {self.size}")
        if self.window is not None and not self.keep_aspect:
            raise ValueError("window needs keep_aspect: pictures that are squashed are seen whole")
        if (self.window is None) != (self.stride is None):
            raise ValueError("window and stride need each other")
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} is longer than the window, {self.window}: pixels between "
                "windows would not be seen"
            )
        for name, most in (("background", 1.0), ("scale", float("inf"))):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 < value < most
            ):
                raise ValueError(f"{name} {value!r} must be a number above 0, below {most}")
        if self.classes is not None and self.classes not in class_files():
            known = ", ".join(class_files())
            raise ValueError(f"classes {self.classes!r} are none of {known}")


@dataclass(frozen=True)
class Protocol:
    """A published way to evaluate: a view for each task, and what a data set changes in it.

    `templates` is a name of `TEMPLATE_SETS`, or None for the model's own.
    """

    name: str
    source: str
    views: Mapping[str, View]
    changes: Mapping[tuple[str, str], View]
    templates: str | None = None

    @classmethod
    def load(cls, name: str | Path) -> Protocol:
        """One that comes with the package, or a TOML file.

        A file says `source`, perhaps `templates`, and has a table for each task it measures, with
        the fields of `View` that the task uses. A table in that, named like one of `DATASETS`,
        changes some of them for it; "none" takes back what the task says.

        Raises:
            FileNotFoundError: neither.
            ValueError: no TOML, an unknown key, or a value that is not allowed; names the file.
        """
        path = Path(name)
        if path.suffix != ".toml":
            path = FOLDER / f"{name}.toml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
            raise FileNotFoundError(
                f"there is no protocol {str(name)!r}; there are {known}, or give a .toml file"
            )
        try:
            return cls._parse(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"protocol {path}: {error}") from None

    @classmethod
    def _parse(cls, name: str, content: dict[str, Any]) -> Protocol:
        source, templates = content.pop("source", None), content.pop("templates", None)
        if not isinstance(source, str) or not source:
            raise ValueError("it names no source")
        if templates is not None and templates not in list(TEMPLATE_SETS):
            raise ValueError(f"templates {templates!r} is none of {', '.join(TEMPLATE_SETS)}")
        _check_keys(content, TASKS, "it")
        if not content:
            raise ValueError(f"it has no task; there are {', '.join(TASKS)}")
        views, changes = {}, {}
        for task, table in content.items():
            if not isinstance(table, dict):
                raise ValueError(f"{task} is {table!r}; write a table, [{task}]")
            own = {key: value for key, value in table.items() if not isinstance(value, dict)}
            views[task] = _view(own, task, task)
            for dataset in [key for key in table if key not in own]:
                if dataset not in DATASETS:
                    known = ", ".join(DATASETS)
                    raise ValueError(f"{task} has no data set {dataset!r}; there are {known}")
                changed = own | table[dataset]
                changes[task, dataset] = _view(changed, task, f"{task}.{dataset}")
        return cls(name, source, views, changes, templates)

    def view(self, task: str, dataset: str) -> View:
        """How a task shows a data set.

        Raises:
            ValueError: a task that the protocol does not have.
        """
        if task not in self.views:
            raise ValueError(f"protocol {self.name} has no {task}; it has {', '.join(self.views)}")
        return self.changes.get((task, dataset), self.views[task])


def class_files() -> list[str]:
    """Names of the classes that come with the package."""
    names = sorted(path.stem for path in CLASSES.glob("*.txt"))
    return [name for name in names if not name.endswith("_members")]  # groups of classes


def _view(table: Mapping[str, Any], task: str, where: str) -> View:
    _check_keys(table, USES[task], where)
    optional = [field.name for field in fields(View) if field.default is None]
    taken_back = [key for key in optional if table.get(key) == "none"]
    try:
        return View(**{key: value for key, value in table.items() if key not in taken_back})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_keys(table: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    unknown = sorted(table.keys() - set(allowed))
    if unknown:
        raise ValueError(f"{where} has {unknown[0]!r}; there are {', '.join(allowed)}")
