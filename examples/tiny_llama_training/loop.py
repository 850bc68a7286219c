"""Owns the training loop: which windows a step sees, the learning rate, the optimiser, and resuming.

A step depends on its number alone (not on a generator's state), so a run that was interrupted sees the windows that an
uninterrupted one would have seen.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Recipe:
    """Everything that the result depends on, besides the text and the model's shape."""

    seed: int = 20250
    steps: int = 2900
    tokens_per_step: int = 4096
    # Attention takes more than half of a step at 512 on two cores, and what is learnt first is local.
    short_context: int = 256
    short_steps: int = 1450
    context: int = 512
    long_context: int = 1024  # every fourth later step, so that all positions the config allows are trained
    long_every: int = 4
    peak_learning_rate: float = 3e-3
    warmup_steps: int = 160
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    gradient_norm: float = 1.0
    z_loss: float = 1e-4

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to zero at the end."""
        if step < self.warmup_steps:
            return self.peak_learning_rate * (step + 1) / self.warmup_steps
        return self.peak_learning_rate * (self.steps - step) / (self.steps - self.warmup_steps)

    def window(self, step: int) -> int:
        if step < self.short_steps:
            return self.short_context
        return self.long_context if step % self.long_every == self.long_every - 1 else self.context


class CheckpointError(ValueError):
    """A checkpoint that belongs to another run."""


def draw_windows(stream: torch.Tensor, recipe: Recipe, step: int, bos: int) -> torch.Tensor:
    """Return the windows of one step, `[tokens_per_step / window, window + 1]`, each led by BOS.

    The starts follow the additive recurrence of the golden ratio, which covers the stream more evenly than random
    draws with replacement do, and without the state of a shuffle.
    """
    length = recipe.window(step)
    count = recipe.tokens_per_step // length
    first = step * (recipe.tokens_per_step // recipe.short_context)
    starts = [
        int((recipe.seed * GOLDEN_RATIO + (first + i) * GOLDEN_RATIO) % 1 * (len(stream) - length))
        for i in range(count)
    ]
    rows = torch.stack([stream[start : start + length] for start in starts])
    return torch.cat([torch.full((count, 1), bos), rows], dim=1)


class Trainer:
    """One run over `stream` (token ids, 1-D), which continues from `checkpoint` when that file exists.

    `identity` names the text and the tokenizer: a checkpoint of another text, recipe or shape is refused.
    """

    def __init__(
        self, model: LlamaForCausalLM, stream: torch.Tensor, recipe: Recipe, identity: dict[str, str], checkpoint: Path
    ) -> None:
        self.model = model
        self.stream = stream
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.identity = json.dumps(
            {**identity, "recipe": asdict(recipe), "model": model.config.to_diff_dict()}, sort_keys=True
        )
        self.step = 0
        self.seconds = 0.0
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
            betas=recipe.betas,
            fused=True,
        )
        if checkpoint.exists():
            self._load()

    def run(self, bos: int, compiled: bool, save_every: int = 100, report_every: int = 20) -> None:
        """Train to the last step, printing one line every `report_every` steps."""
        loss_of = self._loss_function(compiled)
        began, told_step, told_time = time.monotonic() - self.seconds, self.step, time.monotonic()
        running = 0.0
        while self.step < self.recipe.steps:
            for group in self.optimiser.param_groups:
                group["lr"] = self.recipe.learning_rate(self.step)
            loss, penalty = loss_of(draw_windows(self.stream, self.recipe, self.step, bos))
            (loss + self.recipe.z_loss * penalty).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_norm)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            running += float(loss.detach())
            self.step += 1
            self.seconds = time.monotonic() - began
            if self.step % report_every == 0:
                now = time.monotonic()
                pace = (now - told_time) / (self.step - told_step)
                print(
                    f"step {self.step}/{self.recipe.steps}  loss {running / (self.step - told_step):.4f} nats/token  "
                    f"{self.recipe.tokens_per_step / pace:.0f} tokens/s  "
                    f"{(self.recipe.steps - self.step) * pace / 60:.1f} min left",
                    flush=True,
                )
                told_step, told_time, running = self.step, now, 0.0
            if self.step % save_every == 0 or self.step == self.recipe.steps:
                self._save()

    def _loss_function(self, compiled: bool) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        forward = torch.compile(self.model, dynamic=False) if compiled else self.model

        def loss_of(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            self.model.train()
            with torch.autocast("cpu", torch.bfloat16):
                logits = forward(input_ids=windows[:, :-1], use_cache=False).logits
            flat = logits.float().flatten(0, 1)
            return cross_entropy(flat, windows[:, 1:].flatten()), flat.logsumexp(-1).square().mean()

        return loss_of

    def _save(self) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"parameter.{name}"] = parameter.detach()
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = self.optimiser.state[parameter][moment]
        progress = {"identity": self.identity, "step": str(self.step), "seconds": repr(self.seconds)}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        save_file(tensors, partial, metadata=progress)
        os.replace(partial, self.checkpoint)

    def _load(self) -> None:
        with safe_open(self.checkpoint, framework="pt") as file:
            progress = file.metadata()
            if progress["identity"] != self.identity:
                raise CheckpointError(
                    f"{self.checkpoint} was written by a run with another text, recipe or model shape; "
                    "remove it to start anew"
                )
            self.step, self.seconds = int(progress["step"]), float(progress["seconds"])
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(file.get_tensor(f"parameter.{name}"))
                    self.optimiser.state[parameter] = {
                        "step": torch.tensor(float(self.step)),
                        "exp_avg": file.get_tensor(f"exp_avg.{name}"),
                        "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}"),
                    }
