"""Lessons of earlier batches as the teacher's context: what is kept, who sees it, and that a restart keeps it."""

import json
import math

import contract
import pytest
from helpers import build, distill_settings, run_trainer, step_logs, watch_signals
from tiny_policy import sums

from trl_selfdistill import (
    AntiSDConfig,
    AntiSDTrainer,
    Context,
    ContextMemory,
    LessonMemory,
    OPSDConfig,
    OPSDTrainer,
    RLRTConfig,
    RLRTTrainer,
    Rollout,
)
from trl_selfdistill.context.builders import resolve_context
from trl_selfdistill.context.memory import shorten
from trl_selfdistill.trainer.example import PLACEHOLDER, example_prompts


def rollout(text="y", reward=0.0, prompt="p", **kwargs) -> Rollout:
    return Rollout(**{"row": {}, "completion": text, "correct": False, "reward": reward, "prompt": prompt, **kwargs})


def bare(**kwargs) -> LessonMemory:
    """A memory whose lessons are the completions alone."""
    return LessonMemory(**{"write": lambda rollout: rollout.completion, **kwargs})


def taught(memory: LessonMemory, *rollouts: Rollout) -> LessonMemory:
    memory.learn([memory.lesson(each) for each in rollouts])
    return memory


def shown(memory: LessonMemory, prompt="p", **kwargs) -> str | None:
    context = memory(rollout(prompt=prompt, **kwargs))
    return None if context is None else str(context.text)


def test_the_best_lessons_come_first_and_then_the_latest():
    memory = taught(bare(best=2, latest=2), *(rollout(t, r) for t, r in zip("abcde", (1, 3, 2, 0, 1), strict=True)))
    assert shown(memory) == "b\n\nc\n\ne\n\nd"
    assert memory(rollout()) == Context("b\n\nc\n\ne\n\nd", "memory")
    assert shown(memory, prompt="another") is None


def test_a_lesson_is_shown_once_and_the_newest_of_equals_is_kept():
    memory = taught(bare(), rollout("a", 1), rollout("b", 1))
    assert shown(memory) == "b"
    taught(memory, rollout("a", 0), rollout("a", 0))
    assert shown(memory) == "b\n\na"
    memory = taught(bare(best=3, latest=3), rollout("a", 1), rollout("b", 0), rollout("a", 0))
    assert shown(memory).split("\n\n") == ["a", "b"]


@pytest.mark.parametrize(("limits", "expected"), [({"best": 0}, "c"), ({"latest": 0}, "a"), ({}, "a\n\nc")])
def test_the_best_and_the_latest_alone(limits, expected):
    assert shown(taught(bare(**limits), rollout("a", 2), rollout("b", 1), rollout("c", 0))) == expected


def test_a_rollout_without_a_reward_is_worth_the_least():
    memory = taught(bare(latest=0), rollout("a", math.nan), rollout("b", -5.0), rollout("c", math.nan))
    assert shown(memory) == "b"
    json.dumps(memory.state_values(), allow_nan=False)


def test_the_task_that_was_not_seen_for_longest_is_forgotten():
    memory = bare(tasks=2)
    for prompt in "abac":  # a is seen again before c comes
        taught(memory, rollout(prompt, prompt=prompt))
    assert [shown(memory, prompt=p) for p in "abc"] == ["a", None, "c"]
    taught(memory, rollout(" ", prompt="a"), rollout("d", prompt="d"))  # seen, though it taught nothing
    assert [shown(memory, prompt=p) for p in "acd"] == ["a", None, "d"]


def test_asking_is_not_seeing():
    memory = taught(bare(tasks=2), rollout("a", prompt="a"), rollout("b", prompt="b"))
    before = memory.state_values()
    assert shown(memory, prompt="a") == "a" and shown(memory, prompt="z") is None
    assert memory.state_values() == before


def test_a_long_lesson_loses_its_middle():
    memory = taught(bare(characters=30), rollout("1" * 20 + "2" * 20))
    assert len(shown(memory)) == 30
    assert shown(memory).startswith("1" * 10) and shown(memory).endswith("2" * 10) and "\n[...]\n" in shown(memory)
    assert shorten("x" * 30, 30) == "x" * 30


def test_what_a_lesson_says_where_no_function_writes_it():
    memory = taught(LessonMemory(), rollout("<think>hm</think>4", 0.5, shown="4", feedback="Too small."))
    assert shown(memory) == "4\nFeedback: Too small.\nReward: 0.5"
    assert shown(taught(LessonMemory(), rollout("4", math.nan))) == "4"


def test_a_task_is_the_prompt_or_a_column():
    system, user = {"role": "system", "content": "a"}, {"role": "user", "content": "b"}
    memory = taught(bare(), rollout("one", prompt=[system, user]))
    assert shown(memory, prompt=[system, {"role": "user", "content": [{"type": "text", "text": "b"}]}]) == "one"
    assert shown(memory, prompt=[user]) is None
    assert shown(memory, prompt=[{"role": "system", "content": "ab"}]) is None
    memory = taught(bare(task="id"), rollout("one", prompt="p", row={"id": 1}))
    assert shown(memory, prompt="q", row={"id": 1}) == "one"
    assert shown(memory, prompt="p", row={"id": 2}) is None


def test_mistakes_are_named():
    picture = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    with pytest.raises(ValueError, match=r"holds images.*LessonMemory\(task='id'\)"):
        LessonMemory()(rollout(prompt=picture))
    with pytest.raises(ValueError, match=r"task='id'.*no such column.*\['game'\].*remove_unused_columns"):
        LessonMemory(task="id")(rollout(row={"game": 1}))
    with pytest.raises(ValueError, match=r"best=0, latest=0\) would keep no lesson"):
        LessonMemory(best=0, latest=0)
    with pytest.raises(ValueError, match=r"tasks=0"):
        LessonMemory(tasks=0)
    with pytest.raises(ValueError, match=r"characters=3"):
        LessonMemory(characters=3)
    with pytest.raises(ValueError, match=r"write=.*must take one argument"):
        LessonMemory(write=lambda: "x")
    with pytest.raises(ValueError, match=r"write=.* must be a string or None, got int"):
        LessonMemory(write=lambda rollout: 3).lesson(rollout())
    with pytest.raises(ValueError, match=r"feedback must be a string or None, got list"):
        LessonMemory().lesson(rollout(feedback=["no"]))


def test_the_whole_state_is_json():
    memory = taught(bare(best=2, tasks=2), *(rollout(t, i / 3, prompt=t) for i, t in enumerate("abcab")))
    values = json.loads(json.dumps(memory.state_values()))
    other = bare(best=2, tasks=2)
    other.load_state_values(values)
    assert other.state_values() == memory.state_values()
    for each in (memory, other):
        taught(each, rollout("new", 9.0, prompt="z"))
    assert other.state_values() == memory.state_values()  # the order of use is in it
    assert [shown(memory, prompt=p) for p in "abz"] == [None, "b", "new"]


def test_a_named_memory_is_new_for_each_trainer():
    one, two = resolve_context("memory"), resolve_context("memory")
    assert isinstance(one, LessonMemory) and isinstance(two, LessonMemory) and one is not two


def test_a_memory_has_to_be_whole():
    class Half(ContextMemory):
        def __call__(self, rollout):
            return None

    with pytest.raises(TypeError, match="abstract"):
        Half()


# ---- in a trainer ----------------------------------------------------------------------------------------------------


def make(model_dir, tokenizer, folder, trainer=RLRTTrainer, config=RLRTConfig, rows=2, memory=None, **settings):
    named = {} if memory else {"context": "memory"}
    args = config(**distill_settings(folder, **{"max_steps": 4, **named, **settings}))
    own = {"reward_funcs": None} if trainer is OPSDTrainer else {}
    own |= {"context_builder": memory} if memory else {}
    return build(trainer, args, str(model_dir), tokenizer, train_dataset=sums().select(range(rows)), **own)


@pytest.mark.parametrize(
    ("trainer", "config"), [(RLRTTrainer, RLRTConfig), (AntiSDTrainer, AntiSDConfig), (OPSDTrainer, OPSDConfig)]
)
def test_the_teacher_sees_earlier_batches_and_never_its_own(trainer, config, model_dir, tokenizer, tmp_path):
    made = make(model_dir, tokenizer, tmp_path, trainer, config, num_generations=4)
    seen = watch_signals(made)
    made.train()
    assert len(seen) == 4
    expected = LessonMemory()
    for step, batch in enumerate(seen):
        contexts = batch.lesson.views["teacher"].contexts
        assert contexts == [expected(each) for each in batch.rollouts]
        assert all((context is None) == (step == 0) for context in contexts)
        taught(expected, *batch.rollouts)
    assert made.memory.state_values() == expected.state_values()
    logs = step_logs(made)
    assert [entry["self_distill/has_teacher"] for entry in logs] == [0.0, 1.0, 1.0, 1.0]
    assert all(entry["self_distill/context_memory"] == 1.0 for entry in logs[1:])
    assert ("Reward" in seen[-1].lesson.views["teacher"].contexts[0].text) == (trainer is not OPSDTrainer)


def test_evaluation_asks_and_does_not_teach(model_dir, tokenizer, tmp_path):
    made = make(model_dir, tokenizer, tmp_path, per_device_eval_batch_size=8)
    made.train()
    before = made.memory.state_values()
    metrics = made.evaluate(sums().select(range(4)))
    assert made.memory.state_values() == before and len(before["lessons"]) == 2
    assert metrics["eval_self_distill/has_teacher"] == 0.5  # two of the four sums were trained on


@pytest.mark.parametrize("name", [name for name, trainer in contract.trainers().items() if trainer.views])
def test_a_resumed_run_remembers_what_the_unbroken_one_does(name, model_dir, tokenizer, tmp_path):
    data = {"train_dataset": sums().select([0, 1, 2] * 6)}  # one epoch: in a second one TRL's order is its own

    def run(folder, **resume):
        common = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
        trainer = contract.trainers()[name]
        made = contract.make(trainer, model_dir, tokenizer, folder, data=data, **{**common, "context": "memory"})
        seen = watch_signals(made)
        made.train(**resume)
        return made, [[context and context.text for context in b.lesson.views[trainer.views[0]].contexts] for b in seen]

    whole, contexts = run(tmp_path / "whole")
    resumed, later = run(tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    assert contexts[3:] == later and all(any(batch) for batch in later)
    assert whole.memory.state_values() == resumed.memory.state_values()
    assert step_logs(whole)[3:] == step_logs(resumed)[3:]
    stored = json.loads((tmp_path / "whole/checkpoint-6/selfdistill_state.json").read_text())
    assert stored["context_memory"] == whole.memory.state_values()


def test_a_checkpoint_without_a_memory_is_refused(model_dir, tokenizer, tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make(model_dir, tokenizer, tmp_path, **saved, context="gold").train()
    with pytest.raises(ValueError, match=r"checkpoint-2 holds no memory: it was written with another context"):
        make(model_dir, tokenizer, tmp_path, **saved | {"max_steps": 4}).train(resume_from_checkpoint=True)


def test_a_mistake_of_the_function_that_writes_names_the_prompt(model_dir, tokenizer, tmp_path):
    made = make(model_dir, tokenizer, tmp_path, memory=LessonMemory(write=lambda rollout: rollout.row["nothing"]))
    with pytest.raises(ValueError, match=r"LessonMemory\(write=...\) raised KeyError: 'nothing'.*prompt"):
        made.train()


def test_lessons_are_not_called_solutions_and_the_verdict_stays(model_dir, tokenizer, tmp_path):
    def prompt(trainer, config, **settings):
        made = make(model_dir, tokenizer, tmp_path, trainer, config, teacher_template=None, **settings)
        text = example_prompts(made)["teacher"]
        assert made.memory.state_values() == {"lessons": []}  # the example is forgotten
        return text

    plain, judged = prompt(RLRTTrainer, RLRTConfig), prompt(AntiSDTrainer, AntiSDConfig)
    for text in (plain, judged):
        assert "earlier attempts at the task below left behind" in text and "solution" not in text
        assert PLACEHOLDER in text and "Reward: 1" in text
    assert "assessed" in judged and "assessed" not in plain
    assert "the task that follows" in prompt(RLRTTrainer, RLRTConfig, context_placement="system")


def test_the_card_names_a_memory_as_it_was_made(model_dir, tokenizer, tmp_path):
    for trainer, config in ((RLRTTrainer, RLRTConfig), (AntiSDTrainer, AntiSDConfig)):
        made = make(model_dir, tokenizer, tmp_path, trainer, config, memory=LessonMemory(best=3))
        made.create_model_card()
        assert "LessonMemory(best=3, latest=1" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_two_processes_remember_what_one_does(model_dir, tmp_path):
    # 3 groups of 8 on 2 processes of 12 rows: the second group straddles them. Two epochs of 6 rows, so tasks return.
    common = {"num_generations": 8, "optim": "sgd", "learning_rate": 0.1, "max_steps": 5, "seed": 3}
    runs = []
    for processes in (1, 2):
        config = distill_settings(tmp_path / f"run{processes}", per_device_train_batch_size=24 // processes, **common)
        job = {"trainer": "RLRTTrainer", "model": model_dir, "config": config, "processes": processes}
        memory = {"best": 2, "latest": 3, "tasks": 4}
        runs.append(run_trainer(tmp_path / f"out{processes}", scripted=True, rows=6, memory=memory, **job))
    one, two = runs
    assert one.state["memory"] == two.state["memory"]
    assert len(one.state["memory"]["lessons"]) == 4
    shown = 0
    for batch, other in zip(one.batches, two.batches, strict=True):
        assert [row["context"] for row in batch["rows"]] == [row["context"] for row in other["rows"]]
        shown += sum(row["context"] is not None for row in batch["rows"])
    assert shown > 20, "too few rows had a lesson for the comparison to mean anything"
