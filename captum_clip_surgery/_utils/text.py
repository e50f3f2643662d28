"""Words of messages and of file names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

#: Smallest likeness, as of difflib, of a suggested name; "size" for "stride" would be misleading.
LIKENESS = 0.7


def quantity(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1.

    Args:
        number: The number.
        noun: The noun in the singular; its plural ends in "s", or in "es" after "s".

    Example::

        >>> quantity(1, "image"), quantity(2, "class")
        ('1 image', '2 classes')
    """
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def slug(name: str) -> str:
    """Return a name as a part of a file's name: words joined by hyphens, at most 40 characters.

    Example::

        >>> slug("A dog, on grass!")
        'a-dog-on-grass'
    """
    return "-".join(re.findall(r"\w+", name.lower()))[:40]


def did_you_mean(name: str, known: Iterable[str], count: int = 1) -> str:
    """Return the end of a message on an unknown name: the known names most like it, or "".

    Args:
        name: The unknown name.
        known: Known names; upper and lower case count as equal.
        count: Maximum number of names.

    Example::

        >>> did_you_mean("legrat", ["LeGrad", "GradCam"]), did_you_mean("zebra", ["LeGrad"])
        ("; did you mean 'LeGrad'?", '')
    """
    by_lower = {each.lower(): each for each in known}
    matches = get_close_matches(name.lower(), by_lower, count, LIKENESS)
    close = [repr(by_lower[each]) for each in matches]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def join_reasons(reasons: Mapping[str, str]) -> str:
    """Return names, each with its reason, in one line.

    Example::

        >>> join_reasons({"LeGrad": "there are no gradients", "KernelShap": "too slow"})
        'LeGrad: there are no gradients; KernelShap: too slow'
    """
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
