"""A prompt becomes the text that the policy continues."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from r1jax.config import ConfigError, Text
from r1jax.data.tokenizer import Tokenizer

R1_ZERO = (
    "{{ prefix }}A conversation between a User and an Assistant. The User asks a question, and the Assistant solves it. The "
    "Assistant first thinks about how to reason in its mind and then gives the User the answer. The reasoning is enclosed in "
    "<think> </think> tags and the answer in <answer> </answer> tags, that is: <think> the reasoning </think> "
    "<answer> the answer </answer>."
    "{% for m in messages %}"
    "{% if m.role == 'system' %} {{ m.content }}"
    "{% elif m.role == 'user' %} User: {{ m.content }}. Assistant:"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}"
    "{% else %}{{ raise_exception('the template r1-zero knows the roles system, user and assistant, not ' ~ m.role) }}"
    "{% endif %}{% endfor %}"
)
"""R1-Zero's preamble (arXiv 2501.12948v1, Table 1) in words of our own; the last sentence, with its full stop, as printed."""

R1 = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>"
    "{% else %}{{ raise_exception('the template r1 knows the roles system, user and assistant, not ' ~ m.role) }}"
    "{% endif %}{% endfor %}"
    "<｜Assistant｜>{{ '<think>\\n' }}"
)
"""The released R1: earlier thoughts are left out and the new one is begun."""

NONE = "{{ prefix }}{{ prompt }}"

_PREFILL = re.compile(r"<think>\s*(?:</think>\s*)?$")


class Rendered(NamedTuple):
    text: str
    """What the policy continues."""
    prefill: str
    """The end of ``text`` that is already the assistant's turn: ``<think>`` with the white space after it, or an empty thought.
    Mostly ''."""


class Template:
    """``text.template`` with its variables.

    Jinja templates see ``messages``, ``prompt`` (the contents of the messages, a blank line between them), ``prefix`` (what the
    tokenizer puts before a plain text), ``bos_token``, ``eos_token`` and the like, ``add_generation_prompt`` (true), and
    ``text.template_options``. They run in Jinja's sandbox.

    Attributes:
      source: the Jinja text.

    Raises:
      ConfigError: an unknown name, ``chat`` without a chat template, or faulty Jinja.
    """

    def __init__(self, text: Text, tokenizer: Tokenizer):
        self._text, self._tokenizer = text, tokenizer
        self._name, self.source = _source(text.template, tokenizer)
        try:
            self._jinja = _environment().from_string(self.source)
        except jinja2.TemplateError as e:
            raise ConfigError(f"template {self._name}: {e}") from e

    @property
    def says_form(self) -> bool:
        """Whether it says in which form to answer, or is one of the user's own, which may: all but ``chat`` and ``r1``."""
        return self._name not in ("chat", "r1")

    def messages(self, prompt: str | list[dict]) -> list[dict]:
        """A string is one user message. ``text.system`` comes before messages that have no system message of their own."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self._text.system is not None and messages[0]["role"] != "system":
            return [{"role": "system", "content": self._text.system}, *messages]
        return messages

    def render(self, prompt: str | list[dict]) -> Rendered:
        """The prompt as text.

        Raises:
          ConfigError: the template refuses the messages.
        """
        messages = self.messages(prompt)
        variables = {
            "bos_token": "",
            "eos_token": "",
            "tools": None,
            "documents": None,
            **self._tokenizer.special,
            "messages": messages,
            "prompt": "\n\n".join(m["content"] for m in messages),
            "prefix": self._tokenizer.prefix,
            "add_generation_prompt": True,
            **self._text.template_options,
        }
        try:
            text = self._jinja.render(variables)
        except (jinja2.TemplateError, TypeError) as e:
            raise ConfigError(f"template {self._name}: {' '.join(str(e).split())}") from e
        prefill = _PREFILL.search(text)
        return Rendered(text, prefill.group() if prefill else "")

    def encode(self, prompt: str | list[dict]) -> tuple[list[int], str]:
        """Token ids of the rendered text, and the prefill."""
        rendered = self.render(prompt)
        return self._tokenizer.encode(rendered.text), rendered.prefill


def _source(name: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """What to call the template, and its Jinja text."""
    if name == "auto":
        name = "chat" if tokenizer.chat_template is not None else "r1-zero"
    match name:
        case "chat":
            if tokenizer.chat_template is None:
                raise ConfigError("text.template is 'chat' but the tokenizer has no chat template; use r1-zero, r1 or none")
            return name, tokenizer.chat_template
        case "r1":
            return name, R1
        case "r1-zero":
            return name, R1_ZERO
        case "none":
            return name, NONE
    if "{{" in name:
        return f"{name!r:.40}", name
    raise ConfigError(f"text.template is {name!r}; use auto, chat, r1, r1-zero, none, or Jinja text that holds '{{{{'")


class _Generation(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``, which marks the assistant's words in some chat templates."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    """What chat templates expect to find, after transformers' ``chat_template_utils``."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        # Jinja's own escapes HTML characters.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
    return environment
