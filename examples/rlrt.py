"""Train with RLRT (https://huggingface.co/papers/2605.10781).

On a GPU, full fine-tuning:

    python examples/rlrt.py --model_name_or_path Qwen/Qwen3-0.6B --dataset_name trl-lib/DeepMath-103K \
        --reward_funcs accuracy_reward --learning_rate 1e-6 --output_dir Qwen3-0.6B-RLRT

With LoRA, add `--use_peft --lora_r 32 --learning_rate 1e-5`. On a CPU, offline (first `python examples/smollm2.py`):

    python examples/rlrt.py --config recipes/smollm2/rlrt.yaml
"""

from trl_selfdistill import RLRTTrainer
from trl_selfdistill.cli.train import run

if __name__ == "__main__":
    run(RLRTTrainer)
