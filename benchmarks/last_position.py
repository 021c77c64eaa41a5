"""Why `examples/quickstart.py` makes the input of the output matrix contiguous: seconds of a product, with and without.

    OMP_NUM_THREADS=1 python benchmarks/last_position.py

`generate` multiplies the matrix with the last position of each prompt, a slice of the hidden states. Where the matrix
needs no gradient, as with LoRA, torch 2.13 then copies it for each row. Sizes of a batch of rollouts of SmolLM2-135M.
"""

import argparse
import json
from pathlib import Path

import torch
from measure import medians

ROWS, LENGTH, WIDTH, VOCAB = 32, 42, 576, 49152


def main(given: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=VOCAB)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the seconds to this file")
    a = parser.parse_args(given)
    torch.set_num_threads(1)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        head = torch.nn.Linear(WIDTH, a.vocab, bias=False, dtype=dtype).requires_grad_(False)
        last = torch.randn(ROWS, LENGTH, WIDTH, dtype=dtype)[:, -1:]
        inputs = {"slice": last, "contiguous": last.contiguous()}
        work = {name: lambda given=given, head=head: head(given) for name, given in inputs.items()}
        found[str(dtype).removeprefix("torch.")] = medians(work, 1, "cpu")
    print("| dtype | a slice, seconds | contiguous, seconds |\n|---|---|---|")
    for dtype, took in found.items():
        print(f"| {dtype} | {took['slice']:.3f} | {took['contiguous']:.3f} |")
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
