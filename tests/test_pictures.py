"""Pictures in the terminal, what the eye keeps, drawings by the model, drawings made ready for it."""
import contextlib, functools, io, itertools, math, os, re, subprocess, sys, unittest
from pathlib import Path
from unittest import mock

import vlm
from tests import tools
from tests.test_data import MNIST, PROGRAM, Case, digits, run, write
from tests.tools import asked, gauss, random_numbers, tiny

DATA = PROGRAM.parent / 'data'
SHIPPED = {size: DATA / f'weights-{size}.json' for size in (8, 14)}  # with the project

def loaded(path):
    """A weights file -> the matrices, and settings"""
    saved, numbers = vlm.load(path)
    settings = vlm.complete(saved)
    return vlm.matrices(settings, numbers), settings

def enlarged(rows, times):
    """An image [n][n] -> a drawing [n * times * n * times] of squares"""
    return [v for row in rows for v in [v for v in row for _ in range(times)] * times]

def thicker(pixels):
    """An image [28 * 28] -> the same, each pixel as dark as it, the one above or the one before"""
    rows = vlm.split(pixels, 28)
    return [max(rows[y][x], rows[y - 1][x], rows[y][x - 1]) for y in range(28) for x in range(28)]

def whole_paper(pixels):
    """An image [28 * 28] -> a drawing [280 * 280] that it fills"""
    return bytes(enlarged(vlm.split(pixels, 28), 10))

def half_paper(pixels):
    """An image [28 * 28] -> a drawing [280 * 280]: it is half as large, and off the middle"""
    rows = vlm.split(enlarged(vlm.split(pixels, 28), 5), 140)
    return bytes(280 * 30) + b''.join(bytes([*[0] * 90, *row, *[0] * 50]) for row in rows) + bytes(
        280 * 110)

def name_of_drawing(weights, settings, ink):
    """What the model says to a drawing"""
    return asked(weights, settings, vlm.prepare(settings, vlm.centre(ink)))['name']

class Pictures(Case):
    """An image as characters."""
    def test_greys(self):
        """Four patches come back row after row; what is negative is 0; three digits."""
        settings = tiny(size=4, patches=2)
        x = [1, 2, 5, 6, 3, 4, 7, 8, 9, 10, 13, 14, 11, 12, 15, -16]
        self.assertEqual(vlm.greys(settings, x, 1), [*range(1, 16), 0])
        self.assertEqual(vlm.greys(settings, x, 3), [round(v / 3, 3) for v in [*range(1, 16), 0]])
        self.assertEqual(vlm.greys(settings, [0.0] * 16, 0.0), [0.0] * 16)

    def shown(self, captioned, encoding='utf-8', tty=True, **env):
        """What show() prints of images of 2x2 pixels"""
        out = io.TextIOWrapper(io.BytesIO(), encoding, newline='')
        out.isatty = lambda: tty
        env = {'NO_COLOR': '', 'TERM': 'xterm', 'WT_SESSION': '1', **env}  # the last: Windows
        with mock.patch.dict(os.environ, env), contextlib.redirect_stdout(out):
            vlm.show(tiny(), captioned)
            out.flush()
        return out.buffer.getvalue().decode(encoding)

    def test_show(self):
        """By hand: 0, a third, two thirds and all of the brightest, in colours and in shades."""
        captioned = [([0.0, 1.0, 2.0, 3.0], 'one'), ([3.0, 0.0, 0.0, 3.0], 'two: 2')]
        colours = ('\x1b[38;5;232;48;5;247m▀\x1b[38;5;240;48;5;255m▀\x1b[0m    '
                   ' \x1b[38;5;255;48;5;232m▀\x1b[38;5;232;48;5;255m▀\x1b[0m    \n'
                   'one    two: 2\n\n')
        plain = '  --   @@    \n**@@     @@  \none    two: 2\n\n'
        self.assertEqual(self.shown(captioned), colours)
        for options in ({'NO_COLOR': '1'}, {'TERM': 'dumb'}, {'encoding': 'ascii'}, {'tty': False}):
            with self.subTest(options):
                self.assertEqual(self.shown(captioned, **options), plain)

    def test_width(self):
        """As many side by side as fit into 80 columns, and no line is longer."""
        for size, tty in itertools.product((8, 14), (False, True)):
            column = max(size * (1 if tty else 2), len('seven ✓ 99.9%'))
            out = io.TextIOWrapper(io.BytesIO(), 'utf-8')
            out.isatty = lambda: tty
            captioned = [([1.0] * size ** 2, 'seven ✓ 99.9%')] * 20
            with mock.patch.dict(os.environ, NO_COLOR='', TERM='xterm'), \
                    contextlib.redirect_stdout(out):
                vlm.show(vlm.complete({'size': size}), captioned)
                out.flush()
            text = re.sub('\x1b[^m]*m', '', out.buffer.getvalue().decode())
            widths = {len(line) for line in text.split('\n') if line}
            self.assertTrue(80 - 1 - column <= max(widths) <= 80, (size, tty, widths))
            self.assertEqual(text.count('seven'), 20)

    @unittest.skipIf(os.name == 'nt', 'Windows has no pseudo-terminals')
    def test_terminal(self):
        """On a real terminal, pictures replace the twenty lines; piped, the lines stay."""
        data = write(self.folder / 'images', digits(13, 25))
        argv = [sys.executable, str(PROGRAM), '--data', str(data), '--steps', '0', '--test', '25',
                '--tokens', '2', '--width', '4', '--jobs', '1']
        def printed(**env):
            leader, follower = os.openpty()
            with open(leader, 'rb', 0) as reader:
                env = {**os.environ, 'TERM': 'xterm', 'PYTHONIOENCODING': 'utf-8', **env}
                process = subprocess.Popen(argv, stdout=follower, stderr=subprocess.DEVNULL, env=env)
                os.close(follower)
                parts = []
                with contextlib.suppress(OSError):  # so Linux ends a terminal
                    while not parts or parts[-1]:
                        parts.append(reader.read(65536))
                self.assertEqual(process.wait(), 0)
            return b''.join(parts).decode()
        env = {name: value for name, value in os.environ.items() if name != 'NO_COLOR'}
        with mock.patch.dict(os.environ, env, clear=True):
            coloured, plain = printed(), printed(NO_COLOR='1')
        for text in coloured, plain:
            self.assertNotIn('true:', text)
            self.assertIn('test accuracy', text)
            self.assertEqual(len(re.findall(r'[✓✗] \d+\.\d%', text)), 20)
        self.assertEqual(coloured.count('▀'), 20 * 8 * 4)
        self.assertNotIn('▀', plain)
        self.assertNotIn('\x1b', plain)
        piped = subprocess.check_output(argv, stderr=subprocess.DEVNULL)
        self.assertEqual(piped.count(b'true:'), 20)
        self.assertNotIn(b'\x1b', piped)

class Kept(Case):
    """What the eye can draw again."""
    def test_power_iteration(self):
        """Against the largest eigenvector of M, made in full and multiplied until it stays."""
        weights, settings = loaded(SHIPPED[8])
        for pixels, _ in vlm.read_digits(DATA, 'optdigits-test', 8)[:10]:
            x = vlm.prepare(settings, pixels)
            m = [[0.0] * len(x) for _ in x]
            for number, degree in enumerate(settings.tokens):
                for l, r in zip(*(weights[f'eye{number}.{i}'] for i in (0, 1))):
                    f = tools.dot(l, x) * tools.dot(r, x) * (degree == 2) / 2
                    for i, j in itertools.product(range(len(x)), repeat=2):
                        m[i][j] += f * (l[i] * r[j] + r[i] * l[j])
            shift = max(sum(map(abs, row)) for row in m)  # no eigenvalue is larger in size
            v, before = x, [0.0] * len(x)
            while math.dist(v, before) > 1e-9:
                before = v
                v = [a + shift * b for a, b in zip(tools.product(m, v), v)]
                size = math.sqrt(tools.dot(v, v))
                v = [a / size for a in v]
            strength = math.sqrt(2 * tools.dot(v, tools.product(m, v)) * len(x))
            self.assertGreater(tools.dot(v, x), 0)
            kept = vlm.kept(weights, settings, x)
            off = [a / math.sqrt(tools.dot(kept, kept)) - b for a, b in zip(kept, v)]
            self.assertLess(tools.dot(off, off), 1e-3)
            self.assertGreater(strength, 0)

    def test_negative(self):
        """An eigenvalue that is larger, but negative, is not taken for the largest."""
        settings = tiny(tokens=[2], width=1)
        # (l.x)(r.x) (l r^T + r l^T) / 2 = 0.4375 diag(1, -2.25)
        weights = {'eye0.0': [[1.0, 1.5, 0, 0]], 'eye0.1': [[1.0, -1.5, 0, 0]]}
        weights['gram'] = vlm.gram(weights, settings)
        kept = vlm.kept(weights, settings, [1.0, 0.5, 0.0, 0.0])
        self.assertGreater(kept[0], 10 * abs(kept[1]))

    def test_small_steps(self):
        """However large the weights and the image: |w|^4 is at most A.A, for A made in full."""
        settings = tiny(tokens=[2, 2])
        for seed, scale in itertools.product(range(20), (0.01, 1.0, 1000.0)):
            weights = vlm.matrices(settings, [scale * v for v in random_numbers(settings, seed)])
            x = [scale * v for v in gauss(4, seed)]
            left, right = [vlm.patterns(weights, settings, factor) for factor in (0, 1)]
            f = [tools.dot(l, x) * tools.dot(r, x) for l, r in zip(left, right)]
            table = [sum(v * l[i] * r[j] for v, l, r in zip(f, left, right))
                     for i, j in itertools.product(range(4), repeat=2)]
            kept = vlm.kept(weights, settings, x)
            self.assertLess(tools.dot(kept, kept) ** 2, 1.001 * tools.dot(table, table))

    def test_patches_and_degrees(self):
        """Each patch by itself; nothing where no token has degree 2; all zero for a black image."""
        settings = tiny(size=4, patches=2, tokens=[2, 3])
        weights = vlm.matrices(settings, random_numbers(settings))
        x = gauss(16, 3)
        whole = vlm.kept(weights, settings, x)
        self.assertEqual(whole[4:8], vlm.kept(weights, tiny(tokens=[2, 3]), x[4:8]))
        self.assertEqual(set(map(abs, vlm.kept(weights, settings, [0.0] * 16))), {0.0})
        settings = tiny(tokens=[1, 3])
        self.assertEqual(vlm.kept(vlm.matrices(settings, random_numbers(settings)),
                                  settings, gauss(4, 1)), [])

class Gradient(tools.Case):
    """Down to the pixels."""
    def test_pixels(self):
        """By the pixels, against finite differences: every degree, patches, two layers."""
        for changes in ({'tokens': [1]}, {'tokens': [2]}, {'tokens': [3]}, {'tokens': [2, 4]},
                        {'tokens': [1, 2, 3, 4]}, {'size': 4, 'patches': 2, 'tokens': [2, 3]},
                        {'pieces': 1}, {'layers': 1, 'heads': 2, 'pieces': 1}):
            with self.subTest(changes):
                settings = tiny(**changes)
                numbers = random_numbers(settings)
                weights = vlm.matrices(settings, list(map(vlm.Value, numbers)))
                pixels = list(map(vlm.Value, gauss(settings.size ** 2, 4)))
                vlm.joint_loss(weights, settings, pixels, '<cab>').backward()
                plain = tools.matrices(settings, numbers)
                def loss(x):
                    return tools.loss('joint', plain, settings, x, '<cab>')
                self.assertNear([pixel.grad for pixel in pixels],
                                tools.slopes(loss, [pixel.data for pixel in pixels]), 1e-5)

def drawings(weights, settings, text_starts):
    """pairs (text, image to start from) -> draw()'s images for each, by two processes"""
    with vlm.processes(2) as share_out:
        return share_out(functools.partial(drawing, weights, settings), text_starts)

def drawing(weights, settings, text_start):
    """a text, an image to start from -> draw()'s images"""
    return vlm.draw(weights, settings, *text_start)

class Drawings(Case):
    """An image that learns."""
    def test_draw(self):
        """From the start given, each image with pixels from 0 on, of mean square 1; the name gets
        more probable; the same again gives the same."""
        weights, settings = loaded(SHIPPED[8])
        start = vlm.prepare(settings, vlm.read_digits(DATA, 'optdigits-test', 8)[4][0])
        orders = [('<nine>', [1.0] * 64), ('<nine>', start)]
        found = drawings(weights, settings, orders * 2)
        self.assertEqual(found[:2], found[2:])
        for (_, x), images in zip(orders, found):
            self.assertEqual((images[0], len(images)), (x, vlm.STEPS + 1))
            for image in images:
                self.assertGreaterEqual(min(image), 0.0)
                self.assertAlmostEqual(tools.dot(image, image) / 64, 1.0, delta=1e-4)
            self.assertEqual(asked(weights, settings, images[-1])['name'], 'nine')
            self.assertGreater(asked(weights, settings, images[-1])['probability'], 0.5)

    def test_another_model_reads(self):
        """Of the ten drawings of one model, another of other size and tokens reads eight at least."""
        (weights, settings), (others, its_settings) = loaded(SHIPPED[8]), loaded(SHIPPED[14])
        right = 0
        names = vlm.ANSWERS['name']
        found = drawings(weights, settings, [(f'<{name}>', [1.0] * 64) for name in names])
        for name, (*_, x) in zip(names, found):
            ink = enlarged(vlm.split(vlm.greys(settings, x, max(x)), 8), 35)
            x = vlm.prepare(its_settings, vlm.centre(ink))
            right += asked(others, its_settings, x)['name'] == name
        self.assertGreaterEqual(right, 8)

    def test_command(self):
        """--draw without any data: pictures and readings; wrong names get one line."""
        weights = ['--load', DATA / 'weights-8.json']
        self.patch(vlm, load_digits=None, STEPS=10)
        out = self.accepted('seven: seven . ', *weights, '--draw', 'seven,two')
        again = self.accepted('two: ', *weights, '--draw', 'seven', 'two')
        self.assertEqual(again.split('\n')[2:], out.split('\n')[2:])
        self.assertNotIn('accuracy', out)
        self.assertEqual(len(re.findall(r'\d%', out)), 2)
        self.patch(vlm, STEPS=1)  # now whatever is read in them will do
        out = self.accepted('nine: ', *weights, '--draw', 'all', encoding='ascii')
        self.assertEqual(len(re.findall(r'\w+: \w+ [+x] ', out)), 10)
        for names in '', 'ten', 'seven,', 'Seven', 'all,seven':
            with self.subTest(names):
                self.refused(2, 'draw', *weights, '--draw', names)

    def test_report_too(self):
        """With --test, there is a report as well."""
        data = write(self.folder / 'images', digits(13, 25))
        self.patch(vlm, STEPS=1)
        out = self.accepted('accuracy: ', '--data', data, '--load', DATA / 'weights-8.json',
                            '--draw', 'one', '--test', 3)
        self.assertIn('one: ', out)

class Centre(Case):
    """Drawings of any size and place are brought into MNIST's form."""
    def test_by_hand(self):
        """A bar, ten pixels long and one wide: 20 long, two wide, around the middle of pixel 14."""
        ink = [0] * 900
        for y in range(3, 13):
            ink[30 * y + 7] = 200
        rows = vlm.split(vlm.centre(ink), 28)
        for y, row in enumerate(rows):
            for x, v in enumerate(row):
                self.assertAlmostEqual(v, 200 if 4 <= y < 24 and 14 <= x < 16 else 0, places=9)

    def test_faint(self):
        """What is not above a fifth of the darkest is no ink for the box; nothing stays nothing."""
        ink = [40] * 100
        ink[55] = 201
        self.assertAlmostEqual(sum(vlm.centre(ink)), 201 * 400, places=6)
        self.assertEqual(set(vlm.centre(bytes(64))), {0.0})

    @unittest.skipUnless(vlm.find(MNIST, 't10k-images-idx3-ubyte'), 'there is no MNIST')
    def test_names_stay(self):
        """Real images with thicker lines, on papers of 280x280, every second one at half the size
        and off the middle, keep 97 % of their names."""
        images = [pixels for pixels, _ in vlm.read_digits(MNIST, 't10k', 28)[:200]]
        drawings = [(half_paper if i % 2 else whole_paper)(thicker(pixels))
                    for i, pixels in enumerate(images)]
        for size, file in SHIPPED.items():
            weights, settings = loaded(file)
            settings.questions = ['name']
            with self.subTest(size), vlm.processes(2) as share_out:
                names = [asked(weights, settings, vlm.prepare(settings, x))['name'] for x in images]
                again = share_out(functools.partial(name_of_drawing, weights, settings), drawings)
                self.assertGreaterEqual(sum(map(str.__eq__, names, again)), 0.97 * len(names))

class Home(Case):
    """Where the page, the weights and MNIST are looked for."""
    def test_home(self):
        """Beside vlm.py, or, where there is no data/ beside it, in the current folder."""
        elsewhere = self.folder / 'elsewhere'
        elsewhere.mkdir()
        self.patch(vlm, __file__=str(elsewhere / 'vlm.py'))
        self.assertEqual(vlm.data_folder(), self.folder / 'data')
        (elsewhere / 'data').mkdir()
        self.assertEqual(vlm.data_folder(), elsewhere / 'data')

    def test_weights(self):
        """What --load names is in the current folder, or else where data/ is."""
        elsewhere, file = self.folder / 'elsewhere', Path('data', 'weights.json')
        (elsewhere / 'data').mkdir(parents=True)
        self.patch(vlm, __file__=str(elsewhere / 'vlm.py'))
        settings = vlm.complete({'width': 2, 'tokens': [1], 'pieces': 1})
        count = sum(map(math.prod, vlm.shapes(settings).values()))
        for folder, number in (elsewhere, 1.0), (self.folder, 2.0):
            (folder / 'data').mkdir(exist_ok=True)
            vlm.save(folder / file, settings, [number] * count)
            self.assertEqual(vlm.load(file)[1], [number] * count)

    def test_nothing_is_made(self):
        """Without a network, no data/ appears."""
        self.refused(1, re.escape(str(self.folder / 'data')), '--size', 14, '--steps', 1)
        self.assertFalse((self.folder / 'data').exists())
