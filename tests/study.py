"""python tests/study.py: what each idea buys, as accuracy on all 10,000 test images over seeds.

Runs vlm.py with the options BASE and those of a row, once for each row and seed, one process per
processor, and appends every result to tests/study.jsonl; run again, it goes on where it was
stopped. PyPy makes it affordable: VLM_MNIST=folder pypy3 tests/study.py. It writes the tables to
tests/study_tables.md, and two charts beside it. What tests/study.md shows was measured with the
version of vlm.py before: its results have other options and are left out here, but for the times
of the same model in PyTorch.
"""
import concurrent.futures, itertools, json, math, os, platform, re, statistics, subprocess, sys
import tempfile, time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PYTHON = f'{platform.python_implementation()} {platform.python_version()}'
RESULTS = TESTS / 'study.jsonl'
sys.path.insert(0, str(TESTS.parent))
import vlm

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
PRICE = 0.04  # dollars per processor-hour, about what a cloud asks for one virtual processor
# What the relatives need in seconds, and reach in % of the 10,000 test images: as in study.md
PUREVLM = {'purevlm v1': [(4260, 78.1)], 'purevlm v2': [(140, 91.2)]}
LONG = 60_000  # images; a run that sees more, or takes 15 minutes, has three seeds, not five
COLORS = '#0b62a4 #c23b22 #2e8540 #7a4ea3 #b8860b #555555 #d6589f #17a2b8'.split()
REPORT = re.compile(r'([\d,]+) parameters.*error: ([\d.]+) .*?(\d+)/(\d+) = ', re.S)

BASE = '--known 1 --steps 500'  # learns from every letter of 16,000 images; a row's options follow
SIZE14 = '--size 14 --steps 1250'

def images(size, *counts):
    """Rows of the curve of accuracy against images seen, in batches of 32"""
    return [(f'{count:,} images', f'--size {size} --steps {count // 32}') for count in counts]

CURVE = 1_000, 3_000, 10_000, 30_000, 60_000, 180_000
BILINEAR = '--tokens 2,2,2,2'
LINEAR = '--tokens 1,1,1,1,1,1,1,1'
PATCHES = '--patches 2 --tokens 2'
LINEAR_PATCHES = '--patches 2 --tokens 1,1'
EYE, MOUTH = f'{BILINEAR} --stage eye', f'{BILINEAR} --stage mouth --steps 100'
V1 = f'--heads 4 --mlp 4 --tokens {",".join("2" * 8)} --batch 1 --steps 3000 --lr 0.003'
V2 = (f'--size 14 --width 32 --heads 4 --mlp 4 --tokens {",".join("2" * 8 + "3" * 8 + "4" * 12)} '
      '--batch 1 --steps 7000 --lr 0.003 --reconstruction 0')  # v2 prints it, but learns without
# Title -> rows: what it is, its options, perhaps those of a further run, from the first's weights.
GROUPS = {
    'Attention': [
        ('tensor', ''), ('dot', '--pieces 1'),
        ('tensor, size 14', SIZE14), ('dot, size 14', f'{SIZE14} --pieces 1'),
        ('tensor, linear tokens', LINEAR), ('dot, linear tokens', f'{LINEAR} --pieces 1')],
    'Degrees, at equal parameters': [
        ('2', BILINEAR), ('2 and 3', ''), ('2, 3 and 4', '--tokens 2,2,3,4,4')],
    'Tokenizer, at equal parameters': [
        ('bilinear, whole image', BILINEAR), ('linear, whole image', LINEAR),
        ('bilinear, 2x2 patches', PATCHES), ('linear, 2x2 patches', LINEAR_PATCHES),
        ('bilinear, 2x2 patches, 2 layers', f'{PATCHES} --layers 2'),
        ('linear, 2x2 patches, 2 layers', f'{LINEAR_PATCHES} --layers 2')],
    'Letters learned from': [
        ('all', ''), ('up to 0.95', '--known 0.95'), ('0.9', '--known 0.9'),
        ('0.8', '--known 0.8'), ('0.7', '--known 0.7'),
        ('0.95, fewer images: the default', '--known 0.95 --steps 450'),
        ('0.8, fewer images', '--known 0.8 --steps 450'),
        ('all, size 14', SIZE14), ('0.95, size 14: the default', f'{SIZE14} --known 0.95'),
        ('0.8, size 14', f'{SIZE14} --known 0.8'),
        ('0.8, size 14, fewer images', '--size 14 --steps 1100 --known 0.8')],
    'Weight of the reconstruction': [
        (weight, f'--reconstruction {weight}') for weight in ('0', '0.01', '0.1', '1')],
    'Stages, with tokens of degree 2': [
        ('joint', BILINEAR),
        ('joint, as many steps as with the eye first', f'{BILINEAR} --steps 1000'),
        ('eye, then joint', EYE, ''), ('eye, then frozen', EYE, '--stage frozen-eye'),
        ('mouth, then joint', MOUTH, ''), ('mouth, then frozen', MOUTH, '--stage frozen-mouth'),
        ('2,048 names: joint', f'{BILINEAR} --steps 64'),
        ('2,048 names: eye, then joint', EYE, '--steps 64'),
        ('2,048 names: eye, then frozen', EYE, '--stage frozen-eye --steps 64')],
    'Minibatch, at equal images': [
        ('1 image, lr 0.002', '--batch 1 --steps 16000 --lr 0.002'),
        ('4 images, lr 0.004', '--batch 4 --steps 4000 --lr 0.004'),
        ('16 images, lr 0.01', '--batch 16 --steps 1000 --lr 0.01'), ('32 images, lr 0.014', '')],
    'Dimensions of purevlm, at its number of images': [('v1', V1), ('v2', V2)],
    'Images seen, size 8': images(8, *CURVE),
    'Images seen, size 14': images(14, *CURVE),
}

def whole(options):
    """A row's options -> all options of each of its runs"""
    return tuple(f'{BASE} {more}'.strip() for more in options)

def seen(options):
    """How many images the runs with these options see"""
    runs = [vlm.parse(argv.split())[0] for argv in whole(options)]
    return sum(run.batch * run.steps for run in runs if run.stage != 'mouth')

def run_vlm(options, seed):
    """The runs of a row, each a process of its own -> what the last one reports"""
    # PyPy collects garbage less often in a nursery that holds an image's graph: 1.5 times as fast.
    env = {'PYPY_GC_NURSERY': '16m', **os.environ, 'PYTHONIOENCODING': 'utf-8'}
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, 'weights.json'))
        for number, more in enumerate(whole(options), 1):
            argv = [sys.executable, vlm.__file__, '--jobs', '1', '--seed', str(seed)]
            argv += [*more.split(), '--save', file]
            argv += ['--load', file] if number > 1 else []
            argv += ['--test', '1'] if number < len(options) else []
            argv += ['--data', env['VLM_MNIST']] if 'VLM_MNIST' in env else []
            out = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                 check=True, encoding='utf-8', env=env).stdout
    parameters, error, right, count = REPORT.search(out).groups()
    return dict(parameters=int(parameters.replace(',', '')), error=float(error),
                accuracy=round(100 * int(right) / int(count), 2))

def run(options, seed):
    """One row with one seed, its result appended to the file"""
    start = time.monotonic()
    result = dict(engine=PYTHON, options=whole(options), seed=seed, **run_vlm(options, seed),
                  seconds=round(time.monotonic() - start, 1))
    with RESULTS.open('a') as file:
        file.write(json.dumps(result) + '\n')
    print(result, flush=True)

def read():
    """The results so far, of the rows above: {(engine, whole options): [result]}"""
    known, results = {whole(options) for rows in GROUPS.values() for _, *options in rows}, {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        result = json.loads(line)
        options = result['options']
        if result['engine'] == 'PyTorch':  # from before: one string, and what it says is the same
            options = whole([options])
        if tuple(options) in known:  # a string of before is not
            results.setdefault((result['engine'], tuple(options)), []).append(result)
    return results

def spread(values, digits):
    """Mean and, of more than one, standard deviation of values, as text"""
    mean = f'{statistics.mean(values):.{digits}f}'
    return mean if len(values) < 2 else f'{mean} ± {statistics.stdev(values):.{digits}f}'

def best(results, options):
    """Results for a row's options, of the interpreter with the most of them"""
    return max((rs for (engine, o), rs in results.items()
                if o == whole(options) and engine != 'PyTorch'), key=len, default=[])

def table(results):
    """results {(engine, options): [result]} -> the study as Markdown"""
    lines = []
    for title, rows in GROUPS.items():
        lines += ['', f'| {title} | parameters | images | test accuracy, % | reconstruction error '
                  '| seeds | seconds a run | processor-hours | cents | options |',
                  '|---|--:|--:|--:|--:|--:|--:|--:|--:|---|']
        for name, *options in rows:
            rs = best(results, options)
            if rs:
                seconds = statistics.median(r['seconds'] for r in rs)
                spelled = ', then '.join(f'`{more}`' if more else '(none)' for more in options)
                lines.append(f'| {name} | {rs[0]["parameters"]:,} | {seen(options):,} | '
                             f'{spread([r["accuracy"] for r in rs], 2)} | '
                             f'{spread([r["error"] for r in rs], 3)} | {len(rs)} | {seconds:.0f} | '
                             f'{seconds / 3600:.3f} | {100 * PRICE * seconds / 3600:.3f} | '
                             f'{spelled} |')
    costs = []
    for engine in dict.fromkeys(engine for engine, _ in results):
        hours = sum(r['seconds'] for (other, _), rs in results.items() for r in rs
                    if other == engine) / 3600
        costs.append(f'{engine}: {hours:.1f} processor-hours, {hours * PRICE:.2f} dollars')
    return '\n'.join([f'{"; ".join(costs)}, at {PRICE} dollars per processor-hour.', *lines, ''])

def chart(path, label, curves):
    """Draw curves {name: [(x, accuracy up to 99)]} as SVG; x and the error in % on log axes."""
    xs = [x for points in curves.values() for x, _ in points]
    low, high = math.log10(min(xs)) - 0.1, math.log10(max(xs)) + 0.1
    def place(x, y):
        return 60 + 560 * (math.log10(x) - low) / (high - low), 20 + 160 * math.log10(100 - y)
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 400" font-size="13" '
             'font-family="sans-serif">', '<rect width="800" height="400" fill="white"/>']
    for y in 0, 50, 80, 90, 95, 98, 99:
        h = place(xs[0], y)[1]
        parts.append(f'<path d="M60 {h:.0f}H620" stroke="#ddd"/><text x="52" y="{h + 4:.0f}" '
                     f'text-anchor="end">{y} %</text>')
    for power in range(math.ceil(low), math.floor(high) + 1):
        w = place(10 ** power, 0)[0]
        parts.append(f'<path d="M{w:.0f} 20V340" stroke="#ddd"/><text x="{w:.0f}" y="358" '
                     f'text-anchor="middle">{10 ** power:,}</text>')
    parts.append(f'<text x="340" y="385" text-anchor="middle">{label}</text>')
    for number, (name, points) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        at = [place(*point) for point in sorted(points)]
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="'
                     + ' '.join(f'{x:.1f},{y:.1f}' for x, y in at) + '"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>' for x, y in at]
        parts.append(f'<text x="635" y="{40 + 22 * number}" fill="{color}">{name}</text>')
    path.write_text('\n'.join([*parts, '</svg>', '']), encoding='utf-8')

def write(results):
    """Write the tables and the two charts."""
    (TESTS / 'study_tables.md').write_text(table(results), encoding='utf-8')
    by_images, by_seconds = {}, {}
    for size in (8, 14):
        for _, *options in GROUPS[f'Images seen, size {size}']:
            for (engine, o), rs in results.items():
                if o == whole(options):
                    accuracy = statistics.mean(r['accuracy'] for r in rs)
                    seconds = statistics.median(r['seconds'] for r in rs)
                    name = f'{size}x{size}, {engine.partition(" ")[0]}'
                    by_seconds.setdefault(name, []).append((seconds, accuracy))
                    if rs is best(results, options):
                        by_images.setdefault(f'{size}x{size}', []).append((seen(options), accuracy))
    if by_images:
        chart(TESTS / 'study_images.svg', 'training images seen', by_images)
        chart(TESTS / 'study_seconds.svg', 'seconds of the whole run', {**by_seconds, **PUREVLM})

def main():
    """Run what is missing; write what is there."""
    vlm.load_digits(os.environ.get('VLM_MNIST'), 14)  # without MNIST, it says so and ends here
    results, todo = read(), []
    rows = dict.fromkeys(tuple(options) for rows in GROUPS.values() for _, *options in rows)
    for seed, options in itertools.product(range(1, 6), rows):
        short = options == (V2,) or seen(options) > LONG
        if seed <= (3 if short else 5) and seed not in [r['seed'] for r in best(results, options)]:
            todo.append((options, seed))
    with concurrent.futures.ProcessPoolExecutor(CORES) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, *task) for task in todo]):
            future.result()
            write(read())
    write(read())

if __name__ == '__main__':
    main()
