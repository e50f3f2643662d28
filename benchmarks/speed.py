"""Cost of explaining relative to the model's own `encode_image`, measured in one process.

    python benchmarks/speed.py [--model ViT-B-16 or hf:CLIPModel] [--size 512] [--batch 8]
        [--texts 59] [--device cuda] [--dtype bf16] [--methods CLIPSurgery,LeGrad] [--compiled]
        [--json FILE]

Each round runs every case once, so that other load on the machine affects all of them alike; ratios
are taken to `encode_image` in the same round. Weights are random, which does not affect the time.
`--peer module:function` also times a callable of images (N, 3, H, W) and text features (K, C);
`--compiled` adds both passes through `torch.compile`, and the time of their first call.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from tqdm import tqdm

from captum_clip_surgery import CLIPSurgery, LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery._utils.profiling import profile_call
from captum_clip_surgery._utils.provenance import environment_info
from captum_clip_surgery._utils.tables import markdown
from captum_clip_surgery.attr._registry import choose

BASELINE = "encode_image"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DENSE = "CLIP,CLIPSurgery,ArchitectureSurgery,MaskCLIP,SCLIP,ClearCLIP,NACLIP,GEM,DirectEffect"
GRADIENTS = "LeGrad,AttentionRelevance,GradECLIP"

Case = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """A case over several rounds: seconds, ratio to the baseline in the same round, peak bytes."""

    least: float
    middle: float
    ratio: float
    peak_bytes: int | None


def classifier(name: str, texts: int, device: str, dtype: torch.dtype) -> ZeroShotClassifier:
    """Return a model of random weights, with random text features and an empty one."""
    torch.manual_seed(0)
    if name.startswith("hf:"):
        model = of_transformers(name.removeprefix("hf:")).to(device, dtype).eval()
        with torch.no_grad():
            width = model.get_text_features(torch.zeros(1, 4, dtype=torch.long, device=device))
        width = getattr(width, "pooler_output", width).shape[-1]
        features = torch.randn(texts + 1, width, device=device)
        return ZeroShotClassifier.from_features(model, features[1:], features[:1])
    precision = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    model = open_clip.create_model(name, precision=precision, device=device).eval()
    width = model.visual.output_dim if hasattr(model.visual, "output_dim") else None
    if width is None:
        with torch.no_grad():
            side = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
            width = model.encode_image(torch.zeros(1, 3, side, side, device=device)).shape[-1]
    features = torch.randn(texts + 1, width, device=device)
    return ZeroShotClassifier.from_features(model, features[1:], features[:1])


def of_transformers(name: str) -> Any:
    """Return a model of a folder's configuration, or of a class: ViT-B/16, with sdpa."""
    import transformers

    if Path(name).is_dir():
        config: Any = transformers.AutoConfig.from_pretrained(name, local_files_only=True)
        (name,) = config.architectures
    else:
        kind = getattr(transformers, name.removesuffix("Model") + "Config")
        config = kind(vision_config={"patch_size": 16})
    config._attn_implementation = "sdpa"
    return getattr(transformers, name)(config)


def cases(
    clip: ZeroShotClassifier,
    images: Tensor,
    methods: Sequence[str],
    peers: Sequence[str],
    compiled: bool = False,
) -> dict[str, Case]:
    """Return the calls to time; the baseline is the model's own pass at this size."""
    plain = at_size(clip, images)
    chosen, left_out = choose(clip, methods)
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    surgery, shaped = LayerCLIPSurgery(clip), CLIPSurgery(clip)
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    size = (images.shape[-2], images.shape[-1])
    encode = partial(clip.tower.dual_path, images.to(clip.tower.dtype), surgery.path_config)
    with torch.inference_mode():
        encoded = encode()
        maps = surgery.scores_from_output(encoded)
    named_calls: dict[str, Case] = {
        BASELINE: partial(plain, images),
        "logits": partial(clip, images),
    }
    named_calls |= {
        name: partial(method(clip).attribute_all, images) for name, method in chosen.items()
    }
    named_calls["one target, on the grid"] = partial(surgery.attribute, images, 0)
    named_calls["one target, image-shaped"] = partial(shaped.attribute, images, 0)
    named_calls["from a picture to an array"] = lambda: (
        surgery.attribute_all(clip.preprocess(picture, size)).float().cpu().numpy()
    )
    named_calls |= {
        "stage: a picture to pixels": partial(clip.preprocess, picture, size),
        "stage: dual path": encode,
        "stage: scores and feature surgery": partial(surgery.scores_from_output, encoded),
        "stage: maps to the images' size": partial(F.interpolate, maps, size, mode="bilinear"),
    }
    if compiled:
        named_calls |= _compiled(plain, partial(surgery.attribute_all, check_finite=False), images)
    for peer in peers:
        module, function = peer.split(":")
        call = getattr(import_module(module), function)
        named_calls[peer] = partial(call, images, clip.text_features())
    return named_calls


def at_size(clip: ZeroShotClassifier, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the model's own pass: `encode_image`, or its blocks on resized positions."""
    if tuple(images.shape[-2:]) == clip.native_size:
        return lambda batch: clip.model.encode_image(batch.to(clip.tower.dtype))
    return lambda batch: clip.tower.encode(batch.to(clip.tower.dtype))


@torch.inference_mode()
def _compiled(plain: Case, surgery: Case, images: Tensor) -> dict[str, Case]:
    """Compile both passes as one graph each, and print the time of their first call."""
    named_calls: dict[str, Case] = {}
    for name, call in ((BASELINE, plain), ("all texts", surgery)):
        compiled = torch.compile(call, fullgraph=True)
        seconds = profile_call(partial(compiled, images), images.device)[1].seconds
        print(f"{name}, compiled without a graph break: first call {seconds:.1f} s")
        named_calls[f"{name}, compiled"] = partial(compiled, images)
    return named_calls


@torch.inference_mode()
def run(named_calls: dict[str, Case], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time every case in every round, after a round that measures memory."""
    peaks = {name: profile_call(case, device)[1].peak_bytes for name, case in named_calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in named_calls}
    for _ in tqdm(range(rounds), leave=False, desc="rounds"):
        for name, case in named_calls.items():
            start = time.perf_counter()
            case()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Timing(
            min(taken),
            median(taken),
            median(t / base for t, base in zip(taken, seconds[BASELINE], strict=True)),
            peaks[name],
        )
        for name, taken in seconds.items()
    }


def waits(call: Case) -> int:
    """Count how often a call makes the host wait for the GPU."""
    call()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def table(timings: dict[str, Timing], batch: int) -> str:
    """Format milliseconds per call, ratio, images per second and memory."""
    rows = [
        [
            name,
            f"{1000 * timing.least:.1f}",
            f"{1000 * timing.middle:.1f}",
            f"{timing.ratio:.3f}",
            f"{batch / timing.middle:.1f}",
            "-" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:.0f}",
        ]
        for name, timing in timings.items()
    ]
    header = ["case", "least ms", "median ms", f"x {BASELINE}", "images/s", "MiB"]
    return markdown(header, rows)


def main(
    model: Annotated[
        str,
        typer.Option(help="open_clip configuration, or hf:CLASS or hf:FOLDER of transformers."),
    ] = "ViT-B-16",
    size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels (default: native).")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images per call.")] = 1,
    texts: Annotated[int, typer.Option(help="Number of text features.")] = 59,
    rounds: Annotated[int, typer.Option(help="Number of rounds; each runs every case once.")] = 7,
    methods: Annotated[
        str, typer.Option(help="Comma-separated method names.")
    ] = f"{DENSE},{GRADIENTS}",
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Callable to time, as module:function; repeat for more."),
    ] = None,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = "cpu",
    dtype: Annotated[str, typer.Option(help=", ".join(PRECISIONS))] = "fp32",
    tf32: Annotated[bool, typer.Option(help="Use TF32 matrix products on a GPU.")] = False,
    compiled: Annotated[bool, typer.Option("--compiled", help="Also time torch.compile.")] = False,
    threads: Annotated[int | None, typer.Option(help="Number of torch threads on the CPU.")] = None,
    output: Annotated[
        Path | None, typer.Option("--json", help="JSON file for the results.")
    ] = None,
) -> None:
    """Print the table."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    clip = classifier(model, texts, device, PRECISIONS[dtype])
    height, width = clip.native_size if size is None else (size, size)
    images = torch.randn(batch, 3, height, width, device=device)
    about = {
        **environment_info(torch.device(device)),
        "model": f"{model}: {clip.tower.describe()}",
        "size": [height, width],
        "batch": batch,
        "texts": texts,
        "dtype": dtype,
        "tf32": tf32,
        "rounds": rounds,
    }
    print(", ".join(f"{key} {about[key]}" for key in ("model", "size", "batch", "texts", "dtype")))
    print(f"{about['device']}, {about['threads']} threads, torch {torch.__version__}\n")
    chosen = [name for name in methods.split(",") if name]
    named_calls = cases(clip, images, chosen, peer or [], compiled)
    timings = run(named_calls, rounds, torch.device(device))
    print(table(timings, batch))
    if device.startswith("cuda"):
        surgery = LayerCLIPSurgery(clip).attribute_all
        for check in (True, False):
            count = waits(partial(surgery, images, None, check))
            print(f"check_finite={check}: the host waits {count} times")
    if output is not None:
        content = {**about, "cases": {name: asdict(t) for name, t in timings.items()}}
        output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
