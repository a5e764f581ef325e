"""Loss and every gradient against the same model in PyTorch, in float64."""
import unittest

import vlm
from tests.benchmark import TOLERANCE, choose, random_weights, vlm_gradient

try:
    import torch
except ImportError:
    torch = None
else:
    from tests import torch_model
    from tests.benchmark import torch_gradient

DIGITS = vlm.read_digits(vlm.Path(vlm.__file__).resolve().parent / 'data', 'optdigits-train', 8)
TINY = dict(width=4, heads=1, layers=2, mlp=2, degree2=1, degree3=2, degree4=1, batch=3)


@unittest.skipUnless(torch, 'PyTorch is not installed')
class Torch(unittest.TestCase):
    """vlm.learn() and PyTorch have the same loss and the same gradient."""

    def check(self, *size, **changes):
        """One batch of both engines, with names of different lengths in it"""
        settings = choose(*size, **changes)
        weights, batch = random_weights(settings), DIGITS[:settings.batch]
        with self.subTest(**vars(settings)):
            expected_loss, expected = torch_gradient(weights, settings, batch)
            loss, grad = vlm_gradient(weights, settings, batch)
            self.assertAlmostEqual(loss, expected_loss, delta=TOLERANCE)
            self.assertEqual(len(grad), len(expected))
            names = [name for name, matrix in weights.items() for row in matrix for _ in row]
            moved = set()
            for name, g, e in zip(names, grad, expected):
                self.assertLessEqual(abs(g - e), TOLERANCE, name)
                moved |= {name} if e else set()
            self.assertEqual(moved, set(names), 'the gradient of a whole matrix is zero')

    def test_tiny(self):
        """Two layers, all degrees; both attentions, with and without reconstruction"""
        for attention in 'tensor', 'dot':
            for reconstruction in 0.7, 0.0:
                self.check(attention=attention, reconstruction=reconstruction, **TINY)

    def test_heads_and_degrees(self):
        """Two heads, one image; and eyes that lack a degree"""
        self.check(**{**TINY, 'heads': 2, 'batch': 1})
        self.check(**{**TINY, 'degree4': 0})
        self.check(**{**TINY, 'patches': 2, 'degree1': 1})
        self.check(**{**TINY, 'degree3': 0, 'degree2': 2})
        self.check(**{**TINY, 'degree2': 0, 'degree4': 0, 'reconstruction': 0.0})

    def test_defaults(self):
        """The default models of both sizes"""
        for size in 8, 14:
            for attention in 'tensor', 'dot':
                self.check(size, attention=attention)

    def test_speaks(self):
        """The study's accuracy in PyTorch: as many names right as vlm.py speaks, after learning"""
        settings = choose(batch=16, lr=0.014, steps=40)
        weights = vlm.first_weights(settings)
        for _ in vlm.learn(weights, settings, iter(DIGITS)):
            pass
        rest = DIGITS[-100:]
        data = vlm.numbers(weights)
        gram = vlm.hadamard(*[vlm.pairs(data[f'eye.degree2.{i}']) for i in range(2)])
        right = sum(vlm.speak(weights, settings, gram, pixels)[0] == vlm.NAMES[label]
                    for pixels, label in rest)
        self.assertGreater(right, 20)  # of 100: it has learned
        accuracy = torch_model.accuracy(
            torch_model.parameters(weights, torch.float32), settings,
            torch_model.downscale([pixels for pixels, _ in rest], 8),
            torch.tensor([label for _, label in rest]))
        self.assertAlmostEqual(accuracy, right / len(rest))

    def test_downscale(self):
        """Bins that own parts of pixels: 28 less a border of 3, to 14"""
        pixels = bytes(range(256)) * 3 + bytes(16)
        expected = vlm.rmsnorm(vlm.downscale(pixels, 14))
        for a, b in zip(torch_model.downscale([pixels], 14)[0].tolist(), expected):
            self.assertAlmostEqual(a, b, delta=1e-5)


if __name__ == '__main__':
    unittest.main()
