"""How much the loss of the dense model depends on the outputs of each weight: one forward and one backward pass."""

from collections.abc import Generator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..calibration.reduction import deal, readers
from ..calibration.row_sensitivities import FactorCollector, Output, RowCollector
from ..configuration import MWandaConfig
from ..data.chunks import CalibrationChunks
from ..data.tokenised import IGNORED_LABEL
from ..modeling.blocks import find_blocks, find_stacks, inference_mode, run_model, without_gradients
from ..modeling.forwards import recomputed
from ..modeling.interrupts import interruptible
from ..modeling.likelihood import headless
from ..modeling.output_gradients import at_some_scale
from ..modeling.weights import Weights, flat
from ..processes.group import current
from ..pruning.scoring import weigh_languages
from ..utils import progress_bar
from .regions import groups_of, watched_outputs
from .watching import run_watched

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Differentiated(NamedTuple):
    """What a backward pass has shown.

    Attributes:
        rows: Name of a weight to `Σ_t g_ti²`, shape `(languages, out)`; empty if nothing was asked for.
        factors: Name of a weight to `B`, shape `(out, out)`, on the CPU; empty unless the settings need it.
        outputs: The same for the blocks that are trained, or parts of them.
    """

    rows: dict[str, Tensor]
    factors: dict[str, Tensor]
    outputs: dict[nn.Module, Tensor]


def differentiate(
    model: "PreTrainedModel",
    weights: Weights,
    chunks: CalibrationChunks,
    config: MWandaConfig,
    progress: bool = False,
) -> Differentiated:
    """Runs all calibration text forward and back through a dense model, which is not changed.

    The loss is the negative log-likelihood of every token that a model predicts: those after the first one, or the
    labels of an encoder-decoder. Of a batch, the hidden states between blocks are kept, and the inside of one block.

    Args:
        model: A model that is wholly in memory and gives text a likelihood.
        weights: Module path of a block to the weights to watch in it.
        chunks: Calibration data; processes that share the work run a part each.
        config: The settings; the model is only run if they ask for sensitivities.
        progress: Whether to show a progress bar.

    Raises:
        FloatingPointError: If gradients are NaN or infinite.
        ValueError: If the model gives no logits for each token.
    """
    if config.sensitivity == "none":
        return Differentiated({}, {}, {})
    with inference_mode(model), without_gradients(model), recomputed(find_blocks(model, config.blocks).values()):
        return at_some_scale(model.dtype, lambda scale: _run(model, weights, chunks, config, scale, progress))


def _run(
    model: "PreTrainedModel",
    weights: Weights,
    chunks: CalibrationChunks,
    config: MWandaConfig,
    scale: float,
    progress: bool,
) -> Differentiated:
    own, reduce = deal(chunks, readers(model))
    found = weigh_languages(config, chunks.tokens).tolist()
    language_weights = dict(zip(chunks.tokens, found, strict=True))
    rows = RowCollector(flat(weights), [*chunks.chunks], scale, reduce)
    coupled = flat(weights) if config.couples_rows else []
    trained = _trained(model, weights, config) if config.weighs_outputs else {}
    outputs = {w.name: Output(w.module, w.out_features, w.device) for w in coupled} | trained
    factors = FactorCollector(outputs, language_weights, scale, reduce)
    size = config.batch_size
    total, is_shown = own.number_of_batches(size), progress and current().is_first
    batches = progress_bar(own.batches(size), total=total, description="Differentiating", show=is_shown)

    def runs() -> Generator[None, None, None]:
        with closing(batches):  # so that the bar ends before an error is shown
            for _, inputs in batches:
                with torch.enable_grad():
                    _run_back(model, inputs, scale)
                yield

    run_watched(runs(), [language for language, _ in own.batches(size)], rows, factors)
    found_factors = {name: factor.cpu() for name, factor in factors.finish().items()}
    return Differentiated(
        rows.finish(),
        {weight.name: found_factors[weight.name] for weight in coupled if weight.name in found_factors},
        {output.module: found_factors[name] for name, output in trained.items() if name in found_factors},
    )


def _trained(model: nn.Module, weights: Weights, config: MWandaConfig) -> dict[str, Output]:
    """Module path to the outputs by which trained blocks are judged."""
    names = {module: name for name, module in model.named_modules()}
    found = {}
    for stack in find_stacks(model, config.blocks):
        for group in groups_of(stack, config.reconstruction_blocks):
            own, last = [weight for name in group for weight in weights.get(name, ())], stack[group[-1]]
            for module in watched_outputs(last, own, config.reconstruction_region) if own else ():
                # One process reads all of the text where blocks are trained, so nobody asks how wide an output is.
                found[names[module]] = Output(module, 0, next(last.parameters()).device)
    return found


def _run_back(model: "PreTrainedModel", inputs: Mapping[str, Tensor], scale: float) -> None:
    """Runs a batch forward and back."""
    logits = getattr(run_model(model, inputs), "logits", None)
    if logits is None or logits.ndim != 3:
        raise headless(model)
    wanted = inputs["labels"] if "labels" in inputs else inputs["input_ids"].roll(-1, 1)
    if "labels" not in inputs:
        wanted[:, -1] = IGNORED_LABEL
    with interruptible():
        logits.backward(likelihood_gradient(logits.detach(), wanted.to(logits.device), scale))


def likelihood_gradient(logits: Tensor, wanted: Tensor, scale: float = 1.0) -> Tensor:
    """The gradient of the negative log-likelihood of tokens, summed up, with respect to the logits.

    Args:
        logits: Shape `(batch, tokens, vocabulary)`.
        wanted: The token that each position predicts, shape `(batch, tokens)`; `IGNORED_LABEL` for those that do not
            count.
        scale: What to multiply it by.

    Returns:
        Shape and type of the logits. In float32 there is one row of the batch at a time.
    """
    gradient = torch.empty_like(logits)
    for row, tokens, result in zip(logits, wanted, gradient, strict=True):
        counts = tokens != IGNORED_LABEL
        found = row.float().softmax(-1)
        found.scatter_add_(1, tokens.clamp(min=0)[:, None], -torch.ones_like(found[:, :1]))
        result.copy_(found.mul_(scale * counts[:, None]))
    return gradient
