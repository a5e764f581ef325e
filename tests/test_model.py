"""The eye, the mouth, their gradient, Adam and learning, against arithmetic written out here."""
import ast
import itertools
import math
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

import vlm
from tests import tools
from tests.tools import Case, gauss, matrices, names, norm, portions
from tests.tools import random_numbers, rows, slopes, tiny
from vlm import Value

ROOT = Path(vlm.__file__).resolve().parent
EXAMPLES = [(gauss(4, 1), '<cab>'), (gauss(4, 2), '<b>')]  # images of 2x2 pixels
LARGER = [(gauss(16, 1), '<cab>'), (gauss(16, 2), '<b>')]  # of 4x4
LEARNS = {'joint': ('eye', 'mouth'), 'eye': ('eye',), 'mouth': ('mouth',),
          'frozen-eye': ('mouth',), 'frozen-mouth': ('eye',)}


def on_values(settings, numbers):
    """The matrices of leaves"""
    return vlm.matrices(settings, list(map(Value, numbers)))


def floats(vector):
    """The numbers of a vector of Values or floats"""
    return list(getattr(vector, 'data', vector))


def decode(weights, settings, x, letters):
    """An image and letters, read one by one -> the logits after each letter, the cache"""
    cache = vlm.prefill(weights, settings, vlm.see(weights, settings, x))
    return [floats(vlm.next_logits(weights, settings, letter, place, cache))
            for place, letter in enumerate(letters)], cache


def first_step(settings, numbers, examples):
    """One step of learn() in the stage of the settings -> its loss, the gradient that it followed,
    the places whose numbers have changed"""
    parts, old, compute = [], list(numbers), vlm.gradient

    def gradient(*arguments):
        loss, grad = compute(*arguments)
        parts.append(grad)
        return loss, grad
    with mock.patch.multiple(vlm, gradient=gradient, prepare=lambda settings, x: x):
        [loss] = vlm.learn(settings, numbers, itertools.cycle(examples), vlm.stage_loss,
                           vlm.learning_places(settings), portions())
    return loss, [sum(column) for column in zip(*parts)], [
        i for i, (a, b) in enumerate(zip(old, numbers)) if a != b]


class Eye(Case):
    """From pixels to vision tokens"""

    def test_shrink_by_hand(self):
        """Three pixels to two bins: one and a half each; 14 to four."""
        self.assertNear(vlm.shrink([1, 2, 6], 2), [(1 + 2 / 2) / 1.5, (2 / 2 + 6) / 1.5])
        line = list(range(1, 15))
        self.assertNear(vlm.shrink(line, 4), [(1 + 2 + 3 + 4 / 2) / 3.5, (4 / 2 + 5 + 6 + 7) / 3.5,
                                              (8 + 9 + 10 + 11 / 2) / 3.5,
                                              (11 / 2 + 12 + 13 + 14) / 3.5])

    def test_distort_by_hand(self):
        """3x3 pixels, by two rows and columns of moves: shifted, slanted, stretched; black around."""
        pixels = bytes([1, 2, 3,
                        4, 5, 6,
                        7, 8, 9])
        for moves, expected in [
                ([0] * 6, pixels),
                ([1, 0, 0, 0, 0, 0], [2, 3, 0, 5, 6, 0, 8, 9, 0]),
                ([-0.5, 0, 0, 0, 0, 0], [0.5, 1.5, 2.5, 2, 4.5, 5.5, 3.5, 7.5, 8.5]),
                ([0, 0, 0, 2, 0, 0], [7, 8, 9, 0, 0, 0, 0, 0, 0]),
                # Rows 0, 1, 2 begin at -1, 0, 1.
                ([0, 1.5, 0, 0, 0, 0], [0, 1, 2, 4, 5, 6, 8, 9, 0]),
                # Each bin has 5 / 3 pixels of the five from -1 to 4.
                ([0, 0, 1, 0, 0, 0], [v / (5 / 3) for first, middle, last in ((1, 2, 3), (4, 5, 6),
                                                                              (7, 8, 9))
                                      for v in (first * 2 / 3, first / 3 + middle + last / 3,
                                                last * 2 / 3)])]:
            with self.subTest(moves):
                self.assertNear(vlm.distort(pixels, moves), expected)
        turned = vlm.distort([pixels[3 * x + y] for y in range(3) for x in range(3)],
                             [0, 0, 0, 0.4, -0.7, 0.2])
        self.assertNear(vlm.distort(pixels, [0.4, -0.7, 0.2, 0, 0, 0]),
                        [turned[3 * x + y] for y in range(3) for x in range(3)])

    def test_prepare_by_hand(self):
        """3x3 to 2x2: each bin owns a pixel, two halves and a quarter, together 2.25."""
        pixels = bytes([1, 2, 3,
                        4, 5, 6,
                        7, 8, 9])
        # (1 + 2/2 + 4/2 + 5/4) / 2.25 = 7/3;  (3 + 2/2 + 6/2 + 5/4) / 2.25 = 11/3;  and so on.
        # Their mean square is (49 + 121 + 361 + 529) / 9 / 4 = 265/9.
        expected = [v / math.sqrt(265 / 9 + 1e-5) for v in (7 / 3, 11 / 3, 19 / 3, 23 / 3)]
        for patches in (1, 2):
            self.assertNear(vlm.prepare(tiny(patches=patches), pixels), expected)

    def test_prepare(self):
        """Any size, cut into patches: each pixel is what its area of the image has on average."""
        for side, size, patches in [(28, 8, 1), (28, 8, 4), (28, 14, 1), (28, 14, 2), (8, 8, 1),
                                    (8, 8, 2), (8, 14, 7)]:
            with self.subTest(side=side, size=size, patches=patches):
                pixels = bytes((31 * i * i + 7 * i) % 256 for i in range(side * side))
                border, part = side // 9, size // patches
                width = (side - 2 * border) / size
                shares = [[max(0, min(border + bin * width + width, i + 1)
                               - max(border + bin * width, i)) for i in range(side)]
                          for bin in range(size)]
                means = {(row, column): sum(
                    down * tools.dot(shares[column], line)
                    for down, line in zip(shares[row], rows(pixels, side)) if down) / width ** 2
                    for row in range(size) for column in range(size)}
                order = sorted(means, key=lambda at: (at[0] // part, at[1] // part, at))
                x = vlm.prepare(tiny(size=size, patches=patches), pixels)
                self.assertNear(x, norm([means[at] for at in order]), 1e-9)
                self.assertAlmostEqual(tools.dot(x, x) / len(x), 1, 6)

    def test_see(self):
        """The tokens of every degree and patch, on floats and on Values."""
        for patches, tokens in [(1, [1, 2, 3, 4]), (2, [1, 2, 2, 3, 4]), (1, [3]), (4, [2, 2])]:
            with self.subTest(patches=patches, tokens=tokens):
                settings, x = tiny(size=4, patches=patches, tokens=tokens), LARGER[0][0]
                numbers = random_numbers(settings)
                w = matrices(settings, numbers)
                expected = [[[*token] for token in tools.look(w, settings, patch)]
                            for patch in rows(x, 16 // patches ** 2)]
                for weights in vlm.matrices(settings, numbers), on_values(settings, numbers):
                    seen = vlm.see(weights, settings, x)
                    self.assertEqual([len(own) for own in seen], [len(tokens)] * patches ** 2)
                    for token, right in zip(sum(seen, []), sum(expected, [])):
                        self.assertNear(floats(token), right)

    def test_no_two_tokens_alike(self):
        """Nor is one of the first weights a multiple of another."""
        settings = tiny(size=8, width=8, tokens=[1, 1, 2, 2, 3, 3, 4, 4])
        weights = vlm.matrices(settings, vlm.first_numbers(settings))
        [tokens] = vlm.see(weights, settings, gauss(64, 4))
        self.assertEqual([len(token) for token in tokens], [8] * 8)
        for a, b in itertools.combinations(map(norm, tokens), 2):
            self.assertLess(abs(tools.dot(a, b)) / 8, 0.99)


class Mouth(Case):
    """Tokens in, logits out"""

    def test_cached_decoding(self):
        """Letter by letter, on floats and on Values: the logits of a full masked forward pass."""
        for pieces, heads, patches in itertools.product((1, 2, 4), (1, 2), (1, 2)):
            with self.subTest(pieces=pieces, heads=heads, patches=patches):
                settings = tiny(width=8, heads=heads, pieces=pieces, patches=patches, layers=3,
                                tokens=[2, 2, 3])
                numbers, x = random_numbers(settings), gauss(4, 6)
                w = matrices(settings, numbers)
                tokens = [tools.look(w, settings, patch) for patch in rows(x, 4 // patches ** 2)]
                expected, _ = tools.spell(w, settings, tokens, '<cab')
                for weights in vlm.matrices(settings, numbers), on_values(settings, numbers):
                    for logits, right in zip(decode(weights, settings, x, '<cab')[0], expected):
                        self.assertNear(logits, right, 1e-9)

    def test_shares(self):
        """The cache keeps what each token took: for each head a share of all tokens up to itself,
        together 1; in the last layer only of the letters, as nothing is predicted before."""
        settings = tiny(width=8, heads=2, patches=2, layers=3, tokens=[2, 3])
        numbers, x = random_numbers(settings), gauss(4, 6)
        w = matrices(settings, numbers)
        tokens = [tools.look(w, settings, [pixel]) for pixel in x]
        _, expected = tools.spell(w, settings, tokens, '<cab')
        for weights in vlm.matrices(settings, numbers), on_values(settings, numbers):
            _, cache = decode(weights, settings, x, '<cab')
            self.assertEqual([len(shares) for _, _, shares in cache], [12, 12, 4])
            for (keys, values, shares), right in zip(cache, expected):
                self.assertEqual((len(keys), len(values)), (12, 12))
                for length, own, heads in zip(range(12, 0, -1), reversed(shares), reversed(right)):
                    self.assertEqual(list(map(len, own)), [length] * 2)
                    for share, formula in zip(own, heads):
                        self.assertNear(floats(share), formula, 1e-9)
                        self.assertNear([sum(floats(share))], [1.0])

    def test_causality(self):
        """Another letter changes its own logits and later ones, never an earlier one."""
        settings = tiny()
        weights = vlm.matrices(settings, random_numbers(settings))
        (one, _), (other, _) = (decode(weights, settings, EXAMPLES[0][0], text)
                                for text in ('<cab', '<bab'))
        self.assertEqual([a == b for a, b in zip(one, other)], [True, False, False, False])

    def test_learning_is_causal_too(self):
        """The loss of a text is that of logits that have seen no later letter."""
        settings = tiny()
        numbers = random_numbers(settings)
        w, weights = matrices(settings, numbers), on_values(settings, numbers)
        for x, text in EXAMPLES:
            loss = vlm.naming_loss(weights, settings, vlm.see(weights, settings, x), text)
            expected = tools.naming(w, settings, [tools.look(w, settings, x)], text)
            self.assertNear([loss.data], [expected], 1e-10)

    def speak(self, text=None, **changes):
        """Speak about an image, greedily or as told -> the text, the probabilities of its letters,
        and those of all letters by the formula"""
        settings = tiny(longest=5, **changes)
        numbers, x = random_numbers(settings), EXAMPLES[0][0]
        w, weights = matrices(settings, numbers), vlm.matrices(settings, numbers)
        cache = vlm.prefill(weights, settings, vlm.see(weights, settings, x))
        indices = map(settings.vocabulary.index, text or '')
        choose = [lambda logits: next(indices)] if text else []
        letters, probs = zip(*vlm.speak(weights, settings, cache, vlm.BOS, *choose))
        tokens = [tools.look(w, settings, x)]
        logits, _ = tools.spell(w, settings, tokens, ['<', *letters[:-1]])
        return ''.join(letters), probs, list(map(tools.softmax, logits))

    def test_speaking(self):
        """Each letter is the most probable one after those before it, and comes with its
        probability."""
        for layers in (1, 2, 3):
            text, probs, expected = self.speak(layers=layers)
            self.assertNear(probs, list(map(max, expected)), 1e-9)
            self.assertEqual([own.index(max(own)) for own in expected],
                             ['<>abc'.index(letter) for letter in text])

    def test_speaking_as_told(self):
        """It ends at the first EOS or when it is longest; less probable letters say so."""
        for told, spoken in [('ab>ab>', 'ab>'), ('>', '>'), ('abcabcabc', 'abcab'),
                             ('abca>', 'abca>'), ('abcab>', 'abcab')]:
            with self.subTest(told):
                text, probs, expected = self.speak(told)
                self.assertEqual(text, spoken)
                self.assertNear(probs, [own['<>abc'.index(letter)]
                                        for own, letter in zip(expected, text)], 1e-9)

    def test_sampler(self):
        """From 0.5, 0.3 and 0.2: only as many of the first as it takes to have top_p."""
        logits = [math.log(p) for p in (0.2, 0.5, 0.3)]
        for top_p, expected in (0.4, {1}), (0.6, {1, 2}), (0.79, {1, 2}), (0.9, {0, 1, 2}):
            drawn = {vlm.sampler(tiny(temperature=1.0, top_p=top_p, seed=seed), [1.0], 'name')(logits)
                     for seed in range(200)}
            self.assertEqual(drawn, expected)

    def test_temperature(self):
        """Letters come as often as e^(logit / temperature) says: near 0, only the likeliest."""
        logits = [math.log(p) for p in (0.2, 0.5, 0.3)]
        for temperature, expected in (1.0, [0.2, 0.5, 0.3]), (1e-9, [0.0, 1.0, 0.0]), (
                0.5, [0.04 / 0.38, 0.25 / 0.38, 0.09 / 0.38]), (1e9, [1 / 3] * 3):
            choose = vlm.sampler(tiny(temperature=temperature), [1.0], 'name')
            drawn = [choose(logits) for _ in range(4000)]
            for index, share in enumerate(expected):
                self.assertAlmostEqual(drawn.count(index) / 4000, share, delta=0.04)

    def test_sampler_is_repeatable(self):
        """The same seed and image draw the same letters; another of either, others."""
        def drawn(seed, x):
            choose = vlm.sampler(tiny(temperature=1.0, seed=seed), x, 'name')
            return [choose([0.0, 0.0, 0.0]) for _ in range(50)]
        self.assertEqual(drawn(1, [0.5]), drawn(1, [0.5]))
        self.assertNotEqual(drawn(1, [0.5]), drawn(2, [0.5]))
        self.assertNotEqual(drawn(1, [0.5]), drawn(1, [0.6]))


class Numbers(Case):
    """One flat list of them"""

    def test_count(self):
        """Of the default models and of one with degree 4, as counted by hand."""
        def count(**given):
            return len(vlm.first_numbers(vlm.complete(given)))
        # Eye: factors, width, pixels; mouth: vision tokens, text, two for 17 letters, layer.
        mouth = 6 * 16 + 2 * 17 * 16 + 6 * 16 * 16
        self.assertEqual(count(), (2 + 3 + 3) * 16 * 64 + 3 * 16 + mouth)
        self.assertEqual(count(size=14), (2 + 3 + 3) * 16 * 196 + 3 * 16 + mouth)
        self.assertEqual(count(patches=2, tokens=[1, 2, 4], layers=2, mlp=3, width=8, heads=1),
                         3 * 8 * 16 + 2 * 8 * 4 + 12 * 8 + 6 * 8 + 2 * 17 * 8 + 2 * 10 * 8 * 8)

    def test_matrices(self):
        """Every number once and in order, and G after them."""
        settings = tiny(tokens=[1, 2, 2, 3], width=2)
        count = len(vlm.first_numbers(settings))
        for numbers in list(range(count)), list(map(Value, range(count))):
            weights = vlm.matrices(settings, numbers)
            self.assertEqual([len(row) for row in weights.pop('gram')], [4] * 4)
            for name, shape in vlm.shapes(settings).items():
                self.assertEqual({(len(weights[name]), len(row)) for row in weights[name]}, {shape})
            self.assertEqual([v for matrix in weights.values() for row in matrix
                              for v in floats(row)], list(range(count)))

    def test_first_numbers(self):
        """They keep variance, but queries begin at a quarter; a layer adds nothing yet and no letter
        is preferred."""
        settings = tiny(size=8, width=16, heads=2, tokens=[2, 3, 4], layers=1)
        numbers = vlm.first_numbers(settings)
        w = matrices(settings, numbers)
        for name, matrix in w.items():
            with self.subTest(name):
                flat = sum(matrix, [])
                deviation = math.sqrt(tools.dot(flat, flat) / len(flat) * len(matrix[0]))
                if name in ('mouth0.output', 'mouth0.down', 'mouth.logits'):
                    self.assertEqual(deviation, 0.0)
                else:
                    part = 0.25 if name == 'mouth0.query' else 1.0
                    self.assertAlmostEqual(deviation / part, 1.0, delta=0.25)
        tokens = [tools.look(w, settings, gauss(64, 1))]
        self.assertNear([tools.naming(w, settings, tokens, '<cab>')], [4 * math.log(5)])


class Gradient(Case):
    """What learn() follows"""

    def compare(self, examples=EXAMPLES, **changes):
        """Loss and every number's derivative against central differences of the formulas; in one
        step, with weight decay, exactly the numbers of the stage change."""
        settings = tiny(**{'batch': len(examples), **changes})
        numbers = random_numbers(settings)

        def loss(numbers):
            w = matrices(settings, numbers)
            return sum(tools.loss(settings.stage, w, settings, x, text)
                       for x, text in examples) / len(examples)
        expected, right = loss(numbers), slopes(loss, numbers, 3e-7)
        error, grad, moved = first_step(settings, numbers, examples)
        self.assertNear([error], [expected], 1e-10)
        self.assertNear(grad, right, 1e-7)
        learns = [i for i, name in enumerate(names(settings))
                  if name.startswith(LEARNS[settings.stage])]
        self.assertEqual(moved, learns)
        return {name for name, slope in zip(names(settings), grad) if slope}

    def test_every_degree(self):
        """Tensor-product attention, two layers; the gradient of no matrix is zero."""
        self.assertEqual(self.compare(tokens=[1, 2, 3, 4]), set(names(tiny(tokens=[1, 2, 3, 4]))))

    def test_dot(self):
        """Dot-product attention with two heads, two layers."""
        self.compare(pieces=1, heads=2)

    def test_four_pieces(self):
        """Tensor-product attention of four pieces in one head; a wider MLP."""
        self.compare(pieces=4, layers=1, mlp=2)

    def test_two_heads(self):
        """Tensor-product attention with two heads, tokens of degree 3 alike but for weights."""
        self.compare(heads=2, layers=1, tokens=[2, 3, 3])

    def test_several_tokens_of_degree_two(self):
        """They are rebuilt from together, and degree 4 asks about all of them."""
        self.compare(layers=1, tokens=[2, 2, 4, 4])

    def test_no_layer(self):
        """Without attention no letter knows the image, but the eye learns to rebuild."""
        moved = self.compare(layers=0)
        self.assertEqual({name for name in moved if name.startswith('eye')}, {'eye0.0', 'eye0.1'})

    def test_without_reconstruction(self):
        """With weight 0 only the letters teach, tokens of degree 2 alone."""
        self.compare(reconstruction=0.0, layers=1, tokens=[2])

    def test_without_degree_two(self):
        """There is nothing to rebuild with: that costs 1, and the letters teach alone."""
        self.compare(tokens=[1, 3], layers=1)
        settings = tiny(tokens=[1])
        weights = on_values(settings, random_numbers(settings))
        tokens = vlm.see(weights, settings, EXAMPLES[0][0])
        self.assertEqual(vlm.rebuilding_loss(weights, settings, tokens, EXAMPLES[0][0]), 1.0)

    def test_known_letters(self):
        """Letters that are known, here some, add nothing to loss and gradient."""
        w = matrices(tiny(), random_numbers(tiny()))
        every, some, none = [
            sum(tools.naming(w, tiny(known=known), [tools.look(w, tiny(), x)], text)
                for x, text in EXAMPLES) for known in (1.0, 0.3, 0.0)]
        self.assertTrue(every > some > none == 0.0)
        self.compare(known=0.3)
        self.compare(known=0.0, layers=1)

    def test_patches(self):
        """Four patches that share their weights, of every degree, each with its own contrast."""
        self.compare(LARGER, size=4, patches=2, tokens=[1, 2, 3, 4], layers=1)

    def test_patches_of_a_pixel(self):
        """Even these can be squared; only their contrast is nothing."""
        self.compare(patches=2, tokens=[1, 2, 3], layers=1)

    def test_stages(self):
        """The loss of each stage, and what changes in it: the eye, the mouth or both."""
        for stage in LEARNS:
            with self.subTest(stage):
                self.compare(stage=stage, tokens=[1, 2, 3], layers=1)

    def test_several_portions(self):
        """A minibatch is cut into portions, the last a smaller one, and their gradients add up."""
        examples = [(gauss(4, seed), text) for seed, text in enumerate(
            ['<cab>', '<b>', '<aa>', '<cab>', '<c>'])]
        with mock.patch.object(vlm, 'PORTIONS', 3), \
                mock.patch.object(vlm, 'gradient', wraps=vlm.gradient) as gradient:
            self.compare(examples, tokens=[2, 3], layers=1)
        self.assertEqual([len(call.args[-1]) for call in gradient.call_args_list], [2, 2, 1])
        self.assertGreater(vlm.PORTIONS, 1)  # so it happens

    def test_black_image(self):
        """Nothing to see is nothing to divide by: a black image, and a black patch, are as good as
        any other."""
        black = vlm.prepare(tiny(), bytes(784))
        self.assertEqual(black, [0.0] * 4)
        self.compare([(black, '<cab>'), EXAMPLES[1]])
        self.compare([(black, '<cab>')], stage='eye')
        self.compare([(black + LARGER[0][0][4:], '<b>')], size=4, patches=2, layers=1)

    def test_numbers_stay(self):
        """Whoever only asks for the gradient finds the numbers as they were, and the tape empty."""
        numbers = random_numbers(tiny())
        before = list(numbers)
        one, other = (vlm.gradient(tiny(), vlm.joint_loss, numbers, EXAMPLES) for _ in range(2))
        self.assertEqual((one, numbers, Value.tape), (other, before, []))


class Image(Case):
    """Derivatives by the pixels of an image"""

    def check(self, function, formula, settings, x, on_floats=True, step=1e-6):
        """function(weights, x) on a Vector x against the slopes of formula(w, x)"""
        numbers = random_numbers(settings)
        w = matrices(settings, numbers)
        right = slopes(lambda x: formula(w, x), x, step)
        kinds = [vlm.matrices(settings, numbers)] * on_floats + [on_values(settings, numbers)]
        for weights in kinds:
            pixels = vlm.collect(list(map(Value, x)))
            out = function(weights, pixels)
            self.assertNear([out.data], [formula(w, x)], 1e-10)
            out.backward()
            self.assertNear([pixel.grad for pixel in pixels], right, 1e-7)

    def test_tokens(self):
        """Each latent by each pixel, of every degree, in one patch and in four."""
        for patches in (1, 2):
            settings = tiny(size=4, patches=patches, tokens=[1, 2, 3, 4])
            for index in range(0, patches ** 2 * 16, 3):
                self.check(
                    lambda weights, x: sum(sum(vlm.see(weights, settings, x), []), [])[index],
                    lambda w, x: sum(sum([tools.look(w, settings, patch) for patch in rows(
                        x, 16 // patches ** 2)], []), [])[index], settings, LARGER[0][0])

    def test_rebuilding(self):
        """What is not rebuilt, by each pixel."""
        for patches in (1, 2):
            settings = tiny(size=4, patches=patches, tokens=[2, 2, 3])
            self.check(
                lambda weights, x: vlm.rebuilding_loss(
                    weights, settings, vlm.see(weights, settings, x), x),
                lambda w, x: tools.rebuilding(w, settings, rows(x, 16 // patches ** 2)),
                settings, LARGER[0][0])

    def test_naming(self):
        """The loss of the letters by each pixel: which of them speak for a name."""
        for changes in {}, {'pieces': 1, 'heads': 2, 'patches': 2}, {'tokens': [1], 'layers': 1}:
            settings = tiny(**changes)
            self.check(
                lambda weights, x: vlm.naming_loss(
                    weights, settings, vlm.see(weights, settings, x), '<cab>'),
                lambda w, x: tools.naming(w, settings, [tools.look(w, settings, patch) for patch
                                                        in rows(x, 4 // settings.patches ** 2)],
                                          '<cab>'), settings, EXAMPLES[0][0], on_floats=False)

    def test_joint(self):
        """The whole loss by each pixel."""
        for changes in {}, {'patches': 2, 'tokens': [2, 2]}:
            settings = tiny(**changes)
            self.check(lambda weights, x: vlm.joint_loss(weights, settings, x, '<b>'),
                       lambda w, x: tools.loss('joint', w, settings, x, '<b>'),
                       settings, EXAMPLES[1][0], on_floats=False)

    def test_black(self):
        """The letters' loss has finite derivatives by the pixels of a black image too."""
        settings = tiny(tokens=[1, 2, 3, 4])
        self.check(lambda weights, x: vlm.naming_loss(
                       weights, settings, vlm.see(weights, settings, x), '<cab>'),
                   lambda w, x: tools.naming(w, settings, [tools.look(w, settings, x)], '<cab>'),
                   settings, [0.0] * 4, on_floats=False, step=1e-7)


class Steps(Case):
    """Adam, in learn(), with a loss made up here"""

    def learn(self, derivatives, learns=None, start=(1.0, -2.0), **changes):
        """A loss with these derivatives by the first number, step by step, none by the others
        -> all first numbers after each step"""
        settings = tiny(steps=len(derivatives), batch=1, reconstruction=0.0, **changes)
        numbers = random_numbers(settings)
        numbers[:len(start)] = start
        steps = vlm.learn(settings, numbers, iter([([g], '') for g in derivatives]),
                          lambda weights, settings, x, text: weights['eye0.0'][0][0] * x[0],
                          learns)
        return [numbers[:len(start)] for _ in steps]

    @mock.patch.multiple(vlm, BETA1=0.9, BETA2=0.99)
    def test_adam_by_hand(self):
        """Two steps from 1, of lr 0.1 and 0.05, with derivatives 0.5 and -1; without derivative,
        decay alone."""
        # m = 0.05, v = 0.0025; corrected 0.05/0.1 = 0.5, 0.0025/0.01 = 0.25;
        # 1 - 0.1 * (0.5 / 0.5 + 0.1 * 1) = 0.89;  -2 + 0.1 * 0.1 * 2 = -1.98
        # m = 0.045 - 0.1 = -0.055, v = 0.002475 + 0.01 = 0.012475; corrected -0.055/0.19 =
        # -0.289473684, 0.012475/0.0199 = 0.626884422, root 0.791760332;
        # 0.89 + 0.05 * (0.289473684 / 0.791760332 - 0.1 * 0.89) = 0.903830386
        # -1.98 + 0.05 * 0.1 * 1.98 = -1.9701
        first, second = self.learn([0.5, -1.0], lr=0.1, decay=0.1)
        self.assertNear(first, [0.89, -1.98], 1e-7)
        self.assertNear(second, [0.903830386, -1.9701], 1e-8)

    def test_rate_falls_to_zero(self):
        """A constant derivative, of any size, moves a number by the rate, which falls linearly."""
        for size in 1e-3, 1.0, 1e6:
            numbers = [1.0] + [first for first, _ in self.learn([size] * 4, lr=0.8, decay=0.0)]
            self.assertNear([a - b for a, b in zip(numbers, numbers[1:])], [0.8, 0.6, 0.4, 0.2],
                            2e-5)

    def test_learns(self):
        """Only what may learn changes, by its derivative or by decay alone."""
        start = (1.0, 2.0, 3.0)
        for learns in [0], [1], [0, 2], [1, 2], None:
            [after] = self.learn([1.0], learns, start, lr=0.1, decay=0.1)
            self.assertEqual([a != b for a, b in zip(start, after)],
                             [learns is None or i in learns for i in range(3)])

    def test_minibatches(self):
        """A step takes its minibatch from the examples, no more, and yields its mean loss."""
        settings, taken, counts = tiny(steps=2, batch=3, reconstruction=0.0), [], []
        examples = ([taken.append(i) or float(i)] for i in itertools.count())
        numbers, losses = [2.0] + random_numbers(settings)[1:], []
        for loss in vlm.learn(settings, numbers, ((x, '') for x in examples),
                              lambda weights, settings, x, text: weights['eye0.0'][0][0] * x[0],
                              [1]):
            losses.append(loss)
            counts.append(len(taken))
        self.assertNear(losses, [2.0 * (0 + 1 + 2) / 3, 2.0 * (3 + 4 + 5) / 3])
        self.assertEqual(counts, [3, 6])


class Stages(Case):
    """Parts of the training with losses of their own"""

    def after(self, stage, examples):
        """The numbers after two steps"""
        settings = tiny(stage=stage, steps=2, tokens=[1, 2, 3])
        numbers = random_numbers(settings)
        with mock.patch.object(vlm, 'prepare', lambda settings, x: x):  # it is, already
            for _ in vlm.learn(settings, numbers, itertools.cycle(examples), vlm.stage_loss,
                               vlm.learning_places(settings)):
                pass
        return numbers

    def test_what_is_read(self):
        """The eye learns alone without texts, the mouth without images; else both matter."""
        others = [(x, '<acb>') for x, _ in EXAMPLES]
        blind = [(gauss(4, 9), text) for _, text in EXAMPLES]
        for stage in LEARNS:
            with self.subTest(stage):
                after = self.after(stage, EXAMPLES)
                self.assertEqual(self.after(stage, others) != after, stage != 'eye')
                self.assertEqual(self.after(stage, blind) != after, stage != 'mouth')


class Learning(Case):
    """Real digits, from data/"""

    @classmethod
    def setUpClass(cls):
        cls.train, cls.test = (vlm.read_digits(ROOT / 'data', f'optdigits-{kind}', 8)
                               for kind in ('train', 'test'))

    def learned(self, examples=None, jobs=1, **changes):
        """First numbers, trained -> settings, numbers, losses"""
        settings = vlm.complete(dict(width=8, mlp=2, reconstruction=0.1, known=1.0, **changes))
        numbers = vlm.first_numbers(settings)
        examples = examples or ((vlm.prepare(settings, pixels), text) for pixels, text in
                                vlm.examples(settings, self.train))
        with vlm.processes(jobs) as map:
            losses = list(vlm.learn(settings, numbers, examples, vlm.joint_loss, None,
                                    portions(map)))
        return settings, numbers, losses

    def share_right(self, settings, numbers, digits):
        """How many of the names are spoken right"""
        weights, right = vlm.matrices(settings, numbers), 0
        for pixels, digit in digits:
            tokens = vlm.see(weights, settings, vlm.prepare(settings, pixels))
            spoken = vlm.speak(weights, settings, vlm.prefill(weights, settings, tokens))
            right += ''.join(letter for letter, _ in spoken) == vlm.ANSWERS['name'][digit] + '>'
        return right / len(digits)

    def test_determinism(self):
        """The same seed learns the same with any number of processes; another, something else."""
        def run(**changes):
            with mock.patch.object(vlm, 'PORTIONS', 3):
                return self.learned(steps=3, batch=8, **changes)[1:]
        first = run(seed=1)
        self.assertEqual(run(seed=1), first)
        self.assertEqual(run(seed=1, jobs=2), first)
        self.assertEqual(run(seed=1, jobs=4), first)
        self.assertNotEqual(run(seed=2), first)

    def test_overfitting(self):
        """Ten images, one of each digit, are learned by heart."""
        ten, settings = self.train[:10], vlm.complete({})
        examples = [(vlm.prepare(settings, pixels), f"<{vlm.ANSWERS['name'][digit]}>")
                    for pixels, digit in ten]
        self.assertEqual(sorted(digit for _, digit in ten), list(range(10)))
        *learned, losses = self.learned(itertools.cycle(examples), 2, steps=60, batch=10,
                                         lr=0.03)
        self.assertEqual(self.share_right(*learned, ten), 1.0)
        self.assertLess(losses[-1], losses[0] / 10)

    def test_training(self):
        """A short run names most images that it has never seen (seeds 1 to 6: 59 to 81 %)."""
        *learned, _ = self.learned(jobs=2, steps=300, batch=4, lr=0.03)
        self.assertGreater(self.share_right(*learned, self.test), 0.5)


class File(unittest.TestCase):
    """vlm.py itself"""

    @unittest.skipUnless(hasattr(sys, 'stdlib_module_names'), 'needs Python 3.10')
    def test_imports(self):
        """Only from the standard library."""
        imported = set()
        for node in ast.walk(ast.parse((ROOT / 'vlm.py').read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                imported.add('.' * node.level + (node.module or ''))
        self.assertIn('math', imported)
        self.assertEqual({name for name in imported
                          if name.split('.')[0] not in sys.stdlib_module_names}, set())

    def test_import_is_silent(self):
        """To import it prints nothing and starts nothing."""
        code = ('import vlm, threading, multiprocessing as m, sys; '
                'sys.exit(threading.active_count() - 1 + len(m.active_children()))')
        done = subprocess.run([sys.executable, '-B', '-c', code], cwd=ROOT, capture_output=True)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b'', b''))


if __name__ == '__main__':
    unittest.main()
