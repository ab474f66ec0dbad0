"""Tiny quantized networks for engines that run the whole of one."""

from typing import Any

import torch
from tests.artifact.conftest import hold
from tests.tiny import randomised, tiny_conditional_unet, tiny_unet
from torch import nn

from halftone.engines import set_engine
from halftone.models.surgery import replace_layers
from halftone.nn import Scheme
from halftone.quant import QuantSpec

W4 = QuantSpec("uint4", "channel")
A8 = QuantSpec("uint8")
# Of a whole network in f32, root mean square. A number beside a tie may become the neighbouring code, and what follows with it: the
# engine torch is as far from simulate on these networks.
NETWORK = 0.06


def quantized(network: nn.Module, scheme: Scheme | None = None) -> Any:
    """Return the network with every linear and convolution quantized, and the range of every input [-3, 5]."""
    paths = [path for path, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for layer in replace_layers(network, paths).values():
        hold(layer, scheme or Scheme(W4, A8))
    return network.eval()


def unet(seed: int = 0, **changes: Any) -> Any:
    return quantized(randomised(tiny_unet(seed, **changes), seed=seed))


def conditional_unet(**changes: Any) -> Any:
    """Return one with the added conditions of SDXL."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return quantized(
        randomised(tiny_conditional_unet(**added, projection_class_embeddings_input_dim=16 + 6 * 8, **changes))
    )


def conditions(batch: int, tokens: int = 5, seed: int = 0) -> dict[str, Any]:
    """Return what :func:`conditional_unet` is called with beside the sample and the timestep."""
    draw = torch.Generator().manual_seed(seed)
    added = {"text_embeds": torch.randn(batch, 16, generator=draw), "time_ids": torch.randn(batch, 6, generator=draw)}
    return {"encoder_hidden_states": torch.randn(batch, tokens, 16, generator=draw), "added_cond_kwargs": added}


def far(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the root of the mean squared difference, relative to what was wanted."""
    return float((got.float() - wanted.float()).square().mean().sqrt() / wanted.float().square().mean().sqrt())


@torch.no_grad()
def run(network: nn.Module, engine: str, *args: Any, precision: str | None = None, **kwargs: Any) -> Any:
    set_engine(network, engine, **({"precision": precision} if precision else {}))
    return network(*args, **kwargs)
