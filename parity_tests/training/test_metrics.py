"""The figures of a classifier, against PyTorch's."""

import numpy as np
import pytest
import torch

from mixer_common.training.metrics import accuracy, confusion_matrix, cross_entropy


def test_metrics():
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 5.0, 1.0], [0.0, 1.0, 0.5]])
    labels = np.array([0, 1, 2])
    assert accuracy(logits, labels) == pytest.approx(2 / 3)
    assert confusion_matrix(logits, labels).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-14)
