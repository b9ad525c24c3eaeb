"""The output of one piece as it comes, without white space around it.

Where words are protected, or marks to be placed, it comes when it is complete.
"""

from __future__ import annotations

from app.engine.request import Finished, Token
from app.tasks.attempts import Attempt, Attempts
from app.tasks.pieces import Piece
from app.tasks.rounds import checked
from app.text.protect import is_private, public
from app.text.tokenizer import TextTokenizer


class PieceStream:
    def __init__(
        self,
        tokenizer: TextTokenizer,
        attempts: Attempts,
        attempt: Attempt,
        piece: Piece,
        requests: int,
    ) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._attempts = attempts
        self._attempt = attempt
        self._piece = piece
        self._tokens: list[list[Token]] = [[] for _ in range(requests)]
        self._ends: dict[int, Finished] = {}
        self._direct = requests == 1 and not any(map(is_private, piece.text.text))
        self._text = ""
        self._begun = False
        self.number = attempt.piece
        self.ended = not requests

    def push(self, i: int, event: Token | Finished) -> None:
        """An event of the piece's request number i."""
        if isinstance(event, Token):
            self._tokens[i].append(event)
            if self._direct:
                self._text += public(self._detokenizer.push(event.id))
            return
        self._ends[i] = checked(event)
        if len(self._ends) < len(self._tokens):
            return
        self.ended = True
        if self._direct:
            self._text = (self._text + self._detokenizer.finish()).rstrip()
            return
        told = [(tokens, self._ends[i]) for i, tokens in enumerate(self._tokens)]
        made = self._attempts.candidates(self._attempt, self._piece, told)[0]
        self._text = made.text.restore(made.output)

    def take(self) -> str:
        """What is certain and was not taken before; white space may yet prove to be the end."""
        if not self._begun:
            self._text = self._text.lstrip()
        ready = self._text.rstrip()
        self._begun = self._begun or bool(ready)
        self._text = self._text[len(ready) :]
        return ready
