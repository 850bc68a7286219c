"""A Llama checkpoint folder becomes a module that computes what transformers computes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from planish.frontends import import_checkpoint
from planish.ir import Interpreter


def test_llama_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    ids, mask = torch.randint(0, 99, (3, 9)), torch.ones(3, 9, dtype=torch.bool)
    mask[1, :3] = False
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        single = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        double = model.double()(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    bound = 4 * (single.double() - double)[mask].abs().max()
    module = import_checkpoint(tmp_path)
    for promote in (False, True):
        ours = Interpreter(module, promote=promote).run("forward", [ids, mask])[0]
        assert (ours.double() - double)[mask].abs().max() <= bound
