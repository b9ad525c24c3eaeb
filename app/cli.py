"""The commands that use a bundle: serve, translate, generate, info; and keys, of its server.

`register` adds them to the console command; each is imported only when it runs. `translate` and
`generate` run the engine in this process: no server is needed. Answers go to stdout, everything
else to stderr.
"""

from __future__ import annotations

import argparse

_RAW = argparse.RawDescriptionHelpFormatter


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _register_serve(commands)
    _register_translate(commands)
    _register_generate(commands)
    _register_info(commands)
    _register_keys(commands)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", metavar="DIR", help="bundle directory (default: the bundled)")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"],
        help="where to run (default: auto: CUDA where the bundle can run on it)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="default: from the CPU quota")


def _add_shortlist(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shortlist", action="store_true", default=None, help="use the bundle's shortlist"
    )


def _register_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a bundle over HTTP",
        description="Serve a bundle over HTTP. A setting is taken from the command line, else\n"
        "from an environment variable (GPT2MT_ and its name, such as GPT2MT_SLOTS), else from\n"
        "the file of settings. SIGHUP reads changed bundles in without dropping a request.",
        epilog="example:\n  gpt2-mt serve --host 0.0.0.0 --port 8000\n"
        "  curl localhost:8000/v1/translate -H 'Content-Type: application/json' \\\n"
        '    -d \'{"text": "Good morning!", "source": "en", "target": "de"}\'',
        formatter_class=_RAW,
    )
    parser.add_argument("--host", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen at (default: 8000)")
    _add_engine(parser)
    _add_shortlist(parser)
    parser.add_argument("--slots", type=int, metavar="N", help="sequences side by side")
    parser.add_argument(
        "--no-page", dest="page", action="store_false", default=None, help="no web page at /"
    )
    parser.add_argument(
        "--glossaries", metavar="DIR", help="keep stored glossaries here (default: in memory)"
    )
    parser.add_argument(
        "--engine", choices=["local", "ray"], help="ray: replicas on a cluster (default: local)"
    )
    parser.add_argument("--replicas", type=int, metavar="N", help="with --engine ray")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--config", metavar="PATH", help="TOML file of settings")
    parser.add_argument(
        "--set", action="append", metavar="NAME=VALUE", help="any setting; may be given repeatedly"
    )
    parser.add_argument(
        "--show-config", action="store_true", help="print all settings and where they are from"
    )
    parser.set_defaults(run=serve)


def _register_translate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "translate",
        help="translate a text, documents, a file, a folder or stdin",
        description="Translate one text, or documents (.txt, .md, .html, .srt, .po, .docx), each\n"
        "into NAME.TARGET.EXT beside it; or the lines of a file or of stdin as a\n"
        "batch: one line out for each line in, with its alternatives, best first, between tabs.\n"
        "Those of one text are a line each, after their scores. What is doubtful is tried again\n"
        "by beam; what is doubtful still is counted on stderr. Of a folder, every text and the\n"
        "source side of every corpus becomes a file of lines and translations to train on,\n"
        "without a second try; finished files are not made again.",
        epilog="example:\n  gpt2-mt translate --target de 'Good morning!'\n"
        "  gpt2-mt translate --target de report.docx\n"
        "  gpt2-mt translate --target de --beam 4 --alternatives 4 'Good morning!'\n"
        "  gpt2-mt translate --source en --target fr --file lines.txt > lines.fr.txt\n"
        "  gpt2-mt translate --source en --target de --format html --file in.html > out.html\n"
        "  gpt2-mt translate --source en --target de --folder corpus --out made",
        formatter_class=_RAW,
    )
    parser.add_argument("text", nargs="*", help="the text, or documents (default: stdin)")
    parser.add_argument("--file", metavar="PATH", help="translate the lines of this file")
    parser.add_argument("--folder", metavar="DIR", help="translate all texts and corpora in here")
    parser.add_argument(
        "--out", metavar="PATH", help="folder for the translations of --folder or of documents, or "
        "a file for that of one document",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite a document's translation")
    parser.add_argument("--source", default="auto", metavar="CODE", help="default: auto")
    parser.add_argument("--target", required=True, metavar="CODE")
    parser.add_argument(
        "--beam", type=int, default=1, metavar="N", help="size of the beam search (default: greedy)"
    )
    parser.add_argument("--length-penalty", type=float, default=1.0, metavar="A", help="default: 1")
    parser.add_argument(
        "--alternatives", type=int, default=0, metavar="N", help="the N best; at most --beam"
    )
    parser.add_argument("--prefix", default="", metavar="TEXT", help="what it begins with")
    parser.add_argument(
        "--format", choices=["text", "html", "xml"], default="text",
        help="html, xml: one document (default: text)",
    )
    parser.add_argument(
        "--glossary", metavar="PATH", help="lines of a term, a tab and its translation"
    )
    parser.add_argument(
        "--no-retry", action="store_true", help="no second try; print while it is generated"
    )
    parser.add_argument(
        "--branch", action="store_true", help="alternatives that differ in their first word"
    )
    _add_engine(parser)
    _add_shortlist(parser)
    parser.set_defaults(run=translate)


def _register_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="continue a prompt",
        description="Continue a prompt; the text is printed while it is generated. With --task,\n"
        "the prompt is the input of a text-to-text task that the model has learnt.",
        epilog="example:\n  gpt2-mt generate --temperature 0.8 --top-k 50 --seed 7 'Once upon'",
        formatter_class=_RAW,
    )
    parser.add_argument("prompt", nargs="*", help="the prompt (default: stdin)")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N")
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="default: 0, or 1 with an option below"
    )
    parser.add_argument("--top-k", type=int, metavar="K")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--min-p", type=float, metavar="P", help="of the likeliest token's chance")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R")
    parser.add_argument("--presence-penalty", type=float, default=0.0, metavar="A")
    parser.add_argument("--frequency-penalty", type=float, default=0.0, metavar="A")
    parser.add_argument("--min-tokens", type=int, default=0, metavar="N")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="may be given repeatedly")
    parser.add_argument("--task", default="", help="one of the tasks that `gpt2-mt info` names")
    _add_engine(parser)
    parser.set_defaults(run=generate)


def _register_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "info",
        help="what a bundle is: languages, size, scores, provenance, and where it runs",
        description="Check a bundle, say what it is and on which device it runs here.",
        epilog="example:\n  gpt2-mt info --bundle runs/export/bundle",
        formatter_class=_RAW,
    )
    _add_engine(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=info)


def _register_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "keys",
        help="make, list and remove API keys",
        description="API keys of a server, in a file that holds their hashes: `add` prints a new\n"
        "key, once. A running server reads the file again when it changes.",
        epilog="example:\n  gpt2-mt keys add alice --file keys.txt --requests-per-minute 60\n"
        "  GPT2MT_API_KEYS=keys.txt gpt2-mt serve",
        formatter_class=_RAW,
    )
    parser.add_argument("action", choices=["add", "list", "remove"])
    parser.add_argument("name", nargs="?", default="", help="whose key: letters, digits, . _ @ -")
    parser.add_argument("--file", required=True, metavar="PATH")
    parser.add_argument("--requests-per-minute", type=int, metavar="N", help="default: no limit")
    parser.add_argument("--characters-per-day", type=int, metavar="N", help="default: no limit")
    parser.set_defaults(run=keys)


def serve(args: argparse.Namespace) -> int:
    from app.commands.serve import run

    return run(args)


def translate(args: argparse.Namespace) -> int:
    from app.commands.local import run_translate

    return run_translate(args)


def generate(args: argparse.Namespace) -> int:
    from app.commands.local import run_generate

    return run_generate(args)


def keys(args: argparse.Namespace) -> int:
    from app.commands.keys import run

    return run(args)


def info(args: argparse.Namespace) -> int:
    from app.commands.info import run

    return run(args)
