"""The Python that repeats what is on the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any, Self

from captum_clip_surgery.app.explaining import WITH_FORM
from captum_clip_surgery.app.pictures import EXAMPLE_SIDE, EXAMPLES, SIDE, Shown
from captum_clip_surgery.app.settings import Settings
from captum_clip_surgery.attr.registry import choose
from captum_clip_surgery.classifier import ZeroShotClassifier

SAMPLING = {"KernelShap"}  # whose samples of a text depend on the texts before it in one call
PACKAGE = "captum_clip_surgery"
#: Pairs of a module and a name from it; of "" the whole statement.
Imports = set[tuple[str, str]]
WIDTH = 96  # of a line; a longer list stands one item a line
COMMENT: dict[str, Any] = {"initial_indent": "# ", "subsequent_indent": "# "}
CONTRASTING = ("release", "paper")  # forms that are not defined for one text


@dataclass(frozen=True)
class Model:
    """Where the model comes from; without a name it is the embedded one.

    `lacks` says of methods why they are not defined on it.
    """

    name: str | None = None
    pretrained: str | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, clip: ZeroShotClassifier, name: str | None = None, pretrained: str | None = None
    ) -> Self:
        """That of a classifier, which says what methods are defined on it."""
        _, lacks = choose(clip, ["all"])
        return cls(name, pretrained, lacks)

    def made(
        self, texts: tuple[str, ...], distractors: tuple[str, ...] = (), extra: str = ""
    ) -> str:
        """The line that makes a classifier."""
        parts = [] if self.name is None else [repr(self.name), repr(self.pretrained)]
        parts.append(listed(texts))
        if distractors:
            parts.append(f"distractors={listed(distractors)}")
        if extra:
            parts.append(extra)
        maker = "demo" if self.name is None else "from_pretrained"
        return f"clip = ZeroShotClassifier.{maker}({', '.join(parts)})"


def listed(items: tuple[str, ...]) -> str:
    """A list as Python writes it.

    Example::

        >>> listed(("a dog", 'the "cat"'))
        '["a dog", \\'the "cat"\\']'
    """
    quoted = [quote(item) for item in items]
    line = f"[{', '.join(quoted)}]"
    if len(line) <= WIDTH:
        return line
    return "[\n" + "".join(f"    {item},\n" for item in quoted) + "]"


def quote(text: str) -> str:
    """A string as Python writes it, in double quotes where it can."""
    found = repr(text)
    plain = found[1:-1]
    return f'"{plain}"' if found[0] == "'" and '"' not in plain and "\\'" not in plain else found


def python(model: Model, picture: Shown, settings: Settings) -> str:
    """A script that repeats the tab that is shown.

    It leaves in `maps`, `found` or `of_image` what the tab shows, and saves its figure.
    """
    imports, body = _TABS[settings.tab](model, settings)
    load_imports, load = _load(picture)
    names = {(PACKAGE, "ZeroShotClassifier")} | imports | load_imports
    return f"{_import_lines(names)}\n\n{load}\n{body}"


def _import_lines(names: Imports) -> str:
    """Import statements as isort orders them, other packages before this one."""
    groups: dict[bool, dict[str, list[str]]] = {False: {}, True: {}}
    for module, name in sorted(names):
        groups[module.startswith(PACKAGE)].setdefault(module, []).append(name)
    parts = []
    for modules in groups.values():
        whole = [line for module, found in modules.items() for line in found if not module]
        taken = [
            f"from {module} import {', '.join(sorted(found, key=_constants_first))}"
            for module, found in modules.items()
            if module
        ]
        if whole or taken:
            parts.append("\n".join([*whole, *taken]))
    return "\n\n".join(parts)


def _constants_first(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def _load(picture: Shown) -> tuple[Imports, str]:
    if picture.example is not None:
        index = EXAMPLES[picture.example]
        made = f'Scenes("test", {index + 1}, size={EXAMPLE_SIDE}, objects=[2, 3])[{index}]'
        imports = {("PIL", "Image"), (f"{PACKAGE}.demo", "Scenes")}
        return imports, f"picture = Image.fromarray({made}.image)"
    imports = {(f"{PACKAGE}.preprocessing", "load_image")}
    return imports, (
        f"picture = load_image({quote(picture.name)})\n"
        f"picture.thumbnail(({SIDE}, {SIDE}))  # as the page does"
    )


def _size(settings: Settings) -> str:
    return "" if settings.side is None else f", size={settings.side}"


def _maps(model: Model, settings: Settings) -> tuple[Imports, str]:
    left_out = _left_out(model, settings)
    names = [name for name in settings.methods if name not in left_out]
    imports: Imports = {("", "import torch")}
    lines = [
        model.made(settings.texts, settings.distractors),
        f"images = clip.preprocess(picture{_size(settings)})",
        "",
    ]
    for name, why in left_out.items():
        lines += wrap(f"{name} is left out: {why}", WIDTH, **COMMENT)
    if names:
        made, chosen = _methods(names, settings)
        imports |= made
        if not SAMPLING & set(names):
            imports.add((f"{PACKAGE}.attr", "attribute_many"))
        lines += [*chosen, *_explained(names)]
    elif left_out:
        lines.append("")
    lines += [
        "with torch.no_grad():",
        "    logits = clip(images)[0]",
        "for text, share in zip(clip.texts, logits.softmax(-1).tolist(), strict=True):",
        '    print(f"{share:6.1%}  {text}")',
    ]
    if names:
        imports |= {(f"{PACKAGE}.visualization", n) for n in ("compare_figure", "save_figure")}
        lines += [*_at_point(settings), *_compared(settings)]
    return imports, "\n".join([*lines, ""])


def _left_out(model: Model, settings: Settings) -> dict[str, str]:
    """Why the page shows no maps of some methods."""
    left_out = {name: model.lacks[name] for name in settings.methods if name in model.lacks}
    if settings.form in CONTRASTING and len(settings.texts) + len(settings.distractors) == 1:
        why = f'form "{settings.form}" contrasts texts, and there is one'
        left_out |= {name: why for name in settings.methods if name in WITH_FORM}
    return left_out


def _methods(names: list[str], settings: Settings) -> tuple[Imports, list[str]]:
    imports: Imports = set()
    lines = ["methods = {"]
    for name in names:
        if name in WITH_FORM:
            kind = WITH_FORM[name].__name__
            form = "None" if settings.feature_surgery is None else quote(settings.feature_surgery)
            lines.append(f'    "{name}": {kind}(clip, feature_surgery={form}),')
            imports.add((PACKAGE, kind))
        else:
            lines.append(f'    "{name}": METHODS["{name}"](clip),')
            imports.add((PACKAGE, "METHODS"))
    return imports, [*lines, "}"]


def _at_point(settings: Settings) -> list[str]:
    if settings.point is None:
        return []
    x, y = settings.point
    return [
        "for name, of_texts in maps.items():  # scores at a point",
        "    rows, columns = of_texts.shape[1:]",
        f"    row = min(int({y} * rows), rows - 1)",
        f"    column = min(int({x} * columns), columns - 1)",
        "    print(name, of_texts[:, row, column].tolist())",
    ]


def _compared(settings: Settings) -> list[str]:
    return [
        "",
        "figure = compare_figure(",
        "    [picture],",
        "    {name: of_texts[None] for name, of_texts in maps.items()},",
        "    clip.texts,",
        *_look(settings),
        ")",
        'save_figure(figure, "maps.png")',
    ]


def _look(settings: Settings) -> list[str]:
    return [
        f'    sign="{settings.sign}",',
        f"    cmap={'None' if settings.cmap is None else quote(settings.cmap)},",
        f"    alpha_overlay={settings.opacity},",
    ]


def _explained(names: list[str]) -> list[str]:
    if not SAMPLING & set(names):
        return [
            "# (K, h, w) of the K texts, raw and signed",
            "batches = attribute_many(methods, images)",
            "maps = {name: batch[0].detach() for name, batch in batches.items()}",
        ]
    return [
        "targets = range(len(clip.texts))  # text by text: samples are drawn anew",
        "maps = {  # (K, h, w) of the K texts, raw and signed",
        "    name: torch.cat([method.attribute_all(images, [i])[0].detach() for i in targets])",
        "    for name, method in methods.items()",
        "}",
    ]


def _segmentation(model: Model, settings: Settings) -> tuple[Imports, str]:
    background = listed(settings.background) if settings.background else "None"
    return _task(
        model.made(settings.texts),
        "segment",
        "segmentation_figure",
        f"(found,) = segment(clip, [picture]{_size(settings)}, background={background})\n"
        "print(found.shares())",
        "found",
    )


def _points(model: Model, settings: Settings) -> tuple[Imports, str]:
    return _task(
        model.made(settings.texts, settings.distractors),
        "prompts",
        "points_figure",
        f'options = {{"instances": "{settings.instances}", "boxes": {settings.boxes}}}\n'
        f"(of_image,) = prompts(clip, [picture]{_size(settings)}, **options)\n"
        "for prompt in of_image:\n"
        "    print(prompt.text, prompt.points[prompt.labels == 1].tolist(), prompt.box)",
        "of_image",
    )


def _words(model: Model, settings: Settings) -> tuple[Imports, str]:
    return _task(
        model.made((settings.caption,), extra="templates=()"),
        "word_maps",
        "words_figure",
        f"(found,) = word_maps(clip, [picture], [{quote(settings.caption)}]{_size(settings)})\n"
        "print(found.shared())",
        "found",
        _look(settings),
    )


def _task(
    clip: str, task: str, figure: str, body: str, result: str, look: Sequence[str] = ()
) -> tuple[Imports, str]:
    imports = {
        ("", "import numpy as np"),
        (f"{PACKAGE}.tasks", task),
        (f"{PACKAGE}.tasks.figures", figure),
        (f"{PACKAGE}.visualization", "save_figure"),
    }
    drawn = f"{figure}(np.asarray(picture), {result})"
    if look:
        drawn = "\n".join([f"{figure}(", "    np.asarray(picture),", f"    {result},", *look, ")"])
    return imports, f'{clip}\n{body}\n\nfigure = {drawn}\nsave_figure(figure, "{task}.png")\n'


_TABS: dict[str, Callable[[Model, Settings], tuple[Imports, str]]] = {
    "maps": _maps,
    "segmentation": _segmentation,
    "points": _points,
    "words": _words,
}
