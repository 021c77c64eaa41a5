"""A text game as a TRL environment, and a policy that learns to play it from what earlier games left behind.

The game: in each of seven rooms a number from 1 to 7 is hidden, always the same one. Guess it in three guesses; the
answer to a guess is "higher", "lower" or "yes". The policy of 0.4 million parameters is built on the spot: supervised
steps on careless games, half of them with the number in the prompt, `[It was 4.]Room A. Guess 1 to 7.`, which is then
guessed six times in seven. Alone it knows no room's number and loses more than half of its games. With a lesson of an
earlier game in the same room it is the teacher. The policy never sees a lesson, and still learns what the rooms hide.

    python examples/text_game.py
    python examples/text_game.py --algorithm rlsd --context feedback
"""

import argparse
import random
import time
from typing import Any

from datasets import Dataset
from tiny_policy import HINT_TEMPLATE, build_model, build_tokenizer, supervised_steps
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from trl_selfdistill import LessonMemory, RLSDConfig, RLSDTrainer, Rollout, SDPOConfig, SDPOTrainer

NUMBERS = range(1, 8)
ROOMS = dict(zip("ABCDEFG", (4, 1, 6, 3, 7, 2, 5), strict=True))
GUESSES = 3
# A call is three tokens: `<|guess|>4<|end|>`. Other tools are written out, as TRL checks that a template can.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + (m.get('content') or '') }}"
    "{% for call in m.get('tool_calls') or [] %}{% set f = call['function'] %}"
    "{% if f['name'] == 'guess' %}{{ '<|guess|>' ~ f['arguments'].get('number', '') }}"
    "{% else %}{{ f | tojson }}{% endif %}{% endfor %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<|guess|>",
            "close_pattern": r"<\|end\|>",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "guess", "arguments": {"number": "{content}"}}},
        },
        "content": {"close_pattern": r"<\|end\|>", "content": "text"},
    },
}


class GuessingGame:
    """Guess a number. Public methods but `reset` and `get_reward` are tools; `feedback` is none, as a property."""

    def reset(self, secret: int, **row: Any) -> None:
        self.secret, self.left, self.found = secret, GUESSES, False

    def guess(self, number: str) -> str:
        """Guess the number.

        Args:
            number: A number from 1 to 7.
        """
        if self.found or not self.left:
            return "over"
        self.left -= 1
        if not number.isdecimal():
            return "what"
        self.found = int(number) == self.secret
        return "yes" if self.found else answer(int(number), self.secret)

    @property
    def feedback(self) -> str | None:
        """What is said of a game once it is over: read after it, never shown to the policy."""
        return f"It was {self.secret}." if self.found or not self.left else None

    def get_reward(self) -> float:
        return float(self.found)


def answer(number: int, secret: int) -> str:
    return "higher" if number < secret else "lower"


def question(room: str) -> str:
    return f"Room {room}. Guess 1 to 7."


def lesson(rollout: Rollout) -> str | None:
    """What a game leaves behind for the next one in the same room."""
    return rollout.feedback


def games(*, repeat: int = 1) -> Dataset:
    """A row for each room."""
    rows = [{"prompt": [{"role": "user", "content": question(room)}], "secret": ROOMS[room]} for room in ROOMS]
    return Dataset.from_list(rows * repeat)


def build_game_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    marks: Any = [AddedToken(token, special=True, normalized=False) for token in ("<|tool|>", "<|guess|>")]
    tokenizer.add_tokens(marks)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer


def careless_game(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> tuple[list[int], list[int]]:
    """(token ids, labels) of a game in which answers are heeded one time in three, and a lesson six times in seven."""
    secret, knows = rng.choice(NUMBERS), rng.random() < 0.5
    asked = question(rng.choice([*ROOMS]))
    hint = f"[It was {secret}.]" if knows else ""
    ids = tokenizer(f"<|user|>{hint}{asked}<|end|><|assistant|>")["input_ids"]
    labels, possible = [-100] * len(ids), set(NUMBERS)

    def add(text: str, *, learnt: bool) -> None:
        new = tokenizer(text)["input_ids"]
        ids.extend(new)
        labels.extend(new if learnt else [-100] * len(new))

    for _ in range(GUESSES):
        number = rng.choice(sorted(possible) if rng.random() < 1 / 3 else NUMBERS)
        if knows and rng.random() < 6 / 7:
            number = secret
        add(f"<|guess|>{number}<|end|>", learnt=True)
        told = "yes" if number == secret else answer(number, secret)
        add(f"<|tool|>{told}<|end|><|assistant|>", learnt=False)
        if told == "yes":
            break
        possible = {n for n in possible if n != number and answer(number, n) == told} or possible
    add("ok<|end|>", learnt=True)
    return ids, labels


def game_policy(*, steps: int = 500, seed: int = 0) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The careless policy and its tokenizer."""
    tokenizer = build_game_tokenizer()
    model = build_model(tokenizer, seed=seed)
    supervised_steps(model, tokenizer, steps=steps, batch=96, seed=seed, labelled_row=careless_game)
    return model, tokenizer


TRAINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sdpo": (SDPOTrainer, SDPOConfig, {}),
    # All of the advantage is the teacher's to scale, and it stays so.
    "rlsd": (RLSDTrainer, RLSDConfig, {"rlsd_strength": 1.0, "rlsd_clip": 1.0, "rlsd_decay_steps": 100_000}),
}


def make_trainer(
    model: Any, tokenizer: Any, *, algorithm: str = "sdpo", context: str = "memory", **settings: Any
) -> Any:
    """The trainer of the example. `settings` are fields of the configuration."""
    trainer_class, config_class, own = TRAINERS[algorithm]
    common = {
        "output_dir": "outputs/text_game",
        "teacher_template": HINT_TEMPLATE,
        "teacher_model_kind": "base",  # the policy as it was: it knows how to heed a lesson
        "per_device_train_batch_size": 56,  # each of the 7 rooms 8 times
        "per_device_eval_batch_size": 112,
        "num_generations": 8,
        "max_completion_length": 48,
        "max_tool_calling_iterations": GUESSES,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "constant",
        "max_steps": 120,
        "logging_steps": 10,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    memory = LessonMemory(write=lesson) if context == "memory" else None  # a task is a prompt, here a room
    named = {} if memory else {"context": context}
    return trainer_class(
        model,
        args=config_class(**{**common, **own, **named, **settings}),
        train_dataset=games(repeat=20),
        eval_dataset=games(repeat=4),
        processing_class=tokenizer,
        environment_factory=GuessingGame,
        context_builder=memory,
    )


def success(trainer: Any) -> float:
    """The share of games that the policy wins alone, over 28 rows with 8 games each."""
    return trainer.evaluate()["eval_reward"]


def main(algorithm: str = "sdpo", context: str = "memory", steps: int = 120) -> tuple[float, float]:
    """Train; the share of games that are won before and after."""
    start = time.monotonic()
    model, tokenizer = game_policy()
    print(f"built the careless policy in {time.monotonic() - start:.0f} s")
    trainer = make_trainer(model, tokenizer, algorithm=algorithm, context=context, max_steps=steps)
    before = success(trainer)
    trainer.train()
    return before, success(trainer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Learn a guessing game from lessons of earlier games.")
    parser.add_argument("--algorithm", choices=sorted(TRAINERS), default="sdpo")
    parser.add_argument("--context", choices=["memory", "feedback"], default="memory")
    parser.add_argument("--steps", type=int, default=120)
    won = main(**vars(parser.parse_args()))
    print(f"games won: {won[0]:.0%} before, {won[1]:.0%} after")
