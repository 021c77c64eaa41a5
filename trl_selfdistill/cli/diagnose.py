"""`trl-selfdistill diagnose`: what each context would teach this model on these problems, before any training."""

from trl_selfdistill.cli.options import Options, add_data, add_model, add_sampling

ALGORITHMS = ("opsd", "rlrt", "antisd")
"""Whose templates there are to choose from. An algorithm without a teacher has none."""


def parser() -> Options:
    made = Options("diagnose", "Compares contexts for the teacher on the same prompts and rollouts.")
    add_model(made)
    add_data(made)
    add_sampling(made, n=4, max_tokens=1024)
    made.set_defaults(limit=16)
    whose = "whose teacher template is used (default: opsd); OPSA has none"
    made.option("algorithm", choices=ALGORITHMS, default="opsd", help=whose)
    made.option("teacher_template", metavar="TEXT", help="with one {context} and one {prompt}, in place of it")
    made.option("context_placement", choices=("user", "system"), default="user", help="default: user")
    made.option("max_context_tokens", type=int, metavar="N", help="longest context")
    made.option("teacher_samples", type=int, default=2, metavar="N", help="samples a problem and context (default: 2)")
    return made


def main(argv: list[str]) -> int:
    """Diagnose, print a table and one sentence of advice, leave diagnosis.json and diagnosis.png. The exit status."""
    arguments = parser().parse_args(argv)
    from trl_selfdistill.cli.diagnose_run import run  # needs torch, which `--help` does not

    return run(arguments)
