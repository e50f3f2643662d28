"""Names of methods in their papers, and a one-sentence description of each.

`METHODS` has names for Python and the command line; figures and the page show these titles.
"""

from __future__ import annotations

#: Title and sentence by name in `METHODS`.
DESCRIPTIONS = {
    "CLIP": ("CLIP", "Cosine of every patch with the text, from the model as it is."),
    "CLIPSurgery": (
        "CLIP Surgery",
        "Cosine of every patch with the text after a second path of attention between values, "
        "without what all texts have in common.",
    ),
    "CLIPSurgeryFine": (
        "CLIP Surgery, averaged",
        "Mean of the maps of shifted and enlarged copies of the image: finer, and four times "
        "slower.",
    ),
    "ArchitectureSurgery": (
        "Architecture surgery",
        "The second path of attention of CLIP Surgery only; the map keeps what texts have in "
        "common.",
    ),
    "FeatureSurgery": (
        "Feature surgery",
        "CLIP's own patches without what all texts have in common, the other half of CLIP Surgery.",
    ),
    "MaskCLIP": ("MaskCLIP", "The last block without attention: each patch keeps its own value."),
    "SCLIP": (
        "SCLIP",
        "The last block with attention between similar queries and between similar keys.",
    ),
    "CLIPtrase": (
        "CLIPtrase",
        "The last block with attention between similar queries, similar keys and similar values.",
    ),
    "ClearCLIP": (
        "ClearCLIP",
        "The last block with attention between queries, without its residual and feed-forward "
        "layer.",
    ),
    "NACLIP": (
        "NACLIP",
        "The last block with attention between keys that prefers neighboring patches.",
    ),
    "GEM": ("GEM", "A second path of attention between queries, keys and values, averaged."),
    "ResCLIP": (
        "ResCLIP",
        "NACLIP's last block, mixed with the mean attention of middle blocks.",
    ),
    "SCCLIP": (
        "SC-CLIP",
        "The last block after outlier patches were replaced and similar patches averaged.",
    ),
    "SFP": (
        "SFP",
        "The last block after patches that attract the class token were replaced and similar "
        "patches averaged.",
    ),
    "DirectEffect": (
        "Direct effects",
        "What attention moved from each patch into the embedding; the parts add up to the cosine.",
    ),
    "LeGrad": ("LeGrad", "How the similarity grows with the attention that each patch receives."),
    "AttentionRelevance": (
        "Attention relevance",
        "Attention of the last block, weighted by its gradient (Chefer et al.).",
    ),
    "AttentionRelevanceAll": (
        "Attention relevance, all blocks",
        "Attention of all blocks, weighted by its gradient (Chefer et al.).",
    ),
    "AttentionRollout": (
        "Attention rollout",
        "Attention multiplied over all blocks; the same map for every text.",
    ),
    "RawAttention": (
        "Raw attention",
        "Attention of the last block; the same map for every text.",
    ),
    "GradECLIP": (
        "Grad-ECLIP",
        "Values of the last block, weighted by gradients and by similar keys.",
    ),
    "GradECLIPHeads": (
        "Grad-ECLIP, by head",
        "Grad-ECLIP with the model's own attention heads instead of one.",
    ),
    "GradCam": ("Grad-CAM", "Patch tokens before the last block, weighted by their gradients."),
    "GuidedGradCam": ("Guided Grad-CAM", "Grad-CAM times guided backpropagation; ResNets only."),
    "Saliency": ("Saliency", "Size of the logit's gradient at every pixel."),
    "InputXGradient": ("Input x gradient", "The logit's gradient at every pixel, times the pixel."),
    "IntegratedGradients": (
        "Integrated Gradients",
        "Gradients summed on the way from a gray image to this one; slow.",
    ),
    "Occlusion": ("Occlusion", "Drop of the logit when a cell of the image is hidden; slow."),
    "KernelShap": (
        "KernelSHAP",
        "Shapley values of cells of the image, estimated from 100 samples; slow.",
    ),
}


def title_of(name: str) -> str:
    """Return a method's name as in its paper; names of your own stay as they are.

    Example::

        >>> title_of("GradECLIP"), title_of("Mine")
        ('Grad-ECLIP', 'Mine')
    """
    return DESCRIPTIONS[name][0] if name in DESCRIPTIONS else name


def sentence_of(name: str) -> str:
    """Return a sentence on what a method does; "" for methods of your own."""
    return DESCRIPTIONS[name][1] if name in DESCRIPTIONS else ""
