"""The study's bookkeeping, on results made up here."""
import tempfile
import unittest
from pathlib import Path
from xml.etree import ElementTree

from tests import study


class Study(unittest.TestCase):
    """Rows, table and charts"""

    def test_rows(self):
        """vlm.py accepts every row; how many images it sees, by hand"""
        for rows in study.GROUPS.values():
            for name, options in rows:
                with self.subTest(name):
                    self.assertGreater(study.seen(options), 0)
        self.assertEqual(study.seen('--stages mouth:9,eye:5,joint --steps 3 --batch 4'), 32)

    def test_table(self):
        """Mean and standard deviation over the seeds; rows without results are left out"""
        results = {('PyPy', ''): [
            dict(parameters=10_416, accuracy=accuracy, error=0.5, seconds=36.0)
            for accuracy in (93.0, 94.0, 95.0)],
            ('PyTorch', '--attention dot'): [dict(accuracy=94.0, seconds=3600.0)]}
        table = study.table(results)
        self.assertIn('| tensor | 10,416 | 16,000 | 94.00 ± 1.00 | 0.500 ± 0.000 | 3 | 36 | 0.010 '
                      '| 0.040 |', table)
        self.assertIn('PyPy: 0.0 processor-hours, 0.00 dollars; PyTorch: 1.0 processor', table)
        self.assertNotIn('| dot |', table)

    def test_chart(self):
        """Well-formed, with every point inside the frame"""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'chart.svg'
            study.chart(path, 'images', {'a': [(1000, 50), (9e4, 99)], 'b': [(2e5, 95)]})
            circles = ElementTree.parse(path).findall('.//{*}circle')
        self.assertEqual(len(circles), 3)
        for circle in circles:
            self.assertTrue(60 <= float(circle.get('cx')) <= 620)
            self.assertTrue(20 <= float(circle.get('cy')) <= 340)


if __name__ == '__main__':
    unittest.main()
