"""python tests/questions.py: does the model combine what it knows, and where does a question look?

Models of size 8 learn all five questions from 60,800 images, but six of the fifty pairs of question
and digit are left out, such as the French name of 3. What do they say to these, of all test images?
And over which tokens does attention spread when the first letter of each answer is chosen? Five
seeds, one process per processor; about two minutes a seed with PyPy. VLM_MNIST=folder says where
MNIST is.
"""
import collections, concurrent.futures, os, statistics, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import vlm
from tests.study import CORES
from tests.tools import learned

LEFT_OUT = [('french', 3), ('french', 5), ('french', 8), ('next', 1), ('next', 6), ('next', 9)]
QUESTIONS = {token: question for question, token in vlm.PROMPTS.items()}

def taught(settings, digits):
    """Examples without the pairs that are left out"""
    labels = dict(digits)
    for pixels, text in vlm.examples(settings, digits):
        if (QUESTIONS[text[0]], labels[pixels]) not in LEFT_OUT:
            yield vlm.prepare(settings, pixels), text

def shares(settings, weights, x):
    """An image -> for each question, the shares of attention on each token, at the first letter"""
    vision, out = vlm.see(weights, settings, x), {}
    for question, token in vlm.PROMPTS.items():
        cache = vlm.prefill(weights, settings, vision)
        vlm.next_logits(weights, settings, token, 0, cache)
        heads = [head for *_, shares in cache for head in shares[-1]]
        out[question] = [statistics.mean(column) for column in zip(*heads)]
    return out

def study(seed):
    """-> for each pair, how often each answer was given; for each question, the mean shares"""
    settings = vlm.complete({'seed': seed, 'steps': 1900, 'questions': list(vlm.ANSWERS)})
    digits, test = vlm.load_digits(os.environ.get('VLM_MNIST'), 8)
    weights = learned(settings, vlm.first_numbers(settings), taught(settings, digits))
    said = collections.defaultdict(collections.Counter)
    looks = collections.defaultdict(list)
    for number, (pixels, digit) in enumerate(test):
        x = vlm.prepare(settings, pixels)
        for question, answer in vlm.answer(weights, settings, x)[0].items():
            said[question, digit][answer['name']] += 1
        for question, look in shares(settings, weights, x).items() if number < 1000 else ():
            looks[question].append(look)
    return dict(said), {question: [statistics.mean(column) for column in zip(*rows)]
                        for question, rows in looks.items()}

def main():
    """Print, over the seeds, what is said to the pairs left out and to others, and the shares."""
    with concurrent.futures.ProcessPoolExecutor(CORES) as pool:
        results = list(pool.map(study, range(1, 6)))
    for pairs, which in (LEFT_OUT, 'left out'), (
            [pair for pair in results[0][0] if pair not in LEFT_OUT], 'taught'):
        rights = []
        for said, _ in results:
            right = sum(said[q, digit][vlm.ANSWERS[q][digit]] for q, digit in pairs)
            rights.append(100 * right / sum(sum(said[pair].values()) for pair in pairs))
        print(f'pairs {which}: right answers, %: {" ".join(f"{r:.1f}" for r in rights)}')
    for question, digit in LEFT_OUT:
        print(f'{question} of {digit}, which is {vlm.ANSWERS[question][digit]}:')
        for said, _ in results:
            counts, number = said[question, digit], sum(said[question, digit].values())
            print('   ', ', '.join(f'{name} {count / number:.0%}'
                                   for name, count in counts.most_common(5)))
    print('shares of attention at the first letter: each vision token, the question')
    for question in vlm.ANSWERS:
        for _, looks in results:
            print(f'    {question}:', ' '.join(f'{share:.2f}' for share in looks[question]))

if __name__ == '__main__':
    main()
