"""The text game of the examples: its rules, its token masks, and that a policy learns it from lessons."""

import copy
import random

import pytest
import text_game
from helpers import watch_signals
from text_game import GuessingGame, build_game_tokenizer, careless_game, games, make_trainer
from tiny_policy import build_model


def played(secret: int, *guesses: int) -> tuple[GuessingGame, list[str]]:
    game = GuessingGame()
    game.reset(secret=secret, game="any")
    return game, [game.guess(str(number)) for number in guesses]


def test_the_rules():
    game, answers = played(5, 4, 6, 5, 1)
    assert answers == ["higher", "lower", "yes", "over"]
    assert (game.get_reward(), game.feedback) == (1.0, "It was 5.")
    game, answers = played(5, 1, 2)
    assert (answers, game.get_reward(), game.feedback) == (["higher", "higher"], 0.0, None)  # not over yet
    game.guess("x")
    assert (game.get_reward(), game.feedback) == (0.0, "It was 5.")
    game.reset(secret=3)
    assert game.feedback is None


def test_halving_the_range_always_wins():
    for secret in text_game.NUMBERS:
        low, high = 1, 7
        game, _ = played(secret)
        while not game.found and game.left:
            told = game.guess(str((low + high) // 2))
            low, high = ((low + high) // 2 + 1, high) if told == "higher" else (low, (low + high) // 2 - 1)
        assert game.found


def test_warm_up_games_are_written_as_the_trainer_writes_them():
    tokenizer, rng = build_game_tokenizer(), random.Random(0)
    ids, labels = careless_game(tokenizer, rng)
    learnt = tokenizer.decode([token for token, label in zip(ids, labels, strict=True) if label != -100])
    assert learnt.endswith("ok<|end|>") and learnt.count("<|guess|>") == learnt.count("<|end|>") - 1
    assert "<|tool|>" not in learnt and "higher" not in learnt and "lower" not in learnt
    asked = text_game.question("A")
    messages = [{"role": "user", "content": asked}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == f"<|user|>{asked}<|end|><|assistant|>"
    parsed = tokenizer.parse_response(tokenizer("<|guess|>4<|end|>")["input_ids"], prefix=text)
    assert parsed["tool_calls"] == [{"type": "function", "function": {"name": "guess", "arguments": {"number": "4"}}}]


def scripted_guesses(trainer, first: list[int], later: list[int]) -> None:
    """Let each row guess `first`, in turn, and then `later` until its game is over."""
    tool = trainer._tokenizer.convert_tokens_to_ids("<|tool|>")

    def generate(prompt_ids, images, fields, num_generations, has_tool_images=False):
        texts = []
        for i, ids in enumerate(prompt_ids):
            turns, told = ids.count(tool), trainer._tokenizer.decode(ids)
            if told.rstrip().endswith(("yes<|end|><|assistant|>", "over<|end|><|assistant|>")) or turns == 3:
                texts.append("ok<|end|>")
            else:
                texts.append(f"<|guess|>{(first[i % len(first)] if turns == 0 else later[turns - 1])}<|end|>")
        return [trainer._tokenizer(text)["input_ids"] for text in texts], None

    trainer._generate_single_turn = generate


@pytest.mark.parametrize("context", ["memory", "feedback"])
def test_tool_results_are_neither_scored_nor_trained(context, tmp_path):
    tokenizer = build_game_tokenizer()
    model = build_model(tokenizer, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
    settings = {"per_device_train_batch_size": 14, "num_generations": 2, "max_steps": 2, "logging_steps": 1}
    settings["shuffle_dataset"] = False  # all seven games in each batch
    made = make_trainer(model, tokenizer, algorithm="rlsd", context=context, output_dir=str(tmp_path), **settings)
    scripted_guesses(made, [4, 2], [6, 7])
    seen = watch_signals(made)
    made.train()
    assert len(seen) == 2
    for step, batch in enumerate(seen):
        taught = batch.teacher["has_context"].tolist()
        assert taught == [step > 0 or context == "feedback"] * 14
        for i, rollout in enumerate(batch.rollouts):
            assert rollout.feedback == f"It was {rollout.row['secret']}."
            valid, own = batch.completion_mask[i].bool(), batch.tool_mask[i].bool()
            written, results = batch.completion_ids[i][valid & own], batch.completion_ids[i][valid & ~own]
            assert set(tokenizer.decode(written).split("<|end|>")[:-2]) <= {f"<|guess|>{n}" for n in (2, 4, 6, 7)}
            assert tokenizer.decode(results).count("<|tool|>") == tokenizer.decode(written).count("<|guess|>")
            assert "guess" not in tokenizer.decode(results) and tokenizer.decode(written).endswith("ok<|end|>")
            # Teacher and student score the very tokens that the model wrote, and nothing else moves it.
            expected = (valid & own) if taught[i] else valid & False
            assert (batch.scores.mask[i] == expected).all()
            assert (batch.scores.teacher_logps[i][~expected] == 0).all()
            assert (batch.scores.student_logps[i][expected] < 0).all()
            assert (batch.scores.teacher_logps[i][expected] < 0).all()
            plain = batch.plain[i].expand_as(own)
            assert (batch.advantages[i][~expected] == plain[~expected]).all()
            context_of = batch.lesson.views["teacher"].contexts[i]
            assert (context_of.text if context_of else None) == (rollout.feedback if taught[i] else None)


def test_a_room_keeps_its_number_and_the_prompt_does_not_say_it():
    rooms = {str(row["prompt"]): row["secret"] for row in games(repeat=2)}
    assert sorted(rooms.values()) == list(text_game.NUMBERS)
    assert all("It was" not in prompt for prompt in rooms)


@pytest.mark.slow
@pytest.mark.apart
@pytest.mark.parametrize(("algorithm", "context"), [("sdpo", "memory"), ("rlsd", "memory"), ("sdpo", "feedback")])
def test_a_policy_learns_the_game(algorithm, context, tmp_path, monkeypatch, policy):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text_game, "game_policy", lambda: policy())  # built once: two minutes less
    before, after = text_game.main(algorithm, context)
    print(f"\n{algorithm} with {context}: {before:.1%} -> {after:.1%}")
    assert before < 0.6
    assert after > before + 0.2


@pytest.fixture(scope="module")
def policy():
    """Gives a fresh copy of the careless policy and its tokenizer."""
    model, tokenizer = text_game.game_policy()
    return lambda: (copy.deepcopy(model), tokenizer)
