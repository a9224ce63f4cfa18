"""What a step is told it did wrong."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it


def deep_supervision(
    logits: Sequence[Tensor], target_N1HW: Tensor, *, iou_weight: float
) -> tuple[Tensor, Tensor]:
    """Return the loss over (d0, d1 … d6), each (N, 1, h, w), and that of d0's cross entropy alone.

    The sum of the cross entropies of all outputs (U²-Net paper, equation 1, all weights 1), plus
    `iou_weight` times the soft IoU loss of d0 (Qin et al. 2019, BASNet, equation 6). The target is
    averaged down to the outputs' size where that is smaller. A mean over the pictures.
    """
    height, width = logits[0].shape[2:]
    target = F.adaptive_avg_pool2d(target_N1HW, (height, width))
    entropies = [F.binary_cross_entropy_with_logits(d.float(), target) for d in logits]
    loss = sum(entropies[1:], entropies[0])
    if iou_weight:
        loss = loss + iou_weight * iou_loss(logits[0].float().sigmoid(), target)
    return loss, entropies[0].detach()


def iou_loss(alpha_N1HW: Tensor, target_N1HW: Tensor) -> Tensor:
    """Return the mean over the pictures of 1 - intersection / union, for soft mattes.

    A picture without any subject counts by its matte's mean instead, since its IoU is 0 for
    whatever little of it is lit.
    """
    both = (alpha_N1HW * target_N1HW).sum((1, 2, 3))
    either = alpha_N1HW.sum((1, 2, 3)) + target_N1HW.sum((1, 2, 3)) - both
    occupied = target_N1HW.amax((1, 2, 3)) > 0.5
    loss = 1 - both / either.clamp(min=1e-6)
    return loss.where(occupied, alpha_N1HW.mean((1, 2, 3))).mean()
