"""Every code block of the README and the documentation is run, or parsed and listed with the reason why not more.

A page's blocks run in order, in a folder that holds small things under the
names that the page uses: what one block writes the next one reads.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from code_blocks import PAGES, ROOT, Block, Statement, blocks_of, statements, transcript
from conftest import CLASSES, needs_torch, write_images
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from alphatune.core.toml import tomllib
from alphatune.core.versions import ONNX, torch_allows
from alphatune.data.preprocessing import Preprocessing

#: placeholders, and models whose weights would have to be fetched
SUBSTITUTES = {
    "MODEL": ["my_model.py:build", "--checkpoint", "best.pth"],
    "GROUPNORM_MODEL": ["my_model.py:grouped"],
    "DIR": ["photos/val"],
    "TRAIN": ["photos/train"],
    "TEST": ["photos/test"],
    "resnet50": ["my_model.py:build"],
    "resnet50.a1_in1k": ["my_model.py:build", "--checkpoint", "best.pth"],
    "convnext_tiny": ["my_model.py:grouped"],
    "224": ["24"],
}
#: options that make a command short, where it has them and the page does not set them
SHORT = {
    "workers": ["--workers", "0"],
    "seconds": ["--seconds", "0.02"],
    "batch_size": ["--batch-size", "16"],
    "epochs": ["--epochs", "1"],
}
SHORTENED = ("tune", "train", "evaluate", "inspect", "bench", "export")
#: what own code does not say about its images; a tuned folder says it, and a score of one's own prepares none
PREPARED = ["--input-size", "12", "--crop-pct", "1", "--mean", "0.5", "--std", "0.25"]

#: commands of alphatune that are parsed only: (page, how they begin) -> why
PARSED = {
    ("README.md", "alphatune demo"): "takes half a minute; test_demo.py runs it",
    (
        "README.md",
        "alphatune tune MODEL --data DIR",
    ): "its folder would need --trust-code; other pages run the like",
    ("docs/quickstart.md", "alphatune demo"): "takes half a minute; test_demo.py runs it",
    (
        "docs/training.md",
        "alphatune train alphatune.models.cifar:resnet18 --data cifar10",
    ): "fetches CIFAR-10",
    ("docs/repeat-the-paper.md", "alphatune train alphatune.models.cifar"): "fetches CIFAR-100",
    ("docs/repeat-the-paper.md", "alphatune tune ghost --data cifar100"): "needs CIFAR-100",
    ("docs/repeat-the-paper.md", "alphatune evaluate ghost-tuned --data cifar100"): "needs CIFAR-100",
    ("docs/training.md", "alphatune tune ghost16 --data cifar10"): "needs CIFAR-10",
    ("docs/training.md", "alphatune evaluate ghost16-tuned --data cifar10"): "needs CIFAR-10",
    ("docs/reference/cli.md", ""): "the examples of --help, of which the other pages run the like",
    (
        "docs/ci.md",
        "alphatune tune my_model.py:build --checkpoint weights/best.pth",
    ): "in a YAML of a CI service",
}
#: pages whose commands export in every form
EXPORTING = ("README.md", "docs/exporting.md")
SLOW = ("docs/exporting.md", "docs/repeat-the-paper.md", "docs/shift.md", "docs/other-tasks.md")
#: other programs, and why they are not run
NOT_RUN = {
    ("README.md", "git clone"): "the URL is a placeholder",
    ("README.md", "cd"): "into the clone",
    ("README.md", "python3 -m venv"): "makes an environment",
    ("README.md", ". .venv/bin/activate"): "makes an environment",
    ("README.md", "pip install"): "needs the package registry",
    ("README.md", "ruff"): "is the job of CI beside these tests",
    ("README.md", "mypy"): "is the job of CI beside these tests",
    ("README.md", "pytest"): "would run itself",
    ("docs/contributing.md", "python3 -m venv"): "makes an environment",
    ("docs/contributing.md", ". .venv/bin/activate"): "makes an environment",
    ("docs/contributing.md", "pip install"): "needs the package registry",
    ("docs/contributing.md", "ruff"): "is the job of CI beside these tests",
    ("docs/contributing.md", "mypy"): "is the job of CI beside these tests",
    ("docs/contributing.md", "pytest"): "would run itself",
    ("docs/contributing.md", "python docs/cli_reference.py"): "writes into the project; test_site.py runs it",
    ("docs/contributing.md", "mkdocs"): "test_site.py builds the site",
    ("docs/quickstart.md", "pip install"): "needs the package registry",
    ("docs/ci.md", "pip install"): "needs the package registry",
    ("docs/exporting.md", "pip install"): "needs the package registry",
    ("docs/exporting.md", "hf upload"): "needs the network",
    ("docs/ci.md", "pip wheel"): "needs the package registry",
    ("docs/ci.md", "mkdir"): "of a CI service's own folder",
    ("docs/ci.md", "chmod"): "of a CI service's own folder",
}
#: programs that are run, in processes of their own
HARMLESS = ("cat", "python")
#: blocks that a page has the reader save
SAVED = {("docs/other-tasks.md", 0): "segmentation.py"}
#: languages of what is no program: output, drawings
TEXT = ("text",)

_used: set[tuple[str, str]] = set()


# --- the folder the blocks run in ------------------------------------------------------------


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """Small things under the names that the pages use."""
    root = tmp_path_factory.mktemp("world")
    image_folder = write_images(tmp_path_factory.mktemp("images"), 26)  # finer α wants 100 examples
    (root / "my_model.py").write_text("from tiny import Tiny as MyModel, grouped, tiny as build\n")
    for place in ("best.pth", "weights/best.pth"):
        (root / place).parent.mkdir(exist_ok=True)
        shutil.copy(tiny_checkpoint, root / place)
    for place in (
        "photos/val", "photos/test", "photos/train", "imagenet/val", "imagenet/train",
        "alphatune-demo/images/validation", "alphatune-demo/images/train", "alphatune-demo/shifted",
    ):  # fmt: skip
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(image_folder)
    _pack(image_folder, root / "validation.tar")
    tens = write_images(tmp_path_factory.mktemp("ten"), 3, tuple(f"class{i}" for i in range(10)), side=32)
    _pack(tens, root / "cifar10-test.tar")
    from alphatune.models.cifar import resnet20

    torch.save({"state_dict": resnet20().state_dict()}, root / "resnet20.th")
    # An architecture that a folder may name without --trust-code.
    made = [
        "tune", "alphatune.models.digits:convnet", "--model-kwargs", f"num_classes={len(CLASSES)}", "--data",
        image_folder, "--input-size", "1,12,12", *PREPARED[2:], "--workers", 0, "--alphas", "0,0.1", "--metric", "loss",
        "--accept", "best", "--no-pretrained", "-o", root / "tuned", "-q",
    ]  # fmt: skip
    code, _, stderr = call([str(word) for word in made])
    assert code == 0, stderr
    for copy in (
        "other-tuned", "finer", "deployed", "alphatune-out", "alphatune-demo/tuned", "alphatune-demo/model"
    ):  # fmt: skip
        shutil.copytree(root / "tuned", root / copy)
    return root


def _pack(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for entry in sorted(folder.iterdir()):
            tar.add(entry, entry.name)


def before_readme(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from tiny import tiny

    shutil.rmtree("tuned")  # of the first command; save() replaces nothing
    data = TensorDataset(torch.randn(40, 3, 12, 12), torch.randint(0, 4, (40,)))
    return {"model": tiny().eval(), "loader": DataLoader(data, 20)}


def before_quickstart(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from tiny import Tiny

    return {"MyModel": Tiny}


def before_onnx(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    Image.new("RGB", (60, 40), "red").save("photo.jpg")
    return {}


def before_pt2(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"images": torch.zeros(2, 3, 32, 32)}


def before_the_hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The folder that was uploaded, as downloading would give it."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo: str(Path("tuned-hf").resolve()))
    return {}


def before_own_model(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from tiny import Tiny

    import alphatune

    model = Tiny().eval()
    alphatune.patch_(model, 0.1)
    shutil.rmtree("tuned")
    Path("tuned.onnx").unlink()
    alphatune.save(model, "tuned", preprocessing=Preprocessing(input_size=(3, 12, 12)))
    return {"YourModel": Tiny}


#: what the reader of a page has already when a block of Python begins: (page, its number) -> that
PRELUDES: dict[tuple[str, int], Callable[[pytest.MonkeyPatch], dict[str, Any]]] = {
    ("README.md", 0): before_readme,
    ("docs/quickstart.md", 0): before_quickstart,
    ("docs/exporting.md", 0): before_onnx,
    ("docs/exporting.md", 1): before_pt2,
    ("docs/exporting.md", 2): before_the_hub,
    ("docs/exporting.md", 3): before_the_hub,
    ("docs/exporting.md", 4): before_own_model,
}


def tune_timm(root: Path) -> None:
    """A tuned network of timm's, which is what only a page about exporting needs."""
    shutil.rmtree(root / "tuned")
    made = [
        "tune",
        "test_resnet",
        "--no-pretrained",
        "--model-kwargs",
        f"num_classes={len(CLASSES)}",
        "--data",
    ]
    made += [
        str(root / "photos/val"),
        "--input-size",
        "32",
        "--workers",
        "0",
        "--alphas",
        "0,0.1",
        "--accept",
        "best",
    ]
    code, _, stderr = call([*made, "--metric", "loss", "-o", str(root / "tuned"), "-q"])
    assert code == 0, stderr


PREPARE = {"docs/exporting.md": tune_timm}


# --- running ---------------------------------------------------------------------------------


def call(argv: list[str]) -> tuple[int, str, str]:
    """The command in this process: exit code, stdout, stderr."""
    from alphatune.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(argv)
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue(), err.getvalue()
    raise RuntimeError("main() returned")


def parse(argv: list[str]) -> Any:
    """What the real parser makes of arguments, without running anything; raises what it raises."""
    from typer.main import get_command

    from alphatune.cli.main import app

    root: Any = get_command(app)
    if not argv or argv[0].startswith("-"):
        flags = {name for param in root.params for name in param.opts}
        assert set(argv) <= flags, argv
        return root
    context = root.make_context("alphatune", [argv[0]], resilient_parsing=True)
    command = root.commands[argv[0]]
    command.make_context(argv[0], argv[1:], parent=context)
    return command


def arguments(statement: Statement) -> list[str] | None:
    """The arguments of alphatune, however it is called; None if it is another program."""
    words = list(statement.words)
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    return words[1:] if words[0] == "alphatune" else None


def listed(reasons: dict[tuple[str, str], str], block: Block, statement: Statement) -> bool:
    """Whether a statement is among those that are not run; the entry counts as used."""
    text = " ".join(arguments(statement) or []) if arguments(statement) is not None else None
    text = str(statement) if text is None else f"alphatune {text}".strip()
    for page, beginning in reasons:
        if page == block.page and text.startswith(beginning):
            _used.add((page, beginning))
            return True
    return False


def follow(block: Block, statement: Statement, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Run a statement of a page as it stands, but for substitutes and what makes it short."""
    argv = arguments(statement)
    if argv is None:
        if listed(NOT_RUN, block, statement):
            return 0, "", ""
        assert statement.words[0] in HARMLESS, f"{block}: neither run nor in NOT_RUN: {statement}"
        done = subprocess.run(statement.words, capture_output=True, text=True, check=False, timeout=60)
        result = done.returncode, done.stdout, done.stderr
    elif listed(PARSED, block, statement):
        parse(argv)
        return 0, "", ""
    else:
        for name, value in statement.environment:
            monkeypatch.setenv(name, value)
        result = call(shortened(argv))
        for name, _ in statement.environment:
            monkeypatch.delenv(name)
    if statement.output:
        path = Path(os.path.expandvars(statement.output)).expanduser()
        path.parent.mkdir(exist_ok=True)
        with path.open("a" if statement.appends else "w", encoding="utf-8") as file:
            file.write(result[1])
    return result


def shortened(argv: list[str]) -> list[str]:
    """Arguments with substitutes for placeholders, and options that make the command short."""
    words = [word for given in argv for word in SUBSTITUTES.get(given, [given])]
    if not words or words[0] not in SHORTENED:
        return words
    own = words[1].startswith("my_model.py")
    params = {param.name: param for param in parse(argv).params}
    if "--score" not in words:
        for name, option in SHORT.items():
            timed = name != "seconds" or words[0] != "export" or {"onnx", "pt2"} & set(words)
            if name in params and option[0] not in words and timed:
                words += option
    if own and "--input-size" not in words:
        words += PREPARED if "mean" in params else PREPARED[:2]
    if words[0] == "export" and "hf" in words:
        shutil.rmtree("tuned-hf", ignore_errors=True)
    if words[0] in ("tune", "train"):  # what stands for the result of an earlier step, or of a line above
        given = [words[i + 1] for i, word in enumerate(words) if word in ("--output", "-o")]
        shutil.rmtree((given or [params["output"].default])[-1], ignore_errors=True)
    return words


def check_shell(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for statement in statements(block.code):
        code, _, stderr = follow(block, statement, monkeypatch)
        assert code == 0, f"{block}: {statement}: exit code {code}: {stderr}"


def check_console(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for line, shown in transcript(block.code):
        for statement in statements(line):
            code, stdout, stderr = follow(block, statement, monkeypatch)
            assert (code != 0) == ("error: " in shown), f"{block}: {statement}: {stderr}"
            for expected in shown.splitlines():
                assert expected in (stdout + stderr).splitlines(), f"{block}: {statement}"


def check_python(block: Block, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if saved := SAVED.get((block.page, number)):
        Path(saved).write_text(block.code)
        if saved == "segmentation.py":
            namespace: dict[str, Any] = {}
            exec(compile(block.code, str(block), "exec"), namespace)
            torch.save(namespace["model"]().state_dict(), "best.pth")
        return
    prelude = PRELUDES.get((block.page, number))
    namespace = prelude(monkeypatch) if prelude else {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(block.code, str(block), "exec"), namespace)
    if "regression" in namespace:  # a block that only defines something
        scores = namespace["regression"](torch.zeros(4, 1), torch.ones(4))
        assert scores.tolist() == [-1.0] * 4
        truth = {"depth": torch.ones(4, 8, 8), "known": torch.ones(4, 8, 8)}
        assert namespace["depth"]((torch.zeros(4, 1, 8, 8),), truth).tolist() == [-1.0] * 4


def check_yaml(block: Block) -> None:
    """It parses, and every command in it is one that the parser takes."""
    texts = list(_strings(yaml.safe_load(block.code)))
    found = [s for text in texts if "alphatune" in text and " " in text for s in _commands(text)]
    by_action = "actions/tune" in block.code  # whose inputs test_action.py looks at
    assert by_action or any(arguments(each) for each in found), f"{block}: no command of alphatune"
    for statement in found:
        if (argv := arguments(statement)) is None:
            assert listed(NOT_RUN, block, statement), f"{block}: not in NOT_RUN: {statement}"
        else:
            assert listed(PARSED, block, statement), f"{block}: not in PARSED: {statement}"
            parse(argv)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _commands(text: str) -> list[Statement]:
    with contextlib.suppress(ValueError):  # ${{ ... }} and other prose
        return [s for s in statements(text) if "{" not in s.words[0] and not s.words[0].startswith("$")]
    return []


# --- the tests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            id=name,
            marks=[needs_torch(ONNX)] * (name in EXPORTING) + [pytest.mark.slow] * (name in SLOW),
        )
        for page in PAGES
        for name in [str(page.relative_to(ROOT))]
    ],
)
def test_blocks(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(page)
    if not blocks:
        return
    folder = tmp_path / "world"
    shutil.copytree(world, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")  # as for `python`: modules beside the reader
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("segmentation", "my_model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if prepare := PREPARE.get(blocks[0].page):
        prepare(folder)
    pythons = 0
    for block in blocks:
        if block.language == "bash":
            check_shell(block, monkeypatch)
        elif block.language == "console":
            check_console(block, monkeypatch)
        elif block.language == "python":
            check_python(block, pythons, monkeypatch)
            pythons += 1
        elif block.language == "yaml":
            check_yaml(block)
        elif block.language == "toml":
            tomllib.loads(block.code)
        elif block.language == "json":
            json.loads(block.code)
        else:
            assert block.language in TEXT, f"{block}: nothing runs blocks of {block.language!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_within_sentences(page: Path) -> None:
    """What stands between single backticks is a command that exists, with options that it has."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`(alphatune [a-z-][^`]*)`", text):
        for statement in statements(code.replace("\\|", "|").partition("|")[0]):  # of --option a|b the first
            words = [word for word in arguments(statement) or [] if word not in ("--help", "...", "…")]
            assert what_is_wrong(words) in ("", "MissingParameter", "BadOptionUsage"), f"{page.name}: {code}"


def what_is_wrong(argv: list[str]) -> str:
    """The kind of error that the parser finds: what a sentence leaves out is another one than what it misspells."""
    import typer

    try:
        parse(argv)
    except (typer.TyperException, KeyError) as error:
        return type(error).__name__
    return ""


def test_what_is_left_out_is_told_from_what_is_wrong() -> None:
    assert what_is_wrong(["tune", "--calibrate"]) == "BadOptionUsage"
    assert what_is_wrong(["tune", "MODEL"]) == "MissingParameter"
    assert what_is_wrong(["tune", "MODEL", "--data", "DIR"]) == ""
    assert what_is_wrong(["tune", "MODEL", "--dta", "DIR"]) == "NoSuchOption"
    assert what_is_wrong(["tune", "MODEL", "--data", "DIR", "--metric", "x"]) == "BadParameter"
    assert what_is_wrong(["tnue"]) == "KeyError"


def test_no_block_is_missed() -> None:
    """A fence that the pattern does not see, e.g. one in a list that ends at another indent, is an error."""
    for page in PAGES:
        fences = [
            line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")
        ]
        assert len(fences) == 2 * len(blocks_of(page)), page


def test_the_lists_of_what_is_not_run_hold_nothing_else(request: pytest.FixtureRequest) -> None:
    """An entry that no statement needs any more goes."""
    selected = {item.name for item in request.session.items}
    if not all(f"test_blocks[{page.relative_to(ROOT)}]" in selected for page in PAGES):
        pytest.skip("needs the tests of all pages")
    if not torch_allows(ONNX):
        pytest.skip("the pages that export are left out")
    assert set(PARSED) | set(NOT_RUN) == _used


@pytest.mark.parametrize(
    "broken",
    [
        "alphatune tune MODEL --data DIR --no-such-option",
        "alphatune tune MODEL --data DIR --metric accuracy",
        "alphatune inspect no_such_file.py:build",
        "alphatune tnue MODEL",
        "wget http://example.org",
        "python -c 'raise SystemExit(3)'",
    ],
)
def test_a_block_that_is_wrong_fails(
    broken: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world, tmp_path / "world", symlinks=True)
    monkeypatch.chdir(tmp_path / "world")
    import typer

    with pytest.raises((AssertionError, KeyError, typer.TyperException)):
        check_shell(Block("docs/x.md", 1, "bash", broken + "\n"), monkeypatch)


def test_an_option_that_is_only_parsed_fails_as_well() -> None:
    import typer

    parse(["train", "resnet50", "--data", "x", "--norm", "ghost"])
    with pytest.raises(typer.TyperException):
        parse(["train", "resnet50", "--data", "x", "--nrom", "ghost"])
    with pytest.raises(typer.TyperException):
        parse(["train", "resnet50"])  # no --data


def test_statements_of_a_shell() -> None:
    code = "A=1 x 'b c' \\\n    -d  # why\n\ny > f && z >> g\n"
    assert list(statements(code)) == [
        Statement(("x", "b c", "-d"), (("A", "1"),)),
        Statement(("y",), (), "f"),
        Statement(("z",), (), "g", True),
    ]
    with pytest.raises(ValueError, match="cannot follow"):
        list(statements("a | b"))
    assert transcript("$ a b\none\ntwo\n$ c\n") == [("a b", "one\ntwo\n"), ("c", "")]
