"""Names of a data set's classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from captum_clip_surgery._utils.files import clean_text, read_text

#: Folder of the class names that come with the package.
FOLDER = Path(__file__).parent / "classes"


@dataclass(frozen=True)
class Classes:
    r"""Names of a data set's classes.

    Args:
        synonyms: For every class its names; the first one is the class's own.
        source: Where the names come from.

    Example::

        >>> classes = Classes.parse("# source: a paper\nperson, man, woman\npotted plant\n")
        >>> classes.first, classes.synonyms[0], classes.source
        (('person', 'potted plant'), ('person', 'man', 'woman'), 'a paper')
    """

    synonyms: tuple[tuple[str, ...], ...]
    source: str = ""

    @property
    def first(self) -> tuple[str, ...]:
        """The first name of every class."""
        return tuple(names[0] for names in self.synonyms)

    @property
    def background(self) -> int | None:
        """Index of the background: 0 if the first class is called so, otherwise None.

        Tools write it as "background", "Background", "_background_" or "__background__".
        """
        return 0 if self.first[0].strip("_ ").casefold() == "background" else None

    def __len__(self) -> int:
        return len(self.synonyms)

    @classmethod
    def parse(cls, text: str) -> Classes:
        """Parse one class per line: comma-separated names. Lines that begin with "#" are comments.

        A comment "# source: ..." is kept as `source`.

        Raises:
            ValueError: If there are no classes, a name is empty, or two classes have the same first
                name.
        """
        sources, rows = [], []
        for number, line in enumerate(map(str.strip, clean_text(text).split("\n")), 1):
            if "# source:" in line:
                sources.append(line.removeprefix("# source:").strip())
            if not line or line.startswith("#"):
                continue
            names = tuple(name.strip() for name in line.split(","))
            if not all(names):
                raise ValueError(f"line {number} of the classes, {line!r:.80}, has an empty name")
            rows.append(names)
        if not rows:
            raise ValueError("no classes; write one class per line, its names separated by commas")
        name, count = Counter(row[0] for row in rows).most_common(1)[0]
        if count > 1:
            raise ValueError(f"the first name {name!r:.80} belongs to {count} classes")
        return cls(tuple(rows), "; ".join(sources))

    @classmethod
    def read(cls, path: Path) -> Classes:
        """Read a file in the format of `parse`.

        Raises:
            ValueError: If the file is not UTF-8 text or `parse` raises it; the message names the
                file.
        """
        text = read_text(path)
        try:
            return cls.parse(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def named(cls, name: str) -> Classes:
        """Return the class names `classes/NAME.txt` that come with the package."""
        return cls.read(FOLDER / f"{name}.txt")
