"""Data parallelism: the same bits from any number of processes, whatever happens to them."""
import contextlib, functools, gc, itertools, multiprocessing, os, platform, random, re, shutil
import signal, subprocess, tempfile, time, unittest
from unittest import mock

import vlm
from tests.test_cli import Runs
from tests.test_data import PROGRAM
from tests.tools import portions

SETTINGS = vlm.complete(dict(size=4, tokens=[2, 3], width=4, heads=1, layers=2, batch=10, steps=3,
                             temperature=0.5))
RNG = random.Random(0)
DIGITS = [([RNG.randrange(256) for _ in range(16)], i % 10) for i in range(24)]
GRADIENT = vlm.gradient
METHODS = multiprocessing.get_all_start_methods()  # the default comes first
use = functools.partial(multiprocessing.set_start_method, force=True)

def where(wrong, item):
    """A task: the process that an item is given to; one item is wrong and cannot be worked on"""
    return os.getpid() // (item != wrong)

def collects(item):
    """A task: whether the process that an item is given to searches for cycles"""
    return gc.isenabled()

def die(settings, loss, numbers, portion):
    """The task `gradient`, but another process that gets the last, smaller portion is killed"""
    if multiprocessing.parent_process() and len(portion) < 4:
        os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))
    return GRADIENT(settings, loss, numbers, portion)

def group(leader):
    """The processes of a process group that have not ended, but for its leader"""
    ps = subprocess.check_output('ps -A -o pid= -o pgid= -o stat='.split(), universal_newlines=True)
    return re.findall(rf'^ *(?!{leader} )(\d+) +{leader} +[^Z ]', ps, re.M)

class Processes(unittest.TestCase):
    """This process and its children."""
    bits = None  # see alone()

    def setUp(self):
        patcher = mock.patch.object(vlm, 'PORTIONS', 3)  # of 4, 4 and 2 examples
        patcher.start()
        self.addCleanup(patcher.stop)
        self.addCleanup(use, multiprocessing.get_start_method(allow_none=True))
        self.on_interrupt = signal.getsignal(signal.SIGINT)

    def alone(self):
        """-> what one process works out, in full; this is done once for all tests"""
        if self.bits is None:
            type(self).bits = self.work(1)[0]
        return self.bits

    @contextlib.contextmanager
    def stderr(self):
        """Standard error of this process and its children, as a list of lines once it is over"""
        lines, kept = [], os.dup(2)
        with tempfile.TemporaryFile('w+') as file, contextlib.redirect_stderr(file):
            os.dup2(file.fileno(), 2)
            try:
                yield lines
            finally:
                os.dup2(kept, 2)
                os.close(kept)
                file.seek(0)
                lines += file

    def nobody(self):
        """No process is left, and Ctrl-C means what it meant before."""
        self.assertEqual(multiprocessing.active_children(), [])
        self.assertEqual(signal.getsignal(signal.SIGINT), self.on_interrupt)

    def work(self, count, disturb=lambda: None, **changes):
        """Learn, speak, leave no process -> all numbers in full, lines on stderr, processes"""
        settings = vlm.argparse.Namespace(**{**vars(SETTINGS), **changes})
        numbers, losses = vlm.first_numbers(settings), []
        places = vlm.learning_places(settings)
        with self.stderr() as lines, vlm.processes(count) as map:
            for error in vlm.learn(settings, numbers, vlm.examples(settings, DIGITS),
                                   vlm.stage_loss, places, portions(map)):
                losses.append(error)
                disturb()
            weights = vlm.matrices(settings, numbers)
            images = map(functools.partial(vlm.prepare, settings), [pixels for pixels, _ in DIGITS])
            spoken = map(functools.partial(vlm.answer, weights, settings), images)
            workers = list(map(functools.partial(where, None), range(10)))
        self.nobody()
        self.assertEqual(workers[0], os.getpid())
        return repr((numbers, losses, list(spoken))), lines, len(set(workers))

    def check(self, count, left, lost, words='', **options):
        """With this many processes, of which some are left: the same bits, a line for each loss"""
        bits, lines, workers = self.work(count, **options)
        self.assertEqual((workers, [words in line for line in lines]), (left, [True] * lost), lines)
        self.assertEqual(bits, self.alone())

    def test_no_thread(self):
        """Another process that cannot start its thread ends without a word."""
        self.addCleanup(signal.signal, signal.SIGINT, self.on_interrupt)
        self.addCleanup(gc.enable)
        with mock.patch.object(vlm.threading, 'Thread', side_effect=RuntimeError):
            self.assertIsNone(vlm.follow(None))

    def test_same_bits(self):
        """Any number of processes, even more than portions, started in any way."""
        for method, count in [*itertools.product(METHODS, (2, 5)), (METHODS[0], 1),
                              (METHODS[0], 3)]:
            with self.subTest(method=method, count=count):
                use(method)
                self.check(count, count, 0)

    def test_stages(self):
        """The same bits in each stage; and without vlm.processes(), with Python's own map()."""
        for stage in vlm.STAGES:
            with self.subTest(stage):
                self.assertEqual(self.work(3, stage=stage)[:2], self.work(1, stage=stage)[:2])
        numbers = vlm.first_numbers(SETTINGS)
        losses = list(vlm.learn(SETTINGS, numbers, vlm.examples(SETTINGS, DIGITS),
                                vlm.stage_loss, None, portions()))
        self.assertEqual(self.alone()[:self.alone().index('], [({')], repr((numbers, losses))[:-2])

    def test_garbage(self):
        """On CPython no process searches for cycles; afterwards, as before. PyPy goes on, as its
        memory would fill up otherwise."""
        for method in METHODS:
            use(method)
            with self.subTest(method), vlm.processes(2) as map:
                self.assertEqual(list(map(collects, range(2))),
                                 [platform.python_implementation() != 'CPython'] * 2)
            self.assertTrue(gc.isenabled())

    def test_order(self):
        """Results come in the order of the items, however many they are; pipes get closed."""
        for method in METHODS:
            use(method)
            ends, pipe = [], multiprocessing.Pipe
            record = mock.patch('multiprocessing.Pipe', lambda: ends.append(pipe()) or ends[-1])
            with self.subTest(method), record, vlm.processes(3) as map:
                for count in *range(8), 100:
                    self.assertEqual(list(map(abs, range(-count, 0))), list(range(count, 0, -1)))
                big = ['x' * 10 ** 6] * 3  # more than a pipe holds
                self.assertEqual(list(map(str.upper, big)), ['X' * 10 ** 6] * 3)
            self.nobody()
            self.assertEqual([end.closed for pair in ends for end in pair], [True] * 4)

    def test_killed(self):
        """A process killed between steps or during one costs a line, no bit."""
        def kill():
            child = multiprocessing.active_children()[0]
            child.kill()
            child.join()
        self.check(5, 2, 3, 'died', disturb=kill)  # three times
        for method in METHODS:
            with self.subTest(method), mock.patch.object(vlm, 'gradient', die):
                use(method)
                self.check(3, 1, 2, 'died')  # then the other, which now gets the last portion

    def test_exception(self):
        """An exception in any process surfaces as itself, in a line at most; no process stays."""
        for method, error, count in itertools.product(METHODS, (ZeroDivisionError, OSError),
                                                      (1, 2)):
            with self.subTest(error.__name__, method=method, count=count):
                use(method)
                with self.stderr() as lines, self.assertRaises(error), \
                        vlm.processes(count) as map:
                    # To each process an item; one that cannot be worked on, if that is the error.
                    list(map(functools.partial(where, error), [None, ZeroDivisionError]))
                    raise OSError
                self.assertLess(len(lines), count, lines)
                self.nobody()

    def test_cannot_start(self):
        """Where processes cannot be started a line says so, and those that are there go on."""
        pipe, error = multiprocessing.Pipe, OSError(11, 'no more')
        for name, effects, left in [('Process.start', error, 1), ('Pipe', error, 1),
                                    ('Pipe', [pipe(), pipe(), error], 3)]:
            with self.subTest(name, left=left), \
                    mock.patch(f'multiprocessing.{name}', side_effect=effects):
                self.check(5, left, 1, 'no more')

class Jobs(Runs):
    """--jobs, and the whole program with several processes."""
    def test_number(self):
        """0, the default, is one for each processor, at most 64; 1 starts no process."""
        for count, argv, jobs in [(99, '', 64), (99, '--jobs 0', 64), (3, '', 3),
                                  (1, '--jobs 7', 7), (2, '--size 14', 2), (64, '--jobs 1', 1),
                                  (2, '--jobs 1000000', 64)]:
            processors = mock.patch('os.sched_getaffinity', lambda _: range(count), create=True)
            with self.subTest(argv, processors=count), processors:
                self.assertEqual(vlm.parse(argv.split())[0].jobs, jobs)
        with mock.patch('multiprocessing.Process.start', side_effect=AssertionError):
            self.accepted('accuracy', *self.tiny, '--batch', 8, '--jobs', 1)

    def test_load(self):
        """Learning on from a file, each stage is the same for any number of processes."""
        start, file = self.folder / 'start.json', self.folder / 'file.json'
        self.accepted('accuracy', *self.tiny, '--steps', 3, '--save', start)
        argv = [*self.tiny, '--load', start, '--save', file, '--batch', 10, '--test', 25]
        for stage in vlm.STAGES:
            with self.subTest(stage):
                found = [(self.accepted('accuracy', *argv, '--stage', stage, '--jobs', jobs),
                          file.read_bytes()) for jobs in (1, 3)]
                self.assertEqual(*found)
                self.assertNotEqual(file.read_bytes(), start.read_bytes())

    @unittest.skipIf(os.name == 'nt' or not shutil.which('ps'), 'needs process groups and ps')
    def test_signals(self):
        """After Ctrl-C, a report and nobody stays; after SIGKILL to one, the others end as well."""
        self.folder.joinpath('sitecustomize.py').write_text('''import multiprocessing, os, sys
sys.stderr.isatty = lambda: True; multiprocessing.set_start_method(os.environ['METHOD'])''')
        driver = '-c', 'import sys, vlm; vlm.PORTIONS = 3; vlm.main(sys.argv[1:])'
        argv = '--width 2 --heads 1 --reconstruction 0 --batch 10 --jobs 3 --steps 999999'.split()
        ends = (-1, signal.SIGINT, (0, True, False)), (1, signal.SIGKILL, (-9, False, False))
        for method, (sign, number, expected) in itertools.product(METHODS, ends):
            with self.subTest(number.name, method=method):
                process = self.popen(*argv, program=driver, start_new_session=True, env={
                    'PYTHONPATH': os.pathsep.join(map(str, [self.folder, PROGRAM.parent])),
                    'METHOD': method},
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
                self.assertIn(b'step ', process.stderr.read(80))  # each step, as on a terminal
                others = group(process.pid)
                self.assertGreaterEqual(len(others), 2)
                for pid in others:
                    os.kill(int(pid), signal.SIGINT)  # means nothing to them
                self.assertNotIn(b'died', process.stderr.read(2000))
                os.kill(sign * process.pid, number)  # -1: to the whole group, as a terminal does
                out, err = process.communicate(timeout=60)  # until nobody has them open
                for _ in itertools.takewhile(lambda _: group(process.pid), range(600)):
                    time.sleep(0.05)
                self.assertEqual(group(process.pid), [])
                self.assertEqual((process.returncode, b'accuracy' in out, b'Traceback' in err),
                                 expected, err)
