"""What every run logs: counts on completion texts, and statistics of the teacher's signal over all processes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from trl_selfdistill.context.rollout import Context, Rollout
from trl_selfdistill.maths import TokenScores, masked_fill_nan, summary
from trl_selfdistill.record.wording import (
    epistemic_spellings,
    epistemic_substrings,
    epistemic_token_ids,
    epistemic_words,
    mentions_solution,
)


class MetricLog:
    """Turns rollouts and scores into the numbers that a run logs, over the tokens and rows of all processes."""

    FIRST_TOKENS = 10
    EXTREME = 5.0

    def __init__(
        self, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int] = ()
    ) -> None:
        self.accelerator = accelerator
        self._end_ids = tuple(sorted(set(end_ids)))
        pairs = [(text, tokenizer(text, add_special_tokens=False)["input_ids"]) for text in epistemic_spellings()]
        self._epistemic_ids = torch.tensor(epistemic_token_ids(pairs), dtype=torch.long)

    def all_tokens(self, values: Float[Tensor, " N"]) -> Float[Tensor, " M"]:
        """The values of all processes, in one flat tensor."""
        not_a_number: Any = math.nan  # accelerate's annotation says int
        padded = self.accelerator.pad_across_processes(values.float(), dim=0, pad_index=not_a_number)
        gathered: Any = self.accelerator.gather(padded)
        return gathered[~gathered.isnan()]

    def means(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """Mean of each metric over the entries that are not NaN, in all processes. What has no entry is left out."""
        found = {name: summary(self.all_tokens(values.flatten()))["mean"] for name, values in metrics.items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def lengths(self, lengths: list[int]) -> dict[str, float]:
        """The tail of the completions' lengths in tokens, over all processes: 19 of 20 are no longer."""
        ordered = self.all_tokens(torch.tensor(lengths, device=self.accelerator.device)).sort().values
        if not len(ordered):
            return {}
        return {"completions/length_p95": ordered[math.ceil(0.95 * len(ordered)) - 1].item()}

    def rollouts(self, texts: list[str], rollouts: list[Rollout], views: Mapping[str, Any]) -> dict[str, float]:
        """What the batch's texts and contexts were like: shares and means over the rows of all processes.

        `texts` is what the model itself wrote, without the results of its tools. `views` are the teacher's prompts; the
        metrics of every view but the first carry its name.
        """
        rows: dict[str, list[float | bool]] = {
            "self_distill/correct": [rollout.correct for rollout in rollouts],
            "completions/epistemic_substrings": [epistemic_substrings(text) for text in texts],
            "completions/epistemic_words": [epistemic_words(text) for text in texts],
            "completions/mentions_solution": [mentions_solution(text) for text in texts],
        }
        for number, (name, view) in enumerate(views.items()):
            rows |= self._view(f"self_distill/{name}_" if number else "self_distill/", view.contexts, view.prompts)
        device = self.accelerator.device
        return self.means({k: torch.tensor(v, dtype=torch.float32, device=device) for k, v in rows.items()})

    def _view(self, prefix: str, contexts: list[Context | None], prompts: BatchEncoding) -> dict[str, Any]:
        has_context = prompts["has_context"]
        sources = [None if context is None else context.source for context in contexts]
        # Every process has to log the same names.
        named = sorted({source for source in gather_object(sources) if source is not None})
        return {
            f"{prefix}has_teacher": has_context.tolist(),
            **{f"{prefix}context_{name}": [source == name for source in sources] for name in named},
            f"{prefix}context_tokens": masked_fill_nan(prompts["context_tokens"].float(), has_context).tolist(),
            f"{prefix}context_truncated": masked_fill_nan(prompts["context_truncated"].float(), has_context).tolist(),
        }

    def tokens(self, scores: TokenScores, completion_ids: Tensor) -> dict[str, float]:
        """Both entropies and u_t over the valid tokens of rows with a teacher; of all rows where none is asked.

        What a teacher would say is NaN there, and not logged.
        """
        u, mask = scores.log_ratio, scores.mask
        first = mask & (mask.cumsum(1) <= self.FIRST_TOKENS)
        start = mask & (mask.cumsum(1) == 1)
        epistemic = mask & torch.isin(completion_ids, self._epistemic_ids.to(completion_ids.device))
        ratio = summary(self.all_tokens(u[mask]))
        metrics = {
            "self_distill/log_ratio": ratio["mean"],
            "self_distill/log_ratio_std": ratio["std"],
            **self.means(
                {
                    "self_distill/log_ratio_extreme": (u[mask & ~u.isnan()].abs() > self.EXTREME).float(),
                    "self_distill/log_ratio_first10": u[first],
                    "self_distill/log_ratio_start": u[start].abs(),
                    **({"self_distill/log_ratio_epistemic": u[epistemic]} if len(self._epistemic_ids) else {}),
                }
            ),
            **self._ends(scores, completion_ids),
        }
        for side, values in (("teacher", scores.teacher_entropy), ("student", scores.student_entropy)):
            stats = summary(self.all_tokens(values[mask]))
            metrics[f"self_distill/{side}_entropy"] = stats["mean"]
            metrics[f"self_distill/{side}_entropy_median"] = stats["median"]
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def _ends(self, scores: TokenScores, completion_ids: Tensor) -> dict[str, float]:
        """For each end token: its share among the sampled ones, and how likely both sides found it there.

        Only where it was sampled: the mass on an end token that was not would take the model's hidden states.
        """
        ends = scores.mask & torch.isin(completion_ids, torch.tensor(self._end_ids, device=completion_ids.device))
        values = {}
        for token in self._end_ids:
            here = ends & (completion_ids == token)
            values |= {
                f"end_tokens/{token}_share": here[ends].float(),
                f"end_tokens/{token}_student_logp": scores.student_logps[here],
                f"end_tokens/{token}_teacher_logp": scores.teacher_logps[here],
            }
        return self.means(values)
