"""Calibration text that the model itself writes: in whatever languages it knows, or in those that you begin."""

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, takewhile
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ..configuration import MWandaConfig
from ..data.encoding import RowEncoder
from ..data.special_tokens import prefix_of
from ..data.surrogates import mended
from ..legal import Number
from ..modeling.architecture import is_masked
from ..modeling.blocks import inference_mode, input_device
from ..modeling.compiled import uncompiled
from ..modeling.interrupts import interruptible
from ..modeling.positions import resolve_sequence_length
from ..modeling.sharding import shares_parameters
from ..values import SELF_WRITTEN
from .beginnings import openings_of, split_beginnings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_COUNT = Number(at_least=1, whole=True)
_LEGAL = {
    "chunks": _COUNT,
    "sequence_length": _COUNT,
    "temperature": Number(above=0),
    "seed": Number(at_least=0, whole=True),
    "batch_size": _COUNT,
}
_MOST_SILENT = 16
"""After so many full batches without any text, the model is taken to write none."""


def write_calibration_text(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    *,
    beginnings: Any = None,
    chunks: int | None = None,
    sequence_length: int | None = MWandaConfig.sequence_length,
    temperature: float | None = None,
    seed: int = MWandaConfig.seed,
    batch_size: int = MWandaConfig.batch_size,
    language: str = SELF_WRITTEN,
    language_column: str = MWandaConfig.language_column,
    text_column: str = MWandaConfig.text_column,
    progress: bool = True,
) -> Dataset:
    """Lets a model write text to calibrate on, for the languages that it knows and that you have no text of.

    It writes from the beginning of a text on, and each token is drawn from all that it holds possible, so that every
    language turns up as often as the model expects it. Of its generation config only the tokens that end a text are
    used. The same seed and batch size give the same text on one machine.

    A sentence or two of a language, given in `beginnings`, make it go on in that language. What it writes then is in
    the rows of a language of its own, `"self-sw"` for beginnings in `"sw"`.

    A text ends where the model ends it or where it is as long as a chunk. It is not made to go on, because what follows
    an end that was forbidden is not what the model expects; instead it writes more texts, until they fill all chunks.

    Args:
        model: A causal language model, before it is pruned; it is not changed, nor are the random numbers of torch.
        tokenizer: Its tokenizer, or the name or path of one. None: the one saved beside the model.
        beginnings: Texts that the model goes on with: a dict of language to texts, rows, a dataset or a stream; a list
            of rows, or a `datasets.Dataset` with a language column. Those of a language take turns, a batch each. At
            most half of a chunk is taken of each, up to the first word that the tokenizer does not know. None: the
            model writes from nothing, in whatever languages it knows.
        chunks: How many chunks of `sequence_length` tokens the texts fill; with `beginnings`, in each language. None:
            180, or 32 in each language, which is what calibration reads.
        sequence_length: Tokens of a chunk, as in `MWandaConfig`; give what you calibrate with.
        temperature: Above 1, what the model finds unlikely becomes more frequent, and below 1 less. None: 1, or 0.8
            with `beginnings`, so that the model keeps to the language.
        seed: Seed of the draw.
        batch_size: How many texts are written at a time, at most.
        language: What stands for their language, or with `beginnings` goes before it. Cards explain it if it is
            `"self"`.
        language_column: Name of its column, here and in `beginnings`.
        text_column: Name of the column with the texts, here and in `beginnings`.
        progress: Whether to show a progress bar.

    Returns:
        Rows that can be added to those of other languages.

    Raises:
        FloatingPointError: If the model gives NaN or infinity.
        TypeError: If `beginnings` is not a dataset, or a text in it is neither a string nor a conversation.
        ValueError: If the model cannot write text or writes none, there is no tokenizer or none that tells how a text
            begins, a language has no beginning, or an argument is not allowed.
    """
    check_request(
        chunks=chunks,
        sequence_length=sequence_length,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        language=language,
        language_column=language_column,
        text_column=text_column,
    )
    model = uncompiled(model)
    check_writing(model)
    encoder = RowEncoder(tokenizer, model, text_column)
    start = _start(encoder.tokenizer)
    length = resolve_sequence_length(sequence_length, model)
    room = length - len(start)
    if room < (least := 1 if beginnings is None else 2):
        raise ValueError(f"sequence_length={length} leaves no room for text: give at least {len(start) + least}.")
    chunks, temperature = resolve_request(chunks, temperature, beginnings)
    openings: dict[str, list[list[int]]] = {language: [[]]}
    if beginnings is not None:
        parts = split_beginnings(beginnings, language_column, text_column)
        openings = {
            f"{language}-{name}": openings_of(part, name, encoder, text_column, room // 2, chunks)
            for name, part in parts.items()
        }
    rows: dict[str, list[str]] = {language_column: [], text_column: []}
    ends = _ends(model, encoder.tokenizer)
    with (
        inference_mode(model),
        _generation_config(model, start, ends),
        tqdm(total=chunks * length * len(openings), desc="Writing", unit=" tokens", disable=not progress) as bar,
    ):
        for label, begun in openings.items():
            # Draws begin anew, so a language is written as it is without the others.
            writer = _Writer(model, encoder, text_column, start, ends, length, batch_size, _Draw(temperature, seed))
            for text, count in writer.fill(chunks * length, begun):
                rows[language_column].append(label)
                rows[text_column].append(text)
                bar.update(count)
    return Dataset.from_dict(rows)


def check_request(*, language: str, language_column: str, text_column: str, **numbers: Any) -> None:
    """Checks the arguments of `write_calibration_text`.

    Raises:
        ValueError: If one is not allowed.
    """
    for name, value in numbers.items():
        if value is not None or name not in ("chunks", "sequence_length", "temperature"):
            _LEGAL[name].check(name, value)
    if not all((language, language_column, text_column)) or language_column == text_column:
        raise ValueError(
            f"language={language!r}, language_column={language_column!r} and text_column={text_column!r} do not go "
            "together: give a name for the language, and one for each column."
        )


def resolve_request(chunks: int | None, temperature: float | None, beginnings: Any) -> tuple[int, float]:
    """How many chunks to write, with beginnings in each language, and at what temperature, where that is not said.

    32 chunks are what calibration reads of each language.
    """
    if beginnings is None:
        return chunks or 180, temperature or 1.0
    return chunks or 32, temperature or 0.8


def check_writing(model: "PreTrainedModel") -> None:
    """Checks that a model can write text from nothing, as far as its type tells.

    Raises:
        ValueError: If it cannot.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        problem = "is an encoder-decoder, which writes only in answer to a text"
    elif is_masked(model.config):
        problem = "is an encoder, which writes no text"
    elif not model.can_generate():
        problem = "has no language-model head: load it with AutoModelForCausalLM"
    elif shares_parameters(model):
        problem = "is shared out among processes: load it whole in one process"
    else:
        return
    raise ValueError(f"{name} {problem}. Only a causal language model writes its own calibration text.")


def _start(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """What a model reads before it writes a text: what the tokenizer writes there, or else the token between texts."""
    if prefix := prefix_of(tokenizer):
        return prefix
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return (int(token),)
    raise ValueError(
        "The tokenizer writes nothing before a text and has neither a beginning-of-sequence nor an end-of-sequence "
        "token, so the model cannot be told to begin one: set tokenizer.bos_token to what it has seen before texts."
    )


def _ends(model: Any, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end a text."""
    found = model.generation_config.eos_token_id
    listed = found if isinstance(found, Sequence) else [found]
    return sorted({int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None})


@contextmanager
def _generation_config(model: Any, start: Sequence[int], ends: list[int]) -> Iterator[None]:
    """Inside the block, nothing that the model's own config says about generation applies."""
    before = model.generation_config
    try:
        # A config that is given to `generate` takes over from this one whatever it leaves out.
        config: Any = GenerationConfig  # not typed
        model.generation_config = config(do_sample=False, eos_token_id=ends or None, pad_token_id=start[0])
        yield
    finally:
        model.generation_config = before


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Writes texts of one language.

    Attributes:
        model: Writes them.
        encoder: Reads them as calibration will, which is not always as they were written.
        text_column: Where it reads them.
        start: What the model reads before any text.
        ends: The tokens that end a text.
        length: Most tokens of a text, `start` included.
        batch_size: How many are written at a time, at most.
        draw: Chooses each token.
    """

    model: Any
    encoder: RowEncoder
    text_column: str
    start: tuple[int, ...]
    ends: Collection[int]
    length: int
    batch_size: int
    draw: LogitsProcessor

    def fill(self, missing: int, openings: Sequence[list[int]]) -> Iterator[tuple[str, int]]:
        """Yields texts, and how many tokens calibration reads of each, until none are missing.

        Raises:
            ValueError: If the model writes nothing.
        """
        tried, tokens = 1, self.length  # before anything is written, a text is taken to be as long as it may be
        silent = 0
        for opening in cycle(openings):
            size = min(self.batch_size, math.ceil(missing * tried / tokens))
            tried, silent = tried + size, silent + size
            for text in self._texts(opening, size):
                read = len(self.encoder.encode({self.text_column: text}, SELF_WRITTEN, self.length))
                tokens += read
                if count := min(read, missing):
                    yield text, count
                    missing -= count
                    silent = 0
            if not missing:
                return
            if silent >= _MOST_SILENT * self.batch_size:
                begun = ", ".join(map(str, (*self.start, *opening)))
                raise ValueError(
                    f"{type(self.model).__name__} writes no text: {silent} times in a row it wrote nothing, or nothing "
                    f"but blanks, after what it was begun with (token ids {begun})."
                )

    def _texts(self, opening: list[int], size: int) -> Iterator[str]:
        """Yields some texts that begin alike, but not those of which the model writes nothing."""
        begun = [*self.start, *opening]
        ids = torch.tensor([begun] * size, device=input_device(self.model))
        with interruptible():
            written = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.length - len(begun),
                logits_processor=LogitsProcessorList([self.draw]),
            )
        for row in written[:, len(begun) :].tolist():
            own = list(takewhile(lambda token: token not in self.ends, row))
            if self._spelled(own).strip():
                yield self._spelled([*opening, *own])

    def _spelled(self, ids: list[int]) -> str:
        """What tokens spell, with every space where the model wrote one."""
        text = self.encoder.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return mended(str(text))


class _Draw(LogitsProcessor):
    """Draws every token from the whole distribution, with random numbers of its own.

    The largest of the logits is such a draw if Gumbel noise is added to each. To have `generate` sample would draw from
    the random numbers of the caller.
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self._temperature = temperature
        self._seed = seed
        self._random: torch.Generator | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float()
        if not bool((logits < torch.inf).all()):  # one that is not possible at all may be minus infinity
            raise FloatingPointError("The model gives NaN or infinity: check its weights, or run it in a wider dtype.")
        if self._random is None:
            self._random = torch.Generator(logits.device).manual_seed(self._seed)
        noise = torch.empty_like(logits).exponential_(generator=self._random).log()
        return logits / self._temperature - noise
