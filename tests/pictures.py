"""python tests/pictures.py: the pictures of README.md, made again from real runs.

They show what data/weights-14.json says, looks at and draws. Each is written to tests/pictures/
twice, for a light and for a dark page. VLM_MNIST=folder says where MNIST is; the screenshots of the
page need Chromium and selenium.
"""
import math, os, sys, unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import vlm
from tests.test_page import Chromium, until
from tests.test_pictures import SHIPPED, loaded

FOLDER = ROOT / 'tests' / 'pictures'
THEMES = {  # text, less important text, ink, accent, and what is its opposite
    'light': ('#1f2328', '#59626c', '#111417', '#0f6a70', '#b3541e'),
    'dark': ('#e7e5e0', '#a3abb4', '#f4f2ec', '#6fc6c4', '#f0a283')}
SHADES = 12  # of ink; a pixel takes the nearest
WEIGHTS, SETTINGS = loaded(SHIPPED[14])

class Svg:
    """A picture of one theme, that grows"""
    def __init__(self, theme):
        self.text_color, self.soft, self.ink, self.accent, self.opposite = THEMES[theme]
        self.parts, self.width, self.height = [], 0, 0

    def add(self, part, right, bottom):
        """An element that reaches so far."""
        self.parts.append(part)
        self.width, self.height = max(self.width, right), max(self.height, bottom)

    def text(self, x, y, text, soft=False, size=13, anchor='middle', color=None):
        """Text with its middle (or start) at x."""
        color = color or (self.soft if soft else self.text_color)
        text = text.replace('&', '&amp;').replace('<', '&lt;')
        self.add(f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" '
                 f'fill="{color}">{text}</text>', x, y + size / 2)

    def box(self, x, y, width, height, fill='none', stroke='none', opacity=1.0):
        """A rectangle."""
        self.add(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" '
                 f'stroke="{stroke}" opacity="{opacity:g}"/>', x + width, y + height)

    def pixels(self, x, y, side, rows):
        """Rows of numbers from -1 to 1, in a frame: ink, or accent and its opposite if signed."""
        step, signed = side / len(rows), min(map(min, rows)) < 0
        shades = {}
        for i, row in enumerate(rows):
            for j, v in enumerate(row):
                shades.setdefault(round(v * SHADES), []).append((i, j))
        for shade, places in sorted(shades.items()):
            if shade:
                color = (self.accent if shade > 0 else self.opposite) if signed else self.ink
                path = ''.join(f'M{x + step * j:.4g} {y + step * i:.4g}h{step:.4g}v{step:.4g}'
                               f'h-{step:.4g}z' for i, j in places)
                self.add(f'<path d="{path}" fill="{color}" '
                         f'fill-opacity="{abs(shade) / SHADES:.2f}"/>', 0, 0)
        self.box(x, y, side, side, stroke=self.soft, opacity=0.5)

    def image(self, x, y, side, image):
        """An image x of the model. Its mean square is 1: if flat, it is grey."""
        greys = vlm.greys(SETTINGS, image, max(2.0, *image))
        self.pixels(x, y, side, vlm.split(greys, SETTINGS.size))

    def write(self, name, theme):
        """Write the file."""
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width + 8:g} '
                f'{self.height + 6:g}" width="{self.width + 8:g}" font-family="ui-monospace, '
                'SFMono-Regular, Menlo, Consolas, monospace" shape-rendering="crispEdges">')
        (FOLDER / f'{name}-{theme}.svg').write_text(
            '\n'.join([head, *self.parts, '</svg>', '']), encoding='utf-8')

def said_of(x, question='name'):
    """What the model says of an image"""
    return vlm.answer(WEIGHTS, SETTINGS, x)[0][question]

def percent(share):
    return f'{share:.0%}'.replace('%', ' %')

def output(svg, test, drawings):
    """Six test images, the last the first that is misread; six drawings."""
    svg.text(8, 18, 'It looks, and says:', anchor='start')
    wrong = next(pair for pair in test if said_of(pair[0])['name'] != vlm.ANSWERS['name'][pair[1]])
    for column, (x, digit) in enumerate([*test[:5], wrong]):
        left, said = 8 + 112 * column, said_of(x)
        right = said['name'] == vlm.ANSWERS['name'][digit]
        svg.image(left, 30, 98, x)
        svg.text(left + 49, 148, f'{said["name"]} {"✓" if right else "✗"}',
                 color=svg.accent if right else svg.opposite)
        svg.text(left + 49, 166, percent(said['probability']), soft=True, size=12)
    svg.text(8, 204, 'You say it, and it draws:', anchor='start')
    for column, (name, x) in enumerate(drawings.items()):
        left = 8 + 112 * column
        svg.image(left, 216, 98, x)
        svg.text(left + 49, 334, name)

def sequence(svg, x):
    """Each token, the letter that it predicts, its probability, the share of looking."""
    svg.image(8, 52, 112, x)
    vision = vlm.see(WEIGHTS, SETTINGS, x)
    cache = vlm.prefill(WEIGHTS, SETTINGS, vision)
    highest = max(abs(v) for token in vision[0] for v in token)
    for number, token in enumerate(vision[0]):
        left = 140 + 58 * number
        roots = [math.copysign(math.sqrt(abs(v) / highest), v) for v in token]  # small ones, too
        svg.pixels(left, 84, 48, vlm.split(roots, 4))
        svg.text(left + 24, 152, f'VIS_{number}', size=12)
    shown, left = 'BOS', 384
    for y, text in (20, 'says'), (38, 'sure'), (186, 'looks'):
        svg.text(370, y, text, soft=True, size=12, anchor='end')
    for letter, probability in vlm.speak(WEIGHTS, SETTINGS, cache):
        heads = [head for *_, shares in cache for head in shares[-1]]
        look = sum(sum(head[:len(vision[0])]) for head in heads) / len(heads)
        svg.text(left + 24, 20, 'EOS' if letter == vlm.EOS else letter, size=16, color=svg.accent)
        svg.text(left + 24, 38, percent(probability), soft=True, size=12)
        svg.add(f'<path d="M{left + 24} 78V48m-4 8l4-8l4 8" fill="none" stroke="{svg.soft}" '
                'shape-rendering="auto"/>', 0, 0)
        svg.box(left, 84, 48, 48, stroke=svg.soft, opacity=0.5)
        svg.text(left + 24, 114, shown, size=16)
        svg.box(left, 178, 48, 9, fill=svg.soft, opacity=0.25)
        svg.box(left, 178, 48 * look, 9, fill=svg.accent)
        shown, left = letter, left + 58
    svg.text(140, 70, 'the image, as 4 tokens', soft=True, size=12, anchor='start')

def latents(svg):
    """The first token: the symmetric part of l r^T has two eigenvectors, l/|l| + r/|r|, r/|r|."""
    svg.text(8, 18, 'The 16 latents of the first vision token. Each is most positive for images like',
             anchor='start')
    svg.text(8, 36, 'its upper one or its inverse, most negative for its lower one. Orange: below 0.',
             anchor='start')
    for number, (l, r) in enumerate(zip(WEIGHTS['eye0.0'], WEIGHTS['eye0.1'])):
        l, r = vlm.rmsnorm(l), vlm.rmsnorm(r)
        for sign in 1, -1:
            v = [a + sign * b for a, b in zip(l, r)]
            top = math.copysign(max(map(abs, v)), sum(v))  # an eigenvector has no sign of its own
            svg.pixels(8 + 84 * (number % 8), 50 + 168 * (number // 8) + 78 * (sign < 0), 74,
                       vlm.split([a / top for a in v], SETTINGS.size))

def steps(svg, ways):
    """{name: images}: Some images on the way from grey."""
    for row, (name, images) in enumerate(ways.items()):
        for column, step in enumerate((0, 1, 2, 4, 8, 16, 32, 80)):
            left = 70 + 78 * column
            if row == 0:
                svg.text(left + 35, 16, f'step {step}', soft=True, size=12)
            svg.image(left, 26 + 80 * row, 70, images[step])
        svg.text(8, 66 + 80 * row, name, anchor='start')

def turned(svg, images):
    """A four on its way to nine; what is read in it."""
    for column, step in enumerate((0, 1, 2, 4, 8, 16, 32, 80)):
        said = said_of(images[step])
        left = 8 + 86 * column
        svg.text(left + 39, 16, f'step {step}', soft=True, size=12)
        svg.image(left, 26, 78, images[step])
        svg.text(left + 39, 122, said['name'])
        svg.text(left + 39, 138, percent(said['probability']), soft=True, size=12)

class Page(Chromium):
    """Takes the screenshots."""
    argv = ['--load', SHIPPED[14]]

    def runTest(self):
        """Draw a seven, ask for a six, in either theme."""
        for theme in THEMES:
            features = [{'name': 'prefers-color-scheme', 'value': theme},
                        {'name': 'prefers-reduced-motion', 'value': 'reduce'}]
            self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': features})
            self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {
                'width': 1280, 'height': 780, 'deviceScaleFactor': 1, 'mobile': False})
            self.driver.get(self.address)
            self.seven()
            until(lambda: self.driver.find_elements('css selector', '#draw-six'))
            self.find('draw-six').click()
            until(lambda: self.text('drawn-reading'))
            self.driver.execute_script('document.activeElement.blur()')
            self.driver.save_screenshot(str(FOLDER / f'page-{theme}.png'))

def main():
    """Make all of them."""
    FOLDER.mkdir(exist_ok=True)
    _, test = vlm.load_digits(os.environ.get('VLM_MNIST'), 14)
    test = [(vlm.prepare(SETTINGS, pixels), digit) for pixels, digit in test]
    ways = {name: vlm.draw(WEIGHTS, SETTINGS, f'{vlm.PROMPTS[question]}{name}{vlm.EOS}')
            for question, name in [('name', 'two'), ('name', 'four'), ('name', 'six'),
                                   ('name', 'seven'), ('french', 'cinq'), ('parity', 'odd')]}
    seven, four = (next(x for x, digit in test if digit == wanted) for wanted in (7, 4))
    nine = vlm.draw(WEIGHTS, SETTINGS, '<nine>', four)
    for theme in THEMES:
        for name, make, *given in [
                ('output', output, test, {name: images[-1] for name, images in ways.items()}),
                ('sequence', sequence, seven), ('latents', latents),
                ('steps', steps, {name: ways[name] for name in ('two', 'seven', 'odd')}),
                ('turned', turned, nine)]:
            svg = Svg(theme)
            make(svg, *given)
            svg.write(name, theme)
    unittest.TextTestRunner().run(unittest.TestSuite([Page()]))

if __name__ == '__main__':
    main()
