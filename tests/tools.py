"""What the tests of the mathematics share: tiny models, finite differences, and the whole model
once more in plain floats, as its formulas say it and without any function of vlm.py: all positions
of a text at once, and what the eye rebuilds in all its pairs of pixels."""
import argparse
import functools
import gc
import math
import random
import unittest
from operator import mul

import vlm

EPSILON = 1e-5  # what RMSNorm adds to the mean square


def asked(weights, settings, x, question='name'):
    """What the model says to a question about an image x"""
    return vlm.answer(weights, settings, x)[0][question]

def portions(map=map):
    """-> a gradient_of for learn(), as the program has it: in portions, shared out by map"""
    return functools.partial(vlm.shared_gradient, map)

def learned(settings, numbers, examples):
    """Learn from examples, all steps, to the same bits as the program -> the matrices"""
    for _ in vlm.learn(settings, numbers, examples, gradient_of=portions()):
        pass
    return vlm.matrices(settings, numbers)

def tiny(**changes):
    """Settings of a model of few weights that spells with a, b and c; then as asked for"""
    small = dict(size=2, tokens=[2, 3, 4], width=4, heads=1, layers=2, batch=2, steps=1,
                 reconstruction=0.7, known=1.0)
    spelling = dict(vocabulary='<>abc', longest=4)  # in place of what complete() finds
    return argparse.Namespace(**{**vars(vlm.complete({**small, **changes})), **spelling, **changes})


def gauss(count, seed, spread=1.0):
    """Normally distributed floats"""
    rng = random.Random(seed)
    return [rng.gauss(0, spread) for _ in range(count)]


def names(settings):
    """For each number of the model, the name of its matrix"""
    return [name for name, shape in vlm.shapes(settings).items() for _ in range(math.prod(shape))]


def random_numbers(settings, seed=5):
    """Numbers of a model, none of them zero, so that each of them matters"""
    return gauss(len(names(settings)), seed, 0.6)


def matrices(settings, numbers):
    """The numbers as name -> matrix"""
    numbers = iter(numbers)
    return {name: [[next(numbers) for _ in range(columns)] for _ in range(rows)]
            for name, (rows, columns) in vlm.shapes(settings).items()}


def rows(x, n):
    """x [m * n] -> [m][n]"""
    return [x[i:i + n] for i in range(0, len(x), n)]


def slopes(function, x, step=1e-5):
    """Central finite differences of function(x) by each element of x"""
    def moved(i, by):
        return function(x[:i] + [x[i] + by] + x[i + 1:])
    return [(moved(i, step) - moved(i, -step)) / (2 * step) for i in range(len(x))]


def dot(x, y):
    """The sum of the products"""
    return sum(map(mul, x, y))


def product(matrix, x):
    """Matrix times vector"""
    return [sum(map(mul, row, x)) for row in matrix]


def plus(x, y):
    """The sum of two vectors"""
    return [a + b for a, b in zip(x, y)]


def norm(x):
    """RMSNorm"""
    size = math.sqrt(dot(x, x) / len(x) + EPSILON)
    return [v / size for v in x]


def softmax(z):
    """The textbook formula"""
    total = sum(map(math.exp, z))
    return [math.exp(v) / total for v in z]


def attend(settings, query, keys, values):
    """The textbook formula for each head, on the explicit Kronecker product of its pieces
    -> the mixture of values, the shares of each head"""
    def whole(x):
        out = [1.0]
        for piece in rows(x, len(x) // settings.pieces):
            out = [a * b for a in out for b in piece]
        return out
    size, out, shares = len(query) // settings.heads, [], []
    for own in [slice(i, i + size) for i in range(0, len(query), size)]:
        q = whole(query[own])
        scores = product([whole(key[own]) for key in keys], q)
        shares.append(softmax([score / math.sqrt(len(q)) for score in scores]))
        out += product(zip(*[value[own] for value in values]), shares[-1])
    return out, shares


def look(w, settings, patch):
    """Weights, settings, a patch -> its vision tokens"""
    tokens = []
    for number, degree in enumerate(settings.tokens):
        if degree == 4:
            f = sum([t for d, t in zip(settings.tokens, tokens) if d == 2], [])
            inputs = list(map(norm, (f[:len(f) // 2], f[len(f) // 2:])))
        elif degree == 3:
            inputs = [norm([v - sum(patch) / len(patch) for v in patch])] * 3
        else:
            inputs = [patch] * degree
        factors = [product(w[f'eye{number}.{i}'], x) for i, x in enumerate(inputs)]
        tokens.append(list(map(math.prod, zip(*factors))))
    return tokens


def spell(w, settings, tokens, letters):
    """Vision tokens of all patches, letters -> the logits after each letter, the shares that each
    token takes [layers][tokens][heads]"""
    hs = [plus(token, w['mouth.vision_position'][i]) for i, token in enumerate(sum(tokens, []))]
    indices = map(settings.vocabulary.index, letters)
    hs += [plus(w['mouth.embedding'][index], w['mouth.text_position'][i])
           for i, index in enumerate(indices)]
    shares = []
    for layer in range(settings.layers):
        def project(name, vectors):
            return [product(w[f'mouth{layer}.{name}'], v) for v in vectors]
        queries, keys, values = [project(n, map(norm, hs)) for n in ('query', 'key', 'value')]
        fetched, own = zip(*[attend(settings, query, keys[:i + 1], values[:i + 1])
                             for i, query in enumerate(queries)])
        shares.append(own)
        hs = list(map(plus, hs, project('output', fetched)))
        hidden = [[max(v, 0.0) for v in h] for h in project('up', map(norm, hs))]
        hs = list(map(plus, hs, project('down', hidden)))
    return [product(w['mouth.logits'], norm(h)) for h in hs[-len(letters):]], shares


def naming(w, settings, tokens, text):
    """Cross-entropy of the letters, summed; those that are known count as 0"""
    probs = [softmax(z)[settings.vocabulary.index(letter)]
             for z, letter in zip(spell(w, settings, tokens, text[:-1])[0], text[1:])]
    return sum(-math.log(p) for p in probs if p <= settings.known)


def rebuilding(w, settings, patches):
    """The part of the products of all pairs of pixels, element by element, that is not rebuilt"""
    missing = everything = 0.0
    for p in patches:
        triples = [(dot(l, p) * dot(r, p), l, r)
                   for number, degree in enumerate(settings.tokens) if degree == 2
                   for l, r in zip(w[f'eye{number}.0'], w[f'eye{number}.1'])]
        for i, j in [(i, j) for i in range(len(p)) for j in range(len(p))]:
            rebuilt = sum(f * l[i] * r[j] for f, l, r in triples)
            missing += (rebuilt - p[i] * p[j]) ** 2
            everything += (p[i] * p[j]) ** 2
    return missing / (everything or 1.0)


def loss(stage, w, settings, x, text):
    """An image, patch by patch, and a text -> their loss in a stage"""
    patches = rows(x, len(x) // settings.patches ** 2)
    tokens = [look(w, settings, patch) for patch in patches if stage != 'mouth']
    letters = naming(w, settings, tokens, text) if stage != 'eye' else 0.0
    error = rebuilding(w, settings, patches) if stage != 'mouth' else 0.0
    return letters + settings.reconstruction * error


class Case(unittest.TestCase):
    """A test that leaves no graph behind and can compare lists of numbers."""
    def setUp(self):
        self.addCleanup(vlm.Value.tape.clear)
        self.addCleanup(gc.enable)  # a test may disable it

    def assertNear(self, actual, expected, tolerance=1e-12):
        self.assertEqual(len(actual), len(expected))
        for i, (a, e) in enumerate(zip(actual, expected)):
            if not abs(a - e) <= tolerance * (1 + abs(e)):  # so written, NaN is not near anything
                self.fail(f'element {i} is {a!r}, expected {e!r}')
