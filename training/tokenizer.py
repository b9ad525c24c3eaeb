"""One byte-level BPE for all languages, trained on a language-balanced sample.

Text flows in, `tokenizer.json` and a table per language flow out. Byte level means that no text is
unknown; NFC is part of the tokenizer. Ids 0 to 63 are special: end, mask, separator, a source and
a target tag for each language, and the rest reserved for later languages and tasks.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from training.corpus import Cleaner, Source, weight_of
from training.errors import ConfigError, CorpusError

END, MASK, SEPARATOR = "<|endoftext|>", "<|mask|>", "<|sep|>"
SPECIAL = 64
TRANSLATE = ["<|src:{source}|>", "<|tgt:{target}|>", "{text}", SEPARATOR]
GENERATE = [END, "{text}"]
_RESERVED = "<|reserved:"


def special_tokens(languages: Sequence[str]) -> list[str]:
    """The first 64 entries of the vocabulary; at least 32 of them stay reserved."""
    used = [END, MASK, SEPARATOR, *tokens_of(languages)]
    if len(used) > SPECIAL - 32:
        raise ConfigError(f"{len(languages)} languages: at most {(SPECIAL - 35) // 2} have room")
    return used + [f"<|reserved:{i}|>" for i in range(SPECIAL - len(used))]


def train_tokenizer(texts: Iterable[str], vocabulary: int, languages: Sequence[str]) -> Tokenizer:
    """Learn a byte-level BPE; raises ConfigError when `vocabulary` cannot hold bytes and tags."""
    if not SPECIAL + 256 <= vocabulary <= 65_535:
        raise ConfigError(f"vocabulary = {vocabulary}: must be in {SPECIAL + 256}..65535")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special_tokens(languages),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_tokenizer(
    sources: Sequence[Source], weights: dict[str, float], languages: Sequence[str],
    vocabulary: int, megabytes: float, out: Path, sets: dict[str, dict[str, list[str]]],
) -> str:  # fmt: skip
    """Write tokenizer.json into `out`, and report.txt, which is returned: on the sample and on
    aligned lines by set and language."""
    texts = balanced_sample(
        sources, {s.key: weight_of(s, weights) for s in sources}, megabytes, Cleaner()
    )
    tokenizer = train_tokenizer((t for side in texts.values() for t in side), vocabulary, languages)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer = load_tokenizer(out / "tokenizer.json")
    sample = {code: side[:2000] for code, side in texts.items()}
    written = [f"sample\n{table(report(tokenizer, sample, aligned=False))}"]
    for name, lines in sets.items():
        rows = report(tokenizer, lines)
        written.append(f"{name}\n{table(rows)}")
        if name.startswith("flores"):
            written.append(beside_gpt2(rows))
    text = "\n\n".join(written) + "\n"
    (out / "report.txt").write_text(text, encoding="utf-8")
    return text


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json; text that looks like a special token stays text."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"tokenizer {path}: {error}") from None
    tokenizer.encode_special_tokens = True
    return tokenizer


def task_token(task: str) -> str:
    return f"<|task:{task}|>"


def tokens_of(languages: Iterable[str], tasks: Iterable[str] = ()) -> list[str]:
    """Names of the special tokens that languages and tasks need."""
    tags = [f"<|{side}:{code}|>" for side in ("src", "tgt") for code in languages]
    return tags + [task_token(task) for task in tasks]


def with_tokens(file: Path, names: Iterable[str], like: Path | None = None) -> Tokenizer:
    """The tokenizer of a file with the special tokens `names`, so that a new language or task goes
    on with the vocabulary of old ones: those it lacks take the place of reserved entries.

    The names that a tokenizer `like` gave to reserved entries are taken over. Raises ConfigError
    if `like` has other tokens, or no reserved entry is left.
    """
    load_tokenizer(file)  # names what is wrong with it
    values = json.loads(file.read_text(encoding="utf-8"))
    held = {t["id"]: t["content"] for t in values["added_tokens"]}
    before = dict(held)
    theirs = load_tokenizer(like).get_vocab() if like else {}
    if like and not _alike({v: k for k, v in theirs.items()},
                           {v: k for k, v in load_tokenizer(file).get_vocab().items()}):
        raise ConfigError(f"tokenizer {file}: its tokens are not those of {like}")
    held.update({i: n for n, i in theirs.items() if i in held and not n.startswith(_RESERVED)})
    free = iter([i for i in sorted(held) if held[i].startswith(_RESERVED)])
    for name in names:
        if name not in held.values() and name not in values["model"]["vocab"]:
            index = next(free, None)
            if index is None:
                raise ConfigError(f"tokenizer {file}: no {name}, and no reserved entry left for it")
            held[index] = name
    for token in values["added_tokens"]:
        index, name = token["id"], held[token["id"]]
        token["content"] = name
        if before[index] != name:
            values["model"]["vocab"][name] = values["model"]["vocab"].pop(before[index])
    made = Tokenizer.from_str(json.dumps(values))
    made.encode_special_tokens = True
    return made


def _alike(first: dict[int, str], second: dict[int, str]) -> bool:
    """Whether two vocabularies have the same entries, but for reserved ones that got a name."""
    return first.keys() == second.keys() and all(
        a == second[i] or a.startswith(_RESERVED) or second[i].startswith(_RESERVED)
        for i, a in first.items()
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def balanced_sample(
    sources: Sequence[Source], weights: dict[str, float], megabytes: float, cleaner: Cleaner
) -> dict[str, list[str]]:
    """Up to megabytes/languages of text in each language, every source in its share."""
    languages = sorted({code for source in sources for code in source.languages})
    share = megabytes * 1e6 / len(languages)
    texts: dict[str, list[str]] = {code: [] for code in languages}
    for code in languages:
        of_language = [(s, weights[s.key]) for s in sources if code in s.languages]
        of_language = [(s, w) for s, w in of_language if w > 0]
        sizes = {s.key: w * sum(p.stat().st_size for p in s.paths) for s, w in of_language}
        for source, _ in of_language:
            budget = share * sizes[source.key] / sum(sizes.values())
            for text in _side(source, code, cleaner):
                texts[code].append(text)
                budget -= len(text.encode())
                if budget < 0:
                    break
    return texts


def _side(source: Source, language: str, cleaner: Cleaner) -> Iterator[str]:
    cleaner.seen.clear()
    if len(source.languages) == 1:
        yield from cleaner.documents(source)
    else:
        side = source.languages.index(language)
        yield from (pair[side] for pair in cleaner.pairs(source))


@dataclass(frozen=True)
class LanguageReport:
    """How well a vocabulary serves one language. `premium` is tokens relative to English.

    `unknown` is the share of characters that do not survive encoding and decoding, `used` the
    share of the vocabulary that the text uses.
    """

    language: str
    bytes_per_token: float
    tokens_per_character: float
    tokens_per_word: float
    premium: float
    unknown: float
    used: float


def report(
    tokenizer: Tokenizer, lines: dict[str, list[str]], aligned: bool = True
) -> list[LanguageReport]:
    """One row a language. `premium` compares parallel lines and is NaN without aligned English."""
    encoded = {code: [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
               for code, texts in lines.items()}  # fmt: skip
    totals = {code: sum(map(len, rows)) for code, rows in encoded.items()}
    rows = []
    for code, texts in lines.items():
        if not totals[code]:
            raise CorpusError(f"no text to measure the tokenizer on in {code}")
        parallel = aligned and "en" in lines and len(lines["en"]) == len(texts)
        back = tokenizer.decode_batch(encoded[code], skip_special_tokens=False)
        characters = sum(map(len, texts))
        rows.append(
            LanguageReport(
                code,
                sum(len(t.encode()) for t in texts) / totals[code],
                totals[code] / characters,
                totals[code] / max(1, sum(len(t.split()) for t in texts)),
                totals[code] / totals["en"] if parallel else float("nan"),
                sum(map(_lost, texts, back)) / characters,
                len({i for ids in encoded[code] for i in ids}) / tokenizer.get_vocab_size(),
            )
        )
    return rows


def _lost(text: str, back: str) -> int:
    """Characters of a text that are not in what came back; at least 1 if the two differ."""
    text = normalize("NFC", text)
    return 0 if text == back else max(1, (Counter(text) - Counter(back)).total())


def table(rows: Sequence[LanguageReport]) -> str:
    head = ("language  bytes/token  tokens/char  tokens/word  premium  unknown  "
            "used of vocabulary")  # fmt: skip
    return "\n".join(
        [head]
        + [
            f"{r.language:<8}  {r.bytes_per_token:11.2f}  {r.tokens_per_character:11.3f}  "
            f"{r.tokens_per_word:11.2f}  {_premium(r):>7}  {100 * r.unknown:5.2f} %  "
            f"{100 * r.used:16.1f} %"
            for r in rows
        ]
    )


def _premium(row: LanguageReport) -> str:
    return "-" if math.isnan(row.premium) else f"{row.premium:.2f}"


def beside_gpt2(rows: Sequence[LanguageReport]) -> str:
    """Figures on FLORES beside those published for GPT-2's vocabulary, and goals for 32k entries.

    Petrov et al. 2023, "Language model tokenizers introduce unfairness between languages", on
    FLORES-200: bytes per token, and tokens relative to English.
    """
    lines = ["beside GPT-2's 50,257 entries (Petrov et al. 2023); goals for 32k entries",
             "language  bytes/token  GPT-2  goal          premium  GPT-2  goal"]  # fmt: skip
    for row in rows:
        if row.language not in _GPT2:
            continue
        size, premium = _GPT2[row.language]
        goal = _goal(row.bytes_per_token >= (least := 3.8 if row.language == "zh" else 4.0))
        line = (f"{row.language:<8}  {row.bytes_per_token:11.2f}  {size:5.2f}  "
                f">= {least} {goal:<6}  {row.premium:7.2f}  {premium:5.2f}")  # fmt: skip
        ours = f"  <= 1.0 {_goal(row.premium <= 1.0)}" if row.language == "zh" else ""
        lines.append(line + ours)
    return "\n".join(lines)


def _goal(met: bool) -> str:
    return "met" if met else "missed"


_GPT2 = {"en": (4.93, 1.0), "de": (2.73, 2.14), "fr": (3.05, 2.00), "zh": (1.42, 3.21)}
