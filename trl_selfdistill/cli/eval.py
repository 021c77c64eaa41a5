"""`trl-selfdistill eval`: how often a model is right, with intervals, how long it is, and how much it deliberates."""

from trl_selfdistill.cli.options import Options, add_data, add_model, add_sampling


def parser() -> Options:
    made = Options("eval", "pass@1 and pass@k with intervals, length, truncation and epistemic words of a model.")
    add_model(made)
    add_data(made)
    add_sampling(made, n=8, max_tokens=1024)
    made.option("thinking", choices=("on", "off", "both"), help="enable_thinking of the chat template; default: unset")
    made.option("use_vllm", action="store_true", help="generate with vLLM, which must be installed")
    return made


def main(argv: list[str]) -> int:
    """Evaluate, print a table, and leave samples.jsonl, settings.json and results.json. The exit status."""
    arguments = parser().parse_args(argv)
    from trl_selfdistill.cli.eval_run import run  # needs torch, which `--help` does not

    return run(arguments)
