import csv
import gzip
import logging
from pathlib import Path

import pytest

from optimum_mwanda.data.delimited import columns_of, rows_of

WORDS = ["nan", "NA", "null", "None", "true", "no", "1", "1e5", "2020-01-01", "", "-", "n/a"]


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_every_field_is_the_text_that_it_is(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text("language,text\n".replace(",", delimiter) + "".join(f"{w}{delimiter}{w}\n" for w in WORDS))
    assert columns_of([str(path)], delimiter) == ["language", "text"]
    assert list(rows_of([str(path)], delimiter)) == [{"language": word, "text": word} for word in WORDS]


def test_stray_quotes_in_a_file_with_tabs_swallow_nothing(tmp_path: Path) -> None:
    texts = ['"Habari', 'he said "so"', '"so" he said', 'so"', '"so"', '"']
    path = tmp_path / "t.tsv.gz"
    path.write_bytes(gzip.compress("".join(["language\ttext\r\n", *(f"sw\t{text}\r\n" for text in texts)]).encode()))
    assert [row["text"] for row in rows_of([str(path)], "\t")] == [*texts[:4], "so", '"']


def test_quoted_fields_hold_commas_quotes_and_lines_of_any_length(tmp_path: Path) -> None:
    path, texts = tmp_path / "t.csv", ['a, "b"\nc', "x" * 200_000]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["\ufefflanguage", "text"], *(["en", text] for text in texts)])
    assert [row["text"] for row in rows_of([str(path)], ",")] == texts
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize(("text", "line"), [('"Habari', 3), ('"Habari" yako', 3)])
def test_stray_quote_in_a_csv_file_is_an_error_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"language,text\nen,cat\nsw,{text}\nfr,chat\n")
    with pytest.raises(ValueError, match=rf"t\.csv: the row at line {line} has a quote"):
        list(rows_of([str(path)], ","))


def test_rows_with_another_number_of_fields_are_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("language\ttext\nen\tcat\nsw\n\nfr\tchat\tchien\nsw\tpaka\n")
    with caplog.at_level(logging.WARNING, "optimum_mwanda"):
        assert [row["language"] for row in rows_of([str(path)], "\t")] == ["en", "sw"]
    assert "t.tsv: 2 of 4 rows do not have the 2 fields of the first line and are left out: lines 3, 5." in caplog.text


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("language,text\nsw,paka\n")
    (tmp_path / "b").write_text("text,language\ncat,en\n")
    files = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert columns_of(files, ",") == ["language", "text"]
    assert list(rows_of(files, ",")) == [{"language": "sw", "text": "paka"}, {"language": "en", "text": "cat"}]


@pytest.mark.parametrize(("header", "delimiter"), [("language;text", ","), ("language\ttext", ","), ("a,b", "\t")])
def test_fields_with_another_sign_between_them_are_no_column(tmp_path: Path, header: str, delimiter: str) -> None:
    (tmp_path / "t").write_text(f"{header}\n")
    with pytest.raises(ValueError, match=r"first line of t has '(;|.t|,)' between its fields: fields of a CSV file"):
        columns_of([str(tmp_path / "t")], delimiter)


def test_files_with_other_columns_or_a_column_twice_are_refused(tmp_path: Path) -> None:
    for name, header in {"a": "language,text", "b": "language,sentence", "c": "text,text"}.items():
        (tmp_path / name).write_text(header + "\n")
    with pytest.raises(ValueError, match="b has the columns"):
        columns_of([str(tmp_path / "a"), str(tmp_path / "b")], ",")
    with pytest.raises(ValueError, match="c names a column twice"):
        columns_of([str(tmp_path / "c")], ",")
