"""The page: reading and drawing over HTTP, bad requests, Ctrl-C; the page in a real browser."""
import contextlib, functools, http.client, importlib.util, io, itertools, json, math, os, platform
import random, select, shutil, signal, socket, struct, subprocess, sys, tempfile, threading, time
import unittest, zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import vlm
from tests import tools
from tests.test_data import PROGRAM, TINY, digits, write
from tests.tools import asked

PAGE = PROGRAM.parent / 'data' / 'page.html'
QUICK = '--steps 0 --width 4 --tokens 2'.split()
PATIENCE = 120  # seconds: far more than anything here takes
RESET = struct.pack('hh' if os.name == 'nt' else 'ii', 1, 0)  # SO_LINGER: close() is a reset

def scribble(seed, side=28):
    """A random drawing of three strokes [side * side], as bytes; the rim stays empty"""
    rng, ink, pen = random.Random(seed), bytearray(side * side), max(side // 12, 1)
    points = [[rng.uniform(0.2, 0.75) * side for _ in 'xy'] for _ in range(4)]
    for (x, y), (to_x, to_y) in zip(points, points[1:]):
        for part in range(2 * side + 1):
            left, top = (int(a + (b - a) * part / 2 / side) for a, b in ((x, to_x), (y, to_y)))
            for row in range(top, top + pen):
                ink[row * side + left:row * side + left + pen] = b'\xff' * pen
    return bytes(ink)

def png(side, ink):
    """The bytes of a PNG: ink [side * side], dark on white paper"""
    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)
    rows = b''.join(b'\0' + bytes(255 - v for v in row) for row in vlm.split(ink, side))
    header = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows))
            + chunk(b'IEND', b''))

def strict(content):
    """JSON -> what it says; NaN and Infinity are no JSON, whatever Python thinks"""
    def refuse(name):
        raise ValueError(f'{name} is no JSON')
    return json.loads(content, parse_constant=refuse)

def until(condition):
    """Wait until this is true -> its result"""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError('waited in vain')

class Server:
    """The program in a process of its own that serves the page; `said` is what it printed first."""
    def __init__(self, folder, *argv, program=PROGRAM, page=0):
        self.log = Path(folder) / f'log{next(NUMBERS)}'
        closed = dict.fromkeys('http_proxy https_proxy HTTP_PROXY HTTPS_PROXY'.split(),
                               'http://127.0.0.1:9')  # nothing is to be fetched
        options = {} if os.name == 'nt' else {
            'preexec_fn': lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        with open(self.log, 'wb') as log:
            self.process = subprocess.Popen(
                [sys.executable, '-B', *map(str, [program, *argv, '--page']),
                 *([] if page is None else [str(page)])], cwd=folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **closed}, **options)
        try:
            self.said = until(self.address)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.port = int(self.said.rpartition('http://127.0.0.1:')[2].partition('/')[0])

    def address(self):
        """-> what it has printed, once the address is there"""
        text = self.printed()
        if self.process.poll() is not None:
            raise AssertionError(f'ended with {self.process.returncode}: {text}')
        return '/ until Ctrl-C' in text and text.endswith('\n') and text

    def printed(self):
        """-> all that it printed, on standard output and standard error"""
        return self.log.read_text('utf-8')

    def end(self):
        """End it as Ctrl-C does: with status 0 and without a word."""
        if os.name == 'nt':  # which cannot send that to one process
            self.process.kill()
            self.process.wait()
        elif self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(PATIENCE)
        if self.process.returncode and os.name != 'nt' or self.printed() != self.said:
            raise AssertionError(f'ended with {self.process.returncode}: {self.printed()}')

    def connect(self, content=b''):
        """-> a socket that has sent this"""
        client = socket.create_connection(('127.0.0.1', self.port), PATIENCE)
        client.sendall(content)
        return client

    def request(self, method, path, body=b'', **headers):
        """-> the bytes of a request; a header that is None is left out"""
        headers = {'Host': f'127.0.0.1:{self.port}', 'Content-Length': len(body),
                   **{name.replace('_', '-'): value for name, value in headers.items()}}
        lines = [f'{method} {path} HTTP/1.1', *(f'{name}: {value}' for name, value
                                                in headers.items() if value is not None)]
        return '\r\n'.join([*lines, '', '']).encode() + body

    def halves(self):
        """-> beginnings of requests"""
        whole = self.request('POST', '/read', scribble(1, 8))
        order = self.request('POST', '/draw', b'{"name": "one"}')
        return [b'', b'PO', whole[:20], whole[:-66], whole[:-64], whole[:-1], order[:-15],
                order[:-1]]

    def exchange(self, content, end=False):
        """Send bytes, perhaps that there are no more -> status and body of the answer"""
        with self.connect(content) as client:
            if end:
                client.shutdown(socket.SHUT_WR)
            answer = b''.join(iter(lambda: client.recv(65536), b''))
        head, _, body = answer.partition(b'\r\n\r\n')
        return int(head.split()[1]), body

    def ask(self, method, path, body=None):
        """A request as a browser makes it -> status, headers, body"""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, {'Origin': f'http://127.0.0.1:{self.port}'})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def post(self, path, body):
        """A good request -> what the JSON says"""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, headers, content = self.ask('POST', path, body)
        if (status, headers.get_content_type()) != (200, 'application/json'):
            raise AssertionError(f'{status}: {content[:200]}')
        return strict(content)

    read = functools.partialmethod(post, '/read')
    draw = functools.partialmethod(post, '/draw')

NUMBERS = itertools.count()

class Case(unittest.TestCase):
    """One server for all tests of a class; it prints its first lines and nothing else, ever."""
    argv = QUICK

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name).resolve()
        cls.server = cls.begin()

    @classmethod
    def begin(cls):
        """-> the server"""
        server = Server(cls.folder, *cls.argv)
        cls.addClassCleanup(server.end)
        return server

    def tearDown(self):
        self.assertIsNone(self.server.process.poll())
        self.assertEqual(self.server.printed(), self.server.said)

    def pixels(self, image, size):
        """These are size * size numbers from 0 to 1 with three digits."""
        self.assertEqual(len(image), size * size)
        for v in image:
            self.assertTrue(type(v) is float and 0 <= v <= 1 and round(v, 3) == v, v)

class Answers(Case):
    """Good requests, to a model whose weights are random, but for no matrix zeros."""
    @classmethod
    def begin(cls):
        cls.settings, file = vlm.complete({'width': 4, 'tokens': [2], 'layers': 2, 'heads': 2}
                                          ), cls.folder / 'weights.json'
        rng, count = random.Random(3), sum(map(math.prod, vlm.shapes(cls.settings).values()))
        numbers = [rng.gauss(0, 0.5) for _ in range(count)]
        vlm.save(file, cls.settings, numbers)
        cls.weights, cls.argv = vlm.matrices(cls.settings, numbers), ['--load', file]
        cls.plain = tools.matrices(cls.settings, numbers)  # for the model in tools
        return super().begin()

    def right(self, ink):
        """What the model says of a drawing, asked in this process"""
        x = vlm.prepare(self.settings, vlm.centre(ink))
        return asked(self.weights, self.settings, x)

    def looks(self, ink, name):
        """How much the model looks at a drawing before each letter: the mean over layers, heads"""
        x = vlm.prepare(self.settings, vlm.centre(ink))
        tokens = [tools.look(self.plain, self.settings, x)]
        _, shares = tools.spell(self.plain, self.settings, tokens, vlm.BOS + name[:-1])
        vision = len(tokens[0])
        for place in range(len(name)):
            heads = [head for layer in shares for head in layer[vision + place]]
            yield sum(sum(head[:vision]) for head in heads) / len(heads)

    def test_page(self):
        """The page comes as it is in the file, with a policy that lets nothing in from outside."""
        for path in '/', '/?', '/?a=b&c':
            with self.subTest(path):
                status, headers, content = self.server.ask('GET', path)
                self.assertEqual((status, headers.get_content_type()), (200, 'text/html'))
                self.assertEqual(content, PAGE.read_bytes())
                policy = headers['Content-Security-Policy']
                self.assertIn("default-src 'self'", policy)
                self.assertIn("frame-ancestors 'none'", policy)
                self.assertNotRegex(policy, r"\*|https?:|'unsafe-eval'")
        for host in 'localhost', '127.0.0.1':
            here = f'{host}:{self.server.port}'
            for origin in None, f'http://{here}', f'http://localhost:{self.server.port}':
                with self.subTest(host, origin=origin):
                    request = self.server.request('GET', '/', Host=here, Origin=origin)
                    self.assertEqual(self.server.exchange(request)[0], 200)

    def test_read(self):
        """A drawing of any size -> its name, letters, what is seen and what is kept of it."""
        names = set()
        for seed, side in enumerate([8, 9, 28, 28, 28, 61, 280, 560]):
            with self.subTest(side):
                ink = scribble(seed, side)
                got = self.server.read(ink)
                self.assertGreaterEqual(set(got), {'name', 'probability', 'letters', 'size',
                                                   'seen', 'kept'})
                self.assertEqual({name: got[name] for name in self.right(ink)}, self.right(ink))
                letters, product = got['letters'], 1.0
                self.assertEqual(''.join(letter['letter'] for letter in letters), got['name'])
                for letter in letters:
                    self.assertEqual(set(letter), {'letter', 'probability', 'look'})
                    self.assertTrue(0 < letter['probability'] < 1)
                    product *= letter['probability']
                for letter, look in zip(letters, self.looks(ink, got['name'])):
                    self.assertAlmostEqual(letter['look'], look)
                if len(letters) == self.settings.longest:  # so it never said EOS
                    self.assertAlmostEqual(got['probability'], product)
                else:
                    self.assertLess(got['probability'], product)
                self.assertEqual(got['size'], 8)
                self.pixels(got['seen'], 8)
                self.pixels(got['kept'], 8)
                self.assertEqual(max(got['kept']), 1)
                self.assertGreater(max(got['seen']), 0.2)
                names.add(got['name'])
        self.assertGreater(len(names), 1)

    def test_first_letter(self):
        """A model that says EOS at once: no letters, no name, but a probability."""
        settings = vlm.complete({'width': 1, 'tokens': [1], 'pieces': 1, 'reconstruction': 0.0})
        numbers = {name: [0.0] * math.prod(shape) for name, shape in vlm.shapes(settings).items()}
        end = settings.vocabulary.index(vlm.EOS)
        numbers['mouth.embedding'] = [1.0] * len(settings.vocabulary)
        numbers['mouth.logits'][end] = 5.0
        vlm.save(self.folder / 'end', settings, list(itertools.chain(*numbers.values())))
        server = Server(self.folder, '--load', self.folder / 'end')
        self.addCleanup(server.end)
        got = server.read(scribble(0))
        self.assertEqual((got['name'], got['letters'], got['kept']), ('', [], []))
        self.assertTrue(0.5 < got['probability'] < 1)
        self.assertEqual(server.draw({'name': 'one'})['read'], '')

    def test_place_and_size(self):
        """Where on the paper a drawing is, and how large, makes no difference."""
        ink, side = scribble(5), 28
        rows = vlm.split(ink, side)
        inked = [x for row in rows for x, v in enumerate(row) if v]
        for name, moved in {
                'moved': b''.join([bytes(60 * 31)] + [bytes(30) + row + b'\0\0' for row in rows]),
                'to the left': b''.join(row[min(inked):] + row[:min(inked)] for row in rows),
                'large': b''.join(bytes(v for v in row for _ in range(20))
                                  for row in rows for _ in range(20)),
                'grey': bytes(v // 2 for v in ink)}.items():
            with self.subTest(name):
                if name == 'moved':
                    moved += bytes(3600 - len(moved))
                first, second = self.server.read(ink), self.server.read(moved)
                if name == 'grey':
                    first['seen'] = [v * 127 / 255 for v in first['seen']]
                    first['probability'] = second['probability']
                self.assertEqual(first['name'], second['name'])
                self.assertAlmostEqual(first['probability'], second['probability'])
                for a, b in zip(first['seen'] + first['kept'], second['seen'] + second['kept']):
                    self.assertAlmostEqual(a, b, delta=0.0021)

    def test_empty(self):
        """Empty paper, full paper, a single pixel: all can be read and drawn on."""
        dot = bytearray(784)
        for name, ink in {'empty': bytes(784), 'full': b'\xff' * 784, 'faint': b'\1' * 784,
                          'first': b'\xff' + bytes(783), 'last': bytes(783) + b'\1'}.items():
            with self.subTest(name):
                got = self.server.read(ink)
                self.pixels(got['seen'], 8)
                self.pixels(got['kept'], 8)
                self.assertEqual(any(got['seen']), name != 'empty')
                got = self.server.draw({'name': 'two', 'ink': list(ink)})
                for frame in got['frames']:
                    self.pixels(frame, 8)

    def test_nearly_empty(self):
        """Ink that only a program can send, as faint as numbers can be."""
        for faint in 1e-30, 1e-100, 1e-155, 5e-324:
            with self.subTest(faint):
                got = self.server.draw({'name': 'two', 'ink': [faint, *[0] * 63]})
                for frame in got['frames']:
                    self.pixels(frame, 8)

    def test_draw(self):
        """A name, perhaps with a drawing -> the way there, and the name of what came out."""
        ink = scribble(6, 40)
        for name, start in [('seven', None), ('zero', None), ('nine', list(ink)),
                            ('nine', [v + 0.0 for v in ink])]:
            with self.subTest(name, ink=bool(start)):
                got = self.server.draw({'name': name, **({'ink': start} if start else {})})
                self.assertEqual(set(got), {'size', 'frames', 'read', 'probability'})
                self.assertEqual((got['size'], len(got['frames'])), (8, vlm.STEPS + 1))
                for frame in got['frames']:
                    self.pixels(frame, 8)
                    self.assertEqual(max(frame), 1)
                first, last = got['frames'][0], got['frames'][-1]
                self.assertNotEqual(first, last)
                x = [1.0] * 64
                if start:
                    x = vlm.prepare(self.settings, vlm.centre(ink))
                    seen = self.server.read(ink)['seen']
                    for a, b in zip(first, seen):
                        self.assertAlmostEqual(a, b / max(seen), delta=0.01)
                else:
                    self.assertEqual(first, [1.0] * 64)
                said = asked(self.weights, self.settings,
                             vlm.draw(self.weights, self.settings, f'<{name}>', x)[-1])
                self.assertEqual((got['read'], got['probability']),
                                 (said['name'], said['probability']))

    def test_parallel(self):
        """Twenty readings and two drawings at once: all get their own answer, the right one."""
        inks = [scribble(seed) for seed in range(20)]
        orders = [{'name': 'six'}, {'name': 'six', 'ink': list(inks[0])}]
        alone = [self.server.draw(order) for order in orders]
        self.assertNotEqual(*alone)
        start = threading.Barrier(22)
        def together(task, body):
            start.wait(PATIENCE)
            return task(body)
        with ThreadPoolExecutor(22) as pool:
            drawings = [pool.submit(together, self.server.draw, order) for order in orders]
            got = list(pool.map(functools.partial(together, self.server.read), inks))
            self.assertEqual([drawing.result() for drawing in drawings], alone)
        for ink, answer in zip(inks, got):
            self.assertEqual({name: answer[name] for name in self.right(ink)}, self.right(ink))
        self.assertGreater(len({tuple(answer['seen']) for answer in got}), 15)

class Refusals(Case):
    """Bad requests: one line of JSON says why, and the server goes on."""
    def refused(self, request, least=400, most=499, end=False):
        """The answer to this is an error with such a status."""
        status, body = self.server.exchange(request, end)
        self.assertTrue(least <= status <= most, (status, body[:200]))
        self.error(body)

    def error(self, body):
        """This is an error, as one line of JSON; a good request is answered after it."""
        answer = strict(body)
        self.assertEqual(list(answer), ['error'])
        self.assertTrue(type(answer['error']) is str and answer['error'])
        self.assertNotIn('\n', answer['error'].strip() + body.decode().strip())
        self.assertNotIn('Traceback', answer['error'])
        self.assertEqual(self.server.read(scribble(1, 8))['size'], 8)

    def test_drawings(self):
        """Not a drawing: not square, too small, too large."""
        for length in [0, 1, 4, 49, 63, 65, 128, 783, 785, 560 * 560 - 1, 560 * 560 + 1, 561 * 561,
                       9999999]:
            with self.subTest(length):
                self.refused(self.server.request('POST', '/read', bytes(length)))
                if length < 1000:
                    body = json.dumps({'name': 'one', 'ink': [0] * length}).encode()
                    self.refused(self.server.request('POST', '/draw', body))

    def test_numbers(self):
        """Not a drawing: what is no list, has no numbers, or some that are no grey."""
        for item in ['NaN', 'Infinity', '-Infinity', '1e999', '-1', '-0.01', '256', '255.01',
                     '1' + '0' * 400, '-1' + '0' * 5000, 'true', 'false', 'null', '"1"', '""',
                     '[]', '[1]', '{}', '[' * 500 + ']' * 500]:
            with self.subTest(item[:20]):
                for at in 0, 63:
                    ink = ['0'] * 64
                    ink[at] = item
                    body = '{"name": "one", "ink": [%s]}' % ', '.join(ink)
                    self.refused(self.server.request('POST', '/draw', body.encode()))
        for ink in ['null', '{}', '""', '"%s"' % ('0' * 64), '0', '64', 'true', 'false', '1e999',
                    '{"0": 1}', str([[0] * 8] * 8), str([list(range(8))] * 64)]:
            with self.subTest(ink[:20]):
                body = '{"name": "one", "ink": %s}' % ink
                self.refused(self.server.request('POST', '/draw', body.encode()))

    def test_orders(self):
        """Not an order for a drawing: no JSON, no name."""
        for body in [b'', b'nonsense', b'\0', b'\xff\xfe\xff', b'null', b'1', b'[]', b'"seven"',
                     b'{}', b'{"name"}', b'{"name": "seven"', b"{'name': 'seven'}",
                     b'{"name": "seven"} {}', b'["name", "seven"]', b'{"ink": []}', b'NaN',
                     b'[' * 10 ** 6, b'{"name":' * 10 ** 5, b'[' * 10 ** 5 + b']' * 10 ** 5,
                     b'{"name": "seven", "ink": ' + b'[' * 10 ** 5 + b']' * 10 ** 5 + b'}',
                     b'1' * 10 ** 5, b'"' + b'\\u0000' * 99,
                     *(json.dumps({'name': name}).encode() for name in [
                         'ten', '', 'Seven', ' seven', 'seven>', '<seven>', '7', 'all', 'zero,one',
                         'seven\0', 7, 1.5, None, True, [], ['seven'], {}, {'seven': 7}])]:
            with self.subTest(body[:40]):
                self.refused(self.server.request('POST', '/draw', body))

    def test_who(self):
        """What another site sends through our browser: a name of its own, or an origin."""
        port, good = self.server.port, scribble(1, 8)
        for host in [None, '', 'x', 'localhost', '127.0.0.1', f'127.0.0.1:{port + 1}',
                     f'localhost:{port}0', f'0.0.0.0:{port}', f'example.org:{port}', 'example.org',
                     f'127.0.0.1.example.org:{port}', f'localhost.example.org:{port}',
                     f'[::1]:{port}', f'user@127.0.0.1:{port}', f'127.0.0.1:{port}/']:
            with self.subTest(host=host):
                self.refused(self.server.request('GET', '/', Host=host))
                self.refused(self.server.request('POST', '/read', good, Host=host))
        for origin in ['', 'null', 'http://example.org', f'http://example.org:{port}',
                       'http://127.0.0.1', 'http://localhost', f'http://127.0.0.1:{port + 1}',
                       f'https://127.0.0.1:{port}', f'http://127.0.0.1:{port}.example.org',
                       f'127.0.0.1:{port}', 'file://']:
            with self.subTest(origin=origin):
                for path, body in [('/read', good), ('/draw', b'{"name": "one"}')]:
                    self.refused(self.server.request('POST', path, body, Origin=origin))

    def test_lengths(self):
        """A Content-Length that is missing, no number, negative, huge or not true."""
        good = scribble(1, 8)
        for length in [None, '', 'x', '-1', '-64', '+64', '64.0', '6e1', '0x40', '1_0', '64, 64',
                       '10000000', '99999999999', '9' * 50, '9' * 5000, 'inf', '\u0666\u0664', '0',
                       '1', '63']:
            with self.subTest(length and length[:20]):
                for path, body in [('/read', good), ('/draw', b'{"name": "one"}' + b' ' * 49)]:
                    if length == '63' and path == '/draw':
                        continue  # a space less is none the worse
                    self.refused(self.server.request('POST', path, body, Content_Length=length))
        for length in 65, 784, 9999999:
            with self.subTest(length, sent=64):
                request = self.server.request('POST', '/read', good, Content_Length=length)
                self.refused(request, end=True)
        chunked = self.server.request('POST', '/read', b'40\r\n' + good + b'\r\n0\r\n\r\n',
                                      Content_Length=None, Transfer_Encoding='chunked')
        self.refused(chunked)
        self.refused(self.server.request('POST', '/read', bytes(2 * 10 ** 7)))  # heard to its end

    def test_paths(self):
        """What is not there, and what is not done there."""
        for method, path, status in [
                *(('GET', path, 404) for path in '''/unknown /read/ /page.html /data/page.html
                  /vlm.py /../vlm.py /%2e%2e/vlm.py //etc/passwd /index.html /READ
                  /favicon.ico * read http://example.org/'''.split()),
                *(('POST', path, 404) for path in '/unknown /reading /draw/ /x?/read'.split()),
                *(('GET', path, 405) for path in '/read /draw /read?x'.split()), ('POST', '/', 405),
                *((method, path, 405) for path in ('/', '/read', '/draw')
                  for method in 'PUT DELETE HEAD OPTIONS PATCH TRACE BREW get post'.split())]:
            with self.subTest(method, path=path):
                body = b'{"name": "one"}' if 'draw' in path else scribble(1, 8)
                self.refused(self.server.request(method, path, body), status, status)

    def test_not_http(self):
        """What is no request at all."""
        line = b'GET / HTTP/1.1\r\n'
        for request in [b'nonsense\r\n\r\n', b'GET\r\n\r\n', b'GET / HTTP\r\n\r\n',
                        b'GET / HTTP/x.y\r\n\r\n', b'GET / HTTP/1.1.1\r\n\r\n',
                        b'GET / HTTP/2.0\r\n\r\n', b'a b c d e\r\n\r\n', b'POST /read\r\n\r\n',
                        b'GET /\r\n\r\n', b'\0' * 99 + b'\n', b'\xff\xff\xff\r\n',
                        b'GET / HTTP/0.9\r\n\r\n', b'GET / HTTP/1.1\rHTTP/0.9\r\n\r\n',
                        b'\r\n\r\n', b'\n', b' \r\n\r\n',
                        b'\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n',
                        b'GET /' + b'x' * 10 ** 5 + b' HTTP/1.1\r\n\r\n', line + b'\r\n',
                        line + b'X: ' + b'x' * 10 ** 5 + b'\r\n\r\n', line + b'X: y\r\n' * 200,
                        line + b'no header\r\n\r\n', line + b': \r\n\0\r\n\r\n',
                        *[line + b'Content-Type: multipart/mixed; ' + boundary + b'\r\n\r\n'
                          for boundary in [b"boundary*=utf-8''a; boundary*0=b",  # Python chokes
                                           b'boundary*' + b'9' * 5000 + b'=a',
                                           b"boundary*=idna'x'%ff%fe"]]]:
            with self.subTest(request[:30]), self.server.connect(request) as client:
                answer = b''.join(iter(lambda: client.recv(65536), b''))
                self.assertRegex(answer, rb'^HTTP/1.0 4\d\d ')
                self.error(answer.rpartition(b'\r\n\r\n')[2])

    def test_this_machine(self):
        """It listens on 127.0.0.1 and at no other address of this machine."""
        others = {'127.0.0.2', '::1'}
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as outward:
            outward.connect(('192.0.2.1', 9))  # this sends nothing
            others.add(outward.getsockname()[0])
        self.server.connect().close()
        for address in others:
            with self.subTest(address), self.assertRaises(OSError):
                socket.create_connection((address, self.server.port), 2).close()

class Gone(Case):
    """Clients that go away; a model whose drawings take a moment only."""
    def test_gone(self):
        """Who goes away, at whatever time, and politely or not, leaves no trace."""
        whole = self.server.request('POST', '/read', scribble(1, 8))
        for request in [*self.server.halves(), whole, self.server.request('GET', '/'),
                        self.server.request('GET', '/unknown'),
                        self.server.request('POST', '/read', bytes(10 ** 6))]:
            for reset in False, True:
                with self.subTest(request[:20], reset=reset):
                    client = self.server.connect(request)
                    if reset:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    client.close()
                    self.server.read(scribble(1, 8))

    def test_while_drawing(self):
        """The next one gets a drawing all the same, and nothing is printed."""
        order = self.server.request('POST', '/draw', b'{"name": "one"}')
        for reset in False, True, True:
            client = self.server.connect(order)
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            time.sleep(0.05)  # so that it has begun, or not: both must do
            client.close()
        for _ in range(2):  # one at a time: the last is answered after all before it
            self.assertEqual(len(self.server.draw({'name': 'one'})['frames']), vlm.STEPS + 1)

class Own(unittest.TestCase):
    """Tests with servers of their own."""
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name).resolve()

    def serve(self, *argv, folder=None, **options):
        """-> a server that is stopped in the end, without a word"""
        server = Server(folder or self.folder, *argv, **options)
        self.addCleanup(server.end)
        return server

class Patience(Own):
    """Clients that are slow or silent."""
    def test_patience(self):
        """Half requests and drawings under way delay nobody. The former are given up in the end;
        Ctrl-C ends the latter, with status 0 and no word."""
        server = self.serve(*'--steps 0 --size 14 --width 48 --tokens 2,3,3,3,3,3'.split())
        order = server.request('POST', '/draw', b'{"name": "one"}')  # this takes long
        silent, drawings = [[server.connect(request) for request in requests]
                            for requests in (3 * server.halves(), [order] * 4)]
        for client in silent + drawings:
            self.addCleanup(client.close)
        for seed in range(3):
            server.read(scribble(seed))
        self.assertEqual(server.ask('GET', '/')[0], 200)
        for clients in silent, drawings:  # had they come first, they would be answered by now
            self.assertLess(len(select.select(clients, [], [], 0)[0]), len(clients))
        answered = 0
        for client in silent:  # the time limit of connect() is far longer
            answer = b''.join(iter(lambda: client.recv(65536), b''))
            self.assertRegex(answer, rb'^(HTTP/1.0 400 |\Z)')  # '': it had not said what it wants
            answered += bool(answer)
        self.assertGreaterEqual(answered, 3 * 5)  # of eight halves, five have a whole line
        for client in map(server.connect, [order, *server.halves()]):
            self.addCleanup(client.close)
        server.end()

class Starts(Own):
    """Ports, browsers, files that are missing, other shapes of the model, the end."""
    def test_browser(self):
        """A browser is opened from a terminal, and on Linux only where there is a desktop."""
        def browse(address):  # as one that needs an answer before it returns; and then fails
            self.assertTrue(serving.wait(PATIENCE))
            opened.append(address)
            raise ValueError
        def forever():
            serving.set()
            if opens:
                until(lambda: opened)
            raise KeyboardInterrupt
        server = mock.Mock(server_port=1234, serve_forever=forever)
        for tty, system, environment, opens in [
                (True, 'linux', {'DISPLAY': ':0'}, True), (False, 'linux', {'DISPLAY': ':0'}, False),
                (True, 'linux', {'WAYLAND_DISPLAY': 'x'}, True), (True, 'linux', {}, False),
                (True, 'linux', {'BROWSER': 'x'}, True), (True, 'darwin', {}, True)]:
            out, opened, serving = io.StringIO(), [], threading.Event()
            out.isatty = lambda: tty
            with self.subTest(tty=tty, system=system, **environment), \
                    mock.patch.object(os, 'name', 'posix'), \
                    mock.patch.object(sys, 'platform', system), \
                    mock.patch.dict(os.environ, environment, clear=True), \
                    mock.patch.object(vlm.webbrowser, 'open', browse), \
                    contextlib.redirect_stdout(out):
                vlm.serve(server, {}, None)
                self.assertEqual(opened, ['http://127.0.0.1:1234/'] if opens else [])

    def fails(self, words, *argv, program=PROGRAM, status=1):
        """The program ends at once with this status; a line, the last, has these words."""
        done = subprocess.run([sys.executable, '-B', str(program), *map(str, argv)],
                              cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True, timeout=PATIENCE)
        self.assertEqual((done.returncode, done.stdout), (status, ''), done.stderr)
        usage = 'usage: .*\n' if status == 2 else ''
        self.assertRegex(done.stderr, rf'^{usage}vlm.py: .*{words}.*\n\Z')

    def taken(self, port=0):
        """-> a port that is in use; None where this cannot be arranged"""
        other = socket.socket()
        self.addCleanup(other.close)
        if hasattr(socket, 'SO_EXCLUSIVEADDRUSE'):  # else Windows would share it
            other.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        with contextlib.suppress(OSError):
            other.bind(('127.0.0.1', port))
            other.listen()
        return other.getsockname()[1]

    def test_port(self):
        """The port that is named, or else 8000 or the next that is free; one that is taken."""
        self.taken(8000)  # by us, or by somebody else
        server = self.serve(*QUICK, page=None)
        self.assertTrue(8000 < server.port < 8100)
        self.assertEqual(server.read(scribble(1))['size'], 8)
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self.assertEqual(self.serve(*QUICK, page=port).port, port)
        port = self.taken()
        self.fails(f'port {port} is not free', *QUICK, '--page', port)
        for port in -1, 65536, 10 ** 9:
            with self.subTest(port):
                self.fails('a port below 65536', *QUICK, '--page', port, status=2)

    def test_first_port(self):
        """Without a number: the first of 8000, 8001 ... that can be had, or none."""
        for free in 8000, 8003, None:
            with self.subTest(free):
                asked = []
                def server(address, handler):
                    asked.append(address)
                    if address[1] != free:
                        raise OSError(98, 'Address already in use')
                    return 'server'
                with mock.patch.object(vlm, 'Server', server):
                    if free:
                        self.assertEqual(vlm.open_server(True), 'server')
                        self.assertEqual(asked[-1], ('127.0.0.1', free))
                    else:
                        with self.assertRaisesRegex(SystemExit, '^vlm.py: .*not free'):
                            vlm.open_server(True)
                self.assertEqual(asked, [('127.0.0.1', 8000 + i) for i in range(len(asked))])

    def test_shapes(self):
        """Other models: what is seen does not depend on them; nothing is kept without degree 2."""
        ink, seen = scribble(2), {}
        for argv, size, kept in [('--width 8', 8, True), ('--width 4 --tokens 3', 8, False),
                                 ('--tokens 2,4 --patches 2 --width 4', 8, True),
                                 ('--size 14 --tokens 1,2,2 --patches 7 --layers 2', 14, True),
                                 ('--width 4 --tokens 2 --temperature 1', 8, True)]:
            with self.subTest(argv):
                server = self.serve('--steps', 0, *argv.split())
                got = server.read(ink)
                self.assertEqual((got['size'], len(got['kept'])), (size, size ** 2 * kept))
                self.assertEqual(got['seen'], seen.setdefault(size, got['seen']))
                self.assertEqual({len(frame) for frame in server.draw({'name': 'two'})['frames']}
                                 if size == 8 else {64}, {64})

    def test_after_learning(self):
        """It learns and reports first, if asked to."""
        data = write(self.folder / 'images', digits(13, 3))
        server = self.serve('--data', data, *TINY)
        self.assertRegex(server.said, r'(?s)12 training images.*step 1/1 .*test accuracy: ./2')
        self.assertEqual(server.read(scribble(1))['size'], 8)

    def test_alone(self):
        """vlm.py and page.html are enough, with weights; vlm.py by itself is not."""
        settings, alone = vlm.complete({'width': 4, 'tokens': [2]}), self.folder / 'vlm.py'
        vlm.save(self.folder / 'weights.json', settings, vlm.first_numbers(settings))
        shutil.copy(PROGRAM, alone)
        for argv in ['--page'], ['--page', 0], ['--load', 'weights.json', '--page', 0]:
            with self.subTest(argv):
                self.fails('page.html', *argv, program=alone)
        for place in 'elsewhere', '':
            with self.subTest(place or 'beside it'):
                (self.folder / place / 'data').mkdir(parents=True)
                shutil.copy(PAGE, self.folder / place / 'data')
                server = self.serve('--load', self.folder / 'weights.json', program=alone,
                                    folder=self.folder / place)
                self.assertEqual(server.said.count('\n'), 3, server.said)
                self.assertEqual(server.ask('GET', '/')[2], PAGE.read_bytes())
                self.assertEqual(server.read(scribble(1))['size'], 8)

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
WEIGHTS = PROGRAM.parent / 'data' / 'weights-8.json'

@unittest.skipIf(platform.python_implementation() == 'PyPy', 'the browser is tried with CPython')
@unittest.skipUnless(importlib.util.find_spec('selenium'), 'needs pip install selenium')
@unittest.skipUnless(CHROMIUM and shutil.which('chromedriver'), 'needs chromium and chromedriver')
class Chromium(Case):
    """A browser, and what one does with the page in it; the weights are those that come with it."""
    argv = ['--load', WEIGHTS] if WEIGHTS.exists() else QUICK

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ('headless=new', 'no-sandbox', 'disable-dev-shm-usage', 'no-first-run',
                         'disable-background-networking', 'window-size=1280,900'):
            options.add_argument('--' + argument)
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
        service = Service(shutil.which('chromedriver'))
        cls.driver = webdriver.Chrome(options=options, service=service)
        cls.addClassCleanup(cls.driver.quit)

    def setUp(self):
        self.address, self.calm = f'http://127.0.0.1:{self.server.port}/', True
        self.requests()
        self.driver.get_log('browser')
        self.motion('reduce')
        self.driver.get(self.address)
        until(lambda: self.driver.find_elements('css selector', '.names button'))

    def tearDown(self):
        super().tearDown()
        asked = self.requests()
        self.assertIn(self.address, asked)
        for address in asked:
            self.assertTrue(address.startswith((self.address, 'data:', 'blob:')), address)
        if self.calm:
            severe = [entry['message'] for entry in self.driver.get_log('browser')
                      if entry['level'] == 'SEVERE']
            self.assertEqual(severe, [])

    def requests(self):
        """-> the addresses that were asked for since the last call"""
        events = [json.loads(entry['message'])['message']
                  for entry in self.driver.get_log('performance')]
        return [event['params']['request']['url'] for event in events
                if event['method'] == 'Network.requestWillBeSent']

    def motion(self, wish):
        """Set what the page sees of the wish for less motion."""
        self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {
            'features': [{'name': 'prefers-reduced-motion', 'value': wish}]})

    def find(self, id):
        return self.driver.find_element('id', id)

    def text(self, id):
        """What an element says, shown or not"""
        return self.find(id).get_property('textContent').strip()

    def inked(self, id):
        """Are there pixels on a canvas?"""
        return self.driver.execute_script(
            'const c = document.getElementById(arguments[0]);'
            'return c.getContext("2d").getImageData(0, 0, c.width, c.height).data'
            '.some((v, i) => i % 4 === 3 && v > 0)', id)

    def stroke(self, *points, lift=True):
        """Draw a line with the mouse, through points from -1 to 1; perhaps its button stays down."""
        from selenium.webdriver import ActionChains
        canvas, actions = self.find('canvas'), ActionChains(self.driver, 10)
        half = canvas.size['width'] / 2
        for number, (x, y) in enumerate(points):
            actions.move_to_element_with_offset(canvas, int(x * half), int(y * half))
            if number == 0:
                actions.click_and_hold()
        (actions.release() if lift else actions).perform()

    def seven(self, lift=True):
        """Draw a seven, and wait for the answer."""
        self.stroke((-0.5, -0.6), (0, -0.62), (0.5, -0.6), (0.2, 0), (-0.1, 0.7), lift=lift)
        self.answered()

    def answered(self):
        """Wait until all is there that is shown of an answer."""
        until(lambda: self.text('name') and self.inked('seen') and self.inked('kept'))
        name, probability, letters = self.driver.execute_script('''
            const text = id => document.getElementById(id).textContent;
            return [text('name'), text('probability'),
                    [...document.querySelectorAll('#letters b')].map(b => b.textContent).join('')]
            ''')  # at one moment
        self.assertRegex(probability, r'^\d+ %$')
        self.assertEqual(letters, name)

class Browser(Chromium):
    """The page in Chromium."""
    def test_read(self):
        """Strokes are read; clear and undo, as buttons and as keys."""
        from selenium.webdriver import ActionChains, Keys
        self.assertEqual((self.text('name'), self.inked('seen'), self.inked('kept')),
                         ('', False, False))
        self.assertTrue(self.find('hint').is_displayed())
        self.seven()
        if self.argv != QUICK:
            until(lambda: self.text('name') == 'seven')
        self.assertFalse(self.find('hint').is_displayed())
        until(lambda: self.text('name') in self.text('spoken'))
        self.find('clear').click()
        until(lambda: not self.text('name'))
        self.assertEqual((self.text('letters'), self.inked('seen'), self.inked('canvas')),
                         ('', False, False))
        self.find('undo').click()
        self.answered()
        ActionChains(self.driver).send_keys(Keys.ESCAPE).perform()
        until(lambda: not self.text('name'))
        ActionChains(self.driver).key_down(Keys.CONTROL).send_keys('z').key_up(
            Keys.CONTROL).perform()
        self.answered()
        self.find('undo').click()  # the stroke itself
        until(lambda: not self.inked('canvas') and not self.text('name'))
        self.find('canvas').send_keys(Keys.ARROW_DOWN * 9)
        self.answered()
        self.assertEqual(self.text('status'), '')

    def test_letters(self):
        """While one draws: one letter after another, with its probability and how much it looked."""
        from selenium.webdriver import ActionChains
        self.motion('no-preference')
        self.driver.execute_script('''
            const fetch = window.fetch;
            window.fetch = async (...request) => {
              const answer = await fetch(...request);
              answer.clone().json().then(said => window.said = said);
              return answer;
            };''')
        self.seven(lift=False)
        def right():  # at one moment; it may still be drawn or read
            said, shown = self.driver.execute_script('''
                return [said, [...document.querySelectorAll('#letters li')].map(item => [
                    item.querySelector('b').textContent, item.querySelector('small').textContent,
                    parseFloat(item.querySelector('.look').style.getPropertyValue('--look'))])];
                ''')
            return shown == [[entry['letter'], f'{math.floor(100 * entry["probability"] + 0.5)} %',
                              100 * entry['look']] for entry in said['letters']]
        until(right)
        delays = self.driver.execute_script('''
            return [...document.querySelectorAll('#letters li')].map(
                item => parseFloat(getComputedStyle(item).animationDelay));''')
        self.assertEqual(delays, sorted({*delays}))
        ActionChains(self.driver).release().perform()

    def stills(self):
        """-> how much ink is on each of the small canvases: 'grey' (evenly half), 'partly', 'none'"""
        return self.driver.execute_script('''
            return [...document.querySelectorAll('.stills canvas')].map(c => {
              const {data} = c.getContext('2d').getImageData(0, 0, c.width, c.height);
              const ink = data.filter((v, i) => i % 4 === 3);
              return ink.every(v => v === 128) ? 'grey' : ink.some(v => v > 0) ? 'partly' : 'none';
            })''')

    def frames(self):
        """Wait for the last frame -> the numbers of those that were seen"""
        numbers = []
        def last():
            number = self.find('drawn').get_property('dataset').get('frame')
            numbers.append(int(number or 0))
            return numbers[-1] == vlm.STEPS and self.text('drawn-reading')
        until(last)
        return numbers

    def test_draw(self):
        """The model draws, from grey and from what one drew, and says what it reads there. Who
        presses one name after another gets the last."""
        self.assertFalse(self.find('from-mine').is_enabled())
        self.motion('no-preference')
        for name in 'one', 'two', 'seven':
            self.find(f'draw-{name}').click()
        numbers = self.frames()
        self.assertEqual(numbers, sorted(numbers))
        self.assertGreater(len(set(numbers)), 2)
        self.assertIn('seven', self.text('asked'))
        self.assertTrue(self.inked('drawn'))
        self.assertEqual(self.stills()[0], 'grey')  # it begins with grey, not with what one drew
        if self.argv != QUICK:
            self.assertIn('seven', self.text('drawn-reading'))
        self.motion('reduce')  # from now on, only the last frame
        self.seven()
        self.find('from-mine').click()
        self.find('draw-nine').click()
        until(lambda: 'nine' in self.text('asked') and self.text('drawn-reading'))
        self.assertEqual((self.inked('drawn'), self.stills()[0]), (True, 'partly'))
        self.assertEqual(self.text('drawn-status'), '')

    def test_pictures(self):
        """A PNG that is chosen, dropped or pasted is read; what is no picture, a line says so."""
        ink = scribble(5, 60)
        for name, content in ('ink.png', png(60, ink)), ('white.png', png(60, bytes(3600))), (
                'cut.png', png(60, ink)[:60]), ('page.html', PAGE.read_bytes()):
            (self.folder / name).write_bytes(content)
        for name in 'white.png', 'cut.png', 'page.html':
            with self.subTest(name):
                self.find('file').send_keys(str(self.folder / name))
                until(lambda: 'picture' in self.text('status'))
                self.assertFalse(self.inked('canvas'))
                self.find('clear').click()
                self.assertEqual(self.text('status'), '')
        self.find('file').send_keys(str(self.folder / 'ink.png'))
        self.answered()
        for event in 'drop', 'paste':
            with self.subTest(event):
                self.find('clear').click()
                until(lambda: not self.text('name'))
                self.driver.execute_script('''
                    const [event, bytes] = arguments, data = new DataTransfer();
                    data.items.add(new File([Uint8Array.from(bytes)], 'ink.png',
                                            {type: 'image/png'}));
                    document.body.dispatchEvent(event === 'drop'
                      ? new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
                      : new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
                    ''', event, list(png(60, ink)))
                self.answered()

    def restart(self, *argv):
        """End the server, if that was not done; start another one at the same port."""
        self.server.end()
        type(self).server = Server(self.folder, *argv, page=self.server.port)
        self.addClassCleanup(self.server.end)

    def test_server_gone(self):
        """While the server is away the page says so, keeps the drawing, and reads it later."""
        self.calm = False  # Chromium itself reports the refused connections
        self.seven()
        self.server.end()
        self.stroke((-0.3, 0), (0.4, 0))
        until(lambda: 'server does not answer' in self.text('status'))
        self.assertEqual(self.text('name'), '')
        self.restart(*self.argv)
        self.answered()
        until(lambda: not self.text('status'))
        self.server.end()
        self.stroke((-0.3, 0.4), (0.4, 0.4))
        until(lambda: 'server does not answer' in self.text('status'))
        while self.inked('canvas'):  # nothing is left to be read, so nothing to try again
            self.find('undo').click()
        until(lambda: not self.text('status'))
        self.restart(*self.argv)

    def test_other_weights(self):
        """A server that comes back with other weights: what these know can be asked."""
        def questions():
            return self.driver.execute_script('''
                return [...document.querySelectorAll('#questions button')].map(
                    button => button.dataset.question);''')  # at one moment
        first = questions()
        self.restart('--steps', 0, '--width', 4, '--tokens', 2, '--questions', 'name,parity')
        self.seven()
        self.assertEqual(questions(), ['name', 'parity'])
        self.driver.find_element('css selector', '[data-question=parity]').click()
        self.restart(*self.argv)
        self.stroke((-0.3, 0), (0.4, 0))
        until(lambda: questions() == first)
        self.answered()
