"""python tests/drawings.py [FOLDER]: does another model read what a model draws?

Without FOLDER, the models are those of data/weights-8.json and data/weights-14.json, which differ in
size, tokens and seed. Each draws the ten names; its drawings, enlarged to 280x280, go through the
same centring as a drawing on the page, and the other one reads them. Then the same with other
factors of the rebuilding loss while drawing: with 0, only the letters count.

With FOLDER, where tests/study.py has left its weights: does it help to draw that a model learned to
rebuild? Models that learned with different weights of the rebuilding loss draw the ten names, five
seeds each; models of other seeds with the default weight read them.
"""
import statistics, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import vlm
from tests.study import REBUILDING, weights_file
from tests.test_pictures import SHIPPED, enlarged, loaded
from tests.tools import asked

NAMES = vlm.ANSWERS['name']

def drawn(weights, settings):
    """-> a model's drawings of the ten names: images x"""
    return [vlm.draw(weights, settings, vlm.BOS + name + vlm.EOS)[-1] for name in NAMES]

def read(weights, settings, images):
    """-> how many of ten images a model gives the right name"""
    return sum(asked(weights, settings, x)['name'] == name for x, name in zip(images, NAMES))

def factors():
    """Print, for each factor and model, what it reads in its own drawings and the other in them."""
    for vlm.LIKENESS in 0.0, 0.5, 2.0, 8.0:
        for size, other in (8, 14), (14, 8):
            model, (its_weights, its_settings) = loaded(SHIPPED[size]), loaded(SHIPPED[other])
            images = drawn(*model)
            rows = [vlm.split(vlm.greys(model[1], x, max(x)), size) for x in images]
            inks = [enlarged(some, 280 // size) for some in rows]
            seen = [vlm.prepare(its_settings, vlm.centre(ink)) for ink in inks]
            print(f'factor {vlm.LIKENESS}: drawn at {size}x{size}, reads its own '
                  f'{read(*model, images)} of 10; the other one reads '
                  f'{read(its_weights, its_settings, seen)} of 10', flush=True)

def weights(folder):
    """Print, for each size and weight of the rebuilding loss, how many drawings others read."""
    for size in '', '--size 14':
        readers = [loaded(weights_file(folder, [size], seed)) for seed in range(1, 6)]
        for weight in *REBUILDING, None:
            options = f'{size} --reconstruction {weight}'.strip() if weight else size
            own, others = [], []
            for seed in range(1, 6):
                model = loaded(weights_file(folder, [options], seed))
                images = drawn(*model)
                own.append(read(*model, images))
                others += [read(*reader, images) for number, reader in enumerate(readers, 1)
                           if number != seed]
            print(f'{size or "--size 8"}, weight {weight or "0.5, the default"}: reads its own '
                  f'{10 * statistics.mean(own):.0f} %, others read {10 * statistics.mean(others):.1f}'
                  f' %; lowest and highest of {len(others)} readers of ten: {min(others)}, '
                  f'{max(others)}', flush=True)

if __name__ == '__main__':
    weights(sys.argv[1]) if sys.argv[1:] else factors()
