"""Allow-lists of the options that may reach transformers, by file.

No option leads to code, a hub or a path: there is no `auto_map`, no attention kernel, backbone or
adapter by name, no vocabulary file by path, and no argument of sentencepiece.
"""

from __future__ import annotations

from collections.abc import Mapping

from captum_clip_surgery.models._schema import ListOf, Table

LAYERS, EDGE, WIDTH, VOCABULARY = range(1, 1_001), range(1, 1_025), range(2**20), range(2**26)
WORDS = ListOf(str, range(1_001))
_OFF = (
    "is_decoder", "add_cross_attention", "output_attentions", "output_hidden_states",
    "torchscript", "use_bfloat16", "tie_encoder_decoder",
)  # fmt: skip
_FREE = (
    "do_sample", "early_stopping", "gradient_checkpointing", "is_encoder_decoder",
    "output_past", "output_scores", "remove_invalid_values", "return_dict_in_generate",
    "tf_legacy_loss", "tie_word_embeddings", "use_cache",
)  # fmt: skip
_NUMBERS = (
    "chunk_size_feed_forward", "diversity_penalty", "encoder_no_repeat_ngram_size",
    "initializer_range", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "repetition_penalty", "temperature",
    "top_k", "top_p", "typical_p",
)  # fmt: skip
_STRINGS = (
    "_name_or_path", "dtype", "torch_dtype", "transformers_version", "tokenizer_class",
    "prefix", "problem_type",
)  # fmt: skip
_TOKEN_IDS = ("bos", "eos", "pad", "sep", "decoder_start", "forced_bos", "forced_eos")

#: Options that do not affect a model's size: older versions of transformers wrote them for all.
ANY: Table = {
    "architectures?": WORDS,
    **{f"{word}?": str for word in _STRINGS},
    **{f"{flag}?": (False,) for flag in _OFF},
    **{f"{flag}?": bool for flag in _FREE},
    **{f"{number}?": float for number in _NUMBERS},
    **{f"{token}_token_id?": VOCABULARY for token in _TOKEN_IDS},
    **dict.fromkeys(("bad_words_ids?", "begin_suppress_tokens?", "suppress_tokens?"), ()),
    **dict.fromkeys(("cross_attention_hidden_size?", "finetuning_task?"), ()),
    **dict.fromkeys(("exponential_decay_length_penalty?", "task_specific_params?"), ()),
    "pruned_heads?": {},
    "return_dict?": (True,),
    "id2label?": {"*": str},
    "label2id?": {"*": VOCABULARY},
}
_TEXT: Table = {
    **ANY,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": WIDTH,
    "classifier_dropout?": float,
}
#: Options that Chinese BERTs write and no code reads.
UNREAD: Table = {
    "directionality": str,
    "pooler_fc_size": WIDTH,
    "pooler_num_attention_heads": WIDTH,
    "pooler_num_fc_layers": WIDTH,
    "pooler_size_per_head": WIDTH,
    "pooler_type": str,
}
_BERT: Table = {
    **_TEXT,
    "model_type": ("bert", "roberta", "xlm-roberta"),
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTH,
    "intermediate_size": WIDTH,
    "hidden_act": str,
    "hidden_dropout_prob": float,
    "attention_probs_dropout_prob": float,
    "type_vocab_size": WIDTH,
    "layer_norm_eps": float,
    "position_embedding_type": ("absolute",),
    **UNREAD,
}
_T5: Table = {
    **_TEXT,
    "model_type": ("mt5",),
    "d_model": WIDTH,
    "d_kv": WIDTH,
    "d_ff": WIDTH,
    "num_layers": LAYERS,
    "num_decoder_layers?": LAYERS,
    "num_heads": WIDTH,
    "relative_attention_num_buckets": WIDTH,
    "relative_attention_max_distance": WIDTH,
    "dropout_rate": float,
    "layer_norm_epsilon": float,
    "initializer_factor": float,
    "feed_forward_proj": ("relu", "gelu", "gated-gelu", "gated-silu"),
    "dense_act_fn": str,
    "is_gated_act": bool,
}
_M2M: Table = {
    **_TEXT,
    "model_type": ("m2m_100",),
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": WIDTH,
    "decoder_attention_heads": WIDTH,
    "encoder_ffn_dim": WIDTH,
    "decoder_ffn_dim": WIDTH,
    "encoder_layerdrop": float,
    "decoder_layerdrop": float,
    "num_hidden_layers": LAYERS,
    "activation_function": str,
    "activation_dropout": float,
    "attention_dropout": float,
    "dropout": float,
    "init_std": float,
    "scale_embedding": bool,
}
#: Text towers that open_clip can use (its `hf_configs.arch_dict`).
TEXT_TOWERS: Mapping[str, Table] = {
    kind: table for table in (_BERT, _T5, _M2M) for kind in table["model_type"]
}
_SAM_PART: Table = {
    **ANY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": WIDTH,
    "hidden_act": str,
    "mlp_dim?": WIDTH,
    "layer_norm_eps": float,
    "image_size": EDGE,
    "patch_size": range(16, 1_025),  # as SAM's: its attention takes the fourth power of the grid
}
SAM: Table = {
    **ANY,
    "model_type": ("sam",),
    "vision_config": {
        **_SAM_PART,
        "model_type": ("sam_vision_model", ""),
        "output_channels": WIDTH,
        "num_channels": (3,),
        "attention_dropout": float,
        "dropout": float,
        "initializer_factor": float,
        "qkv_bias": bool,
        "mlp_ratio": float,
        "use_abs_pos": bool,
        "use_rel_pos": bool,
        "window_size": range(2**12),
        "global_attn_indexes": ListOf(range(1_000), range(1_000)),
        "num_pos_feats": WIDTH,
        "projection_dim": WIDTH,
        "scale": [WIDTH, float],
    },
    "prompt_encoder_config": {
        **_SAM_PART,
        "model_type": ("sam_prompt_encoder", ""),
        "mask_input_channels": WIDTH,
        "num_point_embeddings": range(1, 101),
        "image_embedding_size": EDGE,
    },
    "mask_decoder_config": {
        **_SAM_PART,
        "model_type": ("sam_mask_decoder", ""),
        "attention_downsample_rate": range(1, 2**12),
        "num_multimask_outputs": range(1, 101),
        "iou_head_depth": LAYERS,
        "iou_head_hidden_dim": WIDTH,
    },
}
_EDGE_PAIR = ListOf(EDGE, range(2, 3))
_STAGES = range(1, 17)
_PER_STAGE = ListOf(WIDTH, _STAGES)
_HIERA: Table = {
    **ANY,
    "model_type": ("sam2_hiera_det_model",),
    **dict.fromkeys(("hidden_size", "num_attention_heads", "num_query_pool_stages"), WIDTH),
    **dict.fromkeys(("image_size", "patch_kernel_size", "patch_stride"), _EDGE_PAIR),
    **dict.fromkeys(("query_stride", "window_positional_embedding_background_size"), _EDGE_PAIR),
    "patch_padding": ListOf(range(1_025), range(2, 3)),
    "num_channels": (3,),
    "blocks_per_stage": ListOf(LAYERS, _STAGES),
    "embed_dim_per_stage": _PER_STAGE,
    "num_attention_heads_per_stage": _PER_STAGE,
    "window_size_per_stage": _PER_STAGE,
    "global_attention_blocks": ListOf(range(1_000), range(1_000)),
    "mlp_ratio": float,
    "hidden_act": str,
    "layer_norm_eps": float,
}
#: The parts of SAM 2 that segment one image; those for videos are not read.
SAM2: Table = {
    "vision_config": {
        **ANY,
        "model_type": ("sam2_vision_model", ""),
        "backbone_config": _HIERA,
        "backbone_channel_list": _PER_STAGE,
        "backbone_feature_sizes": ListOf(_EDGE_PAIR, _STAGES),
        "fpn_hidden_size": WIDTH,
        **dict.fromkeys(("fpn_kernel_size", "fpn_stride", "num_feature_levels"), _STAGES),
        "fpn_padding": range(17),
        "fpn_top_down_levels": ListOf(range(17), range(17)),
        "hidden_act": str,
        "layer_norm_eps": float,
    },
    "prompt_encoder_config": {
        **_SAM_PART,
        "model_type": ("sam2_prompt_encoder", ""),
        "mask_input_channels": WIDTH,
        "num_point_embeddings": range(1, 101),
        "scale": [WIDTH, float],
    },
    "mask_decoder_config": {
        **_SAM_PART,
        "model_type": ("sam2_mask_decoder", ""),
        "attention_downsample_rate": range(1, 2**12),
        "num_multimask_outputs": range(1, 101),
        "iou_head_depth": LAYERS,
        "iou_head_hidden_dim": WIDTH,
        "dynamic_multimask_via_stability": bool,
        "dynamic_multimask_stability_delta": float,
        "dynamic_multimask_stability_thresh": float,
    },
}
_EDGES: Table = dict.fromkeys(("height", "width", "longest_edge"), EDGE)
_SAM_IMAGES: Table = {
    "image_processor_type": tuple(
        f"{name}ImageProcessor{end}" for name in ("Sam", "Sam2") for end in ("", "Fast", "Pil")
    ),
    "feature_extractor_type": ("SamFeatureExtractor",),
    "processor_class": ("SamProcessor", "Sam2Processor", "Sam2VideoProcessor"),
    **{f"do_{step}?": bool for step in ("convert_rgb", "normalize", "pad", "rescale", "resize")},
    **{f"{key}?": _EDGES for key in ("size", "mask_size", "pad_size", "mask_pad_size")},
    **{f"image_{key}?": ListOf(float, range(3, 4)) for key in ("mean", "std")},
    **dict.fromkeys(("crop_size?", "data_format?", "device?", "input_data_format?"), ()),
    **dict.fromkeys(("default_to_square?", "do_center_crop?", "return_tensors?"), ()),
    **dict.fromkeys(("disable_grouping?", "image_seq_length?"), ()),
    "resample": range(6),
    "rescale_factor": float,
}

_SAM_PROCESSOR: Table = {
    **_SAM_IMAGES,
    "image_processor": _SAM_IMAGES,
    "target_size": EDGE,
    "point_pad_value": range(-10, 0),
}

_TOKEN: Table = {
    "__type": ("AddedToken",),
    "content": str,
    **dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), bool),
}
_TOKENS: Table = {
    **{f"{kind}_token?": [str, _TOKEN] for kind in ("bos", "eos", "unk", "sep", "pad", "cls")},
    "mask_token?": [str, _TOKEN],
    "additional_special_tokens?": ListOf([str, _TOKEN], range(10_001)),
    "extra_special_tokens?": [
        ListOf([str, _TOKEN], range(10_001)),
        {"*": [str, _TOKEN]},
    ],
}
#: Tokenizers whose class transformers may import by name.
_TOKENIZED = (
    "Bert", "Roberta", "XLMRoberta", "T5", "Nllb", "Gemma", "CLIP", "Siglip", "DistilBert",
    "Siglip2", "MPNet", "Albert", "Camembert", "Electra", "DebertaV2", "GPT2", "Bart", "MBart",
    "M2M100", "Llama", "Qwen2", "PreTrained",
)  # fmt: skip
TOKENIZERS = (
    *(f"{name}{end}" for name in _TOKENIZED for end in ("Tokenizer", "TokenizerFast")),
    "TokenizersBackend",
)
_FLAGS = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "add_dummy_prefix_space", "is_local",
    "local_files_only", "clean_up_tokenization_spaces", "do_basic_tokenize", "do_lower_case",
    "keep_accents", "legacy", "legacy_behaviour", "remove_space",
    "spaces_between_special_tokens", "split_special_tokens", "strip_accents",
    "tokenize_chinese_chars", "trim_offsets", "use_default_system_prompt",
)  # fmt: skip
#: Options of a tokenizer. Paths are allowed if they are null or never opened.
TOKENIZER: Table = {
    **_TOKENS,
    **{f"{flag}?": bool for flag in _FLAGS},
    "added_tokens_decoder": {"*": _TOKEN},
    "tokenizer_class?": TOKENIZERS,
    "processor_class?": str,
    "backend?": ("tokenizers", "sentencepiece"),
    "model_max_length?": float,
    "model_input_names?": WORDS,
    "padding_side?": ("left", "right"),
    "truncation_side?": ("left", "right"),
    "chat_template?": [str, ListOf({"name": str, "template": str}, range(101))],
    "errors": ("strict", "replace", "ignore"),
    "extra_ids?": range(1_001),
    "init_inputs": ListOf(str, range(1)),
    "sp_model_kwargs?": {},
    "never_split?": WORDS,
    "src_lang?": str,
    "tgt_lang?": str,
    "unk_id?": VOCABULARY,
    "name_or_path?": str,
    "special_tokens_map_file?": str,
    "vocab_file?": (),
    "merges_file?": (),
    "tokenizer_file?": (),
    "spm_file?": (),
}
#: Further types of model whose tokenizer a folder may name by `model_type`.
OTHER_TOKENIZERS = (
    "clip", "siglip", "siglip2", "metaclip_2", "altclip", "chinese_clip", "tipsv2", "t5", "gemma",
    "distilbert", "mpnet", "albert",
)  # fmt: skip
TOKENIZER_FILES: Mapping[str, Table] = {
    "tokenizer_config.json": TOKENIZER,
    "special_tokens_map.json": _TOKENS,
    "added_tokens.json": {"*": VOCABULARY},
}
SAM_FILES: Mapping[str, Table] = {
    "preprocessor_config.json": _SAM_IMAGES,
    "processor_config.json": _SAM_PROCESSOR,
}
