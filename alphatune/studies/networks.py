"""The networks of the studies: residual networks for small images, and the same without shortcuts."""

from __future__ import annotations

from torch import Tensor, nn

from alphatune.models.cifar import BasicBlock, CifarResNet
from alphatune.studies.experiment import Experiment
from alphatune.studies.scale import Scale

#: momentum of the moving averages, and that for batches of fewer than ``SMALL`` examples, whose moments are noisy
MOMENTUM, SMALL_MOMENTUM, SMALL = 0.1, 0.01, 16


class NoShortcut(nn.Module):
    """(N, C, H, W) -> 0, which is what a block adds to its convolutions without a shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def build_network(experiment: Experiment, scale: Scale, num_classes: int) -> CifarResNet:
    """The network of an experiment with stock BatchNorm, newly initialised."""
    channels = tuple(experiment.width * n for n in scale.channels)
    model = CifarResNet(scale.depths, channels, projection=len(scale.depths) > 3, num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, BasicBlock) and experiment.network == "plain":
            module.shortcut = NoShortcut()
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = SMALL_MOMENTUM if experiment.batch_size < SMALL else MOMENTUM
    return model
