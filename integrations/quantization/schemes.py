"""All schemes that are measured, in the order of the table. A new one is a function in adapters.py and a line here."""

from functools import partial

from adapters import (
    GROUP,
    bitsandbytes,
    gptqmodel,
    hqq,
    llm_compressor,
    nncf,
    nncf_bytes,
    nncf_matrix,
    optimum_gptq,
    quanto,
    rounded,
    torchao,
)
from reading import bytes_in_files
from rounding import FLOAT, INTEGER, SYMMETRIC
from source import Scheme

AO, GPTQ, LLMC, NNCF, BNB = ("torchao",), ("gptqmodel", "optimum"), ("llmcompressor",), ("nncf",), ("bitsandbytes",)

SCHEMES = (
    Scheme("reference", "int8 symmetric, rows", (), partial(rounded, bits=8, zero=SYMMETRIC)),
    Scheme("reference", "int4 symmetric", (), partial(rounded, bits=4, zero=SYMMETRIC, group=GROUP)),
    Scheme("reference", f"int4 {INTEGER}", (), partial(rounded, bits=4, zero=INTEGER, group=GROUP)),
    Scheme("reference", f"int4 {FLOAT}", (), partial(rounded, bits=4, zero=FLOAT, group=GROUP)),
    Scheme("torchao", "Int8WeightOnlyConfig", AO, partial(torchao, config="int8")),
    Scheme("torchao", "Int4WeightOnlyConfig", AO, partial(torchao, config="int4")),
    Scheme("torchao", "PrototypeInt4WeightOnlyConfig", AO, partial(torchao, config="int4 prototype")),
    Scheme("torchao", "IntxWeightOnlyConfig int4 SYMMETRIC", AO, partial(torchao, config="intx", mapping="SYMMETRIC")),
    Scheme(
        "torchao", "IntxWeightOnlyConfig int4 ASYMMETRIC", AO, partial(torchao, config="intx", mapping="ASYMMETRIC")
    ),
    Scheme("optimum-quanto", "qint8", ("optimum-quanto",), partial(quanto, weights="qint8")),
    Scheme("optimum-quanto", "qint4", ("optimum-quanto",), partial(quanto, weights="qint4")),
    Scheme("optimum-quanto", "qint4, zeropoint", ("optimum-quanto",), partial(quanto, weights="qint4", zeropoint=True)),
    Scheme("hqq", "8 bits", ("hqq",), partial(hqq, bits=8)),
    Scheme("hqq", "4 bits", ("hqq",), partial(hqq, bits=4)),
    Scheme("hqq", "4 bits, round_zero, no optimize", ("hqq",), partial(hqq, bits=4, round_zero=True, optimize=False)),
    Scheme("bitsandbytes", "LLM.int8", BNB, partial(bitsandbytes, load_in_8bit=True)),
    Scheme("bitsandbytes", "nf4", BNB, partial(bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    Scheme("bitsandbytes", "fp4", BNB, partial(bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="fp4")),
    Scheme("optimum", "GPTQ int4 symmetric", GPTQ, partial(optimum_gptq, sym=True), stored=bytes_in_files),
    Scheme(
        "gptqmodel",
        "GPTQ int4 symmetric",
        GPTQ,
        partial(gptqmodel, config="GPTQConfig", sym=True),
        stored=bytes_in_files,
    ),
    Scheme(
        "gptqmodel", "RTN int4 symmetric", GPTQ, partial(gptqmodel, config="RTNConfig", sym=True), stored=bytes_in_files
    ),
    Scheme(
        "gptqmodel",
        "RTN int4 asymmetric",
        GPTQ,
        partial(gptqmodel, config="RTNConfig", sym=False),
        stored=bytes_in_files,
    ),
    Scheme(
        "llm-compressor", "RTN int4 symmetric", LLMC, partial(llm_compressor, modifier="RTN"), stored=bytes_in_files
    ),
    Scheme(
        "llm-compressor",
        "RTN int4 asymmetric",
        LLMC,
        partial(llm_compressor, modifier="RTN", symmetric=False),
        stored=bytes_in_files,
    ),
    Scheme(
        "llm-compressor", "GPTQ int4 symmetric", LLMC, partial(llm_compressor, modifier="GPTQ"), stored=bytes_in_files
    ),
    Scheme(
        "llm-compressor",
        "GPTQ int4 symmetric, masked again",
        LLMC,
        partial(llm_compressor, modifier="GPTQ", mask_again=True),
        stored=bytes_in_files,
    ),
    *(
        Scheme("nncf", mode, NNCF, partial(nncf, mode=mode), nncf_matrix, nncf_bytes)
        for mode in ("INT8_SYM", "INT8_ASYM", "INT4_SYM", "INT4_ASYM")
    ),
)
