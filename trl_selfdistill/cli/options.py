"""Options that `eval` and `diagnose` share. Plain argparse: `--help` needs no torch.

Names are those of the training commands; `--model`, `--dataset`, `--n` and a few more are short forms of them.
"""

import argparse
from typing import Any

from trl_selfdistill.cli.errors import UserError


class Options(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose options may be written with `-` or `_`."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"trl-selfdistill {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> Any:
        raise UserError(message)

    def option(self, name: str, *short: str, **settings: Any) -> None:
        """An option `--name` with its short forms. A parent parser's field has the long name."""
        names = [f"--{each}" for each in (name, *short)]
        hyphens = [f"--{each.replace('_', '-')}" for each in (name, *short) if "_" in each]
        self.add_argument(*names, *hyphens, dest=name, **settings)


def add_model(options: Options) -> None:
    options.option("model_name_or_path", "model", required=True, metavar="M", help="a folder or a name on the Hub")
    options.option("model_revision", "revision", default="main", metavar="R", help="branch, tag or commit on the Hub")
    options.option("dtype", default="auto", help="of the weights (default: auto, as they were saved)")
    options.option("attn_implementation", metavar="A", help="such as sdpa or flash_attention_2")
    options.option("trust_remote_code", action="store_true", help="run the code that comes with a model")


def add_data(options: Options) -> None:
    options.option("dataset_name", "dataset", required=True, metavar="D", help="a file, a folder or a name on the Hub")
    options.option("dataset_config", metavar="C", help="the configuration of a dataset on the Hub")
    options.option(
        "dataset_test_split", "split", metavar="S", help="default: test where there is one, else the only one"
    )
    options.option("prompt_column", metavar="C", help="the column with the problem's text")
    options.option("solution_column", metavar="C", help="the column with the gold solution")
    options.option("system_prompt", metavar="TEXT", help="a system message in front of every prompt")
    options.option("row_function", metavar="a.b.f", help="a function that makes a row of each row")
    options.option("limit", type=int, metavar="P", help="the first P problems alone")
    options.option(
        "reward_funcs",
        nargs="+",
        default=["accuracy_reward"],
        metavar="R",
        help="names of TRL's rewards or dotted paths (default: accuracy_reward)",
    )
    options.option("correctness_reward", metavar="R", help="the reward that tells correctness (default: the first)")
    options.option("correctness_threshold", type=float, default=1.0, metavar="X", help="default: 1.0")


def add_sampling(options: Options, *, n: int, max_tokens: int) -> None:
    options.option("num_generations", "n", type=int, default=n, metavar="N", help=f"samples a problem (default: {n})")
    options.option(
        "max_completion_length",
        "max_tokens",
        type=int,
        default=max_tokens,
        metavar="T",
        help=f"tokens a completion (default: {max_tokens})",
    )
    options.option("temperature", type=float, default=1.0, metavar="X", help="default: 1.0; 0 takes the best token")
    options.option("top_p", type=float, default=1.0, metavar="X", help="default: 1.0")
    options.option("top_k", type=int, default=0, metavar="K", help="default: 0, all tokens")
    options.option("seed", type=int, default=0, metavar="S", help="default: 0")
    options.option(
        "per_device_eval_batch_size", "batch_size", type=int, metavar="B", help="completions at a time (default: 32)"
    )
    options.option("output_dir", metavar="DIR", help="default: a folder named after the model and the settings")
