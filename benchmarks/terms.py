"""Measures readings of M-Wanda's terms that the package does not have, for docs/terms.md.

    python benchmarks/terms.py MODEL --calibration calibration.jsonl.xz --test test.jsonl.xz --output FOLDER

The paper names the terms and leaves their equations open. Every reading below is put on Wanda, and changes one thing of
it. `r` is the root mean square of a channel in a language, `n` that over all languages, `m` the mean of the channel's
signed values. Languages count alike, and variances "across languages" are of one figure per language.

Scores, compared per row as Wanda's. The number is that by which the term is multiplied, or the exponent:

    signed std, signed variance    n plus the standard deviation, or variance, of m across languages
    values F                       n times (1 + F), F the variance of m across languages over the mean variance of the
                                   values within a language: per-token variance, between against within
    squares F                      the same of the squares of the values
    rows r, rows m, rows F         Wanda's score times (1 + x) of the output row, compared over the whole matrix as that
                                   of `matrix`, which has no factor; x is the standard deviation across languages of r
                                   or m of what the matrix gives, over its root mean square, or F of these values

Sparsities, with Wanda's score. The number is the strength of the allocation. With +, blocks in which the figure is
high keep more, and with - those in which it is low:

    cwl inputs                     the allocation `cwl`: mean correlation of r between languages, of matrices' inputs
    cwl outputs, cwl updates       the same of what blocks give, and of what they add to their input
    cwl partial                    correlation of inputs given the mean of the other languages
    cwl parts                      as for inputs, but attention and MLP have sparsities of their own
    cwl parts apart                as before, but attention and MLP both keep the target in the mean
    change mean, change spread     one minus the cosine of input and output of a block, mean over tokens: its mean and
                                   its standard deviation over languages
    depth                          the number of the block, which knows no language, to compare with

`owl` and `outliers` are allocations that the package has, also to compare with. Every reading, Wanda and the dense
model are measured on the same text. FOLDER gets the plans, and results.jsonl with each result as soon as it is there;
an interrupted call goes on where it was.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_mwanda import MWandaConfig, register_criterion
from optimum_mwanda.data.chunks import CalibrationChunks, build_chunks
from optimum_mwanda.experiments.grid.markdown import cost_table, difference_table
from optimum_mwanda.experiments.grid.methods import BASES, choose
from optimum_mwanda.experiments.grid.plan import ComparisonPlan
from optimum_mwanda.experiments.grid.runner import run_comparison
from optimum_mwanda.experiments.grid.summary import Section, make_sections
from optimum_mwanda.experiments.plans.candidates import Unit, to_plan
from optimum_mwanda.modeling.blocks import find_blocks, inference_mode, run_blocks
from optimum_mwanda.modeling.weights import Weights, find_weights, flat
from optimum_mwanda.pruning.allocation import allocate, cross_lingual_correlation
from optimum_mwanda.pruning.criteria import wanda_scores
from optimum_mwanda.walking.regions import find_regions, first

STRENGTHS = (0.04, 0.08, -0.04)
MATRIX, OUTLIERS = "matrix", "outliers 0.04"
WANDA = {"wanda": BASES["wanda"]}
PEERS: dict[str, dict[str, Any]] = {
    MATRIX: {**BASES["wanda"], "group": "matrix"},
    "owl 0.04": {**BASES["wanda"], "allocation": "owl"},
    OUTLIERS: {**BASES["wanda"], "allocation": "outliers"},
}


class Moments:
    """Means over the tokens of each language of x, x² and x⁴ in every channel, `(languages, channels)`."""

    def __init__(self, languages: int) -> None:
        self._tokens = torch.zeros(languages, 1, dtype=torch.float64)
        self._sums: dict[int, Tensor] = {}

    def add(self, row: int, x: Tensor) -> None:
        """Adds tokens of a language, `(..., channels)`."""
        x = x.detach().reshape(-1, x.shape[-1]).float()
        squares = x.square()
        self._tokens[row] += len(x)
        for power, values in {1: x, 2: squares, 4: squares.square()}.items():
            sums = self._sums.setdefault(power, torch.zeros(len(self._tokens), x.shape[-1], dtype=torch.float64))
            sums[row] += values.sum(0, dtype=torch.float64)

    def mean(self, power: int) -> Tensor:
        return self._sums[power] / self._tokens

    @property
    def norm(self) -> Tensor:
        """Root mean square over all languages, `(channels,)`."""
        return self.mean(2).mean(0).sqrt()


@dataclasses.dataclass
class Facts:
    """What the calibration text shows of a dense model.

    Attributes:
        inputs: Matrix to what enters it.
        outputs: Matrix to what it gives.
        states: Block to the hidden states that it gives.
        updates: Block to what it adds to its input.
        changes: Block to one minus the cosine of input and output, as a single channel.
    """

    inputs: dict[str, Moments]
    outputs: dict[str, Moments]
    states: dict[str, Moments]
    updates: dict[str, Moments]
    changes: dict[str, Moments]


def collect(model: Any, blocks: Mapping[str, nn.Module], weights: Weights, chunks: CalibrationChunks) -> Facts:
    """Runs the calibration text through the blocks, and looks at every matrix and block."""
    languages, now = list(chunks.chunks), {"row": 0}
    matrices = [weight.name for weight in flat(weights)]

    def empty(names: Iterable[str]) -> dict[str, Moments]:
        return {name: Moments(len(languages)) for name in names}

    facts = Facts(empty(matrices), empty(matrices), empty(blocks), empty(blocks), empty(blocks))

    def see_matrix(name: str, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        facts.inputs[name].add(now["row"], args[0])
        facts.outputs[name].add(now["row"], output)

    def see_block(name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        before, after = args[0].float(), first(output).float()
        facts.states[name].add(now["row"], after)
        facts.updates[name].add(now["row"], after - before)
        facts.changes[name].add(now["row"], 1 - nn.functional.cosine_similarity(before, after, dim=-1)[..., None])

    modules = [(weight.module, partial(see_matrix, weight.name)) for weight in flat(weights)]
    modules += [(block, partial(see_block, name)) for name, block in blocks.items()]
    with inference_mode(model), hooked(modules):
        for language, inputs in chunks.batches(4):
            now["row"] = languages.index(language)
            run_blocks(model, blocks, inputs)
    return facts


@contextmanager
def hooked(modules: Sequence[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    """Inside the block of code, calls functions with what modules get and give."""
    with ExitStack() as stack:
        for module, see in modules:
            stack.callback(module.register_forward_hook(see).remove)
        yield


def deviation(x: Tensor) -> Tensor:
    """Standard deviation across languages, `(channels,)`."""
    return x.std(0, correction=0)


def between_within(mean: Tensor, mean_square: Tensor) -> Tensor:
    """F: variance across languages of the mean, over the mean of the variance within them; 0 where there is none."""
    within = (mean_square - mean.square()).mean(0)
    return torch.where(within > 0, deviation(mean).square() / within, 0.0)


def partial_correlation(mean_square: Tensor) -> float:
    """Mean over pairs of languages of their correlation over channels, given the mean of all other languages.

    The mean must leave the two out: given the mean of all, the residuals sum to zero, and correlate by about
    -1 / (languages - 1) whatever the languages do.
    """
    rms = mean_square.sqrt()
    covariance = torch.cov(rms)
    count = len(rms)
    one, two = torch.triu_indices(count, count, 1)
    rows, own = covariance.sum(1), covariance.diagonal()
    both = covariance[one, two]
    with_one, with_two = (rows[each] - own[each] - both for each in (one, two))
    rest = covariance.sum() - own[one] - own[two] - 2 * both - 2 * with_one - 2 * with_two
    above = both - with_one * with_two / rest
    below = (own[one] - with_one.square() / rest) * (own[two] - with_two.square() / rest)
    return float((above / below.sqrt()).nan_to_num().mean())


def score_readings(facts: Facts) -> dict[str, Callable[[str], tuple[Tensor, Tensor | None]]]:
    """Name to what gives the factors of a matrix: of its channels and, if rows have one, of its rows."""

    def plus(term: Callable[[Moments], Tensor], weight: float, name: str) -> tuple[Tensor, None]:
        found = facts.inputs[name]
        return found.norm + weight * term(found), None

    def times(term: Callable[[Moments], Tensor], exponent: float, name: str) -> tuple[Tensor, None]:
        found = facts.inputs[name]
        return found.norm * (1 + term(found)) ** exponent, None

    def rows(term: Callable[[Moments], Tensor], exponent: float, name: str) -> tuple[Tensor, Tensor]:
        return facts.inputs[name].norm, (1 + term(facts.outputs[name])) ** exponent

    def relative(power: int, found: Moments) -> Tensor:
        x = found.mean(1) if power == 1 else found.mean(2).sqrt()
        return (deviation(x) / found.norm).nan_to_num()

    def signed(found: Moments) -> Tensor:
        return deviation(found.mean(1))

    def values(found: Moments) -> Tensor:
        return between_within(found.mean(1), found.mean(2))

    def squares(found: Moments) -> Tensor:
        return between_within(found.mean(2), found.mean(4))

    found: dict[str, Any] = {f"signed std {weight:g}": partial(plus, signed, weight) for weight in (0.5, 2.0)}
    found["signed variance 0.5"] = partial(plus, lambda x: signed(x) ** 2, 0.5)
    for exponent in (1.0, -1.0):
        found[f"values F {exponent:+g}"] = partial(times, values, exponent)
        found[f"squares F {exponent:+g}"] = partial(times, squares, exponent)
        found[f"rows r {exponent:+g}"] = partial(rows, partial(relative, 2), exponent)
        found[f"rows m {exponent:+g}"] = partial(rows, partial(relative, 1), exponent)
        found[f"rows F {exponent:+g}"] = partial(rows, values, exponent)
    return found


def register_scores(facts: Facts, weights: Weights) -> dict[str, dict[str, Any]]:
    """Makes every reading of a score a criterion; gives its name and settings."""
    names = {weight.matrix.data_ptr(): weight.name for weight in flat(weights)}  # a score is not told which it is
    methods = {}
    for reading, factors in score_readings(facts).items():

        def score(weight: Tensor, *_: Any, factors: Any = factors) -> Tensor:
            columns, rows = factors(names[weight.data_ptr()])
            scores = wanda_scores(weight, columns)
            return scores if rows is None else scores * rows[:, None].to(scores)

        register_criterion(reading, score)
        group = "matrix" if reading.startswith("rows") else "row"
        methods[reading] = {**BASES["wanda"], "criterion": reading, "group": group}
    return methods


Shares = list[tuple[Sequence[Unit], Sequence[float]]]
"""Matrices that get a sparsity together, and how important they are: lists that keep the target each."""


def plan_readings(facts: Facts, blocks: Mapping[str, nn.Module], weights: Weights) -> dict[str, Shares]:
    """Name to what shares the sparsity out."""
    whole = [Unit(name, tuple(found)) for name, found in weights.items()]
    parts = [
        [Unit(name, tuple(region.weights)) for region in find_regions(blocks[name], found, "part")]
        for name, found in weights.items()
    ]

    def inputs(measure: Callable[[Tensor], float], unit: Unit) -> float:
        found = [measure(facts.inputs[weight.name].mean(2)) for weight in unit.weights]
        return sum(found) / len(found)

    def changes(summary: Callable[[Tensor], Tensor], unit: Unit) -> float:
        return float(summary(facts.changes[unit.block].mean(1)))

    cwl = partial(inputs, cross_lingual_correlation)
    of_blocks: dict[str, Callable[[Unit], float]] = {
        "cwl inputs": cwl,
        "cwl outputs": lambda unit: cross_lingual_correlation(facts.states[unit.block].mean(2)),
        "cwl updates": lambda unit: cross_lingual_correlation(facts.updates[unit.block].mean(2)),
        "cwl partial": partial(inputs, partial_correlation),
        "change mean": partial(changes, torch.mean),
        "change spread": partial(changes, deviation),
        "depth": whole.index,
    }
    found: dict[str, Shares] = {name: [(whole, [*map(measure, whole)])] for name, measure in of_blocks.items()}
    alike = [[unit for unit in kind if unit is not None] for kind in zip_longest(*parts)]
    found["cwl parts"] = [(every := [unit for each in parts for unit in each], [*map(cwl, every)])]
    found["cwl parts apart"] = [(kind, [*map(cwl, kind)]) for kind in alike]
    return found


def write_plans(
    readings: Mapping[str, Shares], weights: Weights, sparsities: Sequence[float], folder: Path
) -> dict[str, dict[str, Any]]:
    """Writes the plans of every reading; gives its name and settings, a plan for each sparsity among them."""
    folder.mkdir(parents=True, exist_ok=True)
    bounds = (MWandaConfig.min_block_sparsity, MWandaConfig.max_block_sparsity)
    methods: dict[str, dict[str, Any]] = {}
    for reading, shares in readings.items():
        for strength in STRENGTHS:
            name = f"{reading} {strength:+g}"
            methods[name] = {**BASES["wanda"], "plan": []}
            for target in sparsities:
                units: list[Unit] = []
                found: list[float] = []
                for some, importance in shares:
                    sizes = [unit.numel for unit in some]
                    units += some
                    directed = [each if strength > 0 else -each for each in importance]
                    found += allocate(directed, sizes, target, abs(strength), bounds)
                path = folder / f"{name} {target:g}.json".replace(" ", "_")
                to_plan(tuple(found), units, weights, {}, target).save(path)
                methods[name]["plan"].append(str(path))
    return methods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", required=True, help="JSON lines with `language` and `text`")
    parser.add_argument("--test", required=True, help="held-out text in the same form")
    parser.add_argument("--output", type=Path, default=Path("terms"), help="folder to write to (default: terms)")
    parser.add_argument("--seen", nargs="+", help="languages to calibrate on (default: all)")
    parser.add_argument("--readings", nargs="+", metavar="NAME", help="such as 'cwl partial +0.04' (default: all)")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.6])
    parser.add_argument("--samples", type=int, default=12, help="calibration chunks per language (default: 12)")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1024, help="evaluated tokens per language (default: 1024)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the calibration text")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    calibration, test = (load_dataset("json", data_files=x, split="train") for x in (args.calibration, args.test))
    blocks = find_blocks(model)
    weights = find_weights(blocks)
    if any(weight.expert is not None for weight in flat(weights)):
        parser.error(f"{args.model} has fused experts, whose outputs this script does not see.")
    drawn = {"samples_per_language": args.samples, "sequence_length": args.sequence_length}
    config = MWandaConfig(languages=args.seen, seed=args.seed, **drawn)
    facts = collect(model, blocks, weights, build_chunks(calibration, config, model, tokenizer))
    methods = PEERS | register_scores(facts, weights)
    methods |= write_plans(plan_readings(facts, blocks, weights), weights, args.sparsity, args.output / "plans")
    plan = ComparisonPlan(
        methods={**WANDA, **(choose(methods, args.readings) if args.readings else methods)},
        sparsities=args.sparsity,
        seeds=[args.seed],
        languages=args.seen,
        tokens_per_language=args.tokens,
        **drawn,
    )
    results = run_comparison(model, calibration, test, args.output / "results.jsonl", plan, tokenizer)
    for section in make_sections(results):
        print(f"\n## {section.point}\n\n{cost_table(only(section, lambda name: name in WANDA))}")
        for base in (*WANDA, MATRIX, OUTLIERS):
            shown = only(section, lambda name: name.startswith((MATRIX, "rows"))) if base == MATRIX else section
            if base in section.seeds:
                print(f"\nIncrease of the log-perplexity against `{base}`, in percent:\n")
                print(difference_table(shown, base))


def only(section: Section, belongs: Callable[[str], bool]) -> Section:
    """A section with some of the methods."""
    return dataclasses.replace(section, seeds={name: each for name, each in section.seeds.items() if belongs(name)})


if __name__ == "__main__":
    main()
