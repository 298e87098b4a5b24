"""The command line as a user meets it: what it prints, what it refuses, and how it stops."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from surefoot.alignment.configuration import METHODS
from surefoot.cli import main
from surefoot.control.algorithms import ALGORITHMS

TINY = "--num-envs 4 --rollout-length 16 --minibatch-size 16 --epochs 1 --hidden-sizes 8 --backend gymnasium"


def run(*arguments, **options):
    command = [sys.executable, "-m", "surefoot", *" ".join(arguments).split()]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_train_and_evaluate(tmp_path):
    out = tmp_path / "run"
    done = run(f"train ppo --env CartPole-v1 --total-steps 640 --seed 0 --out {out} {TINY} --json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    wanted = {
        "algorithm",
        "env",
        "backend",
        "total_steps",
        "seconds",
        "startup_seconds",
        "steps_per_second",
        "mean_return",
        "run",
    }
    assert wanted <= set(result)
    assert result["algorithm"] == "ppo"
    assert 0 < result["startup_seconds"] < result["seconds"]
    expected = result["total_steps"] / (result["seconds"] - result["startup_seconds"])
    assert result["steps_per_second"] == pytest.approx(expected, rel=1e-6)
    assert "preset for CartPole-v1" in done.stderr
    assert "rollout_length 16 instead of 32" in done.stderr
    assert "backend gymnasium" in done.stderr
    assert "640/640 steps" in done.stderr
    done = run(f"evaluate {out} --episodes 5 --json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"env", "episodes", "mean_return", "std_return"} <= set(result)
    assert result["backend"] == "gymnasium-sync"


def test_presets_set_defaults_and_options_override(tmp_path):
    out = tmp_path / "run"
    assert main(f"train ppo --env CartPole-v1 --total-steps 64 --out {out} {TINY} --quiet --trace-decay 0.5".split()) == 0
    configuration = json.loads((out / "config.json").read_text())
    assert configuration["discount"] == 0.98, "the preset's"
    assert configuration["trace_decay"] == 0.5
    assert configuration["epochs"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train ppo --env CartPole-v7", "there is no environment CartPole-v7"),
        ("train ppo --env CartPole-v1 --epoch 3", "no option --epoch; did you mean --epochs?"),
        ("train ppo --env CartPole-v1 --total-stepss 3", "no option --total-stepss; did you mean --total-steps?"),
        ("train ppo --env CartPole-v1 --epochs three", "three"),
        ("train ppo --env CartPole-v1 --backend gpu", "gpu"),
        ("train ppo --env CartPole-v1 --minibatch-size 100 --backend gymnasium", "does not divide"),
        ("train ppo --env CartPole-v1 --discount 2", "--discount must lie between 0 and 1, but is 2.0"),
        ("train ppo", "--env is missing"),
        (
            "train sarsa --env CartPole-v1",
            "there is no algorithm 'sarsa'; there are reinforce, actor-critic, a2c, trpo and ppo",
        ),
        ("train a2c --env CartPole-v1 --epochs 3", "surefoot train a2c has no option --epochs"),
        ("train a2c --env CartPole-v1 --weight best", "best"),
        ("train a2c --env CartPole-v1 --n-steps 3", "--n-steps would do nothing: --weight gae does not read n"),
        ("train ppo --env CartPole-v1 --kl-target 0.1", "--kl-target would do nothing: --kl-penalty none has no target"),
        (
            "train reinforce --env CartPole-v1 --critic-learning-rate 0.1",
            "--critic-learning-rate would do nothing: --weight reward-to-go trains no critic",
        ),
        ("train a2c --env CartPole-v1 --n_steps 3", "--n-steps would do nothing"),
        ("train a2c --env CartPole-v1 --weight n-step --n-steps 9", "--n-steps 9 reaches beyond a rollout of 5 steps"),
        ("train a2c --env CartPole-v1 --discount 1 --keep-discount", "with --discount 1 every γᵗ is 1"),
        (
            "train ppo --env CartPole-v1 --epochs 1 --clip-range 0.1",
            "--clip-range would do nothing: the only step on a rollout starts from the policy that acted",
        ),
        ("train ppo --from-data somewhere", "ppo cannot learn from recorded data; reinforce and a2c can"),
        ("train reinforce --env CartPole-v1 --no-normalize-rewards", "--normalize-rewards would do nothing"),
        ("train trpo --env CartPole-v1 --max-kl 0", "--max-kl must be positive, but is 0"),
        ("train a2c --env CartPole-v1 --optimizer sgd --adam-epsilon 1e-3", "--adam-epsilon would do nothing"),
        ("trian", "there is no command 'trian'"),
        ("evaluate nowhere", "nowhere is not a run"),
        ("evaluate nowhere --episodes 0", "--episodes must be at least 1"),
        ("train ppo --env CartPole-v1 --out /proc/nothing --backend gymnasium", "cannot make the folder /proc/nothing"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    output = capsys.readouterr()
    assert words in output.err
    *notices, sentence = output.err.splitlines()
    assert sentence.startswith("surefoot: ")
    assert all(line.startswith("preset for") for line in notices)
    assert output.out == ""
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_help_names_every_command_and_no_other(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    commands = [line.split()[0] for line in text.split("commands:\n")[1].splitlines() if re.match("  [a-z]", line)]
    assert commands == [
        "train",
        "align",
        "resume",
        "evaluate",
        "export",
        "inspect",
        "generate",
        "task",
        "gradients",
        "frontier",
        "demo",
    ]
    named = (*(f"train {algorithm}" for algorithm in ALGORITHMS), *(f"align {method}" for method in METHODS), "task grammar")
    for command in (*named, "resume", "evaluate", "export", "inspect", "generate", "gradients", "frontier", "demo"):
        done = run(f"{command} --help")
        assert done.returncode == 0
        assert "--json" in done.stdout


def test_help_needs_no_engine():
    engines = "{'jax', 'torch', 'transformers'} & set(sys.modules)"
    code = f"import sys\nfrom surefoot.cli import main\nmain(['--help'])\nassert not {engines}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_cleanly(number, tmp_path):
    out = tmp_path / "run"
    command = f"train ppo --env CartPole-v1 --total-steps 100000000 --out {out} {TINY} --json"
    process = subprocess.Popen(
        [sys.executable, "-m", "surefoot", *command.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    metrics = out / "metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    os.kill(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert b"stopped early" in errors
    assert b"Traceback" not in errors
    result = json.loads(output.splitlines()[-1])
    assert result["interrupted"]
    lines = metrics.read_text().splitlines()
    assert all(json.loads(line) for line in lines)
    assert json.loads(lines[-1])["steps"] == result["total_steps"]
    assert main(["evaluate", str(out), "--episodes", "1", "--quiet"]) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_there_is_a_run_is_one_sentence(number, monkeypatch, capsys):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        monkeypatch.setattr("surefoot.cli._dispatch", lambda arguments: os.kill(os.getpid(), number) or time.sleep(5))
        assert main(["train"]) == 1
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "surefoot: stopped at once; what was saved before is kept\n"


IMPORTING = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.{number})
            except BaseException:
                if {swallowed}:
                    return None
                raise
sys.meta_path.insert(0, Interrupts())
from surefoot.cli import entry
sys.argv = ["surefoot", "train", "ppo", "--env", "CartPole-v1"]
entry()
"""
"""A process that is signalled as it begins to import a module, which may be within code that catches everything."""


@pytest.mark.parametrize(
    ("module", "number", "swallowed"),
    [
        ("tyro", "SIGINT", False), ("numpy", "SIGINT", True), ("jax", "SIGINT", False), ("jax", "SIGINT", True),
        ("gymnasium", "SIGTERM", True),
    ],
)  # fmt: skip
def test_a_signal_while_modules_are_imported_is_one_sentence(module, number, swallowed, tmp_path):
    code = IMPORTING.format(module=module, number=number, swallowed=swallowed)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "surefoot: stopped at once; what was saved before is kept"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_begins_with_modules_that_cost_nothing():
    """Before it can answer Ctrl-C, little is imported: no engine, no library, nothing of surefoot but three files."""
    code = "import sys\nbefore = set(sys.modules)\nimport surefoot.cli\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) <= {"__future__", "surefoot", "surefoot.cli", "surefoot.errors"}


def test_none_switches_off(tmp_path):
    out = tmp_path / "run"
    command = (
        f"train ppo --env CartPole-v1 --total-steps 64 --out {out} {TINY} --quiet --max-gradient-norm none --target-kl=none"
    )
    assert main([*command.split(), "--advantage-normalization", "none"]) == 0
    configuration = json.loads((out / "config.json").read_text())
    assert configuration["max_gradient_norm"] is None
    assert configuration["advantage_normalization"] == "none"


def test_a_missing_extra_is_one_sentence():
    """As if only the core were installed."""
    code = (
        "import sys\nsys.modules['jax'] = None\nfrom surefoot.cli import main\n"
        "sys.exit(main(['train', 'ppo', '--env', 'CartPole-v1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "surefoot: this needs jax; install it with: pip install 'surefoot[control]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_output_that_cannot_be_written_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "surefoot", "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_gradients_prints_writes_and_says_what_is_wrong(tmp_path, capsys):
    out = tmp_path / "figures"
    assert main(f"gradients --problem chain random-3 --horizon 4 --out {out} --json".split()) == 0
    output = capsys.readouterr()
    problems = json.loads(output.out.splitlines()[-1])["problems"]
    assert [p["problem"] for p in problems] == ["chain", "random-3"]
    for problem in problems:
        exact = [r for r in problem["rows"] if r["critic"] != "wrong" and r["keep_discount"] in (True, None)]
        assert len(exact) >= 8
        assert all(row["bias"] < 1e-9 for row in exact)
    assert "weight ψ" in output.err
    assert (out / "chain.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "gradients.json").read_text())["problems"] == problems
    for wrong, words in (("--problem chian", "there is no problem 'chian'"), ("--horizon 0", "horizon"), ("--n-steps 0", "n")):
        assert main(f"gradients {wrong}".split()) == 2
        assert words in capsys.readouterr().err
