"""Low-rank parts inside the backbone's linear layers, by `peft` (the extra of that name)."""

from __future__ import annotations

from torch import nn
from torch.nn import Parameter

from memtoken_cli.engine.backbone import CausalLM
from memtoken_cli.io.errors import UsageError

ALPHA = 4  # times the rank
DROPOUT = 0.1
PREFIX = "lora."
LOW_RANK = "lora_"  # in peft's names


def injected(backbone: CausalLM, rank: int) -> dict[str, Parameter]:
    """Put low-rank parts beside every linear layer of the decoder layers and return them by name.

    The model stays of its class. Raises UsageError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UsageError(
            "rmt.trained: lora needs the package peft", hint="pip install 'memtok[peft]'"
        ) from None
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, Conv1D)
    inside = [name for name, module in backbone.layers.named_modules() if isinstance(module, kinds)]
    targets = sorted({name.partition(".")[2] for name in inside})
    config = LoraConfig(
        r=rank,
        lora_alpha=ALPHA * rank,
        lora_dropout=DROPOUT,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in backbone.layers.modules()),
    )
    inject_adapter_in_model(config, backbone.model)
    backbone.model.eval()
    return {
        PREFIX + name: parameter for name, parameter in backbone.model.named_parameters() if LOW_RANK in name
    }
