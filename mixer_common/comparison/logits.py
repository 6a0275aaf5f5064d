"""How far the logits of two sides choose the same classes."""

from dataclasses import dataclass

import numpy as np

_FEW = 5


@dataclass(frozen=True)
class LogitAgreement:
    """On how many images the logits of two sides choose the same."""

    images: int
    top1: int  # images whose highest class is the same
    top5: int | None  # images whose five highest classes are the same, in any order; None where there are no others

    def __str__(self) -> str:
        """For people."""
        sentence = f"the highest class is the same for {self.top1} of {self.images} images"
        return f"{sentence}, the five highest for {self.top5}" if self.top5 is not None else sentence


def logit_agreement(a: np.ndarray | None, b: np.ndarray | None) -> LogitAgreement | None:
    """The agreement of logits (N, num_classes), of equals the first counts; None where a side has none or others."""
    if a is None or b is None or a.shape != b.shape:
        return None
    first, second = (np.argsort(-logits, axis=1, kind="stable") for logits in (a, b))
    top5 = None
    if a.shape[1] > _FEW:
        top5 = int((np.sort(first[:, :_FEW], axis=1) == np.sort(second[:, :_FEW], axis=1)).all(axis=1).sum())
    return LogitAgreement(len(a), int((first[:, 0] == second[:, 0]).sum()), top5)
