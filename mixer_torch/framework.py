"""PyTorch as the scripts see it: an implementation of mixer_common.interface.Framework.

Twin of mixer_jax/framework.py.
"""

from functools import partial

from mixer_common.machine import versions
from mixer_torch.activations import activations_of_weights, gradients_of_activations, gradients_of_weights
from mixer_torch.device import describe, prepare
from mixer_torch.download import download_cifar10
from mixer_torch.forward import logits_of_weights
from mixer_torch.modules import open_module
from mixer_torch.optimizer import update_weights
from mixer_torch.train import Trainer


class TorchFramework:
    name = "torch"
    prepare = staticmethod(prepare)
    describe = staticmethod(describe)
    logits = staticmethod(logits_of_weights)
    activations = staticmethod(activations_of_weights)
    gradients = staticmethod(gradients_of_weights)
    activation_gradients = staticmethod(gradients_of_activations)
    open_module = staticmethod(open_module)
    update_weights = staticmethod(update_weights)
    download = staticmethod(download_cifar10)

    def __init__(self, compiled: bool = False):
        """compiled: run the forward and backward passes through torch.compile."""
        self.trainer = partial(Trainer, compiled=compiled)
        self.versions = versions("torch", "torchvision")
