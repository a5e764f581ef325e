"""python tests/distorted.py FILE: what a weights file says of test images that have been changed.

First: how many of all 10,000 it names rightly, if they are shifted, slanted and stretched at random,
by up to 0, 1.4 and 3 pixels each. Then, as one draws on the page: how many keep the name they had,
on a paper of 280x280: as they are; at half the size, off the middle; with lines a pixel of 28 thicker.

VLM_MNIST=folder says where MNIST is. Four to five minutes with PyPy.
"""
import os, random, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import vlm
from tests.test_pictures import half_paper, loaded, name_of_drawing, thicker, whole_paper
from tests.tools import asked

def main(file):
    """Print the share for each distance, and for each way to put a digit on paper."""
    weights, settings = loaded(file)
    settings.questions = ['name']
    _, test = vlm.load_digits(os.environ.get('VLM_MNIST'), settings.size)
    def name(pixels):
        return asked(weights, settings, vlm.prepare(settings, pixels))['name']
    def report(what, named):
        print(f'{what}: {100 * sum(named) / len(test):.1f} %', flush=True)
    for far in 0.0, 1.4, 3.0:
        rng = random.Random(1)
        report(f'up to {far} pixels', [
            name(vlm.distort(pixels, [rng.uniform(-far, far) for _ in range(6)]))
            == vlm.ANSWERS['name'][digit] for pixels, digit in test])
    names = [name(pixels) for pixels, _ in test]
    for what, change in ('on paper', whole_paper), ('at half the size', half_paper), (
            'thicker', lambda pixels: whole_paper(thicker(pixels))):
        report(what, [name_of_drawing(weights, settings, change(pixels)) == before
                      for (pixels, _), before in zip(test, names)])

if __name__ == '__main__':
    main(*sys.argv[1:])
