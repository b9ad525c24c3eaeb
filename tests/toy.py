"""A toy parallel corpus in English, Chinese, German and French, generated from a small grammar.

`python -m tests.toy FOLDER` writes `train.<lang>`, `mono/<lang>/toy.txt` and a folder of test sets
`tests/toy.<lang>` whose sentences are not in the training text. Word order differs between the
languages (English S V O T, German S V T O, Chinese T S V O), so that copying is not translating.
"""

from __future__ import annotations

import random
import sys
from itertools import product
from pathlib import Path

LANGUAGES = ("en", "zh", "de", "fr")
SUBJECTS = (
    ("The teacher", "老师", "Der Lehrer", "Le professeur"),
    ("My sister", "我姐姐", "Meine Schwester", "Ma sœur"),
    ("The child", "孩子", "Das Kind", "L'enfant"),
    ("Our neighbour", "我们的邻居", "Unser Nachbar", "Notre voisin"),
    ("The old woman", "老太太", "Die alte Frau", "La vieille femme"),
    ("The doctor", "医生", "Der Arzt", "Le médecin"),
    ("A student", "一个学生", "Ein Student", "Un étudiant"),
    ("Nobody", "没有人", "Niemand", "Personne"),
)
VERBS = (
    ("sees", "看见", "sieht", "voit"),
    ("buys", "买", "kauft", "achète"),
    ("looks for", "寻找", "sucht", "cherche"),
    ("finds", "找到", "findet", "trouve"),
    ("draws", "画", "zeichnet", "dessine"),
    ("sells", "卖", "verkauft", "vend"),
)
OBJECTS = (
    ("the dog", "那只狗", "den Hund", "le chien"),
    ("a red flower", "一朵红花", "eine rote Blume", "une fleur rouge"),
    ("the new house", "新房子", "das neue Haus", "la nouvelle maison"),
    ("an old book", "一本旧书", "ein altes Buch", "un vieux livre"),
    ("the key", "钥匙", "den Schlüssel", "la clé"),
    ("two birds", "两只鸟", "zwei Vögel", "deux oiseaux"),
    ("the blue car", "蓝色的汽车", "das blaue Auto", "la voiture bleue"),
    ("some bread", "一些面包", "etwas Brot", "du pain"),
    ("the map", "地图", "die Karte", "la carte"),
    ("a small cat", "一只小猫", "eine kleine Katze", "un petit chat"),
)
TIMES = (
    ("today", "今天", "heute", "aujourd'hui"),
    ("every day", "每天", "jeden Tag", "tous les jours"),
    ("now", "现在", "jetzt", "maintenant"),
    ("on Sunday", "星期天", "am Sonntag", "dimanche"),
    ("in the evening", "晚上", "am Abend", "le soir"),
)


def sentences() -> list[tuple[str, str, str, str]]:
    """All sentences of the grammar (2,400), aligned, in the order of `LANGUAGES`."""
    return [
        (
            f"{s[0]} {v[0]} {o[0]} {t[0]}.",
            f"{t[1]}{s[1]}{v[1]}{o[1]}。",
            f"{s[2]} {v[2]} {t[2]} {o[2]}.",
            f"{s[3]}{' ne' if s[0] == 'Nobody' else ''} {v[3]} {o[3]} {t[3]}.",
        )
        for s, v, o, t in product(SUBJECTS, VERBS, OBJECTS, TIMES)
    ]


def write(folder: Path, held_out: int = 100, seed: int = 7) -> None:
    """Write corpus and test set under `folder`; the same seed gives the same files."""
    lines = sentences()
    random.Random(seed).shuffle(lines)
    (folder / "tests").mkdir(parents=True, exist_ok=True)
    for i, code in enumerate(LANGUAGES):
        text = [line[i] for line in lines]
        (folder / "mono" / code).mkdir(parents=True, exist_ok=True)
        parts = {f"tests/toy.{code}": text[:held_out], f"train.{code}": text[held_out:],
                 f"mono/{code}/toy.txt": text[held_out:]}  # fmt: skip
        for name, part in parts.items():
            (folder / name).write_text("\n".join(part) + "\n", encoding="utf-8")


def write_task(file: Path, seed: int = 7) -> list[tuple[str, str]]:
    """Write the task of restoring punctuation and capitals, a German sentence (of which the nouns
    have capitals) an example; returns 60 examples that are not in the file."""
    lines = [line[LANGUAGES.index("de")] for line in sentences()]
    random.Random(seed).shuffle(lines)
    pairs = [(line.replace(".", "").lower(), line) for line in lines]
    rows = "".join(f"{bare}\t{whole}\n" for bare, whole in pairs[60:])
    file.write_text(rows, encoding="utf-8")
    return pairs[:60]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
