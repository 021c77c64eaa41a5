"""Wrong data, templates and functions are refused before the model is loaded, with the set, the row and the way out."""

import pytest
from datasets import Dataset, IterableDataset
from helpers import build, distill_settings, settings, sums
from PIL import Image
from test_modes import Riddle

from trl_selfdistill import AntiSDConfig, AntiSDTrainer, OPSDConfig, OPSDTrainer, PrivilegedContextCollator, RLRTConfig
from trl_selfdistill.algorithms.rlrt import RLRTTrainer
from trl_selfdistill.context.builders import resolve_context
from trl_selfdistill.context.templates import check_template
from trl_selfdistill.trainer.datachecks import check_data

USER = [{"role": "user", "content": "1+1="}]
ROW = {"prompt": USER, "privileged_context": "2"}


def checked(rows=None, *, evaluation=None, builder=None, environment=None, folder="unused", **config):
    """The checks alone: no model is loaded for them."""
    args = RLRTConfig(**distill_settings(folder, **{"context": "gold", **config}))
    data = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return check_data(args, data, evaluation, builder, environment)


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


def rows_with(number, **change):
    return [{**ROW, **change} if i == number else ROW for i in range(8)]


# ---- columns ---------------------------------------------------------------------------------------------------------


def test_columns_are_checked_before_the_model_is_loaded(tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path))
    with pytest.raises(ValueError, match=r"train_dataset has no column 'prompt'.*\['problem', 'solution'\]"):
        build(RLRTTrainer, config, "no/such-model", tokenizer, train_dataset=sums().rename_column("prompt", "problem"))


@pytest.mark.parametrize("form", [Dataset.from_list, stream])
@pytest.mark.parametrize("where", ["train_dataset", "eval_dataset", "eval_dataset['easy']"])
def test_a_missing_prompt_names_the_set_and_the_way_out(form, where):
    bad, good = form([{"question": "1+1=", "solution": "2"}] * 8), Dataset.from_list([ROW] * 8)
    evaluation = {"eval_dataset": bad, "eval_dataset['easy']": {"easy": bad}}.get(where)
    with pytest.raises(ValueError) as caught:
        checked(bad if where == "train_dataset" else good, evaluation=evaluation)
    assert str(caught.value).startswith(f"{where} has no column 'prompt'")
    assert '.rename_column("question", "prompt")' in str(caught.value)


def test_an_environment_may_own_the_prompts():
    checked([{"environment": "a"}] * 8, environment=Riddle, context="peer")
    checked(stream([{"environment": "a"}] * 8), environment=Riddle, context="peer")


def test_a_transform_makes_columns_of_its_own():
    raw = Dataset.from_dict({"problem": ["1+1="] * 8})
    raw.set_transform(lambda batch: {"prompt": batch["problem"], "solution": ["2"] * len(batch["problem"])})
    assert checked(raw).gold.names == ["solution"]


@pytest.mark.parametrize(("context", "builder"), [("gold", None), ("peer", None), ("gold", lambda rollout: "text")])
def test_solution_takes_the_place_of_the_default_name_alone(context, builder):
    rows = [{"prompt": USER, "solution": "2", "answer": "3"}] * 8
    with pytest.raises(ValueError, match=r"'anwser'.*\['answer', 'prompt', 'solution'\].*Did you mean 'answer'\?"):
        checked(rows, privileged_context_column="anwser", context=context, builder=builder)
    assert checked(rows).gold.of(rows[0]) == "2"
    assert checked(rows, privileged_context_column="answer").gold.of(rows[0]) == "3"


def test_an_evaluation_set_without_solutions_is_named():
    good, bad = Dataset.from_list([ROW] * 8), Dataset.from_list([{"prompt": USER}] * 8)
    with pytest.raises(ValueError, match=r"but eval_dataset\['hard'\] has \['prompt'\]"):
        checked(good, evaluation={"easy": good, "hard": bad})


# ---- rows ------------------------------------------------------------------------------------------------------------

BAD_PROMPTS = {
    "none": (None, "the prompt is None.*dataset.filter"),
    "empty": ([], r"the prompt is \[\].*at least one"),
    "no role": ([{"content": "1+1="}], "must have a role and a content"),
    "no content": ([{"role": "user", "content": None}], "must have a role and a content"),
    "assistant last": ([*USER, {"role": "assistant", "content": "2"}], "ends with 'assistant': '2'.*'system'"),
}


@pytest.mark.parametrize("number", [0, 5])
@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_a_bad_prompt_is_found_with_its_row(name, number):
    prompt, message = BAD_PROMPTS[name]
    with pytest.raises(ValueError, match=f"(?s)^train_dataset, row {number}: .*{message}"):
        checked(rows_with(number, prompt=prompt))


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_a_bad_prompt_of_a_stream_is_found_when_it_comes(name):
    prompt, message = BAD_PROMPTS[name]
    checks = checked(stream(rows_with(1, prompt=prompt)), max_steps=2)
    with pytest.raises(ValueError, match=f"(?s)A row of train_dataset: .*{message}"):
        checks.check_rows("train_dataset", rows_with(1, prompt=prompt))


def test_good_prompts_pass():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "1"}}]}
    turns = [*USER, call, {"role": "tool", "content": "2"}]
    checked([{**ROW, "prompt": "1+1="}] * 8)
    checked([{**ROW, "prompt": turns}] * 8, context_placement="system", teacher_template=None)
    checked([{**ROW, "prompt": [{"role": "user", "content": [{"type": "text", "text": "1+1="}]}]}] * 8)


def test_a_stream_is_checked_during_training(model_dir, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path, context="gold", shuffle_dataset=False))
    data = stream(rows_with(1, prompt=[]))
    trainer = build(RLRTTrainer, config, str(model_dir), tokenizer, train_dataset=data)
    with pytest.raises(ValueError, match=r"A row of train_dataset: the prompt is \[\]"):
        trainer.train()


def test_values_are_shortened():
    with pytest.raises(ValueError, match=r"\.\.\.") as caught:
        checked([{**ROW, "prompt": [*USER, {"role": "assistant", "content": "2" * 10_000}]}] * 8)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("value", "kind"), [(2, "int"), (["2"], "list"), ([[1]], "list")])
def test_a_gold_solution_must_be_text(value, kind):
    rows = [{"prompt": USER, "solution": value}] * 8
    with pytest.raises(ValueError, match=rf"train_dataset, row 0: the column 'solution' must hold strings.*\({kind}\)"):
        checked(rows)
    assert checked(rows, context="peer").gold.of(rows[0]) is None  # somebody else's column


def test_a_gold_solution_may_be_chat_messages():
    rows = [{"prompt": USER, "solution": [{"role": "assistant", "content": "2"}]}] * 8
    assert checked(rows).gold.of(rows[0]) == "2"
    two = {"solution": [*USER, {"role": "assistant", "content": "2"}]}
    assert checked(rows).gold.of(two) == "User: 1+1=\n\nAssistant: 2"


@pytest.mark.parametrize("blank", [None, "", " \n"])
def test_all_solutions_blank(blank):
    rows = [{**ROW, "privileged_context": blank}] * 8
    with pytest.raises(ValueError, match=r"'privileged_context' of train_dataset is blank or None in all 8 rows"):
        checked(rows)
    checked(rows, context="peer")


def test_some_solutions_blank_are_counted():
    with pytest.warns(UserWarning, match=r"1 of 8 rows of train_dataset have no gold .*the first is row 3"):
        checked(rows_with(3, privileged_context=None))
    checked(rows_with(3, privileged_context=None), context="peer")  # warnings of the package are errors


def test_images_are_not_decoded(monkeypatch):
    data = Dataset.from_list([{**ROW, "images": [Image.new("RGB", (2, 2))]}] * 8)
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("an image was decoded"))
    checked(data, context_placement="system", teacher_template=None)


# ---- too few rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_rows_than_a_generation_batch(rows):
    data = Dataset.from_list([ROW] * 8).select(range(rows))
    with pytest.raises(ValueError, match=rf"train_dataset has {rows} rows.* 8 / 4 = 2 .*repeat"):
        checked(data)


def test_as_many_rows_as_a_generation_batch_are_enough():
    checked([ROW] * 2)
    checked([ROW] * 2, evaluation=Dataset.from_list([ROW]))
    with pytest.raises(ValueError, match="stream without rows"):
        checked(stream([]))


# ---- the collator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "contexts", "more", "message"),
    [
        (["5+7="], "12", {}, "contexts must be a list.*'12'"),
        ("5+7=", ["12"], {}, "prompts must be a list"),
        (USER, ["12"], {}, "prompts is one conversation.*[[]conversation[]]"),
        ([USER, USER], ["12"], {}, "contexts must have one entry per prompt: 2 prompts, but 1"),
        ([USER], ["12"], {"feedback": ["a", "b"]}, "feedback must have one entry per prompt"),
        ([USER], ["12"], {"feedback": "right"}, "feedback must be a list"),
        ([USER], ["12"], {"prompt_ids": []}, "prompt_ids must have one entry per prompt"),
        ([USER], ["12"], {"tools": [None, None]}, "tools must have one entry per prompt"),
    ],
)
def test_the_collator_wants_lists_of_equal_length(prompts, contexts, more, message, tokenizer):
    collator = PrivilegedContextCollator(tokenizer)
    with pytest.raises(ValueError, match=message):
        collator(prompts, contexts, **more)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{context}{Prompt}", r"'{Prompt}'.*Did you mean '{prompt}'\?"),
        ("{prompt}{contex}", r"'{contex}'.*Did you mean '{context}'\?"),
        ("{prompt} The answer: {answer}", r"'{answer}'.*Did you mean '{context}'\?"),
        ("{context} {feedbak}", r"'{feedbak}'.*Did you mean '{feedback}'\?"),
        ("{context} {xyz}", "'{xyz}', which nothing fills. The placeholders are"),
    ],
)
def test_a_misspelt_placeholder(template, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        RLRTConfig(**distill_settings(tmp_path, teacher_template=template))


@pytest.mark.parametrize(
    "text",
    [
        r"Put it into \boxed{answer}.",
        r"\frac{a}{b}, \sqrt[3]{x}, x^{n}, a_{ij}",
        r"\boxed{\frac{a}{b}} and \text{\mathbf{x}}",
        '{"a": 1}, {}, { word }, {1}, {a b}',
    ],
)
def test_other_braces_are_text(text):
    check_template(text + "{context}", "user")


# ---- functions -------------------------------------------------------------------------------------------------------


def two(rollout, other):
    return "text"


def nothing():
    return "text"


def failing(rollout):
    return rollout.row["no such column"]


def half(rollout):
    return {}["weight"]


def one_of_two(rollout, limit=3):
    return "text"


@pytest.mark.parametrize("function", [two, nothing, "gold"])
def test_a_builder_of_wrong_arity_is_refused_at_construction(function):
    with pytest.raises(ValueError, match="context_builder must"):
        checked([ROW] * 8, builder=function)
    checked([ROW] * 8, builder=one_of_two)
    checked([ROW] * 8, builder=str)


@pytest.mark.parametrize("field", ["context", "row_weight", "antisd_feedback"])
@pytest.mark.parametrize("name", ["two", "nothing"])
def test_so_is_one_that_the_configuration_names(field, name, tmp_path):
    with pytest.raises(ValueError, match=rf"{field}='test_datachecks.{name}' must take one argument, the Rollout"):
        AntiSDConfig(**settings(tmp_path, **{field: f"test_datachecks.{name}"}))


def test_a_builder_that_raises_is_named_with_the_prompt(model_dir, tokenizer, tmp_path):
    config = RLRTConfig(**distill_settings(tmp_path))
    trainer = build(RLRTTrainer, config, str(model_dir), tokenizer, context_builder=failing)
    with pytest.raises(
        ValueError, match=r"context_builder raised KeyError: .* for the rollout of prompt .*'user'"
    ) as c:
        trainer.train()
    assert isinstance(c.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("field", "name"), [("row_weight", "half"), ("antisd_feedback", "failing"), ("context", "failing")]
)
def test_so_are_other_functions_that_raise(field, name, model_dir, tokenizer, tmp_path):
    config = AntiSDConfig(**settings(tmp_path, **{field: f"test_datachecks.{name}"}))
    trainer = build(AntiSDTrainer, config, str(model_dir), tokenizer)
    shown = field.removeprefix("antisd_")
    with pytest.raises(ValueError, match=rf"{shown}.* raised KeyError: .* for the rollout of prompt"):
        trainer.train()


def test_the_nearest_context_is_named():
    with pytest.raises(ValueError, match=r"context='golden'.*Did you mean 'gold'\?"):
        resolve_context("golden")


# ---- environments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trainer", "config"), [(AntiSDTrainer, AntiSDConfig), (OPSDTrainer, OPSDConfig)])
def test_a_self_sampling_environment_has_no_gold_solution(trainer, config, tokenizer, tmp_path):
    with pytest.raises(
        ValueError, match=r"the environment makes the prompts.*'feedback'.*'memory'.*context_builder"
    ) as caught:
        build(
            trainer,
            config(**settings(tmp_path)),
            "no/such-model",
            tokenizer,
            train_dataset=None,
            environment_factory=Riddle,
        )
    assert "column" not in str(caught.value)
