"""python tests/study.py: what each idea buys, as accuracy on all 10,000 test images over seeds.

Runs vlm.py once for each row and seed, one process per processor, and appends every result to
tests/study.jsonl; run again, it goes on where it was stopped. PyPy makes it affordable:
VLM_MNIST=folder pypy3 tests/study.py. Then it writes tests/study.md and a chart beside it.
"""
import concurrent.futures, json, math, os, platform, re, statistics, subprocess, sys, time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
RESULTS = TESTS / 'study.jsonl'
sys.path.insert(0, str(TESTS.parent))
import vlm

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
PRICE = 0.04  # dollars per processor-hour, about what a cloud asks for one virtual processor
LONG = 60_000  # images; a run that sees more is done with three seeds instead of five
REPORT = re.compile(r'([\d,]+) parameters.*error: ([\d.]+) .*?(\d+)/10000 = ', re.S)

def images(size, *counts):
    """Rows of the curve of accuracy against images seen, in batches of 32"""
    return [(f'{count:,} images', f'--size {size} --steps {count // 32}') for count in counts]

CURVE = 1_000, 3_000, 10_000, 30_000, 60_000, 180_000
V1 = '--width 16 --heads 4 --mlp 4 --degree2 8 --degree3 0 --batch 1 --steps 3000 --lr 0.003'
V2 = ('--size 14 --width 32 --heads 4 --mlp 4 --degree2 8 --degree3 8 --degree4 12 --batch 1 '
      '--steps 7000 --lr 0.003')
GROUPS = {  # title -> rows: what it is, options
    'Attention': [
        ('tensor', ''), ('dot', '--attention dot'),
        ('tensor, size 14', '--size 14'), ('dot, size 14', '--size 14 --attention dot')],
    'Degrees, at equal parameters': [
        ('four tokens of degree 2', '--degree2 4 --degree3 0'),
        ('2 and 3', ''),
        ('2, 3 and 4', '--degree2 2 --degree3 1 --degree4 2')],
    'Tokenizer, at equal parameters': [
        ('bilinear, whole image', '--degree2 4 --degree3 0'),
        ('linear, whole image', '--degree1 8 --degree2 0 --degree3 0'),
        ('bilinear, 2x2 patches', '--patches 2 --degree2 1 --degree3 0'),
        ('linear, 2x2 patches', '--patches 2 --degree1 2 --degree2 0 --degree3 0'),
        ('bilinear, 2x2 patches, 2 layers', '--patches 2 --degree2 1 --degree3 0 --layers 2'),
        ('linear, 2x2 patches, 2 layers',
         '--patches 2 --degree1 2 --degree2 0 --degree3 0 --layers 2')],
    'Weight of the reconstruction': [
        (weight, f'--reconstruction {weight}') for weight in ('0', '0.01', '0.1', '1')],
    'Stages': [
        ('joint', ''),
        ('eye, then joint', '--stages eye,joint'),
        ('eye, then frozen', '--stages eye,frozen-eye'),
        ('mouth, then joint', '--stages mouth:100,joint'),
        ('mouth, then frozen', '--stages mouth:100,frozen-mouth'),
        ('joint, as many steps as both', '--steps 1000')],
    'Minibatch, at equal images': [
        (f'{batch} images, lr {lr}', f'--batch {batch} --steps {16_000 // batch} --lr {lr}')
        for batch, lr in ((1, 0.002), (4, 0.004), (16, 0.008), (32, 0.014))],
    'Dimensions of purevlm, at its number of images': [('v1', V1), ('v2', V2)],
    'Images seen, size 8': images(8, *CURVE),
    'Images seen, size 14': images(14, *CURVE),
}

def seen(options):
    """How many images a run with these options sees"""
    settings, _ = vlm.parse(options.split())
    return settings.batch * sum(steps for stage, steps in vlm.plan(settings) if stage.image)

def run(options, seed):
    """One run of vlm.py -> its result, also appended to the file"""
    start = time.monotonic()
    argv = [sys.executable, vlm.__file__, '--jobs', '1', '--seed', str(seed), *options.split()]
    if 'VLM_MNIST' in os.environ:
        argv += ['--data', os.environ['VLM_MNIST']]
    out = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
                         encoding='utf-8', env={**os.environ, 'PYTHONIOENCODING': 'utf-8'}).stdout
    parameters, error, right = REPORT.search(out).groups()
    result = dict(options=options, seed=seed, parameters=int(parameters.replace(',', '')),
                  error=float(error), accuracy=int(right) / 100,
                  seconds=round(time.monotonic() - start, 1))
    with RESULTS.open('a') as file:
        file.write(json.dumps(result) + '\n')
    print(result, flush=True)

def spread(values, digits):
    """Mean and standard deviation of values, as text"""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f'{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}'

def table(results):
    """results {options: [result]} -> the study as Markdown"""
    lines, hours = [], sum(r['seconds'] for rs in results.values() for r in rs) / 3600
    for title, rows in GROUPS.items():
        lines += ['', f'| {title} | parameters | images | test accuracy, % | reconstruction error '
                  '| s per run | seeds | options |', '|---|--:|--:|--:|--:|--:|--:|---|']
        for name, options in rows:
            rs = results.get(options, [])
            if rs:
                lines.append(f'| {name} | {rs[0]["parameters"]:,} | {seen(options):,} | '
                             f'{spread([r["accuracy"] for r in rs], 2)} | '
                             f'{spread([r["error"] for r in rs], 3)} | '
                             f'{statistics.median(r["seconds"] for r in rs):.0f} | {len(rs)} | '
                             f'`{options or "(none)"}` |')
    python = f'{platform.python_implementation()} {platform.python_version()}'
    cost = (f'{python}, one process per run: {hours:.1f} processor-hours, {hours * PRICE:.2f} '
            f'dollars at {PRICE} dollars per processor-hour.')
    return '\n'.join([cost, *lines, ''])

def chart(path, label, curves):
    """Draw accuracy against a logarithmic axis; curves {name: [(x, accuracy)]}, as SVG."""
    bottom, top = 70, 100
    xs = [x for points in curves.values() for x, _ in points]
    low, high = math.log10(min(xs)) - 0.1, math.log10(max(xs)) + 0.1
    def place(x, y):
        return (60 + 560 * (math.log10(x) - low) / (high - low),
                20 + 320 * (top - max(y, bottom)) / (top - bottom))
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 400" font-size="13" '
             'font-family="sans-serif">', '<rect width="800" height="400" fill="white"/>']
    for y in range(bottom, top + 1, 5):
        h = place(xs[0], y)[1]
        parts.append(f'<path d="M60 {h:.0f}H620" stroke="#ddd"/><text x="52" y="{h + 4:.0f}" '
                     f'text-anchor="end">{y} %</text>')
    for power in range(math.ceil(low), math.floor(high) + 1):
        w = place(10 ** power, top)[0]
        parts.append(f'<path d="M{w:.0f} 20V340" stroke="#ddd"/><text x="{w:.0f}" y="358" '
                     f'text-anchor="middle">{10 ** power:,}</text>')
    parts.append(f'<text x="340" y="385" text-anchor="middle">{label}</text>')
    for number, (name, points) in enumerate(curves.items()):
        color = ('#0b62a4', '#c23b22', '#2e8540', '#7a4ea3', '#b8860b', '#555')[number % 6]
        at = [place(*point) for point in sorted(points)]
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="'
                     + ' '.join(f'{x:.1f},{y:.1f}' for x, y in at) + '"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>' for x, y in at]
        parts.append(f'<text x="635" y="{40 + 22 * number}" fill="{color}">{name}</text>')
    path.write_text('\n'.join([*parts, '</svg>', '']), encoding='utf-8')

def main():
    """Run what is missing, write the table and the chart."""
    results = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        result = json.loads(line)
        results.setdefault(result['options'], []).append(result)
    wanted = dict.fromkeys(options for rows in GROUPS.values() for _, options in rows)
    todo = [(options, seed) for seed in range(1, 6) for options in wanted
            if seed <= (3 if seen(options) > LONG else 5)
            and seed not in [r['seed'] for r in results.get(options, [])]]
    with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
        for future in [pool.submit(run, *task) for task in todo]:
            future.result()
    if todo:
        return main()
    (TESTS / 'study.md').write_text(table(results), encoding='utf-8')
    mean = {options: statistics.mean(r['accuracy'] for r in rs) for options, rs in results.items()}
    curves = {f'vlm.py, size {size}': [(seen(options), mean[options])
                                       for _, options in GROUPS[f'Images seen, size {size}']]
              for size in (8, 14)}
    chart(TESTS / 'accuracy_images.svg', 'images seen', curves)

if __name__ == '__main__':
    main()
