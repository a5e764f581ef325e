"""Questions: the table, what is learned, told, refused and kept, on the command line and the page."""
import itertools, json, math, re, unittest
from collections import Counter
from pathlib import Path
from unittest import mock

import vlm
from tests import test_page, tools
from tests.test_cli import Runs
from tests.test_data import PROGRAM, digits, write
from tests.test_model import first_step
from tests.test_pictures import SHIPPED, loaded
from tests.tools import asked, matrices, random_numbers, slopes, tiny

FIVE = 'name,next,parity,french,german'
SEVEN = dict(zip(FIVE.split(','), 'seven eight odd sept sieben'.split()))
WEIGHTS = SHIPPED[14]

class Table(unittest.TestCase):
    """QUESTIONS and what follows from it."""
    def test_answers(self):
        """Ten for each; some of them written down again."""
        self.assertEqual([*vlm.ANSWERS], FIVE.split(','))
        for question, answers in vlm.ANSWERS.items():
            self.assertEqual(len(answers), 10)
            self.assertEqual(answers[7], SEVEN[question])
        self.assertEqual([vlm.ANSWERS[question][digit] for question, digit in [
            ('name', 0), ('next', 0), ('next', 9), ('parity', 0), ('parity', 9), ('french', 0),
            ('german', 0), ('german', 5)]], 'zero one ten even odd zéro null fünf'.split())
        for name, after in zip(vlm.ANSWERS['name'][1:], vlm.ANSWERS['next']):
            self.assertEqual(name, after)
        for digit, answer in enumerate(vlm.ANSWERS['parity']):
            self.assertEqual(answer, 'odd' if digit % 2 else 'even')

    def test_tokens(self):
        """One character each, that of names BOS; none is EOS, a letter, or another question's."""
        self.assertEqual(vlm.PROMPTS['name'], vlm.BOS)
        letters = set(''.join(itertools.chain(*vlm.ANSWERS.values())))
        self.assertEqual(len({vlm.EOS, *vlm.PROMPTS.values()} - letters), 6)
        self.assertEqual({len(token) for token in vlm.PROMPTS.values()}, {1})

    def test_vocabulary(self):
        """It has what the learned questions need, and nothing else."""
        for questions, vocabulary, longest in [
                (['name'], '<>efghinorstuvwxz', 6), (['parity'], '%>denov', 5),
                (['parity', 'name'], '%<>defghinorstuvwxz', 6),
                (FIVE.split(','), '%+<>DFabcdefghilnopqrstuvwxzéü', 7)]:
            with self.subTest(questions):
                settings = vlm.complete({'questions': questions})
                self.assertEqual((''.join(settings.vocabulary), settings.longest),
                                 (vocabulary, longest))
                self.assertEqual(vlm.shapes(settings)['mouth.logits'], (len(vocabulary), 16))
        self.assertEqual(vars(vlm.complete({})), vars(vlm.complete({'questions': ['name']})))

    def test_question_of(self):
        """The first question that has an answer, of those that are learned."""
        settings = vlm.complete({'questions': ['german', 'next', 'name'], 'learned': [*vlm.ANSWERS]})
        for answer, question in [('one', 'name'), ('ten', 'next'), ('sechs', 'german'),
                                 ('six', 'name'), ('odd', None), ('sept', None), ('', None)]:
            self.assertEqual(vlm.question_of(settings, answer), question, answer)
        self.assertEqual(vlm.question_of(vlm.complete({'questions': ['french']}), 'six'), 'french')

class Learning(tools.Case):
    """Texts that begin with a question."""
    def test_gradient(self):
        """Two questions about one image: loss and every derivative against the formulas."""
        settings = tiny(vocabulary='<%>abc')
        x, numbers = [0.3, 1.1, 0.2, 1.6], random_numbers(settings)
        examples = [(x, '<ab>'), (x, '%c>')]
        def loss(numbers):
            w = matrices(settings, numbers)
            return sum(tools.loss('joint', w, settings, x, text) for x, text in examples) / 2
        expected, right = loss(numbers), slopes(loss, numbers, 3e-7)
        error, grad, _ = first_step(settings, numbers, examples)
        self.assertNear([error], [expected], 1e-10)
        self.assertNear(grad, right, 1e-7)

    def test_examples(self):
        """Each image comes with one question, and its answer; all questions get their share, with
        whole texts and with cut ones; another round asks something else."""
        settings, given = vlm.complete({'questions': FIVE.split(',')}), [(i, i % 10)
                                                                         for i in range(220)]
        rounds = list(itertools.islice(vlm.examples(settings, given), 440))
        counts, texts = Counter(), ({}, {})
        for i, (image, text) in enumerate(rounds):
            question = {token: question for question, token in vlm.PROMPTS.items()}[text[0]]
            whole = text[0] + vlm.ANSWERS[question][image % 10] + '>'
            self.assertIn(text, (whole, whole[:3]))
            counts[question, text == whole] += 1
            texts[i // 220][image] = question
        self.assertEqual(set(texts[0]), set(range(220)))
        self.assertGreater(sum(texts[0][image] != texts[1][image] for image in range(220)), 100)
        self.assertEqual(len(counts), 10)
        for count in counts.values():
            self.assertEqual(count, 44)

class Answering(unittest.TestCase):
    """What comes with the project has learned all five."""
    @classmethod
    def setUpClass(cls):
        cls.weights, cls.settings = loaded(WEIGHTS)
        with mock.patch.object(vlm, 'STEPS', 20):  # enough for a seven
            cls.x = vlm.draw(cls.weights, cls.settings, 'Dsieben>')[-1]

    def test_same_image(self):
        """Another question about the same image gets another answer, and the right one."""
        self.assertEqual(self.settings.questions, FIVE.split(','))
        said = {question: asked(self.weights, self.settings, self.x, question)
                for question in self.settings.questions}
        self.assertEqual({question: answer['name'] for question, answer in said.items()}, SEVEN)
        self.assertEqual(vlm.answer(self.weights, self.settings, self.x)[0], said)

    def test_order(self):
        """What was asked before, or is asked as well, makes no difference."""
        fewer = vlm.argparse.Namespace(**{**vars(self.settings), 'questions': ['french', 'name']})
        every, _ = vlm.answer(self.weights, self.settings, self.x)
        some, _ = vlm.answer(self.weights, fewer, self.x)
        self.assertEqual(some, {question: every[question] for question in fewer.questions})

class Command(Runs):
    """--questions, alone and with --load."""
    def test_report(self):
        """A line for each question, in the order asked; the first one's answers are shown."""
        out = self.accepted('accuracy', *self.tiny, '--questions', FIVE)
        self.assertEqual(re.findall(r'test accuracy(.*): \d/2 = \d+\.\d\d% \(95% interval ', out),
                         ['', ' of next', ' of parity', ' of french', ' of german'])
        self.assertIn('[1] true: one | ', out)
        out = self.accepted('accuracy of parity', *self.tiny, '--questions', 'parity,german')
        self.assertEqual(re.findall('accuracy(.*?):', out), [' of parity', ' of german'])
        self.assertIn('[1] true: odd | ', out)

    def test_name_alone(self):
        """It is the default, and the report's last line is what it was."""
        outs = [self.accepted('accuracy', *self.tiny, *argv) for argv in ([], ['--questions', 'name'])]
        self.assertEqual(*outs)
        self.assertRegex(outs[0], r'\ntest accuracy: \d/2 = ')

    def test_counts(self):
        """By hand: a model that says "odd" to everything."""
        odd = {'name': 'odd', 'probability': 0.5}
        self.patch(vlm, answer=lambda *_: ({'name': odd, 'parity': odd}, 1.0))
        argv = [*self.tiny, '--steps', 0, '--test', 25, '--questions', 'name,parity']
        out = self.accepted('accuracy: 0/25 = 0.00%', *argv)
        self.assertIn('accuracy of parity: 12/25 = 48.00% (95% interval 30.03-66.50)\n', out)

    def test_wrong(self):
        """Unknown, repeated, none."""
        self.refused(2, 'questions', *self.tiny, '--questions', 'color', '--draw', 'all')
        for questions in 'color', 'Name', 'name,', ',', '', 'name,name', 'name,parity,name', 'name;next':
            with self.subTest(questions):
                self.refused(2, 'questions', *self.tiny, '--questions', questions)

    def test_load(self):
        """A file says what it knows; of that, one can ask less, and loses nothing."""
        file, copy = self.folder / 'two.json', self.folder / 'copy.json'
        self.accepted('accuracy of german', *self.tiny, '--questions', 'name,german', '--save', file)
        load = ['--data', self.data, '--test', 2, '--jobs', 1, '--load', file]
        every = self.accepted('accuracy: (.|\n)*accuracy of german', *load)
        self.assertIn("questions ['name', 'german']", every)
        less = self.accepted('accuracy of german', *load, '--questions', 'german', '--save', copy)
        self.assertNotIn('accuracy: ', less)
        self.assertEqual(every.split('\n')[-2], less.split('\n')[-2])
        self.assertEqual(copy.read_bytes(), file.read_bytes())
        on = [*load, '--steps', 1, '--batch', 4, '--questions', 'german', '--save', copy]
        self.accepted('accuracy of german', *on)
        before, after = (json.loads(path.read_text()) for path in (file, copy))
        self.assertEqual(before['settings'], after['settings'])
        self.assertNotEqual(before['numbers'], after['numbers'])
        for questions in 'parity', 'german,parity', 'name,name', '':
            with self.subTest(questions):
                self.refused(2, 'questions', *load, '--questions', questions)

    def test_old_file(self):
        """A file that says nothing of questions knows the name, and nothing else."""
        file = self.folder / 'old.json'
        self.accepted('accuracy', *self.tiny, '--save', file)
        document = json.loads(file.read_text())
        self.assertEqual(document['settings'].pop('learned'), ['name'])
        file.write_text(json.dumps(document))
        load = ['--data', self.data, '--test', 2, '--load', file]
        self.assertEqual(self.accepted('accuracy: ', *load),
                         self.accepted('accuracy: ', *load, '--questions', 'name'))
        self.refused(2, 'questions', *load, '--questions', 'parity')

    def test_damaged(self):
        """Whatever a file says of questions, it is read or refused with one line."""
        file = self.folder / 'weights.json'
        self.accepted('accuracy', *self.tiny, '--save', file)
        document = json.loads(file.read_text())
        for learned in (None, [], '', 'name', 1, {}, {'name': 1}, [None], [[]], ['name', 'name'], ['color'],
                        ['name', 'color'], ['name', 'parity'], ['parity'], ['names'], True):
            with self.subTest(learned):
                document['settings']['learned'] = learned
                file.write_text(json.dumps(document))
                self.refused(1, 'weights.json is damaged', *self.tiny, '--load', file)
        document['settings'].update(learned=['name'], questions=['name'])
        file.write_text(json.dumps(document))
        self.refused(1, 'weights.json is damaged', *self.tiny, '--load', file)

    def test_draw(self):
        """Any answer that is known can be drawn, on any terminal; `all` are the first question's."""
        load = ['--load', WEIGHTS, '--draw']
        self.patch(vlm, STEPS=5)
        self.assertRegex(self.accepted('odd', *load, 'odd,fünf'), 'odd: odd ✓ .* fünf: fünf ✓ ')
        self.assertIn('f?nf: f?nf + ', self.accepted('nf', *load, 'fünf', encoding='ascii'))
        out = self.accepted('odd', *load, 'all', '--questions', 'parity')
        self.assertEqual(re.findall(r'(\w+): \w+ ✓', out), ['even', 'odd'])
        self.patch(vlm, STEPS=1)  # now whatever is read in them will do
        out = self.accepted('one', *load, 'all', '--questions', 'next,name')  # in any order
        self.assertEqual(re.findall(r'(\w+): \w+ .', out), vlm.ANSWERS['name'])
        for answers in 'siebzig', 'odd,', 'odd,all', 'Sept', 'parity':
            with self.subTest(answers):
                self.refused(2, 'draw', *load, answers)
        self.refused(2, 'draw', '--load', SHIPPED[8], '--draw', 'odd')

class TooLarge(Runs):
    """Weights of such a size that products overflow."""
    def test_too_large(self):
        """A line says so, on the command line and in the answer to a request."""
        file = self.folder / 'large.json'
        self.accepted('accuracy', *self.tiny, '--save', file)
        document = json.loads(file.read_text())
        document['numbers'] = [1e60 * (n + 1) for n in document['numbers']]
        file.write_text(json.dumps(document))
        self.refused(1, 'too large', '--load', file, '--draw', 'seven')
        process = self.popen('--load', file, '--steps', 0, '--jobs', 2)  # the other says nothing
        _, err = process.communicate()
        self.assertEqual((process.returncode, err.count(b'\n'), err.count(b'too large')), (1, 1, 1))
        server = test_page.Server(self.folder, '--load', file)
        self.addCleanup(server.end)
        for path, body in ('/read', bytes(range(64))), ('/draw', b'{"name": "one"}'):
            status, answer = server.exchange(server.request('POST', path, body))
            self.assertEqual((status, [*test_page.strict(answer)]), (400, ['error']))
            self.assertIn('too large', test_page.strict(answer)['error'])

class Quick(test_page.Case):
    """A server that draws in ten steps, not eighty, for the time."""
    @classmethod
    def begin(cls):
        """-> the server"""
        program = cls.folder / 'quick.py'
        program.write_text(f'import sys\nsys.path.insert(0, {str(PROGRAM.parent)!r})\n'
                           'import vlm\nvlm.STEPS = 10\nvlm.main()\n')
        server = test_page.Server(cls.folder, *cls.argv, program=program)
        cls.addClassCleanup(server.end)
        return server

class Page(Quick):
    """The JSON interface."""
    argv = ['--load', WEIGHTS]

    def test_read(self):
        """?ask= chooses; without it, the first question; each answer says which there are."""
        ink = test_page.scribble(3)
        weights, settings = loaded(WEIGHTS)
        x = vlm.prepare(settings, vlm.centre(ink))
        expected, _ = vlm.answer(weights, settings, x)
        for query, question in [('', 'name'), ('?', 'name'), ('?ask=', 'name'), ('?x=parity', 'name'),
                                *((f'?ask={question}', question) for question in expected),
                                ('?ask=name&ask=french', 'french'), ('?ask=fr%65nch', 'french')]:
            with self.subTest(query):
                got = self.server.post('/read' + query, ink)
                self.assertEqual({name: got[name] for name in expected[question]},
                                 expected[question])
                self.assertEqual([*got['questions']], settings.questions)
                for other, answer in expected.items():
                    self.assertEqual(got['questions'][other],
                                     {**answer, 'answers': vlm.ANSWERS[other]})
        self.assertEqual(len({answer['name'] for answer in expected.values()}), 5)

    def test_refused(self):
        """A question that is not known, or no question at all, is the asker's mistake."""
        for query in 'color', 'Name', 'name,next', '%00', '%ff', 'x' * 9999, '%F0%9F%92%A9':
            with self.subTest(query[:20]):
                status, _, body = self.server.ask('POST', f'/read?ask={query}', bytes(64))
                self.assertEqual(status, 400)
                self.assertIn('question', json.loads(body)['error'])

    def test_draw(self):
        """An answer to any question is drawn, and read as an answer to that question."""
        for name in 'sieben', 'even', 'ten':
            got = self.server.draw({'name': name})
            self.assertEqual(got['read'], name)
        six, seven = (self.server.post(f'/draw?ask={question}', {'name': 'seven'})
                      for question in ('next', 'name'))
        self.assertEqual((six['read'], seven['read']), ('seven', 'seven'))
        self.assertNotEqual(six['frames'], seven['frames'])
        for name in 'siebzig', '', 'all', 7, None, ['odd'], {}:
            with self.subTest(name):
                status, _, _ = self.server.ask('POST', '/draw', json.dumps({'name': name}))
                self.assertEqual(status, 400)

class FewerQuestions(Quick):
    """A server that is asked less than its weights know."""
    argv = ['--load', WEIGHTS, '--questions', 'german,parity']

    def test_first(self):
        """The first of them is the default; the others are neither answered nor drawn."""
        got = self.server.read(test_page.scribble(3))
        self.assertIn(got['name'], vlm.ANSWERS['german'])
        self.assertEqual([*got['questions']], ['german', 'parity'])
        self.assertEqual(self.server.ask('POST', '/read?ask=name', bytes(64))[0], 400)
        self.assertEqual(self.server.draw({'name': 'sechs'})['read'], 'sechs')
        self.assertEqual(self.server.ask('POST', '/draw', b'{"name": "six"}')[0], 400)

class Browser(test_page.Chromium):
    """The page, in a browser."""
    argv = ['--load', WEIGHTS]

    def buttons(self):
        """-> question: its answer, its probability; the one that is chosen"""
        rows = self.driver.execute_script("""
            return [...document.querySelectorAll('#questions button')].map(b =>
              [b.dataset.question, b.children[1].textContent, b.children[2].textContent,
               b.getAttribute('aria-pressed')])""")
        return ({question: (name, probability) for question, name, probability, _ in rows},
                [question for question, *_, pressed in rows if pressed == 'true'])

    def choose(self, question):
        self.driver.find_element('css selector', f'[data-question={question}]').click()

    def test_ask(self):
        """All questions have their answers; the chosen one is spelled, and offers what to draw."""
        until = test_page.until
        until(lambda: len(self.buttons()[0]) == 5)
        self.assertEqual({*self.buttons()[0].values()}, {('', '')})
        self.seven()
        until(lambda: {question: name for question, (name, _) in self.buttons()[0].items()} == SEVEN)
        for question, answers in [('german', 10), ('parity', 2), ('name', 10)]:
            with self.subTest(question):
                self.choose(question)
                until(lambda: self.text('name') == SEVEN[question])
                self.answered()
                self.assertEqual(self.buttons()[1], [question])
                names = self.driver.find_elements('css selector', '.names button')
                self.assertEqual([button.text for button in names],
                                 list(dict.fromkeys(vlm.ANSWERS[question])))
                self.assertEqual(len(names), answers)
        self.assertRegex(self.buttons()[0]['german'][1], r'^\d+ %$')
        self.choose('parity')
        self.find('draw-even').click()
        until(lambda: self.text('drawn-reading'))
        self.assertIn('even', self.text('drawn-reading'))
        self.find('clear').click()
        until(lambda: not self.text('name'))
        self.assertEqual({*self.buttons()[0].values()}, {('', '')})
