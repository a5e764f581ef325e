"""What the tests of the mathematics share: tiny models, finite differences, and the whole model
once more in plain floats, as its formulas say it and without any function of vlm.py."""
import argparse
import gc
import itertools
import math
import random
import unittest
from operator import mul

import vlm


def tiny(**changes):
    """The default settings of size 8, changed to a model of few weights, then as asked for"""
    defaults = {name: row[0] for name, row in vlm.SETTINGS.items()}
    small = dict(size=2, attention='tensor', stages='joint', width=4, heads=1, layers=2, mlp=1,
                 degree2=1, degree3=1, degree4=1, batch=2, steps=1, reconstruction=0.7, hard=0.0,
                 seed=1)
    return argparse.Namespace(**{**defaults, **small, **changes})


def gauss(count, seed, spread=1.0):
    """Normally distributed floats"""
    rng = random.Random(seed)
    return [rng.gauss(0, spread) for _ in range(count)]


def random_weights(settings, seed=5):
    """Weights as Values, none of them zero, so that each of them matters"""
    shapes = vlm.matrix_shapes(settings)
    flat = gauss(sum(rows * columns for rows, columns in shapes.values()), seed, 0.6)
    return matrices(shapes, map(vlm.Value, flat))


def matrices(shapes, flat):
    """Numbers in the order of the weights -> the weights: name -> matrix"""
    flat = iter(flat)
    return {name: [vlm.vector([next(flat) for _ in range(columns)]) for _ in range(rows)]
            for name, (rows, columns) in shapes.items()}


def flatten(weights):
    """name -> matrix, as one flat list"""
    return [v for matrix in weights.values() for row in matrix for v in row]


def rows(x, n):
    """x [m * n] -> [m][n]"""
    return [vlm.vector(x[i:i + n]) for i in range(0, len(x), n)]


def slopes(function, x, step=1e-5):
    """Central finite differences of function(x) with respect to each element of x"""
    def moved(i, by):
        return function(x[:i] + [x[i] + by] + x[i + 1:])
    return [(moved(i, step) - moved(i, -step)) / (2 * step) for i in range(len(x))]


def product(matrix, x):
    """Matrix times vector"""
    return [sum(a * b for a, b in zip(row, x)) for row in matrix]


def plus(x, y):
    """The sum of two vectors"""
    return [a + b for a, b in zip(x, y)]


def norm(x):
    """RMSNorm"""
    return [v / math.sqrt(sum(u * u for u in x) / len(x) + vlm.NORM_EPSILON) for v in x]


def softmax(z, temperature=1.0):
    """The textbook formula"""
    return [math.exp(v / temperature) / sum(math.exp(u / temperature) for u in z) for v in z]


def attention(kind, heads, query, keys, values):
    """The textbook formula; for tensor, on the explicit Kronecker product of a head's halves"""
    def whole(x):
        half = len(x) // 2
        return x if kind == 'dot' else [a * b for a in x[:half] for b in x[half:]]
    size, out = len(query) // heads, []
    for own in [slice(i, i + size) for i in range(0, len(query), size)]:
        q = whole(query[own])
        scores = [v / math.sqrt(len(q)) for v in product([whole(key[own]) for key in keys], q)]
        out += product(zip(*[value[own] for value in values]), softmax(scores))
    return out


def gram(left, right):
    """The products of all pairs of rows, in one matrix after the other, multiplied"""
    return [[math.prod(sum(map(mul, m[i], m[j])) for m in (left, right)) for j in range(len(left))]
            for i in range(len(left))]


def materialised(left, right, x):
    """||sum_j f_j l_j (x) r_j - x (x) x||^2 / n^2, in all its n^2 elements"""
    triples = list(zip(map(mul, product(left, x), product(right, x)), left, right))
    return sum((sum(f * l[p] * r[q] for f, l, r in triples) - x[p] * x[q]) ** 2
               for p in range(len(x)) for q in range(len(x))) / len(x) ** 2


def squares(x, count):
    """The count * count patches of a square image, by their pixels' coordinates"""
    side = math.isqrt(len(x))
    own = [(i // side * count // side, i % side * count // side) for i in range(len(x))]
    return [[v for v, at in zip(x, own) if at == place]
            for place in itertools.product(range(count), repeat=2)]


def forward(w, s, x, letters):
    """Weights, settings, image -> logits after each letter: all positions at once, no cache"""
    def code(degree, inputs):
        factors = [product(w[f'eye.degree{degree}.{i}'], v) for i, v in enumerate(inputs)]
        return [math.prod(column) for column in zip(*factors)]
    tokens, contrast = [], norm([v - sum(x) / len(x) for v in x])
    for patch, c in zip(squares(x, s.patches), squares(contrast, s.patches)):
        two = code(2, [patch] * 2)
        halves = [norm(half) for half in rows(two, max(len(two) // 2, 1))]
        latents = code(1, [patch]) + two + code(3, [c] * 3) + code(4, halves)
        tokens += rows(latents, s.width)
    tokens += [w['letter'][vlm.VOCABULARY.index(letter)] for letter in letters]
    xs = list(map(plus, tokens, w['position']))
    for layer in range(s.layers):
        def project(name, vectors):
            return [product(w[f'layer{layer}.{name}'], v) for v in vectors]
        queries, keys, values = (project(n, map(norm, xs)) for n in ('query', 'key', 'value'))
        mixed = [attention(s.attention, s.heads, query, keys[:i + 1], values[:i + 1])
                 for i, query in enumerate(queries)]
        xs = list(map(plus, xs, project('output', mixed)))
        hidden = [[max(v, 0.0) for v in y] for y in project('up', map(norm, xs))]
        xs = list(map(plus, xs, project('down', hidden)))
    return [product(w['head'], norm(x)) for x in xs[-len(letters):]]


def image_losses(w, s, pixels, label):
    """Mean cross-entropy of the hard letters, over all; error of the materialised reconstruction"""
    x, text = norm(pixels), '<' + vlm.NAMES[label] + '>'
    logits = forward(w, s, x, text[:-1])
    letters = [-math.log(softmax(z)[vlm.VOCABULARY.index(target)])
               for z, target in zip(logits, text[1:])]
    errors = [materialised(w['eye.degree2.0'], w['eye.degree2.1'], patch)
              for patch in squares(x, s.patches)]
    return sum(v for v in letters if v >= s.hard) / len(letters), sum(errors) / len(errors)


class Case(unittest.TestCase):
    """A test that leaves no graph behind and can compare lists of numbers."""
    def setUp(self):
        self.addCleanup(vlm.Value.tape.clear)
        self.addCleanup(gc.enable)  # gradients() disables it

    def assertNear(self, actual, expected, tolerance=1e-12):
        self.assertEqual(len(actual), len(expected))
        for i, (a, e) in enumerate(zip(actual, expected)):
            if not abs(a - e) <= tolerance * (1 + abs(e)):  # so written, NaN is not near anything
                self.fail(f'element {i} is {a!r}, expected {e!r}')
