"""What the papers claim, one by one, and the contrast that decides each. `verdicts` decides.

Contrasts and directions were fixed before any result was read.

`source` names the paper and its place: a table, a figure, a section. Where only a summary of the paper could be read,
it says so. Claims of this package have its name.
"""

from dataclasses import dataclass

START = "start"
"""In the place of a second method: the policy before training."""
MORE, LESS, CLOSE = "more", "less", "close"


@dataclass(frozen=True)
class Contrast:
    """`ours` minus `theirs` in one metric, in the same worlds."""

    ours: str
    theirs: str
    direction: str
    metric: str = "pass1"
    end: bool = False
    """At the last step; otherwise the area under the curve."""


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper."""

    says: str
    source: str
    contrast: Contrast | None = None
    lacks: str = ""
    """Without a contrast: what the tasks lack that the claim is about."""


RLRT, ANTISD, OPSD = "RLRT 2605.10781", "AntiSD 2605.11609", "OPSD 2601.18734"
SDPO, RLSD, DEGRADE = "SDPO 2601.20802", "RLSD 2604.03128", "2603.24472"
PACKAGE, CONTROL = "this package", "a control, no paper's claim"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "RLRT explores more: its right completions take more ways than GRPO's",
        f"{RLRT}, introduction and the analysis of lifted tokens (summary)",
        Contrast("rlrt", "grpo", MORE, "routes"),
    ),
    Claim("RLRT is right more often than GRPO", f"{RLRT}, main table", Contrast("rlrt", "grpo", MORE)),
    Claim(
        "Without its gate RLRT ends with a higher entropy (there: it diverges)",
        f"{RLRT}, Fig. 9a",
        Contrast("rlrt_ungated", "rlrt", MORE, "entropy", end=True),
    ),
    Claim("RLSD is right more often than GRPO", f"{RLSD}, results table", Contrast("rlsd_gold", "grpo", MORE)),
    Claim("RLCSD is right more often than GRPO", "RLCSD 2606.11709, main table", Contrast("rlcsd", "grpo", MORE)),
    Claim("AntiSD is right more often than GRPO", f"{ANTISD}, Table 1", Contrast("antisd", "grpo", MORE)),
    Claim(
        "Without its gate AntiSD collapses by the end",
        f"{ANTISD}, Tables 3 and 6",
        Contrast("antisd_open", "antisd", LESS, end=True),
    ),
    Claim(
        "Toward the teacher is worse than away from it", f"{ANTISD}, Table 1", Contrast("antisd_toward", "antisd", LESS)
    ),
    Claim("OPSD is right more often than GRPO", f"{OPSD}, Table 2", Contrast("opsd_gold", "grpo", MORE)),
    Claim(
        "A clip of each vocabulary entry is better than none",
        f"{OPSD}, Fig. 4",
        Contrast("opsd_entry_clip", "opsd_unclipped", MORE),
    ),
    Claim("A clip of the token is better than one of each entry", PACKAGE, Contrast("opsd", "opsd_entry_clip", MORE)),
    Claim(
        "The solution of another problem still teaches something",
        "OP²SD 2608.09228 (summary)",
        Contrast("opsd_other_gold", START, MORE, end=True),
    ),
    Claim(
        "The solution of another problem is close to the right one",
        "OP²SD 2608.09228 (summary)",
        Contrast("opsd_other_gold", "opsd_gold", CLOSE),
    ),
    Claim("No reference at all is close to the right one", CONTROL, Contrast("opsd_none", "opsd_gold", CLOSE)),
    Claim(
        "Pushing down one's own unlikely tokens, without a teacher, beats distillation",
        "OPSA 2608.31046 (summary)",
        Contrast("opsa", "opsd", MORE),
    ),
    Claim("SDPO is right more often than GRPO", f"{SDPO}, Table 3", Contrast("sdpo", "grpo", MORE)),
    Claim("A live teacher is worse than an averaged one", f"{SDPO}, Table 4", Contrast("sdpo_live", "sdpo", LESS)),
    Claim(
        "A frozen teacher is worse than an averaged one; on mathematics 2603.24472, section 5.4, has the opposite",
        f"{SDPO}, Table 4",
        Contrast("sdpo_base", "sdpo", LESS),
    ),
    Claim(
        "With KL(teacher‖student), too, a live teacher is worse than an averaged one",
        "SDFT 2601.19897 (summary)",
        Contrast("opsd_live", "opsd_ema", LESS),
    ),
    Claim(
        "With KL(teacher‖student), too, a frozen teacher is worse than an averaged one",
        "SDFT 2601.19897 (summary)",
        Contrast("opsd", "opsd_ema", LESS),
    ),
    Claim(
        "A peer for the whole group is close to one for each rollout", PACKAGE, Contrast("rlrt", "rlrt_own_peer", CLOSE)
    ),
    Claim(
        "Prompts that are solved half of the time deserve the largest weight",
        "PACED 2603.11178, abstract (summary)",
        Contrast("opsd_paced", "opsd", MORE),
    ),
    Claim(
        "A teacher that differs in its thinking flags alone gives much of the gain",
        "2609.20612 (summary)",
        lacks="no thinking mode",
    ),
    Claim(
        "A thinking teacher for a student that does not think is the best pair",
        f"{OPSD}, Table 5",
        lacks="no thinking mode",
    ),
    Claim(
        "Style tokens have most of the divergence",
        f"{OPSD}, Table 5",
        lacks="no style: each token is a number or a sign",
    ),
    Claim(
        "Distillation toward a rich context removes words of doubt",
        f"{DEGRADE}, Table 1 and section 5",
        lacks="no words, so none of doubt",
    ),
    Claim(
        "Distillation wins on few kinds of problems and hurts elsewhere",
        f"{DEGRADE}, section 6",
        lacks="one kind of problem a task",
    ),
    Claim("Responses get several times shorter", f"{SDPO}, Table 8", lacks="a right completion has a fixed length"),
    Claim(
        "Without its gate RLRT's completions grow without bound",
        f"{RLRT}, Fig. 9a",
        lacks="a right completion has a fixed length, and the limit is near",
    ),
    Claim(
        "Distillation toward the reference leaks: completions speak of it",
        f"{RLSD}, analysis",
        lacks="no words to speak of it with",
    ),
)
