"""Slow reference for training blocks, values or masks: whole models run layer by layer, and Adam is written out."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Chunk = tuple[str, Tensor]
"""A language and one chunk of token ids, shape `(1, tokens)`."""


def trained_blocks(
    dense: Any,
    masks: Mapping[str, Tensor],
    chunks: Sequence[Chunk],
    share: float,
    epochs: int,
    rate: float,
    seed: int,
    chooses: bool = False,
    weighs_outputs: bool = False,
    together: int = 1,
) -> tuple[nn.Module, list[tuple[int, float, float]]]:
    """Prunes a Llama with given masks, block after block, and trains each block on batches of one chunk.

    Args:
        dense: The dense model, which is not changed.
        masks: Name of a parameter to the mask, True where pruned.
        chunks: Calibration text, in sorted order of the languages.
        share: Share of the chunks of a language to hold back.
        epochs: Epochs.
        rate: Learning rate in the beginning.
        seed: Seed of both choices.
        chooses: Whether masks are trained, row by row, and not values.
        weighs_outputs: Whether errors are weighed by how much the loss depends on them.
        together: How many blocks are trained together.

    Returns:
        The pruned model; and for each training the best epoch and the errors before and after.
    """
    model = copy.deepcopy(dense).requires_grad_(False)
    languages = sorted({language for language, _ in chunks})
    held, left = divide(chunks, languages, share, seed)
    outcomes = []
    layers = model.model.layers
    for start in range(0, len(layers), together):
        group = range(start, min(start + together, len(layers)))
        index = group[-1]
        metric = output_metric(dense, chunks, index + 1) if weighs_outputs else torch.eye(dense.config.hidden_size)
        wanted = {text: states(dense, text, index + 1) for _, text in chunks}
        entering = {text: states(dense, text, index) for _, text in chunks}
        energy = {
            language: {x: lengths(wanted[x] - entering[x], metric) for name, x in chunks if name == language}
            for language in languages
        }
        matrices = {name: mask for name, mask in masks.items() if any(f"layers.{one}." in name for one in group)}
        parameters = dict(model.named_parameters())
        full = [parameters[name].detach().clone() for name in matrices]
        for name, mask in matrices.items():
            parameters[name][mask] = 0
        trained = [parameters[name] for name in matrices]
        kept = [each != 0 for each in trained]
        scores = [first_scores(values, keep) for values, keep in zip(full, kept, strict=True)]

        def error(
            part: Sequence[Chunk],
            index: int = index,
            wanted: Any = wanted,
            energy: Any = energy,
            metric: Tensor = metric,
        ) -> Tensor:
            total = torch.zeros(())
            for language in languages:
                texts = [text for name, text in part if name == language]
                if texts:
                    # Of all that judges, or all that is trained on, whichever the texts are of.
                    whole = held if any(text is each for _, each in held for text in texts) else left
                    own = [text for name, text in whole if name == language]
                    middle = torch.cat([energy[language][text].flatten() for text in own]).median()
                    for text in texts:
                        share = energy[language][text].clamp(min=middle)
                        lack = lengths(states(model, text, index + 1) - wanted[text], metric) / share
                        total = total + lack.sum() / sum(each.numel() for each in texts) / len(languages)
            return total

        before = least = float(error(held))
        best, chosen = [each.clone() for each in trained], 0
        first, second = [[torch.zeros_like(each) for each in trained] for _ in range(2)]
        generator, step, steps = torch.Generator().manual_seed(seed), 0, epochs * len(left)
        for epoch in range(1, epochs + 1):
            for number in torch.randperm(len(left), generator=generator).tolist():
                language, text = left[number]
                for each in trained:
                    each.requires_grad_(True)
                # One chunk counts as if all of its language, and every language, were in the batch in proportion.
                count = sum(name == language for name, _ in left)
                with torch.enable_grad():
                    loss = error([(language, text)]) * len(left) / count
                gradients = torch.autograd.grad(loss, trained)
                for each in trained:
                    each.requires_grad_(False)
                now = rate * (1 + math.cos(math.pi * step / steps)) / 2
                step += 1
                moved = scores if chooses else trained
                factors = full if chooses else kept
                for each, gradient, factor, mean, square in zip(moved, gradients, factors, first, second, strict=True):
                    gradient = gradient * factor
                    mean.mul_(0.9).add_(0.1 * gradient)
                    square.mul_(0.999).add_(0.001 * gradient**2)
                    unbiased, root = mean / (1 - 0.9**step), (square / (1 - 0.999**step)).sqrt()
                    each -= now * unbiased / (root + 1e-8)
                if chooses:
                    for each, values, keep, score in zip(trained, full, kept, scores, strict=True):
                        each.copy_(values * highest(score, keep))
            if (reached := float(error(held))) < least:
                least, chosen, best = reached, epoch, [each.clone() for each in trained]
        for each, values in zip(trained, best, strict=True):
            each.copy_(values)
        outcomes.append((chosen, before, least))
    return model, outcomes


def first_scores(values: Tensor, kept: Tensor) -> Tensor:
    """Above 0 where a weight is kept, below where not; within either by the weight's rank in its row."""
    scores = torch.empty_like(values)
    for row, (weights, keeps) in enumerate(zip(values.abs().tolist(), kept.tolist(), strict=True)):
        for column, (weight, keep) in enumerate(zip(weights, keeps, strict=True)):
            rank = sum(other < weight for other in weights) / len(weights)
            scores[row, column] = 0.05 + rank if keep else rank - 1.05
    return scores


def highest(scores: Tensor, kept: Tensor) -> Tensor:
    """As many of every row as are kept, marked by 1."""
    marks = torch.zeros_like(scores)
    for row, count in enumerate(kept.sum(1).tolist()):
        marks[row, scores[row].argsort(descending=True)[:count]] = 1
    return marks


def divide(
    chunks: Sequence[Chunk], languages: Sequence[str], share: float, seed: int
) -> tuple[list[Chunk], list[Chunk]]:
    """What judges, and what is trained on, each language by language."""
    generator = torch.Generator().manual_seed(seed)
    held: list[Chunk] = []
    left: list[Chunk] = []
    for language in languages:
        own = [chunk for chunk in chunks if chunk[0] == language]
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        chosen = torch.randperm(len(own), generator=generator)[:count].tolist()
        held += [chunk for number, chunk in enumerate(own) if number in chosen]
        left += [chunk for number, chunk in enumerate(own) if number not in chosen]
    return held, left


def lengths(errors: Tensor, metric: Tensor) -> Tensor:
    """`e A eᵀ` of every token."""
    return torch.einsum("bti,ij,btj->bt", errors, metric.to(errors), errors)


def output_metric(dense: Any, chunks: Sequence[Chunk], depth: int) -> Tensor:
    """Nine tenths Fisher information of hidden states after some layers, languages alike, and one tenth identity."""
    total: Tensor | float = 0.0
    for language in sorted({language for language, _ in chunks}):
        products: Tensor | float = 0.0
        for text in [text for name, text in chunks if name == language]:
            gradient = gradient_of_loss(dense, text, depth)[0].double()
            products = products + gradient.T @ gradient
        assert torch.is_tensor(products)
        total = total + products / products.trace()
    assert torch.is_tensor(total)
    return 0.9 * total / total.diagonal().mean() + 0.1 * torch.eye(len(total), dtype=total.dtype)


def gradient_of_loss(model: Any, text: Tensor, depth: int) -> Tensor:
    """Of the negative log-likelihood of a text, with respect to the hidden states after some layers."""
    found: list[Tensor] = []

    def split(_: Any, __: Any, output: Any) -> Any:
        states = output if torch.is_tensor(output) else output[0]
        found.append(states.detach().requires_grad_())
        return found[0] if torch.is_tensor(output) else (found[0], *output[1:])

    hook = model.model.layers[depth - 1].register_forward_hook(split)
    try:
        with torch.enable_grad():
            logits = model(text, use_cache=False).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, text[0, 1:], reduction="sum")
            (gradient,) = torch.autograd.grad(loss, found)
    finally:
        hook.remove()
    return gradient


def states(model: Any, text: Tensor, depth: int) -> Tensor:
    """Hidden states after some layers of a model."""
    found: list[Tensor] = []
    hook = model.model.layers[depth - 1].register_forward_hook(lambda _, __, output: found.append(output))
    try:
        if depth == 0:
            return model.model.embed_tokens(text).detach()
        model(text, use_cache=False)
    finally:
        hook.remove()
    return found[0] if torch.is_tensor(found[0]) else found[0][0]
