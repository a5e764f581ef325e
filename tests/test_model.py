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
from tests.tools import (Case, flatten, forward, gauss, image_losses, matrices, norm,
                         random_weights, slopes, tiny)

ROOT = Path(vlm.__file__).resolve().parent
JOINT = vlm.STAGES['joint']
EXAMPLES = [(gauss(4, 1), 2), (gauss(4, 2), 7)]  # images of 2x2 pixels: two, seven


def decode(w, s, pixels, letters):
    """Logits after each letter, decoded one by one with vlm.py's cache"""
    cache, *_ = vlm.look(w, s, pixels)
    return [list(vlm.next_logits(w, s, letters[:i + 1], cache)) for i in range(len(letters))]


def record(weights, settings, examples):
    """learn() without changing the weights -> losses of the steps, last gradient, rates"""
    grads, rates = [], []

    def adam(data, grad, m, v, step, lr, decay):
        grads.append(list(grad))
        rates.append(lr)
        return data, m, v
    with mock.patch.object(vlm, 'adam', adam):
        losses = list(vlm.learn(weights, settings, itertools.cycle(examples)))
    return losses, grads[-1], rates


class Eye(Case):
    """What happens to the pixels"""

    def test_downscale_by_hand(self):
        """3x3 to 2x2: each bin owns a pixel, two halves and a quarter, together 2.25"""
        pixels = bytes([1, 2, 3,
                        4, 5, 6,
                        7, 8, 9])
        # (1 + 2/2 + 4/2 + 5/4) / 2.25 = 7/3;  (3 + 2/2 + 6/2 + 5/4) / 2.25 = 11/3;  and so on
        self.assertNear(vlm.downscale(pixels, 2), [7 / 3, 11 / 3, 19 / 3, 23 / 3])

    def test_downscale_mean(self):
        """The middle 22x22 of 28x28 keeps its mean; to 8x8, an 8x8 image stays what it is"""
        pixels = bytes((31 * i * i + 7 * i) % 256 for i in range(784))
        middle = [pixels[28 * row + column] for row in range(3, 25) for column in range(3, 25)]
        for size in (8, 14):
            small = vlm.downscale(pixels, size)
            self.assertNear([sum(small) / size ** 2], [sum(middle) / 484])
        self.assertNear(vlm.downscale(pixels[:64], 8), list(pixels[:64]))

    def test_no_two_tokens_alike(self):
        """Nor is one a multiple of another"""
        settings = tiny(size=8, width=8, degree2=2, degree3=2, degree4=2)
        weights = vlm.numbers(vlm.first_weights(settings))
        tokens, *_ = vlm.see(weights, settings, gauss(64, 4))
        self.assertEqual([len(token) for token in tokens], [8] * 6)
        for a, b in itertools.combinations([vlm.rmsnorm(token) for token in tokens], 2):
            self.assertLess(abs(vlm.dot(a, b)) / 8, 0.99)


class Mouth(Case):
    """Tokens in, logits out"""

    def test_cached_decoding(self):
        """Letter by letter, on floats and on Values: the logits of a full masked forward pass"""
        for kind, heads in itertools.product(('tensor', 'dot'), (1, 2)):
            with self.subTest(kind, heads=heads):
                settings = tiny(width=8, heads=heads, attention=kind, degree2=2, layers=3)
                weights, x = random_weights(settings), gauss(4, 6)
                floats = vlm.numbers(weights)
                expected = forward(floats, settings, norm(x), '<seven')
                decoded = decode(floats, settings, x, '<seven')
                values = decode(weights, settings, x, '<seven')
                for right, on_floats, on_values in zip(expected, decoded, values):
                    self.assertNear(on_floats, right, 1e-10)
                    self.assertNear([v.data for v in on_values], on_floats)

    def test_causality(self):
        """Another letter changes its own logits and later ones, never an earlier one"""
        settings = tiny()
        weights = vlm.numbers(random_weights(settings))
        one, other = (decode(weights, settings, EXAMPLES[0][0], text)
                      for text in ('<seven', '<sexen'))
        self.assertEqual([a == b for a, b in zip(one, other)], [True] * 3 + [False] * 3)

    def test_learning_is_causal_too(self):
        """The losses of an image are those of logits that have seen no later letter"""
        settings = tiny()
        weights = random_weights(settings)
        floats = vlm.numbers(weights)
        gram = tools.gram(floats['eye.degree2.0'], floats['eye.degree2.1'])
        for x, label in EXAMPLES:
            *losses, _ = vlm.add_gradient(weights, settings, JOINT, gram, x, label)
            self.assertNear(losses, image_losses(floats, settings, x, label), 1e-10)

    def test_probability(self):
        """Of the whole name: the product of those of its letters; the most probable when greedy"""
        settings = tiny()
        weights, pixels = random_weights(settings), EXAMPLES[0][0]
        text, probability, _ = vlm.speak(weights, settings, [[0.0] * 4] * 4, pixels)
        spoken = (text + '>')[:vlm.LONGEST]
        logits = decode(vlm.numbers(weights), settings, pixels, '<' + text)
        probs = [tools.softmax(z) for z in logits]
        self.assertNear([probability], [math.prod(map(max, probs[:len(spoken)]))])
        cold = tiny(temperature=0.001)
        self.assertEqual(vlm.speak(weights, cold, [[0.0] * 4] * 4, pixels)[0], text)
        hot = tiny(temperature=1000.0)
        self.assertNotEqual(vlm.speak(weights, hot, [[0.0] * 4] * 4, pixels)[0], text)

    def test_choose(self):
        """From 0.5, 0.3 and 0.2: only as many of the first as it takes to have top_p"""
        logits = [math.log(p) for p in (0.2, 0.5, 0.3)]
        self.assertEqual(vlm.choose(logits, tiny(), 1), 1)
        for top_p, expected in (0.4, {1}), (0.5, {1}), (0.6, {1, 2}), (0.9, {0, 1, 2}):
            settings = tiny(temperature=1.0, top_p=top_p)
            drawn = {vlm.choose(logits, settings, seed) for seed in range(200)}
            self.assertEqual(drawn, expected)

    def test_speaking_ends(self):
        """A mouth that never says EOS stops; the error is that of the materialised products"""
        settings = tiny()
        weights, (pixels, label) = vlm.first_weights(settings), EXAMPLES[0]
        floats = vlm.numbers(weights)
        gram = tools.gram(floats['eye.degree2.0'], floats['eye.degree2.1'])
        text, _, error = vlm.speak(weights, settings, gram, pixels)
        self.assertEqual(len(text), vlm.LONGEST)
        _, expected = image_losses(floats, settings, pixels, label)
        nothing = sum(v * v for v in norm(pixels)) / 4  # almost 1
        self.assertNear([error], [expected / nothing ** 2], 1e-10)


class Gradient(Case):
    """What learn() hands to Adam"""

    def compare(self, examples=EXAMPLES, **changes):
        """Every weight's derivative of the minibatch's loss against central differences"""
        settings = tiny(**changes)
        weights, shapes = random_weights(settings), vlm.matrix_shapes(settings)

        def loss(flat):
            w = matrices(shapes, flat)
            pairs = [image_losses(w, settings, x, label) for x, label in examples]
            return sum(letters + settings.reconstruction * error for letters, error in pairs) / 2
        flat = [v.data for v in flatten(weights)]
        _, grads, _ = record(weights, settings, examples)
        self.assertNear(grads, slopes(loss, flat, 3e-7), 1e-7)

    def test_tensor(self):
        """Tensor-product attention, every degree, two layers"""
        self.compare()

    def test_dot(self):
        """Dot-product attention with two heads, every degree, two layers"""
        self.compare(attention='dot', heads=2)

    def test_without_reconstruction(self):
        """With weight 0 only the letters teach; tokens of degree 2 alone"""
        self.compare(reconstruction=0.0, layers=1, degree3=0, degree4=0)

    def test_hard_letters(self):
        """Letters that lose less than `hard`, here some, add nothing to the gradient"""
        weights = vlm.numbers(random_weights(tiny()))
        every, some, none = [image_losses(weights, tiny(hard=hard), *EXAMPLES[1])[0]
                             for hard in (0.0, 2.6, 9.0)]
        self.assertTrue(every > some > none == 0)
        self.compare(hard=2.6)

    def test_patches(self):
        """Four patches that share their weights, seen with degree 1, 2 and 4"""
        examples = [(gauss(16, 1), 2), (gauss(16, 2), 7)]
        self.compare(examples, size=4, patches=2, degree1=1, degree3=0, layers=1)

    def test_without_degree_two(self):
        """Nothing to reconstruct with, so the letters teach alone"""
        self.compare(degree2=0, degree4=0, layers=1)

    def test_black_image(self):
        """Nothing to see is nothing to divide by: losses and derivatives stay finite"""
        settings = tiny(size=8)
        losses, grads, _ = record(random_weights(settings), settings, [(bytes(784), 0)])
        self.assertTrue(all(map(math.isfinite, [*losses[0], *grads])))
        self.assertTrue(any(grads))

    def test_rate_falls_to_zero(self):
        """Linearly, from the first step's"""
        _, _, rates = record(random_weights(tiny()), tiny(steps=4, lr=0.8), EXAMPLES)
        self.assertNear(rates, [0.8, 0.6, 0.4, 0.2])

    @mock.patch.multiple(vlm, BETA1=0.9, BETA2=0.99, ADAM_EPSILON=0.5)
    def test_adam_by_hand(self):
        """Two steps of lr 0.1 from weight 1, gradients 0.5 and -1; without gradient, decay alone"""
        # m = 0.05, v = 0.0025; corrected 0.05/0.1 = 0.5, 0.0025/0.01 = 0.25;
        # 1 - 0.1 * (0.5 / (sqrt(0.25) + 0.5) + 0.1 * 1) = 0.94;  2 - 0.1 * 0.1 * 2 = 1.98
        data, m, v = vlm.adam([1.0, 2.0], [0.5, 0.0], [0.0, 0.0], [0.0, 0.0], 1, 0.1, 0.1)
        self.assertNear(data, [0.94, 1.98])
        # m = 0.045 - 0.1 = -0.055, v = 0.002475 + 0.01 = 0.012475; corrected -0.055/0.19 =
        # -0.289473684, 0.012475/0.0199 = 0.626884422, root 0.791760332;
        # 0.94 + 0.1 * (0.289473684 / 1.291760332 - 0.1 * 0.94) = 0.953009241
        data, m, v = vlm.adam(data, [-1.0, 0.0], m, v, 2, 0.1, 0.1)
        self.assertNear(data, [0.953009241, 1.9602], 1e-9)


class Stages(Case):
    """Parts of the training with losses of their own"""

    def after(self, stages, examples):
        """The weights after two steps of each stage"""
        settings = tiny(stages=stages, steps=2, degree1=1)
        weights = random_weights(settings)
        for _ in vlm.learn(weights, settings, itertools.cycle(examples)):
            pass
        return vlm.numbers(weights)

    def test_what_learns(self):
        """The eye, the mouth or both, and nothing else"""
        first = vlm.numbers(random_weights(tiny(degree1=1)))
        for stage, moved in dict(joint={True, False}, eye={True}, mouth={False}, **{
                'frozen-eye': {False}, 'frozen-mouth': {True}}).items():
            with self.subTest(stage):
                after = self.after(stage, EXAMPLES)
                self.assertEqual({name.startswith('eye') for name in first
                                  if after[name] != first[name]}, moved)

    def test_what_is_read(self):
        """The eye learns alone without labels, the mouth without images; jointly, both matter"""
        others = [(pixels, label + 1) for pixels, label in EXAMPLES]
        blind = [(gauss(4, 9), label) for _, label in EXAMPLES]
        for stage, labels, images in ('eye', False, True), ('mouth', True, False), ('joint', 1, 1):
            with self.subTest(stage):
                after = self.after(stage, EXAMPLES)
                self.assertEqual(self.after(stage, others) != after, bool(labels))
                self.assertEqual(self.after(stage, blind) != after, bool(images))

    def test_plan(self):
        """Stage after stage, each with steps of its own or those of --steps"""
        settings = tiny(stages='mouth:3,eye,joint:0', steps=2)
        self.assertEqual(vlm.plan(settings), [
            (vlm.STAGES['mouth'], 3), (vlm.STAGES['eye'], 2), (JOINT, 0)])
        one, other = self.after('mouth', EXAMPLES), self.after('mouth:2,joint:0', EXAMPLES)
        self.assertEqual(one, other)
        self.assertNotEqual(one, self.after('mouth,joint', EXAMPLES))


class Learning(Case):
    """Real digits, from data/"""

    @classmethod
    def setUpClass(cls):
        cls.train, cls.test = (vlm.read_digits(ROOT / 'data', f'optdigits-{kind}', 8)
                               for kind in ('train', 'test'))

    def learned(self, examples=None, jobs=1, **changes):
        """First weights, trained -> weights, settings"""
        settings = tiny(size=8, width=8, mlp=2, layers=1, degree4=0, reconstruction=0.1, **changes)
        weights = vlm.first_weights(settings)
        examples = examples or vlm.shuffled(self.train, settings.seed)
        with vlm.Team(weights, settings, jobs) as team:
            for _ in vlm.learn(weights, settings, examples, team):
                pass
        return weights, settings

    def share_right(self, weights, settings, examples):
        """How many of the names are spoken right"""
        floats = vlm.numbers(weights)
        gram = tools.gram(floats['eye.degree2.0'], floats['eye.degree2.1'])
        right = [vlm.speak(weights, settings, gram, pixels)[0] == vlm.NAMES[label]
                 for pixels, label in examples]
        return sum(right) / len(right)

    def test_determinism(self):
        """The same seed learns the same weights with any number of processes; another, others"""
        def run(**changes):
            return vlm.numbers(self.learned(steps=3, batch=5, **changes)[0])
        first = run(seed=1)
        self.assertEqual(run(seed=1), first)
        self.assertEqual(run(seed=1, jobs=3), first)
        self.assertNotEqual(run(seed=2), first)

    def test_overfitting(self):
        """Ten images, one of each digit, are learned by heart"""
        ten = self.train[:10]
        learned = self.learned(itertools.cycle(ten), steps=120, batch=10, lr=0.02)
        self.assertEqual(self.share_right(*learned, ten), 1.0)

    def test_training(self):
        """A short run names most images that it has never seen (seeds 1 to 6: 61 to 85 %)"""
        learned = self.learned(steps=500, batch=4, lr=0.03)
        self.assertGreater(self.share_right(*learned, self.test), 0.5)


class File(unittest.TestCase):
    """vlm.py itself"""

    @unittest.skipUnless(hasattr(sys, 'stdlib_module_names'), 'needs Python 3.10')
    def test_imports(self):
        """Only from the standard library"""
        names = set()
        for node in ast.walk(ast.parse((ROOT / 'vlm.py').read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names.add('.' * node.level + (node.module or ''))
        self.assertIn('math', names)
        self.assertEqual({name for name in names
                          if name.split('.')[0] not in sys.stdlib_module_names}, set())

    def test_import_is_silent(self):
        """To import it prints nothing and starts nothing"""
        code = ('import vlm, threading, multiprocessing as m, sys; '
                'sys.exit(threading.active_count() - 1 + len(m.active_children()))')
        done = subprocess.run([sys.executable, '-B', '-c', code], cwd=ROOT, capture_output=True)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b'', b''))


if __name__ == '__main__':
    unittest.main()
