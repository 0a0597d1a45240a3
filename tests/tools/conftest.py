"""A small WordNet."""

import pytest
from icon_names import Nouns

# offset, file of nouns (05 animals, 06 artefacts, 10 communication, 18 people), words, what it is a kind of
SYNSETS = [
    (1, 3, ["entity"], []),
    (2, 5, ["animal", "beast"], [1]),
    (3, 5, ["bear"], [2]),
    (4, 5, ["grizzly", "silvertip"], [3]),
    (5, 5, ["cat", "true_cat"], [2]),
    (6, 6, ["wheel"], [1]),
    (7, 6, ["spinning_wheel"], [6]),
    (8, 10, ["note"], [1]),
    (9, 18, ["nurse"], [1]),
    (10, 6, ["umbrella", "bumbershoot"], [1]),
    (11, 5, ["mouse"], [2]),
    (12, 6, ["mouse", "computer_mouse"], [1]),
    (13, 6, ["television_receiver", "tv"], [1]),
]


@pytest.fixture
def nouns(tmp_path):
    """A WordNet of thirteen nouns, in its own format."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    senses: dict[str, list[int]] = {}
    lines = ["  1 a line of the licence"]
    for offset, file, words, above in SYNSETS:
        spelled = " ".join(f"{word} 0" for word in words)
        pointers = "".join(f" @ {one:08d} n 0000" for one in above)
        lines.append(f"{offset:08d} {file:02d} n {len(words):02x} {spelled} {len(above):03d}{pointers} | a gloss")
        for word in words:
            senses.setdefault(word, []).append(offset)
    (folder / "data.noun").write_text("\n".join(lines) + "\n")
    index = [f"{w} n {len(at)} 1 @ {len(at)} 0 " + " ".join(f"{o:08d}" for o in at) for w, at in sorted(senses.items())]
    (folder / "index.noun").write_text("\n".join(["  1 the licence", *index]) + "\n")
    (folder / "noun.exc").write_text("mice mouse\n")
    return Nouns(folder)
