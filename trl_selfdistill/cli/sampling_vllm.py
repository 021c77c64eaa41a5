"""Generation with vLLM, for evaluations that take long. Not measured: no machine with vLLM was at hand."""

from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig
from trl.import_utils import is_vllm_available

from trl_selfdistill.cli.errors import UserError
from trl_selfdistill.cli.sampling import Sampling


class VllmGenerator:
    """A completion's seed is its chunk's and its place in there. `engine` is a `vllm.LLM`."""

    def __init__(self, engine: Any, sampling: Sampling, end_ids: set[int]) -> None:
        self.end_ids = end_ids
        self._engine, self._sampling = engine, sampling

    def __call__(self, prompts: Sequence[list[int]], seed: int) -> list[list[int]]:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        drawn = self._sampling
        settings = [
            SamplingParams(
                max_tokens=drawn.max_tokens,
                temperature=drawn.temperature,
                top_p=drawn.top_p,
                top_k=drawn.top_k,
                seed=(seed + row) % 2**31,
                stop_token_ids=sorted(self.end_ids),
            )
            for row in range(len(prompts))
        ]
        out = self._engine.generate([{"prompt_token_ids": ids} for ids in prompts], settings)
        return [list(each.outputs[0].token_ids) for each in out]


def make_vllm_generator(
    name: str, tokenizer: Any, sampling: Sampling, *, revision: str, dtype: str, trust_remote_code: bool
) -> VllmGenerator:
    """The generator of a whole model, not of an adapter. Raises `UserError` where vLLM is not installed."""
    if not is_vllm_available():
        raise UserError("--use_vllm: vLLM is not installed. pip install 'trl-selfdistill[vllm]', or leave it out.")
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    own = GenerationConfig.from_pretrained(name, revision=revision).eos_token_id
    listed = own if isinstance(own, list) else [own]
    ends = {token for token in (tokenizer.eos_token_id, *listed) if token is not None}
    options = {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code}
    return VllmGenerator(LLM(name, seed=sampling.seed, generation_config="vllm", **options), sampling, ends)
