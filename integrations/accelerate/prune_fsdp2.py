"""Prunes a model of which every GPU holds a part (FSDP2); start it with torchrun or accelerate launch.

Each process loads the whole model in turn, and keeps its part.
"""

import argparse
from typing import Any

import datasets
from accelerate import PartialState
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import MWandaConfig, MWandaPruner, verify_sparsity
from optimum_mwanda.modeling.blocks import find_blocks


def main() -> None:
    """Loads, shares out, prunes and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True, help="JSON lines with text and language")
    parser.add_argument("--output", required=True)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--sequence-length", type=int)
    parser.add_argument("--cpu", action="store_true", help="Use the CPU (default: the GPUs)")
    args = parser.parse_args()

    state = PartialState(cpu=args.cpu)
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    for turn in range(state.num_processes):
        if turn == state.process_index:
            model = shard(AutoModelForCausalLM.from_pretrained(args.model), mesh)
        state.wait_for_everyone()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = datasets.load_dataset("json", data_files=args.dataset, split="train")

    config = MWandaConfig(sparsity=args.sparsity, sequence_length=args.sequence_length)
    MWandaPruner(config).prune(model, rows, tokenizer)

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if state.is_main_process:
        # A model under FSDP2 has a class of its own, whose name must not be written.
        plain = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
        plain.load_state_dict(weights)
        plain.save_pretrained(args.output)
        tokenizer.save_pretrained(args.output)
        print(verify_sparsity(args.output))
    state.destroy_process_group()


def shard(model: Any, mesh: Any) -> Any:
    """Leaves this process its part of the model, on its own device."""
    for block in find_blocks(model).values():
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


if __name__ == "__main__":
    main()
