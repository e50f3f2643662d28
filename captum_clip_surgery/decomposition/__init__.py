"""Similarities taken apart: which block, head and patch contributed what to a cosine.

An embedding is a linear reading of the residual stream once the statistics of the last norm are
known, and the stream is a sum of what each attention head moved from each patch and what each
feed-forward added. The cosine of an image and a text is therefore a sum over these parts, without
gradients, approximations or anything left over.

References:
    Elhage et al.: A Mathematical Framework for Transformer Circuits. Transformer Circuits Thread,
    2021.

    Gandelsman, Efros, Steinhardt: Interpreting CLIP's image representation via text-based
    decomposition. ICLR 2024.
"""

from captum_clip_surgery.decomposition._decompose import decompose, describe_head
from captum_clip_surgery.decomposition._parts import Decomposition, Part

__all__ = ["Decomposition", "Part", "decompose", "describe_head"]
