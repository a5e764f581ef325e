"""The command line: options, weights on disk, stages, the report, Ctrl-C and closed output."""
import functools, itertools, json, math, os, re, signal, subprocess, sys, unittest
from pathlib import Path
from unittest import mock

import vlm
from tests.test_data import PROGRAM, TINY, Case, digits, idx, run, write
from tests.tools import portions

REPORT = re.compile(r'''772 parameters, 12 training images, 25 test images
size 8, .*
((?:\[\d\] true: [a-z]+ \| generated: [a-z<]* [✓✗] \d+\.\d%
){20})reconstruction error: \d+\.\d{3} \(1\.0 = reconstructs nothing\)
test accuracy: \d+/25 = \d+\.\d\d% \(95% interval \d+\.\d\d-\d+\.\d\d\)
''')

class Runs(Case):
    """Runs on a few images that every test can afford."""
    def setUp(self):
        super().setUp()
        self.data = write(self.folder / 'images', digits(13, 25))
        self.tiny = ['--data', self.data, *TINY]

    def popen(self, *argv, program=(PROGRAM,), **options):
        """The program in a process of its own"""
        options = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, **options}
        env = {**os.environ, **options.pop('env', {})}
        process = subprocess.Popen([sys.executable, *map(str, [*program, *self.tiny, *argv])],
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
        """Status 2 and one line, under argparse's usage, that has the option's name."""
        for argv in '''--size 9|--size 0|--size -8|--size 8.0|--size x|--size 28|--pieces 0
            |--pieces|--pieces -1|--pieces 1.5|--pieces x|--pieces 3|--pieces 8
            |--steps -1|--steps 1.5|--steps nan|--steps 9999999999|--batch 0
            |--batch -1|--batch x|--lr 0|--lr -1|--lr nan|--lr inf|--lr 1e999|--lr -inf|--lr x
            |--reconstruction -0.1|--reconstruction nan|--seed -1|--seed x|--seed 1e3
            |--width 0|--width -4|--width 5|--heads 0|--heads 3|--heads 4|--width 7|--heads 8
            |--heads 4 --width 4 --pieces 2|--width 1 --heads 1|--layers 0|--mlp 0|--mlp 1.5
            |--distort -1|--distort 3.1|--distort x|--decay -1|--decay inf
            |--known -0.1|--known nan|--known x|--known
            |--patches 0|--patches 3|--size 14 --patches 4|--stage|--stage x|--stage eye,joint
            |--stage eye:9|--stage Joint|--stage eye --tokens 3|--stage eye --reconstruction 0
            |--temperature -1|--temperature nan|--top-p 0|--top-p nan
            |--tokens|--tokens x|--tokens 0|--tokens 5|--tokens -1|--tokens 2.0|--tokens 2,
            |--tokens ,|--tokens 2,,3|--tokens 2;3|--tokens 2,5|--tokens 4|--tokens 1,3,4
            |--tokens 2,4 --width 1 --heads 1 --pieces 1|--jobs -1|--jobs x|--jobs 1.5
            |--test 0|--test -1|--test x|--test|--test 9999999999|--nonsense|nonsense|--s 8
            |--attention dot|--degree2 1|--stages joint|--hard 0.05
            |--save|--load|--data'''.split('|'):
            with self.subTest(argv.strip()):
                name = argv.split()[0].strip('-').replace('-', '[-_]')
                self.refused(2, f'error: .*{name}', *self.tiny, *argv.split())
        for argv in ['--tokens', ''], ['--stage', '']:
            with self.subTest(argv):
                self.refused(2, f'error: .*{argv[0][2:]}', *self.tiny, *argv)

    def test_right(self):
        """Every setting works, at its least too."""
        for argv in '''|--pieces 1|--size 14|--tokens 1|--tokens 2,2,4|--tokens 2,3,3|--tokens 3
            |--tokens 1,1,2,3,4,4|--layers 2|--width 8 --pieces 4|--width 1 --heads 1 --pieces 1
            |--tokens 3,3 --reconstruction 0|--tokens 2,4 --width 2 --heads 1
            |--patches 2 --tokens 1|--patches 8 --width 2 --heads 1 --layers 2
            |--size 14 --patches 7 --tokens 2,4|--stage joint|--stage eye|--stage mouth
            |--stage frozen-eye|--stage frozen-mouth|--stage mouth --tokens 3 --reconstruction 0
            |--stage eye --patches 2 --jobs 0|--temperature 1|--temperature 0.5 --top-p 0.9
            |--temperature 1e9|--temperature 1e-9 --top-p 1e-9|--tokens 2,2,4,4 --mlp 3
            |--reconstruction 0|--distort 1.5|--distort 3 --jobs 2
            |--steps 0|--batch 30|--known 0|--known 1|--known 0.5|--decay 0
            |--lr 1e-9|--lr 1e9 --steps 3|--seed 0|--test 1|--heads 1
            |--jobs 3 --batch 9'''.split('|'):
            with self.subTest(argv.strip()):
                self.accepted('test accuracy', *self.tiny, *argv.split())
        sorts = [self.accepted('accuracy', *self.tiny, '--tokens', tokens)
                 for tokens in ('2,2,4', '4,2,2', '2,4,2')]
        self.assertEqual(sorts, sorts[:1] * 3)

    def test_help(self):
        """--help shows all options in four groups, with their meaning and the defaults."""
        with mock.patch.dict(os.environ, COLUMNS='200'):
            out = self.accepted('usage', '--help')
        small, large = (vars(vlm.complete({'size': size})) for size in (8, 14))
        for names in ('size steps seed test jobs data save load draw page questions',
                      'stage lr batch decay reconstruction distort known',
                      'tokens patches width layers heads pieces mlp', 'temperature top-p'):
            names = names.split()
            found = [re.findall(r'^  --(\S+) \S+ +(\S.*)', section, re.M)
                     for section in out.split('\n\n') if f'  --{names[0]} ' in section]
            self.assertEqual([name for name, _ in found[-1]], names)
            for name, text in found[-1]:
                for value in {str(size[name.replace('-', '_')]) for size in (small, large)}:
                    if name not in ('data', 'save', 'load', 'draw', 'page', 'questions'):
                        self.assertIn(value.strip('[]').replace(' ', ''),
                                      re.search(r' \(default:(.*)\)', text)[1].replace(' ', ''))
        self.assertEqual((small['size'], large['size'], small['steps'], large['steps']),
                         (8, 14, 380, 1150))

class Reports(Runs):
    """What is printed."""
    def test_format(self):
        """The report has the form that is documented, and only the first images if so asked."""
        names, argv = vlm.ANSWERS['name'], [*self.tiny, '--test']
        out = self.accepted('accuracy', *argv, 999)
        self.assertRegex(out, REPORT)
        self.assertEqual(re.findall(r'^\[(\d)\] true: (\w+)', out, re.M),
                         [(str(i % 10), names[i % 10]) for i in range(20)])
        self.assertEqual(len(re.findall('true:', self.accepted(r'\d/5 = ', *argv, 5))), 5)

    def test_head(self):
        """Two lines: what there is, and the size with each setting that is not its default."""
        for count, size, argv, more in [
                ('772', 8, self.tiny, ['steps 1', 'batch 1', 'tokens [2]', 'width 4']),
                ('10,416', 8, ['--steps', 0, '--batch', 32], ['steps 0']),
                ('27,312', 14, '--steps 0 --size 14 --lr 0.014'.split(), ['steps 0']),
                ('27,312', 14, '--steps 0 --size 14 --lr 0.01 --top-p 0.5 --tokens 3,2,3'.split(),
                 ['steps 0', 'lr 0.01', 'top_p 0.5'])]:
            with self.subTest(argv):
                argv = ['--data', self.data, '--jobs', 2, '--test', 2, *argv]
                out = self.accepted('accuracy', *argv)
                first, second, third = out.split('\n')[:3]
                self.assertEqual(first, f'{count} parameters, 12 training images, 25 test images')
                self.assertEqual(sorted(second.split(', ')), sorted(
                    [f'size {size}', f'data {self.data}', 'test 2', *more]))
                self.assertTrue(second.startswith('size ') and third.startswith('[0] true: zero'))

    def test_marks(self):
        """✓ for the right name, ✗ for any other; + and x where the console has neither."""
        self.patch(vlm, answer=lambda *_: ({'name': {'name': 'seven', 'probability': 0.5}}, 1.0))
        argv = [*self.tiny, '--steps', 0]
        for encoding, right, wrong in ('utf-8', *'✓✗'), ('ascii', *'+x'), ('cp1252', *'+x'):
            with self.subTest(encoding):
                out = self.accepted('accuracy', *argv, '--test', 10, encoding=encoding)
                self.assertEqual(''.join(re.findall('seven (.) 50.0%$', out, re.M)),
                                 wrong * 7 + right + wrong * 2)
                self.assertIn('error: 1.000 (', out)
                self.assertIn('accuracy: 1/10 = 10.00% (95% interval 1.79-40.42)\n', out)
        self.accepted(r': 0/2 = 0.00% \(95% interval 0.00-65.76\)', *argv)
        self.data.joinpath('t10k-labels-idx1-ubyte').write_bytes(idx(2049, 25, content=[7] * 25))
        self.accepted(r': 9/9 = 100.00% \(95% interval 70.08-100.00\)', *argv, '--test', 9)

    def test_same_again(self):
        """The same seed gives the same output, whatever --jobs; also on a console without ✓."""
        argv = '--steps 2 --batch 20 --test 25 --temperature 1'.split()
        outs = []
        for number in '1', '3':  # of jobs, and what the order of a set may depend on
            env = {'PYTHONIOENCODING': 'ascii', 'PYTHONHASHSEED': number}
            process = self.popen(*argv, '--jobs', number, env=env)
            out = process.communicate(timeout=120)[0].decode('ascii')
            outs.append(out.replace(os.linesep, '\n'))
        self.assertEqual(*outs)
        self.assertRegex(outs[0], 'generated: [a-z<]* [+x] ')
        outs += [self.accepted('accuracy', *self.tiny, *argv, '--seed', seed, encoding='ascii')
                 for seed in (1, 2)]
        for out in outs:
            self.assertRegex(out, '^772 parameters, .*\nsize 8, .*\n')
        outs = [out.split('\n', 2)[2] for out in outs]  # without these two lines
        self.assertEqual(outs[0], outs[2])
        self.assertNotEqual(outs[0], outs[3])

    def test_progress(self):
        """A line every hundred steps and at the last, with the mean loss of the last hundred; on a
        terminal one that updates."""
        self.patch(vlm, learn=lambda *_: iter([9.0] * 150 + [1.0] * 100))
        argv = [*self.tiny, '--steps', 250, '--test', 25]
        line = re.compile(r'^step (\d+)/250 +loss (\d+\.\d+) .* s left$', re.M)
        self.assertEqual(line.findall(run(*argv)[2]),
                         [('100', '9.000'), ('200', '5.000'), ('250', '1.000')])
        err = run(*argv, tty=True)[2]
        self.assertLess(max(map(len, re.split('[\r\n]', err))), 80)
        self.assertEqual([line[:5] for line in err.split('\n')], ['step ', 'teste', ''])
        self.assertEqual([f'\r{err}'.count(f'\rstep {step}/') for step in (0, 1, 249, 250)],
                         [0, 1, 1, 1])

    def test_not_finite(self):
        """A loss that is not a number ends training; the weights of before stay on disk."""
        kept = self.folder / 'kept.json'
        kept.write_bytes(b'kept')
        for stage in vlm.STAGES:  # a letter whose probability is not a number is not known
            argv = [*self.tiny, '--stage', stage, '--steps', 40, '--lr', 1e9, '--save', kept]
            with self.subTest(stage):
                self.refused(1, 'lower --lr', *argv)
        for loss in math.nan, math.inf:
            self.patch(vlm, learn=lambda *_: iter([1.0, loss]))
            for tty in False, True:
                argv = [*self.tiny, '--steps', 9, '--lr', 1e9, '--save', kept]
                self.refused(1, 'step 2.*lower --lr', *argv, tty=tty)
        self.patch(vlm, train=lambda settings, numbers, digits: numbers.__setitem__(0, math.nan))
        self.refused(1, 'too large.*lower --lr', *self.tiny)  # the last step was too much

class Weights(Runs):
    """--save and --load."""
    def setUp(self):
        super().setUp()
        self.file = self.folder / 'weights.json'
        self.out = self.accepted('accuracy', *self.tiny, '--save', self.file)
        self.good = self.file.read_bytes()
        self.load = ['--data', self.data, '--test', 2, '--jobs', 1, '--load', self.file]

    def body(self, out):
        """A report without its second line, which has the options"""
        head, options, body = out.split('\n', 2)
        self.assertRegex(options, '^size ')
        return head, body

    def test_round_trip(self):
        """Loaded weights are the saved ones to the last bit and speak alike; the form is plain."""
        copy = self.folder / 'copy.json'
        for steps in [], ['--steps', 0]:
            out = self.accepted('accuracy', *self.load, *steps, '--save', copy)
            self.assertEqual(copy.read_bytes(), self.good)
            self.assertEqual(self.body(out), self.body(self.out))
        document = json.loads(self.good)
        self.assertEqual(document['settings'], dict(
            size=8, learned=['name'], tokens=[2], patches=1, width=4, layers=1, heads=1, pieces=2, mlp=1))
        self.assertEqual((list(document), {type(n) for n in document['numbers']},
                          len(document['numbers'])), (['settings', 'numbers'], {float}, 772))
        shown = json.dumps(document, indent=1, sort_keys=True)  # in another order, other spaces
        self.file.write_text(shown.replace('0.0,', '0,'))       # and with whole numbers
        self.assertEqual(self.body(self.accepted('accuracy', *self.load)), self.body(self.out))

    def test_same_report(self):
        """What --save has written --load reports alike, of whatever shape and however it speaks."""
        speak = ['--data', self.data, '--save', self.file, *'--test 25 --jobs 1'.split()]
        for argv in ('', '--size 14 --tokens 2,2,4 --patches 2 --layers 2 --pieces 1',
                     '--tokens 3 --reconstruction 0 --heads 1 --mlp 3'):
            for how in [], '--temperature 1 --top-p 0.9 --seed 3'.split():
                with self.subTest(argv, how=how):
                    out = self.accepted('accuracy', *self.tiny, *speak, *argv.split(), *how)
                    again = self.accepted('accuracy', *speak, *how, '--load', self.file)
                    self.assertEqual(self.body(out), self.body(again))

    def test_learn_on(self):
        """--load only speaks; with --stage, --steps, --lr or --batch it learns on."""
        large = self.folder / 'large.json'
        self.accepted('accuracy', *self.tiny, '--size', 14, '--save', large)
        done = []
        learn = lambda settings, *_: done.append(settings.steps) or []
        with mock.patch.object(vlm, 'learn', learn):
            for argv, steps in [('', 0), ('--known 1 --seed 2 --decay 0 --reconstruction 0', 0),
                                ('--size 8 --tokens 2', 0), ('--stage joint', 380),
                                ('--stage frozen-eye', 380), ('--lr 0.01', 380), ('--batch 2', 380),
                                ('--steps 0', 0), ('--steps 7', 7), ('--steps 7 --stage eye', 7),
                                ('--jobs 1 --temperature 1', 0)]:
                with self.subTest(argv):
                    done.clear()
                    self.accepted('accuracy', *self.load, *argv.split())
                    self.assertEqual(sum(done), steps)
            self.accepted('accuracy', *self.load, '--load', large)
            self.accepted('accuracy', *self.load, '--load', large, '--batch', 3)
            self.assertEqual(done[-1], 1150)
        status, _, err = run(*self.load)
        self.assertEqual((status, err), (0, 'tested 2/2 images\n'))
        on = [*self.load, '--steps', 2, '--batch', 3]
        self.accepted('size 8, .*steps 2', *on, '--save', self.folder / 'on.json')
        settings, numbers = vlm.parse(list(map(str, on)))
        self.assertEqual(numbers, json.loads(self.good)['numbers'])
        training, _ = vlm.load_digits(self.data, 8)
        list(vlm.learn(settings, numbers, vlm.examples(settings, training), vlm.stage_loss,
                       gradient_of=portions()))
        self.assertEqual(numbers, json.loads((self.folder / 'on.json').read_bytes())['numbers'])

    def test_contradiction(self):
        """An option that contradicts the file is wrong; one that agrees is not."""
        for option in ('--size 14|--width 8|--heads 2|--layers 2|--pieces 1|--mlp 2|--patches 2'
                       '|--tokens 1|--tokens 2,2|--tokens 3').split('|'):
            with self.subTest(option):
                self.refused(2, f'{option.split()[0][2:]}.*contradicts', *self.load,
                             *option.split())
        self.accepted('accuracy', *self.load, *'''--size 8 --tokens 2 --heads 1 --layers 1
            --pieces 2 --width 4 --mlp 1 --patches 1 --seed 7'''.split())

    def test_damaged(self):
        """Whatever is wrong with a weights file, one line says so."""
        def changed(count=772, **changes):
            return json.dumps({'settings': {**document['settings'], **changes},
                               'numbers': [0.5] * count}).encode()
        def first(text):
            return re.sub(rb'("numbers": \[)[^,]+', rb'\g<1>' + text.encode(), self.good)
        def shapes(settings, real=vlm.shapes):
            self.assertLess(settings.layers, 10 ** 6, 'this would fill the memory')
            return real(settings)
        self.patch(vlm, shapes=shapes)
        document = json.loads(self.good)
        numbers = document['numbers']
        lacks = {name: value for name, value in document['settings'].items() if name != 'tokens'}
        cases = [b'', b'nonsense', b'null', b'1', b'[]', b'{}', b'"settings"', bytes(range(256)),
                 b'[' * 10 ** 6, b'{"settings":' * 10 ** 5, self.good[:-1], self.good + b'}',
                 *map(first, ['NaN', 'Infinity', '-Infinity', '1e999', '1' + '0' * 400,
                              '1' + '0' * 5000, '"1"', 'true', 'null', '[]', '{}', '1, 1']),
                 *(changed(**json.loads(f'{{{change}}}')) for change in '''
                     "size": 14|"size": 9|"size": 8.0|"size": "8"|"size": null|"width": 4.0
                     |"width": 8|"width": 1000000000|"width": Infinity|"width": [4]|"heads": true
                     |"heads": 0|"heads": 4|"layers": true|"layers": 0|"layers": -1|"layers": 2
                     |"layers": 1000000000|"layers": "x"|"mlp": 2|"mlp": 1.0|"pieces": ["dot"]
                     |"pieces": 8|"pieces": 0|"pieces": 1.0|"pieces": null|"patches": 0
                     |"patches": 2|"patches": 3|"patches": true|"tokens": 2|"tokens": "2"
                     |"tokens": [2, 2]|"tokens": [3]|"tokens": [0]|"tokens": [5]|"tokens": [4]
                     |"tokens": [2, 4]|"tokens": [2.0]|"tokens": ["2"]|"tokens": [[2]]
                     |"tokens": [null]|"tokens": {"2": 1}|"tokens": null|"steps": 1|"surprise": 1
                     |"vocabulary": ["e"]|"longest": 0|"stage": "joint"'''.split('|')),
                 *(changed(772 + more, tokens=tokens) for tokens, more in [
                     ([], -516), ([True], -256), ([4, 2, 2], 552)]),  # of the right length
                 *(json.dumps({**document, **change}).encode() for change in [
                     {'numbers': dict.fromkeys(map(str, range(772)), 1)}, {'numbers': 'x' * 772},
                     {'numbers': numbers[1:]}, {'numbers': [*numbers, 1.0]}, {'numbers': []},
                     {'numbers': [numbers]}, {'numbers': [[n] for n in numbers]},
                     {'numbers': None}, {'numbers': 772}, {'settings': None}, {'settings': []},
                     {'settings': {}}, {'settings': lacks}, {'settings': list(lacks)}]),
                 json.dumps({'settings': document['settings'], 'weights': numbers}).encode()]
        for number, content in enumerate(cases):
            with self.subTest(number, content=content[:170]):
                self.file.write_bytes(content)
                self.refused(1, 'weights.json', *self.load)
        for name in 'missing', 'images', 'weights.json/x', 'n' * 300:
            with self.subTest(name):
                self.refused(1, name, *self.load, '--load', self.folder / name)
        self.refused(1, '', *self.load, '--load', '')
        self.refused(1, 'missing.json is neither here nor in', *self.load, '--load', 'missing.json')

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
                words = {'': 'not a regular', '/': 'not a regular', 'link': 'pipe'}.get(name, name)
                self.refused(1, words, *self.tiny, '--save', path)

    def test_write_protected(self):
        """A file of which its owner has said that it must not change stays as it is."""
        self.file.write_bytes(b'precious')
        self.patch(vlm.os, access=lambda path, mode: (str(path), mode) != (str(self.file), os.W_OK))
        self.refused(1, 'write-protected', *self.tiny, '--save', self.file)

    @unittest.skipUnless(hasattr(os, 'mkfifo'), 'links need privileges here')
    def test_save_to_link(self):
        """A link, as /dev/stdout is one, stays a link: it is its file that gets the weights."""
        target, link = self.folder / 'target.json', self.folder / 'link.json'
        link.symlink_to(target)
        for _ in 'new', 'old':
            self.accepted('accuracy', *self.tiny, '--save', link)
            self.assertTrue(link.is_symlink())
            self.assertEqual(target.read_bytes(), self.good)

    @unittest.skipIf(os.name == 'nt', 'there, only the owner may read anyway')
    def test_mode_stays(self):
        """A file that others may not read stays so."""
        self.file.chmod(0o600)
        self.accepted('accuracy', *self.tiny, '--save', self.file)
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)

    def test_failed_save(self):
        """Whatever happens during --save, the earlier file is whole until the new one is."""
        def stop(part, path, error):
            self.assertEqual(Path(path).read_bytes(), self.file.read_bytes())
            self.assertIn('numbers', json.loads(Path(part).read_bytes()))
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
                    self.assertEqual('No space left' in err, status == 1)
                    self.assertEqual(self.contents(), before)

    def test_nothing_worthless(self):
        """Weights that --load would refuse do not replace others; nor is there a traceback."""
        document = json.loads(self.good)
        for large in 1e94, 1e60:  # gradients that are infinite, or whose squares would be
            with self.subTest(large):
                document['numbers'][:512] = [*[1e-20] * 256, *[large] * 256]
                self.file.write_text(json.dumps(document))
                argv = [*self.tiny, '--load', self.file, '--save', self.file]
                if large == 1e94:
                    self.refused(1, '(finite|nan|inf)', *argv)
                else:
                    self.accepted('accuracy', *argv)
                self.accepted('accuracy', *self.load)

class Stages(Runs):
    """Stages carried on by files: of TINY's 772 numbers, the first 512 are the eye's."""
    def stage(self, *argv):
        """A run that saves -> the eye's numbers, the mouth's"""
        self.accepted('accuracy', *self.tiny, *argv, '--save', self.folder / 'w')
        numbers = json.loads((self.folder / 'w').read_bytes())['numbers']
        return numbers[:512], numbers[512:]

    def test_stages(self):
        """Each changes its own part and no other by a bit, whatever stage has gone before."""
        for first, second in itertools.product(['', 'eye', 'mouth', 'joint'], vlm.STAGES):
            with self.subTest(second, after=first):
                load = ['--load', self.folder / 'w'] if first else []
                before = self.stage(*'--steps 3 --stage'.split(), first) if first else self.stage(
                    '--steps', 0)
                after = self.stage(*load, '--steps', 3, '--stage', second)
                self.assertEqual([a != b for a, b in zip(before, after)], {
                    'joint': [True, True], 'eye': [True, False], 'mouth': [False, True],
                    'frozen-eye': [False, True], 'frozen-mouth': [True, False]}[second])
                changed = [sum(a != b for a, b in zip(*pair)) for pair in zip(before, after)]
                self.assertTrue(all(count == 0 or count > 100 for count in changed), changed)

    def test_what_is_learned(self):
        """The eye learns without names, the mouth without images; together they use both."""
        files = digits(25, 25)
        black = {name: content[:16] + bytes(len(content) - 16) if 'images' in name else content
                 for name, content in files.items()}
        eights = {name: content[:8] + b'\x08' * 25 if 'labels' in name else content
                  for name, content in files.items()}
        start = self.folder / 'start'
        self.accepted('accuracy', *self.tiny, '--steps', 20, '--batch', 3, '--save', start)
        for stage in 'eye', 'mouth', 'frozen-eye', 'frozen-mouth', 'joint':
            first, no_image, no_name = (self.stage(
                '--data', write(self.folder / 'other', content), '--load', start, '--steps', 3,
                '--stage', stage) for content in (files, black, eights))
            with self.subTest(stage):
                self.assertEqual((first != no_image, first != no_name),
                                 (stage != 'mouth', stage != 'eye'))

class Interruptions(Runs):
    """Ctrl-C, and readers that have seen enough."""
    @unittest.skipUnless(os.path.exists('/dev/full'), 'needs /dev/full')
    def test_full(self):
        """Output to a full disk ends with one line and status 1."""
        # (If it is not buffered, argparse says nothing of help that cannot be printed.)
        for argv, unbuffered in ((), ''), ((), '1'), (('--help',), ''):
            with self.subTest(argv, unbuffered=unbuffered), open('/dev/full', 'w') as full:
                process = self.popen(*argv, stdout=full, env={'PYTHONUNBUFFERED': unbuffered})
                self.assertRegex(process.communicate(timeout=120)[1],
                                 rb'^(step .*\n)?vlm.py: .*No space left.*\n\Z')
                self.assertEqual(process.returncode, 1)

    def test_interrupt(self):
        """Ctrl-C ends training, not the program; another one ends everything at once."""
        def learn(*_):
            yield 1.0
            raise KeyboardInterrupt
        self.patch(vlm, learn=learn)
        status, out, err = run(*self.tiny, '--steps', 9, '--save', self.folder / 'saved')
        self.assertEqual(status, 0)
        self.assertIn('interrupted', err)
        self.assertIn('test accuracy', out)
        self.assertIn('numbers', json.loads((self.folder / 'saved').read_bytes()))
        for function in 'load_digits', 'first_numbers', 'save', 'report', 'speak':
            failing = mock.patch.object(vlm, function, side_effect=KeyboardInterrupt)
            with self.subTest(function), failing:
                status, _, err = run(*self.tiny, '--save', self.folder / 'saved')
                self.assertEqual((status, 'Traceback' in err), (130, False))

    def test_while_saving(self):
        """Ctrl-C a moment too late for the learning does not cost what was learned."""
        write_file, calls = vlm.write_file, []
        def interrupted(*args):
            calls.append(args)
            if len(calls) == 2:  # the first is a trial, before learning begins
                raise KeyboardInterrupt
            write_file(*args)
        self.patch(vlm, write_file=interrupted)
        self.assertEqual(run(*self.tiny, '--steps', 1, '--save', self.folder / 'saved')[0], 130)
        self.assertIn('numbers', json.loads((self.folder / 'saved').read_bytes()))

    @unittest.skipIf(os.name == 'nt', 'Windows has no SIGINT to send')
    def test_signal(self):
        """The same with true signals, to the whole group of processes as a terminal sends them."""
        black = idx(2051, 3000, 28, 28, content=bytes(3000 * 784))
        write(self.data, {'t10k-images-idx3-ubyte': black,
                          't10k-labels-idx1-ubyte': idx(2049, 3000, content=bytes(3000))})
        for status, waits, jobs, test in [(0, [b'step 100/'], 2, 10),
                                          (130, [b'step 100/', b'interrupted'], 1, 3000),
                                          (130, [b'step 100/', b'tested 1000/'], 2, 3000)]:
            with self.subTest(status=status, jobs=jobs):
                saved = self.folder / f'saved{status}{jobs}'
                process = self.popen(
                    '--steps', 10 ** 9, '--save', saved, '--test', test, '--jobs', jobs,
                    '--batch', jobs,
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
                    self.assertIn('numbers', json.loads(saved.read_bytes()))

    @unittest.skipIf(os.name == 'nt', 'a closed pipe is another error on Windows')
    def test_closed_output(self):
        """Output that nobody reads, or that is no file at all, is no traceback."""
        process = self.popen()
        process.stdout.close()
        self.assertEqual(process.stderr.read(), b'')
        process = self.popen(stderr=subprocess.STDOUT)
        process.stdout.close()
        self.assertIn(process.wait(120), (0, 1))
        # Nobody reads what it says while it learns: all the same, it saves.
        process = self.popen('--steps', 110, '--save', self.folder / 'saved')
        process.stderr.close()
        self.assertIn(b'test accuracy', process.stdout.read())
        self.assertIn('numbers', json.loads((self.folder / 'saved').read_bytes()))
        for stream in 'stdout', 'stderr':
            with self.subTest('no ' + stream):
                process = self.popen(preexec_fn=lambda: os.close(1 if stream == 'stdout' else 2))
                out, err = process.communicate(timeout=120)
                self.assertEqual((process.returncode, b'Traceback' in err), (0, False), err)
                self.assertEqual(b'test accuracy' in out, stream == 'stderr')
