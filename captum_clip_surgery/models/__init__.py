"""CLIP models: loading by name, the catalog, and checks that every attribution makes."""

from captum_clip_surgery.models._catalog import ModelEntry, list_models

__all__ = ["ModelEntry", "list_models"]
