"""The entry point of `hf-compact`: parses, runs a verb, prints its outcome, and turns errors into exit 2."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence

from transformers.utils import logging

from ..modeling.errors import CompactEmbeddingsError
from ..version import __version__
from . import calibrate, compress, demo, evaluate, export, inspect, methods, plan, push

_VERBS = (methods, plan, compress, inspect, calibrate, evaluate, export, push, demo)


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
        verb.add_argument("--debug", action="store_true", help="print where in the code an error came from")
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Return 0, or 2 after one line on stderr if it failed or was interrupted."""
    options = build_parser().parse_args(arguments)
    logging.set_verbosity_error()
    try:
        outcome = options.run(options)
    except KeyboardInterrupt:
        return _failed(options, "interrupted")
    except (CompactEmbeddingsError, OSError) as error:
        return _failed(options, str(error))
    except Exception as error:
        return _failed(options, f"{type(error).__name__}: {error} (`--debug` shows where that came from)")
    print(json.dumps(outcome.data) if options.json else outcome.text)
    return 0


def _failed(options: argparse.Namespace, reason: str) -> int:
    """Tell in one line why a verb came to nothing: messages of other libraries run over many."""
    if options.debug:
        traceback.print_exc()
    print(f"hf-compact {options.verb}: {' '.join(reason.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
