"""Cross-entropy as a sum over tokens."""

import torch.nn.functional as F
from torch import Tensor

from gpt.model import GPT

IGNORE = -100  # a target that does not count


def loss_sum(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Sum of the losses (nats) of all targets that are not IGNORE; inputs and targets (B, T), result ().

    Computed in float32 whatever the precision of the model.
    """
    logits = model.logits(model(inputs))  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
