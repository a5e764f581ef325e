"""python tests/benchmark.py: how fast vlm.py is, beside a textbook autograd engine and PyTorch.

Runs on CPython and PyPy, without PyTorch too. The images are MNIST's, from the folder in the
environment variable VLM_MNIST, else the bundled digits.
"""
import argparse, functools, gc, itertools, math, os, platform, random, statistics, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import vlm
try:
    import torch
    from tests import torch_model
except ImportError:
    torch = None

SLOT = 0.4        # seconds that one measurement lasts at least
WARM_UP = 0.2 if platform.python_implementation() == 'CPython' else 4.0  # PyPy has to compile first
TOLERANCE = 1e-9  # largest allowed difference between losses or elements of gradients
TEXTBOOK = 'textbook engine'
V1 = dict(tokens=[2] * 8, width=16, heads=4, layers=1, mlp=4, batch=1)
JOBS = 1, 2

# ---- Contestants: functions from ([(pixels, digit)], seconds) to the measured seconds per image --

def choose(size=8, **changes):
    """The default settings of an image size, learning from all letters, then as asked for"""
    return vlm.complete({**dict(size=size, jobs=1, steps=10 ** 9, lr=1e-9, known=1.0), **changes})

def random_numbers(settings, seed=5):
    """Numbers that keep variance, none zero as in first_numbers(): zero gradients cost no time"""
    rng = random.Random(seed)
    return [rng.gauss(0, columns ** -0.5) for rows, columns in vlm.shapes(settings).values()
            for _ in range(rows * columns)]

def prepared(settings, digits):
    """[(pixels, digit)] -> examples to learn from: [(image x, text)]"""
    return [(vlm.prepare(settings, pixels), vlm.BOS + vlm.ANSWERS['name'][digit] + vlm.EOS)
            for pixels, digit in digits]

def per_image(step, batch, seconds):
    """Seconds per image, over as many steps as take that many seconds, at least one"""
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < seconds:
        step()
        count += 1
    return (time.perf_counter() - start) / count / batch

def vlm_gradient(settings, numbers, examples):
    """-> loss and gradient of one batch"""
    return vlm.gradient(settings, vlm.joint_loss, numbers, examples)

def vlm_trains(settings):
    """vlm.py; processes have started before the clock does"""
    numbers = random_numbers(settings)
    def run(digits, seconds):
        examples = itertools.cycle(prepared(settings, digits))
        with vlm.processes(settings.jobs) as map:
            learner = vlm.learn(settings, numbers, examples, vlm.joint_loss, None,
                                functools.partial(vlm.shared_gradient, map))
            next(learner)
            return per_image(lambda: next(learner), settings.batch, seconds)
    return run

def vlm_names(settings):
    """vlm.py naming one image after another, from its pixels, as for the report"""
    weights = vlm.matrices(settings, random_numbers(settings))
    def run(digits, seconds):
        pixels = itertools.cycle(pixels for pixels, _ in digits)
        return per_image(lambda: vlm.answer(weights, settings, vlm.prepare(settings, next(pixels))),
                         1, seconds)
    return run

def tensors(settings, examples, dtype):
    """examples -> images [batch][size * size], encoded texts: what torch_model's functions take"""
    images, texts = zip(*examples)
    return (torch.tensor(images, dtype=dtype), *torch_model.encode(settings, texts))

def torch_gradient(settings, numbers, examples):
    """-> loss and gradient of one batch in float64"""
    weights = torch_model.parameters(settings, numbers, torch.float64)
    loss = torch_model.loss(weights, settings, *tensors(settings, examples, torch.float64))
    loss.backward()
    return loss.item(), [g for w in weights.values() for g in w.grad.flatten().tolist()]

def torch_trains(settings):
    """PyTorch eager in float32 with fused Adam"""
    weights = torch_model.parameters(settings, random_numbers(settings), torch.float32)
    adam = torch.optim.AdamW(weights.values(), settings.lr, (vlm.BETA1, vlm.BETA2), 1e-8,
                             settings.decay, fused=True)
    def run(digits, seconds):
        examples = tensors(settings, prepared(settings, digits), torch.float32)
        batches = itertools.cycle(zip(*[part.split(settings.batch) for part in examples]))
        def step():
            adam.zero_grad()
            torch_model.loss(weights, settings, *next(batches)).backward()
            adam.step()
        return per_image(step, settings.batch, seconds)
    return run

# ---- The textbook engine: one node per addition and multiplication -------------------------------

class Scalar:
    """A number with its children and the derivative with respect to each, as in microgpt"""
    __slots__ = 'data', 'grad', 'children', 'derivatives'
    def __init__(self, data, children=(), derivatives=()):
        self.data, self.grad, self.children, self.derivatives = data, 0.0, children, derivatives
    def __add__(self, other):
        other = other if isinstance(other, Scalar) else Scalar(other)
        return Scalar(self.data + other.data, (self, other), (1.0, 1.0))
    def __mul__(self, other):
        other = other if isinstance(other, Scalar) else Scalar(other)
        return Scalar(self.data * other.data, (self, other), (other.data, self.data))
    def __pow__(self, n): return Scalar(self.data ** n, (self,), (n * self.data ** (n - 1),))
    def exp(self): return Scalar(math.exp(self.data), (self,), (math.exp(self.data),))
    def log(self): return Scalar(math.log(self.data), (self,), (1 / self.data,))
    def relu(self): return Scalar(max(0.0, self.data), (self,), (float(self.data > 0),))
    def __neg__(self): return self * -1
    def __sub__(self, other): return self + -other
    def __truediv__(self, other): return self * other ** -1
    __radd__, __rmul__ = __add__, __mul__

    def backward(self):
        """Sort all nodes by depth-first search, then apply the chain rule from last to first."""
        order, visited, stack = [], set(), [(self, False)]
        while stack:
            node, finished = stack.pop()
            if finished:
                order.append(node)
            elif node not in visited:
                visited.add(node)
                stack.append((node, True))
                stack += [(child, False) for child in node.children if child not in visited]
        self.grad = 1.0
        for node in reversed(order):
            for child, derivative in zip(node.children, node.derivatives):
                child.grad += node.grad * derivative

def dot(a, b): return sum(x * y for x, y in zip(a, b))
def linear(matrix, x): return [dot(row, x) for row in matrix]

def rmsnorm(x):
    scale = (dot(x, x) / len(x) + 1e-5) ** -0.5
    return [v * scale for v in x]

def softmax(logits):
    highest = max(v.data for v in logits)
    exps = [(v - highest).exp() for v in logits]
    total = sum(exps)
    return [e / total for e in exps]

def textbook_loss(w, settings, x, text):
    """image x [n] of Scalars, its text -> loss; only for degree 2 and two pieces"""
    left, right = [sum([w[f'eye{number}.{factor}'] for number in range(len(settings.tokens))], [])
                   for factor in (0, 1)]
    f = [a * b for a, b in zip(linear(left, x), linear(right, x))]
    width, text = settings.width, [settings.vocabulary.index(letter) for letter in text]
    inputs = [f[i:i + width] for i in range(0, len(f), width)]
    inputs += [w['mouth.embedding'][letter] for letter in text[:-1]]
    positions = w['mouth.vision_position'] + w['mouth.text_position']
    cache, outputs, n = [([], []) for _ in range(settings.layers)], [], width // settings.heads
    for token, position in zip(inputs, positions):
        h = [a + b for a, b in zip(token, position)]
        for i, (keys, values) in enumerate(cache):
            normed, attended = rmsnorm(h), []
            query = linear(w[f'mouth{i}.query'], normed)
            keys.append(linear(w[f'mouth{i}.key'], normed))
            values.append(linear(w[f'mouth{i}.value'], normed))
            for a in range(0, width, n):
                b, c = a + n // 2, a + n
                probs = softmax([dot(query[a:b], k[a:b]) * dot(query[b:c], k[b:c]) / (n / 2)
                                 for k in keys])
                attended += [sum(p * v[j] for p, v in zip(probs, values)) for j in range(a, c)]
            h = [a + b for a, b in zip(h, linear(w[f'mouth{i}.output'], attended))]
            hidden = [v.relu() for v in linear(w[f'mouth{i}.up'], rmsnorm(h))]
            h = [a + b for a, b in zip(h, linear(w[f'mouth{i}.down'], hidden))]
        outputs.append(softmax(linear(w['mouth.logits'], rmsnorm(h))))
    spoken = outputs[-len(text) + 1:]
    loss = sum(-probs[letter].log() for probs, letter in zip(spoken, text[1:]))
    if settings.reconstruction:
        pairs, everything = list(zip(left, right)), dot(x, x) ** 2
        gram = [[dot(l, m) * dot(r, s) for m, s in pairs] for l, r in pairs]
        missing = dot(linear(gram, f), f) - 2 * dot(f, f) + everything
        loss += settings.reconstruction * missing / everything
    return loss

def textbook(settings):
    """-> function that learns from one example and returns loss and gradient"""
    flat = list(map(Scalar, random_numbers(settings)))
    weights = vlm.matrices(settings, flat)
    m, v, steps = [0.0] * len(flat), [0.0] * len(flat), itertools.count(1)
    def learn(x, text):
        gc.enable()  # as it is by default
        loss = textbook_loss(weights, settings, list(map(Scalar, x)), text)
        loss.backward()
        grads, step = [p.grad for p in flat], next(steps)
        for i, p in enumerate(flat):  # Adam
            m[i] = vlm.BETA1 * m[i] + (1 - vlm.BETA1) * p.grad
            v[i] = vlm.BETA2 * v[i] + (1 - vlm.BETA2) * p.grad ** 2
            up, down = m[i] / (1 - vlm.BETA1 ** step), v[i] / (1 - vlm.BETA2 ** step)
            p.data -= settings.lr * (up / (down ** 0.5 + 1e-8) + settings.decay * p.data)
            p.grad = 0.0
        return loss.data, grads
    return learn

def textbook_trains(settings, learn):
    """The textbook engine, with the first of the digits"""
    def run(digits, seconds):
        [example] = prepared(settings, digits[:1])
        return per_image(lambda: learn(*example), 1, seconds)
    return run

# ---- The table -----------------------------------------------------------------------------------

def difference(a, b):
    """(loss, gradient) twice -> a note of the largest difference; ends if it is too large"""
    assert len(a[1]) == len(b[1])
    largest = max(abs(x - y) for x, y in zip([a[0], *a[1]], [b[0], *b[1]]))
    if not largest <= TOLERANCE:
        sys.exit(f'benchmark.py: gradients differ by {largest}')
    return f'; gradients equal within {largest:.0e}'

def figures(v):
    """A number with three significant figures"""
    return f'{v:,.{max(0, 2 - math.floor(math.log10(v)))}f}'

def group(title, rows, pick, repetitions, column='speed'):
    """Measure rows (name -> contestant) on the digits pick(repetition); print their medians."""
    times = {name: [] for name in rows}
    for repetition in range(-1, repetitions):
        for name, run in rows.items():
            if repetition >= 0:
                times[name].append(run(pick(repetition), SLOT))
            elif name != TEXTBOOK:  # the check of its gradients has warmed it up
                run(pick(0), WARM_UP)
    print(f'| **{title}** | | | **{column}** |')
    first = times[next(iter(rows))]
    for name, own in times.items():
        ratios = sorted(a / b if column == 'speed' else b / a for a, b in zip(first, own))
        seconds, ratio = statistics.median(own), statistics.median(ratios)
        print(f'| {name} | {figures(1000 * seconds)} | {figures(1 / seconds)} | {figures(ratio)} '
              f'({figures(ratios[0])} to {figures(ratios[-1])}) |', flush=True)

def main():
    """Measure and print the whole table."""
    parser = argparse.ArgumentParser(description=__doc__.split(chr(10))[0])
    parser.add_argument('--repetitions', type=int, default=3, metavar='N', help='(default: 3)')
    n, mnist = parser.parse_args().repetitions, os.environ.get('VLM_MNIST')
    digits = (vlm.read_digits(Path(mnist), 'train', 28) if mnist
              else vlm.read_digits(ROOT / 'data', 'optdigits-train', 8))[:64]
    if torch:
        torch.set_num_threads(1)
    print(f"""\
{platform.python_implementation()} {platform.python_version()}, PyTorch \
{torch and torch.__version__}, {platform.platform()}, {os.cpu_count()} cores,
{'MNIST' if mnist else 'bundled digits'}. Medians of {n} repetitions,
interleaved: A B C A B C ... Learning an image, from every letter of its name (known 1), is its
forward and backward pass and its share of the Adam step; images are prepared before. The textbook
engine has one node per addition and multiplication. PyTorch: eager, float32, one thread. Ratios are
to the first row of the group, in brackets lowest to highest.

| | ms per image | images per second | ratio |
|---|---:|---:|---:|""")
    variants = ('', {}), (', without reconstruction', {'reconstruction': 0.0})
    for words, changes in variants:
        settings = choose(**V1, **changes)
        learn, [example] = textbook(settings), prepared(settings, digits[:1])
        note = difference(vlm_gradient(settings, random_numbers(settings), [example]),
                          learn(*example))
        group(f"learning, purevlm v1's dimensions, batch 1{words}{note}", {
            TEXTBOOK: textbook_trains(settings, learn),
            'vlm.py, jobs 1': vlm_trains(settings)}, lambda r: [digits[r % len(digits)]], n)
    for size, (words, changes) in itertools.product((8, 14), variants):
        batch, note = choose(size).batch, ''
        rows = {f'vlm.py, jobs {jobs}, batch {batch}': vlm_trains(
            choose(size, jobs=jobs, **changes)) for jobs in JOBS}
        for batch in (1, batch) if torch else ():
            settings = choose(size, batch=batch, **changes)
            rows[f'PyTorch, batch {batch}'] = torch_trains(settings)
            examples = prepared(settings, digits[:batch])
            note = difference(*[f(settings, random_numbers(settings), examples)
                                for f in (vlm_gradient, torch_gradient)])
        group(f'learning, default settings, size {size}{words}{note}', rows, lambda r: digits, n)
    tokens = [[2] + [3] * count for count in (1, 2, 4, 8)]
    for name, values in dict(width=(8, 16, 32, 64), tokens=tokens, batch=(1, 8, 64)).items():
        rows = {f'{name} {value}': vlm_trains(choose(**{name: value})) for value in values}
        group(f'learning, vlm.py, jobs 1, defaults but {name}', rows, lambda r: digits, n, 'time')
    rows = {f'size {size}': vlm_names(choose(size)) for size in (8, 14)}
    group('naming an image, vlm.py, jobs 1', rows, lambda r: digits, n, 'time')

if __name__ == '__main__':
    main()
