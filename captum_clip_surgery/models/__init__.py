"""CLIP models: loading by name, the catalog, and checks that every attribution makes."""

from captum_clip_surgery.models.catalog import ModelEntry, list_models
from captum_clip_surgery.models.image_encoder import ImageEncoder

__all__ = ["ImageEncoder", "ModelEntry", "list_models"]
