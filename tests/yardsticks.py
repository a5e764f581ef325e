"""python tests/yardsticks.py: what other methods name of all 10,000 test images, from our pixels.

A linear classifier (softmax regression, learned to the end) and the nearest neighbour, both of the
55,000 images that vlm.py learns from. Needs PyTorch; VLM_MNIST=folder says where MNIST is.
"""
import os, sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import vlm

def tensors(settings, digits):
    """[(pixels, digit)] -> images [count][size * size], digits [count]"""
    images = torch.tensor([vlm.prepare(settings, pixels) for pixels, _ in digits])
    return images, torch.tensor([digit for _, digit in digits])

def linear(images, digits, test):
    """-> digits [count], by a linear classifier"""
    one = torch.ones(len(images), 1)
    weight = torch.zeros(images.shape[1] + 1, 10, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn='strong_wolfe')
    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.cat([images, one], 1) @ weight, digits)
        loss.backward()
        return loss
    optimizer.step(closure)
    return (torch.cat([test, torch.ones(len(test), 1)], 1) @ weight).argmax(1)

def nearest(images, digits, test):
    """-> digits [count], each that of the image at the smallest distance"""
    squares = (images * images).sum(1)
    return torch.cat([digits[(2 * part @ images.T - squares).argmax(1)] for part in test.split(500)])

def main():
    """Print both, at both sizes."""
    for size in 8, 14:
        settings = vlm.complete({'size': size})
        digits, test = vlm.load_digits(os.environ.get('VLM_MNIST'), size)
        (images, labels), (others, right) = tensors(settings, digits), tensors(settings, test)
        for method in linear, nearest:
            share = (method(images, labels, others) == right).float().mean().item()
            print(f'size {size}, {method.__name__}: {share:.2%}', flush=True)

if __name__ == '__main__':
    main()
