"""`python -m cierzo.evaluate ...`: the command `lm_eval` with our engine among its models, as `--model cierzo`.

The harness has no plugins: a model is known to it once its class was imported, which its own command never does.
"""

from lm_eval.__main__ import cli_evaluate

import cierzo.evaluate.lm  # noqa: F401 (registers the model)

if __name__ == "__main__":
    cli_evaluate()
