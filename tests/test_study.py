"""The study's bookkeeping, on results made up here, and a row of it on a few images."""
import contextlib, io, json, os, unittest
from unittest import mock
from xml.etree import ElementTree

from tests import study
from tests.test_data import PROGRAM, Case, digits, write

class Study(Case):
    """Rows, runs, results, table and charts."""
    def setUp(self):
        super().setUp()
        self.old = study.RESULTS
        self.patch(study.vlm, __file__=str(PROGRAM))
        self.patch(study, TESTS=self.folder, RESULTS=self.folder / 'study.jsonl')

    def test_rows(self):
        """vlm.py accepts every row; how many images it sees, by hand."""
        for rows in study.GROUPS.values():
            for name, *options in rows:
                with self.subTest(name):
                    self.assertGreater(study.seen(options), 0)
        self.assertEqual(study.seen(['']), 16_000)
        self.assertEqual(study.seen(['--stage mouth --steps 9', '--stage eye --steps 5 --batch 4',
                                     '--steps 3 --batch 4']), 32)

    def test_run(self):
        """A row's runs carry on by files; the result is the last one's, and is read again."""
        data = write(self.folder / 'images', digits(13, 5))
        calls, run = [], study.subprocess.run
        self.patch(study, GROUPS={'Images seen, size 8': [], 'Images seen, size 14': [], 'Stages': [
            ('eye, then frozen', '--tokens 2 --width 4 --stage eye --steps 2 --batch 3',
             '--stage frozen-eye --steps 1 --batch 1')]})
        self.patch(study.subprocess, run=lambda argv, **how: calls.append(argv) or run(argv, **how))
        with mock.patch.dict(os.environ, VLM_MNIST=str(data)), \
                contextlib.redirect_stdout(io.StringIO()), \
                mock.patch.object(study, 'concurrent') as pools:
            pool = pools.futures.ProcessPoolExecutor().__enter__()
            pool.submit = lambda function, *task: function(*task) or mock.Mock()
            pools.futures.as_completed = list
            study.main()
            self.assertEqual(len(calls), 10)
            study.main()  # nothing is missing any more
        self.assertEqual(len(calls), 10)
        first, second = calls[:2]
        self.assertEqual([('--load' in argv, '--test' in argv) for argv in calls[:2]],
                         [(False, True), (True, False)])
        self.assertEqual(second[second.index('--load') + 1], first[first.index('--save') + 1])
        (results,) = study.read().values()
        self.assertEqual([(r['seed'], r['parameters'], r['engine']) for r in results],
                         [(seed, 772, study.PYTHON) for seed in range(1, 6)])
        self.assertTrue(all(r['accuracy'] % 20 == 0 <= r['error'] for r in results))
        table = (self.folder / 'study_tables.md').read_text()
        self.assertIn('| eye, then frozen | 772 | 7 | ', table)
        self.assertIn(' | `--tokens 2 --width 4 --stage eye --steps 2 --batch 3`, then '
                      '`--stage frozen-eye --steps 1 --batch 1` |\n', table)

    def test_old_results(self):
        """Of the results of the version before, only PyTorch's count, for their times."""
        old = self.old.read_text().splitlines()[:280]
        study.RESULTS.write_text('\n'.join(old) + '\n')
        results = study.read()
        self.assertEqual({engine for engine, _ in results}, {'PyTorch'})
        self.assertEqual(sorted(options for _, options in results), sorted(
            study.whole(options) for size in (8, 14)
            for _, *options in study.GROUPS[f'Images seen, size {size}']))
        self.assertNotIn('| tensor |', study.table(results))
        study.write(results)
        self.assertEqual(sorted(os.listdir(self.folder)), ['study.jsonl', 'study_tables.md'])
        for options in [''], ['--size 8 --steps 31']:
            with study.RESULTS.open('a') as file:
                file.write(json.dumps(dict(engine='PyPy 1', options=study.whole(options), seed=1,
                                           accuracy=90, error=0.5, parameters=9, seconds=9)) + '\n')
        results = study.read()
        self.assertEqual([len(study.best(results, options)) for options in (
            [''], ['--size 8 --steps 31'], ['--pieces 1'])], [1, 1, 0])
        study.write(results)
        self.assertIn('8x8, PyTorch', (self.folder / 'study_seconds.svg').read_text())
        self.assertNotIn('PyTorch', (self.folder / 'study_images.svg').read_text())

    def test_table(self):
        """Mean and standard deviation over the seeds; rows without results are left out."""
        results = {('PyPy', study.whole([''])): [
            dict(parameters=10_416, accuracy=accuracy, error=0.5, seconds=36.0)
            for accuracy in (93.0, 94.0, 95.0)],
            ('PyTorch', study.whole(['--pieces 1'])): [dict(accuracy=94.0, seconds=3600.0)]}
        table = study.table(results)
        self.assertIn('| tensor | 10,416 | 16,000 | 94.00 ± 1.00 | 0.500 ± 0.000 | 3 | 36 | 0.010 '
                      '| 0.040 | (none) |', table)
        self.assertIn('PyPy: 0.0 processor-hours, 0.00 dollars; PyTorch: 1.0 processor', table)
        self.assertNotIn('| dot |', table)

    def test_chart(self):
        """Well-formed, with every point inside the frame."""
        path = self.folder / 'chart.svg'
        study.chart(path, 'images', {'a': [(1000, 50), (9e4, 99)], 'b': [(2e5, 95)]})
        circles = ElementTree.parse(path).findall('.//{*}circle')
        self.assertEqual(len(circles), 3)
        for circle in circles:
            self.assertTrue(60 <= float(circle.get('cx')) <= 620)
            self.assertTrue(20 <= float(circle.get('cy')) <= 340)
