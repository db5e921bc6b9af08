"""What is examined: a network with its objectives, how it was trained, and its certificate.

`base` holds the one type; the other modules make such networks: `stack` a stack of multilayer perceptrons, one for each
seed (Iris), `dense` one network of some thousand parameters with its dense curvature (small MNIST), `modules` one
torch.nn.Module (MNIST, CIFAR-10, one's own), `photographs` one ResNet-50 and a folder of photographs.
"""

from fragile_lib.network.base import NUDGE, Network

__all__ = ["NUDGE", "Network"]
