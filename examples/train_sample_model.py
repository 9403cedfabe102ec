"""Trains the tiny multilingual Llama in `sample_model/`.

It takes any JSON-lines corpus (plain, `.gz` or `.xz`) with the fields `language` and `text`:

    python examples/train_sample_model.py --corpus train.jsonl.xz --test test.jsonl.xz --output examples/sample_model

The tokenizer is a byte-level BPE trained on the same text. Languages are sampled with an exponent below one, so that
the model sees small ones often enough to learn them. The result is a test instrument for pruning, not a product.
"""

import argparse
import bz2
import gzip
import json
import lzma
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from optimum_mwanda import evaluate_languages

LANGUAGES = "en es fr de pt ru uk zh ja ko tr hi ta vi"
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
BOS, EOS, PAD = 1, 2, 3
# Words keep their combining marks: without \p{M} every Tamil or Hindi vowel sign would end a word.
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+"


def read_corpus(path: Path, languages: list[str]) -> dict[str, list[str]]:
    """Returns the texts of each wanted language, in the order of the file."""
    opener = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    texts: dict[str, list[str]] = {language: [] for language in languages}
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["language"] in texts:
                texts[row["language"]].append(row["text"])
    if missing := [language for language, rows in texts.items() if not rows]:
        raise SystemExit(f"{path} has no text in: {', '.join(missing)}")
    return texts


def sampling_probabilities(texts: dict[str, list[str]], exponent: float) -> dict[str, float]:
    """Share of each language, proportional to (its number of characters) ** exponent."""
    sizes = {language: sum(map(len, rows)) ** exponent for language, rows in texts.items()}
    return {language: size / sum(sizes.values()) for language, size in sizes.items()}


def train_tokenizer(texts: dict[str, list[str]], shares: dict[str, float], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; each language contributes characters in proportion to its sampling share."""

    def sample(characters: int = 6_000_000) -> Iterator[str]:
        for language, rows in texts.items():
            budget = characters * shares[language]
            for text in rows:
                if budget <= 0:
                    break
                yield text[: int(budget) + 1]
                budget -= len(text)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sample(),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    names = dict(zip(["unk_token", "bos_token", "eos_token", "pad_token"], SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def token_streams(texts: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast) -> dict[str, np.ndarray]:
    """One long array of token ids per language; every document ends with `</s>`."""
    streams = {}
    for language, rows in texts.items():
        documents = [[*ids, EOS] for ids in tokenizer(rows)["input_ids"]]
        streams[language] = np.concatenate([np.asarray(ids, dtype=np.uint16) for ids in documents])
    return streams


def train(args: argparse.Namespace, streams: dict[str, np.ndarray], shares: dict[str, float]) -> LlamaForCausalLM:
    """Trains with AdamW, a warm-up and a cosine decay to a twentieth of the peak learning rate."""
    torch.manual_seed(args.seed)
    random = np.random.default_rng(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocab_size,
            hidden_size=160,
            intermediate_size=448,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=args.window,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.95),
    )
    steps = args.tokens // (args.batch_size * args.window)

    def schedule(step: int) -> float:
        return min((step + 1) / 100, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    names = list(streams)
    for step in range(steps):
        windows = []
        for name in random.choice(names, size=args.batch_size, p=[shares[n] for n in names]):
            start = random.integers(0, len(streams[name]) - args.window)
            windows.append(streams[name][start : start + args.window].astype(np.int64))
        batch = torch.from_numpy(np.stack(windows))
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}/{steps} loss {loss.item():.3f}", flush=True)
    return model.eval()


CARD = """---
license: apache-2.0
language: [{languages}]
library_name: transformers
pipeline_tag: text-generation
tags: [multilingual, sample]
---

# Tiny multilingual Llama

A Llama of {parameters:,} parameters ({layers} layers, hidden size {hidden}, tied embeddings, byte-level BPE of
{vocabulary:,} tokens) for trying out pruning offline. It was trained from scratch by `examples/train_sample_model.py`
on {tokens:,} tokens in windows of {window}. It can continue sentences about software and little else: a test
instrument, not a product.

## Data and licence

Open-source software documentation in {count} languages: the FastAPI documentation (MIT), the Hugging Face course
(Apache 2.0), tldr-pages (CC BY 4.0), and the Python documentation with its translations (PSF License, CC0). Code blocks
and markup were removed. Languages were sampled in proportion to (characters) ** {exponent:g}. The weights are released
under Apache 2.0; the text is not part of this repository.

## Held-out text

{evaluated}. Perplexities of different languages cannot be compared; bits per byte can.

{table}
"""


def write_card(args: argparse.Namespace) -> None:
    """Evaluates the saved model on held-out text and describes it."""
    model = LlamaForCausalLM.from_pretrained(args.output)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.output)
    report = evaluate_languages(model, tokenizer, read_corpus(args.test, args.languages), tokens_per_language=4096)
    card = CARD.format(
        languages=", ".join(args.languages),
        parameters=model.num_parameters(),
        layers=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        vocabulary=len(tokenizer),
        tokens=args.tokens,
        window=args.window,
        count=len(args.languages),
        exponent=args.exponent,
        evaluated=f"Documents outside the training text, at most 4,096 tokens per language in windows of {args.window}",
        table=report.to_markdown(),
    )
    (args.output / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines with `language` and `text`")
    parser.add_argument("--test", type=Path, required=True, help="held-out text in the same form, for the card")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model, its tokenizer and its card")
    parser.add_argument("--only-card", action="store_true", help="only write the card of a trained model")
    parser.add_argument("--languages", nargs="+", default=LANGUAGES.split())
    parser.add_argument("--tokens", type=int, default=9_000_000, help="training tokens (default: %(default)s)")
    parser.add_argument("--vocab-size", type=int, default=6144)
    parser.add_argument("--window", type=int, default=256, help="tokens per training window")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--exponent", type=float, default=0.5, help="exponent of language sampling")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    if args.only_card:
        write_card(args)
        return
    texts = read_corpus(args.corpus, args.languages)
    shares = sampling_probabilities(texts, args.exponent)
    tokenizer = train_tokenizer(texts, shares, args.vocab_size)
    model = train(args, token_streams(texts, tokenizer), shares)
    model.to(torch.bfloat16).save_pretrained(args.output)
    tokenizer.model_max_length = args.window
    tokenizer.save_pretrained(args.output)
    write_card(args)


if __name__ == "__main__":
    main()
