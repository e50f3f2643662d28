"""Check-ups before maps are trusted: of a checkpoint, and of a method's maps on it.

`tower_report` checks a checkpoint's patch tokens and texts. `trust` checks whether maps depend on
the text, the image and the weights, and whether they are stable.
"""

from captum_clip_surgery.diagnostics._tower import TowerReport, tower_report
from captum_clip_surgery.diagnostics._trust import TrustReport, trust

__all__ = ["TowerReport", "TrustReport", "tower_report", "trust"]
