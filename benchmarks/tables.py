"""Write the tables of README.md and benchmarks/README.md from the raw results.

    python benchmarks/tables.py

Each table stands between `<!-- results:NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import statistics
from functools import partial
from pathlib import Path

from surefoot.runs.statistics import summarize_seeds

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PPO_TASKS = tuple(
    f"ppo-{task}"
    for task in ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "LunarLander-v3", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")
)
FAMILY_TASKS = (
    "reinforce-CartPole-v1",
    "actor-critic-CartPole-v1",
    "a2c-CartPole-v1",
    "trpo-CartPole-v1",
    "ppo-penalty-CartPole-v1",
    "ppo-dual-CartPole-v1",
    "reinforce-HalfCheetah-v5",
    "a2c-HalfCheetah-v5",
    "trpo-HalfCheetah-v5",
    "trpo-Hopper-v5",
)


def load(path: str) -> dict:
    return json.loads((RESULTS / path).read_text())


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"


def learning(tasks: tuple[str, ...] = PPO_TASKS) -> list[str]:
    lines = [
        "| task | steps | seeds | interquartile mean | 95 % interval | lowest … highest seed | wanted |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in tasks:
        result = load(f"control_learning/{task}.json")
        rows = [(result["summary"], [row["mean_return"] for row in result["seeds"]], task, result["wanted"])]
        if "deterministic" in result:
            deterministic = [row["deterministic_return"] for row in result["seeds"]]
            rows.append(
                (result["deterministic"], deterministic, f"{task}, most probable action", result["wanted_deterministic"])
            )
        steps = re.search(r"--total-steps (\d+)", result["train"])
        for summary, returns, name, wanted in rows:
            lines.append(
                f"| {name} | {int(steps.group(1)):,} | {summary['seeds']} | **{number(summary['interquartile_mean'])}** |"
                f" {number(summary['low'])} … {number(summary['high'])} | {number(min(returns))} … {number(max(returns))} |"
                f" ≥ {number(wanted)}{' on every seed' if result['wanted_of'] == 'every seed' else ''} |"
            )
    return lines


def seeds(tasks: tuple[str, ...] = PPO_TASKS) -> list[str]:
    lines = ["| task | every seed's mean return, in order |", "|---|---|"]
    for task in tasks:
        returns = [number(row["mean_return"]) for row in load(f"control_learning/{task}.json")["seeds"]]
        lines.append(f"| {task} | {' · '.join(returns)} |")
    return lines


def speed() -> list[str]:
    lines = ["| work | surefoot | peer | ratio, median (range) | ours | peer's |", "|---|---|---|---|---|---|"]
    works = {
        "a2c-cartpole": "A2C, CartPole-v1, 8×5",
        "trpo-cartpole": "TRPO, CartPole-v1, 8×256",
        "trpo-halfcheetah": "TRPO, HalfCheetah-v5, 8×256, normalised",
        "cartpole": "PPO, CartPole-v1, 8×256, minibatch 256, 10 epochs",
        "cartpole-jax": "PPO, CartPole, 64×32, 4 minibatches, 4 epochs, pure JAX on both sides",
        "halfcheetah": "PPO, HalfCheetah-v5, 8×256, minibatch 64, 10 epochs, normalised",
        "solve": "PPO, seconds from process start to a solved CartPole-v1",
    }
    peers = {"sb3": "Stable-Baselines3 2.9.2", "sbx": "SBX 0.28", "rejax": "rejax 0.1.2"}
    for group, work in works.items():
        result = load(f"control_speed/{group}.json")
        unit = "steps/s" if result["measure"] == "steps_per_second" else "s"
        for c in result["comparisons"]:
            name = "sb3-contrib 2.9.2" if group.startswith("trpo") else peers[c["peer"]]
            lines.append(
                f"| {work} | {c['ours'].removeprefix('surefoot ')} | {name} | **{c['ratio']:.1f} ×**"
                f" ({min(c['ratios']):.1f} … {max(c['ratios']):.1f}) | {number(c['ours_median'])} {unit} |"
                f" {number(c['peer_median'])} {unit} |"
            )
    return lines


def limit() -> list[str]:
    report = load("control_limit.json")
    lines = [
        "| task | environments alone | update's operations at the matrix rate | limit | measured | share |",
        "|---|---|---|---|---|---|",
    ]
    for task, row in report["tasks"].items():
        lines.append(
            f"| {task} | {row['environment_seconds'] * 1e3:.0f} ms | {row['update_seconds_at_matrix_rate'] * 1e3:.0f} ms"
            f" ({row['update_gigaflops']:.1f} GFLOP) | {row['limit_steps_per_second']:,.0f} steps/s |"
            f" {row['measured_steps_per_second']:,.0f} steps/s | {row['share_of_limit']:.0%} |"
        )
    return [*lines, "", f"Matrix rate: {report['matrix_gigaflops_per_second']:.0f} GFLOP/s. Per rollout of 2048 steps."]


def ablation(name: str = "ppo") -> list[str]:
    report = load(f"control_ablation/{name}.json")
    lines = [f"| {report['task']} | interquartile mean | 95 % interval |", "|---|---|---|"]
    for row in report["rows"]:
        option = f" (`{row['options']}`)" if row["options"] else ""
        if "failed" in row:
            lines.append(f"| {row['variant']}{option} | stopped: {row['failed'].removeprefix('surefoot: ')} | |")
            continue
        interval = f"{number(row['low'])} … {number(row['high'])}"
        lines.append(f"| {row['variant']}{option} | {number(row['interquartile_mean'])} | {interval} |")
    return lines


def cliff() -> list[str]:
    report = load("cliff.json")
    factors = sorted({row["factor"] for row in report["rows"]})
    lines = []
    for critic in ("its own", "random, frozen"):
        heads = " | ".join(f"× {factor:,.0f}" for factor in factors)
        lines += [f"Critic {critic}: return at the end of the disturbance → 40 usual rollouts later", ""]
        lines += [f"| | {heads} |", "|---|" + "---|" * len(factors)]
        for name in dict.fromkeys(row["method"] for row in report["rows"]):
            rows = sorted(
                (r for r in report["rows"] if r["method"] == name and r["critic"] == critic), key=lambda row: row["factor"]
            )
            cells = [
                " → ".join(f"{summarize_seeds(row[k]).interquartile_mean:.0f}" for k in ("after_disturbance", "at_the_end"))
                for row in rows
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


def recorded() -> list[str]:
    report = load("recorded_data.json")
    lines = ["| CartPole-v1, 5 seeds | interquartile mean | 95 % interval | every seed |", "|---|---|---|---|"]
    names = {"behavior": "the policy that was recorded"}
    for name, summary in report["summary"].items():
        every = " · ".join(number(row[name]) for row in report["seeds"])
        interval = f"{number(summary['low'])} … {number(summary['high'])}"
        lines.append(f"| {names.get(name, name)} | **{number(summary['interquartile_mean'])}** | {interval} | {every} |")
    return lines


def memory() -> list[str]:
    report = load("control_memory.json")
    return [
        f"After 1 million steps {report['after_1_million']:.0f} MB, after 5 million {report['after_5_million']:.0f} MB, at the end"
        f" (10 million) {report['at_the_end']:.0f} MB."
    ]


def alignment_speed() -> list[str]:
    works = {
        "dpo-live": "DPO, pairs, reference evaluated live",
        "dpo-cached": "DPO, pairs, reference evaluated beforehand",
        "reward": "reward model, pairs",
        "dpo-ranked": "DPO, K = 8 ranked answers",
        "reward-ranked": "reward model, Plackett–Luce, K = 8",
        "dpo-short-prompts": "DPO, pairs, little to share (prompt 32, answers 128), live",
    }
    peers = {"trl": "TRL 1.16", "separate": "our own, prompts not shared"}
    lines = [
        "| work | against | ratio, median (range) | ours | peer's | memory, ours ÷ peer's | utilisation |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, work in works.items():
        result = load(f"alignment_speed/{group}.json")
        c = result["comparisons"][0]
        sides = [[row[c[side]] for row in result["rounds"]] for side in ("ours", "peer")]
        memory = [statistics.median(row["peak_mb"] for row in rows) for rows in sides]
        utilization = statistics.median(row["utilization"] for row in sides[0])
        unit = "pairs/s" if result["measure"] == "pairs_per_second" else "prompts/s"
        lines.append(
            f"| {work} | {peers[c['peer']]} | **{c['ratio']:.1f} ×** ({min(c['ratios']):.1f} … {max(c['ratios']):.1f}) |"
            f" {c['ours_median']:.2f} {unit} | {c['peer_median']:.2f} {unit} | {memory[0]:,.0f} ÷ {memory[1]:,.0f} MB | {utilization:.2f} |"
        )
    return lines


def rlhf_speed() -> list[str]:
    lines = ["| work | ratio, median (range) | ours | TRL 1.9 | memory, ours ÷ TRL's |", "|---|---|---|---|---|"]
    works = {
        "surefoot": "four models with weights of their own, one answer per prompt",
        "shared": "critic on the policy's hidden states, four answers per prompt",
    }
    result = load("rlhf_speed/four-models.json")
    for side, work in works.items():
        c = next(c for c in result["comparisons"] if c["ours"] == side and c["measure"] == "answers_per_second")
        memory = [statistics.median(row[name]["peak_mb"] for row in result["rounds"]) for name in (side, "trl")]
        lines.append(
            f"| {work} | **{c['ratio']:.1f} ×** ({min(c['ratios']):.1f} … {max(c['ratios']):.1f}) | {c['ours_median']:.2f} answers/s |"
            f" {c['peer_median']:.2f} answers/s | {memory[0]:,.0f} ÷ {memory[1]:,.0f} MB |"
        )
    return lines


def sampling_speed() -> list[str]:
    lines = [
        "| work | ratio, median (range) | ours | `generate` | bound by operations | bound by bytes | share of the nearer |",
        "|---|---|---|---|---|---|---|",
    ]
    works = {
        "one-answer": "16 prompts, one answer each",
        "four-answers": "16 prompts, four answers each",
        "early-ends": "16 prompts, answers end by themselves",
    }
    for group, work in works.items():
        result = load(f"sampling_speed/{group}.json")
        (c,) = result["comparisons"]
        ours = [row["surefoot"] for row in result["rounds"]]
        bounds = [statistics.median(row[f"tokens_per_second_by_{kind}"] for row in ours) for kind in ("operations", "bytes")]
        lines.append(
            f"| {work} | **{c['ratio']:.1f} ×** ({min(c['ratios']):.1f} … {max(c['ratios']):.1f}) | {c['ours_median']:,.0f} tokens/s |"
            f" {c['peer_median']:,.0f} tokens/s | {bounds[0]:,.0f} | {bounds[1]:,.0f} | {c['ours_median'] / min(bounds):.0%} |"
        )
    return lines


def preference_learning() -> list[str]:
    report = load("preference_learning.json")
    lines = [
        "| labels | labelled prompts | accuracy on the true order (range) | on noisy labels | less the true reward's own |",
        "|---|---|---|---|---|",
    ]
    names = {"pairs": "pairs, Bradley–Terry", "ranked": "rankings of 4, Plackett–Luce"}
    for row in report["summary"]:
        lines.append(
            f"| {names[row['data']]} | {row['labelled_prompts']:,} | **{row['clean_mean']:.3f}** ({row['clean_lowest']:.3f} …"
            f" {row['clean_highest']:.3f}) | {row['noisy_mean']:.3f} | {row['noisy_minus_true_reward']:+.4f} (worst seed"
            f" {row['worst_gap']:+.4f}) |"
        )
    return lines


METHODS = {"ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO", "dpo": "DPO, pairs", "ranked-dpo": "DPO, rankings of 4"}


def frontier(rewards: str) -> list[str]:
    report = load("frontier/frontier.json")
    lines = [
        "| task | β | method | E[r] | KL(π‖π_ref) | KL(π‖π*), mean (worst seed) | of the start | answers | seconds | state, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task, exact in report["tasks"].items():
        for beta in report["betas"]:
            optimum = next(one for one in exact["optima"] if one["beta"] == beta)
            best = f"{optimum['reward']:.3f} | {optimum['kl_reference']:.3f} | 0 | {optimum['start']:.3f} nats"
            lines.append(f"| {task} | {beta:g} | π* | {best} | | | |")
            for method in METHODS:
                rows = [
                    row
                    for row in report["rows"]
                    if (row["task"], row["beta"], row["method"], row["rewards"]) == (task, beta, method, rewards)
                ]
                if not rows:
                    continue
                mean = {
                    name: statistics.mean(row[name] for row in rows) for name in rows[0] if isinstance(rows[0][name], float)
                }
                worst = max(row["kl_optimum"] for row in rows)
                samples = statistics.mean(row["samples"] for row in rows)
                lines.append(
                    f"| | | {METHODS[method]} | {mean['reward']:.3f} | {mean['kl_reference']:.3f} |"
                    f" {mean['kl_optimum']:.4f} ({worst:.4f}) |"
                    f" {mean['share']:.2%} | {samples:,.0f} | {mean['seconds']:.1f} | {mean['state_mb']:.1f} |"
                )
    return lines


def frontier_changes() -> list[str]:
    report = load("frontier/frontier.json")
    lines = ["| task | method | what is changed | β | KL(π‖π*), mean (worst seed) |", "|---|---|---|---|---|"]
    keys = dict.fromkeys((r["task"], r["method"], r["change"], r["beta"]) for r in report["changes"])
    for task, method, change, beta in sorted(keys, key=lambda k: (k[0], k[1], k[3])):
        found = [
            r["kl_optimum"]
            for r in report["changes"]
            if (r["task"], r["method"], r["change"], r["beta"]) == (task, method, change, beta)
        ]
        lines.append(f"| {task} | {METHODS[method]} | {change} | {beta:g} | {statistics.mean(found):.4f} ({max(found):.4f}) |")
    return lines


def killed() -> list[str]:
    report = load("durability.json")
    lines = ["| command | runs | kills | the bits of the run that nobody stopped |", "|---|---|---|---|"]
    for case in report["cases"].values():
        command = re.sub(r" --(quiet|hidden-sizes \S+|num-envs \S+|batch-size \S+)", "", case["command"])
        lines.append(f"| `{command}` | {case['runs']} | {case['kills']} | {case['same']} of {case['runs']} |")
    return [*lines, f"| all | **{report['runs']}** | **{report['kills']}** | **{report['same']} of {report['runs']}** |"]


def restarts() -> list[str]:
    lines = ["| | default grid, steps | a restart, s | of the time |", "|---|---|---|---|"]
    for row in load("restarts.json")["speed"]:
        name = f"{row['algorithm']} {row['env']}, {row['backend']}"
        share = row["share_of_the_default_grid"]
        lines.append(f"| {name} | {row['default_grid']:,} | {row['restart_seconds']:.2f} | {share:.1%} |")
    return lines


def restarts_learning() -> list[str]:
    lines = ["| | steps | grid, steps | seeds | return without a grid | with it |", "|---|---|---|---|---|---|"]
    for row in load("restarts.json")["learning"]:
        means = [
            f"{row[name]['interquartile_mean']:.1f} ({min(row[name]['each']):.1f} … {max(row[name]['each']):.1f})"
            for name in ("none", "fine")
        ]
        seeds = len(row["none"]["each"])
        lines.append(
            f"| {row['algorithm']} {row['env']} | {row['total_steps']:,} | {row['fine_grid']:,} | {seeds} | {means[0]} | {means[1]} |"
        )
    return lines


def agreement() -> list[str]:
    report = load("agreement.json")
    lines = ["| surefoot | counterpart | numbers | largest difference | what differs |", "|---|---|---|---|---|"]
    for row in report["rows"]:
        names = ", ".join(f"`{name}`" for name in row["ours"])
        peer = f"{row['peer']} {report['peers'][row['peer']]}: {row['counterpart']}"
        if "failed" in row:
            lines.append(f"| {names} | {peer} | | not run: {row['failed']} | {row['note']} |")
            continue
        slope = f"; derivatives {row['gradient_difference']:.0e}" if "gradient_difference" in row else ""
        largest = f"{row['difference']:.0e}{slope}".replace("0e+00", "0")
        lines.append(f"| {names} | {peer} | {row['numbers']:,} | {largest} | {row['note']} |")
    without = ", ".join(f"`{name}`" for name in report["without_counterpart"])
    total = sum(row.get("numbers", 0) for row in report["rows"])
    return [
        *lines,
        "",
        f"{len(report['rows'])} pairings, {total:,} numbers. Without a counterpart in these packages: {without}.",
    ]


def main() -> None:
    makers = {"learning": learning, "seeds": seeds, "speed": speed, "limit": limit, "memory": memory, "ablation": ablation}
    makers |= {"family": partial(learning, FAMILY_TASKS), "family-seeds": partial(seeds, FAMILY_TASKS)}
    makers |= {"alignment_speed": alignment_speed, "preference_learning": preference_learning}
    makers |= {f"frontier-{rewards}": partial(frontier, rewards) for rewards in ("known", "learned")}
    makers |= {"frontier-changes": frontier_changes, "rlhf_speed": rlhf_speed, "sampling_speed": sampling_speed}
    makers |= {
        "cliff": cliff,
        "recorded": recorded,
        "killed": killed,
        "restarts": restarts,
        "restarts-learning": restarts_learning,
        "agreement": agreement,
    }
    makers |= {f"ablation-{n}": partial(ablation, n) for n in ("reinforce", "actor-critic", "a2c", "trpo", "penalty")}
    for page in (HERE.parent / "README.md", HERE / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))):
        text = page.read_text()
        for name, make in makers.items():
            pattern = rf"<!-- results:{name} -->.*?<!-- end -->"
            if not re.search(pattern, text, flags=re.DOTALL):
                continue
            table = "\n".join(make())
            text = re.sub(
                pattern, lambda _, n=name, t=table: f"<!-- results:{n} -->\n\n{t}\n\n<!-- end -->", text, flags=re.DOTALL
            )
        page.write_text(text)


if __name__ == "__main__":
    main()
