"""Applications of CLIP Surgery: segmentation, recognition, SAM prompts, words, pairs of images.

Figures of the results are in `tasks.figures`.
"""

from captum_clip_surgery.tasks._interactions import Interactions, interactions
from captum_clip_surgery.tasks._pairs import PairExplanation, RegionPair, explain_pair
from captum_clip_surgery.tasks._prompts import Prompt
from captum_clip_surgery.tasks._recognition import Recognition, recognize
from captum_clip_surgery.tasks._refinement import refine_maps
from captum_clip_surgery.tasks._sam import points_from_map, prompts, sam_inputs
from captum_clip_surgery.tasks._sam_models import Sam
from captum_clip_surgery.tasks._segmentation import class_scores, segment
from captum_clip_surgery.tasks._segmenter import Segmentation
from captum_clip_surgery.tasks._vocabulary import default_background
from captum_clip_surgery.tasks._word_maps import WordMaps, maps_of_own_texts, word_maps

__all__ = [
    "Interactions",
    "PairExplanation",
    "Prompt",
    "Recognition",
    "RegionPair",
    "Sam",
    "Segmentation",
    "WordMaps",
    "class_scores",
    "default_background",
    "explain_pair",
    "interactions",
    "maps_of_own_texts",
    "points_from_map",
    "prompts",
    "recognize",
    "refine_maps",
    "sam_inputs",
    "segment",
    "word_maps",
]
