"""The Space of the metric: a form for a model, texts and their languages."""

import evaluate
import gradio

metric = evaluate.load("multilingual_perplexity.py")


def score(model_id, table):
    """Rows of a table: language, tokens, perplexity, bits per byte."""
    rows = [row for row in table if row[0] and row[1]]
    result = metric.compute(
        predictions=[text for _, text in rows], references=[language for language, _ in rows], model_id=model_id
    )
    return [
        [language, entry["tokens"], round(entry["perplexity"], 3), round(entry["bits_per_byte"], 4)]
        for language, entry in result["languages"].items()
    ]


demo = gradio.Interface(
    fn=score,
    inputs=[
        gradio.Textbox(label="Model", placeholder="namespace/name of a small causal language model"),
        gradio.Dataframe(headers=["language", "text"], type="array", column_count=2, label="Texts"),
    ],
    outputs=gradio.Dataframe(headers=["language", "tokens", "perplexity", "bits per byte"], label="Scores"),
    title="Multilingual perplexity",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
