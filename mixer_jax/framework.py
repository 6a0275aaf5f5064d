"""JAX as the scripts see it: an implementation of mixer_common.interface.Framework.

Twin of mixer_torch/framework.py.
"""

from mixer_common.machine import versions
from mixer_jax.activations import activations_of_weights, gradients_of_activations, gradients_of_weights
from mixer_jax.device import describe, prepare
from mixer_jax.download import download_cifar10
from mixer_jax.forward import logits_of_weights
from mixer_jax.modules import open_module
from mixer_jax.optimizer import update_weights
from mixer_jax.train import Trainer


class JaxFramework:
    name = "jax"
    prepare = staticmethod(prepare)
    describe = staticmethod(describe)
    logits = staticmethod(logits_of_weights)
    activations = staticmethod(activations_of_weights)
    gradients = staticmethod(gradients_of_weights)
    activation_gradients = staticmethod(gradients_of_activations)
    open_module = staticmethod(open_module)
    update_weights = staticmethod(update_weights)
    download = staticmethod(download_cifar10)

    def __init__(self):
        self.trainer = Trainer
        self.versions = versions("jax", "flax", "optax")
