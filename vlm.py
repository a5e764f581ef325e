#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# ///
"""vlm.py: a complete vision-language model in one file of pure Python, without dependencies.

It looks at a handwritten digit and says its name, letter by letter:

    28x28 image -> 8x8 pixels -> the eye -> [VIS_0] ... [VIS_2] [BOS] s e v e n
                                               |          |       |   | | | | |
                                               +----------+- the mouth -+-+-+-+
                                                                  |   | | | | |
                                                                  s   e v e n [EOS]

The eye turns the image into a few vectors, the vision tokens; the mouth is a small GPT, a model
that predicts the next letter from the tokens and letters before it. They learn together, or in
stages, from the derivatives of their error, which class Value computes (autograd). Read from top to
bottom: settings, autograd, layers, weights, eye, mouth, learning, data parallelism, speaking; then
data, files, command line. MIT licence.
"""
import argparse, collections, contextlib, gc, gzip, hashlib, http.client, itertools, json, math
import multiprocessing, os, random, signal, struct, sys, time, urllib.request, zlib
from array import array
from functools import lru_cache, reduce
from operator import mul
from pathlib import Path

# ---- Settings: every number that shapes the model or its learning --------------------------------
# The defaults were chosen by accuracy per second on 5,000 images kept for validation (README). The
# code below finds them as settings.width and so on, beside settings.size (8 or 14 pixels per side),
# settings.attention ('tensor' or 'dot') and settings.stages. A latent, a number that the eye finds
# in the image, has degree d if it is a product of d weighted sums of pixels (4: see the eye); a
# vision token is `width` latents. The chapters on mouth and learning explain the other words.

SETTINGS = {
    # name            8x8    14x14  least  what it is
    'width':          (16,    16,    1,     'numbers in the vector of a token'),
    'heads':          (2,     2,     1,     'attention heads; they share the width'),
    'layers':         (1,     1,     1,     'transformer layers'),
    'mlp':            (1,     1,     1,     'hidden units of a layer, per number of the width'),
    'patches':        (1,     1,     1,     'patches per side of the image; 1 is the whole image'),
    'degree1':        (0,     0,     0,     'vision tokens of degree 1 in the pixels, per patch'),
    'degree2':        (1,     1,     0,     'vision tokens of degree 2'),
    'degree3':        (2,     1,     0,     'vision tokens of degree 3'),
    'degree4':        (0,     0,     0,     'vision tokens of degree 4, products of degree 2'),
    'steps':          (450,   1250,  0,     'training steps of a stage, one minibatch each'),
    'batch':          (32,    32,    1,     'images in a minibatch'),
    'lr':             (0.014, 0.012, 1e-9,  'learning rate; it falls linearly to zero'),
    'decay':          (0.2,   0.2,   0.0,   'weight decay: times lr, how much a weight shrinks'),
    'reconstruction': (0.15,  0.03,  0.0,   'factor of the reconstruction error in the loss'),
    'hard':           (0.05,  0.05,  0.0,   'a letter of a lower cross-entropy counts as 0'),
    'seed':           (1,     1,     0,     'fixes the first weights and the order of the images'),
    'temperature':    (0.0,   0.0,   0.0,   'of spoken letters; 0 speaks the most probable one'),
    'top_p':          (1.0,   1.0,   1e-9,  'speak the likeliest letters, together this probable'),
}
SHARE = 4  # images in a share of a minibatch: what a process works on at a time

NAMES = 'zero one two three four five six seven eight nine'.split()
BOS, EOS = '<', '>'       # begin and end of a sequence: the digit 7 is spoken as <seven>
VOCABULARY = sorted(set(''.join(NAMES))) + [BOS, EOS]
LONGEST = max(map(len, NAMES)) + 1  # the most letters the mouth may speak, EOS among them

# ---- Autograd: numbers that remember where they came from ----------------------------------------
# A Value knows its parents, the Values it was computed from, and its derivative with respect to
# each. The chain rule, walked from the last Value back to the first, gives the derivative of the
# loss, the error to be made small, with respect to every number it depends on. Parents come in
# lists, so the dot product of two vectors, the sum of all a_i b_i, is one Value: its parents are
# the two vectors, and its derivatives with respect to the one are the numbers of the other. Most of
# this file's speed comes from that. The operators suffice for any formula; the layers below bring
# derivatives of their own.

class Value:
    """One scalar that can be differentiated."""
    __slots__ = 'data', 'grad', 'edges'
    tape = []  # every computed Value, oldest first: each comes after its parents

    def __init__(self, data, *edges):
        self.data = data    # the number itself
        self.grad = 0.0     # derivative of the loss with respect to this number
        self.edges = edges  # pairs: parents, derivatives of this number with respect to each
        if edges:           # weights have none: they stay off the tape; their grad adds up
            Value.tape.append(self)

    def __add__(self, other):
        if isinstance(other, Value):
            return Value(self.data + other.data, ((self, other), (1.0, 1.0)))
        return Value(self.data + other, ((self,), (1.0,)))

    def __mul__(self, other):
        if isinstance(other, Value):
            return Value(self.data * other.data, ((self, other), (other.data, self.data)))
        return Value(self.data * other, ((self,), (other,)))

    def __pow__(self, exponent):
        derivative = exponent * self.data ** (exponent - 1)
        return Value(self.data ** exponent, ((self,), (derivative,)))

    def exp(self):
        """e to the power of self"""
        data = math.exp(self.data)
        return Value(data, ((self,), (data,)))

    def log(self):
        """natural logarithm of self"""
        return Value(math.log(self.data), ((self,), (1 / self.data,)))

    def relu(self):
        """self where it is positive, else a constant 0"""
        return Value(0.0) if self.data <= 0 else self

    def __neg__(self): return self * -1.0
    def __sub__(self, other): return self + -other
    def __rsub__(self, other): return -self + other
    def __truediv__(self, other): return self * other ** -1
    def __rtruediv__(self, other): return self ** -1 * other
    __radd__, __rmul__ = __add__, __mul__

    def backward(self):
        """Add to v.grad, for every weight v, the derivative of self with respect to v."""
        for node in Value.tape:  # a second backward() starts from zero here,
            node.grad = 0.0      # and adds to the gradients of the weights
        self.grad += 1.0  # the derivative of self with respect to itself
        for node in reversed(Value.tape):
            grad = node.grad
            if grad:  # else the loss does not depend on this node: nothing to pass on
                for parents, derivatives in node.edges:
                    for parent, derivative in zip(parents, derivatives):
                        parent.grad += grad * derivative

class Vector(list):
    """A list of Values; `data` has their numbers, as a list of floats."""
    __slots__ = 'data',

def vector(elements):
    """Values or floats [n] -> the same [n]: Values as a Vector, floats as a plain list"""
    if not elements or type(elements[0]) is not Value:
        return list(elements)
    out = Vector(elements)
    out.data = [value.data for value in elements]
    return out

# ---- Layers: the parts of a transformer ----------------------------------------------------------
# Given Vectors, these functions compute Values, to learn from; given lists of floats, most of them
# only calculate, and that is all that speaking needs. Docstrings give shapes: `x [n] -> [m]` takes
# a vector of n numbers and returns one of m; [m][n] is a matrix, a list of m rows.

NORM_EPSILON = 1e-5  # keeps RMSNorm from dividing by zero, also on an all-black image
sumprod = getattr(math, 'sumprod', None) or (lambda a, b: sum(map(mul, a, b)))  # new in 3.12

def dot(a, b, start=None):
    """a [n], b [n] -> a.b, plus start if given: of floats a float, else one Value"""
    if type(a) is list:
        return sumprod(a, b) if start is None else start + sumprod(a, b)
    if type(b) is list:
        return Value(sumprod(a.data, b), (a, b))  # b is constant; here, start is never given
    if start is None:
        return Value(sumprod(a.data, b.data), (a, b.data), (b, a.data))
    return Value(start.data + sumprod(a.data, b.data), (a, b.data), (b, a.data), ((start,), (1.0,)))

def floats(x):
    """Vector or list of floats [n] -> its numbers [n]"""
    return x if type(x) is list else x.data

def linear(weight, x):
    """weight [m][n], x [n] -> [m]"""
    return vector([dot(row, x) for row in weight])

def residual(start, weight, x):
    """start [m], weight [m][n], x [n] -> start + weight x [m]"""
    return vector([dot(row, x, v) for v, row in zip(start, weight)])

def add(x, y):
    """x [n], y [n] -> [n]"""
    return vector([a + b for a, b in zip(x, y)])

def relu(x):
    """x [n] -> [n]"""
    return [max(v, 0.0) for v in x] if type(x) is list else vector([v.relu() for v in x])

def rmsnorm(x):
    """x [n] -> x scaled to mean square 1 [n] (Zhang and Sennrich 2019, without their gain)"""
    data = floats(x)
    scale = (sumprod(data, data) / len(x) + NORM_EPSILON) ** -0.5
    if type(x) is Vector:  # dscale / dx_j = -x_j scale^3 / n
        scale = Value(scale, (x, [-v * scale ** 3 / len(x) for v in data]))
    return vector([v * scale for v in x])

def split(x, n):
    """x [m * n] -> [m][n]"""
    return [vector(x[i:i + n]) for i in range(0, len(x), n)]

def softmax(logits, temperature=1.0):
    """logits, scores [n] -> probabilities [n], proportional to e^(logit / temperature)"""
    data = floats(logits)
    highest = max(data)  # subtracting it changes no ratio and keeps exp from overflowing
    exps = [math.exp((z - highest) / temperature) for z in data]
    total = sum(exps)
    probs = [e / total for e in exps]
    if type(logits) is list:
        return probs
    rows = [[-p * q / temperature for q in probs] for p in probs]  # dp_i / dlogit_j
    for i, p in enumerate(probs):
        rows[i][i] += p / temperature  # where i = j
    return vector([Value(p, (logits, row)) for p, row in zip(probs, rows)])

def cross_entropy(logits, target):
    """logits [n], index of the target -> -log p_target;   d / dlogit_j = p_j - (j == target)"""
    probs = softmax(logits.data)
    loss = -math.log(max(probs[target], sys.float_info.min))  # never log(0)
    probs[target] -= 1
    return Value(loss, (logits, probs))

# ---- Weights: the numbers that are learned -------------------------------------------------------
# They are matrices with names; their rows are Vectors. The chapters below say what each does.

PARTS = 'query', 'key', 'value', 'output', 'up', 'down'  # the matrices of a transformer layer

def matrix_shapes(settings):
    """The model's matrices: name -> (rows, columns >= 1); eye.degree2 first, for batch_gradient"""
    width, hidden = settings.width, settings.mlp * settings.width
    one, two, three, four = [width * getattr(settings, f'degree{n}') for n in range(1, 5)]
    pixels = (settings.size // settings.patches) ** 2  # of a patch
    tokens = settings.patches ** 2 * (one + two + three + four) // width
    shapes = {f'eye.degree2.{factor}': (two, pixels) for factor in range(2)}
    shapes['eye.degree1.0'] = one, pixels
    shapes.update({f'eye.degree3.{factor}': (three, pixels) for factor in range(3)})
    shapes.update({f'eye.degree4.{factor}': (four, max(two // 2, 1)) for factor in range(2)})
    for layer in range(settings.layers):
        shapes.update({f'layer{layer}.{part}': (width, width) for part in PARTS})
        shapes.update({f'layer{layer}.up': (hidden, width), f'layer{layer}.down': (width, hidden)})
    shapes['position'] = tokens + LONGEST, width
    shapes['letter'] = shapes['head'] = len(VOCABULARY), width
    return shapes

def first_weights(settings):
    """Random matrices, but for zeros: output and down add nothing yet, head prefers no letter"""
    rng, weights = random.Random(settings.seed), {}
    for name, (rows, columns) in matrix_shapes(settings).items():
        spread = 0.0 if name.endswith(('output', 'down', 'head')) else columns ** -0.5
        weights[name] = [vector([Value(rng.gauss(0, spread)) for _ in range(columns)])
                         for _ in range(rows)]
    return weights

def numbers(weights):
    """The same matrices in floats"""
    return {name: [row.data for row in matrix] for name, matrix in weights.items()}

def flat(weights):
    """All numbers of the matrices in a row"""
    return [number for matrix in weights.values() for row in matrix for number in row.data]

def assign(weights, data):
    """Set all numbers, and the rows' `data`, from a flat list."""
    data = iter(data)
    for row in itertools.chain(*weights.values()):
        row.data = list(itertools.islice(data, len(row)))
        for value, number in zip(row, row.data):
            value.data = number

# ---- The eye: a bilinear autoencoder -------------------------------------------------------------
# A vision token is a vector of `width` latents. A latent of degree 1 is the dot product of the
# image and a pattern, a row of weights; of degree 2 or 3, the product of two or three such: far
# from 0 only where all of them are. Latents of degree 2, f_j = (l_j.x)(r_j.x), where l_j and r_j
# are row j of eye.degree2.0 and eye.degree2.1, also form a bilinear autoencoder (BAE; Dooms and
# Gauderis 2025, arXiv:2510.16820), which is to rebuild what it saw. Write a b^T for the matrix of
# all products a_i b_j: then, with the same l_j and r_j, the sum of f_j l_j r_j^T is to be close to
# x x^T, the products of all pairs of pixels. Degree 4 ("BAE x BAE") multiplies two dot products,
# one with each half of the latents of degree 2, normalised. An image can be cut into patches,
# which are looked at one by one, with the same weights.

@lru_cache(maxsize=None)
def bins(side, size):
    """Divide `side` pixels, less a border, into `size` bins -> for each, its first pixel and, from
    that pixel on, the share of the bin that each pixel covers"""
    border = side // 9  # 3 of MNIST's 28 pixels, nearly always black; the bundled 8x8 have none
    width = (side - 2 * border) / size
    edges = [border + i * width for i in range(size + 1)]
    return [(int(a), [(min(b, p + 1) - max(a, p)) / width for p in range(int(a), math.ceil(b))])
            for a, b in zip(edges, edges[1:])]

def downscale(pixels, size):
    """pixels [side * side] -> [size * size]: area averages, where a bin may own part of a pixel"""
    side = math.isqrt(len(pixels))
    lines = [pixels[column::side] for column in range(side)]
    for _ in range(2):  # shrink columns, leaving rows; shrink these, leaving columns
        lines = list(zip(*[[sumprod(parts, line[start:start + len(parts)])
                            for start, parts in bins(side, size)] for line in lines]))
    return [v for row in zip(*lines) for v in row]

def latents(weights, degree, inputs):
    """one input [n] per factor -> latents of this degree, each a product of dot products"""
    matrices = [weights[f'eye.degree{degree}.{factor}'] for factor in range(len(inputs))]
    return vector([reduce(mul, map(dot, patterns, inputs)) for patterns in zip(*matrices)])

def cut(x, patches):
    """square image x [n] -> its square patches [patches^2][n / patches^2]"""
    side = math.isqrt(len(x))
    part = side // patches
    corners = [top * side + left for top in range(0, side, part) for left in range(0, side, part)]
    return [[v for i in range(corner, corner + part * side, side) for v in x[i:i + part]]
            for corner in corners]

def see(weights, settings, x):
    """image x [n] -> vision tokens [tokens][width], patches, codes: f of degree 2 [k] each"""
    mean, tokens, codes = sum(x) / len(x), [], []
    contrast = rmsnorm([v - mean for v in x])  # for degree 3, which learns faster without the mean
    patches = cut(x, settings.patches)
    for patch, contrasts in zip(patches, cut(contrast, settings.patches)):
        one = latents(weights, 1, [patch])
        two = latents(weights, 2, [patch, patch])
        three = latents(weights, 3, [contrasts] * 3)
        four = []
        if weights['eye.degree4.0']:  # from two normalised halves of the latents of degree 2
            four = latents(weights, 4, [rmsnorm(half) for half in split(two, len(two) // 2)])
        tokens += split(one + two + three + four, settings.width)
        codes.append(two)
    return tokens, patches, codes

def pairs(rows):
    """rows [k][n], floats -> all their dot products [k][k]; the upper half mirrors the lower"""
    lower = [[dot(a, b) for b in rows[:i + 1]] for i, a in enumerate(rows)]
    return [row + [later[i] for later in lower[i + 1:]] for i, row in enumerate(lower)]

def hadamard(a, b):
    """matrices a, b [m][n] -> their products, element by element [m][n]"""
    return [list(map(mul, *rows)) for rows in zip(a, b)]

def reconstruction_error(gram, f, x):
    """gram [k][k], f [k], patch x [n] -> ||sum_j f_j l_j r_j^T - x x^T||^2 / n^2"""
    # Dot two matrices as vectors: multiply element by element, add up. l_i r_i^T dot l_j r_j^T is
    # (l_i.l_j)(r_i.r_j), element i, j of the gram, hadamard(pairs(l), pairs(r)). With A the rebuilt
    # matrix and B = x x^T, the square is A.A - 2 A.B + B.B. The paper's kernel trick: A.A is
    # f.(gram f), A.B is sum_j f_j (l_j.x)(r_j.x) = f.f, B.B is (x.x)^2: none needs n^2 numbers.
    # The derivative with respect to f, with the gram held constant, is 2 gram f - 4 f = 2 pull.
    data = floats(f)
    pull = [g - 2 * v for g, v in zip(linear(gram, data), data)]
    error = (dot(data, pull) + dot(x, x) ** 2) / len(x) ** 2
    return error if type(f) is list else Value(error, (f, [2 * d / len(x) ** 2 for d in pull]))

def gram_gradient(moments, rows, others):
    """moments, sums of f_i f_j over patches [k][k]; rows, l [k][n]; others, pairs(r) [k][k] -> the
    sum over these patches of d f.(gram f) / dl, with f constant [k][n]"""
    # The error depends on l through f, which autograd follows (-2 f.f included), and through the
    # gram, which it takes as constant. In the latter, f enters only as products f_i f_j, so their
    # sums are all that is needed, and one call serves a minibatch.
    # Row i is 2 sum_j f_i f_j (r_i.r_j) l_j. For r, exchange l and r.
    columns = [list(column) for column in zip(*rows)]  # of l, one per pixel
    return [[2 * sumprod(line, column) for column in columns] for line in hadamard(moments, others)]

# ---- The mouth: a GPT with tensor-product attention ----------------------------------------------
# One sequence, [VIS_0 ... VIS_2] [BOS] s e v e n: each letter predicts the next one. A position
# starts with a vector x: its vision token, or its letter's row of the matrix `letter`, plus its own
# row of `position`, as attention alone cannot tell the order. Attention: three matrices make of x a
# query, a key and a value. A position compares its query with the key of each position up to
# itself; the better they match, the larger the share (softmax) it takes of that position's value.
# Each head does so with its own part of the vectors. The usual score of a match is q.k; the tensor
# product cuts both in half and multiplies two matches, (q1.k1)(q2.k2). A layer adds to x `output`
# times what attention has fetched, then what a small network, down relu(up x), makes of x; both
# read rmsnorm(x). `head` turns the last x into a logit, a score, per letter; softmax, into
# probabilities. Positions run one by one and leave keys and values in a cache, also in learning.

def attention(query, keys, values):
    """query [heads * pieces][n], keys [time] of these, values [time][heads][width / heads]
    -> [width]"""
    pieces = len(query) // len(values[0])  # of each head: 1 for dot, 2 for tensor attention
    spread = len(query[0]) ** (pieces / 2)  # of a score: sqrt(n) for dot (Vaswani et al. 2017) or n
    out = []
    for head in range(len(values[0])):
        own = slice(head * pieces, (head + 1) * pieces)
        scores = [reduce(mul, map(dot, query[own], key[own])) for key in keys]
        probs = softmax(vector(scores), temperature=spread)
        out += [dot(probs, vector(column)) for column in zip(*[v[head] for v in values])]
    return vector(out)

def transformer(weights, settings, x, cache, read=True):
    """One position: x [width], cache [layers] of keys, values -> logits [vocabulary] if read"""
    head_width = settings.width // settings.heads
    piece = head_width // 2 if settings.attention == 'tensor' else head_width
    for layer, (keys, values) in enumerate(cache):
        query, key, value, output, up, down = [weights[f'layer{layer}.{part}'] for part in PARTS]
        h = rmsnorm(x)
        keys.append(split(linear(key, h), piece))
        values.append(split(linear(value, h), head_width))
        if not read and layer == len(cache) - 1:
            return None  # a vision token: of its last layer, only key and value are ever read
        x = residual(x, output, attention(split(linear(query, h), piece), keys, values))
        x = residual(x, down, relu(linear(up, rmsnorm(x))))
    return linear(weights['head'], rmsnorm(x))

def look(weights, settings, pixels):
    """pixels [side * side] -> cache of the vision tokens, patches, their latents of degree 2"""
    tokens, patches, codes = see(weights, settings, rmsnorm(downscale(pixels, settings.size)))
    cache = [([], []) for _ in range(settings.layers)]
    for token, position in zip(tokens, weights['position']):
        transformer(weights, settings, add(token, position), cache, read=False)
    return cache, patches, codes

def next_logits(weights, settings, text, cache):
    """text so far, cache of all before its last letter -> logits of the next letter [vocabulary]"""
    position = weights['position'][len(text) - 1 - LONGEST]  # the last LONGEST rows are for letters
    x = add(weights['letter'][VOCABULARY.index(text[-1])], position)
    return transformer(weights, settings, x, cache)

# ---- Learning: the loss, its gradient, Adam ------------------------------------------------------
# The loss of an image is the cross-entropy, -log of the probability that the mouth gave to the
# right letter, on average over its name and EOS, plus the weighted reconstruction error. Soon most
# letters are nearly certain (after "se", only "v" is possible): they teach little, yet cost as much
# as any other. So a cross-entropy below settings.hard (0.05: a probability over e^-0.05 = 95 %)
# counts as 0 in this average, and backward() has less to do (after Jiang et al. 2019,
# arXiv:1910.00762). A step averages the gradient, the loss's derivatives by all weights, over a
# minibatch and moves each weight against it: Adam divides its running mean by its usual size, so
# each moves by about lr. Large models learn in stages: each says what the loss counts, what learns.

Stage = collections.namedtuple('Stage', 'letters image learns')
STAGES = {  # whether it reads the names of the digits, whether it sees their images, what learns
    'joint':        Stage(True, True, ('eye', 'mouth')),
    'eye':          Stage(False, True, ('eye',)),    # only to rebuild, by degree 2; the rest decays
    'mouth':        Stage(True, False, ('mouth',)),  # only to spell names
    'frozen-eye':   Stage(True, True, ('mouth',)),
    'frozen-mouth': Stage(True, True, ('eye',)),
}
BETA1, BETA2 = 0.9, 0.99  # Adam's memory: the share of its running means that survives a step
ADAM_EPSILON = 1e-8       # keeps Adam from dividing by zero

def add_gradient(weights, settings, stage, gram, pixels, label):
    """Add to each grad this image's part, gram constant -> two losses to report, latents f"""
    cache, patches, codes = [([], []) for _ in range(settings.layers)], [], []
    if stage.image:
        cache, patches, codes = look(weights, settings, pixels)
    text = BOS + NAMES[label] + EOS if stage.letters else ''
    losses = [cross_entropy(next_logits(weights, settings, text[:i], cache),
                            VOCABULARY.index(text[i])) for i in range(1, len(text))] or [Value(0.0)]
    errors = [reconstruction_error(gram, f, patch)
              for f, patch in zip(codes, patches) if gram] or [Value(0.0)]  # no gram: not rebuilt
    error = sum(errors) / len(errors)
    kept = sum(loss for loss in losses if loss.data >= settings.hard) / len(losses)
    ((kept + settings.reconstruction * error) / settings.batch).backward()
    letters = sum(loss.data for loss in losses) / len(losses)  # to report: the easy ones too
    return letters, error.data, [f.data for f in codes if gram]

def gradient(weights, settings, common, share):
    """common (stage, gram), share [(pixels, digit)] -> gradient [weights]; losses, f per image"""
    values = [value for matrix in weights.values() for row in matrix for value in row]
    results, (stage, gram) = [], common
    for value in values:
        value.grad = 0.0
    gc.disable()  # a graph has no cycles, so reference counts free it: no need to search for them
    for pixels, label in share:
        results.append(add_gradient(weights, settings, stage, gram, pixels, label))
        Value.tape.clear()  # gives back the memory of this image's graph
    gc.enable()
    return array('d', [value.grad for value in values]), results

def adam(data, grad, m, v, step, lr, decay):
    """all [n]: weights, gradient, running means of it and its square -> new weights, m, v"""
    m = [BETA1 * a + (1 - BETA1) * g for a, g in zip(m, grad)]
    v = [BETA2 * a + (1 - BETA2) * g * g for a, g in zip(v, grad)]
    c1, c2 = 1 - BETA1 ** step, 1 - BETA2 ** step  # the means began at zero, so are too small
    data = [w - lr * (a / c1 / (math.sqrt(b / c2) + ADAM_EPSILON) + decay * w)
            for w, a, b in zip(data, m, v)]
    return data, m, v  # Kingma and Ba 2015; with weight decay: Loshchilov and Hutter 2019

def batch_gradient(weights, settings, team, stage, batch):
    """minibatch [(pixels, digit)] -> its gradient [weights], its two mean losses"""
    rebuilds = settings.reconstruction and stage.image  # else sides, gram, moments stay empty
    sides = [[row.data for row in weights[f'eye.degree2.{factor}'] if rebuilds]
             for factor in range(2)]  # the rows l, then the rows r
    products = list(map(pairs, sides))  # of the weights alone, so made once per minibatch
    gram = hadamard(*products)
    shares = [batch[i:i + SHARE] for i in range(0, len(batch), SHARE)]
    # team.map calls gradient(weights, settings, common, share) for each share: see next chapter.
    grads, results = zip(*team.map(gradient, (stage, gram), shares))
    grad = list(map(sum, zip(*grads)))  # in the order of the shares, whoever computed them
    letters, errors, codes = zip(*itertools.chain(*results))
    # The gradient through the gram, which gradient() holds constant, for all images at once.
    # `scale`: factor of ||...||^2 in the loss. grad begins with eye.degree2.0, then eye.degree2.1.
    n = (settings.size // settings.patches) ** 2  # pixels of a patch
    scale = settings.reconstruction / n ** 2 / settings.patches ** 2 / settings.batch
    codes = itertools.chain(*codes)  # f of every patch of every image
    moments = pairs([list(latent) for latent in zip(*codes)])  # latent j: f_j at all these patches
    slopes = [row for i in range(2) for row in gram_gradient(moments, sides[i], products[1 - i])]
    for i, slope in enumerate(itertools.chain(*slopes)):
        grad[i] += scale * slope
    return grad, (sum(letters) / settings.batch, sum(errors) / settings.batch)

def plan(settings):
    """stages as in 'eye:200,joint' -> [(stage, its steps)]"""
    parts = [part.partition(':') for part in settings.stages.split(',')]
    return [(STAGES[name], int(steps or settings.steps)) for name, _, steps in parts]

def learn(weights, settings, examples, team=None):
    """Train on endless examples (pixels, digit), stage by stage; yield each step's two losses."""
    team = team or Team(weights, settings, jobs=1)
    data = flat(weights)
    for stage, steps in plan(settings):
        # For each number: may it learn? A name that does not begin with eye is the mouth's.
        learns = [('eye' if name.startswith('eye') else 'mouth') in stage.learns
                  for name, matrix in weights.items() for row in matrix for _ in row]
        m = v = [0.0] * len(data)  # Adam starts anew
        for step in range(steps):
            batch = list(itertools.islice(examples, settings.batch))
            grad, losses = batch_gradient(weights, settings, team, stage, batch)
            lr = settings.lr * (1 - step / steps)
            moved, m, v = adam(data, grad, m, v, step + 1, lr, settings.decay)
            data = [new if free else old for new, old, free in zip(moved, data, learns)]
            assign(weights, data)
            yield losses

# ---- Many hands: data parallelism ----------------------------------------------------------------
# The images of a minibatch do not need one another, so several processes can work on them. Sums of
# floats depend on their order: so a minibatch is always cut into the same shares, whose gradients
# come back and are always summed in the same order. Any number of processes thus learns the same
# weights, to the last bit.

class Team(contextlib.AbstractContextManager):
    """This process and jobs - 1 others, between whom a list of work is shared out."""
    def __init__(self, weights, settings, jobs):
        self.weights, self.settings, self.others = weights, settings, []
        if jobs == 1:
            return
        # The others inherit this: Ctrl-C is for this process alone.
        on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for _ in range(jobs - 1):
                ours, theirs = multiprocessing.Pipe()
                process = multiprocessing.Process(target=follow, args=(theirs, ours, settings))
                process.daemon = True  # ends with this process
                process.start()
                theirs.close()
                self.others.append((process, ours))
        except (OSError, EOFError) as error:
            print(f'no further process can be started ({error}): going on with '
                  f'{len(self.others) + 1}', file=sys.stderr)
        finally:
            signal.signal(signal.SIGINT, on_interrupt)

    def map(self, task, common, items):
        """task(weights, settings, common, item) for all items, shared out -> results, in order"""
        count = len(self.others) + 1
        parts = [items[rank::count] for rank in range(count)]
        data = array('d', flat(self.weights))
        for (_, pipe), part in zip(self.others, parts[1:]):
            with contextlib.suppress(OSError):  # a process that died: noticed below
                pipe.send((task, data, common, part))
        out = [None] * len(items)
        out[::count] = [task(self.weights, self.settings, common, item) for item in parts[0]]
        for rank, (process, pipe) in enumerate(list(self.others), 1):
            try:
                out[rank::count] = pipe.recv()
            except (EOFError, OSError):
                print('a process died: this one does its work', file=sys.stderr)
                self.dismiss(process, pipe)
                out[rank::count] = [task(self.weights, self.settings, common, item)
                                    for item in parts[rank]]
        return out

    def dismiss(self, process, pipe):
        """End one of the other processes."""
        self.others.remove((process, pipe))
        process.kill()
        process.join()
        pipe.close()

    def __exit__(self, *_):
        for other in list(self.others):
            self.dismiss(*other)

def follow(pipe, parents_end, settings):
    """What the other processes do: take weights and a part of the work, send back results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it is not inherited
    parents_end.close()  # so that the pipe ends when that process does
    weights = first_weights(settings)  # to be overwritten
    with contextlib.suppress(Exception):  # what fails here, the first process will do again
        while True:
            task, data, common, part = pipe.recv()
            assign(weights, data)
            pipe.send([task(weights, settings, common, item) for item in part])

# ---- Speaking: letter by letter ------------------------------------------------------------------
# The mouth speaks the most probable letter or, at a temperature above 0, a random one, hears itself
# say it, and goes on until it says EOS.

def choose(logits, settings, seed):
    """logits [n] -> the index of the highest; at a temperature, a random one of the top_p"""
    if not settings.temperature:
        return logits.index(max(logits))
    probs = softmax(logits, settings.temperature)
    order = sorted(range(len(probs)), key=probs.__getitem__, reverse=True)
    totals = itertools.accumulate(probs[i] for i in order)
    kept = order[:1 + sum(total < settings.top_p for total in totals)]
    return random.Random(repr(seed)).choices(kept, [probs[i] for i in kept])[0]

def speak(weights, settings, gram, pixels):
    """pixels -> the name spoken, its probability, reconstruction error (1: rebuilds nothing)"""
    weights = numbers(weights)
    cache, patches, codes = look(weights, settings, pixels)
    text, probability = BOS, 1.0
    while len(text) <= LONGEST and not text.endswith(EOS):
        logits = next_logits(weights, settings, text, cache)
        # The image is part of the seed, so it does not matter which process speaks about it.
        chosen = choose(logits, settings, (settings.seed, text, pixels))
        probability *= softmax(logits)[chosen]  # as the model sees it, at temperature 1
        text += VOCABULARY[chosen]
    errors = [reconstruction_error(gram, f, patch) for f, patch in zip(codes, patches)]
    nothing = [(dot(patch, patch) / len(patch)) ** 2 for patch in patches]  # the errors if f were 0
    return text[1:].rstrip(EOS), probability, sum(errors) / (sum(nothing) or 1.0)

# That was the algorithm; what follows is convenience.

# ---- Data: MNIST, downloaded when it is missing, or the digits bundled in data/ ------------------

MIRRORS = ['https://storage.googleapis.com/cvdf-datasets/mnist/',
           'https://ossci-datasets.s3.amazonaws.com/mnist/']
TIMEOUT = 5  # seconds without an answer, until the next mirror is tried
MNIST = {    # the files, with the SHA-256 of their decompressed content
    'train-images-idx3-ubyte': 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
    'train-labels-idx1-ubyte': '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
    't10k-images-idx3-ubyte': '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
    't10k-labels-idx1-ubyte': 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
}

def find(folder, name):
    """The path of an IDX file, raw or else gzipped; None where there is neither."""
    return next((p for p in (folder / name, folder / f'{name}.gz') if p.exists()), None)

def read_idx(folder, name, *shape):
    """The items of an IDX file, each of this shape: (rows, columns) for images, () for labels"""
    path = find(folder, name) or folder / name
    try:
        content = path.read_bytes()
        if path.suffix == '.gz':
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        sys.exit(f'vlm.py: {path} cannot be read: {error}')
    start, expected = 8 + 4 * len(shape), (2049 + len(shape), *shape)
    magic, count, *sides = struct.unpack_from(f'>{start // 4}I', content.ljust(start, b'\0'))
    if (magic, *sides) != expected:
        sys.exit(f'vlm.py: {path} has magic and size {(magic, *sides)}, not {expected}')
    if not count or len(content) - start != count * math.prod(shape):
        sys.exit(f'vlm.py: {path} holds {len(content) - start} bytes, where its header promises '
                 f'{count} times {math.prod(shape)}')
    return [content[i:i + math.prod(shape)] for i in range(start, len(content), math.prod(shape))]

def read_digits(folder, kind, side):
    """The digits of a folder: [(pixels, digit)]"""
    images = read_idx(folder, f'{kind}-images-idx3-ubyte', side, side)
    labels = read_idx(folder, f'{kind}-labels-idx1-ubyte')
    if len(images) != len(labels):
        sys.exit(f'vlm.py: {folder} has {len(images)} {kind} images but {len(labels)} labels')
    if max(labels) > b'\x09':
        sys.exit(f'vlm.py: {folder} has a {kind} label {ord(max(labels))}; labels are 0 to 9')
    return [(pixels, ord(label)) for pixels, label in zip(images, labels)]

def shuffled(digits, seed):
    """Training examples without end; the last twelfth, of MNIST 5,000, is left for validation"""
    rng, digits = random.Random(seed), digits[:len(digits) - len(digits) // 12]
    while True:
        rng.shuffle(digits)
        yield from digits

def write_file(path, content):
    """Write bytes under a temporary name, then rename: whole or not at all. b'' only rehearses."""
    path = Path(os.path.realpath(path))  # a link stays, and the file behind it is replaced
    part = path.parent / f'{path.name}.{os.getpid()}.part'
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, 'it is not a regular file')
        part.write_bytes(content)
        if content:
            os.replace(part, path)
    except OSError as error:
        sys.exit(f'vlm.py: {path} cannot be written: {error.strerror}')
    finally:
        with contextlib.suppress(OSError):
            part.unlink()

def download(folder, name):
    """Fetch a file of MNIST from the first mirror that has it right -> whether one answered"""
    wrong = []
    for mirror in MIRRORS:
        content = b''
        try:
            with urllib.request.urlopen(f'{mirror}{name}.gz', timeout=TIMEOUT) as response:
                while chunk := response.read(1 << 16):
                    progress(f'downloading {name}.gz: {len(content) // 1000:,} kB', not content)
                    content += chunk
            progress(f'downloaded {name}.gz: {len(content) // 1000:,} kB', last=True)
        except (OSError, ValueError, http.client.HTTPException):
            continue
        try:
            digest = hashlib.sha256(gzip.decompress(content)).hexdigest()
        except (OSError, EOFError, zlib.error):
            digest = 'none: it is not even gzip'
        if digest == MNIST[name]:
            folder.mkdir(exist_ok=True)
            write_file(folder / f'{name}.gz', content)
            return True
        wrong.append(mirror)
    if wrong:
        sys.exit(f'vlm.py: wrong content for {name}.gz from {" and ".join(wrong)}')
    return False

def load_digits(folder, size):
    """The digits to learn from, those to test on: from a folder, or data/ beside this file"""
    home = Path(__file__).resolve().parent / 'data' if folder is None else Path(folder)
    if folder is not None and not os.path.isdir(folder):
        sys.exit(f'vlm.py: --data {home} is not a folder that exists')
    if all(find(home, name) or download(home, name) for name in MNIST):
        return read_digits(home, 'train', 28), read_digits(home, 't10k', 28)
    if folder is not None or size != 8 or not find(home, 'optdigits-train-images-idx3-ubyte'):
        sys.exit(f'vlm.py: MNIST cannot be downloaded: connect to the network, or put its four '
                 f'files ({", ".join(MNIST)}, raw or .gz) into {home}')
    train, test = [read_digits(home, f'optdigits-{kind}', 8) for kind in ('train', 'test')]
    print(f'MNIST cannot be downloaded, so the {len(train):,} + {len(test)} bundled digits are '
          'used. Connect to the network to get MNIST.', file=sys.stderr)
    return train, test

# ---- Weights on disk -----------------------------------------------------------------------------

# The settings that shape the matrices are saved with them.
MODEL = ('size', 'attention', 'width', 'heads', 'layers', 'mlp', 'patches', 'degree1', 'degree2',
         'degree3', 'degree4')

def complaint(settings):
    """What is wrong with these settings, if anything"""
    for name, (default, _, least, _) in SETTINGS.items():
        value = getattr(settings, name)
        if type(value) is not type(default) or not least <= value <= 1e9:
            return f'{name} must be a number from {least} to 1e9, not {value!r}'
    if repr(settings.size) not in ('8', '14'):  # not even 8.0
        return f'size must be 8 or 14, not {settings.size!r}'
    if settings.attention not in ('tensor', 'dot'):
        return f'attention must be tensor or dot, not {settings.attention!r}'
    try:
        if any(steps < 0 for _, steps in plan(settings)):
            raise ValueError
    except (KeyError, ValueError):
        return f'stages must be of {", ".join(STAGES)}, not {settings.stages!r}'
    if settings.width % settings.heads:
        return f'width {settings.width} cannot be shared by {settings.heads} heads'
    if settings.attention == 'tensor' and settings.width // settings.heads % 2:
        return f'tensor attention cannot halve a head of width {settings.width // settings.heads}'
    if settings.size % settings.patches:
        return f'size {settings.size} cannot be cut into {settings.patches} patches per side'
    if not settings.degree1 + settings.degree2 + settings.degree3:
        return 'there must be a vision token of degree 1, 2 or 3'
    if settings.degree4 and (not settings.degree2 or settings.degree2 * settings.width % 2):
        return 'degree 4 needs an even number of latents of degree 2'

def save(path, weights, settings):
    """Write the model's settings and weights to a JSON file."""
    chosen = {name: getattr(settings, name) for name in MODEL}
    document = {'settings': chosen, 'weights': numbers(weights)}
    try:
        write_file(path, json.dumps(document, allow_nan=False).encode())
    except ValueError:
        sys.exit('vlm.py: the weights are not finite, so they are not saved; a lower --lr may help')

def load(path):
    """The settings and weights of a file by save(), checked."""
    try:
        document = json.loads(path.read_bytes())
        chosen, weights = document['settings'], document['weights']
        defaults = {name: row[0] for name, row in SETTINGS.items()}
        settings = argparse.Namespace(**{'stages': 'joint', **defaults, **chosen})
        valid = (set(chosen) == set(MODEL) and not complaint(settings)
                 and settings.layers < len(weights) == len(matrix_shapes(settings)))
        for name, (rows, columns) in matrix_shapes(settings).items() if valid else ():
            valid &= len(weights[name]) == rows and {len(row) for row in weights[name]} <= {columns}
            valid &= all(type(v) in (int, float) and math.isfinite(v)
                         for row in weights[name] for v in row)
    except OSError as error:
        sys.exit(f'vlm.py: {path} cannot be read: {error.strerror}')
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        valid = False
    if not valid:
        sys.exit(f'vlm.py: {path} is damaged, or not a weights file of vlm.py')
    return chosen, {name: [vector([Value(float(v)) for v in row]) for row in weights[name]]
                    for name in matrix_shapes(settings)}  # in the order that every process has

# ---- Command line --------------------------------------------------------------------------------

def progress(text, milestone=True, last=False):
    """To standard error: on a terminal one line that updates, elsewhere only the milestones."""
    if sys.stderr.isatty():
        print(f'\r{text:79.79}', end='\n' * last, file=sys.stderr, flush=True)
    elif milestone or last:
        print(text, file=sys.stderr, flush=True)

def parse(argv):
    """Command line -> settings, weights to start from (None: random ones)"""
    parser = argparse.ArgumentParser(
        prog='vlm.py', argument_default=argparse.SUPPRESS,
        description='A vision-language model in pure Python: it learns to look at handwritten '
        'digits and say their names, then reports how many of the test images it names right.')
    option = parser.add_argument
    option('--size', type=int, metavar='N', help='pixels on a side, 8 or 14 (default: 8)')
    option('--attention', metavar='SCORE', help='tensor or dot (default: tensor)')
    option('--stages', metavar='PLAN', help=f'of {", ".join(STAGES)}: one or more, in turn, '
           'perhaps with steps of their own, as in mouth:100,eye:200,joint (default: joint)')
    for name, (small, large, _, meaning) in SETTINGS.items():
        default = f'{small}' if small == large else f'{small}; size 14: {large}'
        option('--' + name.replace('_', '-'), type=type(small), metavar='NX'[type(small) is float],
               help=f'{meaning} (default: {default})')
    option('--test', type=int, metavar='N', help='test images to report on (default: all)')
    option('--jobs', type=int, metavar='N', help='processes that share the work (default: one for '
           'each processor, at most the batch)')
    option('--data', metavar='FOLDER', help="where MNIST's four files are or, if missing, are put "
           '(default: data/ beside vlm.py)')
    option('--save', type=Path, metavar='FILE', help='write the weights to this file, as JSON')
    option('--load', type=Path, metavar='FILE', help='start from these weights; with --steps 0, '
           'only speak')
    given = vars(parser.parse_args(argv))
    chosen, weights = load(given['load']) if 'load' in given else ({}, None)
    for name, value in chosen.items():
        if given.get(name, value) != value:
            parser.error(f'{name} {given[name]} contradicts {given["load"]}, which has {value}')
    size = {**chosen, **given}.get('size', 8)
    defaults = {name: row[size == 14] for name, row in SETTINGS.items()}
    rest = {'size': size, 'attention': 'tensor', 'stages': 'joint', 'test': sys.maxsize,
            'data': None, 'save': None}
    settings = argparse.Namespace(**{**rest, **defaults, **chosen, **given})
    affinity = getattr(os, 'sched_getaffinity', None)  # Linux: the processors open to this process
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    settings.jobs = min(given.get('jobs', processors), settings.batch)
    problem = complaint(settings) or (min(settings.test, settings.jobs) < 1
                                      and 'test and jobs must be at least 1')
    if problem:
        parser.error(problem)
    return settings, weights

def train(weights, settings, examples):
    """Learn, showing progress, until the last step or until Ctrl-C."""
    start, recent = time.monotonic(), collections.deque(maxlen=100)  # losses of the last steps
    steps = sum(steps for _, steps in plan(settings))
    try:
        with Team(weights, settings, settings.jobs) as team:
            for step, losses in enumerate(learn(weights, settings, examples, team), 1):
                recent.append(losses)
                letters, image = [sum(column) / len(recent) for column in zip(*recent)]
                loss = letters + settings.reconstruction * image
                if not math.isfinite(loss):
                    progress('', False, sys.stderr.isatty())  # ends the line on a terminal
                    sys.exit(f'vlm.py: loss {loss} at step {step}: a lower --lr may help')
                rate = step / (time.monotonic() - start)
                progress(f'step {step}/{steps}  loss {loss:.3f} (letters {letters:.3f}, '
                         f'image {image:.3f})  {rate * settings.batch:.0f} images/s  '
                         f'{(steps - step) / rate:.0f} s left',
                         step % 100 == 0, step == steps)
    except KeyboardInterrupt:
        print('\ninterrupted: on to the report (Ctrl-C again to stop at once)', file=sys.stderr)

def report(weights, settings, digits):
    """Speak the names of test images; print the first twenty, and how many were right."""
    try:
        '✓✗'.encode(sys.stdout.encoding)
        marks = '✗✓'
    except UnicodeEncodeError:
        marks = 'x+'
    digits, right, errors = digits[:settings.test], 0, []
    gram = hadamard(*[pairs(numbers(weights)[f'eye.degree2.{factor}']) for factor in range(2)])
    with Team(weights, settings, settings.jobs) as team:
        for start in range(0, len(digits), 100 * settings.jobs):
            part = digits[start:start + 100 * settings.jobs]
            spoken = team.map(speak, gram, [pixels for pixels, _ in part])
            for (_, label), (text, probability, error) in zip(part, spoken):
                if len(errors) < 20:
                    mark = marks[text == NAMES[label]]
                    print(f'[{label}] true: {NAMES[label]} | generated: {text} {mark} '
                          f'{probability:.1%}', flush=True)
                right += text == NAMES[label]
                errors.append(error)
            progress(f'tested {len(errors)}/{len(digits)} images', len(errors) % 1000 == 0,
                     len(errors) == len(digits))
    count, z = len(digits), 1.96  # standard deviations that hold 95% of a normal distribution
    share = right / count
    middle = share + z * z / (2 * count)  # the interval of E. B. Wilson, 1927
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = [max(0, 100 * (middle + d) / (1 + z * z / count)) for d in (-spread, spread)]
    print(f'reconstruction error: {sum(errors) / count:.3f} (1.0 = reconstructs nothing)')
    print(f'test accuracy: {right}/{count} = {share:.2%} (95% interval {low:.2f}-{high:.2f})')

def main(argv=None):
    """Learn, save, report."""
    settings, weights = parse(argv)
    if settings.save:
        write_file(settings.save, b'')  # fail now rather than after the training
    training, test = load_digits(settings.data, settings.size)
    weights = weights or first_weights(settings)
    count = sum(len(row) for matrix in weights.values() for row in matrix)
    print(f'{count:,} parameters')
    rest = [name for name in SETTINGS if name not in MODEL] + ['stages']
    for names in MODEL[:6], MODEL[6:], rest[:6], rest[6:]:
        print(', '.join(f'{name} {getattr(settings, name)}' for name in names))
    print(f'{len(training):,} training images, {len(test):,} test images', flush=True)
    train(weights, settings, shuffled(training, settings.seed))
    if settings.save:
        save(settings.save, weights, settings)
    report(weights, settings, test)
    sys.stdout.flush()

if __name__ == '__main__':
    sys.stdout, sys.stderr = [f or open(os.devnull, 'w') for f in (sys.stdout, sys.stderr)]
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output, like `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, MemoryError) as error:
        sys.exit(f'vlm.py: {error or "out of memory"}')
