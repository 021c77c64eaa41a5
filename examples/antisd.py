"""Train with AntiSD (https://huggingface.co/papers/2605.11609).

On GPUs, the paper's settings (32 prompts with 8 rollouts each):

    accelerate launch examples/antisd.py --model_name_or_path Qwen/Qwen3-4B-Instruct-2507 \
        --dataset_name trl-lib/DeepMath-103K --reward_funcs accuracy_reward --learning_rate 1e-6 --num_generations 8 \
        --max_completion_length 32768 --max_steps 200 --output_dir Qwen3-4B-AntiSD

The baseline that it is compared with: `--antisd_direction toward`. On a CPU, offline (first `python
examples/smollm2.py`):

    python examples/antisd.py --config recipes/smollm2/antisd.yaml
"""

from trl_selfdistill import AntiSDTrainer
from trl_selfdistill.cli.train import run

if __name__ == "__main__":
    run(AntiSDTrainer)
