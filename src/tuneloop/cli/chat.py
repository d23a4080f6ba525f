"""`tuneloop chat`."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from tuneloop.cli.console import Result, print_live
from tuneloop.cli.endpoint import TARGET, ConnectionOptions, TargetOptions
from tuneloop.cli.parameters import output, screen
from tuneloop.core.errors import UserError
from tuneloop.core.flag import flag
from tuneloop.core.ui import busy, say

if TYPE_CHECKING:
    from tuneloop.pipeline.answers import Chat

HELP = """\
  a line          is a question; a line of JSON gives several columns: {"subject": "...", "body": "..."}
  /prompt         the last prompt as the model read it, control tokens included; /prompt TEXT shows that of a text
  /system TEXT    another system turn; /system - for none; /system alone for that of training
  /reset          forget the conversation
  /help, /quit    this text; the end (Ctrl-D also ends, Ctrl-C stops an answer)
  //TEXT          a question that begins with /"""


def command(
    target: str = TARGET,
    against: str = flag("", "OTHER", "Show another answer too: of base, few-shot, or another target.", "-a"),
    *,
    asking: TargetOptions,
    connection: ConnectionOptions,
) -> Result:
    """Ask a model questions, one line at a time.

    Its prompts are as in training; /help lists the commands, /prompt shows what the model reads. Piped, each line is a
    question. With --json the questions and answers are printed as one object at the end.
    """
    from tuneloop.pipeline.answers import open_chat

    options: dict[str, Any] = {name: getattr(asking, name) for name in ("base", "task", "system", "max_new_tokens")}
    chat = open_chat(target, against, endpoint=asking.server(connection), **options)
    with screen("loading the model"):
        with busy("loading the model"):
            chat.load()
        first, names = chat.speakers[0], " and ".join(speaker.name for speaker in chat.speakers)
        how = "the conversation is remembered" if first.remembers else "each question is on its own, as in training"
        columns = f"; a question is JSON with {', '.join(chat.columns)}" if chat.columns else ""
        say(f"chat      {first.target.name}: {names}; {how}{columns}{first.target.advice}")
        if sys.stdin.isatty():
            say(HELP)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal in another encoding is no reason to stop
    if isinstance(sys.stdin, TextIOWrapper) and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    turns = _Loop(chat, output().as_json).run()
    return Result({"target": target, "against": against or None, "turns": turns})


class _Loop:
    """Lines in, answers out, until the input ends."""

    def __init__(self, chat: Chat, as_json: bool) -> None:
        self.chat = chat
        self.silent = as_json
        self.typed = sys.stdin.isatty()
        self.last: dict[str, Any] | None = None
        self.prompts: dict[str, str] = {}  # the prompts of the last question, by speaker
        self.turns: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        """All questions with their answers."""
        if self.typed:
            import readline  # noqa: F401  edits the line and remembers earlier ones
        while (line := self._read()) is not None:
            if not line.strip():
                continue
            try:
                if not self._take(line.strip()):
                    break
            except KeyboardInterrupt:
                if not self.typed:
                    raise
                print_live("\n(stopped)")
            except UserError as error:
                print_live(f"Error: {error}", err=True)
                self.turns.append({"question": line.strip(), "error": error.what})
        return self.turns

    def _read(self) -> str | None:
        """The next line; None at the end. An interrupt at the prompt forgets the line."""
        while True:
            try:
                if self.typed:
                    return input("> ")
                line = sys.stdin.readline()
                return line if line else None
            except EOFError:
                print_live()
                return None
            except KeyboardInterrupt:
                if not self.typed:
                    raise
                print_live("\n(Ctrl-D or /quit ends)")

    def _take(self, line: str) -> bool:
        """Do what a line says; False: it was the end."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word in ("/quit", "/exit"):
            return False
        if word == "/help":
            self._show(HELP)
        elif word == "/reset":
            self.chat.reset()
            self._show("(forgotten)")
        elif word == "/system":
            self.chat.system = "" if rest == "-" else rest or None
            state = "system turn set" if rest else "the trained system turn"
            self._show("(no system turn)" if rest == "-" else f"({state})")
        elif word == "/prompt":
            self._show_prompts(rest)
        elif line.startswith("/") and not line.startswith("//"):
            print_live(f"Error: no command {word}; /help lists them, //TEXT sends a text that begins with /", err=True)
        else:
            self._ask(line.removeprefix("/") if line.startswith("//") else line)
        return True

    def _show_prompts(self, text: str) -> None:
        record = self.chat.question(text) if text else self.last
        if record is None:
            self._show("(no question yet: /prompt TEXT shows the prompt of a text)")
            return
        for speaker in self.chat.speakers:
            name = f"--- {speaker.name}\n" if len(self.chat.speakers) > 1 else ""
            prompt = self.prompts.get(speaker.name) if not text else None
            self._show(name + (prompt or self.chat.rendered(speaker, record)))

    def _ask(self, line: str) -> None:
        record = self.chat.question(line)
        answers: dict[str, Any] = {}
        self.last, self.prompts = record, {}
        for speaker in self.chat.speakers:
            self.prompts[speaker.name] = self.chat.rendered(speaker, record)
            if len(self.chat.speakers) > 1:
                self._print(f"{speaker.name}: ")
            answer = self.chat.answer(speaker, record, self._print)
            self._print(" ... (cut at --max-new-tokens)\n" if answer.finish == "length" else "\n")
            if answer.error:
                print_live(f"Error: {answer.error}", err=True)
            answers[speaker.name] = {name: value for name, value in vars(answer).items() if value not in ("", None)}
        self.turns.append({"question": line, "answers": answers})

    def _print(self, text: str) -> None:
        if not self.silent:
            print_live(text, end="")

    def _show(self, text: str) -> None:
        print_live(text, err=self.silent)
