"""Data: IDX files, the download, the bundled digits. Its functions serve test_cli.py too."""
import ast, contextlib, gc, gzip, hashlib, http.server, io, itertools, os, random, re, shutil, socket
import struct, subprocess, sys, tempfile, threading, unittest
from pathlib import Path
from unittest import mock

import vlm

PROGRAM = Path(vlm.__file__).resolve()
LAST_LINES = compile(ast.Module(ast.parse(PROGRAM.read_text('utf-8')).body[-1].body, []),
                     str(PROGRAM), 'exec')  # what `if __name__ == '__main__'` guards
TINY = '--width 4 --tokens 2 --steps 1 --batch 1 --test 2 --jobs 1'.split()
NOTICES = 'usage:', ' ', 'step ', 'tested ', 'downloading ', '\r'

def run(*argv, encoding='utf-8', tty=False):
    """Run the program in this process -> its exit status, standard output, standard error."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, newline='\n', write_through=True)
                for _ in range(2))
    err.isatty = lambda: tty
    status = 0
    with mock.patch.object(sys, 'argv', ['vlm.py', *map(str, argv)]), \
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), \
            mock.patch('os._exit', sys.exit):  # or these tests would end, too
        try:
            exec(LAST_LINES, vars(vlm))
        except SystemExit as end:
            status = end.code or 0
        finally:
            gc.enable()
            vlm.Value.tape.clear()
    if isinstance(status, str):  # as the interpreter does
        print(status, file=err)
        status = 1
    return status, *(stream.buffer.getvalue().decode(encoding) for stream in (out, err))

def idx(magic, count, *sides, content):
    """The bytes of an IDX file."""
    return struct.pack(f'>{2 + len(sides)}I', magic, count, *sides) + bytes(content)

def digits(train=13, test=3, side=28, prefixes=('train', 't10k')):
    """Four small IDX files of random images: name -> bytes; image i has the label i % 10."""
    rng, files = random.Random(0), {}
    for prefix, count in zip(prefixes, (train, test)):
        pixels = [rng.randrange(256) for _ in range(count * side * side)]
        labels = [i % 10 for i in range(count)]
        files[f'{prefix}-images-idx3-ubyte'] = idx(2051, count, side, side, content=pixels)
        files[f'{prefix}-labels-idx1-ubyte'] = idx(2049, count, content=labels)
    return files

def write(folder, files):
    """Write these files into a folder, made if need be -> the folder"""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder

class Case(unittest.TestCase):
    """A temporary folder, as if vlm.py lay there; mirrors that refuse every connection."""
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name).resolve()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)  # where there is no data/
        reserved = socket.socket()  # bound, so that nobody else takes the port, but not listening
        self.addCleanup(reserved.close)
        reserved.bind(('127.0.0.1', 0))
        self.closed = f'http://127.0.0.1:{reserved.getsockname()[1]}/'
        self.patch(vlm, MIRRORS=[self.closed], __file__=str(self.folder / 'vlm.py'))
        proxies = mock.patch.dict(os.environ, no_proxy='*', NO_PROXY='*')
        proxies.start()
        self.addCleanup(proxies.stop)

    def patch(self, target, **attributes):
        """Replace attributes until the test ends."""
        patcher = mock.patch.multiple(target, **attributes)
        patcher.start()
        self.addCleanup(patcher.stop)

    def contents(self):
        """What is in the temporary folder: path -> bytes, or the kind of what is no file"""
        return {str(path.relative_to(self.folder)):
                os.readlink(path) if path.is_symlink() else
                path.read_bytes() if path.is_file() else path.stat().st_mode
                for path in self.folder.rglob('*')}

    def refused(self, status, words, *argv, **options):
        """The run ends with this status and one line that has these words, and changes no file."""
        before = self.contents()
        code, out, err = run(*argv, **options)
        lines = [line for line in re.split('[\r\n]', err) if line and not line.startswith(NOTICES)]
        self.assertEqual((code, len(lines)), (status, 1), err)
        words = words.replace('/', r'[/\\]+')  # Windows writes \, and \\ in a repr
        self.assertRegex(lines[0], f'^vlm.py: .*{words}')
        self.assertNotIn('test accuracy', out)
        self.assertEqual(self.contents(), before)

    def accepted(self, words, *argv, **options):
        """The run ends well, with a report that has these words -> standard output"""
        status, out, err = run(*argv, **options)
        self.assertEqual(status, 0, err)
        self.assertRegex(out, words)
        return out

class Folders(Case):
    """IDX files in a folder."""
    def test_own_data(self):
        """Any number of images will do, raw or gzipped, even in parts; raw comes first."""
        for train, test in (1, 1), (2, 5), (30, 1):
            with self.subTest(train=train, test=test):
                data = write(self.folder / f'{train}', digits(train, test))
                self.accepted(rf'\d/{test} = ', '--data', data, *TINY, '--test', 10 ** 9)
        zipped = {f'{name}.gz': gzip.compress(content) for name, content in digits(5).items()}
        self.accepted(r'\d/2 = ', '--data', write(self.folder / 'gz', zipped), *TINY)
        both = write(self.folder / '1', dict.fromkeys(zipped, b'nonsense'))
        self.accepted(r'\d/1 = ', '--data', both, *TINY)
        mixed = write(self.folder / 'gz', dict.fromkeys(digits(), b'nonsense'))
        self.refused(1, 'train-images-idx3-ubyte ', '--data', mixed, *TINY)
        parts = {f'{name}.gz': gzip.compress(content[:99]) + gzip.compress(content[99:])
                 for name, content in digits(5).items()}
        self.accepted(r'\d/2 = ', '--data', write(self.folder / 'parts', parts), *TINY)

    def test_damaged(self):
        """Whatever is wrong with an IDX file, one line says which file it is."""
        images, labels = 'train-images-idx3-ubyte', 't10k-labels-idx1-ubyte'
        good = digits()
        flipped = bytearray(gzip.compress(good[images]))
        flipped[len(flipped) // 2] ^= 255
        pixels, size = good[images][16:], (28, 28)
        cases = [
            ('truncated', images, good[images][:-1]), ('too long', images, good[images] + b'\0'),
            ('truncated labels', labels, good[labels][:-1]), ('labels only', labels, b'\0\1\2'),
            ('half a header', images, good[images][:10]),
            ('header only', images, good[images][:16]),
            ('empty', images, b''), ('empty labels', labels, b''),
            ('magic of labels', images, idx(2049, 13, *size, content=pixels)),
            ('magic of images', labels, idx(2051, 3, content=range(3))),
            ('count too high', images, idx(2051, 14, *size, content=pixels)),
            ('count too low', images, idx(2051, 12, *size, content=pixels)),
            ('huge count', images, idx(2051, 2 ** 32 - 1, *size, content=pixels)),
            ('image size', images, idx(2051, 52, 14, 14, content=pixels)),
            ('oblong', images, idx(2051, 13, 14, 56, content=pixels)),
            ('no images', images, idx(2051, 0, *size, content=b'')),
            ('no labels', labels, idx(2049, 0, content=b'')),
            ('fewer labels', labels, idx(2049, 2, content=range(2))),
            ('more labels', labels, idx(2049, 4, content=range(4))),
            ('label 10', labels, idx(2049, 3, content=[0, 10, 1])),
            ('not gzip', f'{images}.gz', b'not gzip'), ('empty gzip', f'{images}.gz', b''),
            ('only magic of gzip', f'{images}.gz', b'\x1f\x8b'),
            ('truncated gzip', f'{images}.gz', gzip.compress(good[images])[:-20]),
            ('no checksum', f'{images}.gz', gzip.compress(good[images])[:-8]),
            ('corrupt gzip', f'{images}.gz', bytes(flipped)),
        ]
        for number, (what, name, content) in enumerate(cases):
            with self.subTest(what):
                files = {**good, name: content}
                if name.endswith('.gz'):
                    del files[images]
                data = write(self.folder / f'{number}', files)
                words = f'{name} is damaged, or not an IDX file of ' + (
                    'labels' if name == labels else '.*28')
                if what in ('fewer labels', 'more labels', 'label 10'):
                    words = 't10k labels'  # which by themselves could be right
                self.refused(1, words, '--data', data, *TINY)
        (self.folder / '0' / images).unlink()
        (self.folder / '0' / images).mkdir()
        self.refused(1, images, '--data', self.folder / '0', *TINY)

    def test_not_a_folder(self):
        """--data must name a folder that exists."""
        (self.folder / 'file').write_bytes(b'')
        for name in 'missing', 'file', 'file/below', 'n' * 300:
            with self.subTest(name):
                self.refused(1, name, '--data', self.folder / name)
        self.refused(1, 'data', '--data', '')

    def test_order(self):
        """Each image once, shuffled by the seed, then all over again; every other text is cut after
        two letters."""
        self.patch(vlm, prepare=lambda settings, pixels: pixels)
        given = [(i, i % 10) for i in range(25)]
        first, second, other = ([*itertools.islice(vlm.examples(vlm.complete({'seed': seed}),
                                                                given), 50)] for seed in (1, 1, 2))
        for start in 0, 25:
            part = first[start:start + 25]
            self.assertEqual(sorted(image for image, _ in part), list(range(25)))
            for i, (image, text) in enumerate(part, start):
                whole = f"<{vlm.ANSWERS['name'][image % 10]}>"
                self.assertEqual(text, whole[:3] if i % 2 else whole)
        self.assertEqual(given, [(i, i % 10) for i in range(25)])
        self.assertEqual(first, second)
        for again in first[25:], other[:25]:
            self.assertNotEqual(first[:25], again)

    def test_few(self):
        """With fewer images than questions, each is asked in the end, in full and cut."""
        settings = vlm.complete({'questions': ['name', 'parity', 'german']})
        self.patch(vlm, prepare=lambda settings, pixels: pixels)
        for few in 1, 2, 3, 4:
            asked = itertools.islice(vlm.examples(settings, [(0, 7)] * few), 24)
            self.assertEqual(sorted({text for _, text in asked}),
                             ['%od', '%odd>', '<se', '<seven>', 'Dsi', 'Dsieben>'])

    def test_distort(self):
        """Each time an image comes, it is another; by less than so many pixels; the same from the
        same seed."""
        seen = []
        self.patch(vlm, distort=lambda pixels, moves: seen.append(moves) or (pixels, *moves))
        given = [(i, i % 10) for i in range(11)]
        settings = vlm.complete({'distort': 1.5})
        first, again = ([*itertools.islice(vlm.examples(settings, given), 300)] for _ in range(2))
        self.assertEqual(first, again)
        self.assertEqual(len({image for image, _ in first}), 300)
        for column in zip(*seen):
            self.assertLess(max(map(abs, column)), 1.5)
            self.assertGreater(max(column) - min(column), 2.8)
        self.assertEqual(sorted(image for (image, *_), _ in first[:11]), list(range(11)))

    def test_bundled(self):
        """Without network, size 8 and no --data: the bundled digits; nothing else falls back."""
        bundled = digits(7, 4, 8, ('optdigits-train', 'optdigits-test'))
        home = write(self.folder / 'data', bundled)
        empty = write(self.folder / 'empty', {})
        status, out, err = run(*TINY)
        self.assertEqual(status, 0, err)
        self.assertRegex(err, r'^MNIST cannot be downloaded, so the bundled digits are used\n')
        self.assertRegex(out, '^[0-9]+ parameters, 7 training images, 4 test images\n')
        for argv in ['--size', 14], ['--data', empty], ['--data', home]:
            with self.subTest(argv):
                self.refused(1, 'MNIST cannot be downloaded.* put ', *TINY, *argv)
        for name in bundled:
            with self.subTest('lacks ' + name):
                write(home, bundled)
                (home / name).unlink()
                self.refused(1, 'data', *TINY)
        vlm.__file__ = str(PROGRAM)
        bundled = lambda folder, name, find=vlm.find: 'optdigits' in name and find(folder, name)
        self.patch(vlm, find=bundled, download=lambda *_: False)
        with contextlib.redirect_stderr(io.StringIO()):
            train, test = vlm.load_digits(None, 8)
        self.assertEqual((len(train), len(test)), (1373, 300))
        self.assertEqual(train, vlm.read_digits(vlm.data_folder(), 'optdigits-train', 8)[:1373])

    def test_alone(self):
        """vlm.py by itself, without network: one line, and no folder that nobody asked for."""
        shutil.copy(PROGRAM, self.folder / 'vlm.py')
        driver = f'import sys, vlm; vlm.MIRRORS = {[self.closed]}; vlm.main(sys.argv[1:])'
        for argv in [], ['--size', '14'], ['--size', '8', '--steps', '0']:
            with self.subTest(argv):
                done = subprocess.run([sys.executable, '-B', '-c', driver, *argv], cwd=self.folder,
                                      capture_output=True, text=True, timeout=120)
                self.assertEqual((done.returncode, done.stdout), (1, ''), done.stderr)
                self.assertRegex(done.stderr, r'^vlm.py: MNIST cannot be downloaded.* put .*\n\Z')
                self.assertEqual(list(self.contents()), ['vlm.py'])

class Mirror(http.server.BaseHTTPRequestHandler):
    """/good/NAME.gz answers with that file; any other folder is named for what is wrong there."""
    def do_GET(self):
        kind, name = self.path[1:].split('/')
        good = self.server.files[name]
        body = {'wrong': gzip.compress(b'another'), 'corrupt': good[:30] + b'???' + good[33:],
                'html': b'<html>Log in to this network</html>', 'empty': b''}.get(kind, good)
        if kind == 'silent':
            self.server.over.wait(60)
        elif kind == 'missing':
            self.send_error(404)
        elif kind == 'garbage':
            self.wfile.write(b'\0' * 100)
        else:
            self.send_response(200)
            if kind == 'cut':
                self.send_header('Transfer-Encoding', 'chunked')
                body = b'ffff\r\n' + body[:20]
            else:
                self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body[:len(body) // 2] if kind == 'truncated' else body)

    def log_message(self, *_):
        """Nothing: standard error is for the tests."""

class Downloads(Case):
    """Downloads from a server on loopback."""
    def setUp(self):
        super().setUp()
        files = digits()
        self.zipped = {f'{name}.gz': gzip.compress(content) for name, content in files.items()}
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Mirror)
        server.files, server.over = self.zipped, threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for stop in server.server_close, server.shutdown, server.over.set:
            self.addCleanup(stop)
        self.url = f'http://127.0.0.1:{server.server_address[1]}'
        self.patch(vlm, MNIST={name: hashlib.sha256(content).hexdigest()
                               for name, content in files.items()})
        self.home = self.folder / 'data'

    def mirrors(self, *kinds):
        """Make these the mirrors."""
        vlm.MIRRORS = [self.closed if kind == 'closed' else f'{self.url}/{kind}/' for kind in kinds]

    def test_good(self):
        """The first mirror with the right content serves; a later run needs none."""
        vlm.TIMEOUT, timeout = 0.5, vlm.TIMEOUT
        self.addCleanup(setattr, vlm, 'TIMEOUT', timeout)
        for kind in ('good', 'closed', 'missing', 'truncated', 'corrupt', 'wrong', 'cut', 'html',
                     'empty', 'garbage', 'silent'):
            with self.subTest(kind):
                for path in list(self.home.glob('*'))[:1 if kind == 'silent' else 4]:
                    path.unlink()  # one file is enough to wait for
                self.mirrors(kind, 'good')
                self.accepted(r'\d/2 = ', *TINY)
                got = {path.name: path.read_bytes() for path in self.home.iterdir()}
                self.assertEqual(got, self.zipped)
        self.mirrors('closed')
        self.accepted(r'\d/2 = ', *TINY)

    def test_only_missing(self):
        """Files that are there stay as they are; only the others are downloaded."""
        own = {name: content for name, content in digits(5).items() if name.startswith('train')}
        write(self.home, own)
        self.mirrors('good')
        self.accepted(r'\d/2 = ', '--data', self.home, *TINY)
        tests = {name: content for name, content in self.zipped.items() if name.startswith('t10k')}
        self.assertEqual({path.name: path.read_bytes() for path in self.home.iterdir()},
                         {**own, **tests})

    def test_bad(self):
        """Where no mirror has it right, one line says so and nothing is left behind."""
        for kinds, words in [(('corrupt', 'truncated'), 'wrong content'),
                             (('html',), 'wrong content'),
                             (('wrong', 'missing'), 'wrong content'), (('empty',), 'wrong content'),
                             (('missing', 'closed'), 'cannot be downloaded'),
                             (('garbage',), 'cannot be downloaded'),
                             (('cut',), '(cannot be downloaded|wrong content)')]:
            with self.subTest(kinds):
                self.mirrors(*kinds)
                self.refused(1, words, *TINY)
                if words == 'wrong content':  # nor do other digits take its place
                    write(self.home, digits(7, 4, 8, ('optdigits-train', 'optdigits-test')))
                    self.refused(1, words, *TINY)
                    shutil.rmtree(self.home)

    def test_interrupted(self):
        """Ctrl-C ends a download with status 130; a full disk with one line; no file is left."""
        write(self.home, {})
        self.mirrors('good')
        full = OSError(28, 'No space left on device')
        for target, name in (vlm, 'progress'), (os, 'replace'), (Path, 'write_bytes'):
            with self.subTest(name), mock.patch.object(target, name, side_effect=KeyboardInterrupt):
                status, _, err = run()
                self.assertEqual((status, 'Traceback' in err), (130, False))
            self.assertEqual(list(self.home.iterdir()), [])
        for target, name in (os, 'replace'), (Path, 'write_bytes'):
            with self.subTest(name), mock.patch.object(target, name, side_effect=full):
                self.refused(1, 'No space left')

    def test_not_writable(self):
        """A data/ that is a file, or a folder that vanished, is one line."""
        self.mirrors('good')
        self.home.write_bytes(b'not a folder')
        self.refused(1, 'data', *TINY)
        self.home.unlink()
        denied = PermissionError(13, 'Permission denied')
        with mock.patch.object(Path, 'mkdir', side_effect=denied):
            self.refused(1, 'Permission denied', *TINY)

# In full, as each test has a current folder of its own.
MNIST = Path(os.environ.get('VLM_MNIST') or PROGRAM.parent / 'data').resolve()

@unittest.skipUnless(all(vlm.find(MNIST, name) for name in vlm.MNIST), f'no MNIST in {MNIST}')
class RealMNIST(Case):
    """MNIST itself, where it is at hand."""
    def test_mnist(self):
        """All of it loads, and both sizes learn from it."""
        train, test = vlm.load_digits(MNIST, 8)
        self.assertEqual((len(train), len(test)), (55000, 10000))
        self.assertEqual([digit for _, digit in train[:3] + test[:3]], [5, 0, 4, 7, 2, 1])
        for size in 8, 14:
            self.accepted(r'\d+/20 = ', '--data', MNIST, '--size', size,
                          *'--steps 20 --batch 1 --test 20 --jobs 1'.split())
