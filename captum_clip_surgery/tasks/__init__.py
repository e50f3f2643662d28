"""Applications of CLIP Surgery: segmentation, recognition, SAM prompts, words, pairs of images.

Figures of the results are in `tasks.figures`.
"""

from captum_clip_surgery.tasks._segmenter import label_colors
from captum_clip_surgery.tasks._vocabulary import BACKGROUND, default_background
from captum_clip_surgery.tasks.captions import WordMaps, maps_of_own_texts, word_maps
from captum_clip_surgery.tasks.pairs import PairExplanation, RegionPair, explain_pair
from captum_clip_surgery.tasks.recognition import Recognition, recognize
from captum_clip_surgery.tasks.refinement import refine_maps
from captum_clip_surgery.tasks.sam import Prompt, points_from_map, prompts, sam_inputs
from captum_clip_surgery.tasks.sam_models import Sam
from captum_clip_surgery.tasks.segmentation import Segmentation, class_scores, segment
from captum_clip_surgery.tasks.words_by_patches import Interactions, interactions

__all__ = [
    "BACKGROUND",
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
    "label_colors",
    "maps_of_own_texts",
    "points_from_map",
    "prompts",
    "recognize",
    "refine_maps",
    "sam_inputs",
    "segment",
    "word_maps",
]
