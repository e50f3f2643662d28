"""Allow-lists of the options in the files of a dual encoder of transformers.

As in `_transformers_tables`, no option leads to code, a hub or a path: there is no `auto_map`, no
attention kernel, quantizer or adapter by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from captum_clip_surgery.models._schema import ListOf, Table
from captum_clip_surgery.models._transformers_tables import (
    ANY,
    LAYERS,
    UNREAD,
    VOCABULARY,
    WIDTH,
    WORDS,
)

SIDE = range(1, 2**14)

_TOWER: Table = {
    **ANY,
    "model_type": str,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTH,
    "hidden_act": str,
    "layer_norm_eps": float,
    "attention_dropout": float,
    "attention_probs_dropout_prob": float,
    "hidden_dropout_prob": float,
    "dropout": float,
    "initializer_factor": float,
    "projection_dim": WIDTH,
    "_attn_implementation_autoset": bool,
}
_VISION: Table = {
    **_TOWER,
    "image_size": SIDE,
    "patch_size": SIDE,
    "num_channels": (3,),
    "num_patches": range(1, 2**16),
    "vision_use_head": bool,
    # TIPS v2
    "mlp_ratio": float,
    "qkv_bias": bool,
    "layerscale_value": float,
    "drop_path_rate": float,
    "use_swiglu_ffn": bool,
    "num_register_tokens": range(1_000),
    "apply_layernorm": bool,
    "reshape_hidden_states": bool,
    "stage_names": WORDS,
    "out_features?": WORDS,
    "out_indices?": ListOf(range(-1_000, 1_001), range(1_001)),
}
_TEXT: Table = {
    **_TOWER,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": WIDTH,
    "projection_size": WIDTH,
    # AltCLIP and Chinese CLIP
    "project_dim": WIDTH,
    "pooler_fn": ("cls", "average"),
    "learn_encoder": bool,
    "type_vocab_size": WIDTH,
    "position_embedding_type": ("absolute",),
    "classifier_dropout?": float,
    **UNREAD,
    # TIPS v2
    "scale_sqrt_depth": bool,
    "pooling_epsilon": float,
}
DUAL_ENCODER: Table = {
    **ANY,
    "model_type": str,
    "text_config": _TEXT,
    "vision_config": _VISION,
    "text_config_dict?": _TEXT,
    "vision_config_dict?": _VISION,
    "projection_dim": WIDTH,
    "logit_scale_init_value": float,
    "temperature_init_value": float,
    "initializer_factor": float,
    "_commit_hash?": str,
    "_attn_implementation_autoset": bool,
    # AltCLIP
    "num_layers": LAYERS,
    "direct_kd": bool,
    "text_model_name?": (),
    "vision_model_name?": (),
}
_EDGES: Table = dict.fromkeys(("height", "width", "shortest_edge", "longest_edge"), SIDE)
#: What is read of the table of an image processor; the rest of it is not.
IMAGES: Table = {
    "image_mean?": ListOf(float, range(3, 4)),
    "image_std?": ListOf(float, range(3, 4)),
    "do_normalize?": bool,
    "do_rescale?": bool,
    "do_center_crop?": bool,
    "rescale_factor?": float,
    "resample?": range(6),
    "size?": [SIDE, _EDGES],
    "crop_size?": [SIDE, _EDGES],
}
#: The classes of models by the `model_type` of their configuration.
MODEL_TYPES: Mapping[str, str] = {
    "clip": "CLIPModel",
    "metaclip_2": "MetaClip2Model",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "altclip": "AltCLIPModel",
    "chinese_clip": "ChineseCLIPModel",
    "tipsv2": "Tipsv2Model",
}
#: Other types of models for images and texts, which raise an error with the reason given elsewhere.
OTHER_TYPES: Mapping[str, str] = {
    "align": "AlignModel",
    "blip": "BlipModel",
    "blip-2": "Blip2Model",
    "clip_text_model": "CLIPTextModel",
    "clip_vision_model": "CLIPVisionModel",
    "clipseg": "CLIPSegModel",
    "flava": "FlavaModel",
    "groupvit": "GroupViTModel",
    "owlv2": "Owlv2Model",
    "owlvit": "OwlViTModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip_vision_model": "SiglipVisionModel",
    "vision-text-dual-encoder": "VisionTextDualEncoderModel",
    "videoprism": "VideoPrismClipModel",
    "xclip": "XCLIPModel",
}
