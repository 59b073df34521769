"""`zoo` and `python -m zoo`: a thin dispatcher. Nothing heavy is imported before it is known to be needed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

VERBS = ("fit", "validate", "test", "predict")
# Modules that each have a main(argv).
TOOLS = {
    "list": "zoo.listing",
    "doctor": "zoo.doctor.command",
    "import": "zoo.checkpoints.show",
    "export": "zoo.export.command",
    "compare": "zoo.compare",
    "sweep": "zoo.sweeps",
    "rerun": "zoo.rerun",
}

OVERVIEW = """\
usage: zoo <command> [options]

look around (instantly)
  zoo list [methods|benchmarks|backbones] [pattern] [--json]

before hours are lost
  zoo doctor [--config NAME ...] [--json]  is all there, does it fit together, and what will the run take

run
  zoo fit       train a method
  zoo validate  evaluate a checkpoint on the validation split
  zoo test      evaluate a checkpoint on the test split
  zoo predict   run a trained method on data

  zoo fit --config fst/embedded
  zoo fit --config fst/embedded --model.backbone resnet18 --trainer.max_steps 100
  zoo test --config runs/<run>/config.yaml --ckpt_path runs/<run>/checkpoints/last.ckpt

after a failure
  zoo rerun FILE [--ckpt_path CKPT]  compute the batch that made nan or inf once more, from the file the run wrote

compare
  zoo fit --config fst/embedded --seeds 0 1 2   one run a seed (and --backbones A B), finished ones are skipped
  zoo fit --config audio_classifier/esc50 --folds 1 2 3 4 5   one run a fold, and the mean over folds
  zoo compare RUNS... [--diff A B] [--out DIR]  a table of runs, and which differences are real
  zoo sweep CONFIG [--vary KEY=VALUES ...]      print a W&B sweep

weights
  zoo import FILE [--to OUT.safetensors]  show what a file of weights is, and convert it
  zoo export --checkpoint RUN.ckpt [--format onnx ...] FOLDER
                                          write safetensors, timm, ONNX or torch.export files, checked against torch
  zoo export --checkpoint RUN.ckpt (--all | --size NAME ...) FOLDER
                                          write the sub-networks of a POA run, each as a plain network

options of the run commands
  --config NAME     a file, or the name of a config of the package; repeat it to override part of one
  --model CLASS     the method, e.g. FST; its options are --model.<name> (see --model.help FST)
  --data CLASS      the benchmark, e.g. StreetShift; its options are --data.<name>
  --trainer.<name>  any option of the Lightning Trainer
  --run_dir DIR     where the run is kept (default: runs/<method>/<benchmark>/<time>-seed<seed>)
  --wandb MODE      auto, online, offline or disabled; --wandb_checkpoint true keeps the checkpoint there
  --tensorboard true  event files for TensorBoard, too
  --run_card false  do without run_card.json, the record of the run
  --print_config    show the resolved config and stop
  --allow-imports PACKAGE  let configs name classes of a package of yours (importing it runs its code)
  --traceback       show where an error comes from (also: SELFZOO_DEBUG=1)
  --help            all options, e.g. zoo fit --help

zoo --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code (2: wrong usage, 1: the run failed)."""
    command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        return 0
    if command == "--version":
        from zoo import __version__

        print(__version__)
        return 0
    if command in TOOLS:
        return importlib.import_module(TOOLS[command]).main(rest)
    if command in VERBS:
        from zoo.cli import run

        return run([command, *rest])

    from zoo.registry import suggest

    near = suggest(command, (*TOOLS, *VERBS))
    hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join((*TOOLS, *VERBS))}."
    print(f"zoo: error: unknown command {command!r}; {hint} `zoo --help` shows all.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
