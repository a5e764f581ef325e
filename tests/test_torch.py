"""Loss and every gradient against the same model in PyTorch, in float64."""
import itertools
import unittest

import vlm
from tests.test_model import first_step
from tests.benchmark import TOLERANCE, choose, prepared, random_numbers, vlm_gradient
from tests.tools import names

try:
    import torch
except ImportError:
    torch = None
else:
    from tests import torch_model
    from tests.test_model import first_step
from tests.benchmark import tensors, torch_gradient

DIGITS = vlm.read_digits(vlm.Path(vlm.__file__).resolve().parent / 'data', 'optdigits-train', 8)
TINY = dict(width=4, heads=1, layers=2, mlp=2, tokens=[2, 3, 3, 4], batch=3)


@unittest.skipUnless(torch, 'PyTorch is not installed')
class Torch(unittest.TestCase):
    """vlm.py and PyTorch have the same loss and the same gradient."""

    def check(self, **changes):
        """One batch of both engines, with names of different lengths in it"""
        settings = choose(**{**changes, 'steps': 1})
        numbers = random_numbers(settings)
        with self.subTest(**changes):
            batch = prepared(settings, DIGITS[:settings.batch])
            expected_loss, expected = torch_gradient(settings, numbers, batch)
            loss, grad, _ = first_step(settings, list(numbers), batch)
            self.assertAlmostEqual(loss, expected_loss, delta=TOLERANCE)
            self.assertEqual(len(grad), len(expected))
            moved = set()
            for name, g, e in zip(names(settings), grad, expected):
                self.assertLessEqual(abs(g - e), TOLERANCE, name)
                moved |= {name} if e else set()
            self.assertEqual(moved, set(names(settings)), 'the gradient of a matrix is zero')

    def test_tiny(self):
        """Two layers, degrees 2 to 4; both attentions, with and without reconstruction."""
        for pieces, reconstruction in itertools.product((1, 2), (0.7, 0.0)):
            self.check(**TINY, pieces=pieces, reconstruction=reconstruction)

    def test_known(self):
        """Letters that are known, of these random weights' some, teach nothing."""
        settings = choose(**TINY)
        batch = prepared(settings, DIGITS[:3])
        losses = [vlm_gradient(choose(**TINY, known=known), random_numbers(settings), batch)[0]
                  for known in (0.0, 0.1, 1.0)]
        self.assertEqual(sorted(set(losses)), losses)  # so some are, at 0.1
        self.check(**TINY, known=0.1)

    def test_heads_and_pieces(self):
        """Two heads of one or two pieces, one of four; one image."""
        for heads, pieces in (2, 1), (2, 2), (1, 4):
            self.check(**{**TINY, 'heads': heads, 'pieces': pieces, 'batch': 1})

    def test_degrees(self):
        """Eyes that lack a degree, have one twice, or have only one."""
        for tokens in [1], [2], [3], [1, 2, 3], [2, 2, 4], [1, 1, 3]:
            self.check(**{**TINY, 'tokens': tokens})

    def test_patches(self):
        """The patches share their weights; each has its own contrast."""
        for patches, tokens in (2, [1, 2, 3, 4]), (4, [2, 2]):
            self.check(**{**TINY, 'patches': patches, 'tokens': tokens})

    def test_defaults(self):
        """The default models of both sizes, with both attentions; a batch of several portions."""
        for size, pieces in itertools.product((8, 14), (1, 2)):
            self.check(size=size, pieces=pieces, batch=18)

    def test_speaks(self):
        """After learning, PyTorch's greedy decoding has as many names right as vlm.py speaks."""
        settings = choose(batch=16, lr=0.03, steps=30)
        numbers = vlm.first_numbers(settings)
        for _ in vlm.learn(settings, numbers, iter(prepared(settings, DIGITS[:480]))):
            pass
        rest = prepared(settings, DIGITS[-100:])
        weights, right = vlm.matrices(settings, numbers), 0
        for x, text in rest:
            cache = vlm.prefill(weights, settings, vlm.see(weights, settings, x))
            spoken = vlm.speak(weights, settings, cache)
            right += ''.join(letter for letter, _ in spoken) == text[1:]
        self.assertGreater(right, 20)  # of 100: it has learned
        accuracy = torch_model.accuracy(
            torch_model.parameters(settings, numbers, torch.float64), settings,
            *tensors(settings, rest, torch.float64))
        self.assertAlmostEqual(accuracy, right / len(rest))


if __name__ == '__main__':
    unittest.main()
