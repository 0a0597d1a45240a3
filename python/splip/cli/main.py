"""The ``splip`` command: one word per verb, heavy imports only inside the verb."""

import contextlib
import difflib
import errno
import importlib
import io
import logging
import re
import sys
import warnings
from typing import Any

from splip import __version__
from splip.errors import UserError, one_line

# verb: (configuration, function, summary, examples)
VERBS: dict[str, tuple[str, str, str, str]] = {
    "train": (
        "splip.models.config:TrainConfig",
        "splip.train.loop:train",
        "train SpLIP, or a baseline, on sketches and photos",
        "splip train --config sample --data.root sample --out runs/sample\n"
        "  splip train --backbone.name ViT-B-32 --backbone.pretrained openai --data.root my-tree --out runs/mine\n"
        "  splip train --config sketchy-2 --config clip-at --data.root Sketchy --out runs/clip-at\n"
        "  torchrun --nproc-per-node 4 -m splip.train --config sketchy-2 --data.root Sketchy --out runs/four\n"
        "  splip train --config runs/mine/config.yaml --resume",
    ),
    "pretrain": (
        "splip.train.config:PretrainConfig",
        "splip.train.pretrain:pretrain",
        "train a small CLIP from pictures and their names",
        "python tools/build_pictures.py --out pictures\n"
        "  splip pretrain --pictures pictures --sample sample --compile --out runs/splip-tiny\n"
        "  splip pretrain --pictures pictures --sample sample --compile --out runs/splip-tiny --resume\n"
        "  splip train --config sample --data.root sample --backbone.pretrained runs/splip-tiny/weights.safetensors",
    ),
    "eval": (
        "splip.evaluation.config:EvalConfig",
        "splip.evaluation.evaluate:evaluate",
        "measure zero-shot retrieval on the unseen classes",
        "splip eval --model runs/sample --baselines --out results\n"
        "  splip eval --model runs/sample --protocol gzs --gallery sempcyc all --k 10 100 --metrics all\n"
        "  splip eval --model runs/sample --protocol fg --json fine-grained.json\n"
        "  splip eval --model runs/sketchy --dataset tuberlin --root TUBerlin --out elsewhere\n"
        "  splip eval --features sketches.npy photos.npy --labels sketches.txt photos.txt --metrics zse",
    ),
    "compare": (
        "splip.evaluation.config:CompareConfig",
        "splip.evaluation.compare:compare",
        "test the difference of two evaluations, query by query",
        "splip eval --model runs/one --per-query one.csv\n"
        "  splip eval --model runs/two --per-query two.csv\n"
        "  splip compare one.csv two.csv\n"
        "  splip compare one.csv one.csv --methods 'SpLIP, prompts removed' SpLIP",
    ),
    "sweep": (
        "splip.cli.config:SweepConfig",
        "splip.cli.sweep:sweep",
        "train and measure a row of configurations over seeds",
        "splip sweep --config sketchy-2 --rows 'ablations/*' --set data.root=Sketchy --out runs/ablation\n"
        "  splip sweep --config sketchy-2 --rows zero-shot clip-ln clip-at maple --set data.root=Sketchy --seeds 0",
    ),
    "index add": (
        "splip.gallery.config:IndexAddConfig",
        "splip.cli.index:add",
        "embed the pictures of folders into a gallery",
        "splip index add ~/Pictures --gallery my-gallery --model runs/sample\n"
        "  splip index add ~/Pictures --gallery my-gallery\n"
        "  splip index add holiday --gallery my-gallery --label-from none --tag year=2025 --tag place=sea\n"
        "  splip index add @more.txt --gallery my-gallery --engine openvino --model exported\n"
        "  splip index add shards/*.tar --gallery my-gallery --engine ray --address head:6379",
    ),
    "index remove": (
        "splip.gallery.config:IndexRemoveConfig",
        "splip.cli.index:remove",
        "take pictures out of a gallery",
        "splip index remove ~/Pictures/old --gallery my-gallery\n"
        "  splip index remove --gallery my-gallery --label horse --tag year=2025 --dry-run\n"
        "  splip index remove --gallery my-gallery --missing",
    ),
    "index list": (
        "splip.gallery.config:IndexListConfig",
        "splip.cli.index:show",
        "print what a gallery holds",
        "splip index list --gallery my-gallery --label horse\n"
        "  splip index list --gallery my-gallery --labels\n"
        "  splip index list --gallery my-gallery --sort newest --taken-from 2019\n"
        "  splip index list --gallery my-gallery --json",
    ),
    "index check": (
        "splip.gallery.config:IndexCheckConfig",
        "splip.cli.index:check",
        "compare a gallery with its checksums",
        "splip index check --gallery my-gallery",
    ),
    "index compact": (
        "splip.gallery.config:IndexCompactConfig",
        "splip.cli.index:compact",
        "give back the room of removed pictures",
        "splip index compact --gallery my-gallery",
    ),
    "index export": (
        "splip.gallery.config:IndexExportConfig",
        "splip.cli.index:export",
        "write a gallery's vectors and metadata",
        "splip index export --gallery my-gallery --out vectors --format parquet",
    ),
    "index push": (
        "splip.gallery.config:IndexPushConfig",
        "splip.cli.index:push",
        "bring a Milvus collection up to date with a gallery",
        "splip index push --gallery my-gallery --to milvus://localhost:19530/photos\n"
        "  splip index push --gallery my-gallery --to milvus:photos.db/photos\n"
        "  splip index push --gallery my-gallery --to 'milvus://db.lan/photos?tls=on&database=family'",
    ),
    "search": (
        "splip.gallery.config:SearchConfig",
        "splip.cli.search:search",
        "find the pictures that match a drawing or words",
        "splip search --gallery my-gallery --sketch my.png -k 10 --grid out.png\n"
        "  splip search --gallery my-gallery --sketch my.png --text 'red car' --text-weight 0.3\n"
        "  splip search --gallery my-gallery --text horse --label animals --tag year=2025 --json\n"
        "  splip search --gallery my-gallery --sketch my.png --photo one.jpg:0.5 --not-text snow\n"
        "  splip search --gallery my-gallery --photo one.jpg --under ~/Pictures/2025\n"
        "  splip search --gallery my-gallery --text horse --taken-from 2019 --taken-to 2019-07 --min-side 1000\n"
        "  splip search --gallery milvus://localhost:19530/photos --model runs/sample --sketch my.png",
    ),
    "serve": (
        "splip.serve.config:ServeConfig",
        "splip.serve.process:serve",
        "serve a gallery over HTTP, with a page to draw on",
        "splip serve --gallery my-gallery\n"
        "  splip serve --gallery my-gallery --host 0.0.0.0 --token-file token --protect all --log json\n"
        "  splip serve --gallery my-gallery --token-file token --allow-root ~/Pictures\n"
        "  splip serve --gallery my-gallery --engine ray --shards 8 --replicas 2\n"
        "  SPLIP_SERVE_GALLERY=my-gallery SPLIP_SERVE_PORT=80 splip serve --config serve.yaml",
    ),
    "mcp": (
        "splip.serve.config:McpConfig",
        "splip.serve.mcp:mcp",
        "let an assistant search a gallery: tools over MCP",
        "splip mcp --gallery my-gallery\n  splip mcp --url http://127.0.0.1:8000",
    ),
    "data sample": (
        "splip.data.config:SampleConfig",
        "splip.data.sample:unpack",
        "unpack the sample data set",
        "splip data sample --out sample",
    ),
    "data check": (
        "splip.data.config:CheckConfig",
        "splip.data.trees:check",
        "say what a data set holds, and what is missing",
        "splip data check --root sample --decode\n"
        "  splip data check --root data --dataset sketchy --split 2\n"
        "  splip data check --root data/TUBerlin --dataset tuberlin --decode",
    ),
    "demo": (
        "splip.cli.config:DemoConfig",
        "splip.cli.demo:demo",
        "the whole way on the sample data, with a page to look at",
        "splip demo --out demo\n  splip demo --open",
    ),
    "export": (
        "splip.export.config:ExportConfig",
        "splip.export.command:export",
        "write the encoders for ONNX, OpenVINO and TensorRT",
        "splip export runs/sample --onnx --openvino --text --fuse-preprocess --out exported\n"
        "  splip export runs/sample --trt --precision fp16 --batch 1:8:64 --out engines\n"
        "  splip export runs/sample --trt --compute-capability 8.6 8.9 12.0 --precision fp16 --out engines\n"
        "  splip export runs/sample --openvino --precision int8 --calibration my-pictures --out small",
    ),
    "models": (
        "splip.cli.config:ModelsConfig",
        "splip.cli.models:models",
        "list models by short names, with licences and times",
        "splip models\n  splip models --measure splip-tiny vit-b-32\n  splip models --json",
    ),
    "push-to-hub": (
        "splip.cli.config:PushConfig",
        "splip.cli.hub:push",
        "push a model, an export or a gallery to the hub",
        "splip push-to-hub runs/sample owner/sketches --private\n"
        "  splip push-to-hub runs/sample owner/sketches --results results/results.json --license mit\n"
        "  splip push-to-hub my-gallery owner/photos",
    ),
    "pull-from-hub": (
        "splip.cli.config:PullConfig",
        "splip.cli.hub:pull",
        "bring a gallery or a model from the hub",
        "splip pull-from-hub owner/photos --out my-gallery\n  splip pull-from-hub owner/sketches@v1 --out sketches",
    ),
    "completion": (
        "splip.cli.config:CompletionConfig",
        "splip.cli.completion:completion",
        "print what makes a shell complete verbs, options and their values",
        "splip completion bash > ~/.local/share/bash-completion/completions/splip\n"
        "  splip completion zsh > ~/.zfunc/_splip      # with fpath+=~/.zfunc before compinit in ~/.zshrc\n"
        "  splip completion fish > ~/.config/fish/completions/splip.fish",
    ),
    "info": (
        "splip.cli.config:InfoConfig",
        "splip.cli.info:info",
        "print versions, instruction sets, GPUs",
        "splip info",
    ),
}
# Verbs that read files of settings, and the prefix of their variables: one that services are started by takes those, too.
FILES = ("train", "serve")
VARIABLES = {"serve": "SPLIP_SERVE"}


def usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {entry[2]}" for verb, entry in VERBS.items()]
    return "\n".join(
        [
            f"splip {__version__}: find photos from a drawing",
            "",
            "usage: splip VERB [OPTIONS]      splip VERB --help shows the options of a verb, --help-all all of them",
            "       splip VERB --plugin FILE.py [OPTIONS]      with the methods and losses that the file defines",
            "",
            *lines,
            "",
            "examples:",
            "  splip data sample --out sample",
            "  splip train --config sample --data.root sample --out runs/sample",
            "  splip index add sample/photo --gallery gallery --model runs/sample",
            "  splip search --gallery gallery --sketch sample/sketch/horse/1f40e-1.png -k 10 --grid out.png",
        ]
    )


def _named(name: str) -> Any:
    """What ``module:name`` stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def described(verb: str) -> str:
    """What ``splip VERB --help`` begins with."""
    name, _, summary, examples = VERBS[verb]
    return f"{(_named(name).__doc__ or summary).strip()}\n\nexamples:\n  {examples}{_more(verb)}"


def parser(verb: str, **defaults: Any) -> Any:
    """The parser of a verb, an :class:`argparse.ArgumentParser`: for what lists its options."""
    import tyro

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cls = _named(VERBS[verb][0])
        return tyro.extras.get_parser(cls, prog=f"splip {verb}", description=described(verb), **defaults)


def parse(verb: str, args: list[str]) -> Any:
    """The configuration of a verb: defaults < ``--config`` files < variables of the environment < flags."""
    import tyro

    from splip.cli import help

    cls: type[Any] = _named(VERBS[verb][0])
    aliases = {"-k": "--k"}
    args = [aliases.get(a, a) for a in args]
    files, args = _take_options(args, "--config") if verb in FILES else ([], args)
    helped = bool({"-h", "--help", help.ALL} & set(args))
    defaults = {} if verb in VARIABLES and helped else _defaults(verb, cls, files)
    if helped and verb in help.COMMON and help.ALL not in args:
        print(help.short(verb, parser(verb, **defaults)))
        raise SystemExit(0)
    args = ["--help" if arg == help.ALL else arg for arg in args]
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            # Booleans as --flag / --no-flag, hyphens and underscores alike.
            parsed = tyro.cli(cls, args=args, prog=f"splip {verb}", description=described(verb), **defaults)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(
            f"{_one_line(messages.getvalue())}{_meant(messages.getvalue())} (see splip {verb} --help)"
        ) from None
    return parsed


def _defaults(verb: str, cls: type[Any], files: list[str]) -> dict[str, Any]:
    """What stands before the flags: files and, for some verbs, the environment."""
    from splip import config, environment

    if verb in VARIABLES:
        return {"default": environment.layered(cls, files, VARIABLES[verb])}
    return {"default": config.load(cls, *files)} if files else {}


def _more(verb: str) -> str:
    """What ``--help`` says of files and variables."""
    from splip import config

    text = ""
    if verb == "train":
        names = ", ".join(name for name in config.shipped() if "/" not in name)
        text = (
            f"\n\n--config FILE.yaml (or a shipped one: {names}, ablations/*) sets the defaults of all options; "
            "given several times, the later win. --plugin FILE.py runs a file that defines methods or losses first."
        )
    if verb in VARIABLES:
        prefix = VARIABLES[verb]
        text = (
            "\n\n--config FILE.yaml sets the defaults of all options; given several times, the later win. Every option is a "
            f"variable of the environment, too: {prefix}_TOKEN_FILE is --token-file, {prefix}_CONFIG names the file. Flags win "
            "over variables, those over files. A list is a, b; true and false turn on and off; an empty variable sets nothing."
        )
    return text


def _take_options(args: list[str], name: str) -> tuple[list[str], list[str]]:
    """The values of an option that may be given several times, and the other arguments."""
    values, rest = [], []
    waiting = iter(args)
    for arg in waiting:
        if arg == name:
            value = next(waiting, None)
            if value is None:
                raise UserError(f"{name} needs a value")
            values.append(value)
        elif arg.startswith(name + "="):
            values.append(arg.split("=", 1)[1])
        else:
            rest.append(arg)
    return values, rest


def _meant(box: str) -> str:
    """The options that tyro's message takes a mistyped one for."""
    _, _, rest = box.partition("Perhaps you meant")
    found = list(dict.fromkeys(re.findall(r"^[│ ]+(--[A-Za-z][\w.-]*)", rest, re.MULTILINE)))[:3]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _one_line(box: str) -> str:
    """tyro prints a framed message, or a title on a rule where the terminal knows no frames; its words up to the first rule."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith("╭")]
    rules = [number for number, line in enumerate(lines) if line and not line.strip("─╰╯-")]
    if "╭" not in box and rules[:1] == [1]:
        lines, rules = lines[2:], [number - 2 for number in rules[1:]]
    return " ".join(" ".join(lines[: rules[0]] if rules else lines).split())


def _unknown(args: list[str], choices: list[str]) -> str:
    """What to say of a verb that is none: what it is nearest to, else all there are."""
    given = " ".join(args[:2])
    if len(choices) < len(VERBS):  # its first word is right
        second = {choice.split()[1]: choice for choice in choices}
        near = [second[word] for word in difflib.get_close_matches(" ".join(args[1:2]), second, 1)]
    else:
        near = difflib.get_close_matches(given, choices, 1, 0.8)
        if not near and (near := difflib.get_close_matches(args[0], choices, 1)):
            given = args[0]
    if near:
        return f"unknown verb '{given}'; did you mean '{near[0]}'? (see splip --help)"
    return f"unknown verb '{given}'; choose one of: {', '.join(choices)}"


def _run(verb: str, args: list[str]) -> int:
    if sum(arg.partition("=")[0] == "--gallery" for arg in args) > 1:  # the last would be taken, without a word
        raise UserError("--gallery is given twice; a command is of one gallery")
    config = parse(verb, args)
    try:
        code = _work(verb, config)
    except UserError as error:
        if verb not in VARIABLES:
            raise
        from splip import environment

        files, rest = _take_options(args, "--config")
        raise UserError(environment.blamed(str(error), type(config), rest, files, VARIABLES[verb])) from error
    return code


def _work(verb: str, config: Any) -> int:
    """Do what a verb does; with --json its report, and nothing else, is what stdout gets."""
    import dataclasses

    from splip import report

    asked = getattr(config, "json", None)
    wanted = asked is True or str(asked) == "-"
    if wanted and asked is not True:  # of verbs whose --json names a file
        config = dataclasses.replace(config, json=None)
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        found = _named(VERBS[verb][1])(config)
    if wanted:
        report.write(found, sys.stdout)
    return found if isinstance(found, int) else getattr(found, "code", 0)


def _load_plugins(files: list[str]) -> None:
    if files:
        from splip import plugins

        for file in files:
            plugins.load_plugin(file)


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as people at a terminal read it: one line, without the place in the code."""
    return f"splip: warning: {one_line(str(message))}\n"


def main(argv: list[str] | None = None) -> int:
    args = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
    # Pillow's remarks on damaged files do not name them; what cannot be read is listed with its reason.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.formatwarning = _warning
    try:
        files, args = _take_options(args, "--plugin")
        if not args or args[0] in ("-h", "--help", "help"):
            print(usage())
            return 0 if args else 2
        if args[0] in ("-V", "--version"):
            print(f"splip {__version__}")
            return 0
        verb = " ".join(args[:2]) if " ".join(args[:2]) in VERBS else args[0]
        if verb not in VERBS:
            choices = [v for v in VERBS if v.startswith(args[0] + " ")] or list(VERBS)
            if args[1:] and args[1] in ("-h", "--help") and choices != list(VERBS):
                print("\n".join(f"splip {v}: {VERBS[v][2]}" for v in choices))
                return 0
            raise UserError(_unknown(args, choices))
        _load_plugins(files)
        return _run(verb, args[len(verb.split()) :])
    except UserError as error:
        print(f"splip: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:  # an installation for exports alone
        if (error.name or "").split(".")[0] not in ("torch", "open_clip", "timm", "safetensors"):
            raise
        print(
            f"splip: error: this needs {error.name}, which is not installed: exports do without, see the docs",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("splip: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:  # no permission, a full disk, a file where a folder is expected
        text = str(error) if error.strerror is None else error.strerror
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = "the disk is full"
        if error.filename is not None:
            text = f"{error.filename}: {text}"
        print(f"splip: error: {' '.join(text.split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
