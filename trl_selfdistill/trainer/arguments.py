"""The arguments of all trainers, as `help(RLRTTrainer)` shows them."""

ARGUMENTS = """
Those of [`~trl.GRPOTrainer`], and `context_builder`.

Args:
    model (`str`, `PreTrainedModel` or `PeftModel`): the policy: a name on the Hub, a folder, or a model.
    reward_funcs (function, `str`, `PreTrainedModel`, or a list of them): as in GRPO. The first one, or the one that
        `args.correctness_reward` names, tells which rollouts are correct. OPSD needs none.
    args (`SelfDistillConfig` or `GRPOConfig`): the configuration, such as `RLRTConfig` for `RLRTTrainer`. A plain
        `GRPOConfig` gets the algorithm's defaults, and so does `None`.
    train_dataset (`Dataset` or `IterableDataset`): rows with `prompt` and, for contexts that need it, the gold
        solution in `args.privileged_context_column`.
    eval_dataset (`Dataset`, `IterableDataset` or a dictionary of them): likewise, for evaluation.
    processing_class (`PreTrainedTokenizerBase` or `ProcessorMixin`): the tokenizer or processor; loaded with the model
        where it is not given.
    reward_processing_classes (tokenizer or a list): tokenizers of reward models.
    callbacks (list of `TrainerCallback`): more callbacks.
    optimizers (tuple): an optimizer and a scheduler in place of the default ones.
    quantization_config (`BitsAndBytesConfig`): loads the policy in 4 or 8 bits, for QLoRA.
    peft_config (`PeftConfig`): trains an adapter.
    tools (list of functions): what the policy may call.
    rollout_func (function): makes the completions in place of the trainer. A field "feedback" of what it returns is
        what it has to say of each completion.
    environment_factory (function): makes the environments in which rollouts take place.
    context_builder (function `Rollout -> Context | str | None`): what the teacher is shown, in place of `args.context`.

Raises `ValueError` for what cannot work, naming the field and the way out.
"""
