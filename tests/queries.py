"""python tests/queries.py: what the size of the first queries does, of all 10,000 test images.

With --pieces 1 and 2, at both image sizes, queries begin at other sizes than first_numbers() gives
them: at 0, attention is even and stays so. Five seeds, one process per processor; about ten minutes
with PyPy. VLM_MNIST=folder says where MNIST is.
"""
import concurrent.futures, os, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import vlm
from tests import tools
from tests.study import CORES, spread

def accuracy(size, pieces, factor, seed):
    """Learn with first queries times a factor -> the share of names that are right, in percent"""
    settings = vlm.complete({'size': size, 'pieces': pieces, 'seed': seed})
    digits, test = vlm.load_digits(os.environ.get('VLM_MNIST'), size)
    numbers = [n * factor if name.endswith('query') else n
               for name, n in zip(tools.names(settings), vlm.first_numbers(settings))]
    examples = ((vlm.prepare(settings, x), text) for x, text in vlm.examples(settings, digits))
    weights = tools.learned(settings, numbers, examples)
    right = sum(tools.asked(weights, settings, vlm.prepare(settings, x))['name']
                == vlm.ANSWERS['name'][digit] for x, digit in test)
    return 100 * right / len(test)

def main():
    """Print mean and spread of each setting."""
    rows = [(8, 2, 1.0), (8, 1, 0.25), (8, 2, 0.0), (14, 1, 0.25), (14, 2, 0.0)]
    with concurrent.futures.ProcessPoolExecutor(CORES) as pool:
        futures = {row: [pool.submit(accuracy, *row, seed) for seed in range(1, 6)] for row in rows}
        for (size, pieces, factor), found in futures.items():
            found = [future.result() for future in found]
            print(f'size {size}, pieces {pieces}, first queries times {factor}: {spread(found)} ('
                  + ', '.join(f'{share:.2f}' for share in found) + ')', flush=True)

if __name__ == '__main__':
    main()
