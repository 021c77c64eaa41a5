"""What TRL lacks to train with vLLM on a CPU: ways to give vLLM the trained weights. For tests alone.

TRL sends weights to a server over NCCL, which needs GPUs, and writes them into a colocated engine parameter by
parameter, which vLLM's CPU backend has repacked by then. Both ways go through vLLM's own `reload_weights` here. All
else is TRL's and vLLM's own code: the engine, the server, its protocol, and when weights are sent.
"""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from trl.generation import vllm_generation

VLLMGeneration = vllm_generation.VLLMGeneration
sync_of_trl = VLLMGeneration.sync_weights
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def whole(named_params: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copies of all weights. The head of a model with tied embeddings has a name of its own.

    Without it the CPU backend goes on with the old head, which it has packed: 0.01 nats wrong and hard to see.
    """
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in named_params}
    weights.setdefault(HEAD, weights[EMBEDDING].clone())
    return weights


class FileSyncClient(vllm_generation.VLLMClient):
    """TRL's client of a vLLM server, which gives it the weights in a file."""

    def init_communicator(self, device: Any = 0) -> None:
        """There is no NCCL group to make."""

    def update_named_params(self, metadata: Any, named_params: Iterable[tuple[str, Tensor]]) -> None:
        weights = whole(named_params)
        assert {name for name, _, _ in metadata} <= weights.keys()
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(Path(self.model) / "config.json", folder)
            save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            call = {"method": "reload_weights", "kwargs": {"weights_path": folder}, "timeout": 120}
            self._post(f"{self.base_url}/collective_rpc", json=call)


def reload_colocated(generation: Any) -> None:
    """Give the engine in this process the policy's weights."""
    weights = whole(generation._iter_named_params())
    runner = generation.llm.llm_engine.model_executor.driver_worker.model_runner
    runner.reload_weights(weights_iterator=iter(weights.items()))
    generation.llm.reset_prefix_cache()


def sync_on_a_cpu(*, syncs: int | None = None) -> None:
    """Have TRL give vLLM the weights as above, in this process. After `syncs` times it forgets to: they are stale."""
    done = 0

    def sync(generation: Any) -> None:
        nonlocal done
        if syncs is not None and done >= syncs:
            return
        done += 1
        (reload_colocated if generation.mode == "colocate" else sync_of_trl)(generation)

    vllm_generation.VLLMClient = FileSyncClient
    VLLMGeneration.sync_weights = sync
