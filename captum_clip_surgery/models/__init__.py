"""CLIP models: loading by name, the catalog, and checks that every attribution makes."""

from captum_clip_surgery.models import validation
from captum_clip_surgery.models._activations import describe_activation, explain_activation
from captum_clip_surgery.models._contents import settings_digest
from captum_clip_surgery.models._guards import (
    ModelWatch,
    assert_parameters_unchanged,
    check_differentiable,
)
from captum_clip_surgery.models._transformers_files import check_sam
from captum_clip_surgery.models.catalog import ModelEntry, list_models
from captum_clip_surgery.models.image_encoder import ImageEncoder

__all__ = [
    "ImageEncoder",
    "ModelEntry",
    "ModelWatch",
    "assert_parameters_unchanged",
    "check_differentiable",
    "check_sam",
    "describe_activation",
    "explain_activation",
    "list_models",
    "settings_digest",
    "validation",
]
