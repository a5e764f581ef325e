"""The model of vlm.py as a PyTorch user would write it: eager, vectorised, text padded."""
import math
from functools import reduce
from operator import mul

import torch
import torch.nn.functional as F

import vlm

FUTURE = torch.ones(512, 512, dtype=torch.bool).triu(1)                    # [to][from]


def parameters(settings, numbers, dtype):
    """vlm's numbers -> name -> tensor [rows][columns] that wants a gradient"""
    shapes = vlm.shapes(settings)
    parts = torch.tensor(numbers, dtype=dtype).split(list(map(math.prod, shapes.values())))
    return {name: part.view(shape).clone().requires_grad_()
            for part, (name, shape) in zip(parts, shapes.items())}


def encode(settings, texts):
    """texts -> their letters as indices, padded [batch][longest], whether a predicted letter counts:
    1, or 0 for padding [batch][longest - 1]"""
    longest = max(map(len, texts))
    text = torch.tensor([[settings.vocabulary.index(letter) for letter in
                          text.ljust(longest, vlm.EOS)] for text in texts])
    length = torch.tensor([[len(text) - 1] for text in texts])
    return text, (torch.arange(longest - 1) < length).double()


def rmsnorm(x):
    """x [..., n] -> [..., n] with mean square 1"""
    return F.rms_norm(x, x.shape[-1:], eps=1e-5)


def see(weights, settings, patches):
    """patches [batch][patches][n] -> vision tokens [batch][patches][tokens][width], latents of
    degree 2 [batch][patches][k]"""
    two, tokens = patches[:, :, :0], []
    contrast = rmsnorm(patches - patches.mean(2, keepdim=True))
    for number, degree in enumerate(settings.tokens):
        inputs = {1: [patches], 2: [patches] * 2, 3: [contrast] * 3}.get(degree)
        if degree == 4:
            inputs = [rmsnorm(half) for half in two.chunk(2, 2)]
        tokens.append(reduce(mul, [F.linear(x, weights[f'eye{number}.{factor}'])
                                   for factor, x in enumerate(inputs)]))
        if degree == 2:
            two = torch.cat([two, tokens[-1]], 2)
    return torch.stack(tokens, 2), two


def rebuilding_loss(weights, settings, two, patches):
    """latents of degree 2 [batch][patches][k], patches [batch][patches][n] -> mean part of the
    products of two pixels that is not rebuilt"""
    everything = (patches * patches).sum(2) ** 2
    missing = everything
    if 2 in settings.tokens:
        left, right = [torch.cat([weights[f'eye{number}.{factor}'] for number, degree in
                                  enumerate(settings.tokens) if degree == 2]) for factor in (0, 1)]
        gram = (left @ left.T) * (right @ right.T)
        missing = ((two @ gram) * two).sum(2) - 2 * (two * two).sum(2) + everything
    return (missing.sum(1) / everything.sum(1)).mean()


def attention(query, key, value, pieces):
    """query, key, value [batch][time][heads][width / heads] -> [batch][time][width]"""
    time, head_width = query.shape[1], query.shape[3]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    scores = reduce(mul, [q @ k.transpose(2, 3) for q, k in
                          zip(query.chunk(pieces, 3), key.chunk(pieces, 3))])
    scores = scores / (head_width / pieces) ** (pieces / 2)
    out = scores.masked_fill(FUTURE[:time, :time], -torch.inf).softmax(3) @ value
    return out.transpose(1, 2).flatten(2)


def next_logits(weights, settings, tokens, text):
    """vision tokens [batch][patches][tokens][width], letters [batch][time] -> the logits after each
    letter [batch][time][vocabulary]"""
    h = torch.cat([tokens.flatten(1, 2) + weights['mouth.vision_position'],
                   F.embedding(text, weights['mouth.embedding'])
                   + weights['mouth.text_position'][:text.shape[1]]], 1)
    for layer in range(settings.layers):
        query, key, value, output, up, down = [
            weights[f'mouth{layer}.{name}'] for name in 'query key value output up down'.split()]
        normed = rmsnorm(h)
        query, key, value = [F.linear(normed, w).unflatten(2, (settings.heads, -1))
                             for w in (query, key, value)]
        h = h + F.linear(attention(query, key, value, settings.pieces), output)
        h = h + F.linear(F.linear(rmsnorm(h), up).relu(), down)
    return F.linear(rmsnorm(h[:, -text.shape[1]:]), weights['mouth.logits'])


def loss(weights, settings, x, text, counts):
    """images x, patch by patch [batch][size * size], encoded texts -> the number that a step of
    vlm.py makes smaller"""
    patches = x.unflatten(1, (settings.patches ** 2, -1))
    tokens, two = see(weights, settings, patches)
    logits = next_logits(weights, settings, tokens, text[:, :-1])
    entropy = F.cross_entropy(logits.transpose(1, 2), text[:, 1:], reduction='none')
    entropy = entropy * (torch.exp(-entropy) <= settings.known)
    letters = (entropy * counts.to(x.dtype)).sum(1).mean()
    if not settings.reconstruction:
        return letters
    return letters + settings.reconstruction * rebuilding_loss(weights, settings, two, patches)


def accuracy(weights, settings, x, text, counts):
    """images x, encoded texts -> share of the images whose text greedy decoding would speak: that
    is, whose every letter is the most probable one after the right letters before it"""
    with torch.no_grad():
        tokens, _ = see(weights, settings, x.unflatten(1, (settings.patches ** 2, -1)))
        logits = next_logits(weights, settings, tokens, text[:, :-1])
    right = (logits.argmax(2) == text[:, 1:]) | (counts == 0)
    return right.all(1).double().mean().item()
