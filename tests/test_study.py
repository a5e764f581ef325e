"""The study's bookkeeping, on results made up here, and a row of it on a few images."""
import contextlib, io, json, os
from unittest import mock

from tests import study
from tests.test_data import PROGRAM, Case, digits, write

class Study(Case):
    """Rows, runs, results and the table."""
    def setUp(self):
        super().setUp()
        self.patch(study.vlm, __file__=str(PROGRAM))
        self.patch(study, RESULTS=self.folder / 'study.jsonl')

    def test_rows(self):
        """vlm.py accepts every row; rows with the same options have as many seeds."""
        seeds = {}
        for rows in study.GROUPS.values():
            for name, count, *options in rows:
                with self.subTest(name):
                    for argv in options:
                        study.vlm.parse(argv.split())
                    self.assertEqual(seeds.setdefault(tuple(options), count), count)
        files = {study.weights_file('', options, 1) for options in seeds}
        self.assertEqual(len(files), len(seeds))

    def test_run(self):
        """A row's runs carry on by files; the result is the last one's, and is read again."""
        data = write(self.folder / 'images', digits(13, 5))
        calls, run = [], study.subprocess.run
        self.patch(study, GROUPS={'Stages': [
            ('eye, then frozen', 2, '--tokens 2 --width 4 --stage eye --steps 2 --batch 3 '
             '--questions name,parity', '--stage frozen-eye --steps 1 --batch 1')]})
        self.patch(study.subprocess, run=lambda argv, **how: calls.append(argv) or run(argv, **how))
        out = io.StringIO()
        with mock.patch.dict(os.environ, VLM_MNIST=str(data)), contextlib.redirect_stdout(out), \
                mock.patch.object(study, 'concurrent') as pools:
            pool = pools.futures.ProcessPoolExecutor().__enter__()
            pool.submit = lambda function, *task: function(*task) or mock.Mock()
            study.main(self.folder / 'weights')
            self.assertEqual(len(calls), 4)
            study.main(self.folder / 'weights')  # nothing is missing any more
        self.assertEqual(len(calls), 4)
        first, second = calls[:2]
        self.assertEqual([('--load' in argv, '--test' in argv) for argv in calls[:2]],
                         [(False, True), (True, False)])
        self.assertEqual(second[second.index('--load') + 1], first[first.index('--save') + 1])
        (results,) = study.read().values()
        self.assertEqual([(seed, r['seed'], r['engine']) for seed, r in results.items()],
                         [(seed, seed, study.PYTHON) for seed in (1, 2)])
        for result in results.values():
            self.assertEqual([*result['accuracy']], ['name', 'parity'])
            self.assertTrue(all(share % 20 == 0 for share in result['accuracy'].values()))
        self.assertIn('| eye, then frozen: parity | ', out.getvalue())
        self.assertEqual(len(os.listdir(self.folder / 'weights')), 2)

    def test_table(self):
        """Mean, standard deviation and range over the seeds; rows without results are left out."""
        with study.RESULTS.open('w') as file:
            for seed, accuracy in enumerate((93.0, 94.0, 95.0), 1):
                file.write(json.dumps(dict(
                    engine='PyPy', options=[''], seed=seed, parameters=10_416, error=0.5,
                    accuracy={'name': accuracy}, seconds=1200.0)) + '\n')
        table = study.table(study.read())
        self.assertIn('| size 8 | 10,416 | 12,160 | 94.00 ± 1.00 | 93.00 to 95.00 | 0.500 | 3 | '
                      '1200 | (none) |', table)
        self.assertIn('PyPy: 1.0 processor-hours', table)
        self.assertNotIn('| size 14 |', table)
