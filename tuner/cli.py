"""The command line ``znni-tune``: what can be asked, and how every ending becomes an exit code.

0 done; 2 the request was wrong or cannot be started; 1 it was started and failed; 130 interrupted. Nothing heavy is
imported here: ``run`` keeps a limit on memory that counts the interpreter and its modules, too.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

PROGRAM = "znni-tune"
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
#: What strikes work that was begun; other errors of the system are taken for requests that cannot be met.
_MIDWAY = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM}


class _Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with a request."""

    def error(self, message: str):
        self.exit(REFUSED, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _type(parse: Callable[[str], object]) -> Callable[[str], object]:
    """`parse` for argparse, which then shows the parser's own words."""
    from znni.errors import ZnniError

    def parsed(text: str) -> object:
        try:
            return parse(text)
        except ZnniError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    from tuner.units import (
        parse_bytes,
        parse_count,
        parse_limit,
        parse_positive,
        parse_seconds,
        parse_seed,
        parse_triple,
    )
    from znni._version import __version__

    size, seconds, count, seed, positive = map(
        _type, (parse_bytes, parse_seconds, parse_count, parse_seed, parse_positive)
    )
    main = _Parser(
        prog=PROGRAM,
        description="Tune, verify, explain and run plans for 3D ConvNet inference.",
        epilog="exit codes: 0 done, 1 started and failed, 2 wrong or cannot be started, 130 interrupted",
    )
    main.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = main.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        added.add_argument("--json", action="store_true", help="print JSON, and nothing else, on stdout")
        return added

    def store(p: argparse.ArgumentParser) -> None:
        p.add_argument(
            "--store", metavar="DB", help="the store of measurements (default: $ZNNI_STORE, else the cache folder)"
        )

    def network(p: argparse.ArgumentParser) -> None:
        p.add_argument(
            "--weights", metavar="FILE", help="weights of the network, NPZ or HDF5 (default: its own, else made)"
        )
        p.add_argument(
            "--weights-seed", type=seed, default=0, metavar="N", help="seed of weights that are made (default 0)"
        )
        p.add_argument("--width", type=count, metavar="N", help="channels of a narrowed zoo network, for trials")

    p = command("networks", "list the networks of the zoo")
    p.add_argument("--explain", action="store_true", help="show their layers and where they were published, too")

    p = command("doctor", "say what this machine and installation offer, and what stands in the way of good timings")
    store(p)

    p = command("tune", "search for the fastest plan within a limit on memory")
    p.add_argument("network", metavar="NETWORK", help="a name of the zoo, or a .znni, .znn or ZNN .h5 file")
    p.add_argument(
        "--memory", type=size, required=True, metavar="4GiB", help="limit on the whole process while it runs"
    )
    p.add_argument("--gpu-memory", type=_type(parse_limit), metavar="4GiB|all",
                   help="use the GPU, too; limit on what a plan allocates there (default: the CPU alone)")  # fmt: skip
    p.add_argument("--no-split", action="store_true",
                   help="no plans whose first layers the CPU computes while the GPU computes the rest")  # fmt: skip
    p.add_argument("--only", choices=("gpu", "stream"),
                   help="gpu: every layer in the GPU's memory; stream: convolutions on the GPU, tensors in host memory where "
                   "they must (default: whatever is fastest)")  # fmt: skip
    p.add_argument("--threads", type=count, metavar="N", help="threads (default: the search decides)")
    p.add_argument(
        "--budget", type=seconds, default=60.0, metavar="60s", help="time for the whole search (default 60s)"
    )
    p.add_argument(
        "--tolerance", type=positive, default=2e-5, metavar="T", help="relative L2 error allowed (default 2e-5)"
    )
    p.add_argument("-o", "--output", default="plan.json", metavar="PLAN", help="plan file to write (default plan.json)")
    store(p)
    p.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the search (default 0)")
    network(p)
    p.add_argument(
        "--patch", type=_type(parse_triple), metavar="Z,Y,X", help="use this input patch (default: the search decides)"
    )
    p.add_argument("--volume", metavar="FILE|Z,Y,X",
                   help="volume that will be run, or its size: patches are charged for what overhangs it")  # fmt: skip
    p.add_argument("--normalise", choices=("none", "slice", "volume", "uint8"), default="none",
                   help="what run does to the input first, kept in the plan (default none)")  # fmt: skip
    p.add_argument("--foreign", action="store_true",
                   help="allow primitives of other libraries, where installed; such a plan needs them to run")  # fmt: skip
    p.add_argument("--frozen", action="store_true", help="answer from the store alone; measure nothing")

    p = command("verify", "compare what a plan computes with float64 truth, and note the error in the plan")
    p.add_argument("plan", metavar="PLAN")
    p.add_argument("--tolerance", type=positive, metavar="T", help="relative L2 error allowed (default 2e-5)")
    store(p)

    p = command("explain", "show a plan layer by layer: primitives, time, memory, throughput")
    p.add_argument("plan", metavar="PLAN")
    store(p)

    p = command("run", "run a plan over a volume (TIFF, NPY or HDF5) and write the valid region (NPY or HDF5)")
    p.add_argument("plan", metavar="PLAN")
    p.add_argument("input", metavar="INPUT")
    p.add_argument("result", metavar="OUTPUT")
    p.add_argument(
        "--normalise", choices=("none", "slice", "volume", "uint8"), help="normalise otherwise than the plan says"
    )
    p.add_argument("--overwrite", action="store_true", help="replace an output that exists")

    p = command("bench", "time layers, the layers of a network, or a plan, in turn with other libraries")
    p.add_argument("what", metavar="LAYER|LIST|NETWORK|PLAN",
                   help='such as "80>80 k9 in56", published or gpu-published (lists of layers), n337 or plan.json')  # fmt: skip
    p.add_argument("--device", choices=("cpu", "gpu"),
                   help="where layers are computed, by peers too (default: cpu; of gpu-published gpu)")  # fmt: skip
    p.add_argument(
        "--primitive", metavar="A,B", help="only these primitives, or none (default: all but other libraries')"
    )
    p.add_argument(
        "--config", metavar="JSON", help="the config of the one primitive named (default: the best is found)"
    )
    p.add_argument("--threads", type=count, metavar="N", help="threads (default: all cores)")
    p.add_argument("--peers", metavar="P,..",
                   help="torch, torch/contiguous, openvino, onnxruntime, torch.compile, torch.cuda (on the GPU), .., all (but "
                   "torch.compile) or none (default: all that are installed; for networks and plans none)")  # fmt: skip
    p.add_argument(
        "--seconds", type=seconds, default=20.0, metavar="S", help="time per layer or plan, about (default 20)"
    )
    p.add_argument("--memory", type=size, metavar="4GiB", help="limit of the default plan of a NETWORK (default 4GiB)")
    p.add_argument("-o", "--output", metavar="FILE", help="write the JSON to a file, too (of layers, after each)")
    store(p)
    network(p)
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        with _terminated_like_interrupted():
            return _main(argv)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: with nothing half-written left behind."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _main(argv: Sequence[str] | None) -> int:
    try:
        from znni.errors import RunFailed, ZnniError
    except ImportError as error:
        return _fail(str(error), REFUSED)
    args = build_parser().parse_args(argv)
    args.typed = list(sys.argv[1:] if argv is None else argv)
    try:
        from tuner.commands import COMMANDS

        code = COMMANDS[args.command](args)
        sys.stdout.flush()
        return code
    except RunFailed as error:
        return _fail(str(error), FAILED)
    except ZnniError as error:
        return _fail(str(error), REFUSED)
    except ImportError as error:
        if error.name is None:  # raised on purpose, in words: kernels that are not built, or not for this CPU
            return _fail(str(error), REFUSED)
        if error.name.split(".")[0] in ("znni", "tuner") or not isinstance(error, ModuleNotFoundError):
            raise
        return _fail(f"this needs {error.name}, which is not installed: pip install {error.name}", REFUSED)
    except BrokenPipeError:
        _abandon_stdout()
        return FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in _MIDWAY:
            _abandon_stdout()
        return _fail(where + (error.strerror or str(error)), FAILED if error.errno in _MIDWAY else REFUSED)
    except MemoryError as error:
        return _fail(f"out of memory: {error}; use a lower --memory", FAILED)


def _fail(sentence: str, code: int) -> int:
    print(f"{PROGRAM}: error: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _abandon_stdout() -> None:
    """Let what could not be written go, so that the interpreter's last flush does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    raise SystemExit(main())
