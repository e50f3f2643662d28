"""Maps for words of captions, and for texts of an image's own: restated, and what is refused."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from torch import Tensor, nn

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.models.text import _token_encoder
from captum_clip_surgery.models.text._encoder import PromptEncoder
from captum_clip_surgery.models.text._towers import pooled_at_end_of_text
from captum_clip_surgery.models.text._words import word_positions
from captum_clip_surgery.tasks import WordMaps, maps_of_own_texts, word_maps
from captum_clip_surgery.tasks._word_maps import METHODS
from captum_clip_surgery.tasks.figures import words_figure
from tests._helpers.cases import each
from tests._helpers.text_towers import KINDS, Words, manner, shrunk
from tests._helpers.tiny import on_models, random_images, relative_error, tiny_model
from tests._helpers.tower_kinds import TEXT, TINY

CAPTIONS = ["a dog", "one xylophonist and the cat", "the big potted plant on a tv"]


def naive_token_features(model: nn.Module, ids: Tensor) -> Tensor:
    """What leaves the text transformer in `encode_text`, through its norm and projection."""
    tower = getattr(model, "text", model)
    seen: list[Tensor] = []
    handle = tower.transformer.register_forward_hook(lambda *args: seen.append(args[2]))
    try:
        with torch.no_grad():
            model.encode_text(ids)
            x = seen[0] if getattr(tower, "cls_emb", None) is None else seen[0][:, :-1]
            x = tower.ln_final(x)
            projection = tower.text_projection
            if isinstance(projection, nn.Linear):
                x = x @ projection.weight.T + projection.bias
            elif projection is not None:
                x = x @ projection
    finally:
        handle.remove()
    return x / x.norm(dim=-1, keepdim=True)


def naive_cosines(clip: ZeroShotClassifier, image: Tensor, caption: str) -> tuple[Tensor, int]:
    """Cosines (L, h, w) of one image's patches with every token of the context, and its end."""
    ids = open_clip.tokenize([caption], clip.text_encoder.context_length)
    features = naive_token_features(clip.model, ids)[0]
    every = ZeroShotClassifier.from_features(clip.model, features)
    maps = LayerCLIPSurgery(every, feature_surgery=None).attribute_all(image[None])
    return maps[0].detach(), int(ids.argmax())


def same(first: WordMaps, second: WordMaps) -> bool:
    return (
        first.words == second.words
        and first.size == second.size
        and torch.allclose(first.maps, second.maps, atol=1e-5)
        and torch.allclose(first.importance, second.importance, atol=1e-5)
    )


@pytest.fixture(scope="module")
def vit() -> ZeroShotClassifier:
    return ZeroShotClassifier(tiny_model("vit"), ["dog"], templates=())


@pytest.fixture(scope="module")
def demo() -> ZeroShotClassifier:
    return ZeroShotClassifier.demo(["dog"])


# --- tokens and words ----------------------------------------------------------------------------


@each("name", KINDS)
def test_token_features_of_every_text_tower(name):
    config = KINDS[name]
    model, tokenizer = shrunk(config), Words(manner(config["text_cfg"]))
    encoder = PromptEncoder(model, tokenizer, ())
    ids = encoder.tokenize(["dog", "a remote control on a table"])
    with torch.no_grad():
        features = encoder.token_features(ids)
        pooled = F.normalize(model.encode_text(ids), dim=-1)
    expected = naive_token_features(model, ids)
    assert torch.allclose(features, expected[:, : features.shape[1]], atol=1e-5)
    if pooled_at_end_of_text(encoder.tower):
        end = ids.max() if tokenizer.manner == "bpe" else config["text_cfg"].get("eos_id", 2)
        ends = ids.eq(end).int().argmax(-1)
        assert features.shape[1] == ends.max() + 1
        assert torch.allclose(features[range(2), ends], pooled, atol=1e-5)
    else:
        assert features.shape[1] == ids.shape[1]


@on_models
def test_maps_are_cosines_with_tokens_before_pooling(clip):
    """On every kind of image tower; a word of several tokens has the mean of their maps."""
    images = random_images(clip, 3)
    plain = word_maps(clip, images, CAPTIONS, method="surgery", common=True)
    default = word_maps(clip, images, CAPTIONS, method="surgery")
    for image, caption, found, centred in zip(images, CAPTIONS, plain, default, strict=True):
        cosines, end = naive_cosines(clip, image, caption)
        assert found.words == centred.words == tuple(caption.split())
        of_words = list(cosines[1:end])
        if "xylophonist" in caption:
            rest = end - 1 - len(caption.split())
            assert rest > 1  # it is of several tokens
            of_words[1 : 2 + rest] = [cosines[2 : 3 + rest].mean(0)]
        expected = torch.stack(of_words)
        assert relative_error(found.maps, expected) < 1e-4
        common = cosines[: end + 1].mean(0)
        assert relative_error(centred.maps, expected - common) < 1e-4
        assert expected.std(0).max() > 1e-2  # words matter
        assert found.size == tuple(image.shape[-2:])


@pytest.mark.parametrize("method", METHODS)
def test_start_and_end_are_shown_on_request(vit, method):
    images = random_images(vit, 2)
    captions = CAPTIONS[1:]
    plain = word_maps(vit, images, captions, method=method)
    both = word_maps(vit, images, captions, method=method, special=True)
    for found, inner in zip(both, plain, strict=True):
        assert found.words == ("<start>", *inner.words, "<end>")
        assert torch.equal(found.maps[1:-1], inner.maps)
        assert torch.equal(found.importance[1:-1], inner.importance)
        assert found.importance[[0, -1]].tolist() == [0, 0]
        assert all(word in inner.words for word, _ in found.shared(100))


def test_the_end_of_the_text_is_the_whole_caption(vit):
    images = random_images(vit, 1)
    (found,) = word_maps(vit, images, CAPTIONS[2], method="surgery", special=True, common=True)
    surgery = LayerCLIPSurgery(vit.with_texts(CAPTIONS[2:]), feature_surgery=None)
    assert torch.allclose(found.maps[-1], surgery.attribute_all(images)[0, 0], atol=1e-6)


def test_importance_is_how_far_the_cosine_falls_without_the_word(vit):
    images = random_images(vit, 3)
    for image, caption, found in zip(
        images, CAPTIONS, word_maps(vit, images, CAPTIONS), strict=True
    ):
        words = caption.split()
        without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
        with torch.no_grad():
            ids = open_clip.tokenize([caption, *without], vit.text_encoder.context_length)
            texts = F.normalize(vit.model.encode_text(ids), dim=-1)
            cosines = texts @ F.normalize(vit.model.encode_image(image[None]), dim=-1)[0]
        assert torch.allclose(found.importance, cosines[0] - cosines[1:], atol=1e-6)
        assert found.importance.abs().max() > 1e-3


def test_the_words_shared_most():
    importance = torch.tensor([0.1, -0.2, 0.7, 0.1])
    found = WordMaps(("a", "dog", "cat", "a"), torch.zeros(4, 1, 1), (8, 8), importance)
    assert [word for word, _ in found.shared()] == ["cat", "a", "a", "dog"]
    assert found.shared(1) == [("cat", pytest.approx(0.7))]
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        found.shared(0)


def test_results_are_written_as_json(vit):
    (found,) = word_maps(vit, random_images(vit, 1), "a dog")
    read = json.loads(json.dumps(found.to_dict()))
    assert read["words"] == ["a", "dog"]
    assert read["size"] == [32, 32]
    assert torch.equal(torch.tensor(read["maps"]), found.maps)
    assert torch.equal(torch.tensor(read["importance"]), found.importance)


# --- batches, sizes and the model ----------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["vit", "resnet", "coca", "siglip"])
def test_batches_and_padding_change_nothing(kind, method):
    clip = ZeroShotClassifier(tiny_model(kind), ["dog"], templates=())
    images = random_images(clip, 3)
    maps_of = partial(word_maps, clip, method=method)
    together = maps_of(images, CAPTIONS)
    alone = [maps_of(images[i : i + 1], CAPTIONS[i])[0] for i in range(3)]
    pairs = maps_of(images, CAPTIONS, batch_size=2)
    assert all(map(same, together, alone))
    assert all(map(same, together, pairs))
    assert not torch.allclose(together[0].maps[0], together[1].maps[0], atol=1e-3)


def test_images_have_results_of_their_own_size(vit):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in [(50, 70), (64, 40), (9, 9)]]
    found = word_maps(
        vit, list(map(Image.fromarray, pictures)), CAPTIONS, size=(40, 64), batch_size=2
    )
    assert [one.size for one in found] == [(50, 70), (64, 40), (9, 9)]
    for picture, caption, one in zip(pictures, CAPTIONS, found, strict=True):
        assert one.maps.shape == (len(caption.split()), 5, 8)
        (ready,) = word_maps(vit, vit.preprocess(picture, (40, 64)), caption)
        assert ready.size == (40, 64)
        assert torch.allclose(ready.maps, one.maps, atol=1e-5)
    (single,) = word_maps(vit, pictures[0], CAPTIONS[0])
    assert single.maps.shape == (2, 4, 4)


def test_the_model_is_left_alone():
    model = tiny_model("vit")
    before, modules = copy.deepcopy(model.state_dict()), list(model.named_modules())
    clip = ZeroShotClassifier(model, ["dog"], templates=())
    images = random_images(clip, 2)
    found = word_maps(clip, images, CAPTIONS[:2])
    maps = maps_of_own_texts(clip, images, [["dog"], ["cat", "tree"]])
    assert not any(one.maps.requires_grad or one.importance.requires_grad for one in found)
    assert not any(own.requires_grad for own in maps)
    with torch.inference_mode():
        assert all(map(same, word_maps(clip, images.clone(), CAPTIONS[:2]), found))
    assert list(model.named_modules()) == modules
    assert all(not m._forward_hooks and not m._forward_pre_hooks for _, m in modules)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype, method):
    model = tiny_model("vit")
    single = ZeroShotClassifier(model, ["dog"], templates=())
    other = ZeroShotClassifier(copy.deepcopy(model).to(dtype), ["dog"], templates=())
    images = random_images(single, 2)
    options = dict(method=method, common=True)
    expected = word_maps(single, images, CAPTIONS[:2], **options)
    for found, one in zip(
        word_maps(other, images.to(dtype), CAPTIONS[:2], **options), expected, strict=True
    ):
        assert found.maps.dtype == torch.promote_types(dtype, torch.float32)
        loose = 0.1 if dtype == torch.bfloat16 else 1e-4
        assert (found.maps - one.maps).abs().max() < loose


def test_long_captions_are_cut_on_request():
    caption = "dog " * 20
    clip = ZeroShotClassifier(tiny_model("vit"), ["dog"], templates=(), truncate=True)
    (found,) = word_maps(clip, random_images(clip, 1), caption)
    assert found.words == ("dog",) * 14  # of a context of 16


# --- texts of an image's own ---------------------------------------------------------------------

OWN = [["a dog"], ["cat", "tree", "dog"], [f"thing {i}" for i in range(9)]]


def one_by_one(clip, images, texts, **options):
    return [
        LayerCLIPSurgery(clip.with_texts(own), **options).attribute_all(image[None])[0]
        for image, own in zip(images, texts, strict=True)
    ]


@on_models
def test_own_texts_equal_one_by_one(clip):
    images = random_images(clip, 3)
    found = maps_of_own_texts(clip, images, OWN, batch_size=2)
    for maps, expected in zip(found, one_by_one(clip, images, OWN), strict=True):
        assert maps.shape == expected.shape
        assert relative_error(maps, expected) < 1e-5
    assert len({maps.shape[0] for maps in found}) == 3


@each("num_blocks", [None, 1])
@each("form", ["empty", None, "release", "paper", "auto"])
def test_own_texts_in_every_form(form, num_blocks):
    clip = ZeroShotClassifier(tiny_model("vit"), ["house"], templates=["a {}.", "one {}"])
    texts = OWN[1:] if form in ("release", "paper") else OWN
    images = random_images(clip, len(texts))
    found = maps_of_own_texts(clip, images, texts, feature_surgery=form, num_blocks=num_blocks)
    expected = one_by_one(clip, images, texts, feature_surgery=form, num_blocks=num_blocks)
    for maps, own in zip(found, expected, strict=True):
        assert torch.allclose(maps, own, atol=1e-5)


def test_own_texts_take_one_pass_of_each_batch(vit):
    """And pictures of any size are taken as elsewhere."""
    seen: list[int] = []
    handle = vit.model.visual.conv1.register_forward_hook(
        lambda _, inputs, __: seen.append(len(inputs[0]))
    )
    try:
        pictures = [np.full((20 + i, 30, 3), 40 * i, np.uint8) for i in range(3)]
        maps = maps_of_own_texts(vit, pictures, OWN, size=64, batch_size=2)
    finally:
        handle.remove()
    assert seen == [2, 1]
    assert [own.shape for own in maps] == [(1, 8, 8), (3, 8, 8), (9, 8, 8)]


# --- what maps are good for ----------------------------------------------------------------------


@pytest.mark.slow
def test_the_right_words_point_to_their_objects(demo):
    """On 40 test scenes of two or three objects; and they are the ones that matter."""
    scenes = list(Scenes("test", 40, 224, objects=[2, 3]))
    found = word_maps(demo, [s.image for s in scenes], [s.caption for s in scenes])
    right, wrong, higher, important = [], [], [], []
    for scene, one in zip(scenes, found, strict=True):
        maps = F.interpolate(one.maps[None], one.size, mode="bilinear")[0].flatten(1)
        of_nouns = maps[[one.words.index(noun) for noun in scene.nouns]]
        points = of_nouns.argmax(1)
        masks = torch.tensor(scene.masks).flatten(1)
        for i, mask in enumerate(masks):
            hits = mask[points].tolist()
            right.append(hits.pop(i))
            wrong.extend(hits)
            higher.append(int(of_nouns[:, mask].mean(1).argmax()) == i)
        top = [word for word, _ in one.shared(len(scene.nouns))]
        important.extend(word in scene.nouns for word in top)
    assert np.mean(right) > 0.7
    assert np.mean(wrong) < 0.1
    assert np.mean(higher) > 0.75
    assert np.mean(important) > 0.9


def test_figure(demo):
    scene = Scenes("test", 40, 224, objects=[2])[0]
    (found,) = word_maps(demo, scene.image, f"{scene.caption} $x$ x_1$", common=True)
    figure = words_figure(scene.image, found, columns=4)
    assert isinstance(figure, Figure)
    shown = [axis for axis in figure.axes if axis.get_visible() and axis.get_images()]
    titles = [axis.get_title() for axis in shown]
    assert titles[0] == ""
    assert [title.split()[0] for title in titles[1:]] == list(found.words)
    assert titles[1].split()[1] == f"{found.importance[0].item():+z.2f}"
    np.testing.assert_array_equal(shown[0].get_images()[0].get_array(), scene.image)
    assert all(len(axis.get_images()) == 2 for axis in shown[1:])
    figure.canvas.draw()  # signs of mathematics in a caption are drawn as they are
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        words_figure(scene.image, found, columns=0)


# --- tokenizers of Hugging Face ------------------------------------------------------------------


def hugging_face(folder: Path, kind: str, context_length: int = 16) -> HFTokenizer:
    """A small tokenizer of a kind, saved and loaded as open_clip does."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    models, pre = tokenizers.models, tokenizers.pre_tokenizers
    names = dict(pad_token="</s>", eos_token="</s>", unk_token="<unk>")
    single, ends = "$A </s>", [("</s>", 1)]
    if kind == "sentencepiece":  # of SigLIP
        pieces = ["<unk>", "</s>", "▁a", "▁xylo", "phon", "ist", "▁dog"]
        model = models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0)
        splitter, decoder = pre.Metaspace(), tokenizers.decoders.Metaspace()
    elif kind == "first word unmarked":  # of SigLIP 2
        pieces = ["<unk>", "</s>", "a", "▁a", "xylo", "▁xylo", "phon", "ist", "▁dog"]
        model = models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0)
        splitter = pre.Metaspace(prepend_scheme="never")
        decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    elif kind == "byte-level":  # of RoBERTa
        pieces = ["<unk>", "</s>", "a", "Ġa", "xylo", "Ġxylo", "phon", "ist", "Ġdog"]
        model = models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0)
        splitter, decoder = pre.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    elif kind == "ends marked":  # of CLIP as Hugging Face has it
        table = {"<unk>": 0, "</s>": 1, "a</w>": 2}
        model = models.BPE(table, [], unk_token="<unk>", end_of_word_suffix="</w>")
        splitter, decoder = pre.Whitespace(), tokenizers.decoders.BPEDecoder()
    elif kind == "wordpiece":  # of CLIPA
        pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "xylo", "##phon", "##ist", "dog"]
        model = models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
        splitter, decoder = pre.Whitespace(), tokenizers.decoders.WordPiece()
        names = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
        single, ends = "[CLS] $A [SEP]", [("[CLS]", 1), ("[SEP]", 2)]
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer, inner.decoder = splitter, decoder
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=ends
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return HFTokenizer(str(folder), context_length, strip_sep_token=kind == "wordpiece")


@pytest.mark.parametrize(
    "kind", ["sentencepiece", "first word unmarked", "byte-level", "wordpiece"]
)
def test_sub_words_of_hugging_face_tokenizers(kind, tmp_path):
    tokenizer = hugging_face(tmp_path, kind)
    start = int(kind == "wordpiece")
    for text in ("a xylophonist a dog", "xylophonist"):
        ids = tokenizer([text])[0].tolist()
        found = word_positions(tokenizer, ids, special=True)
        assert word_positions(tokenizer, ids, special=True, text=text) == found
        words = [word for word, _ in found]
        assert words == ["<start>"] * start + [*text.split(), "<end>"]
        places = [place for _, places in found for place in places]
        assert places == list(range(len(places)))
        assert len(dict(found)["xylophonist"]) == 3
    unknown = word_positions(tokenizer, tokenizer(["a q dog"])[0].tolist())
    assert [len(places) for _, places in unknown][-1] == 1  # and no end in the midst
    assert unknown[-1][0] == "dog"
    assert word_positions(tokenizer, tokenizer([""])[0].tolist()) == []


def test_a_hugging_face_tokenizer_that_marks_the_ends_of_words(tmp_path):
    tokenizer = hugging_face(tmp_path, "ends marked")
    found = word_positions(tokenizer, tokenizer(["a a"])[0].tolist())
    assert found == [("a", [0]), ("a", [1])]


def test_a_tower_pooled_at_its_last_place_with_its_own_tokenizer(tmp_path):
    """As SigLIP: no causal mask, tokens see the padding; a bias in the projection."""
    tokenizer = hugging_face(tmp_path, "sentencepiece")
    text = TEXT | dict(vocab_size=7, no_causal_mask=True, pool_type="last", proj_bias=True)
    torch.manual_seed(0)
    model = CustomTextCLIP(24, dict(TINY["vit"].vision), text).eval()
    model.visual.preprocess_cfg = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    clip = ZeroShotClassifier(model, ["dog"], tokenizer=tokenizer, templates=())
    images = random_images(clip, 2)
    captions = ["a xylophonist", "a dog a dog"]
    found = word_maps(clip, images, captions, method="surgery", common=True, special=True)
    assert [one.words for one in found] == [(*c.split(), "<end>") for c in captions]
    features = naive_token_features(model, tokenizer(captions[:1]))[0]
    every = ZeroShotClassifier.from_features(model, features)
    maps = LayerCLIPSurgery(every, feature_surgery=None).attribute_all(images[:1])[0].detach()
    expected = torch.stack([maps[0], maps[1:4].mean(0), maps[4]])
    assert torch.allclose(found[0].maps, expected, atol=1e-5)
    with torch.no_grad():
        whole, part = model.encode_text(tokenizer([captions[0], "a"]), normalize=True)
        image = model.encode_image(images[:1], normalize=True)[0]
    assert found[0].importance[1].item() == pytest.approx(float(image @ (whole - part)), abs=1e-6)
    without_marks = HFTokenizer(str(tmp_path), 16, clean="canonicalize")
    bare = ZeroShotClassifier(model, ["dog"], tokenizer=without_marks, templates=())
    with pytest.raises(ValueError, match="caption '!!!' has no words for the model's tokenizer"):
        word_maps(bare, images, ["a", "!!!"])


# --- what is refused -----------------------------------------------------------------------------


@each(
    ("captions", "error", "message"),
    [
        (["a dog"], ValueError, "there are 1 captions for 2 images; pass one per image"),
        ("a dog", ValueError, "there are 1 captions for 2 images"),
        (["a"] * 3, ValueError, "there are 3 captions for 2 images"),
        (["a dog", " "], ValueError, "caption 1 is empty"),
        (["a dog", 3], TypeError, "caption 1 must be a string, got 3 of type int"),
        (3, TypeError, "captions is a int, expected a list of strings"),
        (["a dog", "dog " * 20], ValueError, "longer than the model's context of 16.*truncate"),
    ],
)
def test_captions_that_are_refused(vit, captions, error, message):
    with pytest.raises(error, match=message):
        word_maps(vit, random_images(vit, 2), captions)


@each(
    ("texts", "error", "message"),
    [
        ([["a"]], ValueError, "there are 1 lists of texts for 2 images"),
        ([["a"], []], ValueError, "image 1 has no texts"),
        ([["a"], ["a", ""]], ValueError, "image 1's text 1 is empty"),
        (["a", "b"], TypeError, r"image 0's texts is the string 'a'; pass a list: \['a'\]"),
        ("ab", TypeError, "texts must be a list with a list of texts per image, got str"),
        ({0: ["a"]}, TypeError, "texts must be a list with a list of texts per image, got dict"),
    ],
)
def test_own_texts_that_are_refused(vit, texts, error, message):
    with pytest.raises(error, match=message):
        maps_of_own_texts(vit, random_images(vit, 2), texts)


def test_other_arguments_that_are_refused(vit):
    images = random_images(vit, 1)
    with pytest.raises(
        ValueError, match="num_blocks must be an int from 0 to the tower's 3, got 4"
    ):
        word_maps(vit, images, "a dog", method="surgery", num_blocks=4)
    with pytest.raises(ValueError, match="num_blocks=2 is an option of surgery; pass method="):
        word_maps(vit, images, "a dog", num_blocks=2)
    with pytest.raises(ValueError, match="method must be one of interactions, surgery, got 'gem'"):
        word_maps(vit, images, "a dog", method="gem")
    with pytest.raises(ValueError, match="contrasts texts, and there is only one"):
        maps_of_own_texts(vit, images, [["a"]], feature_surgery="release")
    with pytest.raises(ValueError, match=r"feature_surgery must be one of .*, got 'other'"):
        maps_of_own_texts(vit, images, [["a"]], feature_surgery="other")
    for function, texts in ((word_maps, "a dog"), (maps_of_own_texts, [["a dog"]])):
        with pytest.raises(ValueError, match="batch_size 0 must be at least 1"):
            function(vit, images, texts, batch_size=0)
        with pytest.raises(ValueError, match=r"expected \(N, 3, H, W\); add the batch"):
            function(vit, images[0], texts)
        with pytest.raises(TypeError, match="forward_func must be a ZeroShotClassifier, got CLIP"):
            function(vit.model, images, texts)


def test_models_without_tokens_are_refused(vit, monkeypatch):
    images = random_images(vit, 1)
    bare = ZeroShotClassifier.from_features(vit.model, torch.randn(3, 24))
    for function, texts in ((word_maps, "a dog"), (maps_of_own_texts, [["a dog"]])):
        with pytest.raises(TypeError, match=r"from_features has no text tower.*make one from"):
            function(bare, images, texts)

    def own(texts, context_length):
        return open_clip.tokenize(texts, context_length)

    unreadable = ZeroShotClassifier(vit.model, ["dog"], tokenizer=own, templates=())
    with pytest.raises(TypeError, match="with a tokenizer of type function"):
        word_maps(unreadable, images, "a dog")
    foreign = nn.Module()
    foreign.transformer = nn.Identity()
    monkeypatch.setattr(_token_encoder, "text_tower_of", lambda model: foreign)
    with pytest.raises(TypeError, match=r"the text tower Module has no tokens.*open_clip's own"):
        word_maps(vit, images, "a dog", method="surgery")


def test_blank_and_tiny_images_have_maps_all_the_same() -> None:
    clip = ZeroShotClassifier.demo(["dog"])
    pictures = [Image.new("RGB", (40, 30), "white"), Image.new("RGB", (1, 1))]
    blank, tiny = word_maps(clip, pictures, ["a dog", "a pizza"])
    assert (blank.size, tiny.size) == ((30, 40), (1, 1))
    for found in (blank, tiny):
        assert torch.isfinite(found.maps).all()
        assert torch.isfinite(found.importance).all()
