"""How a question about a page becomes token ids: the same in preparing, in evaluation and for whoever uses the adapter.

Every sample is tokenised whole through the tokenizer's own chat template; nothing is glued together from pieces. Which
turns a template accepts is found by trying it. A tokenizer without a template gets `Layout.PLAIN`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from jinja2 import TemplateError

from trial_trainer.errors import PromptError
from trial_trainer.pages.answers import question as question_of_page
from trial_trainer.pages.answers import question_of_text

Message = dict[str, str]

SYSTEM = "Answer with the value from the page, nothing else."
"""Short, since its tokens are paid for on every page."""
SYSTEM_OF_TEXT = "Answer with the value from the text, or none."
"""The same for a text that is of no page."""


class Layout(StrEnum):
    """How the instruction, the page and the question are said. The first that a template accepts is taken."""

    TWO_TURNS = "TwoTurns"
    """A system turn, a user turn with the page, a user turn with the question."""
    ONE_TURN = "OneTurn"
    """A system turn, and one user turn: the page, a blank line, the question."""
    TWO_TURNS_WITHOUT_SYSTEM = "TwoTurnsWithoutSystem"
    """As `TWO_TURNS`, with the instruction and a blank line in front of the page."""
    ONE_TURN_WITHOUT_SYSTEM = "OneTurnWithoutSystem"
    """As `ONE_TURN`, with the instruction and a blank line in front of the page."""
    PLAIN = "Plain"
    """No template: the instruction, the page and the question as paragraphs, then the line ``Answer:``; the answer
    stands on the next line and ends with the tokenizer's end of sequence."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One sample as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """Ends with the end of turn."""


class Prompter:
    """Turns messages into token ids with one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Find the layout and the end of turn.

        Raises:
            PromptError: where the template refuses every layout, or nothing ends an answer.
        """
        self._tokenizer = tokenizer
        self._special = {
            token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self.layout = self._find_layout()
        self._lead, self._overhang = self._find_lead()
        self.end_of_turn = self._find_end_of_turn()
        eos = tokenizer.eos_token_id
        self.stops: tuple[int, ...] = (self.end_of_turn,) + ((eos,) if eos not in (None, self.end_of_turn) else ())
        """Ids at any of which generation stops."""

    def clean(self, text: str) -> str:
        """Take the tokenizer's special tokens out of a text, so that no page can end a turn."""
        for token in self._special:
            if token in text:
                text = text.replace(token, " ")
        return text

    @property
    def warning(self) -> str | None:
        """What whoever asks with the template's own generation prompt must know."""
        if not self._overhang:
            return None
        return (
            f"the chat template's generation prompt ends with {self._overhang!r}, which no trained answer follows: ask "
            "with trial_trainer.dataset.prompts, or take it off"
        )

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Count the tokens of each text as it stands within a turn."""
        if not texts:
            return []
        return [len(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def ask(self, page: str, question: str) -> list[Message]:
        """Build the messages of one question about a page; the page's text must be clean."""
        return _arrange(self.layout, SYSTEM, page, question)

    def ask_text(self, text: str, question: str) -> list[Message]:
        """Build the messages of one question about a text that is of no page; it must be clean."""
        return _arrange(self.layout, SYSTEM_OF_TEXT, text, question)

    def pose(self, attribute: str, text: str, *, is_page: bool) -> list[Message]:
        """Build the messages that ask a page's text, or a text that is of no page, for an attribute."""
        if is_page:
            return self.ask(text, question_of_page(attribute))
        return self.ask_text(text, question_of_text(attribute))

    def encode_prompts(self, conversations: Sequence[list[Message]]) -> list[tuple[int, ...]]:
        """Tokenise conversations up to where the answer begins."""
        if not conversations:
            return []
        return [tuple(ids) for ids in self._encode(conversations, is_prompt=True)]

    def encode(self, conversations: Sequence[list[Message]], answers: Sequence[str]) -> list[Encoded]:
        """Tokenise conversations with their answers, each whole.

        Raises:
            PromptError: where the template refuses a conversation, leaves a turn out, or does not render its prompt as
                its beginning.
        """
        for roles in {tuple(message["role"] for message in conversation) for conversation in conversations}:
            self._refuse_if_left_out(roles)
        prompts = self.encode_prompts(conversations)
        closed = [[*c, {"role": "assistant", "content": a}] for c, a in zip(conversations, answers, strict=True)]
        wholes = self._encode(closed, is_prompt=False) if closed else []
        rows = zip(prompts, wholes, conversations, closed, strict=True)
        return [
            self._divide(
                prompt, tuple(whole) if whole[: len(prompt)] == list(prompt) else self._join(prompt, whole, *texts)
            )
            for prompt, whole, *texts in rows
        ]

    def _refuse_if_left_out(self, roles: tuple[str, ...]) -> None:
        if self.layout is Layout.PLAIN:
            return
        parts = [f"Message {number}1." for number in range(len(roles))]
        messages = [{"role": role, "content": part} for role, part in zip(roles, parts, strict=True)]
        rendered = self._try_to_render([*messages, {"role": "assistant", "content": "Answer 34."}])
        missing = [role for role, part in zip(roles, parts, strict=True) if part not in rendered.text]
        if rendered.refusal is None and missing:
            raise PromptError(f"the chat template must render every turn, but leaves out that of role {missing[0]!r}")

    def read_answer(self, sample: Encoded) -> str:
        """Return the text of a sample's answer, without what ends it."""
        answer = sample.answer[:-1] if sample.answer[-1:] == (self.end_of_turn,) else sample.answer
        return self._decode(answer)

    def read_text(self, prefix: Sequence[int], attribute: str) -> str | None:
        """Return the page or text that a prefix asks about, without what the template puts around it.

        Args:
            prefix: token ids that all questions of one page begin with.
            attribute: one that is asked of it.

        Returns:
            None where the prefix does not begin as this template begins.
        """
        decoded, mark = self._decode(prefix), "Page 32."
        for is_page in (True, False):
            rendered = self._render(self.pose(attribute, mark, is_page=is_page), is_prompt=True)
            head, _, tail = rendered.partition(mark)
            if decoded.startswith(head):
                text = decoded.removeprefix(head)
                # It ends somewhere in what its questions share after the page.
                length = next(n for n in range(len(tail), -1, -1) if text.endswith(tail[:n]))
                return text[: len(text) - length]
        return None

    def _join(
        self, prompt: tuple[int, ...], whole: Sequence[int], asked: list[Message], closed: list[Message]
    ) -> tuple[int, ...]:
        """Tokenise a prompt and what follows it each by itself, where a token would span both.

        Generation starts from the prompt's own ids, so that is what an answer must be trained after. The ids as they
        came are returned where this would not be the same text.
        """
        head, text = self._render(asked, is_prompt=True), self._render(closed, is_prompt=False)
        rest = self._tokenizer(text.removeprefix(head), add_special_tokens=False)["input_ids"]
        joined = (*prompt, *rest)
        return joined if text.startswith(head) and self._decode(joined) == self._decode(whole) else tuple(whole)

    def _render(self, messages: list[Message], *, is_prompt: bool) -> str:
        if self.layout is Layout.PLAIN:
            return _render_plain(messages)
        text = str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt))
        return self._begin_answer(text) if is_prompt else text

    def _begin_answer(self, text: str) -> str:
        """Let a rendered prompt end where the content of its answer begins."""
        return text.removesuffix(self._overhang) + self._lead

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _divide(self, prompt: tuple[int, ...], whole: tuple[int, ...]) -> Encoded:
        if whole[: len(prompt)] != prompt:
            at = next(i for i, (a, b) in enumerate(zip(prompt, (*whole, -1), strict=False)) if a != b)
            raise PromptError(
                "the chat template must render a prompt as the beginning of the whole conversation, but token "
                f"{at} of {len(prompt)} differs ({self._tokenizer.decode(prompt[at : at + 8])!r} in the prompt, "
                f"{self._tokenizer.decode(whole[at : at + 8])!r} in the whole)"
            )
        answer = whole[len(prompt) :]
        if self.end_of_turn in answer:
            last = len(answer) - 1 - answer[::-1].index(self.end_of_turn)
            return Encoded(prompt=prompt, answer=answer[: last + 1])
        return Encoded(prompt=prompt, answer=(*answer, self.end_of_turn))

    def _encode(self, conversations: Sequence[list[Message]], *, is_prompt: bool) -> list[list[int]]:
        ids: list[list[int]]
        if self.layout is Layout.PLAIN:
            ids = self._tokenizer([_render_plain(c) for c in conversations])["input_ids"]
            eos = self._tokenizer.eos_token_id
            # A tokenizer that ends every text by itself would end the prompt too.
            return [row[:-1] if row and row[-1] == eos else row for row in ids]
        try:
            texts = self._tokenizer.apply_chat_template(
                list(conversations), tokenize=False, add_generation_prompt=is_prompt
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise PromptError(f"the chat template must accept every conversation, but refuses one: {error}") from error
        texts = [self._begin_answer(text) for text in texts] if is_prompt else texts
        ids = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def _find_layout(self) -> Layout:
        if not getattr(self._tokenizer, "chat_template", None):
            return Layout.PLAIN
        refusals: list[str] = []
        for layout in Layout:
            if layout is Layout.PLAIN:
                continue
            parts = ("Instruction 31.", "Page 32.", "Question 33.", "Answer 34.")
            messages = [*_arrange(layout, *parts[:3]), {"role": "assistant", "content": parts[3]}]
            rendered = self._try_to_render(messages)
            positions = [rendered.text.find(part) for part in parts]
            if rendered.refusal is None and min(positions) >= 0 and positions == sorted(positions):
                return layout
            refusals.append(f"{layout}: {rendered.refusal or 'a message is left out'}")
        raise PromptError(f"the chat template must accept one of the layouts, but refuses all ({'; '.join(refusals)})")

    def _find_lead(self) -> tuple[str, str]:
        """Return what stands between the generation prompt and an answer in a whole conversation, and what the
        generation prompt has beyond it.

        Templates of models that reason put an empty thought before an answer that has none, or begin one in their
        generation prompt. An answer begins where its content does, so neither is trained nor generated.
        """
        if self.layout is Layout.PLAIN:
            return "", ""
        probe = "Answer 34."
        asked = self.ask("Page", "Question")
        head = self._try_to_render([*asked, {"role": "assistant", "content": probe}]).text.rpartition(probe)[0]
        prompt = str(self._tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
        if head.startswith(prompt):
            return head.removeprefix(prompt), ""
        # Another beginning is refused with the first sample that shows it.
        return "", prompt.removeprefix(head) if prompt.startswith(head) else ""

    def _try_to_render(self, messages: list[Message]) -> _Rendered:
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            return _Rendered(text="", refusal=str(error))
        return _Rendered(text=str(text), refusal=None)

    def _find_end_of_turn(self) -> int:
        """Find the special token that the template puts after an answer; the end of sequence where it puts none."""
        eos: int | None = self._tokenizer.eos_token_id
        if self.layout is not Layout.PLAIN:
            probe = "Answer 34."
            messages = [*self.ask("Page", "Question"), {"role": "assistant", "content": probe}]
            tail = self._try_to_render(messages).text.rpartition(probe)[2]
            special = set(self._special.values())
            for token in self._tokenizer(tail, add_special_tokens=False)["input_ids"]:
                if token in special:
                    return int(token)
        if eos is None:
            raise PromptError("the tokenizer must have an end of sequence or a template that ends turns, and has none")
        return eos


@dataclass(frozen=True, kw_only=True)
class _Rendered:
    text: str
    refusal: str | None


def _arrange(layout: Layout, system: str, page: str, question: str) -> list[Message]:
    has_system = layout in (Layout.TWO_TURNS, Layout.ONE_TURN, Layout.PLAIN)
    has_two_turns = layout in (Layout.TWO_TURNS, Layout.TWO_TURNS_WITHOUT_SYSTEM, Layout.PLAIN)
    head = [{"role": "system", "content": system}] if has_system else []
    text = page if has_system else f"{system}\n\n{page}"
    turns = [text, question] if has_two_turns else [f"{text}\n\n{question}"]
    return [*head, *({"role": "user", "content": turn} for turn in turns)]


def _render_plain(messages: list[Message]) -> str:
    """Render messages without a template; the closing assistant message follows the line ``Answer:``."""
    answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return "\n\n".join([*(message["content"] for message in asked), "Answer:\n"]) + answer
