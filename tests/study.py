"""python tests/study.py FOLDER: what each idea buys, as accuracy on all 10,000 test images.

Runs vlm.py with the options of each row and each seed, one process per processor, and appends every
result to tests/study.jsonl; run again, it goes on where it was stopped. The weights go to FOLDER,
where tests/drawings.py finds them. At the end it prints the tables of tests/STUDY.md. PyPy makes it
affordable: VLM_MNIST=folder pypy3 tests/study.py FOLDER.
"""
import argparse, concurrent.futures, json, os, platform, re, statistics, subprocess, sys, time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PYTHON = f'{platform.python_implementation()} {platform.python_version()}'
RESULTS = TESTS / 'study.jsonl'
sys.path.insert(0, str(TESTS.parent))
import vlm

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
REPORT = re.compile(r'([\d,]+) parameters(?:.|\n)*error: ([\d.]+) ')
ACCURACY = re.compile(r'test accuracy(?: of (\w+))?: .* = ([\d.]+)%')
FIVE = '--questions name,next,parity,french,german'
DEGREE2 = '--tokens 2,2,2,2'
REBUILDING = '0', '0.03', '0.15'  # beside the default
LONG = ('--size 14 --tokens 2,2,2,2,4,4,4,4 --batch 64 --steps 22000 --lr 0.007 --known 0.98 '
        '--decay 0.05 --reconstruction 0.05 --distort 1.4')

# Title -> rows: what it is, how many seeds, the options; perhaps those of a further run, which goes
# on with the weights of the first.
GROUPS = {
    'Defaults': [('size 8', 10, ''), ('size 14', 10, '--size 14')],
    'Images seen': [
        ('12,160: the default', 10, ''), ('60,800', 5, '--steps 1900'),
        ('240,000', 5, '--steps 7500')],
    'Attention': [('tensor', 10, ''), ('dot product', 5, '--pieces 1')],
    'Tokens': [
        ('degrees 2, 3, 3: the default', 10, ''), ('2, 2, 2, 2', 5, DEGREE2),
        ('eight of degree 1', 5, '--tokens 1,1,1,1,1,1,1,1')],
    'Letters learned from': [
        ('those up to 0.85: the default', 10, ''), ('all', 5, '--known 1')],
    'Weight of the rebuilding loss': [
        *((f'{weight}, size {size}', 5, f'--size {size} --reconstruction {weight}'.replace(
            '--size 8 ', '')) for size in (8, 14) for weight in REBUILDING),
        ('0.5, size 8: the default', 10, ''), ('0.5, size 14: the default', 10, '--size 14')],
    'An eye that first learned to rebuild': [
        ('no', 5, DEGREE2),
        ('yes, and is then frozen', 5, f'{DEGREE2} --stage eye', '--stage frozen-eye')],
    'Questions': [
        ('names alone', 10, ''), ('five, equal images in all', 5, FIVE),
        ('five, equal images per question', 5, f'{FIVE} --steps 1900'),
        ('names alone, as many images', 5, '--steps 1900')],
    'The long run': [('', 3, LONG)],
}

def whole():
    """-> options of each row: its seeds"""
    return {tuple(options): seeds for rows in GROUPS.values() for _, seeds, *options in rows}

def weights_file(folder, options, seed):
    """-> the path of a row's weights"""
    name = re.sub('[^a-z0-9.]+', '_', ' '.join(options)).strip('_') or 'default'
    return Path(folder) / f'{name}.{seed}.json'

def run_vlm(folder, options, seed):
    """The runs of a row, each a process of its own -> what the last one reports"""
    # PyPy collects garbage less often in a nursery that holds an image's graph: 1.5 times as fast.
    env = {'PYPY_GC_NURSERY': '16m', **os.environ, 'PYTHONIOENCODING': 'utf-8'}
    file = str(weights_file(folder, options, seed))
    for number, more in enumerate(options, 1):
        argv = [sys.executable, vlm.__file__, '--jobs', '1', '--seed', str(seed)]
        argv += [*more.split(), '--save', file]
        argv += ['--load', file] if number > 1 else []
        argv += ['--test', '1'] if number < len(options) else []
        argv += ['--data', env['VLM_MNIST']] if 'VLM_MNIST' in env else []
        out = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
                             encoding='utf-8', env=env).stdout
    parameters, error = REPORT.search(out).groups()
    return dict(parameters=int(parameters.replace(',', '')), error=float(error), accuracy={
        question or 'name': float(percent) for question, percent in ACCURACY.findall(out)})

def run(folder, options, seed):
    """One row with one seed, its result appended to the file"""
    start = time.monotonic()
    result = dict(engine=PYTHON, options=options, seed=seed, **run_vlm(folder, options, seed),
                  seconds=round(time.monotonic() - start, 1))
    with RESULTS.open('a') as file:
        file.write(json.dumps(result) + '\n')
    print(result, flush=True)

def read():
    """The results so far: {options: {seed: result}}"""
    results = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        result = json.loads(line)
        results.setdefault(tuple(result['options']), {})[result['seed']] = result
    return results

def spread(values, digits=2):
    """Mean, standard deviation, lowest and highest of values, as text"""
    mean, deviation = statistics.mean(values), statistics.stdev(values) if values[1:] else 0.0
    return (f'{mean:.{digits}f} ± {deviation:.{digits}f} | '
            f'{min(values):.{digits}f} to {max(values):.{digits}f}')

def table(results):
    """{options: {seed: result}} -> the study as Markdown"""
    lines = []
    for title, rows in GROUPS.items():
        lines += ['', f'| {title} | parameters | images | test accuracy, % | lowest to highest '
                  '| rebuilding error | seeds | seconds a run | options |',
                  '|---|--:|--:|--:|--:|--:|--:|--:|---|']
        for name, _, *options in rows:
            found = list(results.get(tuple(options), {}).values())
            settings = [vlm.parse(argv.split())[0] for argv in options]
            images = sum(run.batch * run.steps for run in settings)
            for question in found[0]['accuracy'] if found else []:
                lines.append(
                    f'| {name}{"" if question == "name" else ": " + question} | '
                    f'{found[0]["parameters"]:,} | {images:,} | '
                    f'{spread([r["accuracy"][question] for r in found])} | '
                    f'{statistics.mean(r["error"] for r in found):.3f} | {len(found)} | '
                    f'{statistics.median(r["seconds"] for r in found):.0f} | '
                    + ', then '.join(f'`{more}`' if more else '(none)' for more in options) + ' |')
    hours = {engine: sum(r['seconds'] for seeds in results.values() for r in seeds.values()
                         if r['engine'] == engine) / 3600 for engine in
             sorted({r['engine'] for seeds in results.values() for r in seeds.values()})}
    costs = '; '.join(f'{engine}: {time:.1f} processor-hours' for engine, time in hours.items())
    return '\n'.join([costs, *lines, ''])

def main(folder):
    """Run what is missing; print the tables."""
    vlm.load_digits(os.environ.get('VLM_MNIST'), 14)  # without MNIST, it says so and ends here
    Path(folder).mkdir(exist_ok=True)
    results = read()
    todo = [(options, seed) for options, seeds in whole().items() for seed in range(1, seeds + 1)
            if seed not in results.get(options, {})]
    with concurrent.futures.ProcessPoolExecutor(CORES) as pool:
        for future in [pool.submit(run, folder, *task) for task in todo]:
            future.result()
    print(table(read()))

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='What each idea buys.')
    parser.add_argument('folder', help='for the weights')
    main(parser.parse_args().folder)
