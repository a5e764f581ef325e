"""python tests/benchmark.py: how fast vlm.py is, beside a textbook autograd engine and PyTorch.

Runs on CPython and PyPy, without PyTorch too. The images are MNIST's, from the folder in the
environment variable VLM_MNIST, else the bundled digits.
"""
import argparse, gc, itertools, math, os, platform, random, statistics, sys, time
from pathlib import Path
from unittest import mock

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
ADAM = vlm.adam
V1 = dict(degree2=8, degree3=0, degree4=0, width=16, heads=4, layers=1, mlp=4, batch=1)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1

# ---- Contestants: functions from (examples, seconds) to the measured seconds per image -----------

def choose(size=8, **changes):
    """The default settings of an image size, then as asked for"""
    defaults = {name: row[size == 14] for name, row in vlm.SETTINGS.items()}
    fixed = dict(size=size, attention='tensor', stages='joint', jobs=1, steps=10 ** 9, lr=1e-9,
                 hard=0.0)
    return argparse.Namespace(**{**defaults, **fixed, **changes})

def random_weights(settings, seed=5):
    """Weights that keep variance, none zero as in first_weights(): zero gradients cost no time"""
    rng = random.Random(seed)
    return {name: [vlm.vector([vlm.Value(rng.gauss(0, columns ** -0.5)) for _ in range(columns)])
                   for _ in range(rows)]
            for name, (rows, columns) in vlm.matrix_shapes(settings).items()}

def images(examples, size):
    """[(pixels, digit)] -> images as the eye sees them [batch][size * size]"""
    return [list(vlm.rmsnorm(vlm.downscale(pixels, size))) for pixels, _ in examples]

def per_image(step, batch, seconds):
    """Seconds per image, over as many steps as take that many seconds, at least one"""
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < seconds:
        step()
        count += 1
    return (time.perf_counter() - start) / count / batch

def vlm_gradient(weights, settings, examples):
    """-> loss and flat gradient of one batch, from a step of vlm.learn(); it moves the weights"""
    grads = []
    def adam(data, grad, *state):
        grads.extend(grad)
        return ADAM(data, grad, *state)
    with mock.patch.object(vlm, 'adam', adam):
        letters, image = next(vlm.learn(weights, settings, iter(examples)))
    return letters + settings.reconstruction * image, grads

def vlm_trains(settings):
    """vlm.py; processes have started before the clock does"""
    weights = random_weights(settings)
    def run(examples, seconds):
        with vlm.Team(weights, settings, settings.jobs) as team:
            learner = vlm.learn(weights, settings, itertools.cycle(examples), team)
            next(learner)
            return per_image(lambda: next(learner), settings.batch, seconds)
    return run

def vlm_speaks(settings):
    """vlm.py naming one image after another"""
    values = random_weights(settings)
    weights = vlm.numbers(values)
    gram = vlm.hadamard(*[vlm.pairs(weights[f'eye.degree2.{i}']) for i in range(2)])
    def run(examples, seconds):
        names = (vlm.speak(values, settings, gram, x) for x, _ in itertools.cycle(examples))
        return per_image(lambda: next(names), 1, seconds)
    return run

def torch_gradient(weights, settings, examples):
    """-> loss and flat gradient of one batch in float64"""
    tensors = torch_model.parameters(weights, torch.float64)
    x = torch.tensor(images(examples, settings.size), dtype=torch.float64)
    loss = torch_model.loss(tensors, settings, x, torch.tensor([label for _, label in examples]))
    loss.backward()
    return loss.item(), [g for t in tensors.values() for g in (
        torch.zeros_like(t) if t.grad is None else t.grad).flatten().tolist()]

def torch_trains(settings):
    """PyTorch eager in float32 with fused Adam; images are downscaled before the clock starts"""
    weights = torch_model.parameters(random_weights(settings), torch.float32)
    adam = torch.optim.AdamW(weights.values(), settings.lr, (vlm.BETA1, vlm.BETA2),
                             vlm.ADAM_EPSILON, settings.decay, fused=True)
    def run(examples, seconds):
        x = torch.tensor(images(examples, settings.size)).split(settings.batch)
        labels = torch.tensor([label for _, label in examples]).split(settings.batch)
        batches = itertools.cycle(zip(x, labels))
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
    scale = (dot(x, x) / len(x) + vlm.NORM_EPSILON) ** -0.5
    return [v * scale for v in x]

def softmax(logits):
    highest = max(v.data for v in logits)
    exps = [(v - highest).exp() for v in logits]
    total = sum(exps)
    return [e / total for e in exps]

def textbook_loss(w, settings, x, label):
    """image x [n] of Scalars, its digit -> loss; only for degree 2 and tensor attention"""
    left, right, width = w['eye.degree2.0'], w['eye.degree2.1'], settings.width
    f = [a * b for a, b in zip(linear(left, x), linear(right, x))]
    inputs = [f[i:i + width] for i in range(0, len(f), width)]
    text = [vlm.VOCABULARY.index(letter) for letter in vlm.BOS + vlm.NAMES[label] + vlm.EOS]
    inputs += [w['letter'][letter] for letter in text[:-1]]
    cache, outputs, n = [([], []) for _ in range(settings.layers)], [], width // settings.heads
    for token, position in zip(inputs, w['position']):
        h = [a + b for a, b in zip(token, position)]
        for i, (keys, values) in enumerate(cache):
            normed, attended = rmsnorm(h), []
            query = linear(w[f'layer{i}.query'], normed)
            keys.append(linear(w[f'layer{i}.key'], normed))
            values.append(linear(w[f'layer{i}.value'], normed))
            for a in range(0, width, n):
                b, c = a + n // 2, a + n
                probs = softmax([dot(query[a:b], k[a:b]) * dot(query[b:c], k[b:c]) / (n / 2)
                                 for k in keys])
                attended += [sum(p * v[j] for p, v in zip(probs, values)) for j in range(a, c)]
            h = [a + b for a, b in zip(h, linear(w[f'layer{i}.output'], attended))]
            hidden = [v.relu() for v in linear(w[f'layer{i}.up'], rmsnorm(h))]
            h = [a + b for a, b in zip(h, linear(w[f'layer{i}.down'], hidden))]
        outputs.append(softmax(linear(w['head'], rmsnorm(h))))
    spoken = outputs[-len(text) + 1:]
    loss = sum(-probs[letter].log() for probs, letter in zip(spoken, text[1:])) / len(spoken)
    if settings.reconstruction:
        pairs = list(zip(left, right))
        products = [[dot(l, k) * dot(r, s) for k, s in pairs] for l, r in pairs]
        error = dot(linear(products, f), f) - 2 * dot(f, f) + dot(x, x) ** 2
        loss += settings.reconstruction * error / len(x) ** 2
    return loss

def textbook(settings):
    """-> function that learns one (pixels, digit) and returns loss and flat gradient"""
    weights = {name: [[Scalar(value.data) for value in row] for row in matrix]
               for name, matrix in random_weights(settings).items()}
    flat = [v for matrix in weights.values() for row in matrix for v in row]
    m, v, steps = [0.0] * len(flat), [0.0] * len(flat), itertools.count(1)
    def learn(example):
        gc.enable()  # as it is by default
        x = [Scalar(pixel) for pixel in images([example], settings.size)[0]]
        loss = textbook_loss(weights, settings, x, example[1])
        loss.backward()
        grads, step = [p.grad for p in flat], next(steps)
        for i, p in enumerate(flat):  # Adam
            m[i] = vlm.BETA1 * m[i] + (1 - vlm.BETA1) * p.grad
            v[i] = vlm.BETA2 * v[i] + (1 - vlm.BETA2) * p.grad ** 2
            up, down = m[i] / (1 - vlm.BETA1 ** step), v[i] / (1 - vlm.BETA2 ** step)
            change = up / (down ** 0.5 + vlm.ADAM_EPSILON) + settings.decay * p.data
            p.data -= settings.lr * change
            p.grad = 0.0
        return loss.data, grads
    return learn

# ---- The table -----------------------------------------------------------------------------------

def difference(a, b):
    """(loss, flat gradient) twice -> a note of the largest difference; ends if it is too large"""
    assert len(a[1]) == len(b[1])
    largest = max(abs(x - y) for x, y in zip([a[0], *a[1]], [b[0], *b[1]]))
    if not largest <= TOLERANCE:
        sys.exit(f'benchmark.py: gradients differ by {largest}')
    return f'; gradients equal within {largest:.0e}'

def figures(v):
    """A number with three significant figures"""
    return f'{v:,.{max(0, 2 - math.floor(math.log10(v)))}f}'

def group(title, rows, pick, repetitions, column='speed'):
    """Measure rows (name -> contestant) on the examples pick(repetition); print their medians."""
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
{torch and torch.__version__}, {platform.platform()}, {CORES} cores,
{'MNIST' if mnist else 'bundled digits'}. Medians of {n} repetitions,
interleaved: A B C A B C ... Learning an image, from every letter of its name (hard 0), is its
forward and backward pass and its share of the Adam step. The textbook engine has one node per
addition and multiplication. PyTorch: eager, float32, one thread. Ratios are to the first row of the
group, in brackets lowest to highest.

| | ms per image | images per second | ratio |
|---|---:|---:|---:|""")
    variants = ('', {}), (', without reconstruction', {'reconstruction': 0.0})
    for words, changes in variants:
        settings = choose(**V1, **changes)
        learn = textbook(settings)
        note = difference(vlm_gradient(random_weights(settings), settings, digits[:1]),
                          learn(digits[0]))
        group(f"learning, purevlm v1's dimensions, batch 1{words}{note}", {
            TEXTBOOK: lambda examples, seconds: per_image(lambda: learn(examples[0]), 1, seconds),
            'vlm.py, jobs 1': vlm_trains(settings)}, lambda r: [digits[r % len(digits)]], n)
    for size, (words, changes) in itertools.product((8, 14), variants):
        batch, note = choose(size).batch, ''
        rows = {f'vlm.py, jobs {jobs}, batch {batch}': vlm_trains(
            choose(size, jobs=jobs, **changes)) for jobs in sorted({1, CORES})}
        for batch in (1, batch) if torch else ():
            settings = choose(size, batch=batch, **changes)
            rows[f'PyTorch, batch {batch}'] = torch_trains(settings)
            note = difference(*[f(random_weights(settings), settings, digits[:batch])
                                for f in (vlm_gradient, torch_gradient)])
        group(f'learning, default settings, size {size}{words}{note}', rows, lambda r: digits, n)
    for name, values in dict(width=(8, 16, 32, 64), degree3=(1, 2, 4, 8), batch=(1, 8, 64)).items():
        rows = {f'{name} {value}': vlm_trains(choose(**{name: value})) for value in values}
        group(f'learning, vlm.py, jobs 1, defaults but {name}', rows, lambda r: digits, n, 'time')
    rows = {f'size {size}': vlm_speaks(choose(size)) for size in (8, 14)}
    group('naming an image, vlm.py, jobs 1', rows, lambda r: digits, n, 'time')

if __name__ == '__main__':
    main()
