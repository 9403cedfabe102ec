"""LISA in any `Trainer`: a few blocks at a time are trained."""

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers import TrainerControl, TrainerState, TrainingArguments

from ..evaluation.report import PerplexityComparison
from ..legal import Number
from ..modeling.sharding import check_unshared
from .callback import MWandaCallback
from .caller import calling_trainer
from .keeper import MaskKeeper, bare_optimizer
from .lisa import blocks_to_train
from .pruned_entries import Masks, bare_model, recorded_blocks


class LISACallback(MWandaCallback):
    """Trains a few blocks of a pruned model at a time, and others after a while: LISA (Pan et al. 2024).

    Embeddings, head and final norm always train. Blocks that do not train have neither gradients nor moments, and a
    block that comes back starts with new ones, so a training takes less memory (arXiv 2403.17919). Masks are kept as by
    `MWandaCallback`. After training everything can be trained that could be before; after an error, call `close()`.

    Args:
        count: How many blocks train at a time (gamma).
        interval: For how many steps (K).
        seed: Seed of the choice of blocks.
        masks: As for `MWandaCallback`.
        report: As for `MWandaCallback`.

    Raises:
        ValueError: If a setting is not allowed.
    """

    recipe = "lisa"

    def __init__(
        self,
        count: int = 2,
        interval: int = 20,
        seed: int = 0,
        masks: Masks | None = None,
        report: PerplexityComparison | None = None,
    ) -> None:
        Number(at_least=1, whole=True).check("count", count)
        Number(at_least=1, whole=True).check("interval", interval)
        Number(at_least=0, whole=True).check("seed", seed)
        super().__init__(masks, report)
        self._count, self._interval, self._seed = count, interval, seed
        self._parameters: dict[str, list[nn.Parameter]] = {}
        self._chosen: tuple[str, ...] | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets the blocks of this step train, and only these."""
        assert self.keeper is not None  # since `on_train_begin`
        chosen = blocks_to_train([*self._parameters], self._count, state.global_step, self._interval, self._seed)
        if chosen == self._chosen:
            return
        self._chosen = chosen
        for block, parameters in self._parameters.items():
            for parameter in parameters:
                parameter.requires_grad_(block in chosen)
                if block not in chosen:
                    parameter.grad = None
                    self.keeper.optimizer.state.pop(parameter, None)

    def close(self) -> None:
        """Lets go of model and optimizer, and lets all blocks train again; needed only after an error."""
        super().close()
        for parameters in self._parameters.values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        self._parameters, self._chosen = {}, None

    def _keep(self, model: nn.Module, optimizer: Optimizer) -> MaskKeeper:
        parameters = find_trained(bare_model(model), bare_optimizer(optimizer))
        blocks_to_train([*parameters], self._count, 0, self._interval)  # refuses more blocks than there are
        check_changing_gradients(model)
        keeper = super()._keep(model, optimizer)
        self._parameters = parameters
        return keeper


def find_trained(model: nn.Module, optimizer: Optimizer) -> dict[str, list[nn.Parameter]]:
    """Finds what is trained of each block.

    Args:
        model: The model, without wrappers.
        optimizer: Its optimizer.

    Returns:
        Module path of a block to its parameters that need gradients.

    Raises:
        ValueError: If a block has none, or the optimizer does not train them.
    """
    blocks = [*recorded_blocks(model)]
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found: dict[str, list[nn.Parameter]] = {}
    for block in blocks:
        inside = [parameter for name, parameter in names.items() if name.startswith(f"{block}.")]
        if not inside or not all(id(parameter) in trained for parameter in inside):
            raise ValueError(
                f"The block {block!r} is not trained, but LISA trains all blocks in turn: set requires_grad of its "
                "parameters, and give the optimizer all of them. Was a training with this callback interrupted by an "
                "error? Then call its close() before you make the Trainer."
            )
        found[block] = inside
    return found


def check_changing_gradients(model: nn.Module) -> None:
    """Checks that it may change from step to step which parameters of a model have gradients.

    Raises:
        ValueError: If it is wrapped so that it may not.
    """
    check_unshared(
        model,
        "LISA changes which parameters have gradients, and FSDP and tensor parallelism do not see that: use "
        "DistributedDataParallel or a single process, or MWandaCallback.",
    )
    trainer = calling_trainer()
    wrapped = model if trainer is None else trainer.model_wrapped
    for module in wrapped.modules():
        if isinstance(module, DistributedDataParallel) and not module.find_unused_parameters:
            raise ValueError(
                "LISA changes which parameters have gradients, but DistributedDataParallel waits for all of them: set "
                "ddp_find_unused_parameters=True in TrainingArguments."
            )
