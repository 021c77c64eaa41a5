"""Train with OPSD (https://huggingface.co/papers/2601.18734). No reward is needed; the dataset has gold solutions.

On a GPU, with LoRA, the paper's settings:

    python examples/opsd.py --model_name_or_path Qwen/Qwen3-1.7B --dataset_name siyanzhao/Openthoughts_math_30k_opsd \
        --privileged_context_column solution --use_peft --lora_r 64 --lora_alpha 128 --lora_target_modules all-linear \
        --learning_rate 5e-6 --max_grad_norm 0.1 --max_completion_length 1024 --temperature 1.1 --top_p 0.95 \
        --top_k 20 --max_steps 100 --output_dir Qwen3-1.7B-OPSD

The published clip is one flag away: `--opsd_entry_clip 0.05 --opsd_token_clip inf`. On a CPU, offline (first `python
examples/smollm2.py`):

    python examples/opsd.py --config recipes/smollm2/opsd.yaml
"""

from trl_selfdistill import OPSDTrainer
from trl_selfdistill.cli.train import run

if __name__ == "__main__":
    run(OPSDTrainer)
