"""Figures of a classifier, from its logits in either framework, and the speed of its training."""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 (N, num_classes)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood, nats."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose largest logit is the label's, 0 to 1."""
    return float((logits.argmax(axis=1) == labels).mean())


def confusion_matrix(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64 (num_classes, num_classes): rows are true classes, columns predicted ones."""
    num_classes = logits.shape[1]
    flat = np.bincount(labels * num_classes + logits.argmax(axis=1), minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def images_per_second(batch_size: int, steps: int, seconds: float) -> float:
    """Training images a second over so many steps; 0 where none was timed."""
    return batch_size * steps / max(seconds, 1e-9)
