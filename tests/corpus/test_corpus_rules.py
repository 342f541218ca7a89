"""Each published rule, with the smallest document on either side of its threshold."""

import bisect
import dataclasses

import pytest

from t5x_lite.corpus import roots
from t5x_lite.corpus.c4 import C4, C4Paragraphs, C4Tfds
from t5x_lite.corpus.code import Code
from t5x_lite.corpus.fineweb import FineWeb
from t5x_lite.corpus.gopher import GopherQuality, GopherRepetition
from t5x_lite.corpus.limits import Blocklist, Decontaminate, Limits
from t5x_lite.corpus.roots import Roots
from t5x_lite.corpus.steps import rules_of
from t5x_lite.errors import UserError


def only(filter_class, **fields):
    """The filter with these rules at their published thresholds, or those given, and no other."""
    off = {f.name: None for f in dataclasses.fields(filter_class) if "rule" in f.metadata}
    defaults = {f.name: f.default for f in dataclasses.fields(filter_class)}
    wanted = {name: defaults[name] if value is ... else value for name, value in fields.items()}
    return filter_class(**off | wanted)


def letters(number, start):
    """So many different words of one character."""
    return [chr(start + i) for i in range(number)]


def document(text="", **fields):
    return {"text": text, "id": "1", "url": "", "language": "", "scores": {}} | fields


QUALITY = {
    "min_words": ("a " * 50, "a " * 49, "too_few_words"),
    "max_words": ("a " * 100_000, "a " * 100_001, "too_many_words"),
    "min_word_length": ("aaa", "aaa aa", "short_words"),
    "max_word_length": ("a" * 10, "a" * 10 + " " + "a" * 11, "long_words"),
    "max_hashes": ("# " + "a " * 9, "# " + "a " * 8, "hashes"),
    "max_ellipses": ("... " + "a " * 9, "... " + "a " * 8, "ellipses"),
    "max_bullet_lines": ("- a\n" * 9 + "a", "\u2022 a\n" * 10 + "a", "bullet_lines"),
    "max_ellipsis_lines": ("a...\n" * 3 + "a\n" * 7, "a\u2026\n" + "a\n" * 2, "ellipsis_lines"),
    "min_alphabetic": ("a a a a 1", "a a a 1", "alphabetic_words"),
    "min_stop_words": ("the of", "the the", "stop_words"),
}


@pytest.mark.parametrize("field", QUALITY)
def test_gopher_quality(field):
    good, bad, rule = QUALITY[field]
    assert only(GopherQuality, **{field: ...}).broken(good) is None
    assert only(GopherQuality, **{field: ...}).broken(bad) == rule


def test_gopher_quality_of_words_between_spaces():
    """Dolma's: a mark is part of its word, and lengths go by their median."""
    text = '"a," (b) c; -- d!'  # four of five between spaces, four of eleven with marks apart
    assert only(GopherQuality, min_alphabetic=...).broken(text) == "alphabetic_words"
    assert only(GopherQuality, min_alphabetic=..., by_spaces=True).broken(text) is None
    assert only(GopherQuality, min_alphabetic=..., by_spaces=True).broken(text + " 1")
    longer = "aaa aaa a"
    assert only(GopherQuality, min_word_length=...).broken(longer) == "short_words"
    assert only(GopherQuality, min_word_length=..., by_spaces=True).broken(longer) is None


def repeated_n_gram(n, others):
    gram = letters(n, 0x400)
    return " ".join([*gram, *letters(others, 0x500), *gram])


REPETITION = {
    "max_lines": ("a\nb\nc\nd\ne\nf\ng\na\nb\nc", "a\nb\na", "repeated_lines"),
    "max_paragraphs": ("a\n\nb\n\nc\n\nd\n\na", "a\n\nb\n\na", "repeated_paragraphs"),
    "max_line_characters": ("ab\nab\ncdef", "ab\nab\ncde", "repeated_line_characters"),
    "max_paragraph_characters": ("ab\n\nab\n\nxx", "ab\n\nab\n\nx",
                                 "repeated_paragraph_characters"),
}  # fmt: skip


@pytest.mark.parametrize("field", REPETITION)
def test_gopher_repetition(field):
    good, bad, rule = REPETITION[field]
    assert only(GopherRepetition, **{field: ...}).broken(good) is None
    assert only(GopherRepetition, **{field: ...}).broken(bad) == rule


def test_gopher_repetition_of_n_grams():
    for n, most in GopherRepetition().top_n_grams:
        rule = only(GopherRepetition, top_n_grams=((n, most),))
        most_words = next(k for k in range(n, 99) if (2 * n - 1) / (2 * k - 1) <= most)
        assert rule.broken(" ".join(letters(most_words, 0x400))) is None
        assert rule.broken(" ".join(letters(most_words - 1, 0x400))) == f"top_{n}_gram"
    for n, most in GopherRepetition().repeated_n_grams:
        rule = only(GopherRepetition, repeated_n_grams=((n, most),))
        fits = next(k for k in range(99) if n / (2 * (2 * n + k) - 1) <= most)
        assert rule.broken(repeated_n_gram(n, fits)) is None
        assert rule.broken(repeated_n_gram(n, fits - 1)) == f"repeated_{n}_grams"


def test_gopher_repetition_that_counts_the_first_copy_too():
    """Dolma's: what stands twice is two copies, not one."""
    text = "a\nb\nc\nd\na"
    assert only(GopherRepetition, max_lines=...).broken(text) is None  # 1 of 5
    assert only(GopherRepetition, max_lines=..., count_all=True).broken(text)  # 2 of 5
    assert only(GopherRepetition, max_lines=..., count_all=True).broken(text + "\ne\nf") is None
    n_gram = repeated_n_gram(5, 12)  # 5 of 43 characters; 10 of the 22 words' characters
    assert only(GopherRepetition, repeated_n_grams=((5, 0.15),)).broken(n_gram) is None
    assert only(GopherRepetition, repeated_n_grams=((5, 0.15),), count_all=True).broken(n_gram)


def lines(n):
    return "\n".join(["One two three four five."] * n)


LINES_OF_C4 = {  # (kept, removed)
    (C4, "max_word_length"): ("a" * 1000, "a" * 1001),
    (C4, "end_marks"): ("It's 'a b'", "a b c..."),
    (C4, "min_line_words"): ("a b c", "a b"),
    (C4, "javascript"): ("java script", "enable JavaScript"),
    (C4, "policies"): ("our policy", "our Privacy Policy"),
    (C4Tfds, "max_word_length"): ("a" * 1000, "a" * 1001),
    (C4Tfds, "end_marks"): ('He said "a b"', "It's 'a b'"),
    (C4Tfds, "min_line_words"): ("a b c d e", "a b c d"),
}


@pytest.mark.parametrize("kind, field", LINES_OF_C4)
def test_lines_of_c4(kind, field):
    kept, removed = LINES_OF_C4[kind, field]
    text, broken, counted = only(kind, **{field: ...}).clean(f"{kept}\n{removed}")
    assert (text, broken) == (kept, None)
    assert sum(counted.values()) == 1


PAGES_OF_C4 = {
    (C4, "min_sentences"): (lines(5), lines(4), "too_few_sentences"),
    (C4, "lorem_ipsum"): ("lorem", "Lorem Ipsum", "lorem_ipsum"),
    (C4, "curly_bracket"): ("}", "{", "curly_bracket"),
    (C4Tfds, "min_sentences"): (lines(3), lines(2), "too_few_sentences"),
    (C4Tfds, "max_page_length"): ("a" * 190_000, "a" * 190_001, "long_page"),
}


@pytest.mark.parametrize("kind, field", PAGES_OF_C4)
def test_pages_of_c4(kind, field):
    good, bad, rule = PAGES_OF_C4[kind, field]
    assert only(kind, **{field: ...})(document(good)) is None
    assert only(kind, **{field: ...})(document(bad)) == f"{kind.__name__}/{rule}"


def test_c4_strips_citations_and_says_what_it_removed():
    found = document("A fact[1] is here now [edit] then.[citation needed]\nMenu\n\n" + lines(4))
    assert C4()(found) is None
    assert found["text"] == "A fact is here now  then.\n" + lines(4)
    assert found["counts"] == {"lines removed: C4/no_end_mark": 1}


def test_paragraphs_of_mc4():
    assert C4Paragraphs().broken("\n".join(["a" * 200] * 3)) is None
    assert C4Paragraphs().broken("\n".join(["a" * 200, "a" * 200, "a" * 199]))
    assert C4Paragraphs().broken("\n".join(["a" * 200] * 2)) == "too_few_paragraphs"


FINEWEB = {
    "min_end_mark_lines": ("a.\n" * 3 + "a\n" * 22, "a.\n" * 2 + "a\n" * 15, "end_mark_lines"),
    "max_short_lines": ("a\na\n" + "a" * 31, "a\n" * 7 + ("a" * 31 + "\n") * 3, "short_lines"),
    "short_line_length": ("a" * 31, "a" * 30, "short_lines"),
    "max_repeated_characters": ("a\na\n" + "b" * 98, "a\na\n" + "b" * 97,
                                "repeated_line_characters"),
    "max_newlines": ("a a a\na a a\na a a\na", "a a\na", "newlines"),
}  # fmt: skip


@pytest.mark.parametrize("field", FINEWEB)
def test_fineweb(field):
    good, bad, rule = FINEWEB[field]
    field = "max_short_lines" if field == "short_line_length" else field
    chosen = only(FineWeb, **{field: ...}, short_line_length=30)
    assert chosen.broken(good) is None
    assert chosen.broken(bad) == rule


@pytest.mark.parametrize("language", roots.ROWS)
def test_every_row_of_roots_on_either_side(language):
    """Documents are made longer or worse a character at a time, until one rule breaks."""
    row, name = roots.ROWS[language], language

    def rule(**on):
        return only(Roots, **on, remove_odd_words=False)

    few = rule(words=...)
    assert few.broken("a " * row.min_words, name) is None
    assert row.min_words == 1 or few.broken("a " * (row.min_words - 1), name) == "few_words"
    special = rule(special=...)
    spaces = next(k for k in range(1, 1000) if k / 1000 > row.special)
    assert special.broken("a" * (1001 - spaces) + "." * (spaces - 1), name) is None
    assert special.broken("a" * (1000 - spaces) + "." * spaces, name) == "special_characters"
    flagged = rule(flagged=..., flagged_words={name: "bad"})
    fits = next(k for k in range(1, 2000) if 1 / (k + 1) <= row.flagged)
    assert flagged.broken("bad " + "a " * fits, name) is None
    assert flagged.broken("bad " + "a " * (fits - 1), name) == "flagged_words"
    stop = rule(stop_word_ratio=..., stop_words={name: "die"})
    fits = next(k for k in range(1, 2000) if 1 / (k + 1) < row.stop_words) - 1
    assert stop.broken("die " + "x " * fits, name) is None
    assert stop.broken("die " + "x " * (fits + 1), name) == "stop_words"
    for field, measured, most in (
        ("character_repetition", lambda t: roots.character_repetition(t, row.characters[0]),
         row.characters[1]),
        ("word_repetition", lambda t: roots.word_repetition(t.split(), row.words[0]), row.words[1]),
    ):  # fmt: skip
        chosen = rule(**{field: ...})

        def text(k):
            return " ".join(letters(60, 0x1200) + ["aa"] * k)

        k = bisect.bisect(range(4000), 0, key=lambda k: chosen.broken(text(k), name) is not None)
        before, after = text(k - 1), text(k)
        assert measured(before) <= most < measured(after)
        assert rule(**{field: ...}).broken(after, name) == field


def test_roots_uses_the_row_of_the_language_and_removes_odd_words():
    text = "see http://x.org " + "a" * 26 + " " + "the cat and I " * 5
    found = document(text, language="en")
    assert only(Roots, words=..., remove_odd_words=True)(found) is None
    assert found["text"] == "see  " + ("the cat and I " * 5).strip() or "http" not in found["text"]
    assert "a" * 26 not in found["text"]
    assert only(Roots, words=...)(document("a " * 13, language="fr")) is None
    assert only(Roots, words=...)(document("a " * 13, language="en")) == "Roots/few_words"


def test_repetition_of_roots_by_hand():
    assert roots.character_repetition("abcdefghijklm", 10) == 0
    assert roots.character_repetition("a" * 30, 10) == 1
    assert roots.word_repetition(["a", "b", "c", "a", "b", "c"], 3) == 0.5  # abc twice of 4
    assert roots.special_ratio("ab1.") == 0.5


CODE = {
    "max_mean_line": ("python", "a" * 100, "a" * 101, "mean_line"),
    "max_line": ("python", "a" * 1000, "a" * 1001, "long_line"),
    "min_alphanumeric": ("python", "1---", "1----", "alphanumeric"),
    "min_alphabetic": ("python", "a111", "a1111", "alphabetic"),
    "xml_header": ("python", "x" * 87 + "<?xml version=", "x" * 86 + "<?xml version=", "xml"),
    "min_html_text": ("html", "a" * 20 + "<" + "b" * 78 + ">", "a" * 19 + "<" + "b" * 78 + ">",
                      "html_text"),
    "min_html_characters": ("html", "a" * 100, "a" * 99, "html_text"),
    "min_data": ("json", "a" * 50, "a" * 49, "data_size"),
    "max_data": ("yaml", "a" * 5000, "a" * 5001, "data_size"),
    "generated": ("python", "a\n" * 5 + "# Auto-generated", "a\n" * 4 + "# Auto-generated",
                  "generated"),
}  # fmt: skip


@pytest.mark.parametrize("field", CODE)
def test_code(field):
    language, good, bad, rule = CODE[field]
    chosen = only(Code, **{field: ...})
    assert chosen.broken(good, language) is None
    assert chosen.broken(bad, language) == rule
    assert chosen(document(bad, language="en")) is None
    assert chosen(document(bad, language=language)) == f"Code/{rule}"


def test_limits():
    for field, good, bad in (
        ("min_characters", "a", ""),
        ("max_characters", "a" * 1_000_000, "a" * 1_000_001),
    ):
        assert only(Limits, **{field: ...}).broken(good) is None
        assert only(Limits, **{field: ...}).broken(bad)
    assert only(Limits, max_symbols=0.5).broken("a .") is None
    assert only(Limits, max_symbols=0.5).broken("a . .") == "symbols"


def test_blocklists(tmp_path):
    (tmp_path / "hosts").write_text("bad.org\n")
    (tmp_path / "words").write_text("evil word\nUgly\n")
    step = Blocklist(hosts=f"{tmp_path}/hosts", words=f"{tmp_path}/words")
    assert step(document("fine", url="http://good.org/bad.org")) is None
    assert step(document("fine", url="https://www.bad.org/x")) == "Blocklist/host"
    assert step(document("fine", url="https://notbad.org/x")) is None
    assert step(document("an EVIL word")) == "Blocklist/word"
    assert step(document("uglyish")) is None
    with pytest.raises(UserError, match="can't be read"):
        Blocklist(words=f"{tmp_path}/none")(document("a"))


def test_decontamination_by_thirteen_words(tmp_path):
    words = [f"w{chr(97 + i)}" for i in range(20)]
    (tmp_path / "eval.txt").write_text(" ".join(words) + "\nToo short.\n")
    (tmp_path / "asked.txt").write_text("Is this a short one?\n")
    (tmp_path / "pages").write_text("http://eval.org/1\n")
    files = (f"{tmp_path}/eval.txt", f"{tmp_path}/asked.txt")
    step = Decontaminate(files, urls=f"{tmp_path}/pages")
    overlaps = {
        "x " + " ".join(words[3:15]) + " y": None,  # 12 in common
        "it is too short": None,
        "X " + ", ".join(words[3:16]) + " y": "overlap with eval.txt",
        "they ask: is this a short one": "overlap with asked.txt",
    }
    for text, found in overlaps.items():
        assert step(document(text)) == (found and f"Decontaminate/{found}")
    page = document("a", url="http://EVAL.org/1")
    assert step(page) == "Decontaminate/url in pages"
    assert dataclasses.replace(step, drop=False)(page) is None
    assert page["counts"] == {"overlap with evaluation data: url in pages": 1}


@pytest.mark.parametrize("kind", [GopherQuality, GopherRepetition, C4, C4Tfds, C4Paragraphs,
                                  FineWeb, Roots, Code])  # fmt: skip
def test_every_rule_has_a_source_and_its_test(kind):
    rows = rules_of(kind)
    assert rows and all(source for *_, source in rows)
    tested = {GopherQuality: QUALITY, FineWeb: FINEWEB, Code: CODE}.get(kind)
    if tested:
        fields = {f.name for f in dataclasses.fields(kind) if "rule" in f.metadata}
        assert fields == set(tested)
