import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys_opt.cli.main import VERBS, build_parser, main
from recsys_opt.plan import Plan, TablePlan
from tests.generated import make_dataset


def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recsys_opt.cli.main", *arguments], capture_output=True, text=True, **kwargs
    )


def help_text(capsys: pytest.CaptureFixture[str], *verb: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]):
    text = help_text(capsys, verb)
    assert "example:" in text
    assert f"recsys-opt {verb}" in text


@pytest.mark.parametrize("verb", ["data", "bench", "plan"])
def test_every_subverb_has_help_with_an_example_and_json(verb: str, capsys: pytest.CaptureFixture[str]):
    module = importlib.import_module(f"recsys_opt.cli.{verb}")
    assert module.SUBVERBS
    for name in module.SUBVERBS:
        text = help_text(capsys, verb, name)
        default = getattr(module, "DEFAULT", None) == name  # it may be left out
        assert f"recsys-opt {verb} {'' if default else name}" in text.split("example:")[1]
        assert "--json" in text


def leaf_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A verb without sub-verbs, or its sub-verbs."""
    subverbs = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in subverbs:
        for sub in action.choices.values():
            yield from leaf_parsers(sub)
    if not subverbs:
        yield parser


def verb_parsers(verb: str) -> list[argparse.ArgumentParser]:
    (verbs,) = (a for a in build_parser(verb)._actions if isinstance(a, argparse._SubParsersAction))
    return list(leaf_parsers(verbs.choices[verb]))


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]):
    assert "recsys-opt plan stats.npz" in help_text(capsys).split("example")[1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_has_help(verb: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    for parser in verb_parsers(verb):
        text = parser.format_help()
        assert max(map(len, text.splitlines())) <= 100, text
        assert not re.search(r"\{[A-Z_]+\}", text)  # a name in a text that was to be filled in
        for action in parser._actions:
            assert action.help, f"{parser.prog} {action.option_strings or action.dest}"
            assert "%" not in action.help.replace("%%", "").replace("%(default)s", "")


def test_a_flag_means_the_same_everywhere():
    """--out is what a verb makes, --record the measurement; a flag's name is that of one of its values."""
    parsers = {verb: verb_parsers(verb) for verb in VERBS}
    assert len(parsers["bench"]) > 10
    for parser in parsers["bench"]:
        flags = parser._option_string_actions
        assert "--record" in flags, parser.prog
        # It makes the planner's hardware.toml, beside its record.
        assert ("--out" in flags) == parser.prog.endswith(" hardware"), parser.prog
    for parser in (p for found in parsers.values() for p in found):
        flags = set(parser._option_string_actions)
        other = {"--ranks", "--batch-sizes", "--tolerances", "--kinds", "--methods", "--dtypes", "--repeats"}
        assert not flags & other, parser.prog


def test_wrong_verb_is_exit_2_and_names_the_choices(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["trian"])
    assert stop.value.code == 2
    assert "train" in capsys.readouterr().err


def test_input_error_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", str(tmp_path / "absent"), "--out", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("recsys-opt: error: ")
    assert "absent" in captured.err
    assert "Traceback" not in captured.err


def test_tables_beyond_memory_are_one_line_with_a_remedy(tmp_path: Path):
    data = make_dataset(tmp_path / "data")
    document = json.loads((data.path / "dataset.json").read_text())
    document["sparse_columns"][0]["num_embeddings"] = 2_000_000_000
    (data.path / "dataset.json").write_text(json.dumps(document))
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35)); "
    code = limit + "from recsys_opt.cli.main import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["train", str(data.path), "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("recsys-opt: error: out of memory")
    assert "--tt-threshold" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_does_not_import_torch():
    code = (
        "import sys; from recsys_opt.cli.main import build_parser; build_parser(None).format_help(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_closed_pipe_is_no_traceback(tmp_path: Path):
    Plan((TablePlan("t", 9, 4, (0,), (9,)),), 1, 8).save(tmp_path / "plan.json")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "recsys_opt.cli.main", "plan", "show", str(tmp_path / "plan.json")]
    with os.fdopen(writer) as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert not done.stderr


def test_doctor_finds_everything_needed(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--json"]) == 0
    findings = {f["part"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    needed = ["torch", "native ops", "native reader", "native generator", "descriptors", "safetensors"]
    assert {p: findings[p]["state"] for p in needed} == dict.fromkeys(needed, "ok")


def doctor_with(tmp_path: Path, **modules: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Runs the doctor where modules are replaced by these sources."""
    for name, source in modules.items():
        (tmp_path / f"{name}.py").write_text(source)
    root = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}
    done = run("doctor", "--json", env=env)
    assert "Traceback" not in done.stderr
    return done.returncode, {f["part"]: f for f in json.loads(done.stdout)["findings"]}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raise SystemExit(3)", "3"),
        ("raise OSError('libc10.so: cannot open shared object file')", "libc10.so"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("", "has no attribute"),
    ],
)
def test_doctor_survives_a_broken_torch_and_names_remedies(tmp_path: Path, fault: str, told: str):
    absent = "raise ImportError('No module named zstandard')"
    code, findings = doctor_with(tmp_path, torch=fault, zstandard=absent)
    assert code == 1
    assert findings["torch"]["state"] == "broken"
    assert told in findings["torch"]["detail"]
    assert findings["torch"]["remedy"]
    assert findings["numpy"]["state"] == "ok"
    assert findings["zstandard"]["state"] == "absent"
    assert "pip install zstandard" in findings["zstandard"]["remedy"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_sleep_unless_the_environment_says_otherwise(given, expected):
    """As torch's OpenMP finds it when it is loaded."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in names} | given
    program = (
        "import os, sys; from recsys_opt.cli.main import main; assert 'torch' not in sys.modules; "
        "main(['train', 'missing', '--out', 'missing']); import ctypes; getenv = ctypes.CDLL(None).getenv; "
        "getenv.restype = ctypes.c_char_p; print('found', (getenv(b'GOMP_SPINCOUNT') or b'none').decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert f"found {expected or 'none'}" in done.stdout, done.stderr
