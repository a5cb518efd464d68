"""The one place where messages become token ids.

Text of a user never becomes a control token: `</s>` in a prompt is four characters. Where the tokenizer
cannot promise that, contents that hold a control token are refused.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Sequence
from typing import Any

from jinja2.exceptions import TemplateError, UndefinedError

from posttrain.data.messages import Message
from posttrain.data.template_errors import explained
from posttrain.errors import DataError, ModelError

# What a token of an answer is: see `render_turns`.
OTHER, TEXT, ENDING = 0, 1, 2

Tails = dict[tuple[str, ...], list[int]]  # what a template writes after an answer, by the roles before it

# What comes out of a template's expressions: each operation of Python's can fail in its own way.
_TEMPLATES_RAISE = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    SyntaxError,
)

_ANOTHER = (
    "use an instruction-tuned model, or name a template in the recipe: model.chat_template: FILE "
    "(plain.jinja is shipped, and suits a base model)"
)

# A template that pastes the role into its control tokens would let any other role forge one.
ROLES = ("system", "developer", "user", "assistant", "tool")


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The tokens of `messages` and of the header that opens the assistant's turn.

    Raises:
        DataError: a role the template does not take, or a control token in a content where it cannot be made harmless.
    """
    return _encode(tokenizer, messages, generation_prompt=True)


def render_completion(tokenizer: Any, messages: Sequence[Message], completion: str) -> list[int]:
    """The tokens that the assistant's turn adds to `render_prompt(messages)`: the text, its end token, and what the
    template writes after it.

    Raises:
        DataError: as in `render_prompt`.
        ModelError: the template rewrites the prompt once an answer follows, so that no tokens are the answer's own.
    """
    return _completion(tokenizer, messages, render_prompt(tokenizer, messages), completion)


def _completion(tokenizer: Any, messages: Sequence[Message], prompt_ids: Sequence[int], completion: str) -> list[int]:
    answered = [*messages, {"role": "assistant", "content": completion}]
    whole_ids = _encode(tokenizer, answered, generation_prompt=False)
    if whole_ids[: len(prompt_ids)] == list(prompt_ids):
        return whole_ids[len(prompt_ids) :]
    # A token may reach over the border ("\n" + "\n" is one token in many vocabularies). What was sampled began
    # after the header, so the text is encoded by itself.
    prompt_text = _apply(tokenizer, messages, generation_prompt=True, tokenize=False)
    whole_text = _apply(tokenizer, answered, generation_prompt=False, tokenize=False)
    if not whole_text.startswith(prompt_text + completion):
        raise ModelError(
            "the chat template does not continue its own prompt: the text before the answer changes once there is one",
            hint="use a template whose rendering with an answer begins with its rendering for generation",
            rule="template-rewrites-prompt",
        )
    tail = whole_text[len(prompt_text) + len(completion) :]
    _refuse_control_tokens(tokenizer, answered[-1:])
    return [
        *tokenizer.encode(completion, add_special_tokens=False),
        *tokenizer.encode(tail, add_special_tokens=False),
    ]


def render_answers(
    tokenizer: Any,
    messages: Sequence[Message],
    answers: Sequence[str],
    tails: Tails | None = None,
) -> tuple[list[int], list[list[int]]]:
    """`render_prompt(messages)`, and `render_completion` of each answer to it, with most of the work done once.

    The first answer is rendered through the template. Where that is the text's own tokens and then a tail, so are the
    other answers, but for those that a template might treat in another way (control tokens, outer blanks, thinking).
    `tails`: what earlier prompts showed of that, to which this one adds. Not seen then: a template whose tail depends
    on what a later prompt says.
    """
    tails, roles = {} if tails is None else tails, tuple(message["role"] for message in messages)
    prompt_ids = render_prompt(tokenizer, messages)
    regular = [answer for answer in dict.fromkeys(answers) if _regular(tokenizer, answer)]
    bodies: dict[str, list[int]] = {}
    if regular:
        bodies = dict(zip(regular, tokenizer(regular, add_special_tokens=False)["input_ids"], strict=True))
    rendered: dict[str, list[int]] = {}
    for answer in dict.fromkeys(answers):
        body = bodies.get(answer)
        if body is not None and roles in tails:
            rendered[answer] = [*body, *tails[roles]]
            continue
        rendered[answer] = _completion(tokenizer, messages, prompt_ids, answer)
        if body is not None and rendered[answer][: len(body)] == body:
            tails[roles] = rendered[answer][len(body) :]
    return prompt_ids, [rendered[answer] for answer in answers]


def _regular(tokenizer: Any, answer: str) -> bool:
    """Whether a template has no cause to treat this answer in another way than the next."""
    return _harmless(tokenizer, answer) and answer == answer.strip() != "" and "think>" not in answer


def render_turns(
    tokenizer: Any, messages: Sequence[Message], turns: Sequence[Message]
) -> tuple[list[int], list[int], list[int]]:
    """`render_prompt(messages)`, the tokens that `turns` add to it, and what part each of these is.

    The parts: TEXT, the assistant's own words; ENDING, what the template writes after them (the end token and what
    follows); OTHER, all else (what users say, headers). `turns` begin and end with the assistant's.

    Raises:
        DataError: as in `render_prompt`, or a last turn that is not the assistant's.
        ModelError: the template renders a turn in another way once others follow it.
    """
    if not turns or turns[-1]["role"] != "assistant":
        raise DataError(
            "an answer must end with a turn of the assistant",
            hint="let the last message be the assistant's",
            rule="template-last-turn",
        )
    prompt_ids = render_prompt(tokenizer, messages)
    before, ids, parts = [*messages], [*prompt_ids], []
    for turn in turns:
        if turn["role"] == "assistant":
            opened = render_prompt(tokenizer, before)
            if opened[: len(ids)] != ids:
                raise ModelError(
                    "the chat template renders an answer in another way once further turns follow",
                    hint="train on single turns, or use a template that only appends",
                    rule="template-rewrites-turn",
                )
            answer = render_completion(tokenizer, before, turn["content"])
            parts += [OTHER] * (len(opened) - len(ids)) + parts_of(answer, ending(tokenizer, before))
            ids = opened + answer
        before.append(turn)
    return prompt_ids, ids[len(prompt_ids) :], parts


def ending(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """What the template writes after an answer to `messages`: the tokens in which two answers end alike."""
    answers = ("a", "0") if _differ(tokenizer, "a", "0") else _two_words(tokenizer, messages)
    one, other = (render_completion(tokenizer, messages, text) for text in answers)
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


@functools.lru_cache(maxsize=8)
def _differ(tokenizer: Any, one: str, other: str) -> bool:
    """Whether two texts end in different tokens: in a vocabulary of words both may be the unknown one."""
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in (one, other)]
    return all(ids) and ids[0][-1] != ids[1][-1]


def _two_words(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, str]:
    """Two words of the messages that are not the same to the tokenizer; else the same as for any."""
    first, *others = dict.fromkeys([word for message in messages for word in message["content"].split()] or ["a"])
    return first, next((word for word in others if _differ(tokenizer, first, word)), "0")


def parts_of(answer: Sequence[int], ending: Sequence[int]) -> list[int]:
    """TEXT for each token of a rendered answer, ENDING for those of its end."""
    if list(answer[len(answer) - len(ending) :]) != list(ending):
        raise ModelError(
            "the chat template ends one answer in another way than the next",
            hint="use a template that writes the same after every answer",
            rule="template-endings-differ",
        )
    return [TEXT] * (len(answer) - len(ending)) + [ENDING] * len(ending)


def check_template(tokenizer: Any, eos_ids: Collection[int] = (), prompts: Sequence[Sequence[Message]] = ()) -> None:
    """Whether a model's answers can be rendered, have an end, and padding cannot be taken for text.

    `eos_ids`: further end tokens, those of the model's generation config. `prompts`: what is rendered; a vocabulary of
    words need not know others.

    Raises:
        ModelError: which of these does not hold, and what to do.
    """
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template", hint=_ANOTHER, rule="template-none")
    ends = {*eos_ids} | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())
    if not ends:
        raise ModelError(
            "the tokenizer has no end-of-text token", hint="set eos_token in tokenizer_config.json", rule="model-no-end"
        )
    refused: DataError | None = None
    rendered = []
    for text in _texts(prompts):
        try:
            rendered.append(_rendered_answer(tokenizer, text, ends))
        except DataError as error:
            refused = error
    if refused and not rendered:
        raise ModelError(
            f"the chat template cannot render a user's message and an answer: {refused.message}",
            hint=_ANOTHER,
            rule="template-cannot-render",
        ) from refused
    pad = tokenizer.pad_token_id
    # In all of them: a word that is unknown may be padding where the vocabulary has no other token for it.
    if pad is not None and pad not in ends and all(pad in ids for ids in rendered):
        raise ModelError(
            f"the padding token {tokenizer.pad_token!r} is one that the chat template writes",
            hint="give the tokenizer a pad_token of its own",
            rule="template-writes-padding",
        )
    for messages in prompts:
        with contextlib.suppress(DataError):  # told with its file and line by whoever reads the prompts
            render_prompt(tokenizer, messages)


def _texts(prompts: Sequence[Sequence[Message]]) -> list[str]:
    """What users say in the prompts: of each the last that is not blank."""
    said = [
        next((message["content"].strip() for message in reversed(messages) if message["role"] == "user"), "")
        for messages in prompts
    ]
    return [text for text in said if text] or ["a"]


def _rendered_answer(tokenizer: Any, text: str, ends: Collection[int]) -> list[int]:
    """The tokens of a prompt and its answer, both of them `text`."""
    messages: list[Message] = [{"role": "user", "content": text}]
    prompt_ids, answer_ids = render_prompt(tokenizer, messages), render_completion(tokenizer, messages, text)
    if not prompt_ids:
        raise ModelError(
            "the chat template renders a prompt to no tokens at all",
            hint="name another template in the recipe: model.chat_template: FILE",
            rule="template-empty",
        )
    _check_reads(tokenizer, text)
    if not set(ends).intersection(answer_ids):
        raise ModelError(
            "the chat template does not close an answer with an end token, so a model trained on it would never stop",
            hint=f"let the template write {tokenizer.eos_token!r} after the assistant's content",
            rule="template-no-end",
        )
    return [*prompt_ids, *answer_ids]


def _check_reads(tokenizer: Any, text: str) -> None:
    """Raises ModelError where other contents make no other text: what the user, or the assistant, says is not in it."""

    def rendered(question: str, answer: str) -> str:
        messages: list[Message] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return _apply(tokenizer, messages, generation_prompt=False, tokenize=False)

    plain, other = rendered(text, text), f"{text} {text}"
    for role, changed in (("user", rendered(other, text)), ("assistant", rendered(text, other))):
        if changed == plain:
            raise ModelError(
                f"the chat template leaves out what the {role} says: two different messages look the same",
                hint="let it write message.content of every message, as plain.jinja does, which is shipped",
                rule="template-leaves-out",
            )


def _encode(tokenizer: Any, messages: Sequence[Message], generation_prompt: bool) -> list[int]:
    if all(_harmless(tokenizer, message["content"]) for message in messages):
        return _apply(tokenizer, messages, generation_prompt)  # the sanitiser takes as long again
    try:
        return _apply(tokenizer, messages, generation_prompt, sanitize_control_tokens=True)
    except (NotImplementedError, ValueError):
        # The sanitiser refuses some tokenizers (word-level ones): then there must be nothing to sanitise.
        _refuse_control_tokens(tokenizer, messages)
        return _apply(tokenizer, messages, generation_prompt)


def _apply(tokenizer: Any, messages: Sequence[Message], generation_prompt: bool, **options: bool) -> Any:
    for message in messages:
        if message["role"] not in ROLES:
            raise DataError(
                f"unknown role {message['role']!r}", hint=f"roles are {', '.join(ROLES)}", rule="template-role"
            )
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    options = {"add_generation_prompt": generation_prompt, "return_dict": False, **options}
    try:
        return _rendered(tokenizer, plain, options)
    except _TEMPLATES_RAISE as error:
        translated = explained(error, tokenizer)
        if translated is None:
            raise
        raise translated from error


def _rendered(tokenizer: Any, messages: list[dict[str, str]], options: dict[str, bool]) -> Any:
    """No tools are given, as None. A template that takes their number without asking whether there are any gets an
    empty list, where it can do with that: others would say that there are tools."""
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except (TypeError, UndefinedError) as error:
        if "tools" not in str(tokenizer.chat_template):
            raise
        try:
            return tokenizer.apply_chat_template(messages, tools=[], **options)
        except (TypeError, UndefinedError):
            raise error from None


def _harmless(tokenizer: Any, text: str) -> bool:
    """Whether no character of the text could begin a control token."""
    return not _first_characters(tokenizer).intersection(text)


@functools.lru_cache(maxsize=8)
def _first_characters(tokenizer: Any) -> frozenset[str]:
    tokens = (*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens)
    return frozenset(token.lstrip()[0] for token in tokens if token.strip())


def _refuse_control_tokens(tokenizer: Any, messages: Sequence[Message]) -> None:
    for message in messages:
        for token in (*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens):
            if token.strip() and token in message["content"]:
                raise DataError(
                    f"a message of the {message['role']} holds the control token {token!r}",
                    hint="remove it, or use a byte-level tokenizer, with which such text is harmless",
                    rule="template-control-token",
                )
