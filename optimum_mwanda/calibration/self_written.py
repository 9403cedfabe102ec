"""Calibration text that the model itself writes, in whatever languages it knows."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
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
"""After so many batches without any text, the model is taken to write none."""


def write_calibration_text(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | str | None" = None,
    *,
    chunks: int = 180,
    sequence_length: int | None = MWandaConfig.sequence_length,
    temperature: float = 1.0,
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

    A text ends where the model ends it or where it is as long as a chunk. It is not made to go on, because what follows
    an end that was forbidden is not what the model expects; instead it writes more texts, until they fill all chunks.

    Args:
        model: A causal language model, before it is pruned; it is not changed, nor are the random numbers of torch.
        tokenizer: Its tokenizer, or the name or path of one. None: the one saved beside the model.
        chunks: How many chunks of `sequence_length` tokens the texts fill.
        sequence_length: Tokens of a chunk, as in `MWandaConfig`; give what you calibrate with.
        temperature: Above 1, what the model finds unlikely becomes more frequent, and below 1 less.
        seed: Seed of the draw.
        batch_size: How many texts are written at a time.
        language: What stands for their language. Cards explain the name `"self"` and no other.
        language_column: Name of its column.
        text_column: Name of the column with the texts.
        progress: Whether to show a progress bar.

    Returns:
        Rows that can be added to those of other languages.

    Raises:
        FloatingPointError: If the model gives NaN or infinity.
        ValueError: If the model cannot write text or writes none, there is no tokenizer or none that tells how a text
            begins, or an argument is not allowed.
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
    start = _beginning(encoder.tokenizer)
    length = resolve_sequence_length(sequence_length, model)
    if length <= len(start):
        raise ValueError(f"sequence_length={length} leaves no room for text: give at least {len(start) + 1}.")
    ends = _ends(model, encoder.tokenizer)
    draw = LogitsProcessorList([_Draw(temperature, seed)])
    texts: list[str] = []
    missing, silent = chunks * length, 0
    with (
        inference_mode(model),
        _generation_config(model, start, ends, length),
        tqdm(total=missing, desc="Writing", unit=" tokens", disable=not progress) as bar,
    ):
        while missing > 0:
            before = len(texts)
            for ids in _write(model, start, ends, batch_size, draw):
                text = _text(encoder.tokenizer, ids)
                # What counts is how calibration will read it, which is not always as it was written.
                count = min(len(encoder.encode({text_column: text}, language, length)), missing)
                if count:
                    texts.append(text)
                    missing -= count
                    bar.update(count)
            silent = 0 if len(texts) > before else silent + 1
            if silent == _MOST_SILENT:
                raise ValueError(
                    f"{type(model).__name__} writes no text: {silent * batch_size} times in a row it wrote nothing, or "
                    f"nothing but blanks, after what it was begun with (token ids {', '.join(map(str, start))})."
                )
    return Dataset.from_dict({language_column: [language] * len(texts), text_column: texts})


def check_request(*, language: str, language_column: str, text_column: str, **numbers: Any) -> None:
    """Checks the arguments of `write_calibration_text`.

    Raises:
        ValueError: If one is not allowed.
    """
    for name, value in numbers.items():
        if value is not None or name != "sequence_length":
            _LEGAL[name].check(name, value)
    if not all((language, language_column, text_column)) or language_column == text_column:
        raise ValueError(
            f"language={language!r}, language_column={language_column!r} and text_column={text_column!r} do not go "
            "together: give a name for the language, and one for each column."
        )


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


def _beginning(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
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


def _text(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """What the model has written, with every space where it wrote one."""
    return mended(str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)))


def _ends(model: Any, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end a text."""
    found = model.generation_config.eos_token_id
    listed = found if isinstance(found, Sequence) else [found]
    return sorted({int(token) for token in (*listed, tokenizer.eos_token_id) if token is not None})


@contextmanager
def _generation_config(model: Any, start: Sequence[int], ends: list[int], length: int) -> Iterator[None]:
    """Inside the block, nothing that the model's own config says about generation applies."""
    before = model.generation_config
    try:
        # A config that is given to `generate` takes over from this one whatever it leaves out.
        config: Any = GenerationConfig  # not typed
        model.generation_config = config(
            max_new_tokens=length - len(start), do_sample=False, eos_token_id=ends or None, pad_token_id=start[0]
        )
        yield
    finally:
        model.generation_config = before


def _write(
    model: Any, start: Sequence[int], ends: Collection[int], count: int, draw: LogitsProcessorList
) -> list[list[int]]:
    """The token ids of some texts, without what begins and ends them."""
    ids = torch.tensor([start] * count, device=input_device(model))
    with interruptible():
        written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), logits_processor=draw)
    rows: list[list[int]] = written[:, len(start) :].tolist()
    return [list(takewhile(lambda token: token not in ends, row)) for row in rows]


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
