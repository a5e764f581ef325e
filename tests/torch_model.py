"""The model of vlm.py as a PyTorch user would write it: eager, vectorised, text padded."""
import math
from functools import reduce
from operator import mul

import torch
import torch.nn.functional as F

import vlm

TEXT = torch.tensor([[vlm.VOCABULARY.index(letter) for letter in
                      (vlm.BOS + name + vlm.EOS).ljust(vlm.LONGEST + 1, vlm.EOS)]
                     for name in vlm.NAMES])                               # [digits][1 + LONGEST]
LENGTH = torch.tensor([len(name) + 1 for name in vlm.NAMES])               # [digits]
SHARE = (torch.arange(vlm.LONGEST) < LENGTH[:, None]) / LENGTH[:, None].double()  # of a letter
FUTURE = torch.ones(512, 512, dtype=torch.bool).triu(1)                    # [to][from]


def parameters(weights, dtype):
    """vlm's weights (Values) -> name -> tensor [m][n] that wants a gradient; empty ones left out"""
    return {name: torch.tensor([[value.data for value in row] for row in matrix], dtype=dtype,
                               requires_grad=True) for name, matrix in weights.items() if matrix}


def cut(x, patches):
    """square images x [batch][n] -> their square patches [batch][patches^2][n / patches^2]"""
    part = math.isqrt(x.shape[1]) // patches
    return x.unflatten(1, (patches, part, patches, part)).transpose(2, 3).flatten(3).flatten(1, 2)


def rmsnorm(x):
    """x [..., n] -> [..., n] with mean square 1"""
    return F.rms_norm(x, x.shape[-1:], eps=vlm.NORM_EPSILON)


def latents(weights, degree, inputs):
    """inputs [factors] of [batch][n] -> products of one dot product per factor [batch][latents]"""
    matrices = [weights[f'eye.degree{degree}.{factor}'] for factor in range(len(inputs))]
    return reduce(mul, map(F.linear, inputs, matrices))


def attention(query, key, value, pieces):
    """query, key, value [batch][time][heads][width / heads] -> [batch][time][width]"""
    time, head_width = query.shape[1], query.shape[3]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    scores = reduce(mul, [q @ k.transpose(2, 3) for q, k in
                          zip(query.chunk(pieces, 3), key.chunk(pieces, 3))])
    scores = scores / (head_width / pieces) ** (pieces / 2)
    out = scores.masked_fill(FUTURE[:time, :time], -torch.inf).softmax(3) @ value
    return out.transpose(1, 2).flatten(2)


def reconstruction_error(left, right, f, x):
    """left, right [k][n], latents f [batch][patches][k], x [batch][patches][n] -> mean error"""
    products = (left @ left.T) * (right @ right.T)
    error = ((f @ products) * f).sum(2) - 2 * (f * f).sum(2) + (x * x).sum(2) ** 2
    return error.mean() / x.shape[2] ** 2


def forward(weights, settings, x, labels):
    """images x [batch][n], digits [batch] -> logits [batch][letters][vocabulary], their target
    letters [batch][letters], latents of degree 2 and patches [batch][patches][k or n]"""
    contrast = cut(rmsnorm(x - x.mean(1, keepdim=True)), settings.patches)
    x, two, tokens = cut(x, settings.patches), None, []
    if settings.degree1:
        tokens.append(latents(weights, 1, [x]))
    if settings.degree2:
        tokens.append(two := latents(weights, 2, [x, x]))
    if settings.degree3:
        tokens.append(latents(weights, 3, [contrast] * 3))
    if settings.degree4:
        tokens.append(latents(weights, 4, [rmsnorm(half) for half in two.chunk(2, 2)]))
    tokens = torch.cat(tokens, 2).unflatten(2, (-1, settings.width)).flatten(1, 2)
    longest = int(LENGTH[labels].max())
    text = TEXT[labels, :longest + 1]
    h = torch.cat([tokens, F.embedding(text[:, :-1], weights['letter'])], 1)
    h = h + weights['position'][:h.shape[1]]
    for layer in range(settings.layers):
        query, key, value, output, up, down = [
            weights[f'layer{layer}.{name}'] for name in 'query key value output up down'.split()]
        normed = rmsnorm(h)
        query, key, value = [F.linear(normed, w).unflatten(2, (settings.heads, -1))
                             for w in (query, key, value)]
        h = h + F.linear(attention(query, key, value, 1 + (settings.attention == 'tensor')), output)
        h = h + F.linear(F.linear(rmsnorm(h), up).relu(), down)
    return F.linear(rmsnorm(h[:, tokens.shape[1]:]), weights['head']), text[:, 1:], two, x


def loss(weights, settings, x, labels):
    """images x [batch][n], digits [batch] -> the number that a step of vlm.py makes smaller"""
    logits, targets, two, x = forward(weights, settings, x, labels)
    entropy = F.cross_entropy(logits.transpose(1, 2), targets, reduction='none')
    entropy = entropy * (entropy >= settings.hard)
    letters = (entropy * SHARE[labels, :targets.shape[1]].to(x.dtype)).sum(1).mean()
    if not settings.reconstruction:
        return letters
    left, right = weights['eye.degree2.0'], weights['eye.degree2.1']
    return letters + settings.reconstruction * reconstruction_error(left, right, two, x)


def accuracy(weights, settings, x, labels):
    """images x [batch][n], digits [batch] -> share whose name greedy decoding would speak: that
    is, whose every letter is the most probable one after the right letters before it"""
    with torch.no_grad():
        logits, targets, _, _ = forward(weights, settings, x, labels)
    right = (logits.argmax(2) == targets) | (SHARE[labels, :targets.shape[1]] == 0)
    return right.all(1).double().mean().item()


def downscale(pixels, size):
    """[pixels, as bytes] -> images as vlm's eye sees them [batch][size * size]"""
    x = torch.frombuffer(bytearray(b''.join(pixels)), dtype=torch.uint8).float()
    side = math.isqrt(len(pixels[0]))
    lines = torch.zeros(size, side)  # what each pixel of a line contributes to each bin
    for line, (start, parts) in zip(lines, vlm.bins(side, size)):
        line[start:start + len(parts)] = torch.tensor(parts)
    x = x.unflatten(0, (-1, side, side))
    return rmsnorm((lines @ x @ lines.T).flatten(1))
