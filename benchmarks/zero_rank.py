"""One rank of a group that trains the same steps as all groups of `benchmarks.zero`.

The main rank obeys stdin, see `processes.serve`; the others follow it.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.model_data import load_model_data
from benchmarks.processes import PeakMemory, serve, timed
from hyperadapter.config import ModelConfig, TrainingConfig
from hyperadapter.core.heap import keep_freed_memory
from hyperadapter.core.schema import parse_config
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import Seq2Seq, build_model
from hyperadapter.training.engine import Engine
from hyperadapter.training.optimizer import build_optimizer
from hyperadapter.training.world import World, start_world


def _bare_step(
    model: Seq2Seq, config: TrainingConfig, batches: list[Batch], tokens: int
) -> Callable[[], None]:
    """Returns a step in plain PyTorch: what the engine is compared with.

    bf16 means what it means to ZeRO: the optimizer has fp32 copies of the weights.
    """
    half = config.precision == "bf16"
    masters = copy.deepcopy(model) if half else model
    optimizer = build_optimizer(masters, config)
    if half:
        model.bfloat16()
    pairs = list(zip(model.parameters(), masters.parameters(), strict=True))

    def step() -> None:
        for number, batch in enumerate(batches):
            torch.manual_seed(number)
            (model(batch, config.label_smoothing).loss / tokens).backward()
        if half:
            for parameter, master in pairs:
                assert parameter.grad is not None
                master.grad = parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(masters.parameters(), config.clip_norm)
        optimizer.step()
        if half:
            with torch.no_grad():
                torch._foreach_copy_([p for p, _ in pairs], [m for _, m in pairs])
        model.zero_grad(set_to_none=True)

    return step


def _build(spec: dict[str, Any], world: World) -> tuple[dict[str, Any], Callable[[str], Any]]:
    training = parse_config(TrainingConfig, spec["training"], "benchmark")
    config = parse_config(ModelConfig, spec["model"], "benchmark")
    data = load_model_data(
        micro_batch_tokens=spec["micro_batch_tokens"], micro_batches=spec["micro_batches"]
    )
    share = spec["micro_batches"] // world.size
    mine = data.micro_batches[world.rank * share : (world.rank + 1) * share]
    memory = PeakMemory(world.device.type)
    model = build_model(config, data.vocabulary, seed=1).to(world.device)
    batches = [Batch.from_micro_batch(batch, world.device) for batch in mine]
    tokens = sum(batch.num_tgt_tokens for batch in data.micro_batches)
    sharded_bytes = 0
    if spec["bare"]:
        step = _bare_step(model, training, batches, tokens)
    else:
        engine = Engine(model, training, world)
        seeds = range(len(batches))
        sharded_bytes = sum(
            4 * piece.share(world.rank, world.size).weight.numel() * 3
            for piece in engine.state.pieces()
        )

        def step() -> None:
            engine.train_step(batches, seeds, tokens, 1e-4)

    def run() -> dict[str, Any]:
        world.barrier()
        found = timed(lambda: [step() for _ in range(spec["steps"])], world.device.type)
        peaks = world.gather(memory.read())
        seconds = max(world.gather(found["wall_s"]))
        return {"wall_s": seconds, "tgt_tokens": tokens * spec["steps"], "peak_bytes": max(peaks)}

    run()  # warms up
    facts = {"tgt_tokens": tokens, "checkpoint_bytes": max(world.gather(sharded_bytes))}
    return facts, lambda _: run()


def main() -> None:
    """Trains until the main rank's stdin ends."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(spec["threads"])
    keep_freed_memory()
    training = parse_config(TrainingConfig, spec["training"], "benchmark")
    with start_world(training) as world:
        if world.is_main:

            def build() -> tuple[dict[str, Any], Callable[[str], dict[str, Any]]]:
                facts, run = _build(spec, world)

                def answer(line: str) -> dict[str, Any]:
                    world.gather(line)
                    found: dict[str, Any] = run(line)
                    return found

                return facts, answer

            serve(build)
            world.gather("end")
            return
        _, run = _build(spec, world)
        while world.gather("")[0] != "end":
            run("")


if __name__ == "__main__":
    main()
