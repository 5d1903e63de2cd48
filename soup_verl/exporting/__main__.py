"""A checkpoint as a model that others can load: python -m soup_verl.export CKPT --out DIR [--push NAME]

    checks (the checkpoint's checksums, the name and the token) ──► merged weights, or the adapter ──► README.md
    ──► DIR, in one step ──► the hub

docs/export.md says what is in DIR.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from soup_verl.evaluation import checkpoints
from soup_verl.exporting import ExportError, card, hub, measured, model
from soup_verl.method.checks import PortableError
from soup_verl.records.files import new_folder
from soup_verl.reporting.runs import ReportError, read_evaluation, read_run
from soup_verl.stack import checkpoint
from soup_verl.tasks.command_line import Parser


def export(arguments: argparse.Namespace) -> None:
    """Write `--out` and push it if asked to.

    Raises:
        PortableError, ReportError: something cannot work; what has been written is whole, or gone.
    """
    out, given = arguments.out, f"CKPT={arguments.checkpoint}"
    if arguments.push:
        hub.check(arguments.push)
    if out.exists():
        raise ExportError(f"--out={out}: exists. Remove it, or choose another folder.")
    actor = checkpoints.actor_of(arguments.checkpoint, given)
    if arguments.adapter:
        model.check_adapter(actor, given)
    folder = actor.parent
    checkpoint.verify(folder)
    run = read_run(folder.parent, folder.parent.name)
    base = arguments.base_model or card.trained_from(run)
    if arguments.adapter and arguments.push and not card.is_hub_name(base):
        raise ExportError(f"--base-model: expected the hub's name of {base}, which an adapter that is pushed must name")
    given_evaluations = list(map(read_evaluation, arguments.evaluation))
    with new_folder(out) as partial:
        sys.stdout.write(f"merging {actor}\n")
        if arguments.adapter:
            model.write_adapter(partial, actor, given, base=base)
            digest = None
        else:
            model.write_merged(partial, actor, given)
            digest = checkpoints.fingerprint(checkpoints.model_files(partial))
        if others := [e for e in given_evaluations if not measured.is_of(e, folder, digest)]:
            raise ExportError(f"--evaluation={others[0].folder}: of another model, or with prefixes of others")
        facts = card.Facts(
            name=arguments.push or out.name,
            step=checkpoint.step_of(folder),
            settings=checkpoint.read_state(folder)["settings"],
            run=run,
            base=base,
            adapter=arguments.adapter,
            evaluations=measured.those_of([*run.evaluations, *given_evaluations], folder, digest),
        )
        (partial / "README.md").write_text(card.model_card(facts), encoding="utf-8")
    sys.stdout.write(f"{out}: the model and its card, README.md\n")
    if arguments.push:
        sys.stdout.write(f"pushed to {hub.push(out, arguments.push)}\n")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m soup_verl.export", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", type=Path, help="of a run: RUN/global_step_N, or RUN/best")
    add("--out", required=True, type=Path, metavar="DIR", help="folder to make")
    add("--adapter", action="store_true", help="of a run with LoRA the adapter alone, not merged")
    add("--base-model", metavar="NAME", help="hub name of the model that was trained, for the card and the adapter")
    add(
        "--evaluation",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="results of soup_verl.evaluate, for the card",
    )
    add("--push", metavar="OWNER/NAME", help="also to this repository of the hub; a new one is private")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 after one line on stderr; 2 for a command line that cannot be read."""
    try:
        export(parse_args(argv))
    except (PortableError, ReportError, OSError) as error:
        sys.stderr.write(" ".join(f"error: {error}".split()) + "\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
