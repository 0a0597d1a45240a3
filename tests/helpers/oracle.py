"""SpLIP once more, from its description alone: raw open_clip modules, 77 tokens, one sample and one layer at a time.

Nothing of the package is imported. What learns stands in plain dictionaries of tensors; `Towers` holds an open_clip
model whose weights are the same ones. Slow, and meant to be: what is written here must be readable beside the paper.

Sizes: P patches, M tokens of text, C classes, d_v and d_t the widths of the towers, m and n the prompt tokens.
"""

import math

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("sketch", "photo")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


# ---- the maps between the towers ----


def b_t(patches: Tensor, w: dict[str, Tensor]) -> Tensor:  # [P, d_v] -> [m, d_t]
    """Three linear layers with GELU between: the first over the patch axis, the others over the width."""
    x = linear(norm(patches, w, "b_t.norm").T, w, "b_t.over_patches").T  # [m, d_v]
    return linear(F.gelu(linear(F.gelu(x), w, "b_t.widen")), w, "b_t.project")


def b_vt(states: list[Tensor], spans: list[tuple[int, int]], w: dict[str, Tensor]) -> Tensor:
    """The tokens that stand for all classes' states [M, d_t] after one layer: means at [EOS] and over the words.

    Args:
        spans: where the words of each class begin, and where its [EOS] is.
    """
    ends, words = [], []
    for state, (begin, eos) in zip(states, spans, strict=True):
        ends.append(state[eos])
        words.append(sum(state[i] for i in range(begin, eos)) / (eos - begin))
    rows = torch.stack([sum(ends) / len(ends), sum(words) / len(words)])
    hidden = F.gelu(linear(norm(rows, w, "b_vt.norm").flatten(), w, "b_vt.reduce"))
    return linear(hidden, w, "b_vt.expand").view(-1, w["b_v.project.bias"].shape[0])


def f_js(whole: Tensor, pieces: Tensor, w: dict[str, Tensor]) -> Tensor:
    """Logits [Y] from the tokens of two pictures: two pre-norm layers with heads of 32, a learned token is read off."""
    parts = [linear(norm(t, w, "jigsaw.norm"), w, "jigsaw.project") for t in (whole, pieces)]
    x = torch.cat([w["jigsaw.read"][0], *(t + w["jigsaw.place"][i] for i, t in enumerate(parts))])
    for i in range(2):
        name = f"jigsaw.encoder.layers.{i}"
        y = norm(x, w, f"{name}.norm1")
        q, k, v = (y @ w[f"{name}.self_attn.in_proj_weight"].T + w[f"{name}.self_attn.in_proj_bias"]).chunk(3, dim=1)
        heads = []
        for h in range(0, q.shape[1], 32):
            scores = q[:, h : h + 32] @ k[:, h : h + 32].T / math.sqrt(32)
            heads.append(scores.softmax(dim=1) @ v[:, h : h + 32])
        x = x + linear(torch.cat(heads, dim=1), w, f"{name}.self_attn.out_proj")
        y = F.gelu(linear(norm(x, w, f"{name}.norm2"), w, f"{name}.linear1"))
        x = x + linear(y, w, f"{name}.linear2")
    return linear(x[0], w, "jigsaw.classify")


# ---- the towers ----


class Towers:
    """The frozen encoders with their prompt slots."""

    def __init__(self, clip: open_clip.CLIP, tokenizer, w: dict[str, Tensor], m: int, template: str):
        self.clip, self.tokenizer, self.w, self.m, self.template = clip, tokenizer, w, m, template
        self.text_layers, self.visual_layers = clip.transformer.resblocks, clip.visual.transformer.resblocks

    def tokens(self, words: str) -> list[int]:
        """[SOS], the words and [EOS], without what fills up the context."""
        ids = self.tokenizer([words])[0].tolist()
        return ids[: ids.index(max(ids)) + 1]

    def encode_text(self, kind: int, name: str, t: Tensor) -> tuple[Tensor, list[Tensor], tuple[int, int]]:
        """The text feature of a class, its states after every layer, and where its words are."""
        clip, m = self.clip, self.m
        sos, *words, eos = self.tokens(f"{self.template.format(modality=KINDS[kind])} {name}")
        ids = [sos, *[0] * m, *words, eos]
        last = len(ids) - 1
        ids += [0] * (77 - len(ids))
        x = clip.token_embedding.weight[ids]
        x = torch.cat([x[:1], t, x[1 + m :]]) + clip.positional_embedding
        mask = torch.full((77, 77), -math.inf, dtype=x.dtype).triu(1)
        states = []
        for i, layer in enumerate(self.text_layers):
            if i:
                x = torch.cat([x[:1], t, x[1 + m :]])
            x = layer(x[None], attn_mask=mask)[0]
            states.append(x)
        feature = clip.ln_final(x)[last] @ clip.text_projection
        return feature / feature.norm(), states, (1 + m, last)

    def word_tokens(self, kind: int) -> Tensor:  # [4, d_v]
        ids = self.tokens(self.template.format(modality=KINDS[kind]))[:-1]
        rows = [self.clip.token_embedding.weight[i] for i in ids]
        return torch.stack([linear(F.layer_norm(row, row.shape), self.w, "b_v.project") for row in rows])

    def patches(self, image: Tensor) -> Tensor:  # [3, H, W] of 0..1 -> E_0 [P, d_v]
        mean, std = (
            torch.tensor(t, dtype=torch.float32)[:, None, None] for t in (MEAN, STD)
        )  # as the package holds them
        pixels = (image - mean) / std
        return self.clip.visual.conv1(pixels[None])[0].flatten(1).T

    def encode_image(self, patches: Tensor, words: Tensor, layers: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The image's feature, and its states [1 + P, d_v] after the last layer.

        Args:
            layers: V_ms of each visual layer.
        """
        visual = self.clip.visual
        x = torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
        x = visual.ln_pre(x)
        for layer, more in zip(self.visual_layers, layers, strict=True):
            prompts = torch.cat([words, more])
            x = layer(torch.cat([x[:1], prompts, x[1:]])[None])[0]
            x = torch.cat([x[:1], x[1 + len(prompts) :]])
        feature = visual.ln_post(x[0]) @ visual.proj
        return feature / feature.norm(), x


# ---- one batch ----


def cut(image: Tensor, permutation: list[int]) -> Tensor:
    """The picture whose tile t, of 3 x 3 rows first, is the image's tile permutation[t]."""
    out, side = image.clone(), image.shape[1] // 3
    for t, source in enumerate(permutation):
        (r, c), (i, j) = divmod(t, 3), divmod(source, 3)
        out[:, r * side : (r + 1) * side, c * side : (c + 1) * side] = image[
            :, i * side : (i + 1) * side, j * side : (j + 1) * side
        ]
    return out


def similarities(clip: open_clip.CLIP, tokenizer, classes: list[str]) -> list[list[Tensor]]:
    """Cosines of the classes' texts, from the frozen tower without prompts."""
    with torch.no_grad():
        texts = [clip.encode_text(tokenizer([f"a photo of a {name}"]))[0] for name in classes]
        return [[a @ b / (a.norm() * b.norm()) for b in texts] for a in texts]


def prompts(towers: Towers, kind: int, patches: Tensor, classes: list[str]) -> tuple[list[Tensor], Tensor, list]:
    """Class texts, V_tg and V_ms of each visual layer, for what B_t is shown of one modality."""
    t = b_t(patches, towers.w)
    features, states, spans = zip(*[towers.encode_text(kind, name, t) for name in classes], strict=True)
    summary = []
    for layer in range(len(towers.visual_layers)):
        source = math.floor(layer * len(towers.text_layers) / len(towers.visual_layers))
        summary.append(b_vt([state[source] for state in states], spans, towers.w))
    return list(features), towers.word_tokens(kind), summary


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def losses(
    towers: Towers,
    images: Tensor,  # [3 * B, 3, S, S] of 0..1: sketches, positive photos, negative photos
    labels: list[int],  # 3 * B
    cuts: list[list[int]],  # the bank of permutations
    y: list[int],  # B, which one cuts a sketch
    similarity: list[list[Tensor]],
    classes: list[str],
    instance: bool,  # conditioning
    margin: float | None,  # fixed, or adaptive
    floor: float,  # of an adaptive one
    sizes: tuple[int, ...] = (),  # besides all components: what features tell is averaged over these
) -> dict[str, Tensor]:
    """L and its terms, with the weights 1, 1 and 0.1."""
    B = len(labels) // 3
    pictures = [*images, *(cut(images[i], cuts[y[i]]) for i in range(B))]
    kinds = [0] * B + [1] * (2 * B) + [0] * B
    patches = [towers.patches(picture) for picture in pictures]
    if instance:
        told = [prompts(towers, kind, e, classes) for kind, e in zip(kinds, patches, strict=True)]
    else:
        means = [sum(patches[:B]) / B, sum(patches[B : 3 * B]) / (2 * B)]
        both = [prompts(towers, kind, means[kind], classes) for kind in (0, 1)]
        told = [both[kind] for kind in kinds]
    encoded = [towers.encode_image(e, words, layers) for e, (_, words, layers) in zip(patches, told, strict=True)]
    features, tokens = zip(*encoded, strict=True)

    triplet = classification = whole = conditional = torch.zeros((), dtype=torch.float64)
    for i in range(B):
        p, n = B + i, 2 * B + i
        mu = max(floor, float(similarity[labels[i]][labels[n]])) if margin is None else margin
        for d in (*sizes, len(features[i])):
            s, near, far = (unit(features[j][:d]) for j in (i, p, n))
            difference = (s - near).pow(2).sum() - (s - far).pow(2).sum()
            triplet = triplet + (difference + mu).clamp(min=0) / B / (len(sizes) + 1)
        ce = [-f_js(tokens[j], tokens[3 * B + i], towers.w).log_softmax(dim=0)[y[i]] for j in (i, p, n)]
        whole, conditional = whole + ce[0] / B, conditional + (ce[1] - ce[2]).clamp(min=0) / B
    for i in range(3 * B):
        for d in (*sizes, len(features[i])):
            cosines = torch.stack([unit(features[i][:d]) @ unit(text[:d]) for text in told[i][0]])
            scores = (towers.clip.logit_scale.detach().exp() * cosines).log_softmax(dim=0)
            classification = classification - scores[labels[i]] / (3 * B) / (len(sizes) + 1)
    terms = {"triplet": triplet, "classification": classification, "jigsaw": whole + conditional}
    return {"loss": triplet + classification + 0.1 * terms["jigsaw"], **terms}
