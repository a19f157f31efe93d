"""`python -m cierzo.evaluate ...`: the command `lm_eval` with our engine among its models, as `--model cierzo`.

The harness has no plugins: a model is known to it once its class was imported, which its own command never does.
"""

import sys

from cierzo.errors import CierzoError


def main() -> None:
    try:
        from lm_eval.__main__ import cli_evaluate

        import cierzo.evaluate.lm  # noqa: F401 (registers the model)
    except ModuleNotFoundError as error:
        sys.exit(f"error: this needs {error.name}: pip install 'cierzo[eval]'")
    try:
        cli_evaluate()
    except CierzoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
