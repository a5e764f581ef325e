"""python tests/study.py: what each idea buys, as accuracy on all 10,000 test images over seeds.

Runs vlm.py with the options BASE and those of a row, once for each row and seed, one process per
processor, and appends every result to tests/study.jsonl; run again, it goes on where it was
stopped. PyPy makes it affordable: VLM_MNIST=folder pypy3 tests/study.py. It writes tests/study.md
and two charts beside it.
With --torch it runs the rows of accuracy against images seen in PyTorch, three seeds each, for the
chart of accuracy against time.
"""
import concurrent.futures, itertools, json, math, os, platform, re, statistics, subprocess, sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PYTHON = f'{platform.python_implementation()} {platform.python_version()}'
RESULTS = TESTS / 'study.jsonl'
sys.path.insert(0, str(TESTS.parent))
import vlm
try:
    import torch
    from tests import torch_model
except ImportError:
    torch = None

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
PRICE = 0.04  # dollars per processor-hour, about what a cloud asks for one virtual processor
# What the relatives need in seconds, and reach in % of the 10,000 test images: as in the README
PUREVLM = {'purevlm v1': [(4260, 78.1)], 'purevlm v2': [(140, 91.2)]}
LONG = 60_000  # images; a run that sees more, or takes 15 minutes, has three seeds, not five
COLORS = '#0b62a4 #c23b22 #2e8540 #7a4ea3 #b8860b #555555 #d6589f #17a2b8'.split()
REPORT = re.compile(r'([\d,]+) parameters.*error: ([\d.]+) .*?(\d+)/10000 = ', re.S)

BASE = '--hard 0 --steps 500'  # learns from every letter of 16,000 images; a row's options follow
SIZE14 = '--size 14 --steps 1250'

def images(size, *counts):
    """Rows of the curve of accuracy against images seen, in batches of 32"""
    return [(f'{count:,} images', f'--size {size} --steps {count // 32}') for count in counts]

CURVE = 1_000, 3_000, 10_000, 30_000, 60_000, 180_000
BILINEAR = '--degree2 4 --degree3 0'
LINEAR = '--degree1 8 --degree2 0 --degree3 0'
PATCHES = '--patches 2 --degree2 1 --degree3 0'
LINEAR_PATCHES = '--patches 2 --degree1 2 --degree2 0 --degree3 0'
V1 = '--width 16 --heads 4 --mlp 4 --degree2 8 --degree3 0 --batch 1 --steps 3000 --lr 0.003'
V2 = ('--size 14 --width 32 --heads 4 --mlp 4 --degree2 8 --degree3 8 --degree4 12 --batch 1 '
      '--steps 7000 --lr 0.003 --reconstruction 0')  # which v2 prints, but does not learn from
GROUPS = {  # title -> rows: what it is, options
    'Attention': [
        ('tensor', ''), ('dot', '--attention dot'),
        ('tensor, size 14', SIZE14), ('dot, size 14', f'{SIZE14} --attention dot'),
        ('tensor, linear tokens', LINEAR), ('dot, linear tokens', f'{LINEAR} --attention dot')],
    'Degrees, at equal parameters': [
        ('2', BILINEAR), ('2 and 3', ''), ('2, 3 and 4', '--degree2 2 --degree3 1 --degree4 2')],
    'Tokenizer, at equal parameters': [
        ('bilinear, whole image', BILINEAR), ('linear, whole image', LINEAR),
        ('bilinear, 2x2 patches', PATCHES), ('linear, 2x2 patches', LINEAR_PATCHES),
        ('bilinear, 2x2 patches, 2 layers', f'{PATCHES} --layers 2'),
        ('linear, 2x2 patches, 2 layers', f'{LINEAR_PATCHES} --layers 2')],
    'Letters learned from': [
        ('all', ''), ('loss at least 0.05', '--hard 0.05'), ('0.1', '--hard 0.1'),
        ('0.2', '--hard 0.2'), ('0.4', '--hard 0.4'),
        ('0.05, fewer images: the default', '--hard 0.05 --steps 450'),
        ('0.2, fewer images', '--hard 0.2 --steps 450'),
        ('all, size 14', SIZE14), ('0.05, size 14: the default', f'{SIZE14} --hard 0.05'),
        ('0.2, size 14', f'{SIZE14} --hard 0.2'),
        ('0.2, size 14, fewer images', '--size 14 --steps 1100 --hard 0.2')],
    'Weight of the reconstruction': [
        (weight, f'--reconstruction {weight}') for weight in ('0', '0.01', '0.1', '1')],
    'Stages, with tokens of degree 2': [
        ('joint', BILINEAR),
        ('joint, as many steps as with the eye first', f'{BILINEAR} --steps 1000'),
        ('eye, then joint', f'{BILINEAR} --stages eye,joint'),
        ('eye, then frozen', f'{BILINEAR} --stages eye,frozen-eye'),
        ('mouth, then joint', f'{BILINEAR} --stages mouth:100,joint'),
        ('mouth, then frozen', f'{BILINEAR} --stages mouth:100,frozen-mouth'),
        ('2,048 names: joint', f'{BILINEAR} --steps 64'),
        ('2,048 names: eye, then joint', f'{BILINEAR} --stages eye:500,joint:64'),
        ('2,048 names: eye, then frozen', f'{BILINEAR} --stages eye:500,frozen-eye:64')],
    'Minibatch, at equal images': [
        ('1 image, lr 0.002', '--batch 1 --steps 16000 --lr 0.002'),
        ('4 images, lr 0.004', '--batch 4 --steps 4000 --lr 0.004'),
        ('16 images, lr 0.01', '--batch 16 --steps 1000 --lr 0.01'), ('32 images, lr 0.014', '')],
    'Dimensions of purevlm, at its number of images': [('v1', V1), ('v2', V2)],
    'Images seen, size 8': images(8, *CURVE),
    'Images seen, size 14': images(14, *CURVE),
}

def seen(options):
    """How many images a run with these options sees"""
    settings, _ = vlm.parse(f'{BASE} {options}'.split())
    return settings.batch * sum(steps for stage, steps in vlm.plan(settings) if stage.image)

def run_vlm(options, seed):
    """One run of vlm.py, as a process of its own"""
    argv = [sys.executable, vlm.__file__, '--jobs', '1', '--seed', str(seed)]
    argv += f'{BASE} {options}'.split()
    if 'VLM_MNIST' in os.environ:
        argv += ['--data', os.environ['VLM_MNIST']]
    # PyPy collects garbage less often in a nursery that holds an image's graph: 1.5 times as fast.
    env = {'PYPY_GC_NURSERY': '16m', **os.environ, 'PYTHONIOENCODING': 'utf-8'}
    out = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
                         encoding='utf-8', env=env).stdout
    parameters, error, right = REPORT.search(out).groups()
    return dict(parameters=int(parameters.replace(',', '')), error=float(error),
                accuracy=int(right) / 100)

def run_torch(options, seed):
    """The same run in PyTorch on one thread: same first weights, same images in the same order"""
    torch.set_num_threads(1)
    settings, _ = vlm.parse(f'{BASE} {options} --seed {seed}'.split())
    training, test = [(torch_model.downscale([pixels for pixels, _ in digits], settings.size),
                       torch.tensor([label for _, label in digits]))
                      for digits in vlm.load_digits(os.environ.get('VLM_MNIST'), settings.size)]
    weights = torch_model.parameters(vlm.first_weights(settings), torch.float32)
    adam = torch.optim.AdamW(weights.values(), settings.lr, (vlm.BETA1, vlm.BETA2),
                             vlm.ADAM_EPSILON, settings.decay, fused=True)
    order = vlm.shuffled(list(range(len(training[0]))), seed)
    for step in range(settings.steps):
        chosen = list(itertools.islice(order, settings.batch))
        adam.param_groups[0]['lr'] = settings.lr * (1 - step / settings.steps)
        adam.zero_grad()
        torch_model.loss(weights, settings, *[part[chosen] for part in training]).backward()
        adam.step()
    return dict(accuracy=100 * torch_model.accuracy(weights, settings, *test))

def run(engine, options, seed):
    """One run, its result appended to the file"""
    start = time.monotonic()
    found = (run_torch if engine == 'PyTorch' else run_vlm)(options, seed)
    result = dict(engine=engine, options=options, seed=seed, **found,
                  seconds=round(time.monotonic() - start, 1))
    with RESULTS.open('a') as file:
        file.write(json.dumps(result) + '\n')
    print(result, flush=True)

def read():
    """The results so far: {(engine, options): [result]}"""
    results = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        result = json.loads(line)
        results.setdefault((result['engine'], result['options']), []).append(result)
    return results

def spread(values, digits):
    """Mean and, of more than one, standard deviation of values, as text"""
    mean = f'{statistics.mean(values):.{digits}f}'
    return mean if len(values) < 2 else f'{mean} ± {statistics.stdev(values):.{digits}f}'

def best(results, options, pytorch=False):
    """Results for these options: PyTorch's, or those of the interpreter with the most of them"""
    return max((rs for (engine, o), rs in results.items()
                if o == options and (engine == 'PyTorch') == pytorch), key=len, default=[])

def table(results):
    """results {(engine, options): [result]} -> the study as Markdown"""
    lines = []
    for title, rows in GROUPS.items():
        lines += ['', f'| {title} | parameters | images | test accuracy, % | reconstruction error '
                  '| seeds | seconds a run | processor-hours | cents | options |',
                  '|---|--:|--:|--:|--:|--:|--:|--:|--:|---|']
        for name, options in rows:
            rs = best(results, options)
            if rs:
                seconds = statistics.median(r['seconds'] for r in rs)
                lines.append(f'| {name} | {rs[0]["parameters"]:,} | {seen(options):,} | '
                             f'{spread([r["accuracy"] for r in rs], 2)} | '
                             f'{spread([r["error"] for r in rs], 3)} | {len(rs)} | {seconds:.0f} | '
                             f'{seconds / 3600:.3f} | {100 * PRICE * seconds / 3600:.3f} | '
                             f'`{options or "(none)"}` |')
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
    """Write the table and the two charts."""
    (TESTS / 'study.md').write_text(table(results), encoding='utf-8')
    by_images, by_seconds = {}, {}
    for size in (8, 14):
        for _, options in GROUPS[f'Images seen, size {size}']:
            for (engine, o), rs in results.items():
                if o == options:
                    accuracy = statistics.mean(r['accuracy'] for r in rs)
                    seconds = statistics.median(r['seconds'] for r in rs)
                    name = f'{size}x{size}, {engine.partition(" ")[0]}'
                    by_seconds.setdefault(name, []).append((seconds, accuracy))
                    if rs is best(results, options):
                        by_images.setdefault(f'{size}x{size}', []).append((seen(options), accuracy))
    if by_images:
        chart(TESTS / 'accuracy_images.svg', 'training images seen', by_images)
        chart(TESTS / 'accuracy_seconds.svg', 'seconds of the whole run', {**by_seconds, **PUREVLM})

def main():
    """Run what is missing; write what is there."""
    vlm.load_digits(os.environ.get('VLM_MNIST'), 14)  # without MNIST, it says so and ends here
    results, engine = read(), 'PyTorch' if '--torch' in sys.argv[1:] else PYTHON
    rows = [row for title, rows in GROUPS.items() for row in rows
            if engine == PYTHON or title.startswith('Images seen')]
    todo = []
    for seed, options in itertools.product(range(1, 6), dict.fromkeys(o for _, o in rows)):
        short = engine == 'PyTorch' or options == V2 or seen(options) > LONG
        done = [r['seed'] for r in best(results, options, engine == 'PyTorch')]
        if seed <= (3 if short else 5) and seed not in done:
            todo.append((engine, options, seed))
    with concurrent.futures.ProcessPoolExecutor(CORES) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run, *task) for task in todo]):
            future.result()
            write(read())
    write(read())

if __name__ == '__main__':
    main()
