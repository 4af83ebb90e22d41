"""Two-dimensional networks on volumes that are one voxel thick."""

from __future__ import annotations

from torch import Tensor

from medseg.models.layers import Network


class Planar(Network):
    """A 2D network that takes and gives volumes: planes along `axis` are pictures of their own.

    A plan whose patch has size 1 along one axis gets it. An input that is thicker there is taken plane by plane.

    Args:
        network: takes (B, C, H, W).
        axis: spatial axis (0, 1 or 2) that the network does not see.
    """

    def __init__(self, network: Network, axis: int) -> None:
        super().__init__()
        self.network = network
        self.axis = axis
        self.deep_supervision_weights = network.deep_supervision_weights

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, K, X, Y, Z) of an input (B, C, X, Y, Z); a list of them in training."""
        batch, thickness = x.shape[0], x.shape[2 + self.axis]
        planes = x.movedim(2 + self.axis, 1).flatten(0, 1)
        logits = self.network(planes)
        if isinstance(logits, list):
            return [self._stack(output, batch, thickness) for output in logits]
        return self._stack(logits, batch, thickness)

    def _stack(self, planes: Tensor, batch: int, thickness: int) -> Tensor:
        return planes.view(batch, thickness, *planes.shape[1:]).movedim(1, 2 + self.axis)
