"""Perplexity and bits per byte per language, as a metric of the `evaluate` library."""

import datasets
import evaluate
import torch
from transformers import AutoModelForCausalLM

from optimum_mwanda import evaluate_languages

_DESCRIPTION = """
How well a causal language model predicts text, per language: negative log-likelihood per token, perplexity per token
and bits per byte. Perplexities compare models that share a tokenizer; bits per byte compare languages and tokenizers.
The texts of a language are joined and scored as one; the order in which they are given does not matter.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): Texts to score.
    references (list of str): Language of each text.
    model_id (str): Name or path of a causal language model that comes with its tokenizer.
    sequence_length (int, optional): Tokens per window. Default: 512, or fewer if the model has fewer positions.
    bos (str): "auto" begins every window with the tokens that the tokenizer writes before a text, "none" leaves them
        where texts begin. Default: "auto".
    batch_size (int): Windows per forward pass. Default: 8.
    revision (str, optional): Revision of the model. Default: the main branch.
    device (str, optional): Where to run the model. Default: "cuda" if there is one, else "cpu".

Returns:
    languages (dict): language to `{"tokens", "nll", "bytes", "perplexity", "bits_per_byte", "standard_errors"}`; the
        last is a dict with the bootstrap standard errors of nll, perplexity and bits_per_byte, over windows.
    mean_nll (float): Mean over languages of the negative log-likelihood per token, in nats.
    worst_language (str): Language with the most bits per byte.
"""

_CITATION = """
@inproceedings{choenni2025mwanda,
  title={M-Wanda: Improving One-Shot Pruning for Multilingual LLMs},
  author={Choenni, Rochelle and Titov, Ivan},
  booktitle={Proceedings of EMNLP},
  year={2025}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class MultilingualPerplexity(evaluate.Metric):
    """Scores texts in several languages with one model."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        model_id,
        sequence_length=None,
        bos="auto",
        batch_size=8,
        revision=None,
        device=None,
    ):
        model = AutoModelForCausalLM.from_pretrained(model_id, revision=revision)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        rows = [{"language": lang, "text": text} for lang, text in sorted(zip(references, predictions, strict=True))]
        report = evaluate_languages(
            model,
            None,
            rows,
            sequence_length=sequence_length,
            bos=bos,
            batch_size=batch_size,
            tokens_per_language=10**9,
            progress=False,
        )
        kept = ("tokens", "nll", "bytes", "perplexity", "bits_per_byte", "standard_errors")
        scores = {each["language"]: {name: each[name] for name in kept} for each in report.to_dict()["languages"]}
        return {
            "languages": scores,
            "mean_nll": sum(entry["nll"] for entry in scores.values()) / len(scores),
            "worst_language": max(scores, key=lambda language: scores[language]["bits_per_byte"]),
        }
