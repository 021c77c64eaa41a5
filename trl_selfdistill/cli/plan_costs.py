"""Seconds and bytes per GPU of one optimiser step, as formulas. `docs/scaling.md` explains them."""

from dataclasses import dataclass, replace

from trl_selfdistill.cli.flops import UNTAUGHT, Shape, completion_forward, head_flops, student_flops, teacher_flops
from trl_selfdistill.cli.memory import Memory, estimate_memory
from trl_selfdistill.cli.plan_tables import GPU, GPUS_PER_NODE, Decoder

HALF, FULL = 2, 4
"""Bytes of a bfloat16 and of a float32 number."""
BITS4 = 0.53
"""Bytes of a weight in 4 bits, with the constants of its block."""
CHUNK_BYTES = 1.5 * 2**30
"""Logits that the fused op keeps at a time on CUDA (`ops.projection`)."""


@dataclass(frozen=True, slots=True)
class Setup:
    """A way to spread the work: the name of an Accelerate configuration, and what is shared between processes."""

    name: str
    method: str
    """full, lora or qlora."""
    weights_shared: bool = False
    states_shared: bool = False
    halved: bool = False
    """Trained weights are bfloat16, and their float32 copy lies with the optimiser's states (DeepSpeed)."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be trained, on what. `rows`: rollouts per GPU and step; `micro`: those in one forward;
    `generated`: those that are generated at once."""

    model: Decoder
    gpu: GPU
    gpus: int
    algorithm: str
    shape: Shape
    rows: int
    micro: int
    generated: int
    vllm: int = 0
    """GPUs that share one copy of the weights in vLLM; 0: Transformers generates."""
    compute_share: float = 0.4
    memory_share: float = 0.7
    """Shares of the peaks of arithmetic and of memory traffic that are reached."""


@dataclass(frozen=True, slots=True)
class Seconds:
    generation: float
    student: float
    teacher: float
    head: float
    communication: float

    @property
    def total(self) -> float:
        return self.generation + self.student + self.teacher + self.head + self.communication


def trained(job: Job, setup: Setup) -> int:
    """Weights that are trained."""
    return job.model.weights if setup.method == "full" else job.model.sizes.adapter


def stored_bytes(job: Job, setup: Setup) -> float:
    """All weights as they are stored: float32 where they are trained, else bfloat16 or 4 bits."""
    model = job.model
    if setup.method == "full":
        return (HALF + FULL / job.gpus if setup.halved else FULL) * model.weights
    body = (BITS4 if setup.method == "qlora" else HALF) * model.sizes.body
    return body + HALF * (model.weights - model.sizes.body) + FULL * model.sizes.adapter


def own_shape(job: Job) -> Shape:
    """The step of one GPU. Its teacher's prompts: once per group and micro-batch, so as many as `micro` allows."""
    return replace(job.shape, rollouts=min(job.micro, job.shape.rollouts))


def seconds(job: Job, setup: Setup) -> Seconds:
    """Seconds of one optimiser step. Nothing overlaps, and the optimiser takes no time."""
    sizes, lora, group = job.model.sizes, setup.method != "full", own_shape(job)
    times = job.rows / group.rollouts / (job.gpu.flops * job.compute_share)
    taught = job.algorithm not in UNTAUGHT
    return Seconds(
        generation=generation_seconds(job, setup),
        student=times * student_flops(sizes, group, lora=lora, checkpointing=True),
        teacher=times * teacher_flops(sizes, group, lora=lora, shared=True)[0] if taught else 0.0,
        head=times * head_flops(sizes, job.algorithm, group, lora=lora, triton=True),
        communication=communication_bytes(job, setup) / link(job),
    )


def generation_seconds(job: Job, setup: Setup) -> float:
    """Arithmetic, or reading weights and cache for each token, whichever is slower, for each batch that is generated.

    FSDP2 without vLLM gathers the weights for every token.
    """
    model, length = job.model, job.shape.completion
    layers, head = completion_forward(
        model.sizes, job.shape, job.shape.prompt, adapter=False, shared=False, rollouts=job.generated
    )
    arithmetic = (layers + head) / (job.gpu.flops * job.compute_share)
    cache = job.generated * token_cache(model) * (job.shape.prompt + length / 2)
    reading = HALF * model.weights / max(1, job.vllm) + cache
    traffic = length * reading / (job.gpu.bandwidth * job.memory_share)
    gathered = (
        length * others(job) * gather_bytes(job, setup) / link(job) if setup.weights_shared and not job.vllm else 0
    )
    return job.rows / job.generated * (max(arithmetic, traffic) + gathered)


def token_cache(model: Decoder) -> int:
    """Bytes of keys and values of one token."""
    return 2 * HALF * model.sizes.layers * model.keys


def gather_bytes(job: Job, setup: Setup) -> float:
    """All weights as they travel."""
    return stored_bytes(job, setup) if setup.method == "qlora" else HALF * job.model.weights


def others(job: Job) -> float:
    """The share that lies on other GPUs."""
    return (job.gpus - 1) / job.gpus


def link(job: Job) -> float:
    return job.gpu.link if job.gpus <= GPUS_PER_NODE else job.gpu.network


def communication_bytes(job: Job, setup: Setup) -> float:
    """Bytes that each GPU receives in a step, generation apart."""
    gradient, batches = FULL * trained(job, setup), job.rows / job.micro
    if setup.weights_shared:  # gathered for forward, backward and teacher; gradients are summed for each micro-batch
        passes = 2 if job.algorithm in UNTAUGHT else 3
        found = batches * (passes * gather_bytes(job, setup) + gradient)
    elif setup.states_shared:  # gradients are summed where their states lie, then the new weights are sent
        found = HALF * trained(job, setup) * (batches + 1)
    else:
        found = 2 * gradient
    sent = HALF * job.model.weights if job.vllm and setup.weights_shared else 0
    return others(job) * (found + sent)


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes of one GPU: what stays, and the peaks of the two phases on top of it."""

    states: Memory
    training: float
    generation: float

    @property
    def peak(self) -> float:
        kept = self.states.total - self.states.head
        return kept + max(self.training, self.generation)


def memory(job: Job, setup: Setup) -> Bytes:
    """Bytes of one GPU at its peak."""
    model, n = job.model, job.gpus
    states = estimate_memory(
        weight_bytes=stored_bytes(job, setup),
        trainable=trained(job, setup),
        dtype_bytes=FULL,
        optimizer="adamw_torch",
        vocab=model.sizes.vocab,
        head_rows=int(min(CHUNK_BYTES // (10 * model.sizes.vocab), job.micro * job.shape.completion)),
        weight_shards=n if setup.weights_shared else 1,
        state_shards=n if setup.states_shared else 1,
    )
    copy = working_weights(job, setup)
    tokens = job.micro * (job.shape.prompt + job.shape.completion)
    training = copy + training_bytes(model, tokens, HALF, states.head)
    cached = job.generated * (job.shape.prompt + job.shape.completion) * token_cache(model)
    generation = cached + (HALF * model.weights / job.vllm if job.vllm else copy)
    return Bytes(states, training, generation)


def working_weights(job: Job, setup: Setup) -> float:
    """The copy that products read: autocast's of trained weights, or two gathered layers, embedding and head."""
    model = job.model
    if setup.weights_shared:
        return HALF * (2 * model.sizes.body / model.sizes.layers + model.weights - model.sizes.body)
    return HALF * model.weights if setup.method == "full" and not setup.halved else 0.0


def training_bytes(model: Decoder, tokens: int, size: int, head: float) -> float:
    """Activations with gradient checkpointing: the input of each layer, and on top of them one layer or the head."""
    sizes = model.sizes
    layer = 6 * sizes.hidden + 3 * sizes.attention + 2 * model.keys + 4 * model.inner
    return size * tokens * sizes.layers * sizes.hidden + max(size * tokens * layer, head)
