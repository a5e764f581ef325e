"""python tests/against.py FOLDER: the time that vlm.py takes for an image, as a ratio to that of
FOLDER/vlm.py.

Both learn, with the default settings and one process each, from the same first weights and the same
images, alternately step by step; then they name the same images. FOLDER has a version from before
the redesign, or a later one. The images are MNIST's, from the folder in the environment variable
VLM_MNIST, else the bundled digits.
"""
import argparse, functools, gc, importlib.util, os, platform, statistics, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import vlm

def load(folder):
    """The vlm.py of a folder, as a module of its own"""
    spec = importlib.util.spec_from_file_location('other_vlm', Path(folder) / 'vlm.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def since(module, size, steps, digits):
    """A version since the redesign -> functions: learn for a step; give a function that names
    images with what has been learned by then"""
    settings = module.complete({'size': size})
    settings.steps = max(settings.steps, steps)  # so that the learning rate is as at the beginning
    numbers = module.first_numbers(settings)
    loss = (functools.partial(module.on_pixels, module.joint_loss)
            if hasattr(module, 'on_pixels') else module.joint_loss)
    steps = module.learn(settings, numbers, module.examples(settings, digits), loss)
    def namer():
        gram = module.half_gram(module.matrices(settings, numbers), settings)
        weights = module.matrices(settings, numbers + gram)
        if not hasattr(module, 'on_pixels'):
            return lambda images: [module.answer(settings, weights, image)[0] for image in images]
        name = functools.partial(module.on_pixels, module.answer, weights, settings)
        return lambda images: [name(image)['name'] for image in images]
    def step():
        if hasattr(module, 'collect_no_cycles'):
            module.collect_no_cycles()  # as it does in processes(); others do in learn()
        return next(steps)
    return step, namer

def before(module, size, steps, digits):
    """The same for a version before the redesign, with the first weights of the current one"""
    defaults = {name: row[size == 14] for name, row in module.SETTINGS.items()}
    settings = argparse.Namespace(**{**defaults, 'size': size, 'attention': 'tensor',
                                     'stages': 'joint'})
    settings.steps = max(settings.steps, steps)
    weights = module.first_weights(settings)
    module.assign(weights, translated(module, settings))
    steps = module.learn(weights, settings, module.shuffled(digits, settings.seed))
    def namer():
        products = [module.pairs(module.numbers(weights)[f'eye.degree2.{i}']) for i in range(2)]
        gram = module.hadamard(*products)
        return lambda images: [module.speak(weights, settings, gram, pixels)[0]
                               for pixels in images]
    return lambda: next(steps), namer

def translated(module, settings):
    """The current version's first numbers in the order of a version before the redesign"""
    own = vlm.complete({'size': settings.size})
    w, eye = vlm.matrices(own, vlm.first_numbers(own)), {}
    for number, degree in enumerate(own.tokens):
        for factor in range(degree):
            eye.setdefault(f'eye.degree{degree}.{factor}', []).extend(w[f'eye{number}.{factor}'])
    places = list(map(own.vocabulary.index, module.VOCABULARY))
    mouth = {'position': w['mouth.vision_position'] + w['mouth.text_position'],
             'letter': [w['mouth.embedding'][i] for i in places],
             'head': [w['mouth.logits'][i] for i in places],
             **{f'layer0.{part}': w[f'mouth0.{part}'] for part in module.PARTS}}
    matrices = {**eye, **mouth}
    return [v for name in module.matrix_shapes(settings) for row in matrices.get(name, ())
            for v in row]

def compare(what, new, old, arguments, images):
    """Run two functions alternately, once for each argument; print their seconds per image."""
    times, results = ([], []), ([], [])
    for number, argument in enumerate(arguments):
        for which in (0, 1) if number % 2 else (1, 0):
            gc.collect()
            start = time.process_time()
            results[which].append((new, old)[which](*argument))
            times[which].append((time.process_time() - start) / images)
    ratios = sorted(a / b for a, b in zip(*times))
    mine, others = [1000 * statistics.median(own) for own in times]
    print(f'{what}: {mine:.3f} ms per image, the other {others:.3f}; new/old '
          f'{statistics.median(ratios):.3f} (half of the ratios {ratios[len(ratios) // 4]:.3f} to '
          f'{ratios[-1 - len(ratios) // 4]:.3f}); of the sums {sum(times[0]) / sum(times[1]):.3f}',
          flush=True)
    return results

def main():
    """Measure and print learning and naming."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('folder')
    parser.add_argument('--size', type=int, choices=(8, 14), default=8)
    parser.add_argument('--steps', type=int, default=100)
    given, mnist = parser.parse_args(), os.environ.get('VLM_MNIST')
    digits = (vlm.read_digits(Path(mnist), 'train', 28) if mnist
              else vlm.read_digits(ROOT / 'data', 'optdigits-train', 8))
    other, batch = load(given.folder), vlm.complete({'size': given.size}).batch
    make = since if hasattr(other, 'first_numbers') else before
    learn, namer = since(vlm, given.size, given.steps, digits)
    other_learn, other_namer = make(other, given.size, given.steps, digits)
    print(f'{platform.python_implementation()} {platform.python_version()}, size {given.size}, '
          f'{"MNIST" if mnist else "bundled digits"}, processor time, medians')
    compare(f'learning, {given.steps} steps of {batch} images', learn, other_learn,
            [()] * given.steps, batch)
    rest = [pixels for pixels, _ in digits[-len(digits) // 12:]]  # nobody learns from these
    parts = [(rest[i:i + 10],) for i in range(0, min(len(rest), 1000) - 9, 10)]
    names, others = compare(f'naming, {10 * len(parts)} images', namer(), other_namer(), parts, 10)
    same = [a == b for a, b in zip(sum(names, []), sum(others, []))]
    print(f'names alike: {sum(same)} of {len(same)}')

if __name__ == '__main__':
    main()
