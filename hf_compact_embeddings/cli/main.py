"""The entry point of `hf-compact`: parses, runs a verb, prints its outcome, and turns errors into exit 2."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from transformers.utils import logging

from ..modeling.errors import CompactEmbeddingsError
from ..version import __version__
from . import calibrate, compress, demo, evaluate, inspect, methods, plan, push

_VERBS = (methods, plan, compress, inspect, calibrate, evaluate, push, demo)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="hf-compact", description="Make the embedding tables of Transformers models small."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for module in _VERBS:
        name = module.__name__.rsplit(".", 1)[-1]
        summary = (module.__doc__ or "").strip()
        verb = verbs.add_parser(name, help=summary, description=summary)
        verb.add_argument("--json", action="store_true", help="print one JSON object on stdout, and nothing else")
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Return 0, or 2 after one line on stderr for bad input."""
    options = build_parser().parse_args(arguments)
    logging.set_verbosity_error()
    try:
        outcome = options.run(options)
    except (CompactEmbeddingsError, OSError) as error:
        # Messages of other libraries run over many lines.
        print(f"hf-compact {options.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(outcome.data) if options.json else outcome.text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
