"""Every operation of Value and every layer against plain arithmetic and finite differences."""
import doctest
import gc
import math
import platform
import unittest

import vlm
from tests import tools
from tests.tools import Case, gauss, rows, slopes, tiny
from vlm import Value

OPERATIONS = [
    'a + b', 'a + 2', '2 + a', 'a - b', 'a - 2', 'a * b', 'a * 3', '3 * a', 'a / b', 'a / 4',
    'a ** 3', 'b ** 2', 'b ** 3', 'a ** -0.5', 'b ** -1', 'a ** 1', 'a + a', 'a - a', 'a * a',
    'a / a', '(a + b) * (a + b)', '(a * b - a) ** 3 / b + a', 'sum([a, b, a * b])']


def load_tests(loader, tests, pattern):
    """The tests below, and the examples in docstrings of vlm.py"""
    tests.addTests(doctest.DocTestSuite(vlm))
    return tests


def leaves(x):
    """Numbers -> a Vector of leaves"""
    return vlm.collect(list(map(Value, x)))


class Operations(Case):
    """Value and its backward()"""

    def test_operations(self):
        """Every operation, with numbers on either side, has the right result and derivatives."""
        for text in OPERATIONS:
            with self.subTest(text):
                a, b = Value(0.7), Value(-1.3)
                out = eval(text, {'a': a, 'b': b})

                def formula(x):
                    return eval(text, {'a': x[0], 'b': x[1]})
                self.assertNear([out.data], [formula([0.7, -1.3])])
                out.backward()
                self.assertNear([a.grad, b.grad], slopes(formula, [0.7, -1.3]), 1e-8)

    def test_comparison(self):
        """A Value is above a number where its data is."""
        self.assertEqual([Value(v) > 0 for v in (-1.0, 0.0, 1.0)], [False, False, True])

    def test_gradients_add_up(self):
        """Leaves keep what each backward() adds, whatever was computed in between."""
        a, b, other = Value(3.0), Value(5.0), Value(1.0)
        for times in (1, 2, 3):
            ((a * b) * a).backward()
            self.assertEqual((a.grad, b.grad), (30.0 * times, 9.0 * times))
        (other * a).backward()
        self.assertEqual((a.grad, b.grad, other.grad), (91.0, 27.0, 3.0))

    def test_backward_empties_the_tape(self):
        """What was computed before a backward() has no part in the next one."""
        a, b = Value(3.0), Value(5.0)
        shared = a * b
        shared.backward()
        self.assertEqual(Value.tape, [])
        (b * 2).backward()
        self.assertEqual((a.grad, b.grad, Value.tape), (5.0, 3.0 + 2.0, []))

    def test_only_ancestors(self):
        """What was computed beside the root, or later from it, has no part in its derivative."""
        a, b = Value(3.0), Value(5.0)
        shared = a * b
        shared * shared * b
        root = shared * a
        root * root * b
        root.backward()
        self.assertEqual((a.grad, b.grad), (30.0, 9.0))

    def test_leaves_stay_off_the_tape(self):
        """Only what was computed is on the tape, parents before children."""
        a, b = Value(3.0), Value(5.0)
        product = a * b
        total = product + a
        self.assertEqual([v is w for v, w in zip(Value.tape, [product, total])], [True] * 2)
        self.assertEqual(len(Value.tape), 2)

    def test_deep_graph(self):
        """A chain of 100,000 Values does not overflow the stack."""
        x = y = Value(0.5)
        for _ in range(100_000):
            y = y + x
        y.backward()
        self.assertEqual((y.data, x.grad), (50_000.5, 100_001.0))

    def test_memory_is_given_back(self):
        """After a training step only leaves are left, by reference counts alone where these exist."""
        counts, numbers = [], vlm.first_numbers(tiny())
        gc.collect()
        gc.disable()
        for _ in vlm.learn(tiny(steps=3), numbers, iter([(gauss(4, 1), '<cab>')] * 6)):
            self.assertEqual(Value.tape, [])
            if platform.python_implementation() == 'CPython':
                values = [thing for thing in gc.get_objects() if type(thing) is Value]
                counts.append(sum(value.edges != () for value in values))
        self.assertEqual(sum(counts), 0)


class Layers(Case):
    """Each layer on floats and on Values against a formula written in plain Python"""

    def check(self, layer, formula, *lengths, floats=True):
        """Compare numbers with the formula's, and derivatives with the slopes of the formula."""
        ends = [sum(lengths[:i + 1]) for i in range(len(lengths))]

        def run(function, flat):
            out = function(*[vlm.collect(flat[e - n:e]) for e, n in zip(ends, lengths)])
            return out if isinstance(out, list) else [out]

        def total(out):
            return sum((i + 1) * v for i, v in enumerate(out))
        x = gauss(sum(lengths), 3)
        values = list(map(Value, x))
        out, expected = run(layer, values), run(formula, x)
        self.assertNear([v.data for v in out], expected)
        if floats:
            self.assertNear(run(layer, x), expected)
        total(out).backward()
        self.assertNear([v.grad for v in values], slopes(lambda x: total(run(formula, x)), x), 1e-7)

    def test_collect_and_split(self):
        """A Vector's data are the numbers of its Values, also in pieces; floats stay floats."""
        for x in ([], [1.0, 2.0, 3.0, 4.0]):
            self.assertIs(type(vlm.collect(x)), list)
            self.assertEqual(vlm.split(x, 2), rows(x, 2))
        pieces = vlm.split(leaves([1.0, 2.0, 3.0, 4.0]), 2)
        self.assertEqual([piece.data for piece in pieces], [[1.0, 2.0], [3.0, 4.0]])
        self.assertEqual([[v.data for v in piece] for piece in pieces], [[1.0, 2.0], [3.0, 4.0]])

    def test_dot(self):
        """Two Vectors, a Vector and a constant on either side, a Vector and itself."""
        self.check(vlm.dot, tools.dot, 3, 3)
        b = [0.3, -2.0, 1.1]
        for layer, formula in [(lambda a: vlm.dot(a, b), lambda a: tools.dot(a, b)),
                               (lambda a: vlm.dot(b, a), lambda a: tools.dot(b, a)),
                               (lambda a: vlm.dot(a, a), lambda a: tools.dot(a, a))]:
            self.check(layer, formula, 3)

    def test_linear_add_relu(self):
        """The simple layers are what their names say."""
        self.check(lambda w, x: vlm.linear(vlm.split(w, 3), x),
                   lambda w, x: tools.product(rows(w, 3), x), 6, 3)
        self.check(vlm.add, tools.plus, 3, 3)
        self.check(vlm.relu, lambda x: [max(v, 0.0) for v in x], 8)

    def test_relu_of_zero(self):
        """At the corner the derivative is 0, as everywhere that nothing passes."""
        a = leaves([0.0, -1.0, 2.0])
        vlm.dot(vlm.relu(a), [3.0, 3.0, 3.0]).backward()
        self.assertEqual([v.grad for v in a], [0.0, 0.0, 3.0])

    def test_rmsnorm(self):
        """v / sqrt(mean square + 1e-5), whose derivative by zeros is finite."""
        self.check(vlm.rmsnorm, tools.norm, 5)
        zeros = leaves([0.0, 0.0])
        vlm.dot(vlm.rmsnorm(zeros), [1.0, 2.0]).backward()
        self.assertNear([v.grad for v in zeros], [1e-5 ** -0.5, 2 * 1e-5 ** -0.5])
        self.assertEqual(vlm.rmsnorm([0.0, 0.0]), [0.0, 0.0])

    def test_softmax(self):
        """With any scale, and without overflow."""
        self.check(vlm.softmax, tools.softmax, 4)
        self.check(lambda z: vlm.softmax(z, 0.4), lambda z: tools.softmax([0.4 * v for v in z]), 4)
        for scores in [5000.0, 5000.0, -5000.0], leaves([5000.0, 5000.0, -5000.0]):
            probs = vlm.softmax(scores)
            self.assertNear(getattr(probs, 'data', probs), [0.5, 0.5, 0.0])

    def test_cross_entropy(self):
        """-log of the target's probability; finite even where that is nil."""
        for target in range(4):
            self.check(lambda z: vlm.cross_entropy(z, target),
                       lambda z: -math.log(tools.softmax(z)[target]), 4, floats=False)
        hopeless = leaves([5000.0, -5000.0])
        loss = vlm.cross_entropy(hopeless, 1)
        loss.backward()
        self.assertTrue(100 < loss.data < math.inf)
        self.assertEqual([v.grad for v in hopeless], [1.0, -1.0])

    def test_attention(self):
        """Two heads of four numbers, three tokens, each head whole or in two or four pieces."""
        for pieces in (1, 2, 4):
            with self.subTest(pieces=pieces):
                settings = tiny(width=8, heads=2, pieces=pieces)

                def layer(query, keys, values):
                    n = 4 // pieces
                    query, *keys = [vlm.split(vector, n) for vector in [query, *vlm.split(keys, 8)]]
                    shares = vlm.attention(settings, query, keys)
                    return vlm.fetch(shares, vlm.split(values, 8))

                def formula(query, keys, values):
                    return tools.attend(settings, query, rows(keys, 8), rows(values, 8))[0]
                self.check(layer, formula, 8, 24, 24)

    def test_gram(self):
        """Products of the patterns of all tokens of degree 2."""
        settings = tiny(size=2, width=2, tokens=[1, 2, 2], layers=0)
        numbers = tools.random_numbers(settings)

        def formula(numbers):
            w = tools.matrices(settings, numbers)
            left, right = (w[f'eye1.{i}'] + w[f'eye2.{i}'] for i in range(2))
            return [tools.dot(left[i], left[j]) * tools.dot(right[i], right[j])
                    for i in range(4) for j in range(4)]
        self.check(lambda numbers: sum(vlm.matrices(settings, numbers)['gram'], []),
                   formula, len(numbers))

    def test_rebuilding_loss(self):
        """G, of floats or Values, gives what all pairs of pixels, written out, give."""
        settings = tiny(size=4, patches=2, tokens=[2, 2])
        x, numbers = gauss(16, 9), tools.random_numbers(settings)
        expected = tools.rebuilding(tools.matrices(settings, numbers), settings, rows(x, 4))
        for numbers in numbers, list(map(Value, numbers)):
            weights = vlm.matrices(settings, numbers)
            loss = vlm.rebuilding_loss(weights, settings, vlm.see(weights, settings, x), x)
            self.assertNear([getattr(loss, 'data', loss)], [expected])


if __name__ == '__main__':
    unittest.main()
