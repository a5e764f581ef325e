"""The command line: options, weights on disk, the report, Ctrl-C and closed output."""
import json, math, os, re, signal, subprocess, sys, unittest
from pathlib import Path
from unittest import mock

import vlm
from tests.test_data import PROGRAM, TINY, Case, digits, idx, run, write

REPORT = re.compile(r'''[\d,]+ parameters
size 8, attention tensor, width 4, heads 2, .*
(?:.*\n)*?((?:\[\d\] true: [a-z]+ \| generated: [a-z<]* [✓✗] \d+\.\d%
){20})reconstruction error: \d+\.\d{3} \(1\.0 = reconstructs nothing\)
test accuracy: (\d+)/25 = \d+\.\d\d% \(95% interval \d+\.\d\d-\d+\.\d\d\)
''')

class Runs(Case):
    """Runs on a few images that every test can afford."""
    def setUp(self):
        super().setUp()
        self.data = write(self.folder / 'images', digits(13, 25))
        self.tiny = ['--data', self.data, *TINY]

    def popen(self, *argv, **options):
        """The program in a process of its own"""
        options = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **options}
        env = {**os.environ, **options.pop('env', {})}
        process = subprocess.Popen([sys.executable, *map(str, [PROGRAM, *self.tiny, *argv])],
                                   env=env, **options)
        for stream in process.stdout, process.stderr:
            if stream:
                self.addCleanup(stream.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

class Options(Runs):
    """Options that make sense and others."""
    def test_wrong(self):
        """Status 2 and one line, under argparse's usage."""
        for argv in '''--size 9|--size 0|--size -8|--size 8.0|--size x|--size 28|--attention
            |--attention x|--steps -1|--steps 1.5|--steps nan|--steps 9999999999|--batch 0
            |--batch -1|--batch x|--lr 0|--lr -1|--lr nan|--lr inf|--lr 1e999|--lr -inf|--lr x
            |--reconstruction -0.1|--reconstruction nan|--seed -1|--seed x|--seed 1e3
            |--width 0|--width -4|--width 5|--heads 0|--heads 3|--heads 4|--width 6|--heads 8
            |--layers 0|--mlp 0|--degree2 -1
            |--patches 0|--patches 3|--size 14 --patches 4|--stages|--stages x|--stages eye,
            |--stages eye:x|--stages eye:-1|--temperature -1|--top-p 0|--top-p nan
            |--degree3 -1|--degree4 -1|--degree2 0|--jobs 0|--jobs -1|--jobs x
            |--degree4 1 --degree2 0|--degree4 1 --width 1 --heads 1 --attention dot
            |--test 0|--test -1|--test x|--test|--nonsense|nonsense|--s 8
            |--save|--load|--data'''.split('|'):
            with self.subTest(argv.strip()):
                self.refused(2, 'error: ', *self.tiny, *argv.split())

    def test_right(self):
        """Every setting works, at its least too; --help shows all options and their defaults."""
        for argv in '''|--attention dot|--size 14|--degree3 1|--degree4 1|--layers 2
            |--degree2 0 --degree3 1|--degree2 0 --degree3 2 --reconstruction 0
            |--width 1 --heads 1 --attention dot|--patches 2 --degree1 1 --degree2 0
            |--size 14 --patches 7 --degree4 1|--stages mouth:2,eye,frozen-eye|--stages joint:0
            |--temperature 1|--temperature 0.5 --top-p 0.9
            |--degree2 2 --degree3 0 --degree4 2 --mlp 3|--reconstruction 0|--steps 0|--batch 30
            |--lr 1e-9|--lr 1e9 --steps 3|--seed 0|--test 1|--heads 1'''.split('|'):
            with self.subTest(argv.strip()):
                self.accepted('test accuracy', *self.tiny, *argv.split())
        shown = ' '.join(self.accepted('usage', '--help').split())
        for name, (small, large, _, meaning) in vlm.SETTINGS.items():
            self.assertIn(f'--{name.replace("_", "-")} ', shown)
            self.assertRegex(shown, re.escape(meaning) + rf' \(default: {small}')
            self.assertIn(f'{large})', shown)
        for name in 'size', 'attention', 'test', 'data', 'save', 'load':
            self.assertRegex(shown, rf'--{name} [A-Z]+ [^-]*')

class Reports(Runs):
    """What is printed."""
    def test_format(self):
        """The report has the form that is documented, and only the first images if so asked."""
        names, argv = vlm.NAMES, [*self.tiny, '--test']
        out = self.accepted('accuracy', *argv, 999)
        self.assertRegex(out, REPORT)
        self.assertEqual(re.findall(r'^\[(\d)\] true: (\w+)', out, re.M),
                         [(str(i % 10), names[i % 10]) for i in range(20)])
        self.assertEqual(len(re.findall('true:', self.accepted(r'\d/5 = ', *argv, 5))), 5)

    def test_marks(self):
        """✓ for the right name, ✗ for any other; + and x where the console has neither."""
        self.patch(vlm, speak=lambda *_: ('seven', 0.5, 1.0))
        for encoding, right, wrong in ('utf-8', *'✓✗'), ('ascii', *'+x'), ('cp1252', *'+x'):
            with self.subTest(encoding):
                out = self.accepted('accuracy', *self.tiny, '--test', 10, encoding=encoding)
                self.assertEqual(''.join(re.findall('seven (.) 50.0%$', out, re.M)),
                                 wrong * 7 + right + wrong * 2)
                self.assertIn('error: 1.000 (', out)
                self.assertIn('accuracy: 1/10 = 10.00% (95% interval 1.79-40.42)\n', out)
        self.accepted(r': 0/2 = 0.00% \(95% interval 0.00-65.76\)', *self.tiny)
        self.data.joinpath('t10k-labels-idx1-ubyte').write_bytes(idx(2049, 25, content=[7] * 25))
        self.accepted(r': 9/9 = 100.00% \(95% interval 70.08-100.00\)', *self.tiny, '--test', 9)

    def test_same_again(self):
        """The same seed gives the same output, whatever --jobs; also on a console without ✓."""
        outs = []
        for number in '1', '2':  # of jobs, and what the order of a set may depend on
            env = {'PYTHONIOENCODING': 'ascii', 'PYTHONHASHSEED': number}
            process = self.popen('--steps', 2, '--batch', 3, '--jobs', number, env=env)
            outs.append(process.communicate(timeout=120)[0].decode('ascii'))
        self.assertEqual(*outs)
        self.assertRegex(outs[0], 'generated: [a-z<]* [+x] ')
        argv = [*self.tiny, *'--steps 2 --batch 3 --seed 2'.split()]
        self.assertNotEqual(outs[0], self.accepted('accuracy', *argv, encoding='ascii'))

    def test_progress(self):
        """A line every hundred steps and at the last; on a terminal one that updates."""
        self.patch(vlm, learn=lambda *_: iter([[2.0, 1.0]] * 250))
        argv = [*self.tiny, '--steps', 250, '--test', 25]
        line = re.compile(r'^step (\d+)/250 .*2\.1.*2\.0.*1\.0.* s left$', re.M)
        self.assertEqual(line.findall(run(*argv)[2]), ['100', '200', '250'])
        err = run(*argv, tty=True)[2]
        self.assertLess(max(map(len, re.split('[\r\n]', err))), 80)
        self.assertEqual([line[:5] for line in err.split('\n')], ['\rstep', '\rtest', ''])

    def test_not_finite(self):
        """A loss that is not a number ends training; the weights of before stay on disk."""
        kept = self.folder / 'kept.json'
        kept.write_bytes(b'kept')
        for loss in math.nan, math.inf:
            self.patch(vlm, learn=lambda *_: iter([[1.0, 1.0], [loss, 1.0]]))
            for tty in False, True:
                argv = [*self.tiny, '--steps', 9, '--lr', 1e9, '--save', kept]
                self.refused(1, 'step 2.*lower --lr', *argv, tty=tty)

class Weights(Runs):
    """--save and --load."""
    def setUp(self):
        super().setUp()
        self.file = self.folder / 'weights.json'
        self.out = self.accepted('accuracy', *self.tiny, '--save', self.file)
        self.good = self.file.read_bytes()

    def test_round_trip(self):
        """Loaded weights are the saved ones to the last bit, speak alike and can train on."""
        copy = self.folder / 'copy.json'
        argv = ['--data', self.data, '--load', self.file, '--test', 2, '--jobs', 1]
        out = self.accepted('accuracy', *argv, '--steps', 0, '--save', copy)
        self.assertEqual(copy.read_bytes(), self.good)
        self.assertEqual(*(re.sub('^steps .*\n', '', text, flags=re.M) for text in (out, self.out)))
        self.accepted('accuracy', *argv, '--steps', 1, '--save', self.file, '--width', 4)
        self.assertNotEqual(self.file.read_bytes(), self.good)
        self.assertEqual(*(json.loads(content)['settings']
                           for content in (self.file.read_bytes(), self.good)))

    def test_contradiction(self):
        """An option that contradicts the file is wrong; one that agrees is not."""
        argv = ['--data', self.data, '--load', self.file, '--steps', 0, '--test', 1, '--jobs', 1]
        for option in ('--size 14|--width 8|--heads 1|--layers 2|--attention dot|--mlp 2'
                       '|--degree2 2|--degree3 1|--degree4 1').split('|'):
            with self.subTest(option):
                self.refused(2, 'contradicts', *argv, *option.split())
        self.accepted('accuracy', *argv, *'--size 8 --heads 2 --attention tensor --seed 7'.split())

    def test_damaged(self):
        """Whatever is wrong with a weights file, one line says so."""
        def changed(part, **changes):
            document = json.loads(self.good)
            document[part].update(changes)
            return json.dumps(document).encode()
        def first(text):
            return re.sub(rb'(\[\[)[^,]+', rb'\g<1>' + text.encode(), self.good, count=1)
        document = json.loads(self.good)
        letter, names = document['weights']['letter'], list(document['weights'])
        lacks = {name: matrix for name, matrix in document['weights'].items() if name != 'letter'}
        cases = [b'', b'nonsense', b'null', b'1', b'[]', b'{}', b'"settings"', bytes(range(256)),
                 b'[' * 10 ** 6, b'{"settings":' * 10 ** 5, self.good[:-1], self.good + b'}',
                 *map(first, ['NaN', 'Infinity', '-Infinity', '1e999', '1' + '0' * 400,
                              '1' + '0' * 5000, '"1"', 'true', 'null', '[]', '{}', '1, 1']),
                 *(changed('settings', **json.loads(f'{{{change}}}')) for change in '''
                     "size": 14|"size": 9|"size": 8.0|"size": "8"|"size": null|"width": 4.0
                     |"width": 8|"width": 1000000000|"width": Infinity|"width": [4]|"heads": true
                     |"heads": 0|"heads": 4|"layers": true|"layers": 0|"layers": -1|"layers": 2
                     |"layers": 1000000000|"layers": "x"|"mlp": 2|"mlp": 1.0|"attention": ["dot"]
                     |"attention": 1|"degree2": -1|"degree2": 2|"degree3": 1|"degree4": 1|"steps": 1
                     |"surprise": 1'''.split('|')),
                 *(changed('weights', letter=value) for value in [
                     None, {}, 'x' * len(letter), ['abcd'] * len(letter), [[]], letter[1:],
                     letter[1:] + [[]], [[[1.0]] * 4] * len(letter)]),
                 changed('weights', surprise=[]),
                 *(json.dumps({**document, **change}).encode() for change in [
                     {'weights': names}, {'weights': lacks}, {'weights': None}, {'weights': 1},
                     {'settings': None}, {'settings': []}, {'settings': {}}])]
        for number, content in enumerate(cases):
            with self.subTest(number, content=content[:170]):
                self.file.write_bytes(content)
                self.refused(1, 'weights.json', *self.tiny, '--load', self.file)
        for name in 'missing', 'images', 'weights.json/x', 'n' * 300:
            with self.subTest(name):
                self.refused(1, name, *self.tiny, '--load', self.folder / name)

    def test_cannot_save(self):
        """Where --save cannot write is known before learning begins, and nothing is replaced."""
        self.patch(vlm, learn=mock.Mock(side_effect=AssertionError('learning has begun')))
        names = ['missing/x', 'images', 'weights.json/x', 'n' * 300, 'n' * 250, '', '/']
        if hasattr(os, 'mkfifo'):  # stand-ins for /dev/null, which a test had better not touch
            os.mkfifo(self.folder / 'pipe')
            os.symlink('pipe', self.folder / 'link')
            names += ['pipe', 'link']
        for name in names:
            with self.subTest(name):
                path = name and self.folder / name
                self.refused(1, 'cannot be written', *self.tiny, '--save', path)

    @unittest.skipUnless(hasattr(os, 'mkfifo'), 'links need privileges here')
    def test_save_to_link(self):
        """A link, as /dev/stdout is one, stays a link: it is its file that gets the weights."""
        target, link = self.folder / 'target.json', self.folder / 'link.json'
        link.symlink_to(target)
        for _ in 'new', 'old':
            self.accepted('accuracy', *self.tiny, '--save', link)
            self.assertTrue(link.is_symlink())
            self.assertEqual(target.read_bytes(), self.good)

    def test_failed_save(self):
        """Whatever happens during --save, the earlier file is whole until the new one is."""
        def stop(part, path, error):
            self.assertEqual(Path(path).read_bytes(), self.file.read_bytes())
            self.assertIn('weights', json.loads(Path(part).read_bytes()))
            raise error
        for status, error in (1, OSError(28, 'No space left')), (130, KeyboardInterrupt()):
            for function in 'replace', 'write_bytes':
                with self.subTest(function, status=status):
                    before = self.contents()
                    if function == 'replace':
                        failing = mock.patch('os.replace', lambda *paths: stop(*paths, error))
                    else:
                        failing = mock.patch.object(Path, 'write_bytes', side_effect=error)
                    with failing:
                        got, _, err = run(*self.tiny, '--seed', 2, '--save', self.file)
                    self.assertEqual((got, err.count('vlm.py: ')), (status, status == 1), err)
                    self.assertEqual(self.contents(), before)

    def test_nothing_worthless(self):
        """Weights that --load would refuse do not replace others."""
        document = json.loads(self.good)
        for name, size in ('eye.degree2.0', 1e-20), ('eye.degree2.1', 1e94):  # inf as gradient
            document['weights'][name] = [[size] * 64] * 4
        self.file.write_text(json.dumps(document))
        self.refused(1, '(finite|nan|inf)', *self.tiny, '--load', self.file, '--save', self.file)

class Interruptions(Runs):
    """Ctrl-C, and readers that have seen enough."""
    def test_interrupt(self):
        """Ctrl-C ends training, not the program; another one ends everything at once."""
        def learn(*_):
            yield [1.0, 1.0]
            raise KeyboardInterrupt
        self.patch(vlm, learn=learn)
        status, out, err = run(*self.tiny, '--steps', 9, '--save', self.folder / 'saved')
        self.assertEqual(status, 0)
        self.assertIn('interrupted', err)
        self.assertIn('test accuracy', out)
        self.assertIn('weights', json.loads((self.folder / 'saved').read_bytes()))
        for function in 'load_digits', 'first_weights', 'save', 'report', 'speak':
            failing = mock.patch.object(vlm, function, side_effect=KeyboardInterrupt)
            with self.subTest(function), failing:
                status, _, err = run(*self.tiny, '--save', self.folder / 'saved')
                self.assertEqual((status, 'Traceback' in err), (130, False))

    @unittest.skipIf(os.name == 'nt', 'Windows has no SIGINT to send')
    def test_signal(self):
        """The same with true signals, to the whole group of processes as a terminal sends them."""
        black = idx(2051, 3000, 28, 28, content=bytes(3000 * 784))
        write(self.data, {'t10k-images-idx3-ubyte': black,
                          't10k-labels-idx1-ubyte': idx(2049, 3000, content=bytes(3000))})
        for status, waits, jobs, test in [(0, [b'step 100/'], 2, 10),
                                          (130, [b'step 100/', b'interrupted'], 1, 3000)]:
            with self.subTest(status=status):
                saved = self.folder / f'saved{status}'
                process = self.popen(
                    '--steps', 10 ** 9, '--save', saved, '--test', test, '--jobs', jobs,
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                    start_new_session=True)
                for wait in waits:
                    err = b''
                    for line in process.stderr:
                        err += line
                        if line.startswith(wait):
                            break
                    os.killpg(process.pid, signal.SIGINT)
                out, rest = process.communicate(timeout=120)
                self.assertEqual(process.returncode, status, rest)
                self.assertNotIn(b'Traceback', err + rest)
                self.assertEqual(b'test accuracy' in out, not status)
                self.assertFalse([path for path in self.folder.iterdir() if path.suffix == '.part'])
                if not status:
                    self.assertIn('weights', json.loads(saved.read_bytes()))

    @unittest.skipIf(os.name == 'nt', 'a closed pipe is another error on Windows')
    def test_closed_output(self):
        """Output that nobody reads, or that is no file at all, is no traceback."""
        process = self.popen()
        process.stdout.close()
        self.assertEqual(process.stderr.read(), b'')
        process = self.popen(stderr=subprocess.STDOUT)
        process.stdout.close()
        self.assertIn(process.wait(120), (0, 1))
        for stream in 'stdout', 'stderr':
            with self.subTest('no ' + stream):
                process = self.popen(preexec_fn=lambda: os.close(1 if stream == 'stdout' else 2))
                out, err = process.communicate(timeout=120)
                self.assertEqual((process.returncode, b'Traceback' in err), (0, False), err)
                self.assertEqual(b'test accuracy' in out, stream == 'stderr')
