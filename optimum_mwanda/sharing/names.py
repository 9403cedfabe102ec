"""Names of the files in the folder of a pruned model, and legal names of a repository."""

import re

CARD_NAME = "README.md"
EVALUATION_NAME = "evaluation.json"
HARNESS_NAME = "harness.json"
SPARSITY_PLOT = "sparsity.png"
DEGRADATION_PLOT = "degradation.png"

REPO_ID = re.compile(r"(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)
