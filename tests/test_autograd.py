"""Every operation of Value and every layer against plain arithmetic and finite differences."""
import gc
import math
import platform
import unittest
from operator import mul

import vlm
from tests import tools
from tests.tools import Case, gauss, random_weights, rows, slopes, tiny
from vlm import Value

OPERATIONS = [
    'a + b', 'a + 2', '2 + a', 'a - b', 'a - 2', '2 - a', 'a * b', 'a * 3', '3 * a', 'a / b',
    'a / 4', '4 / a', '-a', 'a ** 3', 'b ** 2', 'a ** -0.5', 'a ** 1', 'exp(a)', 'exp(b)', 'log(a)',
    'relu(a)', 'relu(b)', 'relu(a) * b + relu(b) * a',
    'a + a', 'a - a', 'a * a', 'a / a', '(a + b) * (a + b)', 'exp(a * b) * a - log(a) / b ** 2']
ON_VALUES = {'exp': Value.exp, 'log': Value.log, 'relu': Value.relu}
ON_FLOATS = {'exp': math.exp, 'log': math.log, 'relu': lambda v: max(v, 0.0)}


class Operations(Case):
    """Value and the engine beneath it"""

    def test_operations(self):
        """The number and the derivatives of every operation, with numbers on either side"""
        for text in OPERATIONS:
            with self.subTest(text):
                a, b = Value(0.7), Value(-1.3)
                out = eval(text, {'a': a, 'b': b, **ON_VALUES})

                def formula(x):
                    return eval(text, {'a': x[0], 'b': x[1], **ON_FLOATS})
                self.assertNear([out.data], [formula([0.7, -1.3])])
                out.backward()
                self.assertNear([a.grad, b.grad], slopes(formula, [0.7, -1.3]), 1e-8)

    def test_relu_of_zero(self):
        """At the corner the derivative is 0, as everywhere that nothing passes"""
        a = Value(0.0)
        (a.relu() * 3).backward()
        self.assertEqual(a.grad, 0.0)

    def test_backward_twice_adds(self):
        """Each backward adds to the leaves, whatever the nodes between them hold from the first"""
        a, b = Value(3.0), Value(5.0)
        out = (a * b) * a
        for times in (1, 2, 3):
            out.backward()
            self.assertEqual((a.grad, b.grad), (30.0 * times, 9.0 * times))

    def test_two_roots(self):
        """Two roots that share a node, both built before either backward, keep apart"""
        a, b, other = Value(3.0), Value(5.0), Value(1.0)
        shared = a * b
        first, second, unrelated = shared * 2, shared * shared, other * a
        first.backward()
        self.assertEqual((a.grad, b.grad), (10.0, 6.0))
        second.backward()
        self.assertEqual((a.grad, b.grad), (10.0 + 150.0, 6.0 + 90.0))
        self.assertEqual(other.grad, 0.0)
        unrelated.backward()
        self.assertEqual((a.grad, other.grad), (161.0, 3.0))

    def test_root_that_others_use(self):
        """What was computed from the root afterwards has no part in its derivative"""
        a = Value(3.0)
        root = a * a
        root * root * a
        root.backward()
        self.assertEqual(a.grad, 6.0)

    def test_deep_graph(self):
        """A chain of 100,000 nodes does not overflow the stack"""
        x = y = Value(0.5)
        for _ in range(100_000):
            y = y + x
        y.backward()
        self.assertEqual((y.data, x.grad), (50_000.5, 100_001.0))

    def test_memory_is_given_back(self):
        """After a training step the graph is gone, by reference counts alone where these exist"""
        def live():
            return sum(type(thing) is Value for thing in gc.get_objects())
        settings = tiny(steps=3)
        weights = random_weights(settings)
        counts = []
        gc.collect()
        gc.disable()
        for _ in vlm.learn(weights, settings, iter([(gauss(4, 1), 2)] * 6)):
            self.assertEqual(Value.tape, [])
            if platform.python_implementation() == 'CPython':
                counts.append(live())
        self.assertEqual(counts, counts[:1] * len(counts))
        vlm.gradient(weights, settings, (vlm.STAGES['joint'], [[0.0] * 4] * 4), [(gauss(4, 1), 2)])
        self.assertEqual(Value.tape, [])


class Layers(Case):
    """Each layer on floats and on Values against a formula written in plain Python"""

    def check(self, layer, formula, *lengths, floats=True):
        """Compare numbers with the formula's, and derivatives with the slopes of the formula."""
        ends = [sum(lengths[:i + 1]) for i in range(len(lengths))]

        def run(function, flat):
            out = function(*[vlm.vector(flat[e - n:e]) for e, n in zip(ends, lengths)])
            return out if isinstance(out, list) else [out]

        def total(out):
            return sum((i + 1) * v for i, v in enumerate(out))
        x = gauss(sum(lengths), 3)
        leaves = [Value(v) for v in x]
        out, expected = run(layer, leaves), run(formula, x)
        self.assertNear([v.data for v in out], expected)
        if floats:
            self.assertNear(run(layer, x), expected)
        total(out).backward()
        self.assertNear([v.grad for v in leaves], slopes(lambda x: total(run(formula, x)), x), 1e-7)

    def test_dot(self):
        """Two Vectors, a Vector and a constant, a Vector and itself"""
        def plain(a, b):
            return sum(u * v for u, v in zip(a, b))
        self.check(vlm.dot, plain, 3, 3)
        for b in ([0.3, -2.0, 1.1], None):
            self.check(lambda a: vlm.dot(a, b or a), lambda a: plain(a, b or a), 3)

    def test_linear_add_relu(self):
        """The simple layers"""
        self.check(lambda w, x: vlm.linear(rows(w, 3), x),
                   lambda w, x: tools.product(rows(w, 3), x), 6, 3)
        self.check(vlm.add, tools.plus, 3, 3)
        self.check(vlm.relu, lambda x: [max(v, 0.0) for v in x], 8)

    def test_rmsnorm(self):
        """v / sqrt(mean square + epsilon); zeros stay zeros"""
        self.check(vlm.rmsnorm, tools.norm, 5)
        self.assertEqual(vlm.rmsnorm([0.0, 0.0]), [0.0, 0.0])

    def test_softmax(self):
        """With any temperature, and without overflow"""
        self.check(vlm.softmax, tools.softmax, 4)
        self.check(lambda z: vlm.softmax(z, temperature=2.5), lambda z: tools.softmax(z, 2.5), 4)
        self.assertNear(vlm.softmax([5000.0, 5000.0, -5000.0]), [0.5, 0.5, 0.0])

    def test_cross_entropy(self):
        """-log of the target's probability; finite even where that is nil"""
        for target in range(4):
            self.check(lambda z: vlm.cross_entropy(z, target),
                       lambda z: -math.log(tools.softmax(z)[target]), 4, floats=False)
        hopeless = vlm.vector([Value(5000.0), Value(-5000.0)])
        loss = vlm.cross_entropy(hopeless, 1)
        loss.backward()
        self.assertTrue(100 < loss.data < math.inf)
        self.assertEqual([v.grad for v in hopeless], [1.0, -1.0])

    def test_attention(self):
        """Two heads of four numbers, three positions; for tensor each head is cut in two"""
        for kind, piece in ('dot', 4), ('tensor', 2):
            with self.subTest(kind):
                self.check(
                    lambda q, k, v: vlm.attention(
                        rows(q, piece), [rows(key, piece) for key in rows(k, 8)],
                        [rows(value, 4) for value in rows(v, 8)]),
                    lambda q, k, v: tools.attention(kind, 2, q, rows(k, 8), rows(v, 8)), 8, 24, 24)

    def test_reconstruction_error(self):
        """The kernel trick gives what the materialised products of all pairs of pixels give"""
        x, left, right = gauss(5, 9), rows(gauss(15, 3), 5), rows(gauss(15, 4), 5)
        f = list(map(mul, tools.product(left, x), tools.product(right, x)))
        self.check(lambda f: vlm.reconstruction_error(tools.gram(left, right), f, x),
                   lambda f: vlm.reconstruction_error(tools.gram(left, right), f, x), 3)
        self.assertNear([vlm.reconstruction_error(tools.gram(left, right), f, x)],
                        [tools.materialised(left, right, x)])

    def test_gram(self):
        """Its elements and, over two images, its part of the gradient"""
        left, right, codes = rows(gauss(15, 3), 5), rows(gauss(15, 4), 5), rows(gauss(6, 5), 3)
        products = vlm.pairs(left), vlm.pairs(right)
        self.assertNear(sum(vlm.hadamard(*products), []), sum(tools.gram(left, right), []))

        def total(left):
            gram = tools.gram(rows(left, 5), right)
            return sum(vlm.dot(f, tools.product(gram, f)) for f in codes)
        moments = vlm.pairs(list(map(list, zip(*codes))))
        gradient = vlm.gram_gradient(moments, left, products[1])
        self.assertNear(sum(gradient, []), slopes(total, sum(left, [])), 1e-7)


if __name__ == '__main__':
    unittest.main()
