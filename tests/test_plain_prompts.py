"""Plain text and what a tokenizer puts around it: the teacher's prompt begins and ends as the student's does."""

import pytest
from tiny_policy import build_tokenizer
from tokenizers import processors

from trl_selfdistill import PrivilegedContextCollator
from trl_selfdistill.context.encoding import plain_frame

FRAMES = {
    "nothing": "$A",
    "an end": "$A <|end|>",
    "a beginning": "<|user|> $A",
    "both": "<|user|> $A <|end|>",
    "two of each": "<|system|> <|user|> $A <|assistant|> <|end|>",
}


def framed(frame: str, **special: str):
    tokenizer = build_tokenizer()
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.all_special_tokens if token in frame]
    ids += [(t, tokenizer.convert_tokens_to_ids(t)) for t in frame.split() if t != "$A" and t not in dict(ids)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=ids)
    tokenizer.add_special_tokens(special)
    return tokenizer


def tokens(out) -> list[int]:
    return out["teacher_prompt_ids"][0][out["teacher_prompt_mask"][0].bool()].tolist()


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("placement", ["user", "system"])
@pytest.mark.parametrize("own_ids", [True, False])
def test_the_teachers_plain_prompt_stands_where_the_students_does(frame, placement, own_ids):
    tokenizer = framed(FRAMES[frame])
    template = "[{context}]{prompt}" if placement == "user" else "[{context}]"
    collate = PrivilegedContextCollator(tokenizer, teacher_template=template, context_placement=placement)
    student = tokenizer("5+7=")["input_ids"]
    given = {"prompt_ids": [student]} if own_ids else {}
    gap = "\n\n" if placement == "system" else ""
    front, end = FRAMES[frame].replace(" ", "").split("$A")
    assert tokenizer.decode(tokens(collate(["5+7="], ["12"], **given))) == f"{front}[12]{gap}5+7={end}"
    assert tokens(collate(["5+7="], [None], **given)) == student
    assert tokens(collate([""], [None])) == tokenizer("")["input_ids"]


def test_a_beginning_that_also_stands_in_the_prompt_stays_where_it_is():
    tokenizer = framed("<|user|> $A", bos_token="<|user|>")
    collate = PrivilegedContextCollator(tokenizer, teacher_template="[{context}]", context_placement="system")
    assert tokenizer.decode(tokens(collate(["a<|user|>b"], ["12"]))) == "<|user|>[12]\n\na<|user|>b"


def test_a_tokenizer_that_cannot_be_framed_is_refused():
    class Shouting:
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [1, 2] if add_special_tokens else [3]}

    with pytest.raises(ValueError, match=r"Shouting.*conversational"):
        plain_frame(Shouting())
