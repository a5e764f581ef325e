"""Every command in README.md is one that vlm.py understands; the quick ones are run."""
import contextlib, io, os, re, shlex, shutil, unittest

import vlm
from tests.test_data import PROGRAM, Case, run

README = PROGRAM.parent / 'README.md'
# A command, or, as in the exercises, its options alone
COMMAND = re.compile(r'python vlm\.py([^`#|\n]*)|`(--[^`]*)`')
ROW = re.compile(r'`(\w+ \S(?: \w+){10})`')  # for QUESTIONS: an exercise

def commands():
    """-> the options of each command, in the text and in blocks, in order"""
    found = COMMAND.findall(README.read_text('utf-8'))
    return [shlex.split(''.join(options).replace('FILE', 'weights.json')) for options in found]

class Commands(Case):
    """In a folder with the project's data/, and the file that the commands save."""
    def setUp(self):
        super().setUp()
        shutil.copytree(PROGRAM.parent / 'data', self.folder / 'data',
                        ignore=shutil.ignore_patterns('t10k*', 'train*'))
        shutil.copy(self.folder / 'data' / 'weights-8.json', self.folder / 'weights.json')
        name, prompt, *answers = ROW.search(README.read_text('utf-8'))[1].split()
        self.patch(vlm, MIRRORS=[], PROMPTS={**vlm.PROMPTS, name: prompt},
                   ANSWERS={**vlm.ANSWERS, name: answers})

    def test_parsed(self):
        """None is refused."""
        self.assertGreater(len(commands()), 14)
        for argv in commands():
            with self.subTest(argv), contextlib.redirect_stderr(io.StringIO()):
                if '--help' not in argv:
                    vlm.parse(argv)

    def test_run(self):
        """Those that draw print a picture of each answer; --help shows the options."""
        self.patch(vlm, STEPS=1)
        done = 0
        for argv in commands():
            if '--draw' in argv and '--steps' not in argv or '--help' in argv:
                with self.subTest(argv):
                    status, out, err = run(*argv)
                    self.assertEqual((status, err), (0, ''))
                    self.assertRegex(out, 'usage|: .* [✓✗] ')
                    done += 1
        self.assertGreater(done, 2)

class Text(unittest.TestCase):
    """What README.md says of the files around it."""
    def test_links(self):
        """Each file that it names is there."""
        text = README.read_text('utf-8')
        for name in re.findall(r'\]\(((?!https?:)[^)#]+)', text) + re.findall(
                r'(?:src|srcset)="([^"]+)"', text):
            self.assertTrue((README.parent / name).exists(), name)

    def test_line(self):
        """The algorithm ends where it says."""
        [said] = re.findall(r'"That was the algorithm", line (\d+)', README.read_text('utf-8'))
        lines = PROGRAM.read_text('utf-8').split('\n')
        self.assertIn('That was the algorithm', lines[int(said) - 1])

    def test_size(self):
        """It stays as short as it was meant to be: 160 lines of 100 columns, tables aside, and
        1,700 words."""
        lines = [line for line in README.read_text('utf-8').split('\n')
                 if not line.startswith(('|', '<'))]
        self.assertLessEqual(len(lines), 160)
        self.assertLessEqual(max(map(len, lines)), 100)
        self.assertLessEqual(len(' '.join(lines).split()), 1700)
