"""Decomposition of similarities: how much each block, head and patch contributed to a cosine.

Once the statistics of the last norm are known, an embedding is a linear function of the residual
stream, and the stream is a sum of what each attention head moved from each patch and what each
feed-forward added. The cosine of an image and a text is therefore an exact sum over these parts,
with nothing left over. It takes no gradients of the model and no approximations.

References:
    Elhage et al.: A Mathematical Framework for Transformer Circuits. Transformer Circuits Thread,
    2021.

    Gandelsman, Efros, Steinhardt: Interpreting CLIP's image representation via text-based
    decomposition. ICLR 2024.
"""

from captum_clip_surgery.decomposition._decompose import decompose, describe_head
from captum_clip_surgery.decomposition._parts import Decomposition, Part

__all__ = ["Decomposition", "Part", "decompose", "describe_head"]
