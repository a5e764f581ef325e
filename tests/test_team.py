"""Data parallelism: the same bits from any number of processes, whatever happens to them."""
import contextlib, functools, itertools, json, multiprocessing, os, re, shutil, signal
import subprocess, tempfile, time, unittest
from unittest import mock

import vlm
from tests.test_cli import Runs
from tests.tools import Case, gauss, tiny

DIGITS = [(gauss(16, seed), seed % 10) for seed in range(12)]
GRADIENT = vlm.gradient
EYE = [[0.0] * 4] * 4  # of these teams' width: as if the tokens of degree 2 rebuilt nothing
METHODS = multiprocessing.get_all_start_methods()  # the default comes first
use = functools.partial(multiprocessing.set_start_method, force=True)

def where(weights, settings, wrong, item):
    """A task: the process that an item is given to; one item is wrong and cannot be worked on"""
    return os.getpid() // (item != wrong)

def die(weights, settings, common, share):
    """The task `gradient`, but another process that gets to see the digit 9 is killed at once"""
    if multiprocessing.parent_process() and 9 in [label for _, label in share]:
        os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))
    return GRADIENT(weights, settings, common, share)

def group(leader):
    """The processes of a process group that have not ended, but for its leader"""
    ps = subprocess.check_output('ps -A -o pid= -o pgid= -o stat='.split(), universal_newlines=True)
    return re.findall(rf'^ *(?!{leader} )(\d+) +{leader} +[^Z ]', ps, re.M)

class Teams(Case):
    """Teams of this process and its children."""
    def setUp(self):
        super().setUp()
        self.addCleanup(use, multiprocessing.get_start_method(allow_none=True))
        self.alone = self.work(1)[0]

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

    def work(self, jobs, disturb=lambda team: None):
        """Learn, speak, leave no process -> all numbers in full, lines on stderr, processes"""
        settings = tiny(size=4, batch=10, steps=3, degree4=0)
        weights, losses = vlm.first_weights(settings), []
        with self.stderr() as lines, vlm.Team(weights, settings, jobs) as team:
            for pair in vlm.learn(weights, settings, itertools.cycle(DIGITS), team):
                losses.append(pair)
                disturb(team)
            spoken = team.map(vlm.speak, EYE, [pixels for pixels, _ in DIGITS])
            workers = team.map(where, None, range(10))
        self.assertEqual((multiprocessing.active_children(), workers[0]), ([], os.getpid()))
        return repr((vlm.numbers(weights), losses, spoken)), lines, len(set(workers))

    def check(self, jobs, left, lost, words='', **options):
        """With this many processes, of which some are left: the same bits, a line for each loss"""
        bits, lines, workers = self.work(jobs, **options)
        self.assertEqual((workers, [words in line for line in lines]), (left, [True] * lost), lines)
        self.assertEqual(bits, self.alone)

    def test_same_bits(self):
        """Any number of processes, even more than shares, started in any way."""
        for method, jobs in [*itertools.product(METHODS, (2, 5)), (METHODS[0], 1), (METHODS[0], 3)]:
            with self.subTest(method=method, jobs=jobs):
                use(method)
                self.check(jobs, jobs, 0)

    def test_killed(self):
        """A process killed between steps or during one costs a line, no bit."""
        self.check(5, 2, 3, 'died', disturb=lambda team: team.others[0][0].kill())  # three times
        for method in METHODS:
            with self.subTest(method), mock.patch.object(vlm, 'gradient', die):
                use(method)
                self.check(3, 2, 1, 'died')

    def test_exception(self):
        """An exception in any process surfaces as itself, in a line at most; no process stays."""
        weights = vlm.first_weights(tiny())
        for method, error, jobs in itertools.product(METHODS, (ZeroDivisionError, OSError), (1, 2)):
            with self.subTest(error.__name__, method=method, jobs=jobs):
                use(method)
                with self.stderr() as lines, self.assertRaises(error), \
                        vlm.Team(weights, tiny(), jobs) as team:
                    team.map(where, error, [None, ZeroDivisionError])  # to each process an item
                    raise OSError
                self.assertLess(len(lines), jobs, lines)
                self.assertEqual(multiprocessing.active_children(), [])

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
        """One for each processor, at most the batch; 1 starts no process."""
        for count, argv, jobs in (64, '', 32), (3, '', 3), (9, '--batch 5', 5), (1, '--jobs 7', 7):
            processors = mock.patch('os.sched_getaffinity', lambda _: range(count), create=True)
            with self.subTest(argv, processors=count), processors:
                self.assertEqual(vlm.parse(argv.split())[0].jobs, jobs)
        with mock.patch('multiprocessing.Process.start', side_effect=AssertionError):
            self.accepted('accuracy', *self.tiny, '--batch', 8, '--jobs', 1)

    def test_load(self):
        """The order of the matrices in a weights file matters to no process."""
        file = self.folder / 'weights.json'
        self.accepted('accuracy', *self.tiny, '--steps', 3, '--save', file)
        file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))
        argv = [*self.tiny, '--load', file, '--batch', 8, '--test', 25, '--jobs']
        self.assertEqual(*(self.accepted('accuracy', *argv, jobs) for jobs in (1, 3)))

    @unittest.skipIf(os.name == 'nt' or not shutil.which('ps'), 'needs process groups and ps')
    def test_signals(self):
        """After Ctrl-C, a report and nobody stays; after SIGKILL to one, the others end as well."""
        self.folder.joinpath('sitecustomize.py').write_text('''import multiprocessing, os, sys
sys.stderr.isatty = lambda: True; multiprocessing.set_start_method(os.environ['METHOD'])''')
        argv = '--width 2 --heads 1 --reconstruction 0 --batch 5 --jobs 3 --steps 999999'.split()
        ends = (-1, signal.SIGINT, (0, True, False)), (1, signal.SIGKILL, (-9, False, False))
        for method, (sign, number, expected) in itertools.product(METHODS, ends):
            with self.subTest(number.name, method=method):
                process = self.popen(*argv, start_new_session=True, env={
                    'PYTHONPATH': str(self.folder), 'METHOD': method},
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
                self.assertIn(b'step ', process.stderr.read(80))  # each step, as on a terminal
                others = group(process.pid)
                self.assertGreaterEqual(len(others), 2)
                for pid in others:
                    os.kill(int(pid), signal.SIGINT)  # means nothing to them
                self.assertNotIn(b'died', process.stderr.read(4000))
                os.kill(sign * process.pid, number)  # -1: to the whole group, as a terminal does
                out, err = process.communicate(timeout=60)  # until nobody has them open
                for _ in itertools.takewhile(lambda _: group(process.pid), range(600)):
                    time.sleep(0.05)
                self.assertEqual(group(process.pid), [])
                self.assertEqual((process.returncode, b'accuracy' in out, b'Traceback' in err),
                                 expected, err)
