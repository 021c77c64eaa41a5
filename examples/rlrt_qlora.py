# %% [markdown]
# # RLRT on one 16 GB GPU
#
# Qwen3-1.7B in 4 bits with a LoRA adapter, trained with RLRT: on right answers, the tokens that a teacher would not
# have predicted get more of the credit. The teacher is the model itself, shown another right answer to the same
# problem. It needs no memory of its own.
#
# This notebook is made from `examples/rlrt_qlora.py` by `python examples/make_notebook.py`.

# %% [markdown]
# ## Install
#
# The package is not on PyPI yet. This installs it from its repository, with the extras for 4-bit weights and for
# checking answers.

# %% tags=["install"]
# %pip install "trl-selfdistill[qlora,math] @ git+https://github.com/trl-selfdistill/trl_selfdistill"

# %% [markdown]
# ## Model and data
#
# Problems with a checkable answer are all that RLRT needs. A gold solution in words is not needed.

# %% tags=["parameters"]
from datasets import load_dataset
from trl.rewards import accuracy_reward

MODEL = "Qwen/Qwen3-1.7B"
DATASET = load_dataset("trl-lib/DeepMath-103K", split="train").select(range(2000))
REWARD = accuracy_reward
STEPS = 100
PROMPTS_PER_STEP = 4
COMPLETION_TOKENS = 1024
DTYPE = "bfloat16"

# %% [markdown]
# ## Settings
#
# - 8 rollouts per problem: a right one among them is shown to the teacher of the others.
# - `rlrt_clip=0.2` is the paper's value for models that think; 0.5 for instruction models, 1.0 for base models.
# - `lora_dropout=0` saves RLRT a pass over the rollouts.
# - One problem's rollouts at a time go through the model (`per_device_train_batch_size=8`); gradients are accumulated.

# %%
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from trl_selfdistill import RLRTConfig, RLRTTrainer

quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=getattr(torch, DTYPE),
)
adapter = LoraConfig(r=32, lora_alpha=64, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
FOLDER = "Qwen3-1.7B-RLRT"
settings = RLRTConfig(
    output_dir=FOLDER,
    rlrt_strength=0.5,
    rlrt_clip=0.2,
    num_generations=8,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=PROMPTS_PER_STEP,
    max_completion_length=COMPLETION_TOKENS,
    learning_rate=1e-5,
    max_steps=STEPS,
    bf16=DTYPE == "bfloat16",
    use_cpu=not torch.cuda.is_available(),
    save_steps=50,
    logging_steps=1,
    log_token_signals=True,
    report_to="none",
)

# %% [markdown]
# ## Train
#
# Watch `reward`, and `self_distill/has_teacher`: the share of rollouts whose group has a right answer to show. Where it
# stays at 0, RLRT is plain GRPO.

# %%
trainer = RLRTTrainer(
    model=MODEL,
    reward_funcs=REWARD,
    args=settings,
    train_dataset=DATASET,
    quantization_config=quantization,
    peft_config=adapter,
)
trainer.train()

# %% [markdown]
# ## What the teacher said
#
# Each row of the file is a completion. `log_ratio` is u: how much more likely the teacher finds the token than the
# student did. RLRT gives more credit to right answers' tokens with a low u.

# %%
from pathlib import Path

import pyarrow.parquet

newest = sorted(Path(FOLDER, "token_signals").glob("step_*.parquet"))[-1]
row = pyarrow.parquet.read_table(newest).slice(0, 1).to_pylist()[0]
print("reward", row["reward"], "- the teacher was shown:", row["context"])


def shown(number):
    return "-" if number is None else f"{number:+.2f}"


for token, u, weight in zip(row["tokens"][:30], row["log_ratio"], row["weight"], strict=False):
    print(f"{token!r:16} u = {shown(u):>6}   weight = {shown(weight):>6}")

# %% [markdown]
# ## Save and try
#
# The folder holds the adapter and a model card that says how it was trained. `trainer.push_to_hub()` publishes it.

# %%
trainer.save_model()
trainer.create_model_card()
question = trainer.processing_class.apply_chat_template(
    DATASET[0]["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
).to(trainer.model.device)
trainer.model.eval()
answer = trainer.model.generate(**question, max_new_tokens=COMPLETION_TOKENS)
print(trainer.processing_class.decode(answer[0], skip_special_tokens=True))
