"""python tests/distorted.py FILE: how many of all 10,000 test images a weights file names rightly, if
they are shifted, slanted and stretched at random, by up to 0, 1.4 and 3 pixels each.

VLM_MNIST=folder says where MNIST is. Half a minute to a minute with PyPy.
"""
import os, random, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import vlm
from tests.test_pictures import loaded

def main(file):
    """Print the share for each distance."""
    weights, settings = loaded(file)
    settings.questions = ['name']
    _, test = vlm.load_digits(os.environ.get('VLM_MNIST'), settings.size)
    for far in 0.0, 1.4, 3.0:
        rng, right = random.Random(1), 0
        for pixels, digit in test:
            moved = vlm.distort(pixels, [rng.uniform(-far, far) for _ in range(6)])
            said, _ = vlm.answer(weights, settings, vlm.prepare(settings, moved))
            right += said['name']['name'] == vlm.ANSWERS['name'][digit]
        print(f'up to {far} pixels: {100 * right / len(test):.1f} %', flush=True)

if __name__ == '__main__':
    main(*sys.argv[1:])
