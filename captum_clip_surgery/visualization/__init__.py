"""Maps over pictures, as figures to look at and to save."""

from captum_clip_surgery.visualization.charts import bar_figure, report_figure
from captum_clip_surgery.visualization.grids import compare_figure
from captum_clip_surgery.visualization.labels import (
    add_legend,
    hue,
    labels_figure,
    show_labels,
    winner_figure,
)
from captum_clip_surgery.visualization.layout import WIDTHS, picture_pair, tight_grid
from captum_clip_surgery.visualization.overlays import show_map, visualize_attribution
from captum_clip_surgery.visualization.pictures import (
    PIXELS,
    drawn_aspect,
    greyed,
    show_picture,
    shrunk,
)
from captum_clip_surgery.visualization.saving import FORMATS, save_figure
from captum_clip_surgery.visualization.scales import COLOURS, SIGNS
from captum_clip_surgery.visualization.views import VIEWS, View

__all__ = [
    "COLOURS",
    "FORMATS",
    "PIXELS",
    "SIGNS",
    "VIEWS",
    "WIDTHS",
    "View",
    "add_legend",
    "bar_figure",
    "compare_figure",
    "drawn_aspect",
    "greyed",
    "hue",
    "labels_figure",
    "picture_pair",
    "report_figure",
    "save_figure",
    "show_labels",
    "show_map",
    "show_picture",
    "shrunk",
    "tight_grid",
    "visualize_attribution",
    "winner_figure",
]
