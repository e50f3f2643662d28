"""Measures of explanations."""

from captum_clip_surgery.metrics.localization import Localization, localization

__all__ = ["Localization", "localization"]
