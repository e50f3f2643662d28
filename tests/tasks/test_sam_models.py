"""Models that turn prompts into masks, from folders and files, held to their own libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.tasks import Prompt, Sam, prompts, sam_inputs
from tests._helpers.cases import each

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
SCENE = Scenes("test", 1, 90, objects=[2])[0]
IMAGE = Image.fromarray(SCENE.image).resize((90, 60))


@pytest.fixture(scope="module")
def found() -> list[Prompt]:
    return prompts(ZeroShotClassifier.demo(SCENE.nouns), [IMAGE], threshold=0.6)[0]


@pytest.fixture
def sam2(tmp_path: Path) -> Path:
    """A narrow, random SAM 2 in a folder."""
    pytest.importorskip("transformers", minversion="4.56")
    torch.manual_seed(0)
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[8, 4, 14, 7],
        global_attention_blocks=[3],
    )
    config = transformers.Sam2Config(
        vision_config=dict(
            backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=16
        ),
        prompt_encoder_config=dict(hidden_size=16, mask_input_channels=4),
        mask_decoder_config=dict(
            hidden_size=16,
            mlp_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            iou_head_hidden_dim=8,
        ),
    )
    model = transformers.Sam2Model(config)
    for parameter in model.parameters():  # its own start is so small that prompts hardly matter
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "sam2")
    processor = transformers.Sam2Processor(transformers.Sam2ImageProcessor())
    processor.save_pretrained(tmp_path / "sam2")
    return tmp_path / "sam2"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_masks_of_a_sam_2_are_those_of_transformers(sam2: Path, found: list[Prompt]) -> None:
    model = transformers.Sam2Model.from_pretrained(sam2).eval()
    processor = transformers.Sam2Processor.from_pretrained(sam2)
    inputs = processor(images=IMAGE, return_tensors="pt", **sam_inputs([found]))
    with torch.no_grad():
        outputs = model(**inputs)
    (candidates,) = processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])
    expected = [of[i] for of, i in zip(candidates, outputs.iou_scores[0].argmax(-1), strict=True)]
    masks = Sam.from_pretrained(sam2, CPU).masks(IMAGE, found)
    assert [mask.shape for mask in masks] == [(60, 90)] * len(found)
    for mask, other in zip(masks, expected, strict=True):
        assert np.array_equal(mask, other.numpy())
    assert any(mask.any() and not mask.all() for mask in masks)
    # The hub's folders of SAM 2 are for videos, and have weights that an image does not need.
    state = load_file(sam2 / "model.safetensors")
    state["memory_encoder.projection.weight"] = torch.zeros(2)
    save_file(state, sam2 / "model.safetensors", {"format": "pt"})
    edit(sam2, model_type="sam2_video", num_maskmem=7, memory_attention_num_layers=4)
    for mask, other in zip(Sam.from_pretrained(sam2, CPU).masks(IMAGE, found), masks, strict=True):
        assert np.array_equal(mask, other)


def test_folders_of_a_sam_2_lead_to_no_code_and_lack_nothing(sam2: Path) -> None:
    whole = json.loads((sam2 / "config.json").read_text())
    parts = {"auto_map": {"AutoModel": "evil.Model"}}, {"model_type": "timm_wrapper"}
    for change in parts:
        vision = whole["vision_config"]
        changed = vision | {"backbone_config": vision["backbone_config"] | change}
        edit(sam2, vision_config=changed)
        with pytest.raises(ValueError, match=rf"backbone_config\.{next(iter(change))} is"):
            Sam.from_pretrained(sam2, CPU)
    edit(sam2, **whole)
    edit(sam2, model_type="edgetam")
    with pytest.raises(ValueError, match="expected one of sam, sam2, sam2_video"):
        Sam.from_pretrained(sam2, CPU)
    edit(sam2, **whole)
    state = load_file(sam2 / "model.safetensors")
    name = next(name for name in sorted(state) if name.startswith("mask_decoder"))
    del state[name]
    save_file(state, sam2 / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 weights of a SAM, such as {name}"):
        Sam.from_pretrained(sam2, CPU)


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """segment_anything's model of the width of ViT-B, otherwise narrow, with random weights."""
    library = pytest.importorskip("segment_anything")
    from segment_anything import modeling
    from segment_anything.modeling.transformer import TwoWayTransformer

    def build() -> nn.Module:
        return modeling.Sam(
            modeling.ImageEncoderViT(
                depth=1, embed_dim=768, num_heads=12, out_chans=16, mlp_ratio=0.1, window_size=8
            ),
            modeling.PromptEncoder(16, (64, 64), (1024, 1024), mask_in_chans=4),
            modeling.MaskDecoder(
                transformer_dim=16, transformer=TwoWayTransformer(1, 16, num_heads=2, mlp_dim=8)
            ),
        )

    monkeypatch.setitem(library.sam_model_registry, "vit_b", build)
    torch.manual_seed(0)
    return build().eval()


@pytest.mark.slow
def test_masks_of_an_original_file_are_those_of_segment_anything(
    tmp_path: Path, original: nn.Module, found: list[Prompt]
) -> None:
    from segment_anything import SamPredictor

    torch.save(original.state_dict(), tmp_path / "sam.pth")
    masks = Sam.from_pretrained(tmp_path / "sam.pth", CPU).masks(IMAGE, found)
    predictor = SamPredictor(original)
    predictor.set_image(np.asarray(IMAGE))
    for mask, prompt in zip(masks, found, strict=True):
        candidates, scores, _ = predictor.predict(prompt.points, prompt.labels)
        assert np.array_equal(mask, candidates[scores.argmax()])
        assert mask.shape == (60, 90)


FILES: dict[str, tuple[Any, str]] = {
    "SAM 2": ({"model": {"sam_mask_decoder.iou_token.weight": torch.ones(1)}}, "in transformers'"),
    "another model": ({"conv.weight": torch.ones(2)}, "is not a checkpoint of SAM: expected"),
    "a list": ([torch.ones(2)], "is not a checkpoint of SAM: expected"),
    "a part": (
        {"image_encoder.patch_embed.proj.weight": torch.ones(768, 3, 16, 16)},
        "lacks .* weights of a SAM, such as image_encoder",
    ),
}


@each("name", FILES)
def test_files_that_are_no_sam_are_refused(tmp_path: Path, original: nn.Module, name: str) -> None:
    content, message = FILES[name]
    torch.save(content, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match=message):
        Sam.from_pretrained(tmp_path / "sam.pth", CPU)
