"""Scores of words: against a plain restatement, and what is refused."""

from __future__ import annotations

import unicodedata
import warnings

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP

from captum_clip_surgery import ZeroShotClassifier
from captum_clip_surgery.attr import word_scores
from captum_clip_surgery.attr._words import METHODS
from captum_clip_surgery.demo import Scenes
from captum_clip_surgery.models.text._words import word_positions
from tests._helpers.cases import each
from tests._helpers.tiny import (
    load_reference_model,
    random_images,
    relative_error,
    tiny_model,
    with_preprocessing,
)
from tests._helpers.tower_kinds import TEXT, TINY
from tests._helpers.transformers_models import (
    build,
    clip_model,
    processor,
    siglip_model,
    tiny_siglip,
)
from tests._helpers.transformers_models import tokenizer as tokenizer_of

TEXT_GIVEN = "a potted plant on a TV monitor"


@pytest.fixture(scope="module")
def clip() -> ZeroShotClassifier:
    return ZeroShotClassifier(load_reference_model("vit"), ["dog"], templates=())


def naive_blocks(model, tokens):
    """Streams, attention and values of the text tower, block by block, from raw parameters."""
    x = model.token_embedding(tokens) + model.positional_embedding[: tokens.shape[1]]
    mask = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
    found = []
    for block in model.transformer.resblocks:
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        q, k, v = (block.ln_1(x) @ weight.T + bias).chunk(3, -1)
        attention = (q @ k.mT / q.shape[-1] ** 0.5 + mask).softmax(-1)  # the model has one head
        output = attention @ v
        found.append((q, k, v, attention, output))
        x = x + block.attn.out_proj(output)
        x = x + block.mlp(block.ln_2(x))
    pooled = model.ln_final(x)[:, -1] @ model.text_projection
    return found, F.normalize(pooled, dim=-1)[0]


@pytest.mark.parametrize("num_blocks", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_their_definition(clip, method, num_blocks):
    model, images = clip.model, random_images(clip, 3)
    tokens = clip.text_encoder.tokenize([TEXT_GIVEN])
    tokens = tokens[:, : int(tokens.argmax()) + 1]
    blocks, feature = naive_blocks(model, tokens)
    image_features = clip.image_features(images).detach()
    found = word_scores(clip, images, TEXT_GIVEN, method, num_blocks)
    assert found.words == ("a", "potted", "plant", "on", "a", "tv", "monitor")
    for image, scores in zip(image_features, found.scores, strict=True):
        cosine = image @ feature
        if method == "relevance":
            relevance = torch.eye(tokens.shape[1])
            for *_, attention, _ in blocks[-num_blocks:]:
                (gradient,) = torch.autograd.grad(cosine, attention, retain_graph=True)
                relevance = relevance + (gradient * attention).relu()[0] @ relevance
            row = relevance[-1, 1:-1]
            expected = row / row.sum()
        else:
            expected = 0
            for (q, k, v, _, output), block in zip(
                blocks[-num_blocks:], model.transformer.resblocks[-num_blocks:], strict=True
            ):
                (gradient,) = torch.autograd.grad(cosine, output, retain_graph=True)
                query, keys = block.attn.out_proj(q[:, -1:]), block.attn.out_proj(k)
                likeness = F.cosine_similarity(query, keys, dim=-1)[0]
                likeness = (likeness - likeness.min()) / (likeness.max() - likeness.min())
                expected = expected + ((gradient[0, -1] * v[0]).sum(-1) * likeness).relu()
            expected = expected[1:-1]

        assert relative_error(scores, expected.detach()) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_any_mode_and_nothing_left_behind(clip, method):
    images = random_images(clip, 2)
    expected = word_scores(clip, images, TEXT_GIVEN, method).scores
    assert not expected.requires_grad
    with torch.inference_mode():
        inside = word_scores(clip, images.clone(), TEXT_GIVEN, method).scores
    assert torch.allclose(inside, expected, atol=1e-6)
    alone = torch.cat([word_scores(clip, i[None], TEXT_GIVEN, method).scores for i in images])
    assert torch.allclose(alone, expected, atol=1e-6)
    assert all(parameter.grad is None for parameter in clip.model.parameters())


@pytest.mark.parametrize(("method", "num_blocks"), [("relevance", 1), ("grad-eclip", 2)])
def test_depth_where_none_is_given(clip, method, num_blocks):
    images = random_images(clip, 1)
    expected = word_scores(clip, images, TEXT_GIVEN, method, num_blocks).scores
    assert torch.equal(word_scores(clip, images, TEXT_GIVEN, method).scores, expected)
    other = word_scores(clip, images, TEXT_GIVEN, method, 3 - num_blocks).scores
    assert relative_error(other, expected) > 0.01


def test_images_of_another_type(clip):
    images = random_images(clip, 1)
    expected = word_scores(clip, images, TEXT_GIVEN).scores
    assert torch.allclose(word_scores(clip, images.double(), TEXT_GIVEN).scores, expected)


def test_tokens_that_were_cut_before_their_end():
    tokens = open_clip.tokenize("a dog")[0, :3].tolist()
    words = [("a", [1]), ("dog", [2])]
    assert word_positions(open_clip.tokenize, tokens) == words
    assert word_positions(open_clip.tokenize, tokens, special=True) == [("<start>", [0]), *words]


def test_a_word_of_several_tokens_has_their_sum(clip):
    found = word_scores(clip, random_images(clip, 1), "a xylophonist, playing")
    assert found.words == ("a", "xylophonist", ",", "playing")
    assert found.scores.sum() == pytest.approx(1, abs=1e-5)
    assert len(clip.text_encoder.tokenize(["xylophonist"])[0].nonzero()) > 3  # start, pieces, end


def test_words_of_many_bytes_are_whole(clip):
    found = word_scores(clip, random_images(clip, 1), "日本 cafés")
    assert found.words == ("日本", "cafés")


def test_other_tokenizers_are_refused():
    def own(texts, context_length):
        return open_clip.tokenize(texts, context_length)

    clip = ZeroShotClassifier(tiny_model("vit"), ["dog"], tokenizer=own, templates=())
    with pytest.raises(TypeError, match="tokenizer of type function; use the one"):
        word_scores(clip, random_images(clip, 1), "a dog")


def test_the_words_of_things_in_the_image_matter_most():
    """On 40 scenes of one object: its noun is the first of the content words by relevance."""
    clip = ZeroShotClassifier.demo(["dog"])
    hits = []
    for scene in Scenes("test", 40, objects=[1]):
        images = clip.preprocess(scene.image)
        other = "pizza" if scene.nouns[0] != "pizza" else "camera"
        words = ["a", scene.nouns[0], "and", "a", other]
        found = word_scores(clip, images, " ".join(words))
        hits.append(bool(found.scores[0, 1] > found.scores[0, 4]))
    assert sum(hits) >= 30


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("dog", "gradient"),
            ValueError,
            "method must be one of relevance, grad-eclip, got 'gradient'",
        ),
        (
            ("dog", "relevance", 3),
            ValueError,
            "num_blocks must be from 1 to the text tower's 2, got 3",
        ),
        ((" ",), ValueError, "must be a string that is not empty"),
        ((3,), ValueError, "must be a string that is not empty, got 3"),
        (("dog " * 90,), ValueError, "longer than the model's context of 77"),
    ],
)
def test_refused(clip, arguments, error, message):
    with pytest.raises(error, match=message):
        word_scores(clip, random_images(clip, 1), *arguments)


def test_text_towers_that_are_not_causal_are_refused():
    model = CustomTextCLIP(24, dict(TINY["vit"].vision), TEXT | dict(no_causal_mask=True)).eval()
    model.visual.preprocess_cfg = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
    clip = ZeroShotClassifier(model, ["dog"], templates=())
    with pytest.raises(TypeError, match="TextTransformer is not supported"):
        word_scores(clip, random_images(clip, 1), "a dog")
    features = ZeroShotClassifier.from_features(tiny_model("vit"), torch.randn(3, 24))
    with pytest.raises(TypeError, match="no text tower"):
        word_scores(features, random_images(features, 1), "a dog")


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP"])
def test_models_of_transformers_give_the_scores_of_open_clip(kind):
    """On the same weights; SigLIP's text towers are pooled at their last position."""
    if kind == "CLIP":
        source = tiny_model("vit")
        pair, tokenizer = [source, clip_model(source)], None
    else:
        source = with_preprocessing(tiny_siglip())
        pair, tokenizer = [source, siglip_model(source)], tokenizer_of("SiglipModel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clips = [ZeroShotClassifier(m, ["dog"], tokenizer=tokenizer, templates=[]) for m in pair]
    images = random_images(clips[0])
    for method, num_blocks in (("relevance", 2), ("grad-eclip", 2), ("relevance", None)):
        theirs, ours = (word_scores(c, images, "a dog sat", method, num_blocks) for c in clips)
        assert ours.words == theirs.words == ("a", "dog", "sat")
        assert relative_error(ours.scores, theirs.scores) < 1e-4
        assert ours.scores.max() > 0


def test_the_scores_of_siglip_are_the_last_positions_row():
    """Relevance in one block, from raw parameters: attention to words of the pooled position."""
    model = siglip_model(tiny_siglip())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip = ZeroShotClassifier(
            model, ["dog"], tokenizer=tokenizer_of("SiglipModel"), templates=[]
        )
    images = random_images(clip, 1)
    image = clip.image_features(images).detach()[0]
    tokens, text = clip.text_encoder.tokenize(["a dog"]), model.text_model
    x = text.embeddings(tokens)
    first, last = text.encoder.layers
    x = first(x, attention_mask=None)
    x = x[0] if isinstance(x, tuple) else x  # before version 5
    inner = last.layer_norm1(x)
    q, k, v = (
        p(inner).unflatten(-1, (4, 8)).transpose(1, 2)
        for p in (last.self_attn.q_proj, last.self_attn.k_proj, last.self_attn.v_proj)
    )
    attention = (q @ k.mT / 8**0.5).softmax(-1)
    x = x + last.self_attn.out_proj((attention @ v).transpose(1, 2).flatten(2))
    x = x + last.mlp(last.layer_norm2(x))
    feature = F.normalize(text.head(text.final_layer_norm(x)[0, -1]), dim=-1)
    (gradient,) = torch.autograd.grad(image @ feature, attention)
    row = (gradient * attention).relu().mean(1)[0, -1]
    expected = torch.stack([row[:2].sum(), row[2:6].sum()])  # "▁ a", "▁ d o g"
    scores = word_scores(clip, images, "a dog", num_blocks=1).scores[0]
    assert relative_error(scores, expected / expected.sum()) < 1e-4


def test_bert_towers_have_no_word_scores():
    model = build("ChineseCLIPModel")
    clip = ZeroShotClassifier(model, ["dog"], processor=processor("ChineseCLIPModel"), templates=[])
    with pytest.raises(TypeError, match="ChineseCLIPTextModel is not supported: words are scored"):
        word_scores(clip, random_images(clip, 1), "a dog")


#: A caption in each of 20 scripts, with its words separated by bars, in the model's spelling.
SCRIPTS = {
    "Latin": "the| |12th| |dog's| |été| |3.5| |state|-|of",
    "combining Latin": "e\u0301te\u0301| |ca\u0303o",
    "Greek": "ένας| |σκύλος",
    "Cyrillic": "большая| |собака|,| |7",
    "Armenian": "մի| |շուն",
    "Georgian": "ერთი| |ძაღლი",
    "Hebrew": "כֶּלֶב| |גדול",
    "Arabic": "كَلْب| |كبير",
    "Persian": "کتاب\u200cها| |سگ",  # noqa: RUF001
    "Devanagari": "हिन्दी| |नमस्ते",
    "Bengali": "একটি| |কুকুর",
    "Gurmukhi": "ਇੱਕ| |ਕੁੱਤਾ",
    "Gujarati": "એક| |કૂતરો",
    "Tamil": "தமிழ்| |நாய்",
    "Telugu": "ఒక| |కుక్క",
    "Kannada": "ಒಂದು| |ನಾಯಿ",
    "Malayalam": "ഒരു| |നായ",
    "Sinhala": "බල්ලා| |එක",
    "Thai": "สุนัข| |ใหญ่",
    "Khmer": "ខ្មែរ| |ឆ្កែ",
    "Tibetan": "ཁྱི",
    "Ethiopic": "አንድ| |ውሻ",
    "Hangul": "큰| |강아지",
    "Han": "大狗| |日本",
    "Katakana": "イヌ",
    "emoji": "👨\u200d👩\u200d👧| |🐶",
}


@each("script", SCRIPTS)
def test_words_of_many_scripts(script):
    """Sub-words are merged at Unicode's boundaries; every token belongs to one word, in order."""
    parts = SCRIPTS[script].split("|")
    tokens = open_clip.tokenize("".join(parts))[0].tolist()
    words = word_positions(open_clip.tokenize, tokens, text="".join(parts))
    composed = [unicodedata.normalize("NFC", part) for part in parts if part != " "]
    assert [word for word, _ in words] == composed
    places = [place for _, positions in words for place in positions]
    assert places == list(range(1, len(places) + 1))
    assert tokens[len(places) + 1] == open_clip.tokenizer._tokenizer.eot_token_id


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a zero\u200bwidth \u200b space", ["a", "zero", "width", "space"]),
        ("\u200ba dog\ufeff", ["a", "dog"]),
        ("12 th", ["12", "th"]),  # the same tokens as 12th
        ("tom &amp; jerry", ["tom", "&", "jerry"]),
        ("wait... what", ["wait", "...", "what"]),
        ("<start_of_text> a dog", ["<start_of_text>", "a", "dog"]),
        ("a <start_of_text> dog", ["a", "<start_of_text>", "dog"]),
    ],
)
def test_words_without_what_nobody_sees(text, words):
    tokens = open_clip.tokenize(text)[0].tolist()
    found = word_positions(open_clip.tokenize, tokens, special=True, text=text)
    assert [word for word, _ in found] == ["<start>", *words, "<end>"]
