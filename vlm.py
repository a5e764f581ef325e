#!/usr/bin/env python3
"""vlm.py: a complete vision-language model in one file of pure Python, without dependencies.

It looks at a handwritten digit and says its name, letter by letter:

    28x28 image -> 8x8 pixels -> the eye -> [VIS_0] [VIS_1] [VIS_2] [BOS] s e v e n
                                               |       |       |      |   | | | | |
                                               +-------+-------+- the mouth -+-+-+
                                                                      |   | | | | |
                                                                      s   e v e n [EOS]

The mouth (a language model, or decoder: a small GPT) reads a sequence of tokens and predicts, from
those so far, the next letter. The first tokens are vectors, the vision tokens: the eye (a vision
encoder, or visual tokenizer) makes them of the image. The others are letters (text tokens). One
example to learn from is a pair: an image, as a list with a number for each pixel, and a text, in
which '<' is BOS, its start, and '>' is EOS, its end:

    ([0.0, 0.0, 0.71, 2.58, ...], '<seven>')    # 64; 0 is black; scaled to mean square 1

The idea to look out for: nobody tells the eye what to look for. Letters are right or wrong; their
error flows back, through the mouth, into the eye, and teaches it what matters.

If you know Python and school calculus, you can read the algorithm in a good two hours, and then
explain what all numbers do. It ends at "That was the algorithm"; the rest is comfort. MIT licence.
"""
import math, random
from functools import partial, reduce
from itertools import chain, islice
from operator import mul

BOS, EOS = '<', '>'
sumprod = getattr(math, 'sumprod', None) or (lambda a, b: sum(map(mul, a, b)))  # new in 3.12
product = partial(reduce, mul)  # of a list: product([a, b, c]) is a * b * c

# ---- Autograd: numbers that remember where they came from ----------------------------------------
# A model learns by small changes to its numbers, its weights, that lower one number, the loss: how
# wrong it is. For each we must know: if it grew a little, how much would the loss grow? That is
# the derivative of the loss by this number. To find it, each number remembers its parents, those it
# was computed from, and its derivatives by them. From the loss we walk back, with the chain rule:
# if b was computed from a, dloss/da = dloss/db * db/da. If a has several uses, these add up.

class Value:
    """A number that remembers its parents.

    >>> a, b = Value(2.0), Value(3.0)
    >>> c = a * b + a
    >>> c.backward()
    >>> c.data, a.grad, b.grad    # dc/da = b + 1, as a is used twice; dc/db = a
    (8.0, 4.0, 2.0)

    An edge leads to a list of parents, with a list of the derivatives by them. a * b has the edge
    ((a, b), (3.0, 2.0)): it grows 3 times as fast as a, twice as fast as b. dot() will need two.
    """
    __slots__ = 'data', 'grad', 'edges'  # saves memory
    tape = []  # every Value that was computed, oldest first

    def __init__(self, data, *edges):
        self.data = data    # the number itself
        self.grad = 0.0     # derivative of the loss by this number: backward() adds to it
        self.edges = edges  # to its parents, with the derivatives by them
        if edges:           # a Value without parents, such as a weight, is a leaf
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
        return Value(self.data ** exponent, ((self,), (exponent * self.data ** (exponent - 1),)))

    def __gt__(self, other): return self.data > other
    def __sub__(self, other): return self + other * -1.0
    def __truediv__(self, other): return self * other ** -1
    __radd__, __rmul__ = __add__, __mul__  # for 2 * a: Python asks a

    def backward(self):
        """For each Value v that self was computed from, v.grad += dself/dv. Empty the tape."""
        self.grad = 1.0  # the derivative of self by itself
        walk_back(Value.tape)

def walk_back(tape):
    """Hand the grad of each Value on to its parents, newest first; empty the tape."""
    # At a Value's turn, all that was computed from it is newer, so has handed on: grad is complete.
    for node in reversed(tape):
        grad = node.grad
        if grad:  # else it has nothing to hand on
            for parents, derivatives in node.edges:
                for parent, derivative in zip(parents, derivatives):
                    parent.grad += grad * derivative
    tape.clear()

# ---- Vectors: dot products and other tools -------------------------------------------------------
# A vector is a list of numbers: of Values while learning, of floats while speaking, when we need no
# derivatives. The same functions serve both. Docstrings give shapes: `a [n] -> [m]` takes a vector
# of n numbers and returns one of m; a matrix [m][n] is a list of m rows, each a vector [n]. Nearly
# all the work is dot products, a_1 b_1 + a_2 b_2 + ... Each is one Value, not one for every product
# and sum: that is many times faster. Its derivative by a_i is b_i, by b_i it is a_i. So it has two
# edges: (Values of a, numbers of b), (Values of b, numbers of a).

class Vector(list):
    """A vector of Values with, in `data`, their numbers, as dot() needs them; made by collect()."""
    __slots__ = 'data',

def collect(numbers):
    """Values [n] -> Vector [n]; a list of anything else, such as floats -> the same list"""
    if not numbers or type(numbers[0]) is not Value:
        return numbers
    out = Vector(numbers)
    out.data = [value.data for value in numbers]
    return out

def dot(a, b):
    """a [n], b [n] -> a_1 b_1 + ... + a_n b_n; if one is constant, pass it as b"""
    if type(a) is Vector and type(b) is Vector:
        return Value(sumprod(a.data, b.data), (a, b.data), (b, a.data))
    if type(a) is Vector:
        return Value(sumprod(a.data, b), (a, b))  # one edge: b is constant, like an image
    return sumprod(a, b)

def linear(weight, a):
    """weight [m][n], a [n] -> [m], the dot products of the rows with a"""
    return collect([dot(row, a) for row in weight])

def add(a, b):
    """a [n], b [n] -> [n]"""
    return collect([v + w for v, w in zip(a, b)])

def relu(a):
    """a [n] -> [n], with 0 for what is negative"""
    return collect([v if v > 0 else v * 0.0 for v in a])  # not 0.0: collect() wants Values

def rmsnorm(a):
    """a [n] -> [n], of mean square 1: a size that the next step relies on (Zhang, Sennrich 2019)"""
    scale = (dot(a, a) / len(a) + 1e-5) ** -0.5  # 1e-5: never divide by zero
    return collect([v * scale for v in a])

def split(a, n):
    """a [m * n] -> [m][n], its pieces; any list will do"""
    return [collect(a[i:i + n]) for i in range(0, len(a), n)]

def softmax(scores, scale=1.0):
    """scores [n] -> probabilities [n]: e^(scale * score), divided by the sum of all of these"""
    if type(scores) is Vector:
        probs = softmax(scores.data, scale)
        # p_i = e_i / T, e_i = e^(scale * score i), T their sum. Derivatives (') by score j: T' =
        # scale e_j; e_i' = scale e_i if i == j, else 0. So, by the quotient rule, where True is 1,
        # p_i' = e_i' / T - e_i T' / T^2 = scale p_i (i == j) - scale p_i p_j.
        slopes = [[scale * p * ((i == j) - q) for j, q in enumerate(probs)]
                  for i, p in enumerate(probs)]
        return collect([Value(p, (scores, row)) for p, row in zip(probs, slopes)])
    highest = max(scores)  # subtracted from all: their ratios stay, and e^... cannot overflow
    exps = [math.exp(scale * (score - highest)) for score in scores]
    total = sum(exps)
    return [e / total for e in exps]

# ---- The eye: from pixels to vision tokens -------------------------------------------------------
# A vision token is a vector of latents, numbers that answer questions about the image x. With a
# pattern l, a row of weights, the dot product l.x says how much of l is in x. A latent is the
# product of several such: are these patterns there together? Its degree is their number:
#     degree 2: (l.x)(r.x)       are both l and r in it (or their opposites: two negatives)?
#     degree 3: (l.c)(m.c)(r.c)  of the contrast c, x less its mean, rescaled: that learns faster
# Latent j of token 0 has row j of weights['eye0.0'] as its l, of 'eye0.1' as its r. By default
# (found by trying), settings has width 16 (latents), tokens [2, 3, 3] (degrees), size 8, patches 1.

def see(weights, settings, x):
    """image x, patch after patch (1, by default) -> vision tokens [patches^2][tokens][width]"""
    return [look(weights, settings, patch) for patch in split(x, len(x) // settings.patches ** 2)]

def look(weights, settings, patch):
    """a patch [n] -> its vision tokens [tokens][width]"""
    tokens, mean = [], sum(patch) / len(patch)
    contrast = rmsnorm(collect([v - mean for v in patch]))
    for number, degree in enumerate(settings.tokens):  # 2, 3, 3
        inputs = [contrast if degree == 3 else patch] * degree  # the same for each factor
        if degree == 4:  # skip it: not by default. (l.a)(r.b); a, b: halves of what degree 2 found
            f = code(settings, tokens)
            inputs = [rmsnorm(half) for half in split(f, len(f) // 2)]
        factors = [linear(weights[f'eye{number}.{i}'], a) for i, a in enumerate(inputs)]
        tokens.append(collect([product(column) for column in zip(*factors)]))
    return tokens

def code(settings, tokens):
    """a patch's tokens [tokens][width] -> its code f [k]: all latents of degree 2 (token 0)"""
    return collect([v for d, token in zip(settings.tokens, tokens) if d == 2 for v in token])

# ---- The eye as an autoencoder -------------------------------------------------------------------
# A second loss needs no letters: how well can latents of degree 2 rebuild what they saw (an
# autoencoder; Dooms and Gauderis 2025, arXiv:2510.16820)? Without it, names are learned just as
# well; but the chapter Drawing lives on it. As (l.x)(r.x) = sum_pq l_p r_q x_p x_q (p, q: pixels),
# they saw products x_p x_q. Let a b^T be the table with a_p b_q in row p, column q: B = x x^T has
# these; T_j = l_j r_j^T, latent j's patterns. For tables, . multiplies and adds up elements, too:
#     (a b^T).(c d^T) = sum_pq a_p b_q c_p d_q = (sum_p a_p c_p)(sum_q b_q d_q) = (a.c)(b.d)  (*)
#     f_j = (l_j.x)(r_j.x) = T_j.B: a latent is how much of T_j is in B
# In a plane, v = (v.u) u + (v.w) w, if u, w are of length 1, at right angles. Tables are vectors:
# with 64*64 such T_j, A = sum_j f_j T_j would be B. With 16, of any kind, learning brings A near B.
#     The error of A, (A - B).(A - B) = A.A - 2 A.B + B.B, needs no table, by (*):
#     A.A = sum_ij f_i f_j T_i.T_j = f.(G f), with G_ij = T_i.T_j = (l_i.l_j)(r_i.r_j)
#     A.B = sum_j f_j T_j.B = sum_j f_j f_j = f.f;  B.B = (x.x)^2
# x = (1, 2), l = (1, 0), r = (0, 1): B = ((1, 2), (2, 4)), f = 2, A = ((0, 2), (0, 0)), error 21.

def patterns(weights, settings, factor):
    """-> one pattern of each latent of degree 2 [k][n]: the l_j for factor 0, the r_j for 1"""
    return [row for number, degree in enumerate(settings.tokens) if degree == 2
            for row in weights[f'eye{number}.{factor}']]

def gram(weights, settings):
    """-> G [k][k], weights['gram']: it needs no image, so it is made once for many"""
    left, right = [patterns(weights, settings, factor) for factor in (0, 1)]
    k = range(len(left))
    half = {(i, j): dot(left[i], left[j]) * dot(right[i], right[j]) for i in k for j in k if i <= j}
    return [collect([half[min(i, j), max(i, j)] for j in k]) for i in k]  # G_ij = G_ji

def rebuilding_loss(weights, settings, vision, x):
    """image x and its vision tokens -> the part of x x^T that they do not rebuild"""
    missing, everything = 0.0, 0.0
    for tokens, patch in zip(vision, split(x, len(x) // len(vision))):
        f = code(settings, tokens)
        aa, ab, bb = dot(f, linear(weights['gram'], f)), dot(f, f), dot(patch, patch) ** 2
        missing, everything = missing + aa - 2 * ab + bb, everything + bb
    return missing / (everything + 1e-30)  # never divide by zero

# ---- The mouth: a GPT with tensor-product attention ----------------------------------------------
# Each token has a vector h: the vision token, or a letter's row of the matrix `embedding`; plus a
# row for its position, as attention knows no order. A layer has two halves: each adds to h what it
# makes of rmsnorm(h) (a residual connection). Last, `logits` makes of h a score per letter.
#
# The first half, attention, fetches what earlier tokens know. From h, three matrices make a query
# (what I look for), a key (what I offer) and a value (what I hand over; not the class). '<' may
# look for a round shape, and token 0 offer one. '<' has 4 scores: the dot products of its query
# with the keys so far (causal attention), its own the last. Softmax makes 4 shares of them, like .5
# .3 .1 .1; '<' fetches the sum of the 4 values, each times its share; `output` makes of it what is
# added to h. As a token looks only back, key and value stay: a (KV) cache keeps them. In the
# last layer (of 1), a vision token needs only these two, as it has no letter to predict.
#
# Tensor-product attention asks for two things at once, like degree 2: q and k, in 2 pieces, score
# (q1.k1)(q2.k2), not q.k; it learns no better. (Heads: several attentions side by side; here, 1.)
#
# The second half, an MLP, works on h alone: `up` makes hidden numbers, relu sets those below 0 to 0
# (else `down` after `up` would be one matrix, no more), `down` makes what is added to h.

def attention(settings, query, keys):
    """query [heads * pieces][n], keys [so far][heads * pieces][n] -> shares [heads][so far]"""
    # n products of size 1 and random signs add up to about sqrt(n): most cancel. Divide each dot by
    # that (2 pieces: sqrt(8) * sqrt(8) = 8), else one share is nearly 1, derivatives nearly 0.
    scale, pieces, scores = len(query[0]) ** (-settings.pieces / 2), settings.pieces, []
    for key in keys:  # scores will be [so far][heads]: for the first '<', [4][1]
        dots = list(map(dot, query, key))  # q1.k1, q2.k2, then those of the next head
        scores.append([product(dots[i:i + pieces]) for i in range(0, len(dots), pieces)])
    return [softmax(collect(of_head), scale) for of_head in zip(*scores)]

def fetch(shares, values):
    """shares [heads][so far], values [so far][width] -> [width], sums over tokens: share * value"""
    head_width = len(values[0]) // len(shares)  # number i is for head i // head_width (1 head: 0)
    columns = [collect(column) for column in zip(*values)]  # number i of all values
    return collect([dot(shares[i // head_width], column) for i, column in enumerate(columns)])

def transformer(weights, settings, h, cache, predict=True):
    """a token's h [width] -> logits, or None; the cache (keys, values, shares per layer) grows"""
    n = settings.width // settings.heads // settings.pieces  # numbers in a piece: 16 / 1 / 2 = 8
    for layer, (keys, values, shares) in enumerate(cache):
        normed = rmsnorm(h)
        keys.append(split(linear(weights[f'mouth{layer}.key'], normed), n))
        values.append(linear(weights[f'mouth{layer}.value'], normed))
        if not predict and layer == settings.layers - 1:
            return None  # key and value are enough
        query = split(linear(weights[f'mouth{layer}.query'], normed), n)
        shares.append(attention(settings, query, keys))
        h = add(h, linear(weights[f'mouth{layer}.output'], fetch(shares[-1], values)))
        hidden = relu(linear(weights[f'mouth{layer}.up'], rmsnorm(h)))
        h = add(h, linear(weights[f'mouth{layer}.down'], hidden))
    return linear(weights['mouth.logits'], rmsnorm(h))

def prefill(weights, settings, vision):
    """vision tokens [patches^2][tokens][width] -> the cache, once the mouth has read them"""
    cache = [([], [], []) for _ in range(settings.layers)]  # keys, values, shares (kept for show)
    for token, position in zip(chain(*vision), weights['mouth.vision_position']):
        transformer(weights, settings, add(token, position), cache, predict=False)
    return cache

def next_logits(weights, settings, letter, place, cache):
    """a letter, its place in the text, cache of all tokens before -> logits [vocabulary]"""
    row = weights['mouth.embedding'][settings.vocabulary.index(letter)]
    return transformer(weights, settings, add(row, weights['mouth.text_position'][place]), cache)

# ---- The weights: one flat list of floats, `numbers`, cut into matrices to compute with ----------
def shapes(settings):
    """-> the shape of every matrix: name -> (rows, columns)"""
    width, pixels = settings.width, (settings.size // settings.patches) ** 2
    half, letters = settings.tokens.count(2) * width // 2, len(settings.vocabulary)
    out = {}
    for number, degree in enumerate(settings.tokens):
        for factor in range(2 if degree == 4 else degree):
            out[f'eye{number}.{factor}'] = (width, half if degree == 4 else pixels)
    out['mouth.vision_position'] = (settings.patches ** 2 * len(settings.tokens), width)
    out['mouth.text_position'] = (settings.longest, width)  # longest: letters in a text, at most
    out['mouth.embedding'] = out['mouth.logits'] = (letters, width)
    for layer in range(settings.layers):
        out.update({f'mouth{layer}.{p}': (width, width) for p in 'query key value output'.split()})
        out[f'mouth{layer}.up'] = (settings.mlp * width, width)  # mlp, layers: 1 by default
        out[f'mouth{layer}.down'] = (width, settings.mlp * width)
    return out

def first_numbers(settings):
    """-> random numbers of size 1 / sqrt(columns): dot products are then about 1 (see attention)"""
    # Matrices that make logits, or what is added to h, begin at 0: better nothing than noise. As
    # d(w.x)/dw = x, logits moves in step 1; as d(w.x)/dx = w = 0, all before it waits for 2 or 3.
    rng, numbers = random.Random(settings.seed), []
    begin = {'query': 0.25, 'output': 0.0, 'down': 0.0, 'logits': 0.0}  # 0.25: nearly equal shares
    for name, (rows, columns) in shapes(settings).items():
        deviation = begin.get(name.split('.')[1], 1.0) * columns ** -0.5
        numbers += [rng.gauss(0, deviation) for _ in range(rows * columns)]
    return numbers

def matrices(settings, numbers):
    """floats or Values -> {name: matrix}, and G, which is computed from them"""
    numbers = iter(numbers)
    weights = {name: [collect(list(islice(numbers, columns))) for _ in range(rows)]
               for name, (rows, columns) in shapes(settings).items()}
    weights['gram'] = gram(weights, settings)
    return weights

# ---- Learning: the loss, its gradient, Adam ------------------------------------------------------
# To learn (training): compute the loss of a minibatch, 32 examples (forward pass); its derivatives
# by all numbers, the gradient (backward pass); and move each against its derivative. The loss of a
# letter is its cross-entropy, -log p, if the mouth gave it the probability p: 0 if p is 1, else
# more; over a text, they add up to -log of its probability. The mouth is fed the right letters
# (teacher forcing). Letters with p above settings.known (0.85) teach little: left out of the sum,
# they have a grad of 0, and backward() skips them (after Jiang et al. 2019, arXiv:1910.00762). An
# example's loss is that sum, plus settings.reconstruction (0.5) times the part that is not rebuilt.

def cross_entropy(logits, target):
    """logits [n], index of the right one -> -log of its probability"""
    probs = softmax(logits.data)
    loss = -math.log(max(probs[target], 1e-300))  # never log(0)
    # With logits z, S = sum_j e^z_j: loss = log S - z_target, dloss/dz_j = e^z_j/S - (j == target).
    return Value(loss, (logits, [p - (j == target) for j, p in enumerate(probs)]))

def naming_loss(weights, settings, vision, text):
    """vision tokens, a text such as '<seven>' -> the sum of the losses of letters not known"""
    losses, cache = [], prefill(weights, settings, vision)
    for place, (letter, following) in enumerate(zip(text, text[1:])):
        logits = next_logits(weights, settings, letter, place, cache)
        losses.append(cross_entropy(logits, settings.vocabulary.index(following)))
    return sum([loss for loss in losses if not math.exp(-loss.data) > settings.known], Value(0.0))

def joint_loss(weights, settings, x, text):
    """an example: image x [size * size], text -> its loss"""
    vision = see(weights, settings, x)
    rebuilding = settings.reconstruction * rebuilding_loss(weights, settings, vision, x)
    return rebuilding + naming_loss(weights, settings, vision, text)

LEAVES = []  # the weights as Values: made by the first call, then used again, to save time

def gradient(settings, loss_of, numbers, examples):
    """a minibatch, or a part of it -> its part of the mean loss, and of the gradient [numbers]"""
    if len(LEAVES) != len(numbers):
        LEAVES[:] = map(Value, numbers)
    for leaf, number in zip(LEAVES, numbers):
        leaf.data, leaf.grad = number, 0.0
    weights, total = matrices(settings, LEAVES), 0.0
    # Two tapes: from the weights to G, filled just now; from both to a loss, filled and, by
    # backward(), emptied for each example. All add to G's grads: walk the first tape at the end.
    gram_tape, Value.tape = Value.tape, []
    for x, text in examples:
        loss = loss_of(weights, settings, x, text) / settings.batch
        loss.backward()  # back through the mouth into the eye
        total += loss.data
    walk_back(gram_tape)
    return total, [leaf.grad for leaf in LEAVES]

# Adam (Kingma and Ba 2015) keeps running means of each derivative g and of its square. A number
# moves by rate * mean / sqrt(square): by rate if g is steady, else less. Means begin at 0: a steady
# g has the mean (1 - BETA^t) g after step t; so divide by that. Decay: unneeded numbers fade.
BETA1, BETA2 = 0.85, 0.9  # the part of the old mean in a new one; the rest is the new term

def learn(settings, numbers, examples, loss_of=joint_loss, places=None, gradient_of=gradient):
    """By an endless iterator of examples, change numbers (at places); yield each step's loss."""
    means, squares = [0.0] * len(numbers), [0.0] * len(numbers)
    new1, new2 = 1 - BETA1, 1 - BETA2
    for step in range(1, settings.steps + 1):  # 380
        batch = list(islice(examples, settings.batch))
        loss, grad = gradient_of(settings, loss_of, numbers, batch)
        rate = settings.lr * (1 - (step - 1) / settings.steps)  # from 0.014 towards 0
        full1, full2 = 1 - BETA1 ** step, 1 - BETA2 ** step
        for i in (range(len(numbers)) if places is None else places):
            means[i] = mean = BETA1 * means[i] + new1 * grad[i]
            squares[i] = square = BETA2 * squares[i] + new2 * grad[i] * grad[i]
            move = mean / full1 / (math.sqrt(square / full2) + 1e-8)
            numbers[i] -= rate * (move + settings.decay * numbers[i])  # decay: 0.2
        yield loss

# ---- Speaking (inference): say a letter, read it, go on until EOS --------------------------------
# In all: speak(weights, settings, prefill(weights, settings, see(weights, settings, x))).
def speak(weights, settings, cache, letter=BOS, choose=lambda logits: logits.index(max(logits))):
    """the cache that prefill() made -> pairs (letter, probability), to EOS (greedy decoding)"""
    for place in range(settings.longest):
        logits = next_logits(weights, settings, letter, place, cache)
        index = choose(logits)
        letter = settings.vocabulary[index]
        yield letter, softmax(logits)[index]
        if letter == EOS:
            break

# That was the algorithm. What follows is comfort, and each chapter can be skipped.

import argparse, gc, gzip, hashlib, json, multiprocessing, os, signal, socket, sys, threading
import time, urllib.parse, urllib.request, webbrowser
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from pathlib import Path

# ---- Messages ------------------------------------------------------------------------------------
def check(good, complaint):
    """If not good: end with one line and status 1 (the page catches it: error 400)."""
    if not good:
        sys.exit(f'vlm.py: {complaint}')

def progress(text, milestone=True, stay=True):
    """On standard error: a line that stays, or, if not, that the next one replaces.
    If that is no terminal: only milestones, and what is to stay."""
    with suppress(OSError):  # nobody reads it: no reason to stop
        if sys.stderr.isatty():
            print(f'{text:79.79}', end='\n' if stay else '\r', file=sys.stderr, flush=True)
        elif milestone or stay:
            print(text, file=sys.stderr, flush=True)

# ---- Questions and answers -----------------------------------------------------------------------
# A question is a token (a prompt) in the place of BOS; BOS itself asks for the name. To add one,
# add a row: its name, its token, its answers for 0 to 9.
QUESTIONS = """
name    <  zero one two three four five six seven eight nine
next    +  one two three four five six seven eight nine ten
parity  %  even odd even odd even odd even odd even odd
french  F  zéro un deux trois quatre cinq six sept huit neuf
german  D  null eins zwei drei vier fünf sechs sieben acht neun
"""
PROMPTS, ANSWERS = {}, {}
for row in QUESTIONS.strip().splitlines():
    name, prompt, *answers = row.split()
    assert len(prompt) == 1 and prompt not in PROMPTS.values() and len(answers) == 10, row
    PROMPTS[name], ANSWERS[name] = prompt, answers

def sampler(settings, x, question):
    """-> choose() for speak(): it draws at random, but for the same arguments the same"""
    rng = random.Random(repr((settings.seed, x, question)))
    def choose(logits):
        """logits [n] -> an index, drawn among the likeliest that together reach top_p"""
        probs = softmax(logits, 1 / max(settings.temperature, 1e-9))
        likely = sorted(range(len(probs)), key=probs.__getitem__, reverse=True)
        sums = list(accumulate(probs[index] for index in likely))  # .6 .9 1.0: 2 reach .8
        if math.isnan(sums[0]):  # from huge weights: choices() fails, answer() will refuse it
            return likely[0]
        enough = 1 + sum(total < settings.top_p for total in sums)
        return rng.choices(likely[:enough], cum_weights=sums[:enough])[0]
    return choose

def answer(weights, settings, x):
    """image x -> ({question: its name, probability, letters}, the part of x x^T not rebuilt)"""
    vision, said = see(weights, settings, x), {}
    missing, tokens = rebuilding_loss(weights, settings, vision, x), sum(map(len, vision))
    for question in settings.questions:
        cache = prefill(weights, settings, vision)
        letters, probability = [], 1.0
        options = {'choose': sampler(settings, x, question)} if settings.temperature else {}
        for letter, p in speak(weights, settings, cache, PROMPTS[question], **options):
            probability *= p  # EOS counts, too
            # speak() is a generator: here it pauses. Now the last of a layer's shares are those of
            # the token that predicted this letter, [heads][so far], vision tokens first.
            heads = [head for keys, values, shares in cache for head in shares[-1]]
            looked = sum(sum(head[:tokens]) for head in heads) / len(heads)  # at the image
            if letter != EOS:
                letters.append({'letter': letter, 'probability': p, 'look': looked})
        name = ''.join(entry['letter'] for entry in letters)
        said[question] = {'name': name, 'probability': probability, 'letters': letters}
        check(math.isfinite(missing + probability), 'the weights are too large: try a lower --lr')
    return said, missing

# ---- Learning in stages --------------------------------------------------------------------------
# A stage trains a part, such as the eye. Each run does one; the next loads its file.
#
#     python vlm.py --stage eye --save FILE
#     python vlm.py --stage joint --load FILE
#
#     joint                      all learns, by both losses
#     frozen-eye, frozen-mouth   the same, but this part stays as it is
#     eye                        the eye learns, by rebuilding alone
#     mouth                      the mouth learns, by the letters alone, without vision tokens
#
# (What a stage's loss does not see, as degree 3 in stage eye, only decays: give it --decay 0.)

STAGES = {  # the prefix of the matrices that change ('': all)
    'joint': '', 'eye': 'eye', 'mouth': 'mouth', 'frozen-eye': 'mouth', 'frozen-mouth': 'eye'}

def stage_loss(weights, settings, pixels, text):
    """raw pixels and a text, as examples() yields them -> their loss in this stage"""
    x = prepare(settings, pixels)  # here, so that processes share this work
    if settings.stage == 'mouth':  # how badly it spells, without vision tokens
        return naming_loss(weights, settings, [], text)
    if settings.stage == 'eye':  # how badly it rebuilds, as there are no letters
        text = ''
    return joint_loss(weights, settings, x, text)

def learning_places(settings):
    """-> the places in numbers that change in this stage"""
    names = [name for name, shape in shapes(settings).items() for _ in range(math.prod(shape))]
    return [i for i, name in enumerate(names) if name.startswith(STAGES[settings.stage])]

# ---- Settings, and the command line --------------------------------------------------------------
# A row: name; default (a/b: for size 8, for 14); least; meaning. Default and least are JSON, and
# null is none. The least has the option's type (0.0: float); without one: text, or see SPECIAL.
# So steps is 380, or 1150 for size 14; at least 0; an int, as 0 is one.
OPTIONS = {'common': """
size            8/14      1     pixels on a side, 8 or 14
steps           380/1150  0     training steps, one minibatch each
seed            1         0     fixes all that is random
test            10000     1     test images; with draw or page, by default none
jobs            0         0     processes; 0 is one for each processor
data            null      null  folder of MNIST's files; else data/ by vlm.py, or here
save            null      null  write the weights to this file, as JSON
load            null      null  speak with these; with steps, stage, lr or batch: learn on
draw            null      null  draw answers, such as seven,three, or all
page            null      null  serve a page to play with, at this port; else 8000, 8001 ...
questions       null      null  such as name,parity; else name, or all that a file knows
""", 'learning': """
stage           "joint"   null  joint, eye, mouth, frozen-eye or frozen-mouth
lr              0.014     1e-9  learning rate; it falls linearly to zero
batch           32        1     images in a minibatch
decay           0.2       0.0   weight decay: times lr, how much a weight shrinks
reconstruction  0.5       0.0   factor of the rebuilding loss
distort         0.0       0.0   data augmentation: up to 3 pixels of shift, slant, stretch
known           0.85      0.0   a letter of higher probability teaches nothing
""", 'model': """
tokens          [2,3,3]   null  degrees, from 1 to 4, of the vision tokens
patches         1         1     patches per side of the image; 1 is the whole
width           16        1     numbers in the vector of a token
layers          1         1     transformer layers
heads           1         1     attention heads; they share the width
pieces          2         1     of a query and a key; 1 is dot-product attention
mlp             1         1     hidden units of a layer, per number of the width
""", 'speaking': """
temperature     0.0       0.0   above 0: a random letter, not the likeliest
top_p           1.0       1e-9  of the likeliest letters, together this probable
"""}
ROWS = [(*line.split(None, 3), group) for group, lines in OPTIONS.items()
        for line in lines.strip().splitlines()]
LEAST = {name: json.loads(least) for name, _, least, *_ in ROWS if least != 'null'}

def degrees(text):
    """'3,2,3' -> [2, 3, 3]"""
    return sorted(map(int, text.split(',')))

SPECIAL = {  # what argparse needs to know of some options; True: --page without a port
    'draw': {'nargs': '+'}, 'questions': {'type': lambda text: text.split(',')},
    'tokens': {'type': degrees}, 'stage': {'choices': STAGES},
    'page': {'type': int, 'nargs': '?', 'const': True}}

# The settings that shape the weights; saved with them. `learned` (in no row above) lists the
# questions that they know; settings.questions, those to ask in this run: perhaps fewer.
SHAPING = ['size', 'learned', *[name for name, *_, group in ROWS if group == 'model']]

def complete(given):
    """some settings -> all: the others are the defaults of their size"""
    column = -1 if given.get('size') == 14 else 0  # of two defaults; a single one is both
    defaults = {name: json.loads(default.split('/')[column]) for name, default, *_ in ROWS}
    # What a file's model has learned, its file says; a new model learns what is asked.
    learned = given.get('learned', given.get('questions', ['name']))
    defaults.update(learned=learned, questions=learned)
    settings = argparse.Namespace(**{**defaults, **given})
    texts = [EOS]
    for question in ANSWERS.keys() & learned:  # mistakes() will refuse others
        texts += [PROMPTS[question], *ANSWERS[question]]
    settings.vocabulary = sorted(set(''.join(texts)))
    settings.longest = max(map(len, texts)) + 1  # letters to say, EOS among them
    return settings

def mistakes(settings):
    """-> what is wrong with the settings (a file's can be of any type), or ''"""
    for name, least in LEAST.items():
        value = vars(settings)[name]
        if not (type(value) is type(least) and least <= value <= 1e9):
            return f'{name.replace("_", "-")} must be from {least} to 1e9, not {value!r}'
    s, asked = settings, settings.questions
    codes = s.tokens.count(2) * s.width  # how many latents of degree 2
    rules = {  # what must be true
        'size must be 8 or 14': s.size in (8, 14),
        'patches must divide size': s.size % s.patches == 0,
        'heads times pieces must divide width': s.width % (s.heads * s.pieces) == 0,
        'tokens must be degrees from 1 to 4':
            s.tokens and all(type(d) is int and 1 <= d <= 4 for d in s.tokens)
            and s.tokens == sorted(s.tokens),  # degree 4 needs the 2s before it
        'tokens of degree 4 need an even number of latents of degree 2':
            4 not in s.tokens or codes > 0 and codes % 2 == 0,
        'distort must be at most 3': s.distort <= 3,
        f'questions must be of {", ".join(ANSWERS)}, each once, and known to a loaded file':
            asked and {*asked} <= {*s.learned} <= {*ANSWERS} and len({*asked}) == len(asked),
        'draw must be answers that the model knows, or all':
            not s.draw or all(question_of(s, name) for name in to_draw(s)),  # see Drawing
        'page must be a port below 65536': s.page is None or 0 <= s.page < 65536,
        'stage eye needs tokens of degree 2, and reconstruction':
            s.stage != 'eye' or codes and s.reconstruction}
    return '; '.join(rule for rule, good in rules.items() if not good)

def parse(argv):
    """command line -> settings, numbers to start from (None: random ones)"""
    parser = argparse.ArgumentParser(
        prog='vlm.py', usage='%(prog)s [options]', argument_default=argparse.SUPPRESS,
        description='It learns to answer questions about handwritten digits, then is tested. '
        'Of two defaults, the second is for --size 14.')
    groups = {group: parser.add_argument_group(group) for group in OPTIONS}
    for name, default, _, meaning, group in ROWS:
        kind = type(LEAST[name]) if name in LEAST else str
        shown = default.strip('"[]')  # as one types it
        text = meaning if default == 'null' else f'{meaning} (default: {shown})'
        groups[group].add_argument('--' + name.replace('_', '-'), metavar='X', help=text,
                                   **{'type': kind, **SPECIAL.get(name, {})})
    given = vars(parser.parse_args(argv))  # only what was typed, thanks to SUPPRESS
    saved, numbers = load(given['load']) if 'load' in given else ({}, None)
    settings = complete({**saved, **given})
    # What shapes the weights, such as --width, is as the file says.
    changed = ', '.join(name for name in saved if vars(settings)[name] != saved[name])
    wrong = f'{changed} contradicts {settings.load}' if changed else mistakes(settings)
    if wrong:
        parser.error(wrong)
    if saved and not given.keys() & {'stage', 'steps', 'lr', 'batch'}:
        settings.steps = 0  # nobody asks to learn on
    if 'test' not in given and given.keys() & {'draw', 'page'}:
        settings.test = 0
    cores = (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
             else os.cpu_count())
    settings.jobs = min(settings.jobs or cores or 1, 64)  # more is a typing error
    return settings, numbers

# ---- Many processes: data parallelism ------------------------------------------------------------
# The first process sends the others a function and some items, through a pipe each; they send
# back the results. Meanwhile the first does its own share; if another dies or fails, it does that
# share, too. (All is pickled, turned into bytes. A function becomes just its name, so it must be at
# top level; a partial of one will do.)
#
# A sum of floats depends on the order. So a minibatch is always cut into two portions, whose
# gradients are added in order: any number of processes learns the same weights, to the last bit.
# (More than two processes speed up only the test at the end.)
PORTIONS = 2

def shared_gradient(share_out, settings, loss_of, numbers, batch):
    """gradient() for learn(), with the portions given to share_out, which works like map()"""
    portions = split(batch, math.ceil(len(batch) / PORTIONS))
    losses, grads = zip(*share_out(partial(gradient, settings, loss_of, numbers), portions))
    return sum(losses), reduce(add, grads)

@contextmanager
def processes(number):
    """-> a function like map() that shares its work with number - 1 other processes"""
    pause_gc()
    others = {}  # pipe: process
    # Ctrl-C sends SIGINT to all processes; only this one may end by it. So ignore it while others
    # start: copies of this one (fork) inherit that. (If they start anew, see follow().)
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # -> the old handler
    try:
        for _ in range(number - 1):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=follow, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # that process has its own copy
            others[ours] = process
    except (OSError, EOFError) as error:  # EOFError: fork server died
        progress(f'no further process can be started: {error}')
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield partial(shared_map, list(others))
    finally:
        gc.enable()
        for pipe, process in others.items():
            process.kill()
            process.join()
            pipe.close()

def pause_gc():
    """Save a sixth of the time: CPython need not search for garbage in cycles, as we make none.
    (PyPy frees nothing without a search.)"""
    if sys.implementation.name == 'cpython':
        gc.disable()

def shared_map(pipes, function, items):
    """pipes to other processes -> [function(item) for item in items]; dead pipes are removed"""
    size = max(math.ceil(len(items) / (len(pipes) + 1)), 1)
    own, shares = items[:size], split(items[size:], size)
    for pipe, share in zip(pipes, shares):
        with suppress(OSError):  # it has ended: noticed below
            pipe.send((function, share))
    results = list(map(function, own))
    for pipe, share in zip(list(pipes), shares):  # a copy, as pipes may lose some
        try:
            results += pipe.recv()
        except (EOFError, OSError):
            progress('a process died: this one does its work')
            pipes.remove(pipe)
            results += map(function, share)
    return results

def follow(pipe):
    """What the other processes do: receive a function and items, send back the results."""
    pause_gc()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(Exception, SystemExit):  # it ends; the first repeats its share, and the error
        threading.Thread(target=end_with_first, daemon=True).start()
        while True:
            function, items = pipe.recv()
            pipe.send(list(map(function, items)))

def end_with_first():
    """Wait until the first process has ended, killed perhaps; then this one must not stay."""
    multiprocessing.parent_process().join()
    os._exit(1)

# ---- Images: from raw pixels to examples ---------------------------------------------------------
def shrink(line, size, start=0.0, length=None):
    """`length` pixels of a row (None: all) from `start` on, in `size` equal parts -> their means;
    beyond the row's ends, pixels are 0

    >>> shrink([2, 2, 5], 2)    # (2 + 2/2) / 1.5, (2/2 + 5) / 1.5
    [2.0, 4.0]
    """
    part = (length or len(line)) / size
    edges = [min(max(start + i * part, 0), len(line)) for i in range(size + 1)]  # 0, 1.5, 3
    sums = [0, *accumulate(line)]  # 0, 2, 4, 9
    # The sum before each edge, 0, 3, 9: whole pixels, then a part of the one that it cuts. Between
    # two edges lies the difference of their sums.
    line = [*line, 0]  # the edge at the end cuts none
    before = [sums[int(edge)] + edge % 1 * line[int(edge)] for edge in edges]
    return [(b - a) / part for a, b in zip(before, before[1:])]

def pixel_order(settings):
    """-> for each number of x, which pixel it is, counted row by row (one patch: 0, 1, 2 ...)"""
    size = settings.size
    part = size // settings.patches
    # Sorted by the row and the column of their patch; within it, they keep their order
    return sorted(range(size ** 2), key=lambda i: (i // size // part, i % size // part))

def downscale(settings, pixels):
    """pixels [side * side] -> their means in [size * size] equal squares, patch after patch"""
    size, side = settings.size, math.isqrt(len(pixels))
    inner = slice(side // 9, side - side // 9)  # not the outer 3 of 28, often black; all of 8
    rows = [shrink(row[inner], size) for row in split(pixels, side)[inner]]
    columns = [shrink(column, size) for column in zip(*rows)]
    means = list(chain(*zip(*columns)))  # row after row
    return [means[i] for i in pixel_order(settings)]

def distort(pixels, moves):
    """pixels [side * side]; shift, slant, stretch of rows, then of columns -> [side * side]"""
    side = math.isqrt(len(pixels))
    lines = split(pixels, side)
    for shift, slant, stretch in split(moves, 3):
        # A line is read through a window, which begins later by shift (the digit moves to the left)
        # and by slant times -1 (first line) to 1 (last). By stretch, it is longer at both ends: so
        # the digit gets narrower.
        starts = [shift - stretch + slant * ((2 * i + 1) / side - 1) for i in range(side)]
        lines = [shrink(line, side, start, side + 2 * stretch)
                 for line, start in zip(lines, starts)]
        lines = list(zip(*lines))  # rows become columns, and back again
    return list(chain(*lines))

def prepare(settings, pixels):
    """pixels [side * side] -> image x [size * size], of mean square 1"""
    return rmsnorm(downscale(settings, pixels))

def examples(settings, digits):
    """[(pixels, digit)] -> (pixels, text) without end; stage_loss() will prepare the pixels"""
    rng = random.Random(settings.seed)
    digits, i = list(digits), 0  # i: how many examples so far
    while True:
        rng.shuffle(digits)
        for pixels, digit in digits:
            if settings.distort:
                moves = [rng.uniform(-settings.distort, settings.distort) for _ in range(6)]
                pixels = distort(pixels, moves)
            # To save time, every second text ends after two letters: later ones are easier. A
            # question comes twice in a row: if two took turns, the same one would always be cut. So
            # i = 0, 1, 2, 3 are: name, name cut, next, next cut.
            question = settings.questions[i // 2 % len(settings.questions)]
            text = PROMPTS[question] + ANSWERS[question][digit] + EOS
            yield pixels, text[:3] if i % 2 else text
            i += 1

# ---- Files: weights ------------------------------------------------------------------------------
def write_file(path, content=b''):
    """Write bytes under a temporary name, then rename it. No bytes: only try whether one can."""
    path = Path(os.path.realpath(path))  # a link stays: its file is replaced
    check(path.is_file() or not path.exists(), f'{path} is not a regular file')
    check(os.access(path, os.W_OK) or not path.exists(), f'{path} is write-protected')
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        part.write_bytes(content)
        if path.exists():
            part.chmod(path.stat().st_mode)
        if content:
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

def data_folder():
    """-> the folder data/ beside this file, or else in the current folder"""
    beside = Path(__file__).resolve().parent / 'data'
    return beside if beside.is_dir() else Path('data').absolute()

def save(path, settings, numbers):
    """Write the numbers, and the settings that shape matrices of them, to a JSON file."""
    check(all(map(math.isfinite, numbers)), 'weights that are not finite are not saved')
    shaping = {name: vars(settings)[name] for name in SHAPING}
    write_file(path, json.dumps({'settings': shaping, 'numbers': numbers}).encode())

def load(path):
    """-> the settings in a file by save(), its numbers"""
    folder = data_folder().parent  # what is not here may be there: data/weights-8.json, say
    found = [place for place in (Path(path), folder / path) if place.exists()]
    check(found, f'{path} is neither here nor in {folder}')
    content = found[0].read_bytes()
    with suppress(Exception):  # a file that is not ours can be wrong in many ways
        file = json.loads(content)
        saved = {'learned': ['name'], **file['settings']}  # older files lack `learned`
        settings, numbers = complete(saved), file['numbers']  # questions: those learned
        if (saved.keys() == {*SHAPING} and type(saved['learned']) is list
                and not mistakes(settings)  # so each of its questions is in the table
                and settings.layers < len(numbers)  # else shapes() may loop a billion times
                and len(numbers) == sum(map(math.prod, shapes(settings).values()))
                and {int, float} >= set(map(type, numbers)) and all(map(math.isfinite, numbers))):
            return saved, list(map(float, numbers))
    check(False, f'{path} is damaged, or not a weights file of vlm.py')

# ---- Digits: MNIST, or those bundled in data/ ----------------------------------------------------
MIRRORS = ['https://storage.googleapis.com/cvdf-datasets/mnist/',
           'https://ossci-datasets.s3.amazonaws.com/mnist/']
TIMEOUT = 5  # seconds of silence, then the next mirror is tried
MNIST = {    # the files, with the SHA-256 of their decompressed content
    'train-images-idx3-ubyte': 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
    'train-labels-idx1-ubyte': '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
    't10k-images-idx3-ubyte': '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
    't10k-labels-idx1-ubyte': 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2'}

def find(folder, name):
    """-> the path of an IDX file, raw or else gzipped, or None"""
    return next((p for p in (folder / name, folder / f'{name}.gz') if p.exists()), None)

def unzip(content):
    """bytes, gzipped or not -> plain bytes; damaged ones stay: read_idx() refuses them"""
    with suppress(Exception):  # damage shows in many ways
        return gzip.decompress(content)
    return content

def read_idx(folder, name, *shape):
    """-> the items of an IDX file, of this shape: (side, side) for images, () for labels"""
    # Its header, 4 bytes each: 0x801 plus the dimensions of an item (2 for images, 0 for labels);
    # number of items; shape of an item. The items follow. (split() cuts bytes, too.)
    path = find(folder, name) or folder / name
    start, size = 8 + 4 * len(shape), math.prod(shape)
    content = unzip(path.read_bytes())
    number = max(len(content) - start, 0) // size
    header = b''.join(n.to_bytes(4, 'big') for n in (0x801 + len(shape), number, *shape))
    check(number and content[:start] == header and len(content) == start + number * size,
          f'{path} is damaged, or not an IDX file of {shape or "labels"}')
    return split(content[start:], size)

def read_digits(folder, kind, side):
    """-> the digits of a folder: [(pixels, digit)]"""
    images = read_idx(folder, f'{kind}-images-idx3-ubyte', side, side)
    labels = [label[0] for label in read_idx(folder, f'{kind}-labels-idx1-ubyte')]
    check(len(labels) == len(images) and max(labels) < 10,
          f'{folder} has {kind} labels that do not fit its images')
    return list(zip(images, labels))

def download(path):
    """Write a file of MNIST, from a mirror -> whether one has it; wrong content is refused"""
    wrong = []
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(mirror + path.name, timeout=TIMEOUT) as response:
                progress(f'downloading {path.name}')
                content = response.read()
        except urllib.error.HTTPError as refusal:  # such as 404
            refusal.close()
            continue
        except Exception:  # a network fails in many ways
            continue
        if hashlib.sha256(unzip(content)).hexdigest() == MNIST[path.stem]:
            path.parent.mkdir(exist_ok=True)
            write_file(path, content)
            return True
        wrong.append(mirror)
    check(not wrong, f'wrong content for {path.name} from {" and ".join(wrong)}')
    return False

def load_digits(folder, size):
    """-> the digits to learn from, those to test on: from a folder, else data_folder()"""
    place = data_folder() if folder is None else Path(folder)
    check(folder is None or os.path.isdir(folder), f'--data {folder!r} is no folder')
    if all(find(place, name) or download(place / f'{name}.gz') for name in MNIST):
        train, test = [read_digits(place, kind, 28) for kind in ('train', 't10k')]
    else:
        check(folder is None and size == 8 and find(place, 'optdigits-train-images-idx3-ubyte'),
              f'MNIST cannot be downloaded: put {", ".join(MNIST)}, raw or .gz, into {place}')
        train, test = [read_digits(place, f'optdigits-{kind}', 8) for kind in ('train', 'test')]
        progress('MNIST cannot be downloaded, so the bundled digits are used')
    # The last twelfth is held out, for tests/study.py.
    return train[:len(train) - len(train) // 12], test

# ---- Pictures in the terminal --------------------------------------------------------------------
def greys(settings, x, top):
    """image x -> its pixels [size * size], row after row, divided by top, with three digits"""
    in_rows = [v for _, v in sorted(zip(pixel_order(settings), x))]  # sorted by place
    return [round(max(v, 0.0) / max(top, 1e-9), 3) for v in in_rows]

def unicode():
    """-> whether standard output can show any character"""
    return 'utf' in (sys.stdout.encoding or '').lower()

def caption(right, said):
    """the right text, what answer() has for a question -> a line that compares them"""
    mark = ('✗✓' if unicode() else 'x+')[said['name'] == right]
    return f'{said["name"]} {mark} {said["probability"]:.1%}'

def show(settings, pictures):
    """[(image x, caption)] -> print each image above its caption, side by side in 80 columns"""
    plain = (not sys.stdout.isatty() or not unicode() or os.environ.get('NO_COLOR')
             or os.environ.get('TERM') == 'dumb'
             or os.name == 'nt' and 'WT_SESSION' not in os.environ)  # an old console
    width = settings.size * (2 if plain else 1)
    column = max([width, *(len(text) for _, text in pictures)])
    blocks = []
    for x, text in pictures:
        rows = split(greys(settings, x, max(x)), settings.size)
        if plain:  # two characters for a pixel
            lines = [''.join(' .:-=+*#%@'[round(9 * v)] * 2 for v in row) for row in rows]
        else:      # one for two: 38;5;A is ▀'s colour, 48;5;B that behind it; greys: 232-255
            lines = [''.join(f'\x1b[38;5;{232 + round(23 * a)};48;5;{232 + round(23 * b)}m▀'
                             for a, b in zip(*pair)) + '\x1b[0m'
                     for pair in zip(rows[::2], rows[1::2])]
        lines = [line + ' ' * (column - width) for line in lines]  # colours take no room
        blocks.append([*lines, text.ljust(column)])
    for some in split(blocks, max(80 // (column + 1), 1)):
        for lines in zip(*some):
            print(*lines)
        print()

# ---- Drawing: from an answer to an image ---------------------------------------------------------
# Hold the weights still, and let the image learn: backward() goes down to the pixels. With the
# loss of the letters alone, much of it becomes noise. The rebuilding loss makes it look like a
# digit: the eye can rebuild only such (a learned prior; A. Nguyen et al. 2016, arXiv:1612.00005).
# Each model in data/ drew ten digits. The one that did not draw them reads 17 of 20; without that
# loss, 10.
STEPS, LIKENESS = 80, 0.5   # LIKENESS: the factor of the rebuilding loss
DRAWING = threading.Lock()  # the page's threads share one tape (reading needs none)

def draw(weights, settings, text, start=None):
    """'<seven>', an image x to start from (else flat grey) -> the images on the way"""
    # Weights, too, must be Values: dot() takes a constant only as b, and their rows are its a.
    weights = {name: [collect(list(map(Value, row))) for row in matrix]
               for name, matrix in weights.items()}
    aims = argparse.Namespace(**vars(settings))
    aims.known, aims.reconstruction = 1.0, LIKENESS  # every letter counts
    images = [start if start and any(start) else [1.0] * settings.size ** 2]
    for step in range(STEPS):
        pixels = list(map(Value, images[-1]))
        joint_loss(weights, aims, pixels, text).backward()
        slopes = rmsnorm([pixel.grad for pixel in pixels])  # of one size in all steps
        rate = 0.3 * (1 - step / STEPS)
        moved = [max(v - rate * slope, 0.0) for v, slope in zip(images[-1], slopes)]
        images.append(rmsnorm(moved))
    return images

def question_of(settings, name, first='name'):
    """an answer -> a question that is asked and has it, `first` or one of the table; or None"""
    return next((q for q in (first, *ANSWERS)
                 if q in settings.questions and name in ANSWERS[q]), None)

def to_draw(settings):
    """-> the answers in --draw; `all`: those to the table's first question that is asked"""
    names = ','.join(settings.draw).split(',')  # `seven three` will do, too
    every = next((ANSWERS[q] for q in ANSWERS if q in settings.questions), [])
    return list(dict.fromkeys(every)) if names == ['all'] else names  # each once

def exhibit(weights, settings):
    """Draw the answers in settings.draw; print the images, and what is read in them."""
    pictures = []
    for name in to_draw(settings):
        question = question_of(settings, name)
        x = draw(weights, settings, PROMPTS[question] + name + EOS)[-1]
        said = answer(weights, settings, x)[0][question]
        pictures.append((x, f'{name}: {caption(name, said)}'))
    show(settings, pictures)

# ---- A page to play with -------------------------------------------------------------------------
def centre(ink):
    """a drawing [n * n] -> cropped, scaled to 20x20, its centre of mass in the middle of 28x28"""
    check(type(ink) in (bytes, list) and len(ink) in [n * n for n in range(8, 561)]
          and all(type(v) in (int, float) and 0 <= v <= 255 for v in ink),
          'a drawing is n * n numbers from 0 to 255, n from 8 to 560')
    least = max(ink) / 5  # what is fainter is no ink
    lines = split(ink, math.isqrt(len(ink)))
    # Each step is done to rows, then to columns: zip(*rows) is the columns, and back.
    for _ in range(2):  # keep those from the first to the last that have ink
        inked = [i for i, line in enumerate(lines) if max(line) > least] or [0]
        lines = list(zip(*lines[inked[0]:inked[-1] + 1]))
    side = max(len(lines), len(lines[0]))
    for _ in range(2):  # what is narrow stays so: it is filled up to a square
        lines = list(zip(*[shrink(line, 20, length=side) for line in lines]))
    for _ in range(2):  # the middle of all ink, column by column, comes to 14
        masses = [sum(column) for column in zip(*lines)]
        middle = dot(masses, range(20)) / (sum(masses) or 1.0)  # 1.0: no ink
        lines = list(zip(*[shrink(line, 28, round(middle) - 14, 28) for line in lines]))
    return list(chain(*lines))

def kept(weights, settings, x):
    """image x -> what the eye can rebuild of it [size * size], patch after patch"""
    # It rebuilds a table A, near x x^T. Which image w has a table w w^T nearest to A? By (*), the
    # distance squared, A.A - 2 A.(w w^T) + (w w^T).(w w^T), is
    #     A.A - 2 sum_j f_j (l_j.w)(r_j.w) + (w.w)^2
    # Its derivative by w is 4 (w.w) w - 2 p, p = sum_j f_j ((r_j.w) l_j + (l_j.w) r_j). Begin at
    # the patch; ten times, subtract the derivative / (4 (a + w.w)): w becomes
    #     (a w + p / 2) / (a + w.w)    (a power iteration)
    # with a = sqrt(A.A) = sqrt(f.(G f)). Any small step would do; of this one, ten are enough.
    left, right = [patterns(weights, settings, factor) for factor in (0, 1)]
    columns = list(zip(*left, *right))  # one for each pixel; none without degree 2
    out = []
    for patch in split(x, len(x) // settings.patches ** 2):
        f, w = code(settings, look(weights, settings, patch)), patch
        a = max(dot(f, linear(weights['gram'], f)), 0.0) ** 0.5  # rounded, it may be below 0
        for _ in range(10):
            amounts = map(mul, f + f, linear(right + left, w))  # f_j (r_j.w), then f_j (l_j.w)
            p = linear(columns, list(amounts))
            size = a + dot(w, w) + 1e-30  # never divide by zero
            w = [(a * s + t / 2) / size for s, t in zip(w, p)]
        out += w
    return out

def read_drawing(weights, settings, question, body):
    """POST /read?ask=name, a drawing [n * n] -> answers; the image as seen, as kept"""
    seen = downscale(settings, centre(body))
    x = rmsnorm(seen)  # as prepare() does
    said, _ = answer(weights, settings, x)
    again = kept(weights, settings, x)  # [] without latents of degree 2
    every = {q: {**said[q], 'answers': ANSWERS[q]} for q in said}
    return {**said[question], 'questions': every, 'size': settings.size,
            'seen': greys(settings, seen, 255),
            'kept': again and greys(settings, again, max(again))}

def draw_name(weights, settings, question, body):
    """POST /draw?ask=name, an answer, perhaps a drawing -> the images on the way"""
    order = json.loads(body)
    check(type(order) is dict, 'an order is like {"name": "seven"}')
    name = order.get('name')
    question = question_of(settings, name, question)
    check(question, 'name must be an answer that the model knows')
    start = prepare(settings, centre(order['ink'])) if 'ink' in order else None
    with DRAWING:
        images = draw(weights, settings, PROMPTS[question] + name + EOS, start)
    said = answer(weights, settings, images[-1])[0][question]
    return {'size': settings.size, 'frames': [greys(settings, x, max(x)) for x in images],
            'read': said['name'], 'probability': said['probability']}

TASKS = {'/': ('GET', lambda *_: (data_folder() / 'page.html').read_bytes()),
         '/read': ('POST', read_drawing), '/draw': ('POST', draw_name)}

class Page(BaseHTTPRequestHandler):
    """Answers a request, in a thread of its own: http.server calls handle(). (Its own handle()
    would answer mistakes in HTML.) The client's bytes come from rfile, ours go to wfile."""
    timeout = 5  # seconds that the other side may be silent
    log_message = send_error = lambda *_: None  # http.server is to say nothing

    def handle(self):
        """Answer with a page (bytes), or else with JSON."""
        self.raw_requestline = self.rfile.readline(65537)  # such as GET / HTTP/1.1
        status, content = self.respond()
        page = type(content) is bytes
        self.request_version = 'HTTP/1.0'  # else HTTP/0.9 would get no status
        self.send_response(status)
        self.send_header('Content-Type', 'text/html' if page else 'application/json')
        # The page may load nothing from elsewhere: its script and style are inline, its pictures
        # data or blobs. Nor may it stand inside another site's.
        self.send_header('Content-Security-Policy', "default-src 'self' 'unsafe-inline'; "
                         "img-src 'self' data: blob:; frame-ancestors 'none'")
        self.end_headers()
        self.wfile.write(content if page else json.dumps(content).encode())
        # To close with input unread, as after a refusal, is to reset the connection: the client may
        # lose what it has not read yet, our answer. So first read what is left, until the client
        # closes, or `timeout`.
        self.connection.shutdown(socket.SHUT_WR)  # no more from us: so it will close
        while self.connection.recv(65536):
            pass

    def respond(self):
        """Read the rest of a request -> status; what a task makes of it, or why it is refused"""
        weights, settings = self.server.model  # from serve()
        status = 400
        try:
            check(self.parse_request(), 'this is no HTTP')  # it sets command, path, headers
            self.check_sender()
            path, _, query = self.path.partition('?')
            method, task = TASKS.get(path, (None, None))
            if self.command != method:
                status = 405 if task else 404  # 405: not by this method; 404: no such path
            check(self.command == method, 'there is only GET /, POST /read and POST /draw')
            question = dict(urllib.parse.parse_qsl(query)).get('ask', settings.questions[0])
            check(question in settings.questions, f'no question is named {question}')
            length = self.headers.get('Content-Length', '0')
            check(length.isdecimal() and len(length) < 8, 'a Content-Length has 1 to 7 digits')
            body = self.rfile.read(int(length))
            check(len(body) == int(length), 'the body is too short')
            return 200, task(weights, settings, question, body)
        # SystemExit: by check(). Others: silence, wrong JSON, headers that Python fails on.
        except (SystemExit, Exception) as refusal:
            return status, {'error': str(refusal).removeprefix('vlm.py: ')}

    def check_sender(self):
        """Refuse other machines and sites."""
        port = self.server.server_port
        ours = [f'http://{name}:{port}'.removesuffix(':80')  # browsers omit it
                for name in ('localhost', '127.0.0.1')]
        # Another site's page, open in our browser, may send us requests. Either straight: then the
        # browser names that site (Origin). Or to evil.com, say, its own name, which it lets lead
        # here (DNS rebinding): then the browser takes it for ours, but says that name (Host).
        check(f'http://{self.headers.get("Host")}' in ours, 'for this machine only')
        check(self.headers.get('Origin', ours[0]) in ours, 'not for another site')

class Server(ThreadingHTTPServer):
    """A thread for each request."""
    request_queue_size = 64  # clients that may wait for a thread
    # True: the port can be taken again at once. (In Windows, two could share it.)
    allow_reuse_address = os.name != 'nt'
    handle_error = lambda *_: None  # a client that goes away is no error

def open_server(port):
    """-> a server at this port; for True, at the first free one from 8000 on"""
    page = data_folder() / 'page.html'
    check(page.exists(), f'{page} is missing: it comes with vlm.py, in its folder data/')
    for number in range(8000, 8100) if port is True else [port]:
        with suppress(OSError):  # it is taken
            return Server(('127.0.0.1', number), Page)
    check(False, f'port {number} is not free, or not allowed')

def serve(server, weights, settings):
    """Answer requests until Ctrl-C."""
    server.model = weights, settings
    address = f'http://127.0.0.1:{server.server_port}/'
    print(f'play at {address} until Ctrl-C', flush=True)
    with suppress(KeyboardInterrupt):
        # Without a desktop, a text browser might take the terminal.
        desktop = {'DISPLAY', 'WAYLAND_DISPLAY', 'BROWSER'} & os.environ.keys()
        if sys.stdout.isatty() and (desktop or os.name == 'nt' or sys.platform == 'darwin'):
            # In a thread: some browsers return only when they are closed.
            threading.Thread(target=open_browser, args=(address,), daemon=True).start()
        server.serve_forever()

def open_browser(address):
    """Open a browser, if that can be done."""
    with suppress(Exception):  # BROWSER can be wrong in many ways
        webbrowser.open(address)

# ---- A run: learn, save, report, draw, serve -----------------------------------------------------
def train(settings, numbers, digits):
    """Learn: change numbers, showing progress, until the last step or until Ctrl-C."""
    start, recent = time.monotonic(), []
    # learn() calls shared_gradient(share_out, settings, stage_loss, numbers, batch);
    # that, in each process, gradient(settings, stage_loss, numbers, portion);
    # that, for each example, stage_loss(weights, settings, pixels, text).
    try:
        with processes(min(settings.jobs, PORTIONS)) as share_out:
            losses = learn(settings, numbers, examples(settings, digits), stage_loss,
                           learning_places(settings), partial(shared_gradient, share_out))
            for step, loss in enumerate(losses, 1):
                last = step == settings.steps or not math.isfinite(loss)
                recent = [*recent[-99:], loss]
                left = (settings.steps - step) * (time.monotonic() - start) / step
                progress(f'step {step}/{settings.steps}  loss {sum(recent) / len(recent):.3f}  '
                         f'{left:.0f} s left', step % 100 == 0, stay=last)
                check(math.isfinite(loss), f'loss {loss} at step {step}: a lower --lr may help')
    except KeyboardInterrupt:  # some numbers have moved: no harm
        progress('interrupted: on to the report (Ctrl-C again to stop at once)')

def report(weights, settings, digits):
    """Show the first twenty answers; then print how many of all are right."""
    show_answers(weights, settings, digits[:20])  # at once: all are answered below
    answers = []
    with processes(settings.jobs) as share_out:
        for some in split(digits, 1000):
            images = share_out(partial(prepare, settings), [pixels for pixels, _ in some])
            answers += share_out(partial(answer, weights, settings), images)
            progress(f'tested {len(answers)}/{len(digits)} images',
                     stay=len(answers) == len(digits))
    error = sum(missing for _, missing in answers) / len(digits)
    print(f'reconstruction error: {error:.3f} (1.0 = reconstructs nothing)')
    for question in settings.questions:
        right = sum(said[question]['name'] == ANSWERS[question][label]
                    for (said, _), (_, label) in zip(answers, digits))
        which = '' if question == 'name' else f' of {question}'
        low, high = interval(right, len(digits))
        print(f'test accuracy{which}: {right}/{len(digits)} = {right / len(digits):.2%} '
              f'(95% interval {low:.2f}-{high:.2f})')

def show_answers(weights, settings, digits):
    """Show what is said of each: below its picture, or, without a terminal, in a line."""
    question, pictures = settings.questions[0], []
    for pixels, label in digits:
        x, name = prepare(settings, pixels), ANSWERS[question][label]
        text = caption(name, answer(weights, settings, x)[0][question])
        if sys.stdout.isatty():
            pictures.append((x, text))
        else:
            print(f'[{label}] true: {name} | generated: {text}')
    show(settings, pictures)

def interval(right, total):
    """how many of so many answers were right -> the 95% interval of the true accuracy, in %"""
    # If p is the true accuracy, `right` is, in 95 % of cases, at most 1.96 standard deviations,
    # sqrt(total p (1 - p)), from total p. We know right, not p: the interval is every p for which
    # that is so (Wilson 1927). At its ends (right - total p)^2 = s total p (1 - p), s = 1.96^2, or
    # (total + s) p^2 - (2 right + s) p + right^2 / total = 0: solve it.
    s = 1.96 ** 2
    root = math.sqrt(s * (right * (total - right) / total + s / 4))
    return [100 * (right + s / 2 + d) / (total + s) for d in (-root, root)]

def summary(settings):
    """-> the size, and what is not its default: 'size 8, steps 500'"""
    own, usual = vars(settings), vars(complete({'size': settings.size}))
    changed = [name for name, *_ in ROWS if name != 'jobs' and own[name] != usual[name]]
    return ', '.join(f'{name} {own[name]}' for name in ['size', *changed])

def main(argv=None):
    """Learn, save, report, draw, serve the page: as far as asked for."""
    settings, numbers = parse(argv)
    # What can fail is tried now rather than after the training.
    if settings.save is not None:
        write_file(settings.save)
    server = open_server(settings.page) if settings.page is not None else None
    numbers = numbers or first_numbers(settings)
    counts = [f'{len(numbers):,} parameters']
    if settings.steps or settings.test:
        digits, test = load_digits(settings.data, settings.size)
        counts += [f'{len(digits):,} training images', f'{len(test):,} test images']
    print(', '.join(counts))
    print(summary(settings))
    if settings.steps:
        train(settings, numbers, digits)
    if settings.save is not None:
        try:
            save(settings.save, settings, numbers)
        except KeyboardInterrupt:  # meant for the last step, perhaps
            save(settings.save, settings, numbers)
            raise
    weights = matrices(settings, numbers)
    if settings.test:
        report(weights, settings, test[:settings.test])
    if settings.draw:
        exhibit(weights, settings)
    if server:
        serve(server, weights, settings)

if __name__ == '__main__':
    # None: there is no output, as in pythonw.exe.
    sys.stdout, sys.stderr = [f or open(os.devnull, 'w') for f in (sys.stdout, sys.stderr)]
    with suppress(AttributeError):  # an editor's own output
        # Not every terminal has an é. Each line appears at once, in a pipe, too.
        sys.stdout.reconfigure(errors='replace', line_buffering=True)
    # That a disk is full may show only when Python flushes the output, at its very end, where
    # nothing catches it: so flush inside the try. After an error, sys.exit() would flush, and fail,
    # again; os._exit() does not, and leaves no time for a second Ctrl-C.
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        os._exit(130)  # as shells have it: 128 + SIGINT
    except BrokenPipeError:  # whoever read our output, like `| head`, has seen enough
        os._exit(1)
    except (OSError, MemoryError) as error:
        print(f'vlm.py: {str(error) or "out of memory"}', file=sys.stderr, flush=True)
        os._exit(1)
