"""Queries other than texts: images, regions, means, differences and features.

`ZeroShotClassifier.with_queries` takes them.
"""

from captum_clip_surgery.queries._types import (
    DifferenceQuery,
    FeatureQuery,
    ImageQuery,
    MeanQuery,
    Query,
    RegionQuery,
)

__all__ = [
    "DifferenceQuery",
    "FeatureQuery",
    "ImageQuery",
    "MeanQuery",
    "Query",
    "RegionQuery",
]
