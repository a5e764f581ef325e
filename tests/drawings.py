"""python tests/drawings.py: does another model read what a model draws?

The models are those of data/weights-8.json and data/weights-14.json, which differ in size, tokens
and seed. Each draws the ten names; its drawings, enlarged to 280x280, go through the same centring
as a drawing on the page, and the other one reads them. Then the same with other factors of the
rebuilding loss while drawing: with 0, only the letters count.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import vlm
from tests.test_pictures import enlarged, loaded
from tests.tools import asked

def main():
    """Print, for each factor and model, what it reads in its own drawings and the other in them."""
    for vlm.LIKENESS in 0.0, 0.5, 2.0, 8.0:
        for size, other in (8, 14), (14, 8):
            (settings, numbers), (its_settings, its_numbers) = loaded(size), loaded(other)
            weights = vlm.matrices(settings, numbers)
            its_weights = vlm.matrices(its_settings, its_numbers)
            own, read = [], []
            for name in vlm.ANSWERS['name']:
                x = vlm.draw(settings, numbers, f'<{name}>')[-1]
                own.append(asked(weights, settings, x)['name'] == name)
                ink = enlarged(vlm.grid(settings, x, max(x)), 280 // size)
                x = vlm.prepare(its_settings, vlm.centre(ink))
                read.append(asked(its_weights, its_settings, x)['name'])
            right = sum(map(str.__eq__, read, vlm.ANSWERS['name']))
            print(f'factor {vlm.LIKENESS}: drawn at {size}x{size}, reads its own {sum(own)} of 10; '
                  f'the other one reads {right} of 10: {" ".join(read)}', flush=True)

if __name__ == '__main__':
    main()
