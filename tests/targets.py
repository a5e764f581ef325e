"""python tests/targets.py FOLDER: how long whole runs take, as a ratio to those of FOLDER/vlm.py,
and how accurate they are.

Runs both versions in turn, in pairs, with the same interpreter and all processors; then the current
one alone with several seeds. FOLDER may also have another program, such as purevlm's vlm.py, that
needs no options (--plain). Images are MNIST's, from the folder in the variable VLM_MNIST, else
those in data/. Take the ratios: other work on the machine changes the seconds.
"""
import argparse, os, platform, re, statistics, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def run(folder, *argv):
    """The program of a folder -> its seconds, the share of names it says are right, in percent"""
    start = time.monotonic()
    out = subprocess.run([sys.executable, str(Path(folder).resolve() / 'vlm.py'), *argv],
                         cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
                         encoding='utf-8', env={**os.environ, 'PYTHONIOENCODING': 'utf-8'}).stdout
    found = re.findall(r'accuracy: .*?([\d.]+)%', out)
    return time.monotonic() - start, float(found[-1]) if found else None

def main():
    """Measure; print each run, the ratios and their median, then the accuracy over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('folder')
    parser.add_argument('--plain', action='store_true', help='give FOLDER/vlm.py no options')
    parser.add_argument('--pairs', type=int, default=5, metavar='N')
    parser.add_argument('--seeds', type=int, default=10, metavar='N')
    parser.add_argument('--size', choices=('8', '14'), default='8')
    given, mnist = parser.parse_args(), os.environ.get('VLM_MNIST')
    options = ['--size', given.size, *(['--data', str(Path(mnist).resolve())] if mnist else [])]
    print(f'{platform.python_implementation()} {platform.python_version()}, size {given.size}')
    ratios = []
    for pair in range(1, given.pairs + 1):
        (old, _), (new, _) = (run(given.folder, *([] if given.plain else options)),
                              run(ROOT, *options))
        ratios.append(new / old)
        print(f'pair {pair}: {new:.1f} s, the other {old:.1f} s; new/old {new / old:.2f}', flush=True)
    if ratios:
        print(f'median of the ratios: {statistics.median(ratios):.2f}')
    found = []
    for seed in range(1, given.seeds + 1):
        found.append(run(ROOT, *options, '--seed', str(seed))[1])
        print(f'seed {seed}: {found[-1]:.2f} %', flush=True)
    if found:
        print(f'mean {statistics.mean(found):.2f} %, lowest {min(found):.2f} %')

if __name__ == '__main__':
    main()
