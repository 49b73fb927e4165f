"""The loss of a model: cross-entropy as a sum over tokens."""

import torch
from torch import Tensor, nn

from gpt.layers.head import Head, HeadLoss
from gpt.layers.masks import document_layout
from gpt.model import GPT


def loss_sum(model: GPT, inputs: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
    """Sum of the losses (nats) of all targets that are not IGNORE; inputs and targets (B, T), result ().

    With ``documents`` (B, T), attention stays within them, see :func:`gpt.layers.masks.document_layout`.

    Computed in float32 whatever the precision of the model. With ``model.z_loss`` the gradient is that of the
    cross-entropy and z_loss log(Z)^2 (PaLM, section 5), and the value that of the cross-entropy alone.
    """
    layout = None if documents is None else document_layout(documents)
    hidden = model(inputs, layout=layout).flatten(0, 1)  # (B * T, C)
    with_gradients = torch.is_grad_enabled()
    head = Head(model.vocab_size, model.config.logit_softcap, model.config.z_loss)
    return HeadLoss.apply(hidden, model.lm_head.weight, targets.flatten(), head, with_gradients)


class LossSum(nn.Module):
    """The model and its loss as one forward pass, which DistributedDataParallel wraps."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor, documents: Tensor | None) -> Tensor:
        return loss_sum(self.model, inputs, targets, documents)
