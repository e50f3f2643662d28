"""Applications of CLIP Surgery: segmentation, recognition, prompts for SAM, maps for words.

Figures of the results are in `tasks.figures`.
"""

from captum_clip_surgery.tasks._images import ResizePolicy
from captum_clip_surgery.tasks._sliding import Windows
from captum_clip_surgery.tasks._vocabulary import BACKGROUND, Vocabulary
from captum_clip_surgery.tasks.captions import WordMaps, maps_of_own_texts, word_maps
from captum_clip_surgery.tasks.recognition import (
    Recognition,
    Recognizer,
    image_scores,
    recognize,
)
from captum_clip_surgery.tasks.sam import (
    INSTANCES,
    Prompt,
    Sam,
    points_from_map,
    prompts,
    sam_inputs,
)
from captum_clip_surgery.tasks.segmentation import (
    Segmentation,
    Segmenter,
    class_scores,
    dense_size,
    segment,
    voc_palette,
)

__all__ = [
    "BACKGROUND",
    "INSTANCES",
    "Prompt",
    "Recognition",
    "Recognizer",
    "ResizePolicy",
    "Sam",
    "Segmentation",
    "Segmenter",
    "Vocabulary",
    "Windows",
    "WordMaps",
    "class_scores",
    "dense_size",
    "image_scores",
    "maps_of_own_texts",
    "points_from_map",
    "prompts",
    "recognize",
    "sam_inputs",
    "segment",
    "voc_palette",
    "word_maps",
]
