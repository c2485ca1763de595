"""``r1jax chat``: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import jax

from r1jax import config
from r1jax.config import ConfigError, commands
from r1jax.data.template import Template
from r1jax.data.tokenizer import Tokenizer
from r1jax.eval import answers as asking
from r1jax.eval.generate import say, stream, write
from r1jax.eval.loaded import SMALLER, find_template, load_sampler, open_model
from r1jax.plan.shortage import out_of_memory_is
from r1jax.rollout import Sampler
from r1jax.types import FINISH, GOING

PROMPT = ">>> "


@out_of_memory_is(f"lower --context; {SMALLER}")
def chat(args: commands.Chat) -> int:
    """Answers the lines of standard input, each with what was said before. Standard output holds the answers alone.

    Raises:
      ConfigError: the user's mistakes.
    """
    if jax.process_count() > 1:
        raise ConfigError(f"chat runs in one process, and {jax.process_count()} were started; start one")
    opened = open_model(args)
    template = find_template(opened, args.template, args.system)
    engine = config.Engine(slots=1, max_prompt_tokens=args.context - args.max_new_tokens)
    talk = Talk(template, load_sampler(opened, engine, args), opened.tokenizer, args)
    if sys.stdin.isatty():
        say("/clear forgets what was said, /exit or Ctrl-D leaves, Ctrl-C stops an answer")
    for line in lines():
        match line.strip():
            case "":
                continue
            case "/exit":
                break
            case "/clear":
                talk.messages = []
            case _:
                talk.turn(line)
    return 0


class Talk:
    """A conversation. ``messages`` are those that the model sees: of an answer that was stopped what was shown, and nothing of
    a question that did not fit or found no answer."""

    def __init__(self, template: Template, sampler: Sampler, tokenizer: Tokenizer, args: commands.Chat):
        self.template, self.sampler, self.tokenizer, self.args = template, sampler, tokenizer, args
        self.messages: list[dict] = []
        self.turns = 0

    def turn(self, text: str) -> None:
        """Answers one message."""
        asked = [*self.messages, {"role": "user", "content": text}]
        (question,) = asking.questions([{"prompt": asked}], [0], self.template)
        room = self.args.context - self.args.max_new_tokens
        if len(question.ids) > room:
            say(
                f"the context is full: {len(question.ids)} tokens, and --context {self.args.context} leaves {room} beside an "
                f"answer of up to {self.args.max_new_tokens}; /clear begins anew"
            )
            return
        said, finish = "", GOING
        # Another round draws other tokens, so that a question asked again is answered anew.
        pieces = stream(question, self.sampler, self.tokenizer, self.args.sampling, round=self.turns)
        with contextlib.suppress(KeyboardInterrupt):
            for t, piece in pieces:
                write(piece)
                said, finish = said + piece, int(t.finish[0])
        write("\n")
        if finish == GOING:
            say("(stopped)")
        elif FINISH[finish] == "length":
            say(f"(cut at --max-new-tokens {self.args.max_new_tokens})")
        self.turns += 1
        if said:
            self.messages = [*asked, {"role": "assistant", "content": said}]


def lines() -> Iterator[str]:
    """The lines of standard input; of a terminal with a prompt, and with the keys that ``readline`` knows."""
    prompt = PROMPT if sys.stdin.isatty() and sys.stdout.isatty() else ""
    if prompt:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() uses it once it is imported
    while True:
        try:
            yield input(prompt)
        except EOFError:
            if prompt:
                write("\n")
            return
        except KeyboardInterrupt:  # a line is given up; nothing is being answered
            write("\n")
